"""Qwen3-ASR through the transcription session: tokens against Transformers' own ``generate``, and the language that is told or heard."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, GenerationConfig, Qwen3ASRForConditionalGeneration, Qwen3ASRProcessor

import arkfast.testing
from arkfast.evaluate.command import main as evaluate
from arkfast.infer import Transcriber
from arkfast.infer.command import main
from arkfast.models.family import find_decodable, find_family
from arkfast.records import InputError, Utterance
from arkfast.serve import child
from arkfast.serve.options import ServeConfig
from arkfast.testing import CHAIN, synthetic_speech, tiny_checkpoint, tiny_qwen3_asr, write_wav

NEW = 24
SECONDS = (0.3, 2.37, 17.1, 9.56, 1.0)
"""Under half a second; within a window of the encoder; over two windows; more than one; a whole second."""
LANGUAGES = (None, "en", "German", None, "zh")
NAMED = (None, "English", "German", None, "Chinese")
BEFORE = "<|im_start|>system\n<|im_end|>\n<|im_start|>user\n<|audio_start|><|audio_pad|><|audio_end|><|im_end|>\n<|im_start|>assistant\n"


class World:
    """A tiny checkpoint, and Transformers' own classes filled from it."""

    def __init__(self, root: Path) -> None:
        self.folder = tiny_qwen3_asr(root / "tiny", seed=3)
        self.model = Qwen3ASRForConditionalGeneration.from_pretrained(self.folder).eval()
        self.processor: Any = Qwen3ASRProcessor.from_pretrained(self.folder)
        found = find_decodable(self.folder)
        self.interface = found.interface(
            found.tokenizer(self.folder), found.load(self.folder, dtype="auto", attn_implementation="sdpa"), where="tiny"
        )
        self.clips = [synthetic_speech(seconds, seed=i) for i, seconds in enumerate(SECONDS)]

    @torch.no_grad()
    def generated(self, clips: list[np.ndarray], names: tuple[str | None, ...]) -> list[str]:
        """What Transformers' ``generate`` writes over a batch of clips, of which some are told their language."""
        text = [BEFORE + (f"language {name}<asr_text>" if name else "") for name in names]
        inputs = self.processor(text=text, audio=clips, sampling_rate=16_000)
        inputs["input_features"] = inputs["input_features"] * inputs["input_features_mask"][:, None]
        allowed = self.interface.allowed("asr")
        settings = GenerationConfig(
            do_sample=False, max_new_tokens=NEW, eos_token_id=list(allowed.stop_ids), pad_token_id=allowed.stop_ids[0],
            suppress_tokens=allowed.blocked(self.model.lm_head.weight.shape[0]).tolist(),
        )  # fmt: skip
        found = self.model.generate(**inputs, generation_config=settings)[:, inputs["input_ids"].shape[1] :]
        return [self.processor.tokenizer.decode(ids, skip_special_tokens=True) for ids in found.tolist()]

    def utterances(self, **changes: Any) -> list[Utterance]:
        return [Utterance(id=f"c{i}", audio=clip, language=LANGUAGES[i], **changes) for i, clip in enumerate(self.clips)]

    def transcriber(self, folder: Path | None = None, **options: Any) -> Transcriber:
        plain = {"device": "cpu", "max_new_tokens": NEW, "max_tokens_per_second": 0.0, "cut_loops": False, "no_speech": "keep"}
        return Transcriber(folder or self.folder, **{**plain, **options})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("qwen3_asr"))


def test_transcripts_are_those_of_generate_alone_and_in_batches(world: World) -> None:
    wanted = [world.generated([clip], (name,))[0] for clip, name in zip(world.clips, NAMED, strict=True)]
    assert len({token for text in wanted for token in text}) >= 10, "a model that repeats itself proves nothing"
    for size in (1, 3):
        rows = list(world.transcriber(batch_size=size)(world.utterances()))
        assert [row["pred_text_raw"] for row in rows] == wanted
        assert [row["status"] for row in rows] == ["ok"] * 5
        assert [row["language"] for row in rows] == list(LANGUAGES)
        assert ["detected_language" in row for row in rows] == [name is None for name in NAMED]
    assert world.generated(world.clips[1:3], NAMED[1:3]) == wanted[1:3]
    told = [world.generated([clip], ("French",))[0] for clip in world.clips]
    assert told != wanted, "the language makes a difference"
    assert [row["pred_text_raw"] for row in world.transcriber(language="fr")(world.utterances())] == [
        french if name is None else own for french, own, name in zip(told, wanted, NAMED, strict=True)
    ]


