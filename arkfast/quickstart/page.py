"""What stands on the quickstart's page: the held-out test set first, what the intervals allow to say, and the limits of such a run.

Every figure in a sentence is computed from the report.
"""

from __future__ import annotations

import base64
import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from arkfast.metrics import align
from arkfast.plots import Series, line_chart
from arkfast.quickstart.results import ARM_LABELS, ArmRow, Rate, Report, Transcription
from arkfast.reports import Cell, Column, Row, Run, Table, dated, duration, interval, percent, points, render, runs

Split = Literal["dev", "test"]
_SETS: dict[Split, str] = {"test": "held-out test set", "dev": "dev set"}
_DIGITS = 1  # of a rate: the sets are small
LIMITS = (
    "More SFT sees only the student's few labels, while OPD and the pseudo-labels also hear the unlabelled pool: a gain over more SFT is "
    "the worth of the pool and the teacher together, and not of OPD alone.",
    "The intervals say how far other utterances of the same kind could move a figure. They do not say how far another random seed, teacher "
    "or student could: this is one run.",
    "Synthetic voices saying digits are far easier than speech. The page shows that the machinery works from end to end, and not how "
    "accurate a model would be on recordings.",
    "The test set has texts, voices and noises that training never heard; the dev set shares its voices and noises with training.",
)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How two arms compare on a set, no stronger than the intervals allow."""

    ours: float
    """The first arm's rate."""
    theirs: float
    """The second arm's rate."""
    interval: str
    """What decides it, in words."""
    verdict: Literal["fewer errors", "more errors", "not told apart"]
    """Of the first arm against the second."""


@dataclass(frozen=True, kw_only=True)
class ShownClip:
    """A test clip as the page shows it."""

    name: str
    figures: Sequence[str]
    mel: str
    """Address of its picture; empty where it has none."""
    source: str
    """What its player opens; empty where there is no recording."""
    said: str
    transcripts: Sequence[tuple[str, Sequence[Run]]]


def render_page(report: Report, mels: Mapping[str, bytes] | None = None) -> str:
    """The whole page.

    Args:
        report: what to say.
        mels: a clip's id → the bytes of a PNG file, its log-mel.
    """
    day = dated(report.day or datetime.date.today())
    data = report.data or "synthetic speech"
    return render(
        "quickstart.html",
        title=f"arkfast quickstart, {day}",
        drawings={"curves": _curves(report)},
        about=[report.student, data, day],
        hero=_hero(report),
        headline=headline_of(report),
        arms=_arms(report),
        curves_note=_curves_note(report),
        comparisons=_comparisons(report),
        limits=LIMITS,
        clips=[_clip(clip, (mels or {}).get(clip.id)) for clip in report.clips],
        commands=report.commands,
        settings=[
            (name, [(str(key), str(value)) for key, value in values.items()])
            for name, values in (("Recipe", report.recipe), ("Machine and versions", report.environment))
            if values
        ],
    )


def headline_of(report: Report) -> str:
    """What OPD did to the word error rate on the held-out test set, and whether pseudo-labels do as well, from the rows alone."""
    base, opd = report.row("base"), report.row("opd")
    if base is None or opd is None or base.test is None or opd.test is None:
        return "On-policy distillation has not been measured yet."
    before, after = base.test.value, opd.test.value
    if before == after:
        change = f"left the word error rate on the {_SETS['test']} at {_percent(after)}"
    else:
        verb = "lowered" if after < before else "raised"
        change = f"{verb} the word error rate on the {_SETS['test']} from {_percent(before)} to {_percent(after)}"
    sentence = f"On-policy distillation {change}{f' in {opd.steps:,} steps' if opd.steps else ''}"
    pseudo = compared(report, "opd", "pseudo", "test")
    if pseudo is not None:
        tie = pseudo.verdict == "not told apart"
        beside = "which this run does not tell apart from it" if tie else f"against which OPD makes {pseudo.verdict}"
        sentence += f"; pseudo-labels of the same teacher give {_percent(pseudo.theirs)}, {beside}"
    sft = report.row("sft")
    if sft is not None and sft.test is not None:
        sentence += f"; further training on the student's own labels gives {_percent(sft.test.value)}"
    return sentence + "."


def compared(report: Report, first: str, second: str, split: Split) -> Comparison | None:
    """How two arms compare on a set; None where either is not measured.

    A paired interval of the difference decides where the report has one. Otherwise two intervals that overlap leave it open, although a
    paired comparison might have settled it.
    """
    ours, theirs = (_rate(report.row(arm), split) for arm in (first, second))
    if ours is None or theirs is None:
        return None
    paired = next((d for d in report.differences if (d.first, d.second, d.split) == (first, second, split)), None)
    if paired is not None:
        low, high = paired.low, paired.high
        said = f"{points(paired.value, digits=_DIGITS)} points, {points(low, high, digits=_DIGITS)} with pairs"
    else:
        low, high = ours.low - theirs.high, ours.high - theirs.low
        said = "95 % intervals overlap" if low <= 0 <= high else "95 % intervals do not overlap"
    return Comparison(
        ours=ours.value,
        theirs=theirs.value,
        interval=said,
        verdict="fewer errors" if high < 0 else "more errors" if low > 0 else "not told apart",
    )


