"""Devices, pipes and open files of the process are written through, by every writer; none is replaced."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from arkfast import files
from arkfast.files.outlets import descriptor_of, is_outlet, is_standard_output
from arkfast.infer.jsonl import AtomicJsonl
from arkfast.records import InputError


def by_text(path: Path) -> bytes:
    files.write_text(path, "grüße\n")
    return "grüße\n".encode()


def by_another(path: Path) -> bytes:
    with files.new_file(path) as temporary:
        temporary.write_bytes(b"\0" * 3_000_000)
    return b"\0" * 3_000_000


def by_rows(path: Path) -> bytes:
    with files.jsonl_files([path, path.parent / "rejects.jsonl"]) as write:
        for number in range(3):
            write(0, {"n": number})
    return b'{"n": 0}\n{"n": 1}\n{"n": 2}\n'


def by_lines(path: Path) -> bytes:
    lines = files.LineFile(path, fresh=True)
    lines.add(b"one\n")
    lines.add(b"x" * 200_000 + b"\n")
    lines.sync()
    lines.check_own()
    lines.close()
    return b"one\n" + b"x" * 200_000 + b"\n"


def by_transcripts(path: Path) -> bytes:
    with AtomicJsonl(path) as writer:
        writer.write({"pred_text": "你好"})
        writer.write({"pred_text": ""})
    return '{"pred_text": "你好"}\n{"pred_text": ""}\n'.encode()


WRITERS = [by_text, by_another, by_rows, by_lines, by_transcripts]
every_writer = pytest.mark.parametrize("write", WRITERS)
Writer = Callable[[Path], bytes]


@contextmanager
def reading(path: Path) -> Iterator[list[bytes]]:
    """Read a pipe to its end in a thread; what came is there when the block has ended."""
    came: list[bytes] = []
    thread = threading.Thread(target=lambda: came.append(path.read_bytes()), daemon=True)
    thread.start()
    yield came
    thread.join(20)
    assert not thread.is_alive(), "the writer never opened the pipe"


@every_writer
@pytest.mark.parametrize("linked", [False, True])
def test_a_pipe_is_written_through_and_stays(tmp_path: Path, write: Writer, linked: bool) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to(pipe)
    with reading(pipe) as came:
        written = write(tmp_path / "link" if linked else pipe)
    assert came == [written]
    assert stat.S_ISFIFO(pipe.lstat().st_mode)
    assert (tmp_path / "link").is_symlink()
    assert {path.name for path in tmp_path.iterdir()} - {"rejects.jsonl"} == {"pipe", "link"}


def own_device(path: Path, minor: int) -> Path:
    """A device of our own, so that a writer that replaces it does no harm; the test skips where none can be made."""
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, minor))
        path.open("rb").close()
    except OSError as error:
        pytest.skip(f"no device can be made here ({error.strerror})")
    return path


@pytest.fixture
def device(tmp_path: Path) -> Path:
    """What /dev/null is."""
    return own_device(tmp_path / "null", 3)


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """What /dev/full is."""
    return own_device(tmp_path / "full", 7)


@every_writer
def test_a_device_is_written_through_and_stays(device: Path, write: Writer) -> None:
    write(device)
    assert stat.S_ISCHR(device.lstat().st_mode)
    assert {path.name for path in device.parent.iterdir()} - {"rejects.jsonl"} == {"null"}


def test_no_folder_and_no_other_file_takes_the_place_of_a_pipe(tmp_path: Path) -> None:
    pipe, other = tmp_path / "pipe", tmp_path / "other"
    os.mkfifo(pipe)
    other.write_text("x")
    with pytest.raises(InputError, match="pipe: is a device or a pipe"):
        files.NewFolder(pipe)
    with pytest.raises(InputError, match="pipe: is a device or a pipe"):
        files.move(other, pipe)
    assert stat.S_ISFIFO(pipe.lstat().st_mode)
    assert {path.name for path in tmp_path.iterdir()} == {"pipe", "other"}


@pytest.mark.parametrize("write", [by_text, by_another, by_rows, by_transcripts])
def test_a_full_device_is_one_error(full: Path, write: Writer) -> None:
    with pytest.raises(InputError, match=r"/full: cannot be written.*\(No space left on device\)"):
        write(full)
    assert stat.S_ISCHR(full.lstat().st_mode)


SHELL = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import test_outlets
getattr(test_outlets, sys.argv[3])(Path(sys.argv[1]))
"""


@pytest.mark.parametrize(
    "name", ["-", "/dev/stdout", *(pytest.param(name, marks=pytest.mark.slow) for name in ("/dev/fd/1", "/proc/self/fd/1"))]
)
@pytest.mark.parametrize("write", [by_text, by_transcripts])
def test_standard_output_is_added_to_whatever_it_is(tmp_path: Path, name: str, write: Writer) -> None:
    script = [sys.executable, "-c", SHELL, name, str(Path(__file__).parent), write.__name__]
    written = {by_text: "grüße\n", by_transcripts: '{"pred_text": "你好"}\n{"pred_text": ""}\n'}[write]
    assert subprocess.run(script, stdout=subprocess.PIPE, check=True, cwd=tmp_path).stdout.decode() == written
    (tmp_path / "all.txt").write_text("before\n")
    with (tmp_path / "all.txt").open("ab") as file:
        subprocess.run(script, stdout=file, check=True, cwd=tmp_path)
    assert (tmp_path / "all.txt").read_text(encoding="utf-8") == "before\n" + written
    assert [path.name for path in tmp_path.iterdir()] == ["all.txt"]


def test_what_is_an_outlet(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("/dev/stdout")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    outlets = ["-", "/dev/null", "/dev/stderr", "/dev/fd/7", f"/proc/{os.getpid()}/fd/2", tmp_path / "link"]
    others = [tmp_path, tmp_path / "file", tmp_path / "missing", tmp_path / "loop", "/proc/1/fd/1x", "dev/stdout", "./out\0put"]
    assert [is_outlet(Path(path)) for path in outlets] == [True] * len(outlets)
    assert [is_outlet(Path(path)) for path in others] == [False] * len(others)
    assert descriptor_of(Path("-"), standard=0) == descriptor_of(Path("/dev/stdin")) == 0
    assert is_standard_output(Path("-"))
    assert is_standard_output(tmp_path / "link")
    assert not is_standard_output(Path("/dev/null"))
    assert not is_standard_output(tmp_path / "file")
    assert not is_standard_output(None)
