"""Transcripts and what was heard in, times of words and characters out."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from arkfast.align.head import FRAMES_PER_SECOND, CtcHead
from arkfast.align.units import BLANK, OTHER, spelling
from arkfast.align.viterbi import forced_alignment
from arkfast.align.words import word_spans
from arkfast.data.collate import pad_right
from arkfast.models.family import SpeechModel

MOST_TOGETHER = 16
"""Clips that are aligned at once."""


class Timed(NamedTuple):
    """A character and when it is said."""

    text: str
    start: float
    """Seconds from the clip's start."""
    end: float


class Word(NamedTuple):
    """A word and when it is said."""

    text: str
    start: float
    """Seconds from the clip's start."""
    end: float
    """Not after the next word's start, and not after the clip's end."""
    characters: tuple[Timed, ...]
    """Its letters and numbers."""


Aligned = list[Word] | str
"""The words of a transcript, or why they have no times."""


class Aligner:
    """Finds when the words of transcripts were said. A clip's times do not depend on the clips beside it but for rounding.

    The clips are encoded once more: the engine keeps no embeddings.

    Args:
        model: has been loaded, on its device.
        head: was trained on that model.
    """

    def __init__(self, model: SpeechModel, head: CtcHead) -> None:
        self._model, self._head = model, head

    @torch.no_grad()
    def __call__(self, features: Sequence[np.ndarray], texts: Sequence[str]) -> list[Aligned]:
        """The words of each transcript, in order; the words' texts are in Unicode's form NFC.

        Args:
            features: float32 [n_mels, T] of each clip.
            texts: what was said in each.
        """
        order = sorted(range(len(features)), key=lambda i: features[i].shape[1])
        found: dict[int, Aligned] = {}
        for at in range(0, len(order), MOST_TOGETHER):
            some = order[at : at + MOST_TOGETHER]
            found |= zip(some, self._together([features[i] for i in some], [texts[i] for i in some]), strict=True)
        return [found[i] for i in range(len(features))]

    def _together(self, features: list[np.ndarray], texts: list[str]) -> list[Aligned]:
        device = self._model.lm_head.weight.device
        texts = [unicodedata.normalize("NFC", text) for text in texts]
        frames = [feature.shape[1] for feature in features]
        mel = torch.zeros(len(features), features[0].shape[0], max(frames))
        for row, feature in zip(mel, features, strict=True):
            row[:, : feature.shape[1]] = torch.from_numpy(feature)
        embeddings, counts = self._model.get_audio_features(mel.to(device), torch.tensor(frames, device=device), frames=frames)
        log_probabilities, steps = self._head(embeddings, counts)
        scores = self._head.scores(log_probabilities)
        scores[..., OTHER] = torch.cat([scores[..., :BLANK], scores[..., BLANK + 1 :]], -1).amax(-1)
        units, lens = pad_right([self._head.units.ids(text) for text in texts])
        paths = forced_alignment(scores, steps, units.to(device), lens.to(device))
        first, last = paths.first.cpu().numpy(), paths.last.cpu().numpy()
        possible, heard = paths.possible.tolist(), steps.tolist()
        found: list[Aligned] = []
        for i, text in enumerate(texts):
            if possible[i] or not lens[i]:
                found.append(self._words(text, first[i], last[i], frames[i] / FRAMES_PER_SECOND))
            else:
                found.append(
                    f"the transcript has {int(lens[i])} letters and numbers, which do not fit into the {heard[i]} steps of "
                    f"{self._head.config.seconds_per_step:g} s that the clip has"
                )
        return found

    def _words(self, text: str, first: np.ndarray, last: np.ndarray, seconds: float) -> list[Word]:
        """The words of a text whose units were spoken from the steps ``first`` to the steps ``last``."""
        step = self._head.config.seconds_per_step
        times: dict[int, tuple[float, float]] = {}
        for unit, (_, place) in enumerate(spelling(text)):
            begin = times[place][0] if place in times else min(round(float(first[unit]) * step, 3), seconds)
            times[place] = begin, min(round(float(last[unit] + 1) * step, 3), seconds)
        words = []
        for begin, end in word_spans(text):
            characters = tuple(Timed(text[place], *times[place]) for place in range(begin, end) if place in times)
            if characters:  # a letter that folds into nothing is not said
                words.append(Word(text[begin:end], characters[0].start, characters[-1].end, characters))
        return words
