"""Hugging Face's speech-recognition pipeline: every kind of audio, any length, and other models untouched."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutomaticSpeechRecognitionPipeline,
    AutoProcessor,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    pipeline,
)

from arkfast import audio
from arkfast.data.transcript import clean_transcript
from arkfast.models import ArkasrProcessor, load_model
from arkfast.models.arkasr.pipeline import ArkasrPipeline, split_at_quiet
from arkfast.records import AllowedTokens, InputError
from arkfast.testing import synthetic_speech, tiny_checkpoint, write_wav


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("pipeline") / "tiny", seed=1)


@pytest.fixture(scope="module")
def wavs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("wavs")
    return [write_wav(folder / f"{i}.wav", synthetic_speech(seconds, i)) for i, seconds in enumerate((2.31, 0.83))]


@pytest.fixture(scope="module")
def processor(checkpoint: Path) -> ArkasrProcessor:
    return AutoProcessor.from_pretrained(checkpoint)


def test_pipeline_takes_every_kind_of_audio(checkpoint: Path, wavs: list[Path]) -> None:
    recogniser = pipeline("automatic-speech-recognition", model=str(checkpoint), trust_remote_code=True)
    assert type(recogniser) is ArkasrPipeline
    samples = audio.load(wavs[0])
    alone = recogniser(str(wavs[0]), max_new_tokens=12)["text"]
    inputs = [
        str(wavs[0]),
        wavs[0].read_bytes(),
        samples,
        {"array": samples, "sampling_rate": 16000},
        {"raw": samples, "sampling_rate": 16000},
    ]
    for batch_size in (1, 2):
        texts = [row["text"] for row in recogniser([*inputs, str(wavs[1])], max_new_tokens=12, batch_size=batch_size)]
        assert texts[:-1] == [alone] * len(inputs)
        assert texts[-1] != alone
    with pytest.raises(InputError, match="sampling_rate"):
        recogniser({"array": samples})


def test_pipeline_equals_generation_over_the_allowed_ids(checkpoint: Path, processor: ArkasrProcessor, wavs: list[Path]) -> None:
    model = load_model(checkpoint)
    inputs = processor(audio=[audio.load(wavs[0])])
    allowed = AllowedTokens.asr(processor.tokenizer, model.config)
    tokens = model.generate(**inputs, do_sample=False, max_new_tokens=12, suppress_tokens=allowed.blocked(model.config.vocab_size).tolist())
    new = tokens[0, inputs["input_ids"].shape[1] :].tolist()
    assert all(token in allowed for token in new)
    expected = clean_transcript(processor.tokenizer.decode(new, skip_special_tokens=True))
    recogniser = pipeline(
        "automatic-speech-recognition", model=model, tokenizer=processor.tokenizer, feature_extractor=processor.feature_extractor
    )
    assert recogniser(str(wavs[0]), max_new_tokens=12)["text"] == expected


def test_pipeline_splits_long_audio_and_joins_the_texts(checkpoint: Path) -> None:
    recogniser = pipeline("automatic-speech-recognition", model=str(checkpoint))
    samples = synthetic_speech(4.0, 7)
    pieces = split_at_quiet(samples, 1.5)
    parts = [recogniser(piece, max_new_tokens=6)["text"] for piece in pieces]
    assert recogniser(samples, chunk_length_s=1.5, max_new_tokens=6)["text"] == " ".join(part for part in parts if part)


def test_cuts_fall_into_pauses_and_lose_nothing() -> None:
    speech = [synthetic_speech(3.0, seed) + np.float32(0.01) for seed in range(5)]
    pause = np.zeros(6400, dtype=np.float32)
    samples = np.concatenate([part for piece in speech for part in (piece, pause)])
    pieces = split_at_quiet(samples, 5.0)
    np.testing.assert_array_equal(np.concatenate(pieces), samples)
    assert all(len(piece) <= 80000 for piece in pieces)
    for piece in pieces[:-1]:
        assert not piece[-800:].any()  # the cut stands in the middle of silence
    assert [len(piece) for piece in split_at_quiet(samples[:80000], 5.0)] == [80000]


def test_other_models_take_the_stock_pipeline(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", "A", "B"])}))
    config = Wav2Vec2Config(
        vocab_size=7,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(16,) * 7,
        num_conv_pos_embeddings=8,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Wav2Vec2ForCTC(config).eval()
    recogniser = pipeline(
        "automatic-speech-recognition",
        model=model,
        tokenizer=Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json")),
        feature_extractor=Wav2Vec2FeatureExtractor(),
    )
    stock = AutomaticSpeechRecognitionPipeline(model=model, tokenizer=recogniser.tokenizer, feature_extractor=recogniser.feature_extractor)
    samples = synthetic_speech(0.5)
    assert recogniser.type == "ctc"
    assert recogniser(samples.copy()) == stock(samples.copy())


def test_recordings_go_through(checkpoint: Path, recordings: list[Path]) -> None:
    recogniser = pipeline("automatic-speech-recognition", model=str(checkpoint))
    for file in recordings[:4]:
        assert recogniser(str(file), max_new_tokens=8)["text"]
