"""Times of words from the command: a head, rows, captions, a journal; and what is said where there is no head."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from arkfast.infer import Transcriber
from arkfast.infer.command import main
from arkfast.infer.formats.captions import Segment, captions
from arkfast.infer.result import SCORES, later
from arkfast.infer.speech import NoSpeech
from arkfast.records import InputError, Utterance
from arkfast.testing import synthetic_speech, tiny_checkpoint, write_wav


@pytest.fixture(scope="module")
def model(timed_model: Path) -> Path:
    return timed_model


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audio")
    short, long = (write_wav(folder / f"{name}.wav", synthetic_speech(n, seed=n)) for name, n in (("short", 3), ("long", 14)))
    rows = [{"id": "a", "audio": str(short)}, {"id": "b", "audio": str(short), "begin_time": 1, "end_time": 2.5},
            {"id": "c", "audio": str(long)}]  # fmt: skip
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def run(manifest: Path, output: Path, model: Path, *more: str) -> list[dict[str, object]]:
    flags = ["--model_path", str(model), "--max_new_tokens", "10", "--max_audio_seconds", "6", "--quiet", "true", *more]
    assert main([str(manifest), "--output", str(output), *flags]) == 0
    return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]


def check(words: object, begin: float, end: float) -> None:
    assert isinstance(words, list)
    at = begin
    for word in words:
        assert at <= word["start"] <= word["end"] <= end
        assert [c["character"] for c in word.get("characters", ())] == [*word["word"]][: len(word.get("characters", ()))]
        for character in word.get("characters", ()):
            assert at <= character["start"] <= character["end"] <= word["end"]
        at = word["end"]


def test_rows_have_words_within_their_clip_or_segments(manifest: Path, model: Path, tmp_path: Path) -> None:
    a, b, c = run(manifest, tmp_path / "out.jsonl", model, "--timestamps", "character")
    for row, begin, end in ((a, 0.0, 3.0), (b, 1.0, 2.5), (c, 0.0, 14.0)):
        if row["words"] is None:
            assert "letters and numbers, which do not fit into" in str(row["words_error"])
        else:
            check(row["words"], begin, end)
    segments = c["segments"]
    assert isinstance(segments, list)
    assert len(segments) > 1
    assert any(row["words"] for row in (a, b, c)), "the test shows nothing"
    plain = run(manifest, tmp_path / "plain.jsonl", model)
    assert [row["pred_text"] for row in plain] == [row["pred_text"] for row in (a, b, c)]
    assert not any("words" in row for row in plain)


def test_a_clip_too_short_for_its_text_says_so_and_the_others_have_words(model: Path) -> None:
    clips = [Utterance(id=str(n), audio=synthetic_speech(n, seed=1)) for n in (0.1, 4.0)]
    short, long = Transcriber(model, device="cpu", max_new_tokens=40, cut_loops=False, timestamps="word")(clips)
    assert short["status"] == "ok"
    assert (short["words"], long["words"] is not None) == (None, True)
    assert "which do not fit into the 4 steps of 0.02 s that the clip has" in short["words_error"]
    assert "words_error" not in long


def test_without_a_head_nothing_is_decoded(manifest: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = tiny_checkpoint(tmp_path / "bare", seed=1)
    output = tmp_path / "out.jsonl"
    command = [str(manifest), "--output", str(output), "--model_path", str(bare), "--timestamps", "word"]
    for more, said in (
        ([], "has no ctc_head.safetensors beside its weights; train one with arkfast train --stage ctc_head"),
        (["--aligner", str(tmp_path / "nothing")], "no such folder"),
        (["--aligner", str(manifest.parent)], "no ctc_head.safetensors there"),
        (["--aligner", str(bare)], "is a checkpoint (arkasr), neither a CTC head nor Qwen3's forced aligner"),
        (["--aligner", str(model)], "was trained on a model of other weights"),
    ):
        assert main([*command, *more]) == 2
        assert said in capsys.readouterr().err
        assert not output.exists()
    with pytest.raises(InputError, match="has no effect without --timestamps"):
        Transcriber(model, device="cpu", aligner=model)


def test_a_head_in_a_folder_of_its_own(manifest: Path, model: Path, tmp_path: Path) -> None:
    bare, head = tmp_path / "bare", tmp_path / "head"
    shutil.copytree(model, bare)
    head.mkdir()
    for name in ("ctc_head.safetensors", "ctc_head.json"):
        shutil.move(bare / name, head)
    beside = run(manifest, tmp_path / "beside.jsonl", model, "--timestamps", "word")
    apart = run(manifest, tmp_path / "apart.jsonl", bare, "--timestamps", "word", "--aligner", str(head))
    assert beside == apart


@pytest.mark.parametrize("choice", ["mark", "skip", "keep"])
def test_a_long_recording_of_silence_says_what_a_short_one_does(model: Path, choice: NoSpeech) -> None:
    clips = [Utterance(id=str(n), audio=np.zeros(16_000 * n, np.float32)) for n in (3, 14)]
    transcriber = Transcriber(
        model, device="cpu", max_new_tokens=4, max_audio_seconds=6, vad="energy", timestamps="word", confidence=True, no_speech=choice
    )
    short, long = transcriber(clips)
    assert (long["pred_text"], long["segments"], long["words"], long["word_confidence"]) == ("", [], [], [])
    assert long["finish_reason"] == ("no_speech" if choice == "skip" else "stop")
    assert long.get("no_speech") == short.get("no_speech") == (None if choice == "keep" else True)
    assert [name in long for name in ("words", *SCORES)] == [name in short for name in ("words", *SCORES)]


def test_captions_stand_while_their_words_are_said() -> None:
    words = ((0.5, 0.9), (1.0, 1.2), (5.0, 5.5), (6.0, 7.0))
    timed = list(captions([Segment(0.0, 10.0, "One, two. Three - four!", words)], max_line_width=9, max_line_count=1))
    assert [(caption.start, caption.end, *caption.lines) for caption in timed] == [
        (500, 1200, "One, two."),
        (5000, 5500, "Three -"),
        (6000, 7000, "four!"),
    ]
    shared = list(captions([Segment(0.0, 10.0, "One, two. Three - four!", words[:3])], max_line_width=9, max_line_count=1))
    untimed = list(captions([Segment(0.0, 10.0, "One, two. Three - four!")], max_line_width=9, max_line_count=1))
    assert shared == untimed != timed


def test_verbose_json_and_vtt_from_the_command(manifest: Path, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    flags = ["--model_path", str(model), "--max_new_tokens", "10", "--max_audio_seconds", "6", "--quiet", "true", "--timestamps", "word"]
    assert main([str(manifest), "--output_dir", str(folder), "--output_format", "verbose_json,vtt,srt", *flags]) == 0
    whole = json.loads((folder / "long.verbose.json").read_text(encoding="utf-8"))
    rows = [json.loads(line) for line in (folder / "transcripts.jsonl").read_text(encoding="utf-8").splitlines()]
    assert whole["words"] == rows[2]["words"]
    assert (folder / "long.vtt").read_text(encoding="utf-8").startswith("WEBVTT")


def test_later_keeps_words_within_their_stretch() -> None:
    moved = later(
        [{"word": "a", "start": 0.0, "end": 0.9996, "characters": [{"character": "a", "start": 0.0, "end": 0.9996}]}], 2.0004, end=3.0
    )
    assert moved == [{"word": "a", "start": 2.0004, "end": 3.0, "characters": [{"character": "a", "start": 2.0004, "end": 3.0}]}]
    assert np.isclose(later([{"word": "a", "start": 0.25, "end": 0.5}], 1.0)[0]["end"], 1.5)


@pytest.mark.parametrize(
    ("fault", "said"),
    [(torch.AcceleratorError("CUDA error"), "the device cpu failed"), (torch.OutOfMemoryError("full"), "no memory for times of words")],
)
def test_a_device_that_fails_at_the_times_of_words_is_told_of_as_at_decoding(
    manifest: Path,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fault: Exception,
    said: str,
) -> None:
    def failing(*_: object) -> None:
        raise fault

    monkeypatch.setattr("arkfast.align.aligner.Aligner.__call__", failing)
    output = tmp_path / "out.jsonl"
    flags = ["--model_path", str(model), "--timestamps", "word", "--max_new_tokens", "4", "--device", "cpu"]
    assert main([str(manifest), "--output", str(output), *flags]) == 2
    assert said in capsys.readouterr().err
    assert not output.exists()
