"""The regression gate: this evaluation against an earlier one, and whether it is worse by more than is allowed.

The difference itself decides, in percentage points. Its interval is printed beside it, so that a reader sees how much of it may be chance.
Failures cannot hide a regression: the rates that count them as deletions are compared too, and the larger difference decides.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from arkfast.evaluate.compare import Comparison, points
from arkfast.evaluate.scores import Scores
from arkfast.metrics import Difference, canonical, label, unpaired_difference
from arkfast.records import InputError, JsonObject, JsonRow

_ROUNDING = 1e-9  # percentage points; a difference of exactly the limit is no regression


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One group, or all rows together, now and then."""

    preset: str | None
    """None for all rows together, or rows without one."""
    language: str | None
    """None for all rows together, or rows without one."""
    metric: str
    """What is compared."""
    baseline: float
    """The rate then."""
    rate: float
    """The rate now."""
    difference: Difference
    """Now − then."""
    difference_with_failures: float
    """The same difference between the rates that count failed rows as deletions."""

    @property
    def points(self) -> float:
        """Percentage points by which it is worse, failures counted or not, whichever is more."""
        return 100 * max(self.difference.value, self.difference_with_failures)

    def to_dict(self) -> JsonObject:
        """As ``summary.json`` has it."""
        return {
            "preset": self.preset,
            "language": self.language,
            "metric": self.metric,
            "baseline_rate": self.baseline,
            "rate": self.rate,
            "difference": self.difference.value,
            "low": self.difference.low,
            "high": self.difference.high,
            "p_value": self.difference.p_value,
            "difference_with_failures": self.difference_with_failures,
        }

    def line(self) -> str:
        """The entry as a user reads it, in percentage points."""
        name = "J/WER" if self.metric == "joint" else self.metric.upper()
        where = " ".join(part for part in (self.preset, self.language) if part) or "all rows"
        line = f"{where}: {name} {100 * self.rate:.2f} % against {100 * self.baseline:.2f} %, {points(self.difference)}"
        if self.difference_with_failures > self.difference.value:
            line += f", {100 * self.difference_with_failures:+.2f} points when failures count as deletions"
        return line


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the gate found."""

    baseline: str
    """The baseline's path."""
    paired: bool
    """Whether the same rows were compared, not only the rates."""
    pairing: str
    """Why they were paired, or why not."""
    max_regression: float
    """Percentage points that are allowed."""
    entries: tuple[Entry, ...]
    """All rows together, then each group of the baseline where it has several."""

    @property
    def regressed(self) -> tuple[Entry, ...]:
        """The entries that are worse by more than is allowed."""
        return tuple(entry for entry in self.entries if entry.points > self.max_regression + _ROUNDING)

    def to_dict(self) -> JsonObject:
        """As ``summary.json`` has it."""
        return {
            "baseline": self.baseline,
            "paired": self.paired,
            "pairing": self.pairing,
            "max_regression_points": self.max_regression,
            "passed": not self.regressed,
            "entries": [{**entry.to_dict(), "passed": entry not in self.regressed} for entry in self.entries],
        }

    def table(self) -> str:
        """The verdict as lines of plain text."""
        how = "paired" if self.paired else "unpaired"
        lines = [f"against {self.baseline} ({how}: {self.pairing}), at most +{self.max_regression:g} percentage points allowed"]
        return "\n".join([*lines, *(f"  {'WORSE  ' if entry in self.regressed else 'ok     '}{entry.line()}" for entry in self.entries)])


def judge(scores: Scores, baseline: JsonRow, path: str, *, max_regression: float, comparison: Comparison | None, pairing: str) -> Verdict:
    """Compare with a baseline: by pairs where its rows are at hand, else by its stored counts.

    Args:
        scores: this evaluation's.
        baseline: an earlier ``summary.json``.
        path: its path.
        max_regression: percentage points that are allowed.
        comparison: with the baseline's rows, or None where they are not at hand.
        pairing: why the rows are compared, or why they are not.

    Raises:
        InputError: the two cannot be compared: other normaliser rules or units, other rows, or a group that is missing now.
    """
    if comparison is None and {"options": []} | baseline["normalizer"] != scores.normalizer.identity():
        raise InputError(
            f"{path}: was scored by normaliser {label(baseline['normalizer'])}, this by {scores.normalizer.label()}, and "
            f"{pairing}; give the file that the baseline was made from with --compare, or score it anew by this normaliser"
        )
    entries = [_entry(scores, baseline, path, comparison, True)]
    groups = baseline["groups"] if len(baseline["groups"]) > 1 else []
    # the same file under another name is another preset; where each side has only one, languages tell the groups apart
    by_language = len({then["preset"] for then in groups}) == 1 == len({now.preset for now in scores.groups})
    here = {(None if by_language else now.preset, now.language): now for now in scores.groups}
    for then in groups:
        # an earlier version may have called the language otherwise
        group = here.get((None if by_language else then["preset"], canonical(then["language"])))
        if group is None:
            lacking = f"(preset {then['preset']}, language {then['language']}) that this evaluation lacks"
            raise InputError(f"{path}: has a group {lacking}; evaluate the same sets, each under the same name (--preset)")
        entries.append(_entry(group, then, path, comparison, False))
    return Verdict(baseline=path, paired=comparison is not None, pairing=pairing, max_regression=max_regression, entries=tuple(entries))


def _entry(now: Scores, then: JsonRow, path: str, comparison: Comparison | None, is_total: bool) -> Entry:
    group = (now.preset, now.language)
    if comparison is None:
        if (then["metric"], then["utterances"]) != (now.metric, now.utterances):
            raise InputError(
                f"{path}: has {then['metric']} of {then['utterances']} rows where this evaluation has {now.metric} of {now.utterances}; "
                "evaluate the same rows in the same unit"
            )
        if not then["reference_units"] or not now.counts.reference.any():
            raise InputError(f"{path}: a rate to compare is missing (no scored reference units for preset {group[0]}, language {group[1]})")
        stored = np.array(then["counts"], dtype=np.int64).reshape(-1, 3)
        difference = unpaired_difference(now.resampled.grouped(), (stored[:, :2], stored[:, 2]))
        before, before_with_failures = then["rate"], then["rate_with_failures"]
    else:
        other = comparison.other_scores
        if not is_total:
            other = next(g for g in other.groups if (g.preset, g.language) == group)
        if is_total:
            difference = comparison.total
        elif group in comparison.groups:
            difference = comparison.groups[group]
        else:
            raise InputError(f"{path}: no row of preset {group[0]}, language {group[1]} was scored by both; nothing can be compared")
        before, before_with_failures = other.rate, other.rate_with_failures
    return Entry(
        preset=None if is_total else now.preset,
        language=None if is_total else now.language,
        metric=now.metric,
        baseline=before,
        rate=now.rate,
        difference=difference,
        difference_with_failures=now.rate_with_failures - before_with_failures,
    )
