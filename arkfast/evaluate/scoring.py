"""From rows to scores: each text normalised, each row counted in its language's unit, and the counts put beside the rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from arkfast.evaluate.rows import Fields, Item, read_item
from arkfast.evaluate.scores import Scores
from arkfast.infer.result import CUT_SHORT
from arkfast.metrics import (
    UNITS,
    ErrorCounts,
    Normalizer,
    Unit,
    count_errors,
    get_normalizer,
    tokenize,
    unit_of_texts,
    without_word_spaces,
)
from arkfast.records import InputError, JsonObject, JsonRow

UnitChoice = Literal["auto", "word", "char", "mixed"]


def evaluate_rows(
    rows: Iterable[JsonRow],
    *,
    normalizer: str | Normalizer = "basic",
    unit: UnitChoice = "auto",
    text_field: str = "text",
    language: str | None = None,
    group_by: str | None = None,
) -> Scores:
    """Scores of transcription rows.

    Args:
        rows: each with a transcript in ``pred_text`` (None, missing, or ``status`` ``error``: the row failed), its reference in
            ``text_field``, and its ``language``.
        normalizer: applied to references and transcripts alike (``arkfast.metrics.get_normalizer``).
        unit: ``word``, ``char`` or ``mixed``; ``auto`` takes each language's convention, and the script of all references for rows without
            a language or with one that is not known (``arkfast.metrics.unit_of_texts``).
        text_field: the reference's field.
        language: of rows that carry none.
        group_by: field whose equal values (session, speaker) the bootstrap resamples together.

    Raises:
        InputError: an unknown normaliser or unit, a missing normaliser package, or a field that is not of its kind.
    """
    return score_rows(rows, normalizer=normalizer, unit=unit, fields=Fields(text=text_field, language=language, group_by=group_by))[0]


def score_rows(
    rows: Iterable[JsonRow],
    *,
    normalizer: str | Normalizer = "basic",
    unit: UnitChoice = "auto",
    fields: Fields | None = None,
    places: Sequence[str] | None = None,
) -> tuple[Scores, list[JsonObject]]:
    """``evaluate_rows``, and each row in the same order with what it was scored by (the fields stand in ``summary``).

    Args:
        rows, normalizer, unit: as there.
        fields: where rows keep what is scored.
        places: what errors call each row, as ``file:line``; by default its id or its number, from 1.
    """
    rules = get_normalizer(normalizer) if isinstance(normalizer, str) else normalizer
    if unit not in ("auto", *UNITS):
        raise InputError(f"unknown unit '{unit}': choose one of auto, {', '.join(UNITS)}")
    given = list(rows)
    names = places if places is not None else [f"row {row.get('id', i)}" for i, row in enumerate(given, start=1)]
    items = [read_item(row, name, fields or Fields()) for row, name in zip(given, names, strict=True)]
    table = _Table(given, items, rules, unit)
    return table.scores(), [table.row(i) for i in range(len(given))]


class _Table:
    """All rows, their normalised texts, units and counts, by row number; rows that are not scored have counts of 0."""

    def __init__(self, rows: list[JsonRow], items: list[Item], normalizer: Normalizer, unit: UnitChoice) -> None:
        self.rows, self.items, self.normalizer, self.choice = rows, items, normalizer, unit
        self.references = _normalised(normalizer, [item.reference for item in items], items)
        self.hypotheses = _normalised(normalizer, [item.hypothesis for item in items], items)
        self.groups: dict[tuple[str | None, str | None], list[int]] = {}
        for i, item in enumerate(items):
            self.groups.setdefault(item.group, []).append(i)
        self.natural: list[Unit] = ["word"] * len(items)
        self.rules: dict[tuple[str | None, str | None], str] = {}
        for group, members in self.groups.items():
            natural, self.rules[group] = self._convention(group[1], members)
            for i in members:
                self.natural[i] = natural
        self.units: list[Unit] = self.natural if unit == "auto" else [unit] * len(items)
        self.is_scored = np.array([item.outcome == "scored" for item in items], dtype=bool)
        self.chars = self._count("char", self.is_scored)
        spaced = np.array([natural == "word" for natural in self.natural], dtype=bool)
        # mixed units are words wherever neither text has a character of a script without word spaces
        both = np.array(
            [without_word_spaces(r or "") or without_word_spaces(h or "") for r, h in zip(self.references, self.hypotheses, strict=True)],
            dtype=bool,
        )
        words, mixed = self._count("word", self.is_scored & (spaced | ~both)), self._count("mixed", self.is_scored & both)
        self.mixed = mixed.where(both, words)
        self.words = words.where(spaced, self.mixed)
        by_unit = {"word": self.words, "char": self.chars, "mixed": self.mixed}
        self.counts = self.words
        for name in UNITS:
            self.counts = by_unit[name].where(np.array([u == name for u in self.units], dtype=bool), self.counts)

    def _convention(self, language: str | None, members: list[int]) -> tuple[Unit, str]:
        """The unit of a group's language, and the sentence that says why."""
        natural, rule = unit_of_texts(language, (self.references[i] or "" for i in members))
        return natural, rule if self.choice == "auto" else "--unit"

    def _count(self, unit: Unit, mask: np.ndarray) -> ErrorCounts:
        places = np.flatnonzero(mask)
        found = count_errors([self.references[i] or "" for i in places], [self.hypotheses[i] or "" for i in places], unit=unit)
        out = {name: np.zeros(len(self.items), dtype=np.int64) for name in ("substitutions", "deletions", "insertions", "hits")}
        for name, values in out.items():
            values[places] = getattr(found, name)
        return ErrorCounts(**out)

    def scores(self) -> Scores:
        groups = tuple(self._scores(members, *group) for group, members in self.groups.items())
        return self._scores(list(range(len(self.items))), None, None, groups)

    def _scores(self, members: list[int], preset: str | None, language: str | None, groups: tuple[Scores, ...] = ()) -> Scores:
        items, scored = [self.items[i] for i in members], [i for i in members if self.is_scored[i]]
        units = {self.units[i] for i in members} or {"word"}
        rules = {self.rules[self.items[i].group] for i in members}
        index = np.array(scored, dtype=np.int64)
        failed = [i for i in members if self.items[i].outcome == "failed"]
        return Scores(
            words=self.words[index],
            chars=self.chars[index],
            mixed=self.mixed[index],
            counts=self.counts[index],
            unit=units.pop() if len(units) == 1 else "joint",
            unit_rule=rules.pop() if len(rules) == 1 else "each language's own",
            clusters=None if all(item.cluster is None for item in items) else tuple(self.items[i].cluster for i in scored),
            normalizer=self.normalizer,
            preset=preset,
            language=language,
            utterances=len(members),
            failed=len(failed),
            without_reference=sum(item.outcome == "no_reference" for item in items),
            truncated=sum(self.rows[i].get("finish_reason") in CUT_SHORT for i in scored),
            failed_units=sum(len(tokenize(self.references[i] or "", self.units[i])) for i in failed),
            groups=groups,
        )

    def row(self, i: int) -> JsonObject:
        """Row ``i`` as the output has it."""
        item, reference, unit, scored = self.items[i], self.references[i], self.units[i], bool(self.is_scored[i])
        counted: JsonObject = {}
        rates: tuple[tuple[str, ErrorCounts, str, Unit], ...] = (
            ("wer_errors", self.words, "ref_words", "word" if self.natural[i] == "word" else "mixed"),
            ("cer_errors", self.chars, "ref_chars", "char"),
            ("mer_errors", self.mixed, "ref_mixed", "mixed"),
            ("errors", self.counts, "ref_units", unit),
        )
        for name, counts, label, natural in rates:
            s, d, n, h = (int(values[i]) for values in (counts.substitutions, counts.deletions, counts.insertions, counts.hits))
            counted[name] = s + d + n if scored else None
            counted[label] = h + s + d if scored else None if reference is None else len(tokenize(reference, natural))
        parts = dict(zip(("substitutions", "deletions", "insertions", "hits"), (s, d, n, h) if scored else (None,) * 4, strict=True))
        return {
            **self.rows[i],
            "preset": item.preset,
            "language": item.language,
            "outcome": item.outcome,
            "ref_text": item.reference,
            "ref_text_clean": reference,
            "pred_text_clean": self.hypotheses[i],
            **counted,
            "unit": unit,
            **parts,
        }


def _normalised(normalizer: Normalizer, texts: list[str | None], items: list[Item]) -> list[str | None]:
    places = [i for i, text in enumerate(texts) if text is not None]
    clean = normalizer.apply([texts[i] or "" for i in places], [items[i].language for i in places])
    if len(clean) != len(places):
        raise InputError(f"normalizer '{normalizer.name}' gave {len(clean)} texts for {len(places)}; its counts must be equal")
    out: list[str | None] = [None] * len(texts)
    for i, text in zip(places, clean, strict=True):
        out[i] = text
    return out
