"""What a transcript is chosen from: draws, penalties, another folder's tokenizer, louder samples."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arkfast import Transcriber
from arkfast.audio import LogMel
from arkfast.engine import Sampling
from arkfast.infer.command import main
from arkfast.infer.gain import Gain
from arkfast.records import InputError, Utterance
from arkfast.testing import synthetic_speech, tiny_checkpoint

ROOT = Path(__file__).resolve().parents[2]
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
CLIPS = [Utterance(id=f"clip{i}", audio=synthetic_speech(seconds, seed=i)) for i, seconds in enumerate((0.4, 1.3, 0.7, 2.1))]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("model"))


def texts(model: Path, clips: list[Utterance] = CLIPS, **options: Any) -> dict[str, str]:
    """Each clip's raw transcript by its id."""
    rows = list(Transcriber(model, device="cpu", max_new_tokens=8, **options)(clips))
    assert [row["status"] for row in rows] == ["ok"] * len(clips)
    return {row["id"]: row["pred_text_raw"] for row in rows}


@pytest.fixture(scope="module")
def best(model: Path) -> dict[str, str]:
    """Each clip's transcript of best tokens."""
    return texts(model)


def test_draws_depend_on_seed_and_id_alone(model: Path, best: dict[str, str]) -> None:
    twin = Utterance(id="another", audio=CLIPS[0].audio)
    drawn = texts(model, [*CLIPS, twin], sampling=Sampling(temperature=1.5, seed=3))
    assert len(set(drawn.values())) == len(CLIPS) + 1  # the twin's too: its id is another
    assert all(drawn[name] != best[name] for name in best)
    assert texts(model, [twin, *CLIPS[::-1]], sampling=Sampling(temperature=1.5, seed=3), batch_size=1) == drawn
    again = texts(model, sampling=Sampling(temperature=1.5, seed=4))
    assert all(again[name] != drawn[name] for name in again)


def test_one_best_token_is_no_draw(model: Path, best: dict[str, str]) -> None:
    assert texts(model, sampling=Sampling(temperature=1.5, top_k=1)) == best


def test_a_penalty_changes_what_is_best(model: Path, best: dict[str, str]) -> None:
    assert texts(model, sampling=Sampling(repetition_penalty=5.0)) != best


def test_flags_reach_the_engine(model: Path, tmp_path: Path, best: dict[str, str]) -> None:
    import soundfile

    soundfile.write(tmp_path / "a.wav", CLIPS[1].audio, 16000, subtype="FLOAT")
    (tmp_path / "in.jsonl").write_text(json.dumps({"id": "clip1", "audio": "a.wav"}) + "\n")
    output = tmp_path / "out.jsonl"
    flags = ["--input", str(tmp_path / "in.jsonl"), "--output", str(output), "--model_path", str(model), "--device", "cpu"]
    flags += ["--max_new_tokens", "8", "--do_sample", "--temperature", "1.5", "--top_p", "0.9", "--top_k", "50", "--seed", "3"]
    flags += ["--repetition_penalty", "1.1", "--audio_gain", "20", "--processor_path", str(model)]
    assert main(flags) == 0
    found = json.loads(output.read_text())["pred_text_raw"]
    asked = Sampling(temperature=1.5, top_p=0.9, top_k=50, seed=3, repetition_penalty=1.1)
    assert found == texts(model, CLIPS[1:2], sampling=asked, audio_gain=20.0)["clip1"] != best["clip1"]


def test_the_tokenizer_of_another_folder(model: Path, tmp_path: Path, best: dict[str, str]) -> None:
    bare, own = tmp_path / "bare", tmp_path / "tokenizer"
    shutil.copytree(model, bare, ignore=shutil.ignore_patterns(*TOKENIZER))
    own.mkdir()
    for name in TOKENIZER:
        shutil.copy(model / name, own)
    assert texts(bare, processor_path=own) == best
    with pytest.raises(InputError, match="/bare: its tokenizer cannot be loaded"):
        Transcriber(bare, device="cpu")
    with pytest.raises(InputError, match="/nowhere: no such folder"):
        Transcriber(model, device="cpu", processor_path="/nowhere")


