"""The quickstart's report: one call writes the table, the picture and the page, all of them or none."""

from __future__ import annotations

from pathlib import Path

from arkfast.files import new_files
from arkfast.quickstart.page import Comparison, compared, headline_of, render_page
from arkfast.quickstart.picture import draw_mel, draw_picture
from arkfast.quickstart.results import ARM_LABELS, ArmRow, Difference, Rate, Report, Transcription, render_table

__all__ = [
    "ARM_LABELS",
    "ArmRow",
    "Comparison",
    "Difference",
    "Rate",
    "Report",
    "Transcription",
    "compared",
    "draw_picture",
    "headline_of",
    "render_page",
    "render_table",
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
        mels = {clip.id: draw_mel(clip.mel) for clip in report.clips if clip.mel is not None}
        page.write_text(render_page(report, mels), encoding="utf-8")
    return paths[-1]
