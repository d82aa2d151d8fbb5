"""A table as a page shows it: on a narrow window each row becomes a card, or the table scrolls on its own with a word that it does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column."""

    name: str
    """Its heading; with its unit, where all cells share one."""
    is_number: bool = False
    """Whether its cells are figures, which stand right in the column."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell."""

    text: str
    """What it says."""
    note: str = ""
    """Said more quietly behind it."""
    tone: str = ""
    """``pass`` or ``bad`` for a verdict, ``faint`` for what matters less."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row."""

    cells: Sequence[Cell]
    """As many as the table has columns; the first names the row."""
    is_chosen: bool = False
    """Whether the row is the one that the page is about."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A whole table."""

    label: str
    """What a screen reader calls it."""
    columns: Sequence[Column]
    """In order."""
    rows: Sequence[Row]
    """In order."""
    scrolls: bool = False
    """For tables with many columns: a narrow window scrolls it sideways, where others become cards."""

    def __post_init__(self) -> None:
        for row in self.rows:
            assert len(row.cells) == len(self.columns), f"table '{self.label}': {len(row.cells)} cells in {len(self.columns)} columns"
