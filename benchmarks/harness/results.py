"""Results as files and as tables: what a figure was measured on, how runs merge, how rows print."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from arkfast.files import write_text

Result = dict[str, Any]
ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "triton", "numpy", "transformers", "liger-kernel", "flashinfer-python")


def version(package: str) -> str | None:
    """An installed package's version, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def commit_here() -> str:
    """The checkout's commit, "+changes" where files differ from it; "unknown" outside of git."""
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+changes" if changed else "")


def processor() -> str:
    """The CPU's name."""
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found.group(1) if found else platform.machine()


def sources() -> str:
    """A digest of all Python code that is timed and that times it, to tell code apart where git cannot."""
    digest = hashlib.sha256()
    for path in sorted(path for folder in ("kernels", "arkfast", "benchmarks") for path in (ROOT / folder).rglob("*.py")):
        digest.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def machine(device: torch.device, commit: str | None) -> Result:
    """What every figure of this run was measured on.

    Args:
        commit: of the code, where the checkout does not know it.
    """
    hardware: Result = {"cpu": processor(), "cores": os.cpu_count()}
    gpu = None
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        gpu = properties.name
        hardware.update(
            gpu=gpu,
            gpu_memory_bytes=properties.total_memory,
            capability=f"{properties.major}.{properties.minor}",
            multiprocessors=properties.multi_processor_count,
        )
    return {
        "device": device.type,
        "gpu": gpu,
        "hardware": hardware,
        "cudnn_attention": torch.backends.cuda.cudnn_sdp_enabled(),
        "versions": {"python": platform.python_version(), "cuda": torch.version.cuda, **{name: version(name) for name in PACKAGES}},
        "commit": commit or commit_here(),
        "sources": sources(),
        "date": time.strftime("%Y-%m-%d"),
    }


def slug(name: str | None) -> str:
    """A GPU's name as a folder's; "cpu" for None."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") if name else "cpu"


def write(path: Path, result: Result) -> None:
    """Replaces a file at once, so that a crash leaves the old one or the new."""
    write_text(path, json.dumps(result, indent=1, allow_nan=False) + "\n")


SAME = ("device", "gpu", "hardware", "versions", "commit", "sources")


def place(out: Path, about: Result) -> Path:
    """<out>/<gpu>/<date>.json, or with -2, -3 … where a file of that day is of another commit, machine or set of versions.

    Figures of different code or machines never share a file, and a rerun of the same finds its own.
    """
    number = 1
    while True:
        path = out / slug(about["gpu"]) / (f"{about['date']}.json" if number == 1 else f"{about['date']}-{number}.json")
        if not path.exists():
            return path
        held = json.loads(path.read_text(encoding="utf-8"))
        if all(held.get(name) == about[name] for name in SAME):
            return path
        number += 1


def shape_key(group: str, shape: dict[str, int | str]) -> tuple[str, str]:
    """What the rows of one sitting share."""
    return group, json.dumps(shape, sort_keys=True)


def key(row: Result) -> tuple[str, str, str]:
    """What a row is the figure of."""
    return *shape_key(row["group"], row["shape"]), row["provider"]


def merge(old: Sequence[Result], new: Sequence[Result]) -> list[Result]:
    """Old rows with new ones in their place; a row that was not run does not replace one that was.

    A shape that was run again loses its old rows altogether, so that ratios stay between figures of one sitting; unless the time cut the
    new sitting short and not the old one, which then stands.
    """

    def shapes(rows: Sequence[Result], where: Callable[[Result], bool]) -> set[tuple[str, str]]:
        return {key(row)[:2] for row in rows if where(row)}

    ran, had = (shapes(rows, lambda row: row["check"] != "not run") for rows in (new, old))
    short, short_before = (shapes(rows, lambda row: row.get("error") == "out of time") for rows in (new, old))
    stands = {shape for shape in had if shape not in ran or (shape in short and shape not in short_before)}
    replaced = (ran | shapes(new, lambda row: True)) - stands
    return [row for row in old if key(row)[:2] not in replaced] + [row for row in new if key(row)[:2] not in stands]


def merged(results: Sequence[Result]) -> list[Result]:
    """Results of several calls and folders as one for each machine, commit and set of versions; of two figures the later one's counts."""
    found: list[Result] = []
    for result in sorted(results, key=lambda result: str(result.get("date", ""))):
        same = next((one for one in found if all(one.get(name) == result.get(name) for name in ("name", *SAME))), None)
        if same is None or not all(name in result for name in SAME):
            found.append(dict(result))
            continue
        same["rows"] = merge(same["rows"], result["rows"])
        same["date"] = result["date"]
        if "groups" in result:
            same["groups"] = {**same.get("groups", {}), **result["groups"]}
        if "goals" in result:
            same.setdefault("goals", result["goals"])
    return found


def shape_name(row: Result) -> str:
    """A row's shape in one word."""
    sizes = dict(row["shape"])
    mode = sizes.pop("mode", None)
    return "-".join([*([mode] if mode else []), *(f"{name}{size}" for name, size in sizes.items())])


Column = tuple[str, str, Callable[[Result], str]]
COLUMNS: tuple[Column, ...] = (
    *((f"{name} ms", "seconds", lambda row, name=name: f"{1e3 * row['seconds'][name]:.3f}") for name in ("p20", "p50", "p80")),
    ("peak MB", "extra_bytes", lambda row: f"{row['extra_bytes'] / 1e6:.1f}"),
    ("GB/s", "gb_s", lambda row: f"{row['gb_s']:.1f}"),
    ("TFLOP/s", "tflop_s", lambda row: f"{row['tflop_s']:.1f}"),
    ("% copy", "percent_of_copy", lambda row: f"{row['percent_of_copy']:.0f}"),
    ("% mm", "percent_of_mm", lambda row: f"{row['percent_of_mm']:.0f}"),
    ("faster", "ratio", lambda row: f"{row['ratio']:.2f}x"),
)
"""Times in milliseconds, memory, rates, percentages of ceilings, the ratio to the suite's baseline: the heading, the field that a row must
have, how its cell reads."""


def has(row: Result, column: Column) -> bool:
    """Whether a row has a figure for a column."""
    return row.get(column[1]) not in (None, {})


def remark(row: Result) -> str:
    """What is to be said of a row besides its figures: why it has none, or its note."""
    trouble = row.get("error") or (row["check"] if str(row["check"]).startswith("failed") else "")
    return str(trouble or row.get("note", ""))


def table(rows: Iterable[Result]) -> list[str]:
    """Lines of text, one for each row."""
    lines = [("group", "shape", "provider", *(heading for heading, _, _ in COLUMNS), "")]
    for row in rows:
        cells = (column[2](row) if has(row, column) else "-" for column in COLUMNS)
        lines.append((row["group"], shape_name(row), row["provider"], *cells, remark(row)))
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
