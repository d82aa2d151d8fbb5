"""What a finished run says last: where its models are, and what to type next."""

from __future__ import annotations

import shlex

from arkfast.kernels import fallbacks, usage
from arkfast.train.checkpoints.run_folder import TrainerState
from arkfast.train.config import TrainConfig
from arkfast.train.logging.run_log import RunLog, percent


def say_last_words(log: RunLog, config: TrainConfig, state: TrainerState, *, total_steps: int, rate: str) -> None:
    """Say where a finished run stands; how often each op ran goes to the log file alone.

    Args:
        log: where it is said.
        config: names the run's folder.
        state: how far it is, and which step was the best.
        total_steps: how far it was to go.
        rate: what the task's error rate is called, such as ``wer``.
    """
    calls = [f"{op} {count} x {backend}" for op, backends in usage().items() for backend, count in backends.items()]
    log.keep("kernels: " + ", ".join(calls))
    for op, reasons in fallbacks().items():
        log.warn(f"{op} ran in torch on the GPU, which is slower: {'; '.join(reasons)}")
    log.close_line()
    folder = config.output_dir
    log.note(f"{state.step} of {total_steps} steps are done; the model is {folder / 'last'}")
    if state.best_step is not None:
        log.note(f"the best one is {folder / 'best'} ({rate.upper()} {percent(state.best_wer)} at step {state.best_step})")
    log.note(f"a page about the run: arkfast report {shlex.quote(str(folder))}")
