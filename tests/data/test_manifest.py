"""Manifests: what a row becomes, and that every bad line is named."""

import json

import pytest

from arkfast.data import Fields, iter_manifest, read_manifest
from arkfast.records import InputError


def write(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_row_becomes_an_utterance(tmp_path):
    path = write(
        tmp_path / "a.jsonl",
        {"audio": "clips/a.wav", "text": "one", "begin_time": 1.5, "end_time": 2, "id": 7, "language": "en", "speaker": "s1"},
        "",
        {"audio": "/data/b.wav", "begin_time": -1, "end_time": -1, "task": "asr"},
    )
    first, second = read_manifest(path)
    assert (first.id, first.audio, first.begin, first.end) == ("7", str(tmp_path / "clips/a.wav"), 1.5, 2.0)
    assert (first.text, first.language, first.where) == ("one", "en", f"{path}:1")
    assert first.extra == {"speaker": "s1", "audio": "clips/a.wav"}
    assert second.extra == {"audio": "/data/b.wav", "task": "asr"}
    assert (second.id, second.audio, second.begin, second.end, second.text) == ("a.jsonl:3", "/data/b.wav", None, None, None)


def test_other_field_names(tmp_path):
    path = write(tmp_path / "a.jsonl", {"wav": "a.wav", "words": "one", "from": 0, "to": 3})
    (row,) = read_manifest(path, fields=Fields(audio="wav", text="words", begin="from", end="to"))
    assert (row.text, row.begin, row.end) == ("one", 0.0, 3.0)


def test_channels_and_audio_tracks(tmp_path):
    """Rows of ours and of NeMo's say them alike; a flag holds for rows that do not."""
    rows = [
        {"channel": 1, "audio_track": 2},
        {"channel": [0, 2]},
        {"channel": "0"},
        {"channel": "average"},
        {"channel": None, "audio_track": None},
        {},
        {"channel": "National Broadcaster"},
    ]
    ours = write(tmp_path / "a.jsonl", *[{"audio": "a.wav", **row} for row in rows])
    theirs = write(tmp_path / "b.jsonl", *[{"audio_filepath": "a.wav", **row} for row in rows])
    for path in (ours, theirs):
        found = read_manifest(path)
        assert [row.channel for row in found] == [(1,), (0, 2), (0,), (), None, None, None]
        assert [row.audio_track for row in found] == [2, None, None, None, None, None, None]
        assert [row.extra.get("channel") for row in found] == [row.get("channel") for row in rows], "outputs have it as it was given"
        found = read_manifest(path, fields=Fields(channel=(3,), audio_track=1))
        assert [row.channel for row in found] == [(1,), (0, 2), (0,), (), (3,), (3,), (3,)]
        assert [row.audio_track for row in found] == [2, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{bad", "not valid JSON"),
        ("[1]", "expected a JSON object, got list"),
        ({"text": "x"}, "field 'audio' must be the path of a recording, got null"),
        ({"audio": 3}, "field 'audio' must be the path of a recording, got 3"),
        ({"audio": "a.wav", "text": 3}, "field 'text' must be text, got 3"),
        ({"audio": "a.wav", "language": 3}, "field 'language' must be text"),
        ({"audio": "a.wav", "channel": -1}, "field 'channel': expected a channel's number from 0, several of them, or average, got -1"),
        ({"audio": "a.wav", "channel": [0, 0]}, "field 'channel': expected a channel's number from 0"),
        ({"audio": "a.wav", "channel": True}, "field 'channel': expected a channel's number from 0"),
        ({"audio": "a.wav", "audio_track": "1"}, "field 'audio_track' must be an audio track's number from 0"),
        ({"audio": "a.wav", "task": "tts"}, "task 'tts' in a run of task 'asr'"),
        ({"audio": "a.wav", "begin_time": 7.2, "end_time": 3.1}, "begin_time 7.2 is past end_time 3.1"),
        ({"audio": "a.wav", "begin_time": 3, "end_time": 3}, "begin_time 3 is at end_time 3"),
        ({"audio": "a.wav", "begin_time": "1"}, "begin_time must be a number of seconds"),
        ('{"audio": "a.wav", "end_time": NaN}', "end_time must be a number of seconds (-1 for the whole file), got NaN"),
        ('{"audio": "a.wav", "duration": Infinity}', "duration must be a number of seconds, got Infinity"),
        ({"audio": "a.wav", "duration": "3.2"}, "duration must be a number of seconds, got"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, message):
    path = write(tmp_path / "train.jsonl", {"audio": "good.wav"}, line, {"audio": "last.wav"})
    with pytest.raises(InputError) as raised:
        read_manifest(path)
    assert str(raised.value).startswith(f"{path}:2: ")
    assert message in str(raised.value)
    bad = []
    good = list(iter_manifest(path, on_error=lambda error, number, raw: bad.append((str(error), number, raw))))
    assert [row.extra["audio"] for row in good] == ["good.wav", "last.wav"]
    assert len(bad) == 1
    assert bad[0][1] == 2


def test_repeated_ids_empty_files_and_missing_files(tmp_path):
    path = write(tmp_path / "a.jsonl", {"audio": "a.wav", "id": "x"}, {"audio": "b.wav", "id": "x"})
    with pytest.raises(InputError, match=r"a.jsonl:2: id 'x' stands already at .*a.jsonl:1"):
        read_manifest(path)
    with pytest.raises(InputError, match="holds no rows"):
        read_manifest(write(tmp_path / "empty.jsonl"))
    with pytest.raises(InputError, match="cannot be read"):
        read_manifest(tmp_path / "absent.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"audio": "a.wav"}\n{"audio": "\xe9.wav"}\n')
    with pytest.raises(InputError, match=r"latin\.jsonl:2: not UTF-8"):
        read_manifest(tmp_path / "latin.jsonl")
    bad = []
    assert len(list(iter_manifest(tmp_path / "latin.jsonl", on_error=lambda *found: bad.append(found)))) == 1
    assert bad[0][1] == 2


def test_limit(tmp_path):
    path = write(tmp_path / "a.jsonl", *({"audio": f"{i}.wav"} for i in range(5)))
    assert [row.id for row in read_manifest(path, limit=2)] == ["a.jsonl:1", "a.jsonl:2"]
