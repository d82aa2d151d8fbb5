"""Files that appear whole or not at all, and rows read with their places."""

import errno
import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from arkfast.infer.jsonl import AtomicJsonl, read_rows
from arkfast.records import InputError


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    rows = [{"text": "naïve 你好\u2028", "n": 1.5, "none": None}, {"surrogate": "\ud800", "list": [1, {"a": True}]}, {}]
    with AtomicJsonl(tmp_path / "new" / "rows.jsonl") as writer:
        for row in rows:
            writer.write(row)
    assert list(read_rows(tmp_path / "new" / "rows.jsonl")) == rows
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["rows.jsonl"]
    assert "你好" in (tmp_path / "new" / "rows.jsonl").read_text(encoding="utf-8")


def test_an_existing_file_survives_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"old": 1}\n')
    writer = AtomicJsonl(path)

    def crash() -> None:
        with writer:
            writer.write({"new": 1})
            assert path.read_text() == '{"old": 1}\n'
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        crash()
    assert path.read_text() == '{"old": 1}\n'
    assert list(read_rows(writer.partial)) == [{"new": 1}]
    with AtomicJsonl(path) as again:
        again.write({"newer": 1})
    assert list(read_rows(path)) == [{"newer": 1}]
    assert list(read_rows(tmp_path / "rows.jsonl.partial.old")) == [{"new": 1}]


def test_a_run_that_wrote_nothing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), AtomicJsonl(tmp_path / "rows.jsonl"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file of this process grows beyond ``size`` bytes: a write that would is cut short there, and the next one fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_told_and_keeps_whole_rows(tmp_path: Path) -> None:
    path, row = tmp_path / "rows.jsonl", {"text": "x" * 3000}
    path.write_text("{}\n")

    def fill() -> None:
        with room_for(100_000), AtomicJsonl(path) as writer:
            for _ in range(100):
                writer.write(row)

    with pytest.raises(
        InputError, match=r"rows\.jsonl: cannot be written any further \(File too large\); the 33 rows written so far are in"
    ):
        fill()
    assert list(read_rows(tmp_path / "rows.jsonl.partial")) == [row] * 33
    assert path.read_text() == "{}\n"


def test_a_disk_that_is_full_at_once_leaves_nothing(tmp_path: Path) -> None:
    def fill() -> None:
        with room_for(100_000), AtomicJsonl(tmp_path / "rows.jsonl") as writer:
            writer.write({"text": "x" * 200_000})

    with pytest.raises(InputError, match=r"cannot be written any further \(File too large\); make room or give another path"):
        fill()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_fails_at_the_end_keeps_all_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def write() -> None:
        with AtomicJsonl(tmp_path / "rows.jsonl") as writer:
            writer.write({"a": 1})
            monkeypatch.setattr(os, call, full)

    with pytest.raises(InputError, match=r"No space left on device\); the 1 rows written so far"):
        write()
    assert list(read_rows(tmp_path / "rows.jsonl.partial")) == [{"a": 1}]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "target.jsonl").write_text("{}\n")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "target.jsonl")
    with AtomicJsonl(tmp_path / "link.jsonl") as writer:
        writer.write({"a": 1})
    assert (tmp_path / "link.jsonl").is_symlink()
    assert json.loads((tmp_path / "target.jsonl").read_text()) == {"a": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}\n\n{"b": \n', "rows.jsonl:3: not valid JSON"),
        (b'{"a": 1}\n[1]\n', "rows.jsonl:2: expected a JSON object, got list"),
        (b'{"a": "\xff"}\n', "rows.jsonl:1: not valid JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        list(read_rows(path))
    assert message in str(caught.value)


def test_unusable_paths_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"gone\.jsonl: cannot be read"):
        list(read_rows(tmp_path / "gone.jsonl"))
    with pytest.raises(InputError, match="is a folder"), AtomicJsonl(tmp_path):
        pass
    with pytest.raises(InputError, match="cannot be written"), AtomicJsonl(tmp_path / "file" / "out.jsonl"):
        pass
