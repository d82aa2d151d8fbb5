"""The goals that the kernels are held to on an H200, as functions of a result's rows.

Every goal is about bfloat16, V = 151,936 and, where an op has it, K = 32; the figure is the worst over the shapes named. A goal whose
provider was not there, or not on a GPU, is not run; one whose provider failed its check is missed. FLOP percentages against 790 TFLOP/s and
times hold for an H200 alone.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from shapes import V_TEACHER

from harness.ceilings import peak_flop

Row = dict[str, Any]
OURS = "ours/triton"
OUT_OF_TIME = "out of time"
"""The error of a shape that was not begun."""
ROOFLINE = 9_420
"""Seconds of speech that the 0.6B model could transcribe in one, bound by products and memory alone: clips of 10 s, 128 at once."""
LEADERBOARD = 663
"""Times real time of ARK-ASR-0.6B on the Open ASR Leaderboard's board of 2026-10-02, whose clock leaves decoding of files out."""
WORKSPACE, BYTES_A_POSITION = 512 << 20, 5_500
"""What the loss block may hold: the workspace and 5.5 KB a position (its ids, scores, gradients and bfloat16 hidden gradient)."""


@dataclass(frozen=True, kw_only=True)
class Goal:
    """One figure to reach."""

    id: str
    text: str
    must: float
    stretch: float | None = None
    group: str
    figure: Callable[[Row, Sequence[Row]], float | None]
    """(row, all rows of our provider) → the row's figure; None where it says nothing about the goal."""
    where: Callable[[Row], bool]
    most: bool = False
    """Whether ``must`` is an upper bound."""
    unit: str = "%"
    provider: str = OURS


@dataclass(frozen=True)
class Verdict:
    """How a goal came out."""

    goal: Goal
    state: str
    """"met", "missed" or "not run"."""
    figure: float | None
    """The worst one."""
    why: str = ""
    """The shape of that figure, or what kept it from being measured."""


def sized(row: Row, *, mode: str = "", V: int | None = V_TEACHER, K: int | None = 32, **sizes: tuple[int, ...]) -> bool:
    """Whether a row's shape has these sizes; None takes any."""
    shape = row["shape"]
    return (
        shape.get("mode", "") == mode
        and (V is None or shape["V"] == V)
        and (K is None or shape.get("K", 0) == K)
        and all(shape.get(name, 0) in allowed for name, allowed in sizes.items())
    )


LARGE = (4_096, 16_384)


Figure = Callable[[Row, Sequence[Row]], "float | None"]


def column(name: str) -> Figure:
    """A row's own column."""
    return lambda row, rows: row.get(name)


def faster_than(other: str) -> Figure:
    """How many times our time fits into that of another provider."""
    return lambda row, rows: (row.get("times_faster_than") or {}).get(other)


def dense_ratio(row: Row, rows: Sequence[Row]) -> float | None:
    percent = row.get("percent_of_dense")
    return None if percent is None else percent / 100


def dense_floor_ratio(row: Row, rows: Sequence[Row]) -> float | None:
    """Three dense products at the GPU's measured peak, over our time."""
    peak, shape = peak_flop(row.get("gpu") or ""), row["shape"]
    return None if peak is None or "seconds" not in row else 6 * shape["T"] * shape["V"] * shape["H"] / peak / row["seconds"]["p50"]


def peak_percent(row: Row, rows: Sequence[Row]) -> float | None:
    peak, rate = peak_flop(row.get("gpu") or ""), row.get("tflop_s")
    return None if peak is None or rate is None else 100 * rate * 1e12 / peak


def memory_share(row: Row, rows: Sequence[Row]) -> float | None:
    """Extra memory in percent of what the loss block may hold at its T."""
    extra = row.get("extra_bytes")
    return None if extra is None else 100 * extra / (WORKSPACE + BYTES_A_POSITION * row["shape"]["T"])


def atomic_share(row: Row, rows: Sequence[Row]) -> float | None:
    """Our time over the atomic mode's."""
    ratio = faster_than("atomic/triton")(row, rows)
    return 1 / ratio if ratio else None


def milliseconds(row: Row, rows: Sequence[Row]) -> float | None:
    return 1e3 * row["seconds"]["p50"] if "seconds" in row else None


def roofline_share(row: Row, rows: Sequence[Row]) -> float | None:
    """Times real time, in percent of the bound."""
    speed = row.get("x_real_time")
    return None if speed is None else 100 * speed / ROOFLINE


def leaderboard_ratio(row: Row, rows: Sequence[Row]) -> float | None:
    """Times real time over what the leaderboard gives the model."""
    speed = row.get("x_real_time")
    return None if speed is None else speed / LEADERBOARD


