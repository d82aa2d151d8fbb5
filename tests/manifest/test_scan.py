"""``arkfast manifest``: every bad row with its reason, good rows with their durations, and files that are whole or not there."""

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from arkfast.audio import LogMel
from arkfast.data import extract, read_manifest
from arkfast.manifest import CheckOptions, check_manifest, scan_manifest
from arkfast.manifest.command import main
from arkfast.records import InputError
from arkfast.testing import synthetic_speech, write_wav

SECONDS = 2.0


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of sound and unsound recordings; the sound ones last 2 s."""
    folder = tmp_path_factory.mktemp("recordings")
    samples = synthetic_speech(SECONDS, seed=0)
    for name in ("a.wav", "b.wav", "c.wav", "d.flac"):
        soundfile.write(folder / name, samples, 16000)
    write_wav(folder / "long.wav", np.zeros(31 * 16000, dtype=np.float32))
    soundfile.write(folder / "nan.wav", np.full(16000, np.nan, dtype=np.float32), 16000, subtype="FLOAT")
    (folder / "empty.wav").write_bytes(b"")
    (folder / "text.wav").write_text("not audio")
    flac = (folder / "d.flac").read_bytes()
    (folder / "cut.flac").write_bytes(flac[: len(flac) // 2])
    return folder


Lines = list[dict[str, Any] | str]


@pytest.fixture
def manifest(recordings: Path) -> Callable[[Lines], Path]:
    """Writes lines beside the recordings."""
    path = recordings / "in.jsonl"

    def write(lines: Lines) -> Path:
        path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines), encoding="utf-8")
        return path

    return write


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def scan(path: Path, folder: Path, *flags: str) -> tuple[int, Path, Path]:
    output, rejects = folder / "clean.jsonl", folder / "rejects.jsonl"
    return main(["scan", "--input", str(path), "--output", str(output), "--rejects", str(rejects), *flags]), output, rejects


BAD: list[tuple[dict[str, Any] | str, str, str]] = [
    ("{bad", "not JSON", "not valid JSON"),
    ({"text": "x"}, "audio field", "field 'audio' must be"),
    ({"audio": "a.wav", "text": 3}, "text field", "field 'text' must be text"),
    ({"audio": "a.wav", "task": "tts"}, "other task", "task 'tts'"),
    ({"audio": "a.wav", "begin_time": 2, "end_time": 1}, "empty segment", "is past end_time 1"),
    ({"audio": "a.wav", "begin_time": "x"}, "time field", "must be a number"),
    ({"audio": "a.wav", "begin_time": 5.5}, "segment outside", "begin_time 5.5 is past the recording's end at 2 s"),
    ({"audio": "a.wav", "end_time": 2.06}, "segment outside", "end_time 2.06 is past the recording's end at 2 s"),
    ({"audio": "a.wav", "id": "first"}, "repeated id", "id 'first' stands already at"),
    ({"audio": "absent.wav"}, "missing recording", "absent.wav: no such file"),
    ({"audio": "nul\0.wav"}, "missing recording", "embedded null byte"),
    ({"audio": "shard.tar::x.wav"}, "missing recording", "shard.tar::x.wav: no such file"),
    ({"audio": "empty.wav"}, "unreadable recording", "the file is empty"),
    ({"audio": "text.wav"}, "unreadable recording", "text.wav"),
    ({"audio": "."}, "unreadable recording", ""),
    ({"audio": "long.wav"}, "too long", "31 s of audio, over the limit of 30 s"),
]


def test_every_kind_of_bad_row_is_named_and_kept(manifest, tmp_path, capsys):
    path = manifest([{"audio": "a.wav", "id": "first"}, *(line for line, _, _ in BAD), {"audio": "b.wav", "id": "last"}])
    code, output, rejects = scan(path, tmp_path)
    assert code == 1
    assert [row["id"] for row in rows_of(output)] == ["first", "last"]
    rejected = rows_of(rejects)
    assert len(rejected) == len(BAD)
    for number, ((line, kind, message), row) in enumerate(zip(BAD, rejected, strict=True), 2):
        assert (row["line"], row["kind"], row["source"]) == (number, kind, str(path))
        assert row["reason"].startswith(f"{path}:{number}: ")
        assert message in row["reason"]
        assert row["raw_line"] == (line if isinstance(line, str) else json.dumps(line))
    out = capsys.readouterr().out
    assert f"2 good, {len(BAD)} rejected" in out
    assert "missing recording               3" in out


def test_good_rows_keep_their_fields_and_gain_id_and_duration(manifest, recordings, tmp_path, capsys):
    path = manifest(
        [
            {"audio": "a.wav", "text": "naïve 你好", "language": "zh", "speaker": {"name": "s"}, "duration": 9.9, "task": "asr"},
            {"audio": "d.flac", "begin_time": 0.5, "end_time": -1, "id": 7, "line": 5},
            {"audio": str(recordings / "b.wav"), "begin_time": 0.5, "end_time": 1.25, "text": "x"},
        ]
    )
    code, output, rejects = scan(path, recordings)
    assert (code, rejects.read_bytes()) == (0, b"")
    first, second, third = rows_of(output)
    assert first == {
        "id": "in.jsonl:1",
        "audio": "a.wav",
        "text": "naïve 你好",
        "language": "zh",
        "duration": SECONDS,
        "speaker": {"name": "s"},
        "task": "asr",
    }
    assert second == {"id": "7", "audio": "d.flac", "begin_time": 0.5, "duration": SECONDS, "line": 5}
    assert (third["begin_time"], third["end_time"], third["duration"]) == (0.5, 1.25, SECONDS)
    out = capsys.readouterr().out
    assert "corrected   1 rows" in out
    assert "no text     1" in out
    assert "zh 1" in out
    # 2 s, 1.5 s and 0.75 s
    assert [line.split()[:5] for line in out.splitlines() if "█" in line] == [
        ["0", "to", "1", "s", "1"], ["1", "to", "2", "s", "1"], ["2", "to", "5", "s", "1"],
    ]  # fmt: skip
    # What a scan wrote is good in the next one, and says the same.
    again = recordings / "again.jsonl"
    assert main(["scan", "--input", str(output), "--output", str(again), "--rejects", str(recordings / "r.jsonl")]) == 0
    assert rows_of(again) == rows_of(output)


def test_a_language_that_is_not_known_is_named_with_what_was_perhaps_meant(manifest, recordings, capsys):
    rows = [{"audio": "a.wav", "text": "x", "language": name} for name in ("chinse", "Klingon", "Klingon", "cn", "日本語", "und")]
    code, output, _ = scan(manifest(rows), recordings)
    assert code == 0
    said = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("not known"))
    assert said.startswith("not known   chinse (1 rows, perhaps chinese or ")
    assert "Klingon (2 rows); the script of the texts decides" in said
    assert [row["language"] for row in rows_of(output)] == [row["language"] for row in rows]


def test_a_clean_manifest_elsewhere_still_finds_its_recordings(manifest, tmp_path, monkeypatch):
    path = manifest([{"audio": "a.wav"}, {"audio": "./d.flac"}])
    monkeypatch.chdir(path.parent)
    _, output, _ = scan(Path(path.name), tmp_path / "deep")
    monkeypatch.chdir(tmp_path)
    assert [extract(row, LogMel()).shape for row in read_manifest(output)] == [(128, 200), (128, 200)]


def test_headers_pass_what_only_decoding_finds(manifest, tmp_path):
    path = manifest([{"audio": "a.wav"}, {"audio": "nan.wav"}, {"audio": "cut.flac"}, {"audio": "cut.flac", "end_time": 0.2}])
    code, _, rejects = scan(path, tmp_path)
    assert (code, rows_of(rejects)) == (0, [])
    code, output, rejects = scan(path, tmp_path, "--decode", "true")
    assert code == 1
    assert [(row["line"], row["kind"]) for row in rows_of(rejects)] == [(2, "damaged recording"), (3, "damaged recording")]
    assert "NaN" in rows_of(rejects)[0]["reason"]
    assert "truncated" in rows_of(rejects)[1]["reason"]
    assert [row["audio"].rpartition("/")[2] for row in rows_of(output)] == ["a.wav", "cut.flac"]


def test_limits_can_be_changed(manifest, tmp_path):
    path = manifest([{"audio": "long.wav", "text": "x"}, {"audio": "long.wav", "begin_time": 1.5}, {"audio": "a.wav", "text": " "}])
    kinds = {}
    for flags in ((), ("--max_audio_seconds", "none"), ("--max_audio_seconds", "1"), ("--require_text", "true")):
        _, _, rejects = scan(path, tmp_path, *flags)
        kinds[flags[1:]] = [(row["line"], row["kind"]) for row in rows_of(rejects)]
    assert kinds == {
        (): [(1, "too long")],
        ("none",): [],
        ("1",): [(1, "too long"), (2, "too long"), (3, "too long")],
        ("true",): [(1, "too long"), (2, "no text"), (3, "no text")],
    }


def test_check_reports_on_standard_output_and_writes_nothing(manifest, recordings, capsys):
    path = manifest([{"audio": "a.wav", "text": "x"}, "{bad", {"audio": "absent.wav"}])
    before = sorted(p.name for p in recordings.iterdir())
    assert main(["check", "--input", str(path)]) == 1
    captured = capsys.readouterr()
    assert f"{path}:2: not valid JSON" in captured.out
    assert f"{path}:3: {recordings / 'absent.wav'}: no such file" in captured.out
    assert "1 good, 2 rejected" in captured.out
    assert sorted(p.name for p in recordings.iterdir()) == before
    assert main(["check", "--input", str(manifest([{"audio": "a.wav"}])), "--decode", "true"]) == 0
    assert main(["check", "--input", str(manifest([{"audio": "cut.flac"}])), "--decode", "true"]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["scan", "--input", "absent.jsonl"], "absent.jsonl: cannot be read"),
        (["scan", "--input", "blank.jsonl"], "holds no rows"),
        (["scan", "--input", "in.jsonl", "--output", "in.jsonl"], "--output in.jsonl: is an input too"),
        (["scan", "--input", "in.jsonl", "--rejects", "out.jsonl"], "--rejects out.jsonl: is --output too"),
        (["scan", "--input", "in.jsonl", "--cache", "in.jsonl"], "--cache in.jsonl: is an input too"),
        (["scan", "--input", "in.jsonl", "--cache", "text.txt"], "text.txt: is no cache of durations"),
        (["scan", "--input", "in.jsonl", "--output", "."], "is a folder"),
        (["scan", "--input", "in.jsonl", "--output", "text.txt/out.jsonl"], "cannot be written"),
        (["scan", "--input", "in.jsonl", "--workers", "0"], "--workers must be at least 1"),
        (["scan", "--input", "in.jsonl", "--max_audio_seconds", "0"], "--max_audio_seconds must be above 0"),
        (["scan", "--input", "in.jsonl", "--format", "csv"], "--format: expected one of"),
        (["check", "--input", "absent.jsonl"], "absent.jsonl: cannot be read"),
        (["check", "--input", "blank.jsonl"], "holds no rows"),
        (["check"], "required: --input"),
        (["chekc"], "unknown action 'chekc'"),
    ],
)
def test_unusable_input_is_one_line_and_changes_no_file(recordings, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    write_wav(tmp_path / "a.wav", np.zeros(16000, dtype=np.float32))
    for name, text in {"in.jsonl": '{"audio": "a.wav"}\n', "blank.jsonl": "\n \n", "text.txt": "hello " * 100, "out.jsonl": "old"}.items():
        (tmp_path / name).write_text(text)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    given = set(arguments)
    for flag, value in (("--output", "out.jsonl"), ("--rejects", "rejects.jsonl")):
        if arguments[0] == "scan" and flag not in given:
            arguments = [*arguments, flag, value]
    try:
        code = main(arguments)
    except SystemExit as error:  # a flag that is wrong by itself
        code = error.code
    assert code == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len([line for line in error.splitlines() if "%|" not in line and "B/s" not in line]) == 1, error
    after = {p.name: p.read_bytes() for p in tmp_path.iterdir() if not p.name.endswith(".sqlite3")}
    assert after == before


def test_an_old_clean_manifest_survives_whatever_stops_the_scan(manifest, tmp_path):
    path = manifest([{"audio": "a.wav"}, "{bad", {"audio": "b.wav"}])
    output, rejects = tmp_path / "clean.jsonl", tmp_path / "rejects.jsonl"
    for old in (output, rejects):
        old.write_text("old")

    def crash(_: object) -> None:
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        scan_manifest(path, output, rejects, progress=crash)
    assert (output.read_text(), rejects.read_text()) == ("old", "old")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clean.jsonl", "rejects.jsonl"]

    # Killed outright: only the unfinished files are left beside, and the next scan is not disturbed by them.
    code = (
        "import os, sys; from pathlib import Path; from arkfast.manifest import scan_manifest;"
        "scan_manifest(*map(Path, sys.argv[1:4]), progress=lambda _: os._exit(9))"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(path), str(output), str(rejects)])
    assert killed.returncode == 9
    assert (output.read_text(), rejects.read_text()) == ("old", "old")
    summary = scan_manifest(path, output, rejects)
    assert (summary.rows, summary.rejected) == (2, 1)
    assert (len(rows_of(output)), len(rows_of(rejects))) == (2, 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clean.jsonl", "rejects.jsonl"]


def test_a_full_disk_is_one_line_and_keeps_the_old_file(manifest, tmp_path, monkeypatch, capsys):
    path = manifest([{"audio": "a.wav"}])
    (tmp_path / "clean.jsonl").write_text("old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    code, output, _ = scan(path, tmp_path)
    assert (code, output.read_text()) == (2, "old")
    assert "No space left on device" in capsys.readouterr().err
    assert not list(tmp_path.glob(".*"))


def test_order_and_verdicts_do_not_depend_on_workers(manifest, tmp_path):
    lines: Lines = [{"audio": "abcx"[i % 4] + ".wav", "id": f"{i % 400}"} for i in range(700)]
    results = []
    for workers in ("1", "5"):
        code, output, rejects = scan(manifest(lines), tmp_path / workers, "--workers", workers)
        assert code == 1
        results.append(output.read_text().replace(str(tmp_path / workers), "") + rejects.read_text())
    assert results[0] == results[1]
    rejected = [json.loads(line) for line in results[0].splitlines()]
    assert sum("kind" in row and row["kind"] == "repeated id" for row in rejected) == 225
    assert sum("kind" in row and row["kind"] == "missing recording" for row in rejected) == 175


def test_an_id_is_free_again_when_its_first_row_was_bad(manifest, tmp_path):
    path = manifest([{"audio": "absent.wav", "id": "x"}, {"audio": "a.wav", "id": "x"}, {"audio": "b.wav", "id": "x"}])
    _, output, rejects = scan(path, tmp_path)
    assert [row["audio"].rpartition("/")[2] for row in rows_of(output)] == ["a.wav"]
    assert [(row["line"], row["kind"]) for row in rows_of(rejects)] == [(1, "missing recording"), (3, "repeated id")]
    assert rows_of(rejects)[1]["reason"].endswith(f"stands already at {path}:2; ids must be unique")


def test_nemo_rows_become_ours(manifest, recordings, tmp_path):
    path = manifest(
        [
            {"audio_filepath": "a.wav", "duration": 2.0, "text": "one", "lang": "en"},
            {"audio_filepath": "a.wav", "offset": 0.5, "duration": 1.0, "text": "two"},
            {"audio_filepath": "a.wav", "offset": 1.5, "duration": 1.0, "text": "three"},
        ]
    )
    code, output, rejects = scan(path, recordings)
    assert code == 1
    assert [row["line"] for row in rows_of(rejects)] == [3]
    whole, cut = rows_of(output)
    assert whole == {"id": "in.jsonl:1", "audio": "a.wav", "text": "one", "language": "en", "duration": 2.0, "lang": "en"}
    # ``duration`` is the recording's length in arkfast's form, not the segment's.
    assert cut == {"id": "in.jsonl:2", "audio": "a.wav", "text": "two", "begin_time": 0.5, "end_time": 1.5, "duration": 2.0}


def test_fields_of_other_names(manifest, tmp_path):
    path = manifest([{"wav": "a.wav", "words": "one", "from": 0.5, "to": 1.0, "text": "stale"}])
    flags = ["--audio_field", "wav", "--text_field", "words", "--begin-field", "from", "--end-field", "to"]
    code, output, _ = scan(path, path.parent, *flags)
    assert code == 0
    assert rows_of(output) == [{"id": "in.jsonl:1", "audio": "a.wav", "text": "one", "begin_time": 0.5, "end_time": 1.0, "duration": 2.0}]


def test_shards_become_a_manifest_of_their_clips(recordings, tmp_path, monkeypatch):
    for i in range(2):
        with tarfile.open(tmp_path / f"s-{i}.tar", "w") as archive:
            for name in ("a.wav", "d.flac", "nan.wav", "text.wav")[: 4 - i]:
                key = name.partition(".")[0]
                (tmp_path / f"{key}.json").write_text(json.dumps({"text": f"{key}{i}", "language": "en"}))
                archive.add(recordings / name, arcname=name)
                archive.add(tmp_path / f"{key}.json", arcname=f"{key}.json")
                (tmp_path / f"{key}.json").unlink()
    pattern = tmp_path / "s-{0..1}.tar"
    code, output, rejects = scan(pattern, tmp_path, "--decode", "true")
    assert code == 1
    assert [row["text"] for row in rows_of(output)] == ["a0", "d0", "a1", "d1"]
    assert {row["duration"] for row in rows_of(output)} == {SECONDS}
    assert all(row["audio"].startswith("s-") for row in rows_of(output))
    found = [(Path(row["source"]).name, row["line"], row["kind"]) for row in rows_of(rejects)]
    assert found == [("s-0.tar", 3, "damaged recording"), ("s-0.tar", 4, "unreadable recording"), ("s-1.tar", 3, "damaged recording")]
    assert json.loads(rows_of(rejects)[0]["raw_line"]) == {"text": "nan0", "language": "en"}
    # The manifest is read like any other, from wherever it lies.
    _, elsewhere, _ = scan(pattern, tmp_path / "deep", "--decode", "true")
    expected = [extract(row, LogMel()) for row in read_manifest(output)]
    for row, features in zip(read_manifest(elsewhere), expected, strict=True):
        assert np.array_equal(extract(row, LogMel()), features)
    # Scanned again, and from another folder, the clips are still found.
    again = tmp_path / "other" / "again.jsonl"
    assert main(["scan", "--input", str(output), "--output", str(again), "--rejects", str(tmp_path / "r.jsonl")]) == 0
    assert [extract(row, LogMel()).shape for row in read_manifest(again)] == [(128, 200)] * 4


def test_a_damaged_shard_is_a_reject_and_its_first_clips_are_kept(recordings, tmp_path):
    (tmp_path / "t.txt").write_text("one")
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        for i in range(2):
            archive.add(recordings / "a.wav", arcname=f"{i}.wav")
            archive.add(tmp_path / "t.txt", arcname=f"{i}.txt")
    with (tmp_path / "s.tar").open("r+b") as file:
        file.truncate(90_000)
    code, output, rejects = scan(tmp_path / "s.tar", tmp_path)
    assert (code, [row["id"] for row in rows_of(output)]) == (1, ["s.tar:0"])
    assert [(row["line"], row["kind"]) for row in rows_of(rejects)] == [(2, "damaged shard")]


def test_a_decoder_that_breaks_costs_one_row_and_a_missing_package_all(manifest, tmp_path, monkeypatch):
    from arkfast import audio

    real = audio.extent

    def fails(error: type[Exception]) -> Callable[..., audio.Extent]:
        def extent(source: Any, **options: Any) -> audio.Extent:
            if str(source).endswith("b.wav"):
                raise error("no\nluck")
            return real(source, **options)

        return extent

    path = manifest([{"audio": "a.wav"}, {"audio": "b.wav"}, {"audio": "c.wav"}])
    monkeypatch.setattr(audio, "extent", fails(MemoryError))
    summary = scan_manifest(path, tmp_path / "clean.jsonl", tmp_path / "rejects.jsonl")
    assert (summary.rows, summary.rejects["unreadable recording"]) == (2, 1)
    (row,) = rows_of(tmp_path / "rejects.jsonl")
    assert row["reason"] == f"{path}:2: {path.parent / 'b.wav'}: MemoryError: no luck"
    monkeypatch.setattr(audio, "extent", fails(ImportError))
    with pytest.raises(ImportError):
        check_manifest(path)


def test_options_are_checked():
    with pytest.raises(ValueError, match="workers"):
        CheckOptions(workers=0)
    with pytest.raises(InputError, match="cannot be read"):
        check_manifest(Path("absent.jsonl"))


def test_recordings_that_their_header_shows_cut_are_rejected_where_the_end_is_wanted(manifest, recordings, tmp_path):
    for name, form in (("wav", "WAV"), ("ogg", "OGG")):
        whole = recordings / f"whole.{name}"
        soundfile.write(whole, synthetic_speech(20.0, seed=1), 16000, format=form)
        data = whole.read_bytes()
        (recordings / f"half.{name}").write_bytes(data[: len(data) // 2])
    lines = [{"audio": f"half.{name}", **times} for name in ("wav", "ogg") for times in ({}, {"end_time": 2.0}, {"begin_time": 1.0})]
    path = manifest([*lines, {"audio": "half.wav", "end_time": 10.02}, {"audio": "half.wav", "begin_time": 15}, {"audio": "whole.ogg"}])
    for _ in range(2):  # measured, and then from the cache
        code, output, rejects = scan(path, tmp_path)
        assert (code, [row["id"] for row in rows_of(output)]) == (1, ["in.jsonl:2", "in.jsonl:5", "in.jsonl:9"])
        found = rows_of(rejects)
        assert [row["line"] for row in found] == [1, 3, 4, 6, 7, 8]
        assert [row["kind"] for row in found] == ["damaged recording"] * 5 + ["segment outside"]
        assert all("truncated: its" in row["reason"] for row in found)
    # What passes can be read, and what does not cannot.
    for row in read_manifest(path):
        if row.id in ("in.jsonl:2", "in.jsonl:5", "in.jsonl:9"):
            extract(row, LogMel(8))
        else:
            with pytest.raises(InputError, match="truncated: its"):
                extract(row, LogMel(8))


def test_a_reader_that_has_seen_enough_is_no_error(recordings):
    path = recordings / "many.jsonl"
    path.write_text("".join(f'{{"audio": "absent{i}.wav"}}\n' for i in range(3000)))
    command = [
        sys.executable,
        "-c",
        "import sys; from arkfast.manifest.command import main; sys.exit(main())",
        "check",
        "--input",
        str(path),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as check:
        assert check.stdout is not None
        assert check.stderr is not None
        check.stdout.readline()
        check.stdout.close()
        assert check.stderr.read() == ""
        assert check.wait(timeout=60) == 141
