"""Files that appear whole or not at all, and rows read with their places."""

import json
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
