"""What the quickstart's arms came to: rates, intervals and transcripts as plain records, and the table in text."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

ARM_LABELS = {
    "base": "base student",
    "sft": "more SFT",
    "pseudo": "pseudo-labels",
    "opd": "OPD",
    "td_opd": "teacher data, then OPD",
    "teacher": "teacher",
}
"""The arms in the order of the table, with the names that it gives them."""

_PENDING, _NOT_APPLICABLE = "…", "–"


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A word error rate with its 95 % interval, all as fractions of the reference words: 0.05 is 5 %."""

    value: float
    """The rate over the whole set."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.low <= self.value <= self.high:
            raise ValueError(f"Rate: expected 0 ≤ low ≤ value ≤ high, got {self.low}, {self.value}, {self.high}")


@dataclass(frozen=True, kw_only=True)
class ArmRow:
    """One arm, finished or not."""

    arm: str
    """A key of ``ARM_LABELS``."""
    state: Literal["pending", "running", "done"] = "pending"
    """What is missing shows as "…" until the arm is done, and as "–" (not applicable) afterwards."""
    dev: Rate | None = None
    """Word error rate on the dev set."""
    test: Rate | None = None
    """Word error rate on the held-out test set."""
    support: float | None = None
    """Mean size of the valid union support in ids; only arms that distil scores have one."""
    steps: int | None = None
    """Optimizer steps taken so far; of the last stage, for arms that go on from the base student."""
    total_steps: int | None = None
    """Optimizer steps to take, shown while the arm runs."""
    seconds: float | None = None
    """Wall-clock seconds that the arm trained."""
    curve: tuple[tuple[int, float], ...] = ()
    """(step, dev word error rate as a fraction) during training."""
    stage_begins: tuple[int, ...] = ()
    """Steps at which an arm of several stages goes over to the next one, whose learning rate starts anew."""

    def __post_init__(self) -> None:
        if self.arm not in ARM_LABELS:
            raise ValueError(f"ArmRow: no arm is called {self.arm!r}; there are {', '.join(ARM_LABELS)}")

    @property
    def label(self) -> str:
        """The arm's name in the table."""
        return ARM_LABELS[self.arm]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Word error rate of ``first`` minus that of ``second`` on the same utterances, with a paired bootstrap's 95 % interval; fractions."""

    first: str
    """Key of an arm."""
    second: str
    """Key of another arm."""
    split: Literal["dev", "test"]
    """The set that was measured."""
    value: float
    """Negative where ``first`` makes fewer errors."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""


@dataclass(frozen=True, kw_only=True)
class Transcription:
    """A test clip as it was meant and as it was heard."""

    id: str
    """Its id in the test manifest."""
    reference: str
    """What was said."""
    before: str
    """Transcript of the base student."""
    after: str
    """Transcript of the OPD student."""
    seconds: float
    """Length of the clip."""
    mel: np.ndarray | None = None
    """Its log-mel, float [n_mels, frames], low bands first; the picture shows the first clip that has one."""
    wav: bytes | None = None
    """Its recording as the bytes of a WAV file, for the page's player."""
    note: str = ""
    """Its voice and noise, in words."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that a report page says."""

    rows: tuple[ArmRow, ...]
    """The arms."""
    clips: tuple[Transcription, ...] = ()
    """Test clips with their transcripts before and after."""
    differences: tuple[Difference, ...] = ()
    """Paired comparisons; a pair without one is judged by its two intervals."""
    recipe: Mapping[str, object] = field(default_factory=dict)
    """Setting → value, everything needed to repeat the run."""
    commands: tuple[str, ...] = ()
    """Command lines that repeat it and that use its models."""
    environment: Mapping[str, object] = field(default_factory=dict)
    """Machine and versions."""
    student: str = ""
    """The student in a few words."""
    data: str = ""
    """What it hears, in a few words."""
    day: datetime.date | None = None
    """Of the run; today where none is given."""

    def row(self, arm: str) -> ArmRow | None:
        """The row of an arm, None where there is none."""
        return next((row for row in self.rows if row.arm == arm), None)


TABLE_HEADER = ("arm", "WER test % [95 % CI]", "WER dev % [95 % CI]", "support", "steps", "seconds")
"""Columns of the table."""


def table_cells(row: ArmRow) -> tuple[str, ...]:
    """A row's cells as text, in the order of ``TABLE_HEADER``."""
    blank = _NOT_APPLICABLE if row.state == "done" else _PENDING
    steps = blank if row.steps is None else f"{row.steps:,}"
    if row.state == "running" and row.total_steps is not None:
        steps = f"{row.steps or 0:,}/{row.total_steps:,}"
    return (
        row.label,
        _rate_cell(row.test, blank),
        _rate_cell(row.dev, blank),
        blank if row.support is None else f"{row.support:.1f}",
        steps,
        blank if row.seconds is None else f"{row.seconds:.0f}",
    )


def _rate_cell(rate: Rate | None, blank: str) -> str:
    return blank if rate is None else f"{100 * rate.value:5.1f} [{100 * rate.low:4.1f}, {100 * rate.high:4.1f}]"


def render_table(rows: Sequence[ArmRow]) -> str:
    """The table for a terminal: fixed width, arms in the order of ``ARM_LABELS``, unfinished cells as "…"; no newline at the end."""
    order = list(ARM_LABELS)
    cells = [TABLE_HEADER, *(table_cells(row) for row in sorted(rows, key=lambda row: order.index(row.arm)))]
    widths = [max(len(row[column]) for row in cells) for column in range(len(TABLE_HEADER))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]) for row in cells
    ]
    lines.insert(1, "  ".join("─" * width for width in widths))
    return "\n".join(lines)