def _rate(row: ArmRow | None, split: Split) -> Rate | None:
    return None if row is None else row.dev if split == "dev" else row.test


def _percent(rate: float) -> str:
    return percent(rate, _DIGITS)


def _hero(report: Report) -> dict[str, str]:
    base, opd = (_rate(report.row(arm), "test") for arm in ("base", "opd"))
    if base is None or opd is None:
        return {"figure": "not measured yet", "unit": "", "what": "The arms are still in training.", "tone": ""}
    against_base = compared(report, "opd", "base", "test")
    tone = {"fewer errors": "pass", "more errors": "bad"}.get(against_base.verdict if against_base else "", "")
    what = "base student, then after on-policy distillation"
    return {"figure": f"{_percent(base.value)} → {_percent(opd.value)}", "unit": "WER on the held-out test set", "what": what, "tone": tone}


def _arms(report: Report) -> Table:
    names = ("WER, held-out test set", "WER, dev set", "support, ids", "steps", "time")
    order = list(ARM_LABELS)
    rows = []
    for row in sorted(report.rows, key=lambda row: order.index(row.arm)):
        blank = "–" if row.state == "done" else "…"
        steps = blank if row.steps is None else f"{row.steps:,}"
        if row.state == "running" and row.total_steps is not None:
            steps = f"{row.steps or 0:,}/{row.total_steps:,}"
        figures = [
            blank if row.support is None else f"{row.support:.1f}",
            steps,
            blank if row.seconds is None else duration(row.seconds),
        ]
        rates = [_rate_cell(rate, blank) for rate in (row.test, row.dev)]
        cells = [Cell(text=row.label), *rates, *(Cell(text=figure) for figure in figures)]
        rows.append(Row(cells=cells, is_chosen=row.arm == "opd"))
    return Table(label="The arms", columns=[Column(name="arm"), *(Column(name=name, is_number=True) for name in names)], rows=rows)


def _rate_cell(rate: Rate | None, blank: str) -> Cell:
    return Cell(text=blank) if rate is None else Cell(text=_percent(rate.value), note=interval(rate.low, rate.high, _DIGITS))


def _comparisons(report: Report) -> Table | None:
    rows = []
    for other in ("base", "sft", "pseudo", "td_opd"):
        on = {split: compared(report, "opd", other, split) for split in _SETS}
        if not any(on.values()):
            continue
        cells = [Cell(text=ARM_LABELS[other])]
        for found in on.values():
            if found is None:
                cells.append(Cell(text="–"))
                continue
            tone = {"fewer errors": "pass", "more errors": "bad"}.get(found.verdict, "")
            figures = f"{_percent(found.ours)} against {_percent(found.theirs)}; {found.interval}"
            cells.append(Cell(text=found.verdict, note=figures, tone=tone))
        rows.append(Row(cells=cells))
    columns = [Column(name="OPD against"), *(Column(name=name) for name in _SETS.values())]
    return Table(label="OPD against the other arms", columns=columns, rows=rows) if rows else None


def _curves(report: Report) -> str:
    """The dev error rate of each arm over its steps; base student and teacher as level lines."""
    lines = []
    tones = {"opd": 1, "sft": 5, "pseudo": 3, "td_opd": 4, "base": 6, "teacher": 2}
    curves = [
        (row.arm, row.curve) for arm in tones if (row := report.row(arm)) is not None and row.curve and arm not in ("base", "teacher")
    ]
    longest = max((curve[-1][0] for _, curve in curves), default=0)
    for arm, curve in curves:
        steps, rates = zip(*curve, strict=True)
        lines.append(Series(label=ARM_LABELS[arm], x=steps, y=[100 * rate for rate in rates], tone=tones[arm], dots=True))
    for arm in ("base", "teacher"):
        row = report.row(arm)
        if lines and row is not None and row.dev is not None:
            lines.append(Series(label=row.label, x=[0, longest], y=[100 * row.dev.value] * 2, tone=tones[arm]))
    if not lines:
        return ""
    return line_chart(
        lines, title="Word error rate on the dev set", note="%, while the arms train", x_label="steps after the base student", zero=True
    )


def _curves_note(report: Report) -> str:
    note = "Every arm begins with a new and higher learning rate than the base student ended with, so a curve may rise before it falls."
    for row in report.rows:
        for step in row.stage_begins:
            note += f" The arm “{row.label}” goes over to its next stage at step {step:,}, where its learning rate starts anew."
    return note


def _clip(clip: Transcription, mel: bytes | None) -> ShownClip:
    reference, heard_by = clip.reference.split(), (("base student", clip.before), ("after OPD", clip.after))
    return ShownClip(
        name=clip.id,
        figures=[figure for figure in (duration(clip.seconds), clip.note) if figure],
        mel=_address("image/png", mel),
        source=_address("audio/wav", clip.wav),
        said=clip.reference,
        transcripts=[(label, runs(align(reference, heard.split()), "word")) for label, heard in heard_by],
    )


def _address(kind: str, content: bytes | None) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}" if content else ""