def memory_slope(row: Row, rows: Sequence[Row]) -> float | None:
    """Extra bytes for each position more than at T = 1,024, the other sizes equal."""
    small = next((r for r in rows if r["shape"] == {**row["shape"], "T": 1_024}), None)
    if small is None or small is row or row.get("extra_bytes") is None or small.get("extra_bytes") is None:
        return None
    return (row["extra_bytes"] - small["extra_bytes"]) / (row["shape"]["T"] - 1_024)


def _goals() -> Iterable[Goal]:
    narrow, wide = {"T": LARGE, "H": (896, 1_024)}, {"T": LARGE, "H": (2_048,)}
    for suffix, sizes, must, stretch in (("H ≤ 1024", narrow, 80, 85), ("H = 2048", wide, 88, 92)):
        yield Goal(
            id="G1", text=f"teacher block, share of its bare product, {suffix}", must=must, stretch=stretch, group="linear_topk",
            figure=column("percent_of_mm"), where=lambda row, sizes=sizes: sized(row, **sizes),
        )  # fmt: skip
    for suffix, sizes, must, stretch in (("H ≤ 1024", narrow, 60, 66), ("H = 2048", wide, 75, 80)):
        yield Goal(
            id="G1'", text=f"teacher block, share of 790 TFLOP/s, {suffix}", must=must, stretch=stretch, group="linear_topk",
            figure=peak_percent, where=lambda row, sizes=sizes: sized(row, **sizes),
        )  # fmt: skip
    rows = {"T": LARGE}
    yield Goal(
        id="G2", text="row kernel, share of copy bandwidth", must=80, stretch=88, group="row_topk",
        figure=column("percent_of_copy"), where=lambda row: sized(row, **rows),
    )  # fmt: skip
    for other, must, stretch in (("torch.topk", 8, 15), ("FlashInfer", 2, 3)):
        yield Goal(
            id="G2'", text=f"row kernel against {other}", must=must, stretch=stretch, group="row_topk", unit="x",
            figure=faster_than(other), where=lambda row: sized(row, **rows),
        )  # fmt: skip
    for T, must, stretch in ((4_096, 8, 11), (16_384, 10, 14)):
        for name, figure in (("timed", dense_ratio), ("at 790 TFLOP/s", dense_floor_ratio)):
            yield Goal(
                id="G3", text=f"student block against three dense products {name}, T = {T:,}", must=must, stretch=stretch, unit="x",
                group="union_kl", figure=figure, where=lambda row, T=T: sized(row, T=(T,)),
            )  # fmt: skip
    for HT, must, stretch in ((1_024, 65, 72), (2_048, 75, 82)):
        yield Goal(
            id="G4", text=f"whole block, share of the teacher's bare product, HT = {HT}", must=must, stretch=stretch, group="loss_block",
            figure=column("percent_of_mm"), where=lambda row, HT=HT: sized(row, T=LARGE, HT=(HT,)),
        )  # fmt: skip
    others = (("eager", 3.5, 5), ("torch.compile", 3, 4), ("Liger chunked JSD", 3, 5), ("Liger fused_linear_jsd", 10, 20))
    for other, must, stretch in others:
        yield Goal(
            id="G5", text=f"whole block against {other}", must=must, stretch=stretch, group="loss_block", unit="x",
            figure=faster_than(other), where=lambda row: sized(row, T=LARGE),
        )  # fmt: skip
    yield Goal(
        id="G6", text="whole block against the original's loss section, T = 2,560", must=200, stretch=500, group="loss_block", unit="x",
        figure=faster_than("original"), where=lambda row: sized(row, mode="original"),
    )  # fmt: skip
    yield Goal(
        id="G7", text="whole block's extra memory, share of 512 MiB + 5.5 KB a position", must=100, group="loss_block", most=True,
        figure=memory_share, where=lambda row: sized(row),
    )  # fmt: skip
    yield Goal(
        id="G7", text="whole block's extra bytes for each position beyond T = 1,024", must=BYTES_A_POSITION, group="loss_block", most=True,
        figure=memory_slope, where=lambda row: sized(row, T=LARGE), unit=" B",
    )  # fmt: skip
    yield Goal(
        id="K7", text="sorted head gradient, times the atomic one's time", must=1.5, group="sparse_grad", most=True, unit="x",
        figure=atomic_share, where=lambda row: sized(row, **rows),
    )  # fmt: skip
    yield Goal(
        id="K8", text="log-softmax of rows, share of copy bandwidth", must=80, group="log_softmax",
        figure=column("percent_of_copy"), where=lambda row: sized(row, mode="rows", **rows),
    )  # fmt: skip
    yield Goal(
        id="K9", text="merge, share of copy bandwidth", must=75, group="embed_merge",
        figure=column("percent_of_copy"), where=lambda row: sized(row, mode="forward", V=None, K=0),
    )  # fmt: skip
    for mode in ("forward", "backward"):
        yield Goal(
            id="K9", text=f"merge against masked_scatter, {mode}", must=5, group="embed_merge", unit="x",
            figure=faster_than("masked_scatter"), where=lambda row, mode=mode: sized(row, mode=mode, V=None, K=0),
        )  # fmt: skip
    for mode in ("forward", "backward"):
        yield Goal(
            id="K9", text=f"merge, host syncs, {mode}", must=0, group="embed_merge", most=True, unit="",
            figure=column("host_syncs"), where=lambda row, mode=mode: sized(row, mode=mode, V=None, K=0),
        )  # fmt: skip
    yield Goal(
        id="E1", text="decode step of 64 rows, 0.6B", must=0.8, group="engine", most=True, unit=" ms", provider="ours/graphs",
        figure=milliseconds, where=lambda row: sized(row, mode="step", V=None, K=None, H=(896,), T=(64,)),
    )  # fmt: skip
    yield Goal(
        id="E2", text="encoder, 64 clips of 10 s, share of its bare product's rate", must=50, group="engine", provider="ours",
        figure=column("percent_of_mm"), where=lambda row: sized(row, mode="encoder", V=None, K=None, H=(896,), B=(64,)),
    )  # fmt: skip
    yield Goal(
        id="E3", text="features to ids, mixed clips, 0.6B, share of 9,420 times real time", must=42, group="engine", provider="ours",
        figure=roofline_share, where=lambda row: sized(row, mode="transcribe", V=None, K=None, H=(896,)),
    )  # fmt: skip
    for H, size, must, stretch in ((896, "0.6B", 4_000, 7_000), (2_048, "3B", 1_800, None)):
        yield Goal(
            id="R1", text=f"FLAC files to text, mixed clips, {size}, times real time", must=must, stretch=stretch, group="rtfx",
            figure=column("x_real_time"), unit="x", provider="ours", where=lambda row, H=H: sized(row, mode="flac", V=None, K=None, H=(H,)),
        )  # fmt: skip
    yield Goal(
        id="R2", text="samples to text, mixed clips, 0.6B, against the leaderboard's 663 times real time", must=6, group="rtfx",
        figure=leaderboard_ratio, unit="x", provider="ours", where=lambda row: sized(row, mode="samples", V=None, K=None, H=(896,)),
    )  # fmt: skip


