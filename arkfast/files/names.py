"""The names that unfinished files have beside their destination, and how they are cleared away.

``.NAME.new`` is what is being written for NAME, ``.NAME.old`` what NAME was, and ``.NAME.lock`` says who writes it.
"""

from __future__ import annotations

import os
import re
import shutil
from contextlib import suppress
from pathlib import Path


def new_name(target: Path) -> Path:
    """What is being written for ``target``."""
    return target.with_name(f".{target.name}.new")


def old_name(target: Path) -> Path:
    """What ``target`` was, until the new one is safe."""
    return target.with_name(f".{target.name}.old")


def lock_name(target: Path) -> Path:
    """The lock of whoever writes ``target`` (``files.lock``)."""
    return target.with_name(f".{target.name}.lock")


def leftovers(target: Path) -> set[Path]:
    """The paths that a killed writer of ``target`` may have left."""
    return {new_name(target), old_name(target), lock_name(target)}


def sweep(parent: Path, names: re.Pattern[str]) -> None:
    """Clear away what killed writers of these names left in a folder, and put back what they had moved aside."""
    for path in sorted(parent.glob(".*")):
        name, _, kind = path.name[1:].rpartition(".")
        if kind not in ("new", "old") or names.fullmatch(name) is None:
            continue
        if kind == "old" and not os.path.lexists(parent / name):
            os.replace(path, parent / name)
        else:
            remove(path)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all that it holds; nothing where there is none.

    Raises:
        OSError: the system refuses.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_folder(path: Path) -> None:
    """Remove a folder that has its name. It loses that first, so that a process that is killed meanwhile leaves no half of it there.

    Raises:
        OSError: the system refuses.
    """
    doomed = new_name(path)
    remove(doomed)
    os.replace(path, doomed)
    remove(doomed)


def clear(*paths: Path) -> None:
    """Remove temporaries as far as that goes; what stays is cleared away by the next writer."""
    for path in paths:
        with suppress(OSError):
            remove(path)
