"""Clips as the page shows them: a name, figures, a player where the recording is a local file, and transcripts beside the reference."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from arkfast.evaluate.page.facts import Change, Clip, clip_seconds
from arkfast.evaluate.page.paths import address, title
from arkfast.infer.result import CUT_SHORT
from arkfast.metrics import Pair
from arkfast.records import JsonRow
from arkfast.reports import Run, duration, percent, runs

MOST_PLACES = 400
"""Places of an alignment that are shown; the rest are counted."""

_LANGUAGE = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{1,8})*")


@dataclass(frozen=True, kw_only=True)
class Transcript:
    """One transcript of a clip."""

    label: str
    """Whose it is; empty where the clip has one alone."""
    runs: Sequence[Run]
    """It beside the reference, its first ``MOST_PLACES`` places."""
    more: int
    """Places that are left away."""


@dataclass(frozen=True, kw_only=True)
class ShownClip:
    """One clip."""

    title: str
    figures: Sequence[str]
    source: str
    """What the player opens; empty where there is none."""
    language: str
    """Of the texts, where the row's is a language tag."""
    transcripts: Sequence[Transcript]


def shown(clip: Clip, folder: Path) -> ShownClip:
    """One of the worst clips; ``folder`` is the page's."""
    row = clip.row
    errors, units = int(row["errors"]), int(row["ref_units"])
    counted = f"{errors:,} {'error' if errors == 1 else 'errors'} in {_units(row)}"
    counted += f", {percent(errors / units, 0)}" if units else ", nothing was said"
    return _shown(row, folder, [counted], [_transcript("", clip.pairs, row)])


def changed(change: Change, folder: Path, other: str) -> ShownClip:
    """A clip that changed; ``other`` names the other system."""
    row, now = change.row, int(change.row["errors"])
    counted = f"{now:,} {'error' if now == 1 else 'errors'}, was {now - change.difference:,}, in {_units(row)}"
    return _shown(row, folder, [counted], [_transcript(other, change.other, row), _transcript("this", change.pairs, row)])


def player(row: JsonRow, folder: Path) -> str:
    """What a player opens for a row's recording, or nothing where ``address`` has none; ``folder`` is the page's."""
    source = address(row.get("audio"), folder)
    if not source:
        return ""
    times = [row.get("begin_time"), row.get("end_time")]
    begin, end = (float(t) if isinstance(t, (int, float)) and not isinstance(t, bool) and t >= 0 else None for t in times)
    part = "" if begin is None and end is None else f"#t={begin or 0:g}" + ("" if end is None else f",{end:g}")
    return source + part


def _shown(row: JsonRow, folder: Path, counted: list[str], transcripts: list[Transcript]) -> ShownClip:
    figures = [" ".join(str(row[name]) for name in ("preset", "language") if row.get(name)), *counted]
    seconds = clip_seconds(row)
    figures += [duration(seconds)] if seconds is not None else []
    figures += ["cut short"] if row.get("finish_reason") in CUT_SHORT else []
    language = row.get("language")
    return ShownClip(
        title=title(row),
        figures=[figure for figure in figures if figure],
        source=player(row, folder),
        language=language if isinstance(language, str) and _LANGUAGE.fullmatch(language) else "",
        transcripts=transcripts,
    )


def _units(row: JsonRow) -> str:
    units = int(row["ref_units"])
    noun = {"word": "word", "char": "character"}.get(str(row["unit"]), "unit")
    return f"{units:,} {noun if units == 1 else noun + 's'}"


def _transcript(label: str, pairs: Sequence[Pair], row: JsonRow) -> Transcript:
    shown = runs(pairs[:MOST_PLACES], row["unit"])
    return Transcript(label=label, runs=shown, more=max(0, len(pairs) - MOST_PLACES))
