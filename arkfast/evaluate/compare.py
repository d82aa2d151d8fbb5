"""Two systems on the same rows: joined by id, scored alike, and tested as pairs.

Rows that do not match are an error and are never dropped: only rows that one of the systems failed on are left out, and they are counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from arkfast.evaluate.rows import Fields
from arkfast.evaluate.scores import Scores
from arkfast.evaluate.scoring import UnitChoice, score_rows
from arkfast.metrics import Difference, ErrorCounts, canonical, paired_test
from arkfast.records import InputError, JsonObject, JsonRow

_NAMED = 3  # ids that an error shows
Group = tuple[str | None, str | None]
"""(preset, language); (None, None) is all rows together."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """This system minus another on the rows that both have scored; negative where this one makes fewer errors."""

    other: str
    """The other system's rows, as a path."""
    metric: str
    """``wer``, ``cer``, ``mer`` or ``joint``."""
    rows: int
    """Rows scored by both."""
    left_out: int
    """Rows that one of the two failed on, or that have no reference."""
    total: Difference
    """Over all rows."""
    groups: Mapping[Group, Difference]
    """For each (preset, language) with reference units, where there are several."""
    other_scores: Scores
    """The other system's own scores, over all its rows."""
    rates: Mapping[Group, tuple[float, float]]
    """(this system's rate, the other's) on the rows that both have scored: of all rows together, and of each group."""
    other_rows: Sequence[JsonRow]
    """The other system's rows in the order of ours, scored as ours were."""

    def to_dict(self) -> JsonObject:
        """As ``summary.json`` has it; differences are fractions."""
        return {
            "other": self.other,
            "metric": self.metric,
            "rows": self.rows,
            "left_out": self.left_out,
            "rate_of_other": self.other_scores.rate if self.other_scores.counts.reference.any() else None,
            **_fields(self.total, self.rates[None, None]),
            "groups": [
                {"preset": preset, "language": language, **_fields(d, self.rates[preset, language])}
                for (preset, language), d in self.groups.items()
            ],
        }

    def line(self) -> str:
        """The comparison as a user reads it, in percentage points."""
        d = self.total
        name = "J/WER" if self.metric == "joint" else self.metric.upper()
        left_out = f", {self.left_out} left out" if self.left_out else ""
        return f"{name} {points(d)} against {self.other} ({self.rows} rows{left_out}), p = {d.p_value:.4f}"


def compare(
    rows: Sequence[JsonRow],
    others: Sequence[JsonRow],
    *,
    other: str,
    scores: Scores,
    fields: Fields,
    unit: UnitChoice,
    places: Sequence[str] | None = None,
    other_places: Sequence[str] | None = None,
) -> Comparison:
    """Score another system's transcripts as ours were scored, and test the two as pairs.

    Args:
        rows: our rows as ``score_rows`` gave them.
        others: the other system's rows in any order, with the same ids; a reference that they carry must agree with ours.
        other: how errors and results call them.
        scores: our scores; their normaliser is applied to the others too.
        fields: as ours were read.
        unit: as ours were scored.
        places, other_places: what errors call each of our rows and each of theirs, as ``file:line``; by default its number, from 1.

    Raises:
        InputError: a row without id, an id twice, ids that only one side has, references that differ, or no reference units in common.
    """
    theirs_by_id = _by_id(others, _names(others, other, other_places))
    joined, names = _joined(rows, _by_id(rows, _names(rows, "the input", places)), theirs_by_id, other, fields)
    other_scores, scored = score_rows(joined, normalizer=scores.normalizer, unit=unit, fields=fields, places=names)
    for ours, theirs, name in zip(rows, scored, names, strict=True):
        if ours["ref_text_clean"] != theirs["ref_text_clean"]:
            raise InputError(
                f"{name}: id '{ours['id']}' has the reference {theirs['ref_text']!r}, the input has {ours['ref_text']!r}; compare systems "
                "on the same references"
            )
    both = [i for i, (ours, theirs) in enumerate(zip(rows, scored, strict=True)) if _is_scored(ours) and _is_scored(theirs)]
    members: dict[Group, list[int]] = {}
    for i in both:
        members.setdefault((rows[i]["preset"], canonical(rows[i]["language"])), []).append(i)

    def test(of: Sequence[int]) -> Difference:
        return _test([rows[i] for i in of], [scored[i] for i in of], fields.group_by)

    def rates(of: Sequence[int]) -> tuple[float, float]:
        ours, theirs = (sum(side[i]["errors"] for i in of) / sum(side[i]["ref_units"] for i in of) for side in (rows, scored))
        return ours, theirs

    if not any(rows[i]["ref_units"] for i in both):
        raise InputError(f"{other}: no row that both systems have scored has a reference to compare on")
    groups = {group: of for group, of in members.items() if any(rows[i]["ref_units"] for i in of)}
    return Comparison(
        other=other,
        metric=scores.metric,
        rows=len(both),
        left_out=len(rows) - len(both),
        total=test(both),
        groups={group: test(of) for group, of in groups.items()} if len(scores.groups) > 1 else {},
        other_scores=other_scores,
        rates={(None, None): rates(both)} | {group: rates(of) for group, of in groups.items() if len(scores.groups) > 1},
        other_rows=scored,
    )


