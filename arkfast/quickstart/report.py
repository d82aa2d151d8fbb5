"""The quickstart's report: one call writes the table, the picture and the page.

Knows the names of the files and what callers import; the records and the table are ``results``, the drawing is ``picture``, the sentences
are ``page``.
"""

from __future__ import annotations

from pathlib import Path

from arkfast.files import new_files
from arkfast.quickstart.page import findings, headline_of, render_page, verdict
from arkfast.quickstart.picture import draw_picture
from arkfast.quickstart.results import ARM_LABELS, ArmRow, Difference, Rate, Report, Transcription, render_table

__all__ = [
    "ARM_LABELS",
    "ArmRow",
    "Difference",
    "Rate",
    "Report",
    "Transcription",
    "draw_picture",
    "findings",
    "headline_of",
    "render_page",
    "render_table",
    "verdict",
    "write_report",
]


def write_report(folder: Path, report: Report) -> Path:
    """Write ``table.txt``, ``picture.png`` and ``report.html`` into ``folder``, all of them or none, replacing older ones.

    May be called again as arms finish.

    Args:
        folder: made when absent.
        report: what to say; unfinished rows are fine.

    Returns:
        The path of the page.

    Raises:
        InputError: matplotlib is missing, or a file cannot be written.
    """
    paths = [Path(folder) / name for name in ("table.txt", "picture.png", "report.html")]
    with new_files(paths) as (table, picture, page):
        draw_picture(report, picture)
        table.write_text(render_table(report.rows) + "\n", encoding="utf-8")
        page.write_text(render_page(report, picture.read_bytes()), encoding="utf-8")
    return paths[-1]
