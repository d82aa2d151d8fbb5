"""``--features device``: the same transcripts, silence, words, gain, long recordings and faults as with features of the host."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arkfast.infer import Transcriber
from arkfast.infer.command import main
from arkfast.records import InputError, JsonObject, Utterance
from arkfast.testing import synthetic_speech, tiny_qwen3_asr, write_wav

SECONDS = (0.2, 3.0, 1.37, 5.0, 2.2, 4.1)


@pytest.fixture(scope="module")
def model(timed_model: Path) -> Path:
    return timed_model


def rows(model: Path, utterances: list[Utterance], where: str, **options: Any) -> list[JsonObject]:
    return list(Transcriber(model, device="cpu", max_new_tokens=16, batch_size=2, features=where, **options)(utterances))  # type: ignore[arg-type]


def differing(host: list[JsonObject], device: list[JsonObject]) -> list[str]:
    """The fields in which rows differ by more than rounding."""
    found = []
    for one, other in zip(host, device, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            if name == "audio_seconds":
                # whole frames, which hold what a short clip was padded with, or samples
                same = abs(one[name] - other[name]) <= 0.01 or other[name] < one[name] == 0.5
            elif isinstance(one[name], float):
                same = abs(one[name] - other[name]) <= 1e-3
            else:
                same = one[name] == other[name]
            found += [] if same else [name]
    return found


@pytest.mark.parametrize("options", [{}, {"audio_gain": 0.5}, {"timestamps": "word"}, {"no_speech": "skip"}])
@pytest.mark.parametrize("kind", ["ark", "qwen"])
def test_rows_are_those_of_the_host(model: Path, tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    if kind == "qwen":
        if options.get("timestamps"):
            pytest.skip("a head belongs to ARK-ASR")
        model = tiny_qwen3_asr(tmp_path / "qwen", seed=3)
    clips = [Utterance(id=f"c{i}", audio=synthetic_speech(seconds, seed=i)) for i, seconds in enumerate(SECONDS)]
    clips.append(Utterance(id="silence", audio=np.zeros(20_000, np.float32)))
    host, device = (rows(model, clips, where, **options) for where in ("host", "device"))
    assert differing(host, device) == []
    assert len({row["pred_text"] for row in host}) >= 4
    assert host[-1].get("no_speech") is True


def test_faults_stay_with_their_clip(model: Path) -> None:
    bad = synthetic_speech(1, seed=1)
    bad[77] = np.nan
    clips = [Utterance(id=str(i), audio=audio) for i, audio in enumerate((synthetic_speech(1, seed=0), bad, synthetic_speech(2, seed=2)))]
    found = rows(model, clips, "device", timestamps="word")
    assert [row["status"] for row in found] == ["ok", "error", "ok"]
    transcriber = Transcriber(model, device="cpu", features="device", audio_gain=10.0)
    with pytest.raises(InputError, match="none any more when it is multiplied by the gain"):
        transcriber.submit(clips[0], np.full((1, 400), 1e38, np.float32))
    long = np.zeros((1, 16_000 * 60), np.float32)  # more positions than a slot has
    ticket = transcriber.submit(clips[0], long)
    (outcome,) = transcriber.step()
    assert (outcome.ticket, outcome.text) == (ticket, None)
    assert "positions" in (outcome.error or "")
    with pytest.raises(InputError, match="features must be host or device, got 'gpu'"):
        rows(model, clips, "gpu")


def test_the_command_reads_files_in_workers_and_cuts_long_ones(model: Path, tmp_path: Path) -> None:
    paths = [write_wav(tmp_path / f"{i}.wav", synthetic_speech(seconds, seed=i)) for i, seconds in enumerate((*SECONDS, 13.0))]
    manifest = tmp_path / "rows.jsonl"
    manifest.write_text("".join(json.dumps({"audio": str(path)}) + "\n" for path in paths), encoding="utf-8")
    found = []
    for where in ("host", "device"):
        flags = ["--model_path", str(model), "--max_new_tokens", "12", "--max_audio_seconds", "6", "--quiet", "true", "--device", "cpu"]
        output = tmp_path / f"{where}.jsonl"
        assert main([str(manifest), "--output", str(output), *flags, "--num_workers", "1", "--features", where]) == 0
        found.append([json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()])
    host, device = found
    assert [row["pred_text"] for row in host] == [row["pred_text"] for row in device]
    assert [part["text"] for part in host[-1]["segments"]] == [part["text"] for part in device[-1]["segments"]]
    assert len(host[-1]["segments"]) > 1
