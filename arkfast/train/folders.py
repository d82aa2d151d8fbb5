"""Folders and files that are there whole or not at all, whenever the process dies that writes them.

Knows names and renames; knows no run.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Collection
from pathlib import Path


def begin_folder(target: Path) -> Path:
    """An empty temporary folder beside ``target``, to be filled and given to ``commit_folder``."""
    temporary, old = target.with_name(f".{target.name}.new"), target.with_name(f".{target.name}.old")
    if old.exists() and not target.exists():
        old.rename(target)  # an earlier call was killed between its two renames
    for leftover in (temporary, old):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir(parents=True)
    return temporary


def commit_folder(temporary: Path, target: Path) -> None:
    """Put a complete folder in ``target``'s place; what stood there goes only then."""
    old = target.with_name(f".{target.name}.old")
    if target.exists():
        target.rename(old)
    temporary.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def replace_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Fill a temporary folder with ``write`` and put it in ``target``'s place; what stood there goes when the new one is complete."""
    temporary = begin_folder(target)
    write(temporary)
    commit_folder(temporary, target)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def sweep(parent: Path, names: re.Pattern[str]) -> None:
    """Clear away what a killed ``commit_folder`` of one of these ``names`` left unfinished, and put back what it had moved aside."""
    for path in sorted(parent.glob(".*")):
        name, _, kind = path.name[1:].rpartition(".")
        if kind not in ("new", "old") or names.fullmatch(name) is None:
            continue
        if kind == "old" and not (parent / name).exists():
            path.rename(parent / name)
        else:
            shutil.rmtree(path)


def link_files(source: Path, into: Path, *, without: Collection[str] = ()) -> None:
    """The files of a folder in another, save those that begin with a name in ``without``; copies where they cannot be hard links.

    A file that is only ever replaced, never written to again, may have both names: what becomes of one does not touch the other.
    """
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source)
        if name.parts[0] in without or not path.is_file():
            continue
        (into / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path.resolve(), into / name)
        except OSError:
            shutil.copyfile(path, into / name)
