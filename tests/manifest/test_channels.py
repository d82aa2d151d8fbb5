"""Channels and audio tracks in manifests: rows that name one that is not there are bad, and Kaldi's two ways of naming them are read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from arkfast.data import read_manifest
from arkfast.data.collate import read_clip
from arkfast.manifest.command import main
from arkfast.records import JsonObject
from arkfast.testing import synthetic_speech

LEFT, RIGHT = synthetic_speech(2.0, seed=1), synthetic_speech(2.0, seed=2)


def rows_of(path: Path) -> list[JsonObject]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def written(folder: Path, rows: list[JsonObject]) -> Path:
    path = folder / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def calls(tmp_path: Path) -> Path:
    """A folder with a call of two talkers, a recording of one channel, and a session of twelve."""
    soundfile.write(tmp_path / "call.wav", np.stack([LEFT, RIGHT], axis=1), 16000, subtype="FLOAT")
    soundfile.write(tmp_path / "mono.wav", LEFT, 16000, subtype="FLOAT")
    soundfile.write(tmp_path / "session.wav", np.stack([LEFT] * 11 + [RIGHT], axis=1), 16000, subtype="FLOAT")
    return tmp_path


@pytest.mark.parametrize("again", [False, True])
def test_a_scan_finds_channels_that_are_not_there(calls: Path, again: bool) -> None:
    rows: list[JsonObject] = [
        {"audio": "call.wav", "channel": 1},
        {"audio": "call.wav", "channel": 2},
        {"audio": "mono.wav", "channel": 0},
        {"audio": "mono.wav", "channel": 1},
        {"audio": "session.wav", "channel": 11},
        {"audio": "session.wav"},
        {"audio": "mono.wav", "audio_track": 1},
        {"audio": "call.wav"},
    ]
    command = ["scan", "--input", str(written(calls, rows)), "--output", str(calls / "clean.jsonl"), "--rejects", str(calls / "bad.jsonl")]
    for _ in range(2 if again else 1):  # the second time what the cache of durations holds decides
        assert main(command) == 1
    clean, bad = rows_of(calls / "clean.jsonl"), rows_of(calls / "bad.jsonl")
    assert [(row["audio"], row.get("channel")) for row in clean] == [
        ("call.wav", 1),
        ("mono.wav", 0),
        ("session.wav", 11),
        ("call.wav", None),
    ]
    assert [(row["line"], row["kind"]) for row in bad] == [
        (2, "no such channel"),
        (4, "no such channel"),
        (6, "no such channel"),
        (7, "unreadable recording"),
    ]
    assert bad[0]["reason"].endswith("call.wav: there is no channel 2: the recording has 2 channels, numbers 0 to 1")
    assert "12 channels, at most 8 can be mixed down" in bad[2]["reason"]


def test_a_flag_holds_for_rows_that_do_not_say_and_stands_in_the_clean_ones(calls: Path) -> None:
    path = written(calls, [{"audio": "call.wav"}, {"audio": "call.wav", "channel": "average"}, {"audio": "call.wav", "channel": [1, 0]}])
    output = calls / "clean.jsonl"
    flags = ["--rejects", str(calls / "bad.jsonl"), "--channel", "1", "--decode", "true"]
    assert main(["scan", "--input", str(path), "--output", str(output), *flags]) == 0
    assert [row["channel"] for row in rows_of(output)] == [1, "average", [1, 0]]
    first, second, third = (read_clip(row).samples for row in read_manifest(output))
    np.testing.assert_array_equal(first, RIGHT)
    np.testing.assert_allclose(second, (LEFT + RIGHT) / 2, atol=1e-7)
    np.testing.assert_allclose(third, second, atol=1e-7)


@pytest.mark.parametrize("flags", [["--channel", "left"], ["--channel", "-1"], ["--audio_track", "-1"]])
def test_flags_that_name_nothing(calls: Path, flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["check", "--input", str(written(calls, [{"audio": "call.wav"}])), *flags])
    assert stop.value.code == 2
    assert f"{flags[0]}" in capsys.readouterr().err


def test_decoding_tells_what_is_doubtful(calls: Path, capsys: pytest.CaptureFixture[str]) -> None:
    soundfile.write(calls / "silent.wav", np.zeros(16000), 16000)
    soundfile.write(calls / "turned.wav", np.stack([LEFT, -LEFT], axis=1), 16000, subtype="FLOAT")
    path = written(calls, [{"audio": "mono.wav"}, {"audio": "silent.wav"}, {"audio": "turned.wav"}, {"audio": "turned.wav", "channel": 0}])
    assert main(["check", "--input", str(path)]) == 0, "headers alone tell nothing of it"
    capsys.readouterr()
    assert main(["check", "--input", str(path), "--decode", "true"]) == 1
    said = capsys.readouterr().out
    assert f"{path}:2: warning: digital silence: every sample is 0\n" in said
    assert f"{path}:3: {calls / 'turned.wav'}: the channels cancel one another" in said
    assert "doubtful    1 rows have warnings" in said
    output = calls / "clean.jsonl"
    main(["scan", "--input", str(path), "--output", str(output), "--rejects", str(calls / "bad.jsonl"), "--decode", "true"])
    assert [row.get("warnings") for row in rows_of(output)] == [None, ["digital silence: every sample is 0"], None]


def kaldi(folder: Path, **files: str) -> Path:
    """A data folder in ``folder / "data"``, of the recordings beside it."""
    data = folder / "data"
    data.mkdir()
    recordings = "".join(f"{name} {folder / file}\n" for name, file in (("c-A", "call.wav"), ("c-B", "call.wav"), ("m-B", "mono.wav")))
    for name, text in {"wav.scp": recordings, **files}.items():
        (data / name).write_text(text)
    return data


def test_kaldis_segments_name_a_channel(calls: Path) -> None:
    segments = "u0 c-A 0 1 0\nu1 c-A 0.5 -1 1\nu2 c-A 0 1\nu3 c-A 0 1 -1\nu4 c-A 0 1 2\nu5 c-A 0 1 left\nu6 c-A 0 1 0 0\nu7 m-B 0 1 0\n"
    data = kaldi(calls, segments=segments)
    assert main(["from-kaldi", str(data), "--output", str(calls / "out")]) == 1
    clean, bad = rows_of(calls / "out" / "data.jsonl"), rows_of(calls / "out" / "kaldi.rejects.jsonl")
    assert [(row["id"], row.get("channel")) for row in clean] == [("u0", 0), ("u1", 1), ("u2", None), ("u3", None), ("u7", 0)]
    assert [(row["line"], row["kind"]) for row in bad] == [(5, "no such channel"), (6, "segment"), (7, "segment")]
    heard = read_clip(read_manifest(calls / "out" / "data.jsonl")[1]).samples
    np.testing.assert_array_equal(heard, RIGHT[8000:], err_msg="of both talkers it is the second one alone")


@pytest.mark.parametrize("sides", ["c-A call A\nc-B call B\nm-B mono B\n", "c-A call 1\nc-B call 2\nm-B mono 2\n"])
@pytest.mark.parametrize("cut", [False, True])
def test_kaldis_recordings_have_sides(calls: Path, sides: str, cut: bool) -> None:
    files = {"segments": "c-A-1 c-A 0 1\nc-B-1 c-B 0 1\nm-B-1 m-B 0 1\nc-A-2 c-A 1 2 1\n"} if cut else {}
    data = kaldi(calls, reco2file_and_channel=sides, **files)
    assert main(["from-kaldi", str(data), "--output", str(calls / "out")]) == 0
    found = [(row["id"], row.get("channel")) for row in rows_of(calls / "out" / "data.jsonl")]
    if cut:
        assert found == [("c-A-1", 0), ("c-B-1", 1), ("m-B-1", None), ("c-A-2", 1)], "the segment's own channel wins"
    else:
        assert found == [("c-A", 0), ("c-B", 1), ("m-B", None)], "a recording of one channel was taken apart already"


def test_a_side_that_is_none(calls: Path) -> None:
    data = kaldi(calls, reco2file_and_channel="c-A call A\nc-B call X\nm-B\n")
    assert main(["from-kaldi", str(data), "--output", str(calls / "out")]) == 1
    bad = rows_of(calls / "out" / "kaldi.rejects.jsonl")
    assert [(Path(row["source"]).name, row["line"], row["kind"]) for row in bad] == [
        ("wav.scp", 2, "channel"),
        ("reco2file_and_channel", 3, "transcript line"),
    ]
    assert "expected the side A or B, or the channel 1 or 2, got 'call X'" in bad[0]["reason"]
