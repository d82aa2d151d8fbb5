"""The proof's report: a table for the terminal, ``report.json`` and ``report.html``."""

from __future__ import annotations

import dataclasses
import datetime
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from arkfast.files import new_files
from arkfast.plots import Series, line_chart, number
from arkfast.prove.outcome import Outcome, Part
from arkfast.prove.training import Trained
from arkfast.records import JsonObject, JsonRow
from arkfast.reports import Cell, Column, Row, Table, dated, duration, render


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a proof found."""

    outcomes: Sequence[Outcome]
    parts: Sequence[Part]
    trained: Trained
    settings: JsonRow

    @property
    def failed(self) -> list[Outcome]:
        """The comparisons that failed."""
        return [outcome for outcome in self.outcomes if outcome.verdict == "FAIL"]

    @property
    def passed(self) -> bool:
        """Whether none failed; what was not compared is said beside it and is no failure."""
        return not self.failed

    @property
    def headline(self) -> str:
        """The verdict in a sentence."""
        left = sum(outcome.verdict == "not compared" for outcome in self.outcomes)
        beside = f"; {left} not compared" if left else ""
        if self.passed:
            return f"PASS: {len(self.outcomes) - left} comparisons pass{beside}"
        return f"FAIL: {', '.join(outcome.name for outcome in self.failed)}{beside}"


def table(report: Report) -> str:
    """The report for a terminal."""
    width = max(len(outcome.name) for outcome in report.outcomes)
    lines = []
    for outcome in report.outcomes:
        lines.append(f"{outcome.verdict:<12}  {outcome.name:<{width}}  {_figures(outcome)}".rstrip())
        if outcome.verdict != "pass":
            lines.append(f"{'':<12}  {outcome.detail}")
    lines.append("")
    lines += [f"{part.name:<32} {part.seconds:8.1f} s  {_memory(part)}" for part in report.parts]
    return "\n".join([*lines, "", report.headline])


def _figures(outcome: Outcome) -> str:
    if outcome.found is None or outcome.tolerance is None:
        return ""
    return f"{number(outcome.found)} (limit {number(outcome.tolerance)})"


def _memory(part: Part) -> str:
    return "" if part.peak_mb is None else f"{part.peak_mb:,.0f} MiB at most"


def write(report: Report, folder: Path) -> None:
    """Write both files, or neither.

    Raises:
        InputError: they cannot be written.
    """
    with new_files([folder / "report.json", folder / "report.html"]) as (fields, html):
        fields.write_text(json.dumps(to_json(report), ensure_ascii=False, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        html.write_text(page(report), encoding="utf-8")


def to_json(report: Report) -> JsonObject:
    """The report as plain values; numbers that are not finite are None."""
    return {
        "passed": report.passed,
        "headline": report.headline,
        "comparisons": [dataclasses.asdict(outcome) for outcome in report.outcomes],
        "parts": [dataclasses.asdict(part) for part in report.parts],
        "losses": [_finite(loss) for loss in report.trained.losses],
        "wer": [{"step": step, "percent": rate} for step, rate in report.trained.wer],
        "settings": dict(report.settings),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Of what computed."""
    import torch
    import transformers

    from arkfast import __version__

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {"arkfast": __version__, "torch": torch.__version__, "transformers": transformers.__version__,
            "python": platform.python_version(), "gpu": gpu}  # fmt: skip


def page(report: Report, day: datetime.date | None = None) -> str:
    """The page, with its verdict first; ``day`` is the proof's, today where none is given."""
    passed, left = (sum(outcome.verdict == verdict for outcome in report.outcomes) for verdict in ("pass", "not compared"))
    models = [(what, report.settings.get(f"{what}_model")) for what in ("student", "teacher")]
    when = dated(day or datetime.date.today())
    hero = {
        "figure": "PASS" if report.passed else "FAIL",
        "unit": f"{passed:,} of {len(report.outcomes):,} comparisons pass" + (f", {left:,} not compared" if left else ""),
        "what": "" if report.passed else "Failed: " + ", ".join(outcome.name for outcome in report.failed),
        "tone": "pass" if report.passed else "bad",
    }
    return render(
        "proof.html",
        title=f"arkfast prove: {hero['figure']}, {when}",
        drawings={"charts": "".join(_curves(report.trained))},
        about=[*(f"{what} {PurePath(str(path)).name}" for what, path in models if path), when],
        hero=hero,
        comparisons=_comparisons(report.outcomes),
        parts_of=_parts(report.parts),
        settings=[(str(name), str(value)) for name, value in {**report.settings, **versions()}.items()],
    )


_TONES = {"pass": "pass", "FAIL": "bad", "not compared": "faint"}


def _comparisons(outcomes: Sequence[Outcome]) -> Table:
    rows = [
        Row(cells=[
            Cell(text=outcome.name),
            Cell(text=outcome.verdict, tone=_TONES[outcome.verdict]),
            *(Cell(text="–" if value is None else number(value)) for value in (outcome.found, outcome.tolerance)),
            Cell(text=outcome.detail),
            Cell(text=outcome.reason or "–", tone="faint"),
        ])
        for outcome in outcomes
    ]  # fmt: skip
    names = ("comparison", "verdict", "found", "limit", "what was compared", "why this limit")
    columns = [Column(name=name, is_number=name in ("found", "limit")) for name in names]
    return Table(label="Comparisons", columns=columns, rows=rows)


def _parts(parts: Sequence[Part]) -> Table:
    rows = [Row(cells=[Cell(text=part.name), Cell(text=duration(part.seconds)), Cell(text=_memory(part) or "–")]) for part in parts]
    columns = [Column(name="part"), Column(name="time", is_number=True), Column(name="memory", is_number=True)]
    return Table(label="Time and memory", columns=columns, rows=rows)


def _curves(trained: Trained) -> list[str]:
    charts = []
    losses = [_finite(loss) for loss in trained.losses]
    if any(loss is not None for loss in losses):
        charts.append(line_chart([Series(label="loss", x=range(1, len(losses) + 1), y=losses)], title="Loss", zero=True))
    if trained.wer:
        points = Series(label="WER", x=[step for step, _ in trained.wer], y=[rate for _, rate in trained.wer], tone=2, dots=True)
        charts.append(line_chart([points], title="WER", note="% of the reference", zero=True))
    return charts


def _finite(value: float) -> float | None:
    return value if abs(value) < float("inf") else None
