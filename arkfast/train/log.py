"""The run's log: one JSON object a step in ``metrics.jsonl`` and on standard output; a bar with the time left on standard error."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm import tqdm

from arkfast.train.checkpoint import write_atomically


class RunLog:
    """Appends to ``metrics.jsonl``.

    Args:
        path: the file. Lines of steps after ``start_step`` (written by a run that was killed past its last checkpoint) are dropped.
        start_step: steps done before.
        total_steps: for the bar.
        print_every: print every so many steps.
    """

    def __init__(self, path: Path, *, start_step: int, total_steps: int, print_every: int) -> None:
        if path.exists():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            complete = (line for line in lines if line.endswith("\n"))
            kept = [line for line in complete if start_step and json.loads(line)["step"] <= start_step]
            write_atomically(path, "".join(kept))
        self._file = path.open("a", encoding="utf-8")
        self._print_every = print_every
        self._bar = tqdm(total=total_steps, initial=start_step, unit="step", file=sys.stderr, dynamic_ncols=True, mininterval=1.0)

    def step(self, record: dict[str, Any]) -> None:
        """Log one optimizer step."""
        self._write(record, shown=record["step"] % self._print_every == 0)
        self._bar.set_postfix({"loss": f"{record['loss']:.4f}"}, refresh=False)
        self._bar.update(1)

    def evaluation(self, record: dict[str, Any]) -> None:
        """Log one evaluation."""
        self._write(record, shown=True)

    def note(self, text: str) -> None:
        """Say something once, without breaking the bar."""
        tqdm.write(text, file=sys.stderr)

    def _write(self, record: dict[str, Any], *, shown: bool) -> None:
        line = json.dumps(record, ensure_ascii=False)
        self._file.write(line + "\n")
        self._file.flush()
        if shown:
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.close()
        self._file.close()
