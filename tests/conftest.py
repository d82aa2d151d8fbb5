"""What all tests share: real recordings, where somebody has them, a browser, a tiny model that tells times of words, and a disk that is
full from a chosen moment on.

A test reads nothing outside the checkout and its own temporary folder, but for the recordings, whose folder the environment variable
ARKFAST_TEST_AUDIO names.
"""

import errno
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from arkfast import files

HERE = Path(__file__).resolve().parent
LONGEST = (
    "kernels/test_triton_interpreter.py", "train/test_ranks.py", "models/test_hub_commands.py", "train/test_trainer.py",
    "quickstart/test_run.py", "test_packaging.py", "train/test_ranks_faults.py", "examples/test_examples.py",
)  # fmt: skip
"""Files of a minute or more, the longest first."""
ALONE = ("serve/", "reports/", "infer/test_ray.py")
"""Where tests start services, Ray or a browser. They have deadlines: the slow ones among them run beside no others."""


def pytest_configure() -> None:
    """A pytest that a test starts is no part of the one that runs the test, however many processes that one has."""
    for name in [name for name in os.environ if name.startswith("PYTEST_XDIST")]:
        del os.environ[name]


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs the machine to itself, and put the longest files first, so that no process is left alone with one at the end."""
    places = {item: item.path.relative_to(HERE).as_posix() for item in items if item.path.is_relative_to(HERE)}
    for item, place in places.items():
        if place.startswith(ALONE):
            item.add_marker(pytest.mark.alone)
    items.sort(key=lambda item: LONGEST.index(places[item]) if places.get(item) in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def recordings() -> list[Path]:
    """The wav, flac, mp3 and ogg files of the folder in ARKFAST_TEST_AUDIO, at least one; the test skips where the variable is unset."""
    folder = os.environ.get("ARKFAST_TEST_AUDIO")
    if not folder:
        pytest.skip("ARKFAST_TEST_AUDIO names no folder of recordings")
    paths = sorted(p for p in Path(folder).iterdir() if p.suffix in {".wav", ".flac", ".mp3", ".ogg"})
    assert paths, f"ARKFAST_TEST_AUDIO={folder} holds no recordings"
    return paths


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def open_browser() -> Iterator[Callable[..., Any]]:
    """Starts Chromium, with further flags where a test gives some; the test skips where there is none. All are closed with the module."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pages are looked at through playwright")
    with playwright.sync_playwright() as driver:
        executable = next((found for name in BROWSERS if (found := shutil.which(name))), None)
        if executable is None and not Path(driver.chromium.executable_path).exists():
            pytest.skip("no Chromium here; apt-get install chromium, or playwright install chromium")
        opened: list[Any] = []

        def started(*flags: str) -> Any:
            opened.append(driver.chromium.launch(executable_path=executable, args=["--no-sandbox", *flags]))
            return opened[-1]

        yield started
        for browser in opened:
            browser.close()


class Disk:
    """Sees every point of every write that goes through ``arkfast.files``, and makes them fail as a full disk does.

    ``points`` holds what was seen since ``fill`` was called, as (point, name of the file or folder).
    """

    def __init__(self) -> None:
        self.points: list[tuple[str, str]] = []
        self._room: int | None = None
        self._lock = threading.Lock()  # the files of a folder are fsynced by several threads

    def fill(self, after: int | None = 0) -> None:
        """Let so many points pass, and fail from then on; None lets all pass."""
        self._room, self.points = after, []

    def __call__(self, path: Path, point: str) -> None:
        with self._lock:
            self.points.append((point, path.name))
            if self._room is not None and len(self.points) > self._room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def at_every_point(self, write: Callable[[], object]) -> Iterator[int]:
        """Calls of ``write`` on a disk that is full from the first point on, from the second … until none is left; then with room.

        ``write`` must see to its own errors. Yields after each call how many points passed.
        """
        after = 0
        while True:
            self.fill(after)
            write()
            seen = len(self.points)
            self.fill(None)
            if seen <= after:
                return
            yield after
            after += 1


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """A disk with room, until ``fill``."""
    disk = Disk()
    monkeypatch.setattr(files, "fault", disk)
    return disk


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Every file below a folder with its content, and every folder (None)."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


@pytest.fixture(name="snapshot")
def snapshot_fixture() -> Callable[[Path], dict[str, bytes | None]]:
    """``snapshot``, for tests that cannot import from here."""
    return snapshot


@pytest.fixture(scope="session")
def timed_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny ARK-ASR checkpoint with a CTC head of random weights beside it, which tells times of words. No test changes it."""
    import torch

    from arkfast.align import CtcHead, HeadConfig, save_head
    from arkfast.align.head import weights_digest
    from arkfast.testing import tiny_checkpoint

    folder = tiny_checkpoint(tmp_path_factory.mktemp("timed") / "tiny")
    torch.manual_seed(0)
    config = HeadConfig(hidden_size=48, width=32, frames_per_embedding=8, units=tuple("abcdefghij"), weights=weights_digest(folder))
    save_head(CtcHead(config), folder)
    return folder
