"""Segments of speech as captions: lines of a limited width, a few of them at a time.

Where the times of a segment's words are known, a caption stands from its first word's start to its last one's end. Else a segment that
becomes several captions shares its time out by the width of their texts.
"""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from arkfast.align.words import word_spans
from arkfast.metrics.languages import without_word_spaces

NO_LIMIT = 0
_OPENING = ("Ps", "Pi")  # categories of brackets and quotation marks that belong to what follows


class Segment(NamedTuple):
    """A stretch of a recording and what is said in it."""

    start: float
    """Seconds from the recording's start."""
    end: float
    text: str
    words: tuple[tuple[float, float], ...] = ()
    """Start and end of each word, where they are known: of ``word_spans`` of the text, in order."""


class Caption(NamedTuple):
    """What stands on the screen at a time."""

    start: int
    """Milliseconds from the recording's start."""
    end: int
    """Past ``start``."""
    lines: tuple[str, ...]


def captions(segments: Iterable[Segment], *, max_line_width: int, max_line_count: int) -> Iterator[Caption]:
    """Captions in the segments' order, none of which begins before the one before it has ended; segments without text have none.

    Args:
        segments: ascending and without overlap.
        max_line_width: most columns of a line (``width``); 0 sets no limit, and a segment's text is one line.
        max_line_count: most lines of a caption; 0 sets no limit.
    """
    free = 0
    for segment in segments:
        lines = wrapped(segment.text, max_line_width)
        if not lines:
            continue
        count = max_line_count or len(lines)
        groups = [tuple(lines[at : at + count]) for at in range(0, len(lines), count)]
        begin, end = 1000 * segment.start, 1000 * segment.end
        widths = [sum(map(width, group)) for group in groups]
        spoken = _spoken(groups, segment.words)
        spent = 0
        for number, (group, wide) in enumerate(zip(groups, widths, strict=True)):
            spent += wide
            first, last = begin + (end - begin) * (spent - wide) / sum(widths), begin + (end - begin) * spent / sum(widths)
            if spoken:
                first, last = (1000 * time for time in spoken[number])
            start = max(free, round(first))
            free = max(start + 1, round(last))
            yield Caption(start, free, group)


def _spoken(groups: Sequence[tuple[str, ...]], words: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """From when to when the words of each group are said; nothing where a group has none, or its words are not those that have times."""
    counts = [len(word_spans(" ".join(group))) for group in groups]
    if not all(counts) or sum(counts) != len(words):
        return []
    ends = list(itertools.accumulate(counts))
    return [(words[end - count][0], words[end - 1][1]) for count, end in zip(counts, ends, strict=True)]


def wrapped(text: str, max_width: int) -> list[str]:
    """A text as lines of at most ``max_width`` columns; 0 sets no limit.

    Lines break at blanks, and in scripts without word spaces between characters, though not before punctuation. What is wider than a line
    and has no such place is broken where the line is full.
    """
    text = " ".join(text.split())
    if not text or max_width == NO_LIMIT:
        return [text] if text else []
    lines, line = [], ""
    for part, spaced in _parts(text):
        between = " " if spaced and line else ""
        if line and width(line) + len(between) + width(part) > max_width:
            lines.append(line)
            line, between = "", ""
        while width(part) > max_width:
            fits = _fitting(part, max_width)
            lines.append(part[:fits])
            part = part[fits:]
        line += between + part
    return [*lines, line] if line else lines


def width(text: str) -> int:
    """Columns that a text takes: two for a character of full width, such as Han and kana, none for a mark on another character."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 0 if unicodedata.category(c) in ("Mn", "Me", "Cf") else 1 for c in text)


def _parts(text: str) -> Iterator[tuple[str, bool]]:
    """What a line must not break within, and whether a blank stands before it."""
    for word in text.split():
        part, spaced, unspaced = "", True, False
        for character in word:
            kind = unicodedata.category(character)
            bound = kind[0] in "PM" and kind not in _OPENING
            if part and not bound and unicodedata.category(part[-1]) not in _OPENING and (unspaced or without_word_spaces(character)):
                yield part, spaced
                part, spaced = "", False
            part += character
            if kind[0] not in "PM":
                unspaced = without_word_spaces(character)
        yield part, spaced


def _fitting(text: str, max_width: int) -> int:
    """How many characters of a text fit into a line; at least one."""
    for count in range(len(text), 1, -1):
        if width(text[:count]) <= max_width:
            return count
    return 1
