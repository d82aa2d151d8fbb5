"""Journals of ranks: each rank writes one of its own beside the output's journal, which takes their lines in."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from pathlib import Path

from arkfast.files import LineFile, naming
from arkfast.infer.journal import ends_whole

_BLOCK = 1 << 20  # bytes


def own_journal(place: Path, rank: int) -> Path:
    """Where a rank writes what it does.

    Args:
        place: the output's journal.
        rank: the rank's number.
    """
    return place.with_name(f"{place.name}.rank{rank}")


def wrote_something(place: Path) -> bool:
    """Whether there is a journal of the output, or of a rank that worked on it."""
    return place.exists() or any(True for _ in _of_ranks(place))


def take_in(place: Path, *, keep: bool = True) -> None:
    """Add what the journals of ranks hold to the output's journal, and remove them.

    A process that is killed in between leaves lines in both, of which the last one counts. Whoever calls this holds the output's lock.

    Args:
        place: the output's journal.
        keep: False removes all of them instead.

    Raises:
        InputError: a file cannot be read, written or removed.
    """
    if not keep:
        for path in (place, *_of_ranks(place)):
            with naming(path):
                path.unlink(missing_ok=True)
        return
    for path in _of_ranks(place):
        with naming(place):
            lines = LineFile(place, fresh=False)
            try:
                if not ends_whole(place):
                    lines.add(b"\n")
                for block in _blocks(path):
                    lines.add(block)
                lines.sync()
            finally:
                lines.close()
            path.unlink(missing_ok=True)


def _of_ranks(place: Path) -> list[Path]:
    return sorted(path for path in place.parent.glob(f"{glob.escape(place.name)}.rank*") if path.name.rpartition(".rank")[2].isdigit())


def _blocks(path: Path) -> Iterator[bytes]:
    """Whole lines, many at a time; a torn last one is ended, and passed over by whoever reads it."""
    with path.open("rb") as file:
        while lines := file.readlines(_BLOCK):
            block = b"".join(lines)
            yield block if block.endswith(b"\n") else block + b"\n"
