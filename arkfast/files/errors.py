"""What the system refuses, as an error that names what was to be written and says what to do."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from arkfast.records import InputError

_NO_ROOM = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_ADVICE = dict.fromkeys(_NO_ROOM, "make room or give another path, and run again") | {
    errno.EBUSY: "let one end before another begins",
    errno.EPIPE: "what reads it has ended; run both again",
}


@contextmanager
def naming(*paths: Path) -> Iterator[None]:
    """What the system refuses in this block is an ``InputError`` that names the paths."""
    try:
        yield
    except OSError as error:
        raise cannot_write(error, *paths) from error


def cannot_write(error: OSError, *paths: Path) -> InputError:
    """The error of a system that refuses to write ``paths``."""
    advice = _ADVICE.get(error.errno or 0, "give a path in a folder that you may write to")
    return InputError(f"{', '.join(map(str, paths))}: cannot be written ({error.strerror or error}); {advice}")


def explain(error: BaseException, *paths: Path) -> None:
    """Raise an error that names the paths where another library's says, by number or in its text, that there is no more room."""
    number = error.errno if isinstance(error, OSError) else None
    # Libraries written in Rust end their texts in "(os error 28)"; torch.distributed.checkpoint quotes the errors of all ranks.
    if number is None and (found := re.search(r"\(os error (\d+)\)|\[Errno (\d+)\]", str(error))):
        number = int(found[1] or found[2])
    if number is not None and number in _NO_ROOM and not isinstance(error, InputError):
        raise cannot_write(OSError(number, os.strerror(number)), *paths) from error
