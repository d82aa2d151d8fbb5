"""The worst clips as markup: what was said and heard side by side, and a player where the recording is a local file.

Knows aligned clips; opens no file. Everything from a row is escaped.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from arkfast.evaluate.page.facts import Clip, clip_seconds
from arkfast.evaluate.page.paths import address, title
from arkfast.infer.result import CUT_SHORT
from arkfast.metrics import Pair, without_word_spaces
from arkfast.records import JsonRow

MOST_PLACES = 400
"""Places of an alignment that are shown; the rest are counted."""

_LANGUAGE = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{1,8})*")


def clip_markup(clip: Clip, folder: Path) -> str:
    """One clip: its name and figures, its player, its alignment; ``folder`` is the page's."""
    row = clip.row
    errors, units, unit = int(row["errors"]), int(row["ref_units"]), str(row["unit"])
    noun = {"word": "words", "char": "characters"}.get(unit, "units")
    figures = [" · ".join(str(row[name]) for name in ("preset", "language") if row.get(name))]
    figures.append(f"{errors:,} errors in {units:,} {noun}" + (f", {100 * errors / units:.0f} %" if units else ", nothing was said"))
    seconds = clip_seconds(row)
    figures += [f"{seconds:.1f} s"] if seconds is not None else []
    figures += ["cut short"] if row.get("finish_reason") in CUT_SHORT else []
    spans = "".join(f"<span>{escape(figure)}</span>" for figure in figures if figure)
    head = f"<header><h3>{escape(title(row))}</h3>{spans}</header>"
    return f'<article class="card clip">{head}{player(row, folder)}{_diff(clip.pairs, row)}</article>'


def player(row: JsonRow, folder: Path) -> str:
    """An audio element for a row's recording, or nothing where ``address`` has none; ``folder`` is the page's."""
    source = address(row.get("audio"), folder)
    if not source:
        return ""
    times = [row.get("begin_time"), row.get("end_time")]
    begin, end = (float(t) if isinstance(t, (int, float)) and not isinstance(t, bool) and t >= 0 else None for t in times)
    part = "" if begin is None and end is None else f"#t={begin or 0:g}" + ("" if end is None else f",{end:g}")
    label = f"recording of {title(row)}"
    return f'<audio controls preload="none" src="{escape(source + part)}" aria-label="{escape(label)}"></audio>'


def _diff(pairs: Sequence[Pair], row: JsonRow) -> str:
    language = row.get("language")
    attribute = f' lang="{escape(language)}"' if isinstance(language, str) and _LANGUAGE.fullmatch(language) else ""
    text = _text(pairs[:MOST_PLACES], spaced=row["unit"] == "word")
    if len(pairs) > MOST_PLACES:
        text += f' <span class="none">… and {len(pairs) - MOST_PLACES:,} more</span>'
    return f'<p class="diff" dir="auto"{attribute}>{text}</p>'


def _text(pairs: Sequence[Pair], *, spaced: bool) -> str:
    """The alignment as running text: what agrees as it is, what does not as marked runs; a substitution stands over its other side."""
    parts: list[str] = []
    before = ""
    for kind, run in itertools.groupby(pairs, key=_kind):
        places = list(run)
        units = [(pair.reference if pair.reference is not None else pair.hypothesis) or "" for pair in places]
        if before and _parted(before, units[0], spaced):
            parts.append(" ")
        before = units[-1]
        if kind == "":
            parts.append(escape(_joined(units, spaced)))
        elif kind == "place":
            marked = [f'<span class="place"><del>{escape(a or "")}</del><ins>{escape(b or "")}</ins></span>' for a, b in places]
            parts.append((" " if spaced else "").join(marked))
        else:
            parts.append(f"<{kind}>{escape(_joined(units, spaced))}</{kind}>")
    return "".join(parts)


def _kind(pair: Pair) -> str:
    """The element that marks a place: none where both sides agree."""
    if pair.right:
        return ""
    return "ins" if pair.reference is None else "del" if pair.hypothesis is None else "place"


def _joined(units: Sequence[str], spaced: bool) -> str:
    text = units[0]
    for before, unit in itertools.pairwise(units):
        text += (" " if _parted(before, unit, spaced) else "") + unit
    return text


def _parted(before: str, unit: str, spaced: bool) -> bool:
    """Whether two neighbours are written with a space between them."""
    longer = len(before) > 1 or len(unit) > 1  # a character unit is one letter of a word, not a word
    return spaced or (longer and not without_word_spaces(before) and not without_word_spaces(unit))
