"""What is timed in which order where GPU time is short: two calls of a few minutes, the most wanted first.

Call A decides what is right and what the machine is like; call B measures the rest by the order of the goals, without what A has.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from shapes import V_STUDENT, Shape

from harness.results import Result, shape_key

MINUTES = {"A": 4.75, "B": 3.75}
"""Of a call by default, within the five and the four that it may take: the rest goes into starting and copying."""
LOOK, CHECKS = "look", "checks"
"""Parts of call A that are no suites."""
LEAD = ("linear_topk", "row_topk", "union_kl", "loss_block", "sparse_grad", "log_softmax")
"""Suites of the goals, in their order."""
MIDDLE, LONG, SHORT = 4_096, 16_384, 1_024


@dataclass(frozen=True)
class Item:
    """One suite at one of its shapes."""

    group: str
    index: int
    """Of the shape among the suite's."""
    shape: Shape


@dataclass(frozen=True)
class Part:
    """What one process does."""

    name: str
    share: float
    """Of the time: what a part leaves goes to the later ones."""
    items: tuple[Item, ...] = ()


def chosen(device: str, groups: Sequence[str], where: Callable[[Shape], bool], most: int | None = None) -> Iterator[Item]:
    """The first ``most`` shapes of each suite that are wanted."""
    for group in groups:
        shapes = importlib.import_module(f"bench_{group}").SUITE.shapes(device)
        found = [Item(group, i, shape) for i, shape in enumerate(shapes) if where(shape)]
        yield from found[:most]


def goals_first(shape: Shape) -> bool:
    """Whether a goal asks for a shape of T positions, its T aside."""
    return shape.core and shape.mode in ("", "rows")


def sized(T: int) -> Callable[[Shape], bool]:
    """Whether a shape is one of T positions that a goal asks for."""
    return lambda shape: shape.T == T and goals_first(shape)


def call_a(device: str) -> list[Part]:
    """Ceilings and attention, what is right, a step, a transcription, the whole loss at T = 4,096."""

    def items(*groups: str, where: Callable[[Shape], bool], most: int | None = 1) -> tuple[Item, ...]:
        return tuple(chosen(device, groups, where, most))

    return [
        Part(LOOK, 40),
        Part(CHECKS, 65),
        Part("step", 70, items("step", where=lambda shape: True)),
        Part("transcription", 45, items("engine", where=lambda shape: shape.mode == "transcribe")),
        Part("times real time", 55, items("rtfx", where=lambda shape: shape.H != 2_048 and shape.mode in ("samples", "flac"), most=None)),
        Part("whole loss", 70, items("loss_block", where=sized(MIDDLE if device == "cuda" else 10), most=None)),
    ]


def call_b(device: str, have: frozenset[tuple[str, str]] = frozenset()) -> list[Part]:
    """The rest, without the shapes (as ``shape_key`` names them) that are there."""
    seen = set(have)

    def part(name: str, share: float, *picks: Iterator[Item]) -> Part:
        items = []
        for item in (item for pick in picks for item in pick):
            if shape_key(item.group, item.shape.sizes()) not in seen:
                seen.add(shape_key(item.group, item.shape.sizes()))
                items.append(item)
        return Part(name, share, tuple(items))

    def pick(*groups: str, where: Callable[[Shape], bool], most: int | None = None) -> Iterator[Item]:
        return chosen(device, groups, where, most)

    everything = (*LEAD, "linear_kl", "embed_merge", "rotary", "decode_step", "engine", "rtfx", "step")
    parts = [
        part("step", 50, pick("step", where=lambda shape: True, most=1)),
        part("T = 4,096", 60, pick(*LEAD, where=sized(MIDDLE))),
        part(
            "T = 16,384, the original",
            35,
            pick(*LEAD, where=sized(LONG), most=1),
            pick("loss_block", where=lambda shape: shape.mode == "original"),
        ),
        part(
            "engine",
            45,
            pick("engine", where=lambda shape: shape.mode == "encoder" and shape.core, most=1),
            pick("engine", where=lambda shape: shape.mode == "step" and shape.core, most=1),
            pick("engine", where=lambda shape: shape.mode == "transcribe" and shape.core),
        ),
        part("times real time", 45, pick("rtfx", where=lambda shape: shape.core)),
        part(
            "merge and real vocabulary",
            20,
            pick("embed_merge", where=lambda shape: shape.mode in ("forward", "backward")),
            pick("rotary", where=lambda shape: shape.core),
            pick(*LEAD, where=lambda shape: shape.V == V_STUDENT and shape.K in (0, 32)),
            pick("decode_step", where=lambda shape: shape.core, most=2),
            pick("linear_kl", where=sized(MIDDLE), most=1),
        ),
        part(
            "T = 1,024",
            20,
            pick("loss_block", where=sized(SHORT)),
            pick(*(name for name in LEAD if name != "loss_block"), where=sized(SHORT)),
        ),
        part("what is left", 5, pick(*everything, where=lambda shape: True)),
    ]
    return [part for part in parts if part.items]


def measured(rows: Sequence[Result]) -> frozenset[tuple[str, str]]:
    """The shapes that need no second run: ours was timed, and no provider was cut short by the time."""
    timed = {shape_key(row["group"], row["shape"]) for row in rows if row.get("ours") and "seconds" in row}
    return frozenset(timed - {shape_key(row["group"], row["shape"]) for row in rows if row.get("error") == "out of time"})
