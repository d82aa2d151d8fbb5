"""The sizes that kernels are timed at. Knows numbers alone: no tensor, no op, no clock.

Letters: T positions, H the student's hidden width, HT the teacher's, V vocabulary, K ids of each model, B prompts.

Shapes form a star around K = 32 and V = 151,936: every T and H there, the other values of K and V at one T and H. The full grid of
3 · 3 · 2 · 3 would take six times as long and tell nothing more, since times are proportional to V and K enters below a few percent.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

V_TEACHER, V_STUDENT = 151_936, 163_958
"""Rows of the teacher's and of the student's head; the student's width is no multiple of any block."""
USED_IDS = 151_643
"""Ids below this one are text in both vocabularies."""
POSITIONS, WIDTHS, VOCABULARIES, KS = (1_024, 4_096, 16_384), (896, 1_024, 2_048), (V_TEACHER, V_STUDENT), (8, 32, 64)
PAIRS = ((896, 1_024), (896, 2_048), (2_048, 2_048))
"""(H, HT) of a student and its teacher."""
ROLLOUT_ROWS = 40
"""Rows of one decoding step: the batch that the published recipe gives a GPU."""
ORIGINAL_ROWS, ORIGINAL_RHO = 40 * 64, 5
"""Positions of that recipe's step, and how many positions its full logits hold for each one it needs: 256 of prompt to 64 of answer."""
PROMPT, AUDIO = 464, 375
"""Ids of a 30 s prompt, placeholders among them, of the embedding merge."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One case; a size that an op does not have is 0."""

    T: int
    V: int = 0
    H: int = 0
    HT: int = 0
    K: int = 0
    B: int = 0
    mode: str = ""
    """Which of an op's jobs this is, where it has several."""
    core: bool = True
    """Whether a goal or the README needs it: core shapes come first, and only they run the providers that compile."""

    def __str__(self) -> str:
        sizes = [f"{name}{value}" for name, value in self.sizes().items() if name != "mode"]
        return "-".join([*([self.mode] if self.mode else []), *sizes])

    def sizes(self) -> dict[str, int | str]:
        """What is not 0, by letter: how results name the shape."""
        named = dataclasses.asdict(self)
        del named["core"]
        return {name: value for name, value in named.items() if value}


def ordered(shapes: list[Shape]) -> list[Shape]:
    """Core shapes first; a time budget cuts the end."""
    return sorted(shapes, key=lambda shape: not shape.core)


def row_shapes(device: str, *, modes: tuple[str, ...] = ("",)) -> list[Shape]:
    """[T, V] buffers and the K ids wanted from each row; the mode "rollout" is one decoding step."""
    if device == "cpu":
        return [Shape(T=9, V=2_003, K=8, mode=mode) for mode in modes]
    found = []
    for mode in modes:
        rows = (ROLLOUT_ROWS,) if mode == "rollout" else POSITIONS
        found += [Shape(T=T, V=V_TEACHER, K=32, mode=mode) for T in rows]
        found += [Shape(T=rows[len(rows) // 2], V=V_TEACHER, K=K, mode=mode, core=False) for K in KS if K != 32]
        found.append(Shape(T=rows[len(rows) // 2], V=V_STUDENT, K=32, mode=mode, core=False))
    return ordered(found)


def linear_shapes(device: str, *, mode: str = "", k: bool = True) -> list[Shape]:
    """A [T, H] × [H, V] product and, with ``k``, the K ids wanted from each row."""
    if device == "cpu":
        return [Shape(T=9, V=2_003, H=48, K=8 if k else 0, mode=mode)]
    found = [Shape(T=T, V=V_TEACHER, H=H, K=32 if k else 0, mode=mode) for T in POSITIONS for H in WIDTHS]
    found += [Shape(T=4_096, V=V_TEACHER, H=1_024, K=K, mode=mode, core=False) for K in KS if k and K != 32]
    found.append(Shape(T=4_096, V=V_STUDENT, H=1_024, K=32 if k else 0, mode=mode, core=False))
    return ordered(found)


def pair_shapes(device: str) -> list[Shape]:
    """A student and its teacher over one vocabulary; the mode "original" is the published recipe's step."""
    if device == "cpu":
        return [Shape(T=10, V=2_003, H=32, HT=48, K=8), Shape(T=10, V=2_003, H=32, HT=48, K=8, B=2, mode="original")]
    found = [Shape(T=T, V=V_TEACHER, H=H, HT=HT, K=32) for T in POSITIONS for H, HT in PAIRS]
    found.append(Shape(T=ORIGINAL_ROWS, V=V_TEACHER, H=896, HT=2_048, K=32, B=40, mode="original"))
    found += [Shape(T=4_096, V=V_TEACHER, H=896, HT=2_048, K=K, core=False) for K in KS if K != 32]
    found.append(Shape(T=4_096, V=V_STUDENT, H=896, HT=2_048, K=32, core=False))
    return ordered(found)


def prompt_shapes(device: str) -> list[Shape]:
    """B prompts of T / B ids, forward and backward."""
    if device == "cpu":
        return [Shape(T=3 * 40, V=2_003, H=48, B=3, mode=mode) for mode in ("forward", "backward")]
    modes = ("forward", "backward")
    return [Shape(T=40 * PROMPT, V=V_STUDENT, H=H, B=40, mode=mode) for mode in modes for H in WIDTHS]
