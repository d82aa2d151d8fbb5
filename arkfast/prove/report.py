"""The proof's report: a table for the terminal, ``report.json`` and ``report.html``."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from arkfast.files import new_files
from arkfast.plots import Series, line_chart, number, page
from arkfast.prove.outcome import Outcome, Part
from arkfast.prove.training import Trained
from arkfast.records import JsonObject, JsonRow

_STYLE = ".pass { color: var(--s3); font-weight: 600; } .bad { font-weight: 600; } td { max-width: 44rem; overflow-wrap: anywhere; }"


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
        html.write_text(render(report), encoding="utf-8")


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


def render(report: Report) -> str:
    """The page."""
    tone = "pass" if report.passed else "bad"
    head = ("comparison", "verdict", "found", "limit", "what was compared", "why this limit")
    rows = [
        "<tr>"
        + f"<td>{escape(outcome.name)}</td>"
        + f'<td class="{_TONES[outcome.verdict]}">{outcome.verdict}</td>'
        + "".join(
            f'<td class="number">{"" if value is None else escape(number(value))}</td>' for value in (outcome.found, outcome.tolerance)
        )
        + f'<td>{escape(outcome.detail)}</td><td class="faint">{escape(outcome.reason)}</td></tr>'
        for outcome in report.outcomes
    ]
    parts = [f'<tr><td>{escape(part.name)}</td><td class="number">{part.seconds:.1f} s</td><td class="number">{_memory(part)}</td></tr>'
             for part in report.parts]  # fmt: skip
    sections = [
        "<h1>Proof of two checkpoints</h1>",
        f'<p class="{tone}">{escape(report.headline)}</p>',
        f'<div class="wide"><table><tr>{"".join(f"<th>{name}</th>" for name in head)}</tr>{"".join(rows)}</table></div>',
        *_curves(report.trained),
        f'<h2>Time and memory</h2><div class="wide"><table>{"".join(parts)}</table></div>',
        "<h2>Settings</h2>",
        _values({**report.settings, **versions()}),
    ]
    return page("arkfast prove", "<main>\n" + "\n".join(sections) + "\n</main>", style=_STYLE)


_TONES = {"pass": "pass", "FAIL": "bad", "not compared": "faint"}


def _curves(trained: Trained) -> list[str]:
    charts = []
    losses = [_finite(loss) for loss in trained.losses]
    if any(loss is not None for loss in losses):
        charts.append(line_chart([Series(label="loss", x=range(1, len(losses) + 1), y=losses)], title="Loss", zero=True))
    if trained.wer:
        points = Series(label="WER", x=[step for step, _ in trained.wer], y=[rate for _, rate in trained.wer], tone=2, dots=True)
        charts.append(line_chart([points], title="WER", note="% of words", zero=True))
    return ["<h2>The steps</h2>", f'<div class="charts">{"".join(charts)}</div>'] if charts else []


def _values(values: JsonRow) -> str:
    rows = "".join(f"<tr><td>{escape(str(name))}</td><td><code>{escape(str(value))}</code></td></tr>" for name, value in values.items())
    return f'<div class="wide"><table>{rows}</table></div>'


def _finite(value: float) -> float | None:
    return value if abs(value) < float("inf") else None
