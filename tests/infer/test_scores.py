"""Confidence, silence and hotwords of rows."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from arkfast import Transcriber
from arkfast.audio import LogMel, load
from arkfast.infer.calibration import Calibration, calibrate, calibration_error, fit, judged_words
from arkfast.infer.command import main
from arkfast.infer.confidence import compression_ratio, joined_scores, repetition, spans, word_probabilities
from arkfast.infer.hotwords import read_hotwords
from arkfast.infer.speech import THRESHOLD, no_speech_prob, silence_in
from arkfast.records import InputError, Utterance
from arkfast.testing import synthetic_speech, tiny_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("model"))


def features(samples: np.ndarray) -> np.ndarray:
    return np.asarray(LogMel(128)([samples.astype(np.float32)])[0])[0]


def noises(seconds: float) -> dict[str, np.ndarray]:
    rng, n = np.random.default_rng(1), round(16000 * seconds)
    time = np.arange(n) / 16000
    pink = np.fft.irfft(np.fft.rfft(rng.standard_normal(n)) / np.maximum(np.arange(n // 2 + 1), 1) ** 0.5, n)
    return {
        "digital silence": np.zeros(n),
        "dither": np.round(rng.random(n) - rng.random(n)) / 32768,
        "white noise": 0.1 * rng.standard_normal(n),
        "faint white noise": 1e-4 * rng.standard_normal(n),
        "pink noise": 0.3 * pink / np.abs(pink).max(),
        "hum": 0.1 * np.sin(2 * np.pi * 50 * time),
        "hum with overtones": sum(0.1 / k * np.sin(2 * np.pi * 60 * k * time) for k in (1, 2, 3, 5, 7)),
    }


@pytest.mark.parametrize("seconds", [1.0, 4.0, 20.0])
@pytest.mark.parametrize("name", list(noises(0.1)))
def test_noise_and_silence_hold_no_speech(name: str, seconds: float) -> None:
    assert silence_in(features(noises(seconds)[name])) > THRESHOLD


@pytest.mark.parametrize("gain", [1.0, 1e-2, 3e-4])
def test_speech_however_quiet_is_speech(gain: float) -> None:
    for seed, seconds in enumerate((0.5, 1.3, 4.0)):
        assert silence_in(features(gain * synthetic_speech(seconds, seed=seed))) < 0.1


def test_recordings_of_speech_are_speech(recordings: list[Path]) -> None:
    for path in recordings:
        samples = load(path)
        for gain in (1.0, 3e-4 / np.abs(samples).max()):
            assert silence_in(features(gain * samples)) < 0.1, (path, gain)


def test_either_judge_alone_can_say_that_there_is_no_speech() -> None:
    assert no_speech_prob(0.0, ended_at_once=0.9, scores={}) == pytest.approx(0.9)
    assert no_speech_prob(0.9, ended_at_once=None, scores={}) == pytest.approx(0.9)
    assert no_speech_prob(0.0, ended_at_once=0.0, scores={"avg_logprob": -5.0}) == 0.0
    sure = {"avg_logprob": -0.1, "compression_ratio": 1.0}
    assert no_speech_prob(0.4, ended_at_once=0.0, scores=sure) == pytest.approx(0.4)
    for doubtful in ({"avg_logprob": -1.5}, {"compression_ratio": 3.0}):
        assert no_speech_prob(0.4, ended_at_once=0.0, scores=sure | doubtful) > THRESHOLD


def rows_of(model: Path, clips: list[Utterance], **options: object) -> list[dict]:
    return list(Transcriber(model, device="cpu", max_new_tokens=12, **options)(clips))  # type: ignore[arg-type]


CLIPS = [
    Utterance(id="speech", audio=synthetic_speech(1.3, seed=1)),
    Utterance(id="silence", audio=np.zeros(16000, dtype=np.float32)),
    Utterance(id="noise", audio=(0.1 * np.random.default_rng(0).standard_normal(16000)).astype(np.float32)),
]


def test_what_is_no_speech_is_marked_left_out_or_kept(model: Path) -> None:
    kept, marked, skipped = (rows_of(model, CLIPS, no_speech=choice) for choice in ("keep", "mark", "skip"))
    assert rows_of(model, CLIPS) == marked
    assert not any("no_speech" in row or "no_speech_prob" in row for row in kept)
    for before, mark, skip in zip(kept, marked, skipped, strict=True):
        assert before["pred_text_raw"]
        if before["id"] == "speech":
            assert before == mark == skip
            continue
        assert mark.pop("no_speech") is skip["no_speech"] is True
        assert THRESHOLD <= mark.pop("no_speech_prob") <= 1
        assert mark == before
        assert (skip["pred_text"], skip["finish_reason"], skip["status"]) == ("", "no_speech", "ok")


def test_confidence_is_said_where_it_is_asked_for(model: Path) -> None:
    plain, rows = rows_of(model, CLIPS), rows_of(model, CLIPS, confidence=True)
    for before, row in zip(plain, rows, strict=True):
        assert row["pred_text_raw"] == before["pred_text_raw"]
        assert row["avg_logprob"] < 0
        assert row["compression_ratio"] == pytest.approx(compression_ratio(row["pred_text"]), abs=1e-4)
        text = row["pred_text_raw"]
        assert [word["word"] for word in row["word_confidence"]] == [text[start:stop] for start, stop in spans(text)]
        assert all(0 <= word["confidence"] <= 1 for word in row["word_confidence"])
        assert 0 <= row["no_speech_prob"] <= 1
        assert "avg_logprob" not in before


class Letters:
    """A tokenizer whose ids are pieces of a byte-level vocabulary, one of which is half a character."""

    pieces = ("ab", "\u0120c", "d\u0120e", ".", "\u00e4\u00bd", "\u0142", "\u00e5\u00a5\u00bd")

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str | None]:
        return [self.pieces[i] for i in ids]

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        raw = {"\u0120": b" ", "\u0142": b"\xa0"}
        return b"".join(raw.get(c) or c.encode("latin-1") for i in ids for c in self.pieces[i]).decode(errors="replace")


def test_a_words_probability_is_that_of_the_ids_that_wrote_it() -> None:
    ids, logprobs = [0, 1, 2, 3, 4, 5, 6], [-0.1, -0.2, -0.4, -0.8, -1.6, -3.2, -6.4]
    found = word_probabilities(ids, [*logprobs, -9.0], Letters())  # type: ignore[arg-type]
    said = {word: round(math.log(p), 6) for word, p in found}
    assert said["ab"] == -0.1
    assert said["cd"] == pytest.approx(-0.6)
    assert said["你"] == pytest.approx(-4.8)
    assert said["好"] == pytest.approx(-6.4)


def test_repetition_and_compression() -> None:
    assert repetition([1, 2]) == 0 == compression_ratio("")
    assert repetition([1, 2, 3, 4, 5]) == 0
    assert repetition([1, 2, 3] * 10) == pytest.approx(1 - 3 / 28)
    assert compression_ratio("and so on " * 30) > 2.4 > compression_ratio("and so my fellow Americans")


def test_scores_of_clips_joined() -> None:
    first = {"avg_logprob": -1.0, "compression_ratio": 1.0, "repetition": 0.0, "confidence": 0.5, "no_speech_prob": 0.2,
             "word_confidence": [{"word": "a", "confidence": 0.5}]}  # fmt: skip
    second = {"avg_logprob": -4.0, "compression_ratio": 1.0, "repetition": 0.5, "confidence": 0.8, "no_speech_prob": 0.7, "no_speech": True,
              "word_confidence": [{"word": "b", "confidence": 0.7}, {"word": "c", "confidence": 0.9}]}  # fmt: skip
    joined = joined_scores([(20.0, first), (10.0, second)], text="a b c")
    assert joined["avg_logprob"] == -2.0
    assert (joined["repetition"], joined["no_speech_prob"], joined["confidence"]) == (0.5, 0.2, 0.7)
    assert "no_speech" not in joined
    assert [word["word"] for word in joined["word_confidence"]] == ["a", "b", "c"]
    assert joined_scores([(1.0, {}), (2.0, {"no_speech": True, "no_speech_prob": 0.9})], text="") == {}
    assert joined_scores([], text="") == {}


def synthetic_rows(rng: np.random.Generator, count: int) -> list[dict]:
    """Words whose probability of being right is less than they say: the logit's half."""
    rows = []
    for _ in range(count):
        p = rng.uniform(0.5, 0.999, 8)
        share = 1 / (1 + np.exp(-0.5 * np.log(p / (1 - p))))
        right = rng.random(8) < share
        words = [f"w{i}" if ok else f"x{i}" for i, ok in enumerate(right)]
        rows.append(
            {
                "text": " ".join(f"W{i}," for i in range(8)),
                "word_confidence": [{"word": word, "confidence": float(value)} for word, value in zip(words, p, strict=True)],
            }
        )
    return rows


