"""The gates of on-policy distillation: what a start must show, and what rollouts must not do while it runs.

A student that its teacher hardly knows runs away: its transcripts grow until they are cut, and each step teaches it more of the same. What
is judged here are counts and rates of all ranks, which ``preflight`` and the trainer measure. Few rollouts are judged mildly: a share
counts as over its limit only where chance alone would hardly show as many.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from arkfast.records import JsonRow
from arkfast.train.config import TrainConfig

START_CHANCE = 0.01
"""How likely a start that is exactly at a limit may be taken for one over it."""
WATCH_CHANCE = 0.001
"""The same for the window of a run that goes on, which is judged at every step."""
EMPTY = 0.1
"""Largest share of rollouts at the start that are nothing but the end token."""
Window = tuple[tuple[int, int], ...]
"""(unfinished, rollouts) of each of the last steps."""


def exceeds(seen: int, of: int, limit: float, *, chance: float = START_CHANCE) -> bool:
    """Whether ``seen`` of ``of`` is more than a share of ``limit`` explains: P(X ≥ seen) ≤ ``chance`` for X binomial (of, limit)."""
    if seen <= limit * of or limit >= 1:
        return False
    if limit <= 0:
        return True
    logs = (math.lgamma(of + 1) - math.lgamma(k + 1) - math.lgamma(of - k + 1) for k in range(seen, of + 1))
    odds = ((k, k * math.log(limit) + (of - k) * math.log1p(-limit)) for k in range(seen, of + 1))
    # A hair above, so that 1 of 10 twice over, which is 0.01, is no matter of rounding.
    return math.fsum(math.exp(ways + power) for ways, (_, power) in zip(logs, odds, strict=True)) <= chance * (1 + 1e-9)


def percent(share: float) -> str:
    """A share in percent, with three digits."""
    return f"{100 * share:.3g} %"


class Watch:
    """Looks at every measured step's unfinished rollouts.

    Args:
        config: the gates and their limits.
        cut_references: the share of references that ``--asr_opd_max_new_tokens`` would cut, which is no running away.
        window: of the steps before, as ``TrainerState.unfinished`` keeps it: a run that is resumed judges as one that was not stopped.
    """

    def __init__(self, config: TrainConfig, *, cut_references: float, window: Sequence[Sequence[int]] = ()) -> None:
        self._config, self._cut = config, cut_references
        self._on = config.stage == "opd" and config.gates != "off" and config.gate_unfinished > 0
        self._limit = config.gate_unfinished + cut_references
        self.window: Window = tuple((int(cut), int(rollouts)) for cut, rollouts in window)[-config.gate_window :]
        self._over = False

    def saw(self, line: JsonRow) -> str | None:
        """What is wrong after a step, said once until it is right again. None: nothing is wrong, or the step was not measured in full.

        Args:
            line: the step's record.
        """
        if not self._on or "generated_stopped" not in line:
            return None
        rollouts = int(line["generated_rows"])
        self.window = (*self.window, (round((1.0 - line["generated_stopped"]) * rollouts), rollouts))[-self._config.gate_window :]
        reason = self._passed() or self._growing()
        before, self._over = self._over, reason is not None
        return None if reason is None or before else f"step {line['step']}: {reason}"

    def sound(self, window: Sequence[Sequence[int]]) -> bool:
        """Whether a checkpoint's window holds no more unfinished rollouts than the limit allows."""
        return sum(cut for cut, _ in window) <= self._limit * sum(rollouts for _, rollouts in window)

    def _passed(self) -> str | None:
        cut, rollouts = _added(self.window)
        if not exceeds(cut, rollouts, self._limit, chance=WATCH_CHANCE):
            return None
        return (
            f"{percent(cut / rollouts)} of the last {rollouts} rollouts did not end within --asr_opd_max_new_tokens "
            f"{self._config.asr_opd_max_new_tokens} (--gate_unfinished {self._config.gate_unfinished:g}{self._allowance()})"
        )

    def _growing(self) -> str | None:
        """Three thirds of a full window, each worse than the one before and the last one beyond chance."""
        third = len(self.window) // 3
        if len(self.window) < self._config.gate_window or third == 0:
            return None
        thirds = [_added(self.window[i * third : (i + 1) * third]) for i in range(3)]
        first, second, last = (cut / max(rollouts, 1) for cut, rollouts in thirds)
        if not first < second < last or not exceeds(*thirds[2], max(first, self._limit / 5), chance=WATCH_CHANCE):
            return None
        return (
            f"rollouts that do not end within --asr_opd_max_new_tokens {self._config.asr_opd_max_new_tokens} keep growing: "
            f"{percent(first)}, {percent(second)}, {percent(last)} in the thirds of the last {len(self.window)} measured steps"
        )

    def _allowance(self) -> str:
        return f" and the {percent(self._cut)} of references that are longer" if self._cut else ""


def _added(window: Window) -> tuple[int, int]:
    return sum(cut for cut, _ in window), sum(rollouts for _, rollouts in window)
