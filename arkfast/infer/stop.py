"""A signal that asks a transcription to end, as an exception in the main thread, so that files are closed and the user is told what to do.

Ctrl-C is Python's own ``KeyboardInterrupt``; here are the others, as a cluster sends them before it ends a job.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name))
"""The end of a job, a terminal that is gone, and Slurm's warning where it is asked for by that name."""


class Stopped(KeyboardInterrupt):
    """The process was asked to end.

    Args:
        number: the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number
        """What the process exits with, as one ended by the signal would: it has not finished."""


@contextmanager
def stopping() -> Iterator[None]:
    """Raise ``Stopped`` in this block at the first of ``SIGNALS``, save those that the process was started to ignore, as ``nohup`` does.

    Later ones are ignored until the block has ended, because a launcher and its process group often both send one.
    """
    owner, asked = os.getpid(), False

    def hear(number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        if os.getpid() != owner:  # a forked child that has set no handler of its own
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif not asked:
            asked = True
            raise Stopped(number)

    before = {}
    if threading.current_thread() is threading.main_thread():  # elsewhere Python lets no one listen
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, hear)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
