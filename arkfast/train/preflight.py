"""A look before the first step: does the loss come out as a number, and is there anything to learn from?

Knows what makes a run hopeless from the start; changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

LOGGED = {
    "initial/asr_loss_mean": "asr_loss",
    "initial/opd_loss_mean": "opd_loss",
    "initial/generated_nonempty_ratio": "generated_nonempty",
    "initial/generated_tokens_mean": "generated_tokens_mean",
}
"""The original's names of what it reports, by the step's."""


def summary(measured: Mapping[str, float], *, positions: float) -> dict[str, float]:
    """What the preflight found, under the original's names where it has them."""
    found = {name: measured[ours] for name, ours in LOGGED.items() if ours in measured}
    return {"positions": int(positions), "audio_seconds": measured["audio_seconds"], **found}


def verdict(loss: float, positions: float, bad: Sequence[str] = (), *, rule: str = "fail") -> str | None:
    """Why a run must not start, or None.

    Args:
        loss: mean over the counting positions.
        positions: how many counted.
        bad: why rows among those looked at could not be used.
        rule: ``--on_bad_audio``, which let them pass.
    """
    if positions == 0 and bad:
        return (
            f"no position counts, and --on_bad_audio {rule} passed over {len(bad)} of the clips looked at, the last: {bad[-1]}; "
            "mend them, or look at more with --calibration_batches"
        )
    if positions == 0:
        return "no position counts, so there is nothing to learn from: look at the audio and at what the teacher can score"
    if not math.isfinite(loss):
        return f"the loss is {loss} before any step: look at the checkpoints' weights and at --model_dtype"
    return None
