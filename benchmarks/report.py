"""Turns result files into Markdown tables and bar charts; measures nothing.

    python benchmarks/report.py benchmarks/results/cpu/log_mel-2026-01-31.json --out docs

A row whose check failed, or that was not run, is shown with the reason and without figures. Beside each file's tables stands what they were
measured on; after those of the GPU suite, the verdict on each goal. With ``--out``, OUT/<group>.png shows each group's speeds; that alone
needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from harness import goals, results
from harness.results import Column, shape_name

from arkfast.files import new_file

Row = dict[str, Any]

COLUMNS: tuple[Column, ...] = (
    *results.COLUMNS,
    ("% of perfect scaling", "percent_of_fewest", lambda row: f"{row['percent_of_fewest']:.0f}"),
    ("x real time", "x_real_time", lambda row: f"{row['x_real_time']:,.0f}"),
    ("largest error", "largest_error", lambda row: f"{row['largest_error']:.1e}"),
)
"""Those of which a table has a figure are shown."""


def name_of(row: Row) -> str:
    """A row's shape as a reader would say it."""
    return row.get("shape_name") or shape_name(row)


def measured_on(result: Row) -> str:
    """One line: the machine, versions, commit and date."""
    hardware = result["hardware"]
    versions = ", ".join(f"{name} {value}" for name, value in result["versions"].items() if value)
    where = f"{hardware.get('gpu') or hardware['cpu']} ({result['device']}), {result['date']}, commit {result['commit'][:12]}"
    return "; ".join([where, versions, *([result["clock"]] if "clock" in result else [])])


def grouped(rows: Sequence[Row], key: Callable[[Row], str]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def grid(lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first line is its head."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rows = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines]
    return "\n".join([rows[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *rows[1:]])


def verdicts(rows: Sequence[Row]) -> str:
    """A table of the goals: what was wanted, what was measured, and whether that met it."""
    lines = [("", "goal", "wanted", "stretch", "measured", "verdict", "where")]
    for verdict in (goals.judge(goal, rows) for goal in goals.GOALS):
        goal = verdict.goal
        wanted, stretch, figure = (
            "–" if value is None else f"{value:.3g}{goal.unit}" for value in (goal.must, goal.stretch, verdict.figure)
        )  # fmt: skip
        lines.append((goal.id, goal.text, f"{'≤' if goal.most else '≥'} {wanted}", stretch, figure, verdict.state, verdict.why))
    return grid(lines)


def markdown(result: Row) -> str:
    """A table for each group of rows and shape, after a line that says what was measured on; the goals last, of a result that has any."""
    parts = [measured_on(result)]
    for group, rows in grouped(result["rows"], lambda row: row["group"]).items():
        for shape, those in grouped(rows, name_of).items():
            columns = [column for column in COLUMNS if any(results.has(row, column) for row in those)]
            lines = [[group, *(heading for heading, _, _ in columns), ""]]
            for row in those:
                figures = [column[2](row) if results.has(row, column) else "–" for column in columns]
                trouble = row["check"] if row["check"] not in ("passed", "none needed") else ""
                lines.append([row["provider"], *figures, (results.remark(row) or str(trouble)).split("\n")[0]])
            parts.append(f"{shape}\n\n{grid(lines)}")
    if "goals" in result:
        parts.append(f"Goals{'' if result['device'] == 'cuda' else ' of a GPU, of which none was seen'}\n\n{verdicts(result['rows'])}")
    return "\n\n".join(parts)


def chart(result: Row, group: str, path: Path) -> None:
    """Horizontal bars, a panel for each shape: times real time where rows have it, else times faster than the group's baseline."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in result["rows"] if row["group"] == group and row.get("seconds")]
    field, label = ("x_real_time", "times real time") if any("x_real_time" in row for row in rows) else ("ratio", "times faster")
    panels = grouped([row for row in rows if row.get(field)], name_of)
    if not panels:
        raise ValueError(f"{group}: no row has a figure to draw")
    tallest = max(map(len, panels.values()))
    figure, axes = pyplot.subplots(len(panels), 1, figsize=(8, (0.6 + 0.3 * tallest) * len(panels) + 0.6), squeeze=False)
    for axis, (shape, those) in zip(axes[:, 0], panels.items(), strict=True):
        values = [row[field] for row in those]
        bars = axis.barh([row["provider"] for row in those], values, color=["#1f77b4" if row.get("ours") else "#b0b0b0" for row in those])
        axis.bar_label(bars, labels=[f"{value:,.0f}" if value >= 100 else f"{value:.2f}" for value in values], padding=3, fontsize=8)
        axis.set_title(shape, fontsize=9, loc="left")
        axis.tick_params(labelsize=8)
        axis.margins(x=0.15)
        axis.invert_yaxis()
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1, 0].set_xlabel(label, fontsize=8)
    figure.suptitle(f"{group}: {result['hardware'].get('gpu') or result['hardware']['cpu']}, {result['date']}", fontsize=10)
    figure.tight_layout()
    with new_file(path) as temporary:
        figure.savefig(temporary, dpi=150, format=path.suffix[1:])
    pyplot.close(figure)


def found(paths: Sequence[Path]) -> list[Path]:
    """The files, and those that lie anywhere in the folders."""
    return [file for path in paths for file in (sorted(path.rglob("*.json")) if path.is_dir() else [path])]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "files",
        nargs="+",
        type=Path,
        help="result files, and folders of them: what one machine measured of one commit in several calls becomes one table",
    )
    parser.add_argument("--out", type=Path, help="where to draw OUT/<group>.png")
    options = parser.parse_args(arguments)
    for result in results.merged([json.loads(file.read_text(encoding="utf-8")) for file in found(options.files)]):
        print(markdown(result), end="\n\n")
        if options.out:
            for group in dict.fromkeys(row["group"] for row in result["rows"] if row.get("seconds")):
                chart(result, group, options.out / f"{group}.png")
                print(options.out / f"{group}.png")


if __name__ == "__main__":
    main()
