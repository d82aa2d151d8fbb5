"""Manifests from LibriSpeech's, AISHELL-1's, WenetSpeech's and Kaldi's own layouts, on miniature trees made here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arkfast.data import read_manifest
from arkfast.manifest.command import main
from arkfast.manifest.corpora import aishell, wenetspeech
from arkfast.records import InputError
from arkfast.testing import synthetic_speech, write_wav


def clip(path: Path, seconds: float = 0.5) -> Path:
    """A recording at ``path``, whose suffix decides its format."""
    import soundfile

    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".opus":
        soundfile.write(str(path), np.asarray(synthetic_speech(seconds)), 16_000, format="OGG", subtype="OPUS")
        return path
    return write_wav(path, synthetic_speech(seconds))


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def librispeech(root: Path) -> Path:
    """Two splits; ``test-clean`` has two chapters of one speaker."""
    for split, chapter, names in (
        ("test-clean", "61-70968", ("0000", "0001")),
        ("test-clean", "61-70970", ("0000",)),
        ("test-other", "367-130732", ("0000",)),
    ):
        speaker, number = chapter.split("-")
        folder = root / split / speaker / number
        lines = []
        for name in names:
            clip(folder / f"{chapter}-{name}.flac")
            lines.append(f"{chapter}-{name} HE SAID {name}\n")
        (folder / f"{chapter}.trans.txt").write_text("".join(lines))
    (root / "SPEAKERS.TXT").write_text("; comments\n")
    return root


def test_librispeech_becomes_a_manifest_for_each_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = librispeech(tmp_path / "LibriSpeech")
    output = tmp_path / "eval"
    assert main(["from-librispeech", str(tmp_path), "--output", str(output)]) == 0
    assert sorted(path.name for path in output.glob("*.jsonl")) == ["librispeech.rejects.jsonl", "test_clean.jsonl", "test_other.jsonl"]
    assert rows_of(output / "librispeech.rejects.jsonl") == []
    clean = rows_of(output / "test_clean.jsonl")
    assert [row["id"] for row in clean] == ["61-70968-0000", "61-70968-0001", "61-70970-0000"]
    assert clean[0] == {
        "id": "61-70968-0000",
        "audio": str(root / "test-clean" / "61" / "70968" / "61-70968-0000.flac"),
        "text": "HE SAID 0000",
        "language": "en",
        "duration": 0.5,
        "speaker": "61",
        "chapter": "70968",
    }
    assert [utterance.id for utterance in read_manifest(output / "test_other.jsonl")] == ["367-130732-0000"]
    said = capsys.readouterr()
    assert "test_clean.jsonl: 3 rows, while the split was published with 2,620" in said.err
    assert "test-other" in said.out


def test_librispeech_rejects_have_line_and_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = librispeech(tmp_path)
    chapter = root / "test-clean" / "61" / "70968"
    (chapter / "61-70968-0001.flac").unlink()
    clip(chapter / "61-70968-0005.flac")
    transcript = chapter / "61-70968.trans.txt"
    transcript.write_bytes(transcript.read_bytes() + b"\n61-70968-0002\n61-70968-0000 AGAIN\n61-70968-0003 \xff\n../x Y\n")
    (root / "test-clean" / "61" / "70970" / "61-70970.trans.txt").unlink()
    output = tmp_path / "out"
    code = main(["from-librispeech", "--input", str(root), "--output", str(output), "--splits", "test-clean"])
    assert code == 1
    assert [row["id"] for row in rows_of(output / "test_clean.jsonl")] == ["61-70968-0000"]
    assert not (output / "test_other.jsonl").exists()
    rejects = rows_of(output / "librispeech.rejects.jsonl")
    assert [(Path(row["source"]).name, row["line"], row["kind"]) for row in rejects] == [
        ("61-70968.trans.txt", 2, "missing recording"),
        ("61-70968.trans.txt", 4, "transcript line"),
        ("61-70968.trans.txt", 5, "repeated id"),
        ("61-70968.trans.txt", 6, "transcript line"),
        ("61-70968.trans.txt", 7, "transcript line"),
        ("61-70968-0005.flac", None, "no transcript"),
        ("61-70970-0000.flac", None, "no transcript"),
    ]
    assert rejects[0]["raw_line"] == "61-70968-0001 HE SAID 0001"
    assert all(row["reason"] and row["split"] == "test-clean" for row in rejects)
    said = capsys.readouterr().out
    assert "missing recording" in said
    assert f"{transcript}:2:" in said


def aishell_tree(root: Path) -> Path:
    for split, speaker, names in (("train", "S0002", ("W0122",)), ("dev", "S0724", ("W0121",)), ("test", "S0764", ("W0121", "W0122"))):
        for name in names:
            clip(root / "wav" / split / speaker / f"BAC009{speaker}{name}.wav")
    (root / "transcript").mkdir()
    (root / "transcript" / "aishell_transcript_v0.8.txt").write_text(
        "BAC009S0002W0122 而 对 楼市 成交\n"
        "BAC009S0724W0121 广州市 房地产\n"
        "BAC009S0764W0121 甚至 出现 交易 几乎 停滞 的 情况\n"
        "BAC009S0764W0122 看 WORLD CUP 直播\n",
        encoding="utf-8",
    )
    return root


def test_aishell_splits_by_folder_and_unspaced_text(tmp_path: Path) -> None:
    root, output = aishell_tree(tmp_path / "data_aishell"), tmp_path / "eval"
    assert main(["from-aishell", str(tmp_path), "--output", str(output)]) == 0
    assert sorted(path.name for path in output.glob("*_aishell.jsonl")) == [
        "dev_aishell.jsonl",
        "test_aishell.jsonl",
        "train_aishell.jsonl",
    ]
    test = rows_of(output / "test_aishell.jsonl")
    assert [row["text"] for row in test] == ["甚至出现交易几乎停滞的情况", "看WORLD CUP直播"]
    assert test[0]["audio"] == str(root / "wav" / "test" / "S0764" / "BAC009S0764W0121.wav")
    assert (test[0]["language"], test[0]["speaker"]) == ("zh", "S0764")


@pytest.mark.parametrize(
    ("spaced", "text"),
    [
        ("今天 天气", "今天天气"),
        ("看 N B A", "看N B A"),
        ("三 G 手机", "三G手机"),
        ("a b", "a b"),
        ("上 2 0 1 5 年", "上2 0 1 5年"),
        ("", ""),
    ],
)
def test_spaces_stay_only_between_latin_words(spaced: str, text: str) -> None:
    assert aishell.spoken(spaced) == text


def test_aishell_rejects_and_lines_of_splits_that_were_not_asked_for(tmp_path: Path) -> None:
    root, output = aishell_tree(tmp_path / "a"), tmp_path / "eval"
    (root / "wav" / "test" / "S0764" / "BAC009S0764W0122.wav").unlink()
    clip(root / "wav" / "test" / "S0764" / "BAC009S0764W0300.wav")
    rejects = output / "aishell.rejects.jsonl"
    assert main(["from-aishell", str(root), "--output", str(output), "--splits", "test"]) == 1
    assert [(row["line"], row["kind"]) for row in rows_of(rejects)] == [(4, "missing recording"), (None, "no transcript")]
    assert len(rows_of(output / "test_aishell.jsonl")) == 1
    # With every split at hand a line of an unknown speaker is nobody else's.
    transcript = root / "transcript" / "aishell_transcript_v0.8.txt"
    transcript.write_text(transcript.read_text(encoding="utf-8") + "BAC009S0999W0001 谁\n", encoding="utf-8")
    assert main(["from-aishell", str(root), "--output", str(output)]) == 1
    assert [(row["line"], row["kind"]) for row in rows_of(rejects)] == [
        (4, "missing recording"),
        (5, "missing recording"),
        (None, "no transcript"),
    ]


def wenet(root: Path, **changes: Any) -> Path:
    """One recording of two test segments, one of nested training sets, one of the other test set."""
    for name in ("test_net/a", "train/b", "test_meeting/c"):
        clip(root / "audio" / f"{name}.opus", seconds=2.0)

    def segment(sid: str, begin: float, *subsets: str) -> dict[str, Any]:
        return {
            "sid": sid,
            "begin_time": begin,
            "end_time": begin + 0.75,
            "subsets": list(subsets),
            "text": f"文字{sid}",
            "confidence": 1.0,
        }

    audios = [
        {
            "aid": "a",
            "path": "audio/test_net/a.opus",
            "tags": ["news"],
            "segments": [segment("a0", 0, "TEST_NET"), segment("a1", 1, "TEST_NET")],
        },
        {"aid": "b", "path": "audio/train/b.opus", "segments": [segment("b0", 0, "L", "M", "S"), segment("b1", 1, "L")]},
        {"aid": "c", "path": "audio/test_meeting/c.opus", "segments": [segment("c0", 0.5, "TEST_MEETING")]},
    ]
    whole = {"dataset": "WenetSpeech", "version": "v1.0", "size": 12345, "licence": {"a": [1, 2]}, "audios": audios, "after": 1} | changes
    (root / "WenetSpeech.json").write_text(json.dumps(whole, ensure_ascii=False, indent=2), encoding="utf-8")
    return root


def test_wenetspeech_segments_keep_their_times(tmp_path: Path) -> None:
    root, output = wenet(tmp_path / "untar"), tmp_path / "eval"
    flags = ["--output", str(output), "--splits", "TEST_NET,TEST_MEETING,S,L"]
    assert main(["from-wenetspeech", str(tmp_path), *flags]) == 0
    net = rows_of(output / "test_net.jsonl")
    assert [(row["id"], row["begin_time"], row["end_time"], row["text"]) for row in net] == [
        ("a0", 0, 0.75, "文字a0"),
        ("a1", 1, 1.75, "文字a1"),
    ]
    assert net[0]["audio"] == str(root / "audio" / "test_net" / "a.opus")
    assert (net[0]["language"], net[0]["recording"], net[0]["tags"], net[0]["duration"]) == ("zh", "a", ["news"], 2.0)
    assert [row["id"] for row in rows_of(output / "train_wenetspeech_l.jsonl")] == ["b0", "b1"]
    assert [row["id"] for row in rows_of(output / "train_wenetspeech_s.jsonl")] == ["b0"]
    assert [row["id"] for row in rows_of(output / "test_meeting.jsonl")] == ["c0"]


def test_wenetspeech_rejects_name_the_segment(tmp_path: Path) -> None:
    root, output = wenet(tmp_path), tmp_path / "eval"
    whole = json.loads((root / "WenetSpeech.json").read_text(encoding="utf-8"))
    segments = whole["audios"][0]["segments"]
    segments[1]["end_time"] = 3.5
    segments += [{"sid": "a2", "subsets": ["TEST_NET"], "begin_time": 0, "end_time": 1}, {"sid": "a3"}, "?"]
    (root / "audio" / "test_meeting" / "c.opus").unlink()
    wenet_json = root / "WenetSpeech.json"
    wenet_json.write_text(json.dumps(whole), encoding="utf-8")
    assert main(["from-wenetspeech", str(root), "--output", str(output)]) == 1
    assert [row["id"] for row in rows_of(output / "test_net.jsonl")] == ["a0"]
    rejects = rows_of(output / "wenetspeech.rejects.jsonl")
    assert [(row["line"], row["kind"]) for row in rejects] == [
        (2, "segment outside"),
        (3, "segment"),
        (4, "segment"),
        (5, "segment"),
        (8, "missing recording"),
    ]
    assert "has no text" in rejects[1]["reason"]
    assert json.loads(rejects[0]["raw_line"])["sid"] == "a1"


@pytest.mark.parametrize("block", [1, 2, 7, 1 << 20])
def test_wenetspeech_is_read_alike_in_blocks_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    path = wenet(tmp_path) / "WenetSpeech.json"
    monkeypatch.setattr(wenetspeech, "_BLOCK", block)
    assert list(wenetspeech.recordings(path)) == json.loads(path.read_text(encoding="utf-8"))["audios"]
    path.write_text('{"audios": []}')
    assert list(wenetspeech.recordings(path)) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "breaks off"),
        ("[]", r"expected '\{', got '\['"),
        ('{"a": 1}', "has no list 'audios'"),
        ('{"audios": {}}', r"expected '\[', got '\{'"),
        ('{"audios": [1]}', "expected an object for each recording, got int"),
        ('{"audios": [{}', "breaks off"),
        ('{"audios": [{}{}]}', "is not valid JSON between two recordings"),
        ('{"audios": [{"a": nope}]}', "is not valid JSON or breaks off"),
        (b'{"audios": [{"a": "\xff"}]}', "is not UTF-8"),
    ],
)
def test_a_broken_wenetspeech_file_is_named(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = tmp_path / "WenetSpeech.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=message):
        list(wenetspeech.recordings(path))


def test_nothing_is_replaced_when_the_corpus_breaks_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, output = wenet(tmp_path), tmp_path / "eval"
    output.mkdir()
    (output / "test_net.jsonl").write_text("old\n")
    path = root / "WenetSpeech.json"
    path.write_bytes(path.read_bytes()[:-200])
    assert main(["from-wenetspeech", str(root), "--output", str(output)]) == 2
    assert "breaks off" in capsys.readouterr().err
    assert (output / "test_net.jsonl").read_text() == "old\n"
    assert not list(output.glob(".*"))


@pytest.mark.parametrize(
    ("action", "make", "flags", "message"),
    [
        ("from-librispeech", lambda root: root, [], "none of the splits"),
        ("from-librispeech", lambda root: root / "absent", [], "no such folder"),
        ("from-librispeech", librispeech, ["--splits", "test-clean,dev-clean"], "split 'dev-clean' is not there"),
        ("from-librispeech", librispeech, ["--splits", "clean"], "'clean' is none of the corpus' splits: train-clean-100"),
        ("from-aishell", lambda root: root, [], "there is none"),
        ("from-wenetspeech", lambda root: root, [], "no WenetSpeech.json there"),
    ],
)
def test_a_folder_that_is_not_the_corpus_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], action: str, make: Any, flags: list[str], message: str
) -> None:
    assert main([action, str(make(tmp_path)), "--output", str(tmp_path / "out"), *flags]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("out/*.jsonl"))


def test_packed_speakers_are_named_with_the_command_that_unpacks_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "a"
    (root / "wav").mkdir(parents=True)
    (root / "wav" / "S0002.tar.gz").write_bytes(b"")
    (root / "transcript").mkdir()
    (root / "transcript" / "aishell_transcript_v0.8.txt").write_text("BAC009S0002W0122 x\n")
    assert main(["from-aishell", str(root), "--output", str(tmp_path / "out")]) == 2
    assert "tar -xzf" in capsys.readouterr().err


def test_clips_of_any_length_stay_unless_a_limit_is_asked_for(tmp_path: Path) -> None:
    root, output = librispeech(tmp_path / "l"), tmp_path / "out"
    clip(root / "test-other" / "367" / "130732" / "367-130732-0000.flac", seconds=31.0)
    assert main(["from-librispeech", str(root), "--output", str(output)]) == 0
    assert rows_of(output / "test_other.jsonl")[0]["duration"] == 31.0
    assert main(["from-librispeech", str(root), "--output", str(output), "--max_audio_seconds", "30"]) == 1
    assert rows_of(output / "test_other.jsonl") == []
    assert rows_of(output / "librispeech.rejects.jsonl")[0]["kind"] == "too long"


def kaldi_folder(folder: Path, audio: Path, **files: str) -> Path:
    """A data folder of three recordings: one that is there, one behind a command, one in an archive."""
    clip(audio / "a.wav", 2.0)
    folder.mkdir(parents=True)
    (folder / "wav.scp").write_text(f"rec-a {audio / 'a.wav'}\nrec-b flac -c -d -s {audio / 'b.flac'} |\nrec-c {audio / 'c'}.ark:9\n")
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def test_kaldi_segments_become_rows_with_times_speakers_and_languages(tmp_path: Path) -> None:
    audio = tmp_path / "audio"
    segments = "a-1 rec-a 0.25 1.5\na-2 rec-a 1.5 -1\na-3 rec-z 0 1\na-4 rec-a 0 soon\nb-1 rec-b 0 1\nc-1 rec-c 0 1\na-5 rec-a 0 1\n"
    text = "a-1 one two\na-2 three\na-3 x\na-4 x\nb-1 x\nc-1 x\na-9 x\na-1 again\na-10\n"
    spoken = "a-1 ann\na-2 ben\n"
    data = kaldi_folder(tmp_path / "data" / "dev", audio, segments=segments, text=text, utt2spk=spoken, utt2lang="a-1 en\n")
    output = tmp_path / "out"
    assert main(["from-kaldi", str(data), "--output", str(output)]) == 1
    assert rows_of(output / "dev.jsonl") == [
        {"id": "a-1", "audio": str(audio / "a.wav"), "text": "one two", "language": "en", "begin_time": 0.25, "end_time": 1.5,
         "duration": 2.0, "recording": "rec-a", "speaker": "ann"},
        {"id": "a-2", "audio": str(audio / "a.wav"), "text": "three", "begin_time": 1.5, "duration": 2.0,
         "recording": "rec-a", "speaker": "ben"},
    ]  # fmt: skip
    rejects = rows_of(output / "kaldi.rejects.jsonl")
    assert [(Path(row["source"]).name, row["line"], row["kind"]) for row in rejects] == [
        ("segments", 3, "missing recording"),
        ("segments", 4, "segment"),
        ("segments", 5, "command"),
        ("segments", 6, "archive"),
        ("segments", 7, "no transcript"),
        ("text", 7, "missing recording"),
        ("text", 8, "repeated id"),
        ("text", 9, "transcript line"),
    ]
    assert "write the recording to a file" in rejects[2]["reason"]
    assert all(row["split"] == "dev" for row in rejects)


def test_kaldi_folders_without_segments_and_text_are_splits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    audio, data = tmp_path / "audio", tmp_path / "data"
    for name in ("train", "test"):
        kaldi_folder(data / name, audio)
        (data / name / "wav.scp").write_text("rec-a audio/a.wav\n")
    monkeypatch.chdir(tmp_path)
    assert main(["from-kaldi", str(data), "--output", str(tmp_path / "out")]) == 0
    for name in ("train", "test"):
        assert rows_of(tmp_path / "out" / f"{name}.jsonl") == [{"id": "rec-a", "audio": str(audio / "a.wav"), "duration": 2.0}]
    capsys.readouterr()
    assert main(["from-kaldi", str(data), "--output", str(tmp_path / "out"), "--splits", "dev"]) == 2
    assert "'dev' is none of the corpus' splits: test, train" in capsys.readouterr().err
    assert main(["from-kaldi", str(audio), "--output", str(tmp_path / "out")]) == 2
    assert "neither it nor a folder in it has a wav.scp; give a Kaldi data folder" in capsys.readouterr().err


def kaldi_data(root: Path) -> Path:
    """A folder of one data folder, whose recording is named from the folder that the command is run in."""
    kaldi_folder(root / "test", Path.cwd() / "audio", text="rec-a x\n")
    (root / "test" / "wav.scp").write_text("rec-a audio/a.wav\n")
    return root


@pytest.mark.parametrize(
    ("corpus", "make"), [("librispeech", librispeech), ("aishell", aishell_tree), ("wenetspeech", wenet), ("kaldi", kaldi_data)]
)
@pytest.mark.parametrize("given", ["../disk", "link"])
def test_a_relative_folder_gives_the_same_rows_and_a_link_keeps_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, corpus: str, make: Callable[[Path], Path], given: str
) -> None:
    root, home = tmp_path / "disk", tmp_path / "home"
    home.mkdir()
    (home / "link").symlink_to(root)
    monkeypatch.chdir(home)
    make(root)
    whole, relative = tmp_path / "whole", tmp_path / "relative"
    flags = ["--splits", "TEST_NET,TEST_MEETING"] if corpus == "wenetspeech" else []
    assert main([f"from-{corpus}", str(root), "--output", str(whole), *flags]) == 0
    assert main([f"from-{corpus}", given, "--output", str(relative), *flags]) == 0
    manifests = sorted(path.name for path in whole.glob("*.jsonl") if path.stat().st_size)
    assert manifests
    for name in manifests:
        shown = [row | {"audio": row["audio"].replace(f"{root}/", f"{home / given}/")} for row in rows_of(whole / name)]
        assert rows_of(relative / name) == shown