GOALS = tuple(_goals())


def judge(goal: Goal, rows: Sequence[Row]) -> Verdict:
    """A goal against all rows of a result; the worst shape decides."""
    ours = [row for row in rows if (row["group"], row["device"], row["provider"]) == (goal.group, "cuda", goal.provider)]
    about = [row for row in ours if goal.where(row)]
    lost = [row for row in rows if (row["group"], row["device"], row["provider"]) == (goal.group, "cuda", "all") and goal.where(row)]
    late = [row for row in lost if row["error"] == OUT_OF_TIME]
    broken = [row for row in about if str(row["check"]).startswith("failed") or row.get("error")] + [row for row in lost if row not in late]
    if broken:
        return Verdict(goal, "missed", None, f"{named(broken[0])}: {broken[0].get('error') or broken[0]['check']}")
    figures = [(figure, row) for row in about if (figure := goal.figure(row, ours)) is not None]
    if not figures:
        return Verdict(
            goal, "not run", None, "out of time" if late else "nothing to compare with was measured" if about else "no GPU figure"
        )
    figure, row = (max if goal.most else min)(figures, key=operator.itemgetter(0))
    met = figure <= goal.must if goal.most else figure >= goal.must
    unseen = f"; {len(late)} of {len(late) + len(about)} shapes were not run" if late else ""
    return Verdict(goal, "met" if met else "missed", figure, f"at {named(row)}{unseen}")


def named(row: Row) -> str:
    """A row's shape in words."""
    return " ".join(f"{name}={size}" for name, size in row["shape"].items())


def lines(rows: Sequence[Row]) -> list[str]:
    """A line for every goal."""
    found = []
    for verdict in (judge(goal, rows) for goal in GOALS):
        goal = verdict.goal
        sign = "≤" if goal.most else "≥"
        wanted = f"{sign} {goal.must:g}{goal.unit}" + (f" (stretch {goal.stretch:g}{goal.unit})" if goal.stretch is not None else "")
        figure = "" if verdict.figure is None else f"{verdict.figure:.3g}{goal.unit}"
        found.append(f"{goal.id:<4} {verdict.state:<8} {figure:>8}  {goal.text} {wanted}; {verdict.why}".rstrip("; "))
    return found
