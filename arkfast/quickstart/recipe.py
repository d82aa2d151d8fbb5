"""What a corpus is made of: sizes, texts, voices, noises. Two equal recipes make equal corpora; choices that contradict are refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from arkfast.quickstart import noises
from arkfast.quickstart.speech import PITCH_LIMITS, RATE_LIMITS
from arkfast.records import InputError

SPLITS = ("train", "pool", "dev", "test")
"""The splits that have recordings of their own; ``labels`` is a part of ``train``."""
FORMAT = 1
"""Raised whenever the same recipe would give other files, so that an older corpus is not taken for a new one."""


@dataclass(frozen=True, kw_only=True)
class CorpusRecipe:
    """Everything that decides what a corpus holds; the same recipe gives the same bytes on the same machine."""

    train: int = 4000
    """Clips with transcripts, for the teacher."""
    labels: int = 500
    """How many of ``train`` the student may learn from; the first ones, which are as random as any."""
    pool: int = 2000
    """Clips for distillation; their transcripts stand in the manifest but neither OPD nor pseudo-labelling reads them."""
    dev: int = 300
    """Clips with new texts, but voices and noises as in training."""
    test: int = 300
    """Clips with new texts, voices and noises."""
    digits: tuple[int, int] = (2, 6)
    """Fewest and most digits in an utterance, all lengths equally likely."""
    nine_share: float = 0.1
    """Probability that a digit is "nine", the others sharing the rest; repeats are hard for autoregressive models."""
    seed: int = 0
    """Seed of texts, voices, levels and noises."""
    snr_db: tuple[float, float] = (5.0, 25.0)
    """Range of the signal-to-noise ratio in dB, uniform and the same in every split."""
    rates: tuple[int, int] = (150, 230)
    """Range of speaking rates in words a minute."""
    pitches: tuple[int, int] = (25, 75)
    """Range of espeak-ng's pitch scale."""
    train_accents: tuple[str, ...] = ("en-us", "en-gb", "en-gb-x-rp", "en-029", "en-gb-x-gbclan", "en-us-nyc", "en-gb-scotland")
    """Accents of every split but the test set."""
    train_variants: tuple[str, ...] = (
        *("m1", "m2", "m3", "m4", "m5", "m7", "f1", "f2", "f4", "f5", "adam", "Alex", "Alicia", "Andrea", "anika", "Annie", "aunty"),
        *("boris", "caleb", "Denis", "Diogo", "ed", "edward", "Gene", "grandpa", "gustave", "Henrique", "iven", "iven3", "Jacky", "john"),
        *("kaukovalta", "klatt", "klatt2", "klatt3", "Lee", "linda", "marcelo", "Marco", "Mario", "max", "michel", "Mike", "Nguyen"),
        *("norbert", "pablo", "paul", "pedro", "quincy", "rob", "robert", "sandro", "shelby", "steph", "steph2", "travis", "Tweaky"),
        *("victor", "zac"),
    )
    """Voices of every split but the test set; how well a model hears new voices depends mostly on their number."""
    test_accents: tuple[str, ...] = ("en-gb-scotland", "en-gb-x-gbcwmd", "en-us", "en-gb")
    """Accents of the test set; some are also trained on, for it is the variants that are held out."""
    test_variants: tuple[str, ...] = ("m6", "m8", "f3", "Andy", "belinda", "david", "Hugo", "Michael")
    """Voices of the test set; none may be a training variant."""
    train_noises: tuple[str, ...] = ("white", "pink", "brown")
    """Noises of every split but the test set."""
    test_noises: tuple[str, ...] = ("babble", "hum")
    """Noises of the test set; none may be a training noise."""

    def __post_init__(self) -> None:
        for name in ("train", "labels", "pool", "dev", "test"):
            _require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; give at least one clip")
        _require(self.labels <= self.train, f"labels is {self.labels}, but they are taken from the {self.train} clips of train; give fewer")
        _require(0.0 <= self.nine_share <= 1.0, f"nine_share is {self.nine_share}; give a probability")
        for name, (low, high) in (("digits", (1, 1000)), ("snr_db", (-60, 100)), ("rates", RATE_LIMITS), ("pitches", PITCH_LIMITS)):
            first, last = getattr(self, name)
            _require(low <= first <= last <= high, f"{name} is {(first, last)}; give two ascending values within {low} and {high}")
        for name in ("train_accents", "train_variants", "test_accents", "test_variants", "train_noises", "test_noises"):
            _require(len(getattr(self, name)) > 0, f"{name} is empty; give at least one")
        for name in ("variants", "noises"):
            shared = sorted(set(getattr(self, f"train_{name}")) & set(getattr(self, f"test_{name}")))
            _require(
                not shared, f"test_{name} must be new to the model, but train_{name} holds {', '.join(shared)} too; drop them from one"
            )
        unknown = sorted(set(self.train_noises + self.test_noises) - set(noises.KINDS))
        _require(not unknown, f"no noise is called {', '.join(unknown)}; there are {', '.join(noises.KINDS)}")

    @classmethod
    def long(cls, **fields: Any) -> CorpusRecipe:
        """Nine to sixteen digits, 30 % of them "nine", unless ``fields`` say otherwise: in long answers one slip may lead to the next."""
        return cls(**{"digits": (9, 16), "nine_share": 0.3, **fields})

    @property
    def digest(self) -> str:
        """Hexadecimal SHA-256 of the recipe and of the format of the files."""
        return hashlib.sha256(json.dumps([FORMAT, dataclasses.asdict(self)], sort_keys=True).encode()).hexdigest()

    def voices(self, split: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The accents and the variants of a split."""
        return (self.test_accents, self.test_variants) if split == "test" else (self.train_accents, self.train_variants)

    def noises(self, split: str) -> tuple[str, ...]:
        """The noises of a split."""
        return self.test_noises if split == "test" else self.train_noises


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(f"corpus recipe: {message}")