def test_the_reference_has_no_part_in_the_prompt(world: World) -> None:
    plain, known = (list(world.transcriber()([Utterance(id="a", audio=world.clips[1], text=text)])) for text in (None, "请转写这段音频。"))
    assert plain[0]["pred_text_raw"] == known[0]["pred_text_raw"]


def test_a_long_recording_is_cut_and_each_clip_equals_generate(world: World, tmp_path: Path) -> None:
    samples = np.concatenate([synthetic_speech(7, seed=11), np.zeros(8000, np.float32), synthetic_speech(8, seed=12)])
    talk = write_wav(tmp_path / "talk.wav", samples)
    kept = np.round(samples * 32768).clip(-32768, 32767) / 32768  # as the file has them
    row = next(world.transcriber(vad="energy", max_audio_seconds=6.0)([Utterance(id="t", audio=str(talk), language="en")]))
    assert row["status"] == "ok"
    assert len(row["segments"]) >= 3
    for segment in row["segments"]:
        clip = kept[round(segment["start"] * 16000) : round(segment["end"] * 16000)].astype(np.float32)
        assert segment["text"] == " ".join(world.generated([clip], ("English",))[0].split())


def test_the_first_layout_decodes_alike(world: World, tmp_path: Path) -> None:
    first = tiny_qwen3_asr(tmp_path / "first", seed=3, layout="first")
    ours, theirs = (list(world.transcriber(folder)(world.utterances())) for folder in (None, first))
    assert ours == theirs


def test_words_of_confidence_belong_to_the_transcript(world: World) -> None:
    rows = list(world.transcriber(confidence=True)(world.utterances()))
    for row in rows:
        assert [word["word"] for word in row["word_confidence"]] or not any(c.isalnum() for c in row["pred_text"])