def test_a_calibration_lowers_the_error_and_is_taken_up(tmp_path: Path) -> None:
    rows = synthetic_rows(np.random.default_rng(0), 800)
    said = calibrate(rows, tmp_path / "c.json")
    found = Calibration.read(tmp_path / "c.json")
    assert found.slope == pytest.approx(0.5, abs=0.06)
    assert found.offset == pytest.approx(0.0, abs=0.12)
    confidences, right = judged_words(rows[1::2])
    before, after = calibration_error(confidences, right), calibration_error(found.of(confidences), right)
    assert f"{before:.4f} before, {after:.4f} after" in said
    assert after < before / 3
    assert found(0.5) == pytest.approx(0.5, abs=0.03)


def test_calibrations_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least 100"):
        fit(np.full(50, 0.5), np.arange(50) % 2 == 0)
    with pytest.raises(InputError, match="right and wrong ones"):
        fit(np.full(200, 0.5), np.ones(200, dtype=bool))
    (tmp_path / "no.json").write_text("{}")
    with pytest.raises(InputError, match=r"no\.json: is no calibration"):
        Calibration.read(tmp_path / "no.json")
    with pytest.raises(InputError, match=r"none\.json"):
        Calibration.read(tmp_path / "none.json")


def test_hotwords_are_read(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("\ufeffNew York\t3.5\n\n  Zhang Wei \n東京\t1\n")
    assert read_hotwords(tmp_path / "words.txt") == {"New York": 3.5, "Zhang Wei": 2.0, "東京": 1.0}
    for text, words in (("", "holds no hotword"), ("a\tmany", r"words\.txt:1: a hotword's weight"), ("\t2", "without a phrase")):
        (tmp_path / "words.txt").write_text(text)
        with pytest.raises(InputError, match=words):
            read_hotwords(tmp_path / "words.txt")


def test_hotwords_of_all_rows_and_of_one(model: Path) -> None:
    clip = CLIPS[0].audio
    own = [Utterance(id=str(i), audio=clip, extra=extra) for i, extra in enumerate(({}, {"hotwords": {"lazy dog": 500}}, {"hotwords": 3}))]
    plain, boosted, bad = rows_of(model, own)
    assert "lazy dog" not in plain["pred_text"]
    assert boosted["pred_text"].startswith("lazy dog")
    assert "hotwords must be a list of phrases" in bad["error"]
    assert rows_of(model, own[:1], hotwords={"lazy dog": 500.0})[0]["pred_text"] == boosted["pred_text"]
    with pytest.raises(InputError, match="no transcript can hold"):
        rows_of(model, own[:1], hotwords={"<|im_end|>": 1.0})


def test_the_command(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import soundfile

    for clip in CLIPS:
        soundfile.write(tmp_path / f"{clip.id}.wav", clip.audio, 16000, subtype="FLOAT")
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"id": c.id, "audio": f"{c.id}.wav"}) + "\n" for c in CLIPS))
    (tmp_path / "words.txt").write_text("lazy dog\t500\n")
    Calibration(0.5, -1.0).write(tmp_path / "c.json")
    output = tmp_path / "out.jsonl"
    flags = ["--input", str(tmp_path / "in.jsonl"), "--output", str(output), "--model_path", str(model), "--device", "cpu"]
    flags += ["--max_new_tokens", "12", "--confidence", "--no_speech", "skip", "--output_dir", str(tmp_path / "files")]
    flags += ["--output_format", "verbose_json"]
    assert main([*flags, "--hotwords", str(tmp_path / "words.txt"), "--calibration", str(tmp_path / "c.json")]) == 0
    speech, silence, _ = map(json.loads, output.read_text().splitlines())
    assert speech["pred_text"].startswith("lazy dog")
    assert silence["pred_text"] == ""
    assert silence["finish_reason"] == "no_speech"
    assert "2 without speech" in capsys.readouterr().out
    written = json.loads((tmp_path / "files" / "speech.verbose.json").read_text())
    assert written["segments"][0]["avg_logprob"] == speech["avg_logprob"]
    plain = rows_of(model, CLIPS[:1], confidence=True, hotwords={"lazy dog": 500.0})[0]
    want = Calibration(0.5, -1.0)(plain["word_confidence"][0]["confidence"])
    assert speech["word_confidence"][0]["confidence"] == pytest.approx(want, abs=1e-2)
    with pytest.raises(InputError, match="--calibration has no effect"):
        Transcriber(model, device="cpu", calibration=tmp_path / "c.json")
