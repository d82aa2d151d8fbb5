"""NeMo manifests, brace patterns, and lines that no manifest should have."""

import json
import tracemalloc

import pytest

from arkfast.data import Fields, iter_manifest, read_manifest
from arkfast.data.manifest import MAX_LINE, count_rows, iter_rows
from arkfast.data.sources import expand
from arkfast.records import InputError


def write(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_nemo_row_becomes_a_segment(tmp_path):
    path = write(
        tmp_path / "nemo.json",
        {"audio_filepath": "a.wav", "duration": 3.2, "text": "one", "lang": "en", "speaker": 1},
        {"audio_filepath": "long.wav", "offset": 2.5, "duration": 1.5, "text": "two", "source_lang": "de", "taskname": "asr"},
        {"audio_filepath": "/b.wav", "offset": 0, "text": "three", "language": "fr", "lang": "de"},
        {"audio": "ours.wav", "text": "four"},
    )
    whole, cut, open_end, ours = read_manifest(path)
    assert (whole.audio, whole.begin, whole.end, whole.language) == (str(tmp_path / "a.wav"), None, None, "en")
    # ``duration`` stays where it is the recording's length; a segment's length is in its ends.
    assert whole.extra == {"duration": 3.2, "lang": "en", "speaker": 1, "audio": "a.wav"}
    assert (cut.begin, cut.end, cut.language, cut.text) == (2.5, 4.0, "de", "two")
    assert "duration" not in cut.extra
    assert (open_end.audio, open_end.begin, open_end.end, open_end.language) == ("/b.wav", 0.0, None, "fr")
    assert (ours.audio, ours.text) == (str(tmp_path / "ours.wav"), "four")


def test_the_form_can_be_told_instead_of_seen(tmp_path):
    both = write(tmp_path / "a.jsonl", {"audio": "ours.wav", "audio_filepath": "theirs.wav", "offset": 1, "duration": 2})
    assert read_manifest(both)[0].extra["audio"] == "ours.wav"
    (row,) = read_manifest(both, format="nemo")
    assert (row.extra["audio"], row.begin, row.end) == ("theirs.wav", 1.0, 3.0)
    theirs = write(tmp_path / "b.jsonl", {"audio_filepath": "theirs.wav"})
    with pytest.raises(InputError, match="field 'audio' must be the path"):
        read_manifest(theirs, format="jsonl")
    ours = write(tmp_path / "c.jsonl", {"audio": "ours.wav"})
    with pytest.raises(InputError, match="field 'audio_filepath' must be the path"):
        read_manifest(ours, format="nemo")
    with pytest.raises(InputError, match=r"must end in \.tar"):
        read_manifest(ours, format="tar")
    # Whoever names NeMo's field himself gets it as his own.
    (row,) = read_manifest(theirs, fields=Fields(audio="audio_filepath"))
    assert row.extra["audio"] == "theirs.wav"


@pytest.mark.parametrize(
    ("row", "kind", "message"),
    [
        ({"audio_filepath": 3}, "audio field", "field 'audio_filepath' must be the path of a recording, got 3"),
        ({"audio_filepath": "a.wav", "offset": -1}, "time field", "offset must not be negative"),
        ({"audio_filepath": "a.wav", "duration": 0}, "time field", "duration must be above 0"),
        ({"audio_filepath": "a.wav", "duration": "3"}, "time field", "duration must be a number"),
        ({"audio_filepath": "a.wav", "taskname": "ast"}, "other task", "task 'ast'"),
        ({"audio": "s3://bucket/a.wav"}, "audio field", "is an address, not a path"),
        ({"audio": "a.wav", "id": ["x"]}, "id field", "field 'id' must be text or a number"),
        ({"audio": "a.wav", "id": ""}, "id field", "field 'id' must be text or a number"),
        ({"audio": "a.wav", "text": "\ud800"}, "text field", "text holds half of a surrogate pair at character 0"),
        ({"audio": "a.wav", "id": "x\udfff"}, "id field", "id holds half"),
        ('{"audio": "a.wav", "begin_time": 1' + "0" * 400 + "}", "time field", "must be a number of seconds"),
        ('{"audio": "a.wav", "end_time": 1' + "0" * 5000 + "}", "not JSON", "cannot be read"),
        ("[" * 100_000, "not JSON", "cannot be read"),
        ({"audio": ["x" * 1000]}, "audio field", "…"),
    ],
)
def test_lines_that_break_a_careless_reader(tmp_path, row, kind, message):
    path = write(tmp_path / "a.jsonl", {"audio": "first.wav"}, row, {"audio": "last.wav"})
    rows = list(iter_rows(path))
    assert [r.error is None for r in rows] == [True, False, True]
    assert (rows[1].number, rows[1].error.kind) == (2, kind)
    assert str(rows[1].error).startswith(f"{path}:2: ")
    assert message in str(rows[1].error)
    assert len(str(rows[1].error)) < 400
    assert rows[-1].end == path.stat().st_size


def test_a_byte_order_mark_is_no_fault(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"audio": "a.wav"}\r\n')
    assert read_manifest(tmp_path / "a.jsonl")[0].extra == {"audio": "a.wav"}


def test_an_endless_line_is_one_bad_row_and_takes_no_memory(tmp_path):
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(b'{"audio": "first.wav"}\n')
        for _ in range(4):
            file.write(b"x" * MAX_LINE)
        file.write(b'tail\n{"audio": "last.wav"}\n')
    tracemalloc.start()
    try:
        rows = list(iter_rows(path))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [(row.number, row.error is None) for row in rows] == [(1, True), (2, False), (3, True)]
    assert rows[1].error.kind == "overlong line"
    assert len(rows[1].raw) <= 1000
    assert rows[2].end == path.stat().st_size
    assert peak < 3 * MAX_LINE, "a line is 4 MAX_LINE long; two pieces of it may be in memory at a time"
    assert count_rows(path) == 3


def test_braces(tmp_path):
    for name in ("a-08.jsonl", "a-09.jsonl", "a-10.jsonl", "x-en.jsonl", "x-de.jsonl", "{odd}.jsonl", "{1..2}.jsonl"):
        write(tmp_path / name, {"audio": f"{name}.wav"})

    def names(pattern):
        return [path.name for path in expand(tmp_path / pattern)]

    assert names("a-{08..10}.jsonl") == ["a-08.jsonl", "a-09.jsonl", "a-10.jsonl"]
    assert names("x-{en,de}.jsonl") == ["x-en.jsonl", "x-de.jsonl"]
    assert names("{odd}.jsonl") == ["{odd}.jsonl"]
    assert names("{1..2}.jsonl") == ["{1..2}.jsonl"]  # a file of that very name
    assert names("{a,a}-{08..09}.jsonl") == ["a-08.jsonl", "a-09.jsonl"] * 2
    assert [row.id for row in iter_manifest(tmp_path / "a-{08..10}.jsonl")] == ["a-08.jsonl:1", "a-09.jsonl:1", "a-10.jsonl:1"]
    assert count_rows(tmp_path / "a-{08..10}.jsonl") == 3


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("a-{08..11}.jsonl", r"a-11\.jsonl: cannot be read"),
        ("{9..1}.jsonl", "count down"),
        ("{0..999999999}.jsonl", "more than 100000 files"),
        ("{0..999}{0..999}.jsonl", "more than 100000 files"),
        ("", "it is a folder"),
        ("a\0b.jsonl", "cannot be read"),
    ],
)
def test_braces_that_name_no_files(tmp_path, pattern, message):
    for i in (8, 9, 10):
        write(tmp_path / f"a-{i:02d}.jsonl", {"audio": "a.wav"})
    with pytest.raises(InputError, match=message):
        expand(tmp_path / pattern)


