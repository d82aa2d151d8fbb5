"""Hotwords as users write them, made into phrases of ids."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from arkfast.files import naming
from arkfast.records import AllowedTokens, InputError, TokenizerLike, Utterance

if TYPE_CHECKING:
    from arkfast.engine import Phrases

FIELD = "hotwords"
"""Field of a manifest's row with its own hotwords: a list of phrases, or an object of phrases and weights."""
WEIGHT = 2.0
"""What a hotword adds to the score of each of its ids where it has no weight of its own: e² times the odds."""
MOST_KEPT = 256
"""Sets of hotwords that are kept as ids for the rows that follow."""


def read_hotwords(path: Path) -> dict[str, float]:
    """The phrases of a file with their weights: one a line, where it has one with a tab and its weight behind it; blank lines are skipped.

    Raises:
        InputError: the file cannot be read, holds no phrase, or a weight that is no number above 0.
    """
    with naming(path):
        text = path.read_bytes()
    try:
        lines = text.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is no UTF-8 text ({error}); convert it") from error
    found: dict[str, float] = {}
    for number, line in enumerate(lines, start=1):
        phrase, tab, weight = line.rstrip().partition("\t")
        if phrase.strip():
            found[phrase.strip()] = _weight(weight.strip() if tab else WEIGHT, f"{path}:{number}")
        elif line.strip():
            raise InputError(f"{path}:{number}: a weight without a phrase; write the phrase, a tab, and the weight")
    if not found:
        raise InputError(f"{path}: holds no hotword; write one phrase a line")
    return found


def _weight(value: object, where: str) -> float:
    try:
        number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else math.nan
    except ValueError:
        number = math.nan
    if not 0 < number <= 1e4:
        raise InputError(f"{where}: a hotword's weight must be a number above 0 and at most 10,000, got {value!r}")
    return number


class Hotwords:
    """Gives each utterance its phrases.

    Args:
        common: hotwords of every utterance, with their weights.
        tokenizer: makes ids of them.
        allowed: ids that a transcript may hold.

    Raises:
        InputError: a hotword that no transcript can hold.
    """

    def __init__(self, common: Mapping[str, float], *, tokenizer: TokenizerLike, allowed: AllowedTokens) -> None:
        self._common, self._tokenizer, self._allowed = dict(common), tokenizer, allowed
        self._kept: dict[tuple[tuple[str, float], ...], Phrases] = {}
        self._of(self._common, "hotwords")

    def phrases(self, utterance: Utterance) -> Phrases | None:
        """The utterance's phrases: the common ones and its own; None where there are none.

        Raises:
            InputError: its own are no list of phrases and no object of phrases and weights, or no transcript can hold one.
        """
        own = utterance.extra.get(FIELD)
        if not own and own is not False and own != 0:
            return self._of(self._common, "hotwords")
        where = f"{utterance.name}: {FIELD}"
        if isinstance(own, (list, tuple)) and all(isinstance(phrase, str) and phrase.strip() for phrase in own):
            given = {phrase.strip(): WEIGHT for phrase in own}
        elif isinstance(own, Mapping) and all(isinstance(phrase, str) and phrase.strip() for phrase in own):
            given = {phrase.strip(): _weight(weight, where) for phrase, weight in own.items()}
        else:
            raise InputError(f"{where} must be a list of phrases, or an object of phrases and their weights, got {own!r}")
        return self._of({**self._common, **given}, where)

    def _of(self, weights: Mapping[str, float], where: str) -> Phrases | None:
        if not weights:
            return None
        key = tuple(sorted(weights.items()))
        if key not in self._kept:
            from arkfast.engine import Phrases

            if len(self._kept) >= MOST_KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = Phrases([(ids, weight) for phrase, weight in key for ids in self._ids(phrase, where)])
        return self._kept[key]

    def _ids(self, phrase: str, where: str) -> list[tuple[int, ...]]:
        """The phrase as a transcript begins with it, and as it stands behind a blank."""
        found = [tuple(self._tokenizer.encode(text, add_special_tokens=False)) for text in (phrase, f" {phrase}")]
        for ids in found:
            if not ids or any(id_ not in self._allowed or id_ in self._allowed.stop_ids for id_ in ids):
                raise InputError(f"{where}: no transcript can hold '{phrase}', which the model's tokenizer takes for special tokens")
        return list(dict.fromkeys(found))