def writes_its_language(root: Path, monkeypatch: pytest.MonkeyPatch, name: str = "English") -> Path:
    """A checkpoint that writes ``language English<asr_text>uvwxyz`` over any clip, since each token is predicted from the one before it."""
    monkeypatch.setattr(arkfast.testing, "TEXTS", (*arkfast.testing.TEXTS, *[f"language {name} language"] * 3))
    folder = tiny_qwen3_asr(root / f"names_{name}", seed=3, vocab_size=430, tie_word_embeddings=False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chain = tokenizer.encode(f"\nlanguage {name}<asr_text>{CHAIN}<|im_end|>", add_special_tokens=False)
    assert len(set(chain)) == len(chain), "each token is followed by one other"
    weights = load_file(folder / "model.safetensors")
    table = next(key for key in weights if key.endswith("embed_tokens.weight"))
    states = torch.nn.functional.normalize(torch.randn(len(chain), 48, generator=torch.Generator().manual_seed(0)))
    weights["lm_head.weight"].zero_()
    for state, before, after in zip(states, chain, chain[1:], strict=False):
        weights[table][before], weights["lm_head.weight"][after] = state, 20 * state
    for key, weight in weights.items():
        if "layers" in key and key.endswith(("o_proj.weight", "down_proj.weight")) and "audio" not in key:
            weight.zero_()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_the_language_that_the_model_writes_becomes_a_field(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = writes_its_language(tmp_path, monkeypatch)
    clips = [Utterance(id=str(i), audio=world.clips[1], language=language) for i, language in enumerate((None, "de"))]
    heard, told = world.transcriber(folder, confidence=True)(clips)
    assert (heard["detected_language"], heard["language"], heard["pred_text"]) == ("English", None, CHAIN)
    assert (told["language"], told["pred_text"], "detected_language" in told) == ("de", CHAIN, False)
    assert heard["word_confidence"] == told["word_confidence"], "what stands before the transcript is no part of it"
    assert heard["avg_logprob"] == told["avg_logprob"]

    talk = write_wav(tmp_path / "talk.wav", synthetic_speech(14, seed=5))
    flags = ["--model_path", str(folder), "--max_audio_seconds", "6", "--quiet", "true", "--device", "cpu"]
    assert main([str(talk), "--output_dir", str(tmp_path / "out"), "--output_format", "verbose_json", *flags]) == 0
    row = json.loads((tmp_path / "out" / "transcripts.jsonl").read_text())
    assert row["detected_language"] == "English"
    assert len(row["segments"]) > 1
    assert {segment["detected_language"] for segment in row["segments"]} == {"English"}
    assert json.loads((tmp_path / "out" / "talk.verbose.json").read_text())["language"] == "English"

    (row,) = world.transcriber(writes_its_language(tmp_path, monkeypatch, "None"))([clips[0]])
    assert (row["detected_language"], row["pred_text"]) == (None, CHAIN)


@pytest.mark.parametrize(
    ("text", "language", "transcript"),
    [
        ("language English<asr_text>one two", "English", "one two"),
        ("language None<asr_text>", None, ""),
        ("one two", None, "one two"),
        ("one<asr_text>two", None, "onetwo"),
        ("language <asr_text>two", None, "language two"),
        ("language German", None, "language German"),
    ],
)
def test_an_answer_without_a_language_is_a_transcript_as_a_whole(world: World, text: str, language: str | None, transcript: str) -> None:
    tokenizer = world.interface.tokenizer
    ids = tokenizer.encode(text, add_special_tokens=False)
    heard = world.interface.heard(ids)
    assert (heard.language, tokenizer.decode(ids[heard.begin :], skip_special_tokens=True)) == (language, transcript)


def test_a_language_that_reaches_no_prompt_is_said_to(world: World, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        world.transcriber(language="de")
    with pytest.warns(RuntimeWarning, match="language 'sw' is none that the model can be told, so it finds out by itself; .*English"):
        world.transcriber(language="sw")
    ark = tiny_checkpoint(tmp_path / "ark")
    with pytest.warns(RuntimeWarning, match="language 'de' has no effect on transcripts, because the prompt of this model is told no lang"):
        world.transcriber(ark, language="de")
    swahili, english = world.transcriber()([Utterance(id=x, audio=world.clips[1], language=x) for x in ("sw", "en")])
    assert swahili["warnings"] == ["language 'sw' is none that the model can be told, so it found out by itself"]
    assert "detected_language" in swahili
    assert "warnings" not in english


def test_flags_name_languages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([str(tmp_path / "a.jsonl"), "--output", str(tmp_path / "b.jsonl"), "--language", "chinse"])
    assert "--language 'chinse' is not known; did you mean chinese" in capsys.readouterr().err


def test_it_is_not_trained_here(world: World) -> None:
    with pytest.raises(InputError, match="model_type is 'qwen3_asr', expected 'arkasr'"):
        find_family(world.folder)


def test_evaluation_and_the_service_take_it(world: World, tmp_path: Path) -> None:
    clip = write_wav(tmp_path / "a.wav", world.clips[1])
    (tmp_path / "a.jsonl").write_text(json.dumps({"audio": str(clip), "text": "one two", "language": "en"}) + "\n", encoding="utf-8")
    flags = ["--model_path", str(world.folder), "--device", "cpu", "--max_new_tokens", "8", "--quiet", "true"]
    assert evaluate([str(tmp_path / "a.jsonl"), "--output", str(tmp_path / "scored.jsonl"), *flags]) == 0
    (row,) = [json.loads(line) for line in (tmp_path / "scored.jsonl").read_text(encoding="utf-8").splitlines()]
    assert row["status"] == "ok"
    served = child.load(ServeConfig(model=world.folder, device="cpu", max_new_tokens=8))
    child.warm_up(served)
    assert child.token_mask(served)["eos_token_ids"] == list(world.interface.allowed("asr").stop_ids)