def test_counting_needs_rows(tmp_path):
    with pytest.raises(InputError, match="holds no rows"):
        count_rows(write(tmp_path / "a.jsonl", "", "  "))


def test_rows_of_files_of_one_name_have_ids_of_their_own(tmp_path):
    for folder in ("a/x", "b/x"):
        (tmp_path / folder).mkdir(parents=True)
        write(tmp_path / folder / "train.jsonl", {"audio": "1.wav"}, {"audio": "2.wav", "id": folder})
        write(tmp_path / folder / f"{folder[0]}.jsonl", {"audio": "1.wav"})
    ids = [row.id for row in read_manifest(f"{tmp_path}/{{a,b}}/x/train.jsonl")]
    assert ids == ["a/x/train.jsonl:1", "a/x", "b/x/train.jsonl:1", "b/x"]
    # Where names differ, or there is one file, they are names as ever.
    assert [row.id for row in read_manifest(f"{tmp_path}/{{a/x/a,b/x/b}}.jsonl")] == ["a.jsonl:1", "b.jsonl:1"]
    assert [row.id for row in read_manifest(tmp_path / "a/x/train.jsonl")] == ["train.jsonl:1", "a/x"]
    # A file that is named twice is still a repeat.
    with pytest.raises(InputError, match="ids must be unique"):
        read_manifest(f"{tmp_path}/a/x/{{a,a}}.jsonl")
