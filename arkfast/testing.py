"""Small random models and synthetic audio for tests.

Knows sizes at which a test takes milliseconds and an initialisation at which greedy output is not one repeated token; asserts nothing about
the product itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from arkfast.models.arkasr.config import ArkasrConfig
from arkfast.models.arkasr.modeling import ArkasrForConditionalGeneration
from arkfast.models.arkasr.new import build_tokenizer, new_checkpoint

SAMPLING_RATE = 16_000
INITIALIZER_RANGE = 0.25
"""At Transformers' 0.02 a tiny model's greedy output is one token over and over, and every comparison of tokens is vacuous."""

TEXTS = (
    "zero one two three four five six seven eight nine",
    "the quick brown fox jumps over the lazy dog",
    "It costs 3.50, doesn't it? Yes: .NET and -5 °C.",
    "请转写这段音频。 東京は晴れ。 Привет мир",
)
"""What the tiny tokenizer is trained on."""


def tiny_checkpoint(path: str | Path, *, seed: int = 0, vocab_size: int = 400, tied: bool = True, **sizes: Any) -> Path:
    """Write a tiny random checkpoint in the official layout: model, tokenizer and processor files.

    Args:
        path: the folder.
        seed: of the weights.
        vocab_size: the tokenizer's largest size (its texts may fill less).
        tied: whether the head is the token table.
        **sizes: other arguments of :func:`new_checkpoint`.

    Returns:
        ``path``.
    """
    tokenizer = build_tokenizer(TEXTS * 8, vocab_size=vocab_size)
    return new_checkpoint(path, tokenizer, seed=seed, tie_word_embeddings=tied, **{**TINY, **sizes})


TINY: dict[str, Any] = {
    "initializer_range": INITIALIZER_RANGE,
    "d_model": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def tiny_config(**overrides: Any) -> ArkasrConfig:
    """A configuration of 97 ids: 0 to 89 text, 90 the audio placeholder, 95 the end, 96 padding. ``overrides`` are its fields."""
    encoder = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64}
    fields: dict[str, Any] = {
        **{name: value for name, value in TINY.items() if name not in encoder},
        "vocab_size": 97,
        "max_position_embeddings": 4096,
        "audio_token_id": 90,
        "eos_token_id": 95,
        "pad_token_id": 96,
        "bos_token_id": 96,
        "whisper_config": encoder,
    }
    return ArkasrConfig(**{**fields, **overrides})


def tiny_model(seed: int = 0, **overrides: Any) -> ArkasrForConditionalGeneration:
    """A random model of :func:`tiny_config`, in eval mode; the process's random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ArkasrForConditionalGeneration(tiny_config(**overrides)).eval()


@torch.no_grad()
def perturb(model: ArkasrForConditionalGeneration, seed: int = 0) -> ArkasrForConditionalGeneration:
    """Add N(0, 0.1²) to every bias and norm weight, which start at 0 and 1: a misplaced or forgotten one then changes the result."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def synthetic_speech(seconds: float, seed: int = 0) -> np.ndarray:
    """A vowel-like signal: harmonics of a gliding pitch under moving formants, in syllables, with a little noise.

    Args:
        seconds: its length.
        seed: of pitch, formants and noise.

    Returns:
        float32 [seconds · 16000] within ±0.5.
    """
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * SAMPLING_RATE)) / SAMPLING_RATE
    pitch = rng.uniform(90, 220) * (1 + 0.15 * np.sin(2 * np.pi * rng.uniform(0.3, 1.2) * time + rng.uniform(0, 6)))
    phase = 2 * np.pi * np.cumsum(pitch) / SAMPLING_RATE
    formants = [centre * (1 + 0.25 * np.sin(2 * np.pi * rng.uniform(1, 3) * time)) for centre in (500, 1500, 2500)]
    signal = np.zeros_like(time)
    for harmonic in range(1, 20):
        gain = sum(np.exp(-(((harmonic * pitch - formant) / 250) ** 2)) for formant in formants)
        signal += (gain + 0.02) * np.sin(harmonic * phase)
    signal *= np.abs(np.sin(np.pi * rng.uniform(2, 4) * time + rng.uniform(0, 3)))
    signal += 0.01 * rng.standard_normal(len(time))
    return (0.5 * signal / max(float(np.abs(signal).max()), 1e-9)).astype(np.float32) if len(time) else signal.astype(np.float32)


def write_wav(path: str | Path, samples: np.ndarray, sampling_rate: int = SAMPLING_RATE) -> Path:
    """Write float samples in ±1 as a 16-bit WAV file and return its path."""
    import soundfile

    soundfile.write(str(path), samples, sampling_rate, subtype="PCM_16")
    return Path(path)
