"""The report's picture, for slides and chats: learning curves beside one test clip with its transcripts. The page draws its own."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from arkfast.installation import install_hint
from arkfast.metrics import Pair, align
from arkfast.quickstart.results import Report, Transcription
from arkfast.records import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart by all common kinds of colour vision; markers differ too, for print without colour.
_STYLES: dict[str, dict[str, Any]] = {
    "sft": {"color": "#E69F00", "marker": "s"},
    "pseudo": {"color": "#009E73", "marker": "^"},
    "opd": {"color": "#0072B2", "marker": "o", "linewidth": 2.6, "zorder": 4},
    "td_opd": {"color": "#CC79A7", "marker": "D"},
}
_LINES: dict[str, dict[str, Any]] = {
    "base": {"color": "#555555", "linestyle": "--"},
    "teacher": {"color": "#555555", "linestyle": ":"},
}
_WRONG, _INK, _FAINT = "#D55E00", "#222222", "#777777"
_LINE_HEIGHT, _LABEL_WIDTH = 0.19, 0.2  # of the transcript axes
_MOST_LINES = 3  # of a transcript; a model that babbles is cut here, with a mark


def draw_picture(report: Report, path: Path) -> Path:
    """Draw the report's picture as a PNG of about 1900 × 800 pixels.

    Args:
        report: its rows' curves and its first clip with a log-mel; what is absent is said in its place.
        path: file to write.

    Raises:
        InputError: matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(f"the report's picture needs matplotlib, which is missing: {install_hint('quickstart')}") from error
    figure = Figure(figsize=(13.6, 5.6), dpi=140, facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        2, 2, width_ratios=(1, 1.12), height_ratios=(1.75, 1), left=0.055, right=0.985, top=0.92, bottom=0.1, hspace=0.42
    )
    _draw_curves(figure.add_subplot(grid[:, 0]), report)
    clip = next((clip for clip in report.clips if clip.mel is not None), None)
    _draw_mel(figure.add_subplot(grid[0, 1]), clip)
    _draw_transcripts(figure, figure.add_subplot(grid[1, 1]), clip)
    figure.savefig(path, format="png", metadata={"Software": "arkfast"})
    return path


def draw_mel(mel: np.ndarray) -> bytes:
    """A log-mel as the bytes of a PNG file, one pixel for each value.

    Args:
        mel: float [n_mels, frames], low bands first; they are drawn at the bottom.

    Raises:
        InputError: matplotlib is missing.
    """
    try:
        from matplotlib.image import imsave
    except ImportError as error:
        raise InputError(f"the report's pictures need matplotlib, which is missing: {install_hint('quickstart')}") from error
    content = io.BytesIO()
    imsave(content, np.asarray(mel), cmap="magma", origin="lower", format="png")
    return content.getvalue()


def _draw_curves(axes: Axes, report: Report) -> None:
    highest = 0.0
    for arm, style in _LINES.items():
        row = report.row(arm)
        if row is not None and row.dev is not None:
            highest = max(highest, 100 * row.dev.value)
            axes.axhline(100 * row.dev.value, linewidth=1.6, label=f"{row.label} ({100 * row.dev.value:.1f})", **style)
    for arm, style in _STYLES.items():
        row = report.row(arm)
        if row is not None and row.curve:
            steps, rates = zip(*row.curve, strict=True)
            percents = [100 * rate for rate in rates]
            highest = max(highest, *percents)
            final = f" ({100 * row.dev.value:.1f})" if row.dev is not None else ""
            axes.plot(steps, percents, label=row.label + final, **{"linewidth": 1.8, "markersize": 5, **style})
    for row in report.rows:
        for step in row.stage_begins if row.curve else ():
            axes.axvline(step, color=_FAINT, linewidth=0.8, linestyle=(0, (1, 3)))
            axes.annotate(f"{row.label}:\nnext stage", (step, 0), (3, 4), textcoords="offset points", fontsize=8, color=_FAINT)
    axes.set_title("Word error rate on the dev set while training (final)", loc="left", fontsize=12, color=_INK)
    axes.set_xlabel("steps after the base student; every arm begins with a new, higher learning rate")
    axes.set_ylabel("WER, %")
    axes.set_ylim(0, 1.3 * highest if highest else 100)  # room for the legend above every curve
    axes.set_xlim(left=0)
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=True, framealpha=0.9, edgecolor="none", fontsize=9.5, loc="upper right", ncols=2)
    else:
        axes.text(0.5, 0.5, "no arm has been measured", transform=axes.transAxes, ha="center", color=_FAINT)


def _draw_mel(axes: Axes, clip: Transcription | None) -> None:
    if clip is None or clip.mel is None:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no test clip was given", transform=axes.transAxes, ha="center", color=_FAINT)
        return
    axes.imshow(clip.mel, origin="lower", aspect="auto", cmap="magma", interpolation="nearest", extent=(0, clip.seconds, 0, len(clip.mel)))
    axes.set_title(f"What the models hear: {clip.id}", loc="left", fontsize=12, color=_INK)
    axes.set_xlabel(f"seconds ({clip.note})" if clip.note else "seconds", labelpad=2)
    axes.set_ylabel("mel band")


def _marked(pairs: Sequence[Pair]) -> Iterator[tuple[str, str]]:
    """(how it is marked, word): of a wrong place first the said word, struck, then the heard one, underlined."""
    for pair in pairs:
        if pair.right:
            yield "plain", pair.hypothesis or ""
            continue
        if pair.reference is not None:
            yield "struck", pair.reference
        if pair.hypothesis is not None:
            yield "underlined", pair.hypothesis


def _draw_transcripts(figure: Figure, axes: Axes, clip: Transcription | None) -> None:
    """Label and words of each transcript, wrapped by their drawn widths, marked as on the page."""
    axes.set_axis_off()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    if clip is None:
        return
    axes.set_title("struck: said and not heard; underlined: heard and not said", loc="left", fontsize=9, color=_FAINT, pad=2)
    y = 0.88
    for label, hypothesis in (("said", clip.reference), ("base student", clip.before), ("after OPD", clip.after)):
        words = align(clip.reference.split(), hypothesis.split())
        wrong = sum(not word.right for word in words)
        axes.text(0, y, label, color=_INK, fontsize=10.5, fontweight="bold", va="center")
        if label != "said":
            verdict = "no error" if not wrong else "1 error" if wrong == 1 else f"{wrong} errors"
            axes.text(0, y - 0.66 * _LINE_HEIGHT, verdict, color=_WRONG if wrong else _FAINT, fontsize=8.5, va="center")
        x, lines = _LABEL_WIDTH, 1
        for how, text in _marked(words):
            style: dict[str, Any] = {"color": _INK} if how == "plain" else {"color": _WRONG, "fontweight": "bold"}
            drawn = axes.text(x, y, text, fontsize=10.5, va="center", **style)
            box = drawn.get_window_extent(figure.canvas.get_renderer()).transformed(axes.transData.inverted())  # type: ignore[attr-defined]
            if box.x1 > 1 and x > _LABEL_WIDTH:
                if lines == _MOST_LINES:
                    drawn.set_text("…")
                    break
                x, y, lines = _LABEL_WIDTH, y - _LINE_HEIGHT, lines + 1
                drawn.set_position((x, y))
            right = x + box.width
            if how != "plain":
                height = y - 0.4 * _LINE_HEIGHT if how == "underlined" else y
                axes.plot((x, right), (height, height), color=_WRONG, linewidth=1.6 if how == "underlined" else 1.2)
            x = right + 0.014
        y -= 1.6 * _LINE_HEIGHT