def test_a_tokenizer_of_another_model_is_refused(model: Path, tmp_path: Path) -> None:
    other = tiny_checkpoint(tmp_path / "other", vocab_size=300)
    with pytest.raises(InputError, match=r"/other: its tokenizer is another model's"):
        Transcriber(model, device="cpu", processor_path=other)
    plain = shutil.copytree(other, tmp_path / "plain")
    tokenizer = json.loads((plain / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = [t for t in tokenizer["added_tokens"] if t["content"] != "<|audio|>"]
    (plain / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = json.loads((plain / "tokenizer_config.json").read_text())
    settings.get("added_tokens_decoder", {}).clear()
    settings.pop("additional_special_tokens", None)
    settings.pop("extra_special_tokens", None)
    (plain / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match=r"/plain: its tokenizer cannot be loaded \(the tokenizer has no <\|audio\|>"):
        Transcriber(model, device="cpu", processor_path=plain)


def test_gain_is_that_of_samples() -> None:
    log_mel, samples = LogMel(128), CLIPS[1].audio
    assert isinstance(samples, np.ndarray)
    quiet = samples * np.float32(0.01)
    (expected,), _ = log_mel([quiet * np.float32(4)])
    found = Gain(log_mel, 4.0)(quiet)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)
    pcm = (quiet * 32768).astype(np.int16)
    (expected,), _ = log_mel([pcm.astype(np.float32) / np.float32(32768) * np.float32(4)])
    np.testing.assert_array_equal(Gain(log_mel, 4.0)(pcm), expected)


def bad_clip_between(tmp_path: Path) -> list[Utterance]:
    import soundfile

    for i in range(2):
        soundfile.write(tmp_path / f"{i}.wav", CLIPS[i].audio, 16000, subtype="FLOAT")
    return [Utterance(id=name, audio=str(tmp_path / f"{name}.wav")) for name in ("0", "gone", "1")]


def test_gain_beside_bad_clips(model: Path, tmp_path: Path, best: dict[str, str]) -> None:
    wanted = texts(model, [Utterance(id=str(i), audio=CLIPS[i].audio * np.float32(20)) for i in range(2)])
    overflowing = Utterance(id="loud", audio=np.full(8000, 3e37, dtype=np.float32))
    rows = list(Transcriber(model, device="cpu", max_new_tokens=8, audio_gain=20.0)([*bad_clip_between(tmp_path), overflowing]))
    assert [row["status"] for row in rows] == ["ok", "error", "ok", "error"]
    assert {row["id"]: row["pred_text_raw"] for row in rows if row["status"] == "ok"} == wanted != {"0": best["clip0"], "1": best["clip1"]}
    assert rows[3]["pred_text"] is None
    assert "full scale is 1" in rows[3]["error"]


def test_samples_that_overflow_are_an_error() -> None:
    with pytest.raises(InputError, match="only finite samples"):
        Gain(LogMel(128), 3e38)(np.full(8000, 2.0, dtype=np.float32))


def test_gain_in_workers(model: Path, tmp_path: Path) -> None:
    alone, ahead = (
        list(Transcriber(model, device="cpu", max_new_tokens=8, audio_gain=20.0, num_workers=workers)(bad_clip_between(tmp_path)))
        for workers in (0, 2)
    )
    assert alone == ahead
    assert [row["status"] for row in ahead] == ["ok", "error", "ok"]


@pytest.mark.slow
def test_the_script_at_the_originals_path_says_once_what_it_does_not_obey(model: Path, tmp_path: Path) -> None:
    import soundfile

    soundfile.write(tmp_path / "a.wav", CLIPS[0].audio, 16000)
    (tmp_path / "in.jsonl").write_text((json.dumps({"audio": "a.wav", "text": "a"}) + "\n") * 2)
    script = ROOT / "scripts" / "infer" / "ark_asr_transformers.py"
    flags = ["--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl", "--model_path", model, "--processor_path", model]
    flags += ["--max_new_tokens", "4", "--padding_side", "right", "--attn_impl", "flash_attention_2", "--target_sr", "16000"]
    done = subprocess.run([sys.executable, str(script), *map(str, flags)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 2
    said = [line for line in done.stderr.splitlines() if line.startswith("arkfast transcribe:")]
    assert [line.split(": ")[1] for line in said] == ["--padding_side right", "--attn_impl flash_attention_2"]
    assert "RTFx" in done.stdout
    assert "by processing time" in done.stdout
