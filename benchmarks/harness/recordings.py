"""Checkpoints of random weights and recordings of every length on disk, as a command finds them: what is timed from file to text, and over
several processes.

A checkpoint has the sizes and the vocabulary of a published one. Recordings are distinct stretches of one long synthetic signal.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from shapes import MODELS
from tokenizers import AddedToken
from transformers import Qwen2Tokenizer, WhisperFeatureExtractor

from arkfast.models.arkasr import prompt
from arkfast.models.arkasr.new import ADDED_TOKENS, END_OF_TEXT, build_tokenizer
from arkfast.models.arkasr.processing import ArkasrProcessor
from arkfast.testing import SAMPLING_RATE, TEXTS, synthetic_speech
from harness import speech

BASE = {True: 1_000, False: 400}
"""Ids of the tokenizer that is trained, for a large vocabulary and for a toy; the rest of the vocabulary are words that no text holds."""
SIGNAL_SECONDS = 60.0
FORMATS = {"wav": ("WAV", "PCM_16"), "flac": ("FLAC", "PCM_16"), "mp3": ("MP3", "MPEG_LAYER_III")}
"""Codec → libsndfile's names of format and encoding."""


def tokenizer(H: int) -> Qwen2Tokenizer:
    """A tokenizer with as many ids below the added tokens as the vocabulary of a model has for text."""
    text = MODELS[H].text
    small = json.loads(build_tokenizer(TEXTS * 8, vocab_size=BASE[text > 10_000]).backend_tokenizer.to_str())["model"]
    vocab: dict[str, int] = small["vocab"]
    vocab |= {f"unused{i}": i for i in range(len(vocab), text)}
    merges = [tuple(one.split(" ")) if isinstance(one, str) else tuple(one) for one in small["merges"]]
    made = Qwen2Tokenizer(vocab=vocab, merges=merges, unk_token=END_OF_TEXT, bos_token=None, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT)
    made.add_tokens([AddedToken(token, special=True, normalized=False) for token in ADDED_TOKENS], special_tokens=True)
    made.eos_token = prompt.END_OF_TURN
    return made


def checkpoint(folder: Path, H: int, device: torch.device, *, noise: float = 0.0) -> Path:
    """Writes the random model of a decoder of width ``H`` with a tokenizer, in the model's own type; returns ``folder``.

    Args:
        noise: standard deviation of what is added to the last norm's weights, so that two models have other opinions.
    """
    model, words = speech.model(H, device), tokenizer(H)
    before, norm = model.config.audio_token_id, model.model.norm.weight
    kept = norm.detach().clone()
    model.config.audio_token_id = words.get_vocab()[prompt.AUDIO]
    try:
        with torch.no_grad():
            norm += noise * torch.randn(len(norm), generator=torch.Generator().manual_seed(1)).to(norm)
        model.save_pretrained(folder)
    finally:
        model.config.audio_token_id = before
        norm.detach().copy_(kept)
    ArkasrProcessor(WhisperFeatureExtractor(feature_size=speech.N_MELS), words).save_pretrained(folder)
    return folder


def signals(seconds: Sequence[float], seed: int = 0) -> list[np.ndarray]:
    """Distinct clips of such lengths, float32 in ±1 at 16 kHz."""
    rng, whole = np.random.default_rng(seed), synthetic_speech(SIGNAL_SECONDS, seed=seed)
    found = []
    for one in seconds:
        n = round(one * SAMPLING_RATE)
        start = int(rng.integers(0, len(whole) - n))
        found.append((rng.uniform(0.5, 1.0) * whole[start : start + n]).astype(np.float32))
    return found


def written(folder: Path, clips: Sequence[np.ndarray], codec: str) -> list[Path]:
    """The clips as files, none of whose bytes stay in the page cache.

    Raises:
        ImportError: soundfile is not installed.
    """
    import soundfile

    form, encoding = FORMATS[codec]
    folder.mkdir(parents=True, exist_ok=True)

    def write(number: int) -> Path:
        path = folder / f"{number}.{codec}"
        soundfile.write(str(path), clips[number], SAMPLING_RATE, format=form, subtype=encoding)
        return path

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        paths = list(pool.map(write, range(len(clips))))
    forget(paths)
    return paths


def forget(paths: Sequence[Path]) -> None:
    """Have the system drop the files' pages, so that reading them reads the disk."""
    os.sync()  # pages that are not written yet would stay
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(path: Path) -> np.ndarray:
    """A recording's samples as the original reads them.

    Raises:
        ImportError: soundfile is not installed.
    """
    import soundfile

    samples: Any = soundfile.read(str(path), dtype="float32")[0]
    found: np.ndarray = samples
    return found
