"""Where tests find real recordings: in the folder that ARKFAST_TEST_AUDIO names, and nowhere else outside the checkout."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def without_audio() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "ARKFAST_TEST_AUDIO"}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose tests only say what ARKFAST_TEST_AUDIO is; nothing lies beside it."""
    root = tmp_path / "checkout"
    (root / ".ci").mkdir(parents=True)
    shutil.copy(ROOT / ".ci" / "run", root / ".ci" / "run")
    (root / "scripts").mkdir()
    (root / "scripts" / "test.sh").write_text('echo "audio=${ARKFAST_TEST_AUDIO-unset}"\n')
    (root / "scripts" / "test_slow.sh").write_text("echo slow\n")
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, does in (("chromium", ""), ("npm", "exit 1\n")):  # else .ci/run would install the one and fetch a package by the other
        (tools / name).write_text(f"#!/bin/sh\n{does}")
        (tools / name).chmod(0o755)
    return root


def said_by_ci(checkout: Path, **environment: str) -> str:
    path = os.pathsep.join((str(checkout.parent / "tools"), os.environ["PATH"]))
    run = subprocess.run(
        ["bash", str(checkout / ".ci" / "run")], env={**without_audio(), "PATH": path, **environment}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "slow"
    return run.stdout.splitlines()[-2]


def test_ci_hands_over_the_recordings_beside_the_checkout(checkout: Path) -> None:
    assert said_by_ci(checkout) == "audio=unset"
    beside = checkout.parent / "shared" / "audio"
    beside.mkdir(parents=True)
    assert said_by_ci(checkout) == f"audio={beside.resolve()}"
    assert said_by_ci(checkout, ARKFAST_TEST_AUDIO="/mine") == "audio=/mine"


def test_tests_of_recordings_skip_with_the_reason_or_fail_where_the_folder_is_wrong(tmp_path: Path) -> None:
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path / "conftest.py")
    (tmp_path / "test_it.py").write_text("def test_it(recordings):\n    assert [p.name for p in recordings] == ['a.flac', 'b.wav']\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    folder, empty = tmp_path / "folder", tmp_path / "empty"
    for made in (folder, empty):
        made.mkdir()
        (made / "README.md").touch()
    for name in ("b.wav", "a.flac"):
        (folder / name).touch()

    quick = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}

    def run(**environment: str) -> str:
        command = [sys.executable, "-m", "pytest", "-q", "-rsfE", "-p", "no:cacheprovider", "test_it.py"]
        return subprocess.run(command, cwd=tmp_path, env={**without_audio(), **quick, **environment}, capture_output=True, text=True).stdout

    assert "ARKFAST_TEST_AUDIO names no folder of recordings" in run()
    assert "1 skipped" in run(ARKFAST_TEST_AUDIO="")
    assert "1 passed" in run(ARKFAST_TEST_AUDIO=str(folder))
    assert f"ARKFAST_TEST_AUDIO={empty} holds no recordings" in run(ARKFAST_TEST_AUDIO=str(empty))
    assert "FileNotFoundError" in run(ARKFAST_TEST_AUDIO=str(tmp_path / "gone"))


def reaching_outside(root: Path) -> list[str]:
    """Lines of tests that climb above the checkout, or read the variable beside the fixture."""
    found = []
    for path in sorted((root / "tests").rglob("*.py")):
        place = path.relative_to(root)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            for steps in re.findall(r"\bparents\[(\d+)\]", line):
                if int(steps) > len(place.parts) - 1:
                    found.append(f"{place}:{number}: climbs above the checkout")
            if re.search(r"ROOT\.parent\b", line):
                found.append(f"{place}:{number}: climbs above the checkout")
            if re.search(r"(environ|getenv).*ARKFAST_TEST_AUDIO", line) and path.name not in {"conftest.py", Path(__file__).name}:
                found.append(f"{place}:{number}: reads ARKFAST_TEST_AUDIO; take the fixture `recordings`")
    return found


def test_tests_stay_in_the_checkout() -> None:
    assert reaching_outside(ROOT) == []


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("tests/test_x.py", "SHARED = Path(__file__).resolve().parents" + "[2] / 'shared'", "climbs above"),
        ("tests/audio/test_x.py", "SHARED = Path(__file__).parents" + "[3]", "climbs above"),
        ("tests/audio/test_x.py", "CLIPS = ROOT." + "parent / 'audio'", "climbs above"),
        ("tests/audio/test_x.py", "FOLDER = os.environ.get('ARKFAST_TEST_AUDIO')", "take the fixture"),
    ],
)
def test_a_test_that_leaves_the_checkout_is_found(tmp_path: Path, file: str, line: str, message: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(f"ROOT = Path(__file__).resolve().parents[{len(Path(file).parts) - 1}]\n{line}\n")
    (found,) = reaching_outside(tmp_path)
    assert found.startswith(f"{file}:2: ")
    assert message in found