def points(difference: Difference) -> str:
    """A difference with its interval in percentage points."""
    return f"{100 * difference.value:+.2f} points (95 % interval {100 * difference.low:+.2f} to {100 * difference.high:+.2f})"


def _joined(
    rows: Sequence[JsonRow],
    ours: Mapping[str, tuple[JsonRow, str]],
    theirs: Mapping[str, tuple[JsonRow, str]],
    other: str,
    fields: Fields,
) -> tuple[list[JsonObject], list[str]]:
    """The others' rows in our order and what errors call them, with our language, preset and cluster, so that one rule scores both."""
    for one, two, where in ((ours, theirs, other), (theirs, ours, "the input")):
        missing = [name for name in one if name not in two]
        if missing:
            more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
            raise InputError(f"{where}: has no row with id {', '.join(missing[:_NAMED])}{more}; compare systems on the same rows")
    out, names = [], []
    for row in rows:
        their_row, name = theirs[_id(row)]
        found = dict(their_row)
        found |= {name: row[name] for name in ("language", "preset", fields.group_by) if name is not None and name in row}
        if found.get(fields.text, found.get("ref_text")) is None:
            found[fields.text] = row["ref_text"]
        out.append(found)
        names.append(name)
    return out, names


def _names(rows: Sequence[JsonRow], where: str, places: Sequence[str] | None) -> Sequence[str]:
    return places if places is not None else [f"{where}: row {number}" for number in range(1, len(rows) + 1)]


def _by_id(rows: Sequence[JsonRow], names: Sequence[str]) -> dict[str, tuple[JsonRow, str]]:
    """Each row and what errors call it, by its id."""
    found: dict[str, tuple[JsonRow, str]] = {}
    for row, name in zip(rows, names, strict=True):
        if not isinstance(row.get("id"), (str, int)):
            raise InputError(f"{name}: has no id; systems are joined by the rows' ids")
        if _id(row) in found:
            raise InputError(f"{name}: id '{row['id']}' stands already at {found[_id(row)][1]}; ids must be unique")
        found[_id(row)] = row, name
    return found


def _id(row: JsonRow) -> str:
    return str(row["id"])


def _is_scored(row: JsonRow) -> bool:
    return row["outcome"] == "scored"


def _test(ours: list[JsonRow], theirs: list[JsonRow], group_by: str | None) -> Difference:
    first, second = _counts(ours), _counts(theirs)
    if group_by is not None:
        keys = [row[group_by] for row in ours]
        first, second = first.by(keys), second.by(keys)
    return paired_test(first, second)


def _counts(rows: list[JsonRow]) -> ErrorCounts:
    return ErrorCounts(
        **{name: np.array([row[name] for row in rows], dtype=np.int64) for name in ("substitutions", "deletions", "insertions", "hits")}
    )


def _fields(difference: Difference, rates: tuple[float, float]) -> JsonObject:
    return {
        "rates": list(rates),
        "difference": difference.value,
        "low": difference.low,
        "high": difference.high,
        "p_value": difference.p_value,
    }
