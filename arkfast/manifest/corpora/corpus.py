"""What a corpus is to the writer of its manifests: splits, and rows that say which split they belong to.

The module of a layout gives a ``Corpus`` whose rows are utterances or reasons why they are none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from arkfast.data.rows import Row, RowError, to_utterance
from arkfast.records import InputError, JsonRow


@dataclass(frozen=True)
class Split:
    """One part of a corpus, which becomes one manifest."""

    name: str
    """The corpus' own name for it, as ``--splits`` takes it."""
    file: str
    """Name of its manifest; ``test_<preset>.jsonl`` where the preset evaluation looks for it."""
    published: int | None = None
    """Utterances that the corpus was published with; None where the layout's releases differ."""


@dataclass(frozen=True, kw_only=True)
class SplitRow(Row):
    """A row of a corpus."""

    split: str
    """Name of the split that it belongs to."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A corpus on disk, opened for some of its splits."""

    name: str
    """As the command calls it, such as ``librispeech``."""
    root: Path
    """The folder that recordings are looked for in."""
    splits: tuple[Split, ...]
    """What is to be written."""
    rows: Callable[[], Iterator[SplitRow]]
    """Every utterance of the splits and everything that should have been one, in a fixed order."""


def choose(names: Sequence[str], known: Mapping[str, Split], present: Sequence[str], root: Path) -> tuple[Split, ...]:
    """The splits to write: the named ones, else all that are there.

    Raises:
        InputError: a name is unknown or not on disk, or nothing is there.
    """
    for name in names:
        if name not in known:
            raise InputError(f"--splits: '{name}' is none of the corpus' splits: {', '.join(known)}")
        if name not in present:
            raise InputError(f"{root}: split '{name}' is not there; unpack it, or choose from what is: {', '.join(present) or 'nothing'}")
    chosen = [known[name] for name in known if name in (names or present)]
    if not chosen:
        raise InputError(f"{root}: none of the splits {', '.join(known)} is there; give the folder that the corpus was unpacked into")
    return tuple(chosen)


def make_row(source: Path, number: int, raw: str, split: str, fields: JsonRow | RowError, *, folder: Path) -> SplitRow:
    """A corpus' row from manifest fields, checked as any manifest's rows are, or from what is wrong with it.

    Args:
        source: file that the row stands in.
        number: its line there, from 1; 0 where it stands in none.
        raw: the line.
        split: name of its split.
        fields: the row as a manifest would have it, with an ``id``, or its fault.
        folder: what a relative ``audio`` starts from.
    """
    if not isinstance(fields, RowError):
        where = f"{source}:{number}" if number else str(source)
        try:
            utterance = to_utterance(fields, where=where, default_id="", folder=folder)
            return SplitRow(source=source, number=number, raw=raw, end=0, split=split, utterance=utterance)
        except RowError as error:
            fields = error
    return SplitRow(source=source, number=number, raw=raw, end=0, split=split, error=fields)


@dataclass(frozen=True)
class TranscriptLine:
    """A line ``<utterance> <text>`` of a transcript file or of another that is laid out so, or what is wrong with it."""

    number: int
    """From 1."""
    raw: str
    """The line."""
    name: str
    """The utterance; empty where the line is bad."""
    text: str
    """The rest of the line."""
    error: RowError | None = None
    """Why the line is none."""


def transcript_lines(path: Path, rest: str = "text") -> Iterator[TranscriptLine]:
    """The lines of a transcript file, blank ones skipped.

    Args:
        path: the file.
        rest: what errors call that which follows the utterance's name.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); the corpus' folder has to be readable") from error
    with file:
        for number, data in enumerate(file, start=1):
            if data.strip():
                yield _line(path, number, data, rest)


def _line(path: Path, number: int, data: bytes, rest: str) -> TranscriptLine:
    try:
        raw = data.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raw = data.decode("utf-8", errors="replace").rstrip("\r\n")
        fault = RowError(f"{path}:{number}: not UTF-8 at byte {error.start}; repair the line", "transcript line")
        return TranscriptLine(number, raw, "", "", fault)
    name, *text = raw.split(maxsplit=1)
    if not text or "/" in name or "\\" in name:
        fault = RowError(f"{path}:{number}: expected the utterance's name and its {rest}; repair the line", "transcript line")
        return TranscriptLine(number, raw, "", "", fault)
    return TranscriptLine(number, raw, name, text[0].strip())


def without_transcript(recording: Path, transcript: Path) -> RowError:
    """The fault of a recording that no line speaks of."""
    return RowError(f"{recording}: no line of {transcript} has its transcript", "no transcript")
