"""Rows of a transcription that goes on where another one ended: what is known already, and what is written down for the next."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Protocol

from arkfast.console import Console
from arkfast.files import naming
from arkfast.files.remote import is_remote
from arkfast.infer.fetching import Fetcher
from arkfast.infer.first_rows import Intake
from arkfast.infer.journal import Journal, deciding, key_of
from arkfast.infer.loading import Transcribes
from arkfast.infer.options import TranscribeOptions
from arkfast.infer.result import Result
from arkfast.records import InputError, JsonObject, Utterance


def journal_of(output: Path) -> Path:
    """Where the journal of an output stands."""
    return output.with_name(output.name + ".journal")


def decided(transcriber: Transcribes, options: TranscribeOptions) -> JsonObject:
    """What all transcripts of a run depend on (``journal.deciding``)."""
    from arkfast.infer.words import weights_of_head
    from arkfast.models.contents import contents_of_model

    contents = contents_of_model(transcriber.checkpoint)
    if transcriber.tokenizer != transcriber.checkpoint:
        theirs = contents_of_model(transcriber.tokenizer)
        contents |= {f"of the tokenizer {name}": value for name, value in theirs.items() if name != "weights"}
    if transcriber.head_folder is not None:
        contents["head of the words' times"] = weights_of_head(transcriber.head_folder)
    for name, path in (("hotwords", options.hotwords), ("calibration", options.calibration)):
        if path is not None:
            with naming(path):
                contents |= {name: hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()}
    return deciding(options, contents=contents, device=transcriber.device.type, dtype=transcriber.dtype)


def tell(journal: Journal, intake: Intake, console: Console) -> None:
    """Say what an earlier run left."""
    if journal.held:
        console.say(f"{journal.held} of {intake.rows} rows were done by an earlier run; goes on with the others ({journal.path})")
    if journal.other and not journal.held:
        why = f" ({', '.join(journal.differing)})" if journal.differing else ""
        console.warn(f"{journal.path}: {journal.other} results of runs with another model or other flags{why} are not taken")
    if journal.damaged:
        console.warn(f"{journal.path}: {journal.damaged} damaged line{'s' if journal.damaged > 1 else ''} passed over; done anew")


class Known(Protocol):
    """What is known of rows, and where new results are written down: a ``Journal``, or what stands for one in another process."""

    held: int

    def holds(self, row: int) -> bool:
        """See ``Journal.holds``."""

    def find(self, row: int, key: str, utterance: Utterance, *, segment: str | None = None) -> Result | None:
        """See ``Journal.find``."""

    def add(self, row: int, key: str, result: Result, *, segment: str | None = None) -> None:
        """See ``Journal.add``."""


class Looked(NamedTuple):
    """A row that was looked up."""

    row: int
    item: Utterance | Result
    key: str | None
    """For the journal; None where there is none, and of a result."""
    known: Result | None
    """What the journal has."""

    @property
    def wanted(self) -> str | None:
        """``Fetcher``: the address of its recording, where that is not here and is needed."""
        audio = self.item.audio if isinstance(self.item, Utterance) and self.known is None else None
        return audio if isinstance(audio, str) and is_remote(audio) else None


class Turn(NamedTuple):
    """A row on its way."""

    row: int
    key: str | None
    """For the journal; None where nothing is to be written there: a bad line, or a result that came from it."""
    counted: bool
    """Whether the journal's ``held`` counts the row."""
    resumed: bool
    """Whether the result came from the journal."""
    fetched: tuple[Utterance, str] | None = None
    """The row as the input has it, and the path of the copy of its recording; None where none was fetched."""


class Rows:
    """Rows on their way through the transcriber, which gives their results back in the same order.

    Args:
        items: rows with their numbers, ascending.
        journal: what is known of them, and where results are written down; None for none.
        fetcher: fetches recordings of other machines; None where no row has one.

    Attributes:
        clip_seconds: seconds of audio of clips, of rows that were not complete, whose result was known.
    """

    def __init__(self, items: Iterable[tuple[int, Utterance | Result]], journal: Known | None, *, fetcher: Fetcher | None = None) -> None:
        self._items, self._turns = items, deque[Turn]()
        self._row, self._key = -1, ""
        self._whole: Utterance | None = None
        self._clips: deque[tuple[int, str] | None] = deque()
        self.journal, self._fetcher = journal, fetcher
        self.clip_seconds = 0.0

    def results(self, transcriber: Transcribes) -> Iterator[Result]:
        """The result of each row, in order, as the transcriber gives them; ``next`` says of each whose it is."""
        fetcher = self._fetcher
        if fetcher is None:
            yield from transcriber.results(self.items(), memory=self)
            return
        for result in transcriber.results(self.items(), memory=self, ready=fetcher.ready):
            fetched = self._turns[0].fetched
            if fetched is None:
                yield result
                continue
            row, path = fetched
            yield replace(fetcher.named(result), utterance=row)
            fetcher.done(path)

    def items(self) -> Iterator[Utterance | Result]:
        """What is to be transcribed, with a result in the place of each row that needs nothing done."""
        looked = self._looked()
        for (row, item, key, known), copy in ((one, None) for one in looked) if self._fetcher is None else self._fetcher.ahead(looked):
            if isinstance(item, Result):
                self._turns.append(Turn(row, None, False, False))
                yield item
                continue
            counted = self.journal is not None and self.journal.holds(row)
            if isinstance(copy, InputError):
                self._turns.append(Turn(row, key, counted, False))
                yield Result(utterance=item, error=f"{item.name}: {copy}")
                continue
            self._turns.append(Turn(row, None if known else key, counted, known is not None, None if copy is None else (item, copy)))
            self._row, self._key, self._whole = row, key or "", item if copy is None else replace(item, audio=copy)
            yield known or self._whole

    def _looked(self) -> Iterator[Looked]:
        for row, item in self._items:
            if self.journal is None or isinstance(item, Result):
                yield Looked(row, item, None, None)
                continue
            key = key_of(item)  # before the recording is read: what is written over meanwhile is not taken for this
            yield Looked(row, item, key, self.journal.find(row, key, item))

    def find(self, clip: Utterance) -> Result | None:
        """``stream.Memory.find``: of a clip of the row that was given last. Whole rows were looked up before."""
        if self.journal is None or clip is self._whole:
            self._clips.append(None)
            return None
        known = self.journal.find(self._row, self._key, clip, segment=clip.id)
        if known is None:
            self._clips.append((self._row, self._key))
        else:
            self.clip_seconds += known.seconds
        return known

    def keep(self, result: Result) -> None:
        """``stream.Memory.keep``."""
        clip = self._clips.popleft()
        if self.journal is not None and clip is not None:
            named = result if self._fetcher is None else self._fetcher.named(result)
            self.journal.add(*clip, named, segment=result.utterance.id)

    def next(self) -> Turn:
        """Whose turn it is: the first row whose result was not asked about yet."""
        return self._turns.popleft()
