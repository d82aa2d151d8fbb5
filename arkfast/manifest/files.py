"""Files of lines that appear together when all are complete, or not at all.

Knows files; does not know what a line means.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from arkfast.records import InputError


class AtomicFiles:
    """JSONL files, each written beside its destination and moved there when every one of them is on disk.

    Until then existing files at the destinations are untouched. When the block ends by an exception, what was written is removed; a
    process that is killed leaves ``<name>.partial``, which the next one overwrites.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = [path.resolve() for path in paths]  # a link's target is replaced, not the link
        self._partial = [path.with_name(path.name + ".partial") for path in self.paths]
        self._files: list[TextIO] = []

    def __enter__(self) -> AtomicFiles:
        for path, partial in zip(self.paths, self._partial, strict=True):
            try:
                if path.is_dir():
                    raise InputError(f"{path}: is a folder; give the path of a file to write")
                path.parent.mkdir(parents=True, exist_ok=True)
                self._files.append(partial.open("w", encoding="utf-8", newline="\n"))
            except (OSError, InputError) as error:
                self._discard()
                if isinstance(error, InputError):
                    raise
                advice = "give a path in a folder that you may write to"
                raise InputError(f"{path}: cannot be written ({error.strerror}); {advice}") from error
        return self

    def write(self, file: int, row: Mapping[str, Any]) -> None:
        """Append one row to the file with this number."""
        line = json.dumps(row, ensure_ascii=False)
        try:
            self._files[file].write(line + "\n")
        except UnicodeEncodeError:  # a lone surrogate, which JSON escapes can spell and UTF-8 cannot
            self._files[file].write(json.dumps(row) + "\n")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None:
            self._discard()
            return
        try:
            for file in self._files:
                file.flush()
                os.fsync(file.fileno())
                file.close()
        except OSError:  # a full disk shows here
            self._discard()
            raise
        for partial, path in zip(self._partial, self.paths, strict=True):
            os.replace(partial, path)

    def _discard(self) -> None:
        for file, partial in zip(self._files, self._partial, strict=False):
            with contextlib.suppress(OSError):
                file.close()
            partial.unlink(missing_ok=True)
