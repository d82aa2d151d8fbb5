"""Figures as a page shows them: one precision and one way to write a unit for each kind, on all pages."""

from __future__ import annotations

import datetime

NONE = "–"
"""What stands where there is no figure."""


def percent(rate: float | None, digits: int = 2) -> str:
    """A fraction as a percentage."""
    return NONE if rate is None else f"{100 * rate:.{digits}f} %"


def interval(low: float | None, high: float | None, digits: int = 2) -> str:
    """The two ends of an interval of fractions, as percentages."""
    return NONE if low is None or high is None else f"{100 * low:.{digits}f} to {100 * high:.{digits}f} %"


def points(low: float | None, high: float | None = None, digits: int = 2) -> str:
    """A difference of fractions in percentage points with its sign; with ``high``, the interval from the first to the second."""
    if low is None:
        return NONE
    return f"{100 * low:+.{digits}f}" + ("" if high is None else f" to {100 * high:+.{digits}f}")


def duration(seconds: float) -> str:
    """A time with its unit: seconds below two minutes, minutes below two hours, hours above."""
    return f"{seconds:,.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def times(factor: float) -> str:
    """How many times something is faster: three digits, or all of those before the point."""
    return f"{factor:,.0f}×" if factor >= 99.95 else f"{factor:.1f}×" if factor >= 9.995 else f"{factor:.2f}×"


def dated(day: datetime.date) -> str:
    """A day in words, which no country reads as another day."""
    return f"{day.day} {day:%B %Y}"
