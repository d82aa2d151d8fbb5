"""Features kept in memory, for sets small enough to be seen many times.

Features of a clip never change during a run (``extract`` is deterministic), so the second epoch need not decode again. The cache keeps the
first clips until its budget is full: with a shuffled order every clip is as likely as the next, and nothing is ever thrown out for another.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from arkfast.records import Utterance

if TYPE_CHECKING:
    import numpy as np

MIB = 1 << 20


class FeatureCache:
    """``extract`` with a memory.

    Args:
        extract: utterance → float32 [n_mels, T].
        megabytes: budget in MiB; 0 keeps nothing.
    """

    def __init__(self, extract: Callable[[Utterance], np.ndarray], megabytes: int) -> None:
        self._extract, self._left = extract, megabytes * MIB
        self._kept: dict[str, np.ndarray] = {}
        self._lock = threading.Lock()

    def __call__(self, utterance: Utterance) -> np.ndarray:
        """The utterance's features; callers must not write to them. Keyed by id, which a manifest holds once."""
        features = self._kept.get(utterance.id)
        if features is None:
            features = self._extract(utterance)
            with self._lock:
                if features.nbytes <= self._left and utterance.id not in self._kept:
                    # A view of a padded batch would keep the whole batch alive.
                    self._kept[utterance.id] = features = features.copy() if features.base is not None else features
                    self._left -= features.nbytes
        return features
