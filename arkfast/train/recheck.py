"""Whether a run goes on from where it stood: the loss of the last logged step, computed anew with the weights that were loaded.

A checkpoint can be whole and wrong: a frozen base that is another one, a disk that returned zeros. The last step's batch is learnt already,
so its loss is about what the log says or a little less; one that has jumped is said. Where the log holds steps past the checkpoint, because
the run was killed, those are taken again, and ``RunLog`` compares the first of them exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import closing

import torch

from arkfast.data.dealer import Window
from arkfast.records import Batch, InputError
from arkfast.train.checkpoints.run_folder import TrainerState
from arkfast.train.feed import Feed
from arkfast.train.parallel import Parallel

JUMP = 1.2
"""A loss that is so many times what was logged has jumped."""


def loss_again(
    feed: Feed,
    parallel: Parallel,
    state: TrainerState,
    forward: Callable[[Window, Iterator[Batch | None]], tuple[torch.Tensor, torch.Tensor]],
) -> float | None:
    """The loss of a state's last step over all ranks, which all call it; None where its batch is not at hand.

    Args:
        feed: the run's data.
        parallel: the processes.
        state: where the run stands.
        forward: (what its positions weigh, summed loss) of this rank's part of a window.
    """
    if state.last_loss is None or state.last_cursor is None or not feed.leads(state.last_cursor, state.cursor):
        return None
    taken: tuple[Window, list[Batch | None]] | None = None
    try:
        with closing(feed.windows(state.last_cursor)) as windows:
            window, batches = next(windows)
            taken = window, list(batches)
    except InputError:
        pass  # a clip that is gone by now, which the run needs no more
    if not all(parallel.gather(taken is not None)):
        return None
    assert taken is not None
    count, total = forward(taken[0], iter(taken[1]))
    loss, weight = parallel.total(torch.stack([total.double(), count.double()])).tolist()
    return float(loss / (weight or 1.0))


def jumped(state: TrainerState, again: float | None) -> str | None:
    """What to say of the last step's loss, where it is not what was logged."""
    if again is None or state.last_loss is None or (math.isfinite(again) and again <= JUMP * state.last_loss + 1e-3):
        return None
    return (
        f"warning: step {state.step} had loss {state.last_loss:.4g} when it was taken, and with the weights that were loaded its batch has "
        f"{again:.4g}: the checkpoint, the models beside it or the settings are not what they were"
    )
