"""Whether a manifest is the one that was meant: read through before a model is loaded, and judged again by the first rows that are done.

A wrong file, field or folder would otherwise become thousands of failed rows in the place of an earlier output.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from arkfast.data import Fields
from arkfast.data.first_rows import FIRST, FirstRows
from arkfast.data.ids import UniqueIds
from arkfast.data.manifest import no_rows
from arkfast.data.rows import Row
from arkfast.files.remote import is_remote, shown
from arkfast.infer.inputs import Input, input_rows, named
from arkfast.infer.result import Result
from arkfast.records import InputError, JsonObject, Utterance

SHOWN = 3
"""So many reasons are shown on screen."""
_MOST_REASONS = 1000  # that are told apart


@dataclass(frozen=True)
class Intake:
    """What a manifest holds."""

    rows: int
    """Rows to transcribe, good and bad."""
    repeats: int
    """Rows that repeat an earlier one in every field and are left out."""
    remote: bool = False
    """Whether a row has a recording of another machine."""


def look_through(path: Input, *, fields: Fields, allow_repeats: bool = False, see: Callable[[Row], None] | None = None) -> Intake:
    """Read a manifest once, without opening a recording.

    Args:
        path: as ``input_rows`` takes it.
        fields: names of the rows' fields.
        allow_repeats: take identical rows with one id once; otherwise a repeated id is an error.
        see: is called with each row that counts, in order.

    Raises:
        InputError: the file cannot be read or holds no rows, an id stands there twice, the first 20 rows cannot be used for one reason, or
            no row of a shorter file names a recording.
    """
    total, remote, first = 0, False, FirstRows(named(path))
    with UniqueIds(allow_repeats=allow_repeats) as ids:
        for row in input_rows(path, fields=fields):
            if not keep(row, ids, allow_repeats=allow_repeats):
                continue
            total += 1
            first.see(row)
            audio = None if row.utterance is None else row.utterance.audio
            remote = remote or (isinstance(audio, str) and is_remote(audio))
            if see is not None:
                see(row)
        if not total:
            raise InputError(no_rows(named(path)))
        first.end()
        return Intake(total, ids.repeats, remote)


def kept_rows(path: Input, *, fields: Fields, allow_repeats: bool) -> Iterator[Row]:
    """The rows that ``look_through`` counted, in order."""
    with UniqueIds(allow_repeats=allow_repeats) as ids:
        for row in input_rows(path, fields=fields):
            if not allow_repeats or keep(row, ids, allow_repeats=True):
                yield row


def keep(row: Row, ids: UniqueIds, *, allow_repeats: bool) -> bool:
    """``UniqueIds.keep`` of a manifest's row. A bad row counts on its own, since what it says may be wrong too."""
    utterance = row.utterance
    if utterance is None:
        return True
    return ids.keep(utterance.id, utterance.where, _content(utterance) if allow_repeats else "")


def _content(utterance: Utterance) -> JsonObject:
    content = asdict(utterance)
    del content["where"]
    return content


class Reasons:
    """Why rows failed: counts equal reasons, and stops a run whose first rows all failed for one.

    Args:
        path: the input, for the error.
    """

    def __init__(self, path: Path | str) -> None:
        self._path = path
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, str] = {}
        self._held: list[Result] | None = []

    def admit(self, result: Result) -> list[Result]:
        """The results that may be written now, in order: those of the first rows are held back while all of them failed for one reason.

        Raises:
            InputError: the first 20 did.
        """
        if result.error is not None:
            reason = plain_reason(result)
            if reason in self._counts or len(self._counts) < _MOST_REASONS:
                self._counts[reason] += 1
                self._examples.setdefault(reason, " ".join(result.error.split()))
        if self._held is None:
            return [result]
        self._held.append(result)
        if not result.failed or len(self._counts) > 1:
            return self.rest()
        if len(self._held) == FIRST:
            self._held = None  # what failed is not worth keeping
            raise InputError(
                f"{self._path}: the first {FIRST} rows all failed for one reason, and nothing was written; "
                f"the first of them: {next(iter(self._examples.values()))}"
            )
        return []

    def rest(self) -> list[Result]:
        """The results that are still held back; none is from here on."""
        held, self._held = self._held, None
        return held or []

    def lines(self) -> tuple[str, ...]:
        """The first three different reasons as a user reads them, each with the first row that it was met in."""
        shown = []
        for reason, example in list(self._examples.items())[:SHOWN]:
            more = self._counts[reason] - 1
            shown.append(f"{example} (and {more} more like it)" if more else example)
        if (others := len(self._examples) - SHOWN) > 0:
            shown.append(f"and {others} other reason{'s' if others > 1 else ''}")
        return tuple(shown)


def plain_reason(result: Result) -> str:
    """A failed row's reason without what is the row's own: its place, its recording's name, and numbers."""
    text, utterance = result.error or "", result.utterance
    names = {utterance.where, utterance.audio, utterance.extra.get("audio")}
    names |= {shown(name) for name in names if isinstance(name, str)}
    for name in sorted((name for name in names if isinstance(name, str) and len(name) > 3), key=len, reverse=True):  # a short one is a word
        text = text.replace(name, "…")
    return re.sub(r"\d+(\.\d+)?", "#", text)
