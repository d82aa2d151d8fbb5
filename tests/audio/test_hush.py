"""A decoder's own notes stay off standard error, and whatever else is written there meanwhile arrives."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from arkfast.audio.hush import hushed


def test_the_decoders_lines_are_held_back_and_all_others_pass(capfd: pytest.CaptureFixture[str]) -> None:
    lines = (
        "Note: Trying to resync...", "Warning: Xing stream size off by more than 1%, fuzzy seeking may be even more fuzzy than by design!",
        "[src/libmpg123/parse.c:skip_junk():1276] error: Giving up searching valid MPEG header after 65536 bytes of junk.",
        "somebody else's line", "a.py:3: RuntimeWarning: careful",
    )  # fmt: skip
    with hushed():
        os.write(2, "".join(f"{line}\n" for line in lines).encode())
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "somebody else's line\na.py:3: RuntimeWarning: careful\nafter\n"


def test_an_error_passes_with_what_was_written_before_it(capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        with hushed():
            os.write(2, b"Note: Trying to resync...\nbefore\n")
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    assert capfd.readouterr().err == "before\n"


def test_threads_lose_no_line(capfd: pytest.CaptureFixture[str]) -> None:
    def work(name: int) -> None:
        for i in range(50):
            with hushed():
                os.write(2, f"{name} {i}\n".encode())
            os.write(2, f"{name} {i} out\n".encode())

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = capfd.readouterr().err.splitlines()
    assert sorted(lines) == sorted(f"{name} {i}{end}" for name in range(4) for i in range(50) for end in ("", " out"))


def test_without_standard_error_nothing_fails() -> None:
    pid = os.fork()
    if pid == 0:
        os.close(2)
        with hushed():
            pass
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


def test_a_damaged_mp3_is_our_error_alone(recordings: list[Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from arkfast.audio import load
    from arkfast.records import InputError

    whole = next(path for path in recordings if path.suffix == ".mp3").read_bytes()
    damaged = tmp_path / "damaged.mp3"
    damaged.write_bytes(whole[:20000] + bytes(range(256)) * 12 + whole[-20000:])
    with pytest.raises(InputError, match=r"damaged\.mp3"):
        load(damaged)
    assert capfd.readouterr().err == ""
