"""Texts and recordings of a corpus, a shard of clips at a time.

A text belongs to exactly one split, which its hash decides, so splits never share a text, whatever their sizes.
"""

from __future__ import annotations

import functools
import hashlib
import os
import random
import wave
from pathlib import Path

import numpy as np

from arkfast.quickstart import noises
from arkfast.quickstart.recipe import SPLITS, CorpusRecipe
from arkfast.quickstart.speech import SAMPLE_RATE, Line, Synthesizer
from arkfast.records import InputError, JsonObject

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
"""Every word that is spoken."""

_SPEECH_RMS, _LEVEL_DB = 0.05, 6.0  # −26 dB of full scale, varied by ±6 dB a clip
_TEXT_SHARES = {"train": 8, "pool": 4, "dev": 2, "test": 2}  # sixteenths of all texts that belong to each split
_DRAWS = 10_000  # after so many the split has no text of that length left; a draw hits the smallest share once in eight


def draw_texts(recipe: CorpusRecipe, split: str) -> list[str]:
    """The texts of a split's clips, in order."""
    draw = random.Random(f"{recipe.seed} {split} texts")
    others = (1.0 - recipe.nine_share) / (len(DIGITS) - 1)
    weights = [recipe.nine_share if digit == "nine" else others for digit in DIGITS]
    texts = []
    for _ in range(getattr(recipe, split)):
        length = draw.randint(*recipe.digits)
        for _ in range(_DRAWS):
            text = " ".join(draw.choices(DIGITS, weights, k=length))
            if _owner(text, recipe.seed) == split:
                break
        else:
            raise InputError(
                f"digits: no string of {length} digits is left for {split}, whose texts no other split may use; give longer ones"
            )
        texts.append(text)
    return texts


def _owner(text: str, seed: int) -> str:
    """The split that a text belongs to, whatever the sizes of the splits."""
    slot = int.from_bytes(hashlib.blake2b(f"{seed} {text}".encode(), digest_size=8).digest(), "little") % sum(_TEXT_SHARES.values())
    for split, share in _TEXT_SHARES.items():
        if slot < share:
            return split
        slot -= share
    raise AssertionError("shares do not cover every slot")


def write_shard(folder: Path, recipe: CorpusRecipe, split: str, start: int, texts: list[str]) -> list[JsonObject]:
    """Speak clips ``start`` … of a split, write their files and return their manifest rows; the result depends on the arguments alone."""
    synthesizer = Synthesizer()
    draws = [random.Random(f"{recipe.seed} {split} {start + i}") for i in range(len(texts))]
    accents, variants = recipe.voices(split)
    lines = [
        Line(text, f"{draw.choice(accents)}+{draw.choice(variants)}", draw.randint(*recipe.rates), draw.randint(*recipe.pitches))
        for text, draw in zip(texts, draws, strict=True)
    ]
    rows = []
    for i, (line, speech) in enumerate(zip(lines, synthesizer.speak_lines(lines), strict=True)):
        kind = draws[i].choice(recipe.noises(split))
        snr_db = round(draws[i].uniform(*recipe.snr_db), 2)
        level = _SPEECH_RMS * 10 ** (draws[i].uniform(-_LEVEL_DB, _LEVEL_DB) / 20)
        bed = _bed(kind, recipe.seed, split)
        at = draws[i].randrange(len(bed))
        noise = np.take(bed, np.arange(at, at + len(speech)), mode="wrap")
        clip = _mix(speech, noise, level, snr_db)
        name = f"{split}-{start + i:06d}"
        path = f"audio/{split}/{name}.wav"
        _write_wav(folder / path, clip)
        rows.append(
            {
                "id": name,
                "audio": path,
                "text": line.text,
                "language": "en",
                "task": "asr",
                "begin_time": -1,
                "end_time": -1,
                "duration": len(clip) / SAMPLE_RATE,
                "voice": line.voice,
                "rate": line.rate,
                "pitch": line.pitch,
                "noise": kind,
                "snr_db": snr_db,
            }
        )
    return rows


@functools.lru_cache(maxsize=len(noises.KINDS) * len(SPLITS))
def _bed(kind: str, seed: int, split: str) -> np.ndarray:
    """A minute of noise from which a split's clips take theirs; each split has its own, so no stretch of it is heard in two."""
    return noises.bed(kind, f"{seed} {split}")


def _mix(speech: np.ndarray, noise: np.ndarray, level: float, snr_db: float) -> np.ndarray:
    """Speech at root mean square ``level`` plus noise ``snr_db`` below it, float32 [n] both → int16 [n]; clipped, never wrapped."""
    speech = speech * (level / np.sqrt(np.mean(speech**2)))
    noise = noise * (level * 10 ** (-snr_db / 20) / np.sqrt(np.mean(noise**2)))
    return np.clip(np.rint((speech + noise) * 2**15), -(2**15), 2**15 - 1).astype("<i2")


def _write_wav(path: Path, samples: np.ndarray) -> None:
    with wave.open(os.fspath(path), "wb") as file:
        file.setparams((1, 2, SAMPLE_RATE, len(samples), "NONE", ""))
        file.writeframes(samples.tobytes())
