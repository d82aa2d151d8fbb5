"""What an actor of Ray does: it loads the model once and transcribes one chunk after the other."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from arkfast.files import json_line
from arkfast.infer.fetching import Fetcher
from arkfast.infer.loading import Load
from arkfast.infer.options import TranscribeOptions
from arkfast.infer.ray.chunk import Notes, unpacked
from arkfast.infer.resume import Rows, decided
from arkfast.infer.stream import DeviceLost
from arkfast.records import InputError, JsonRow

if TYPE_CHECKING:
    import pyarrow

CHUNK, ENTRY = "chunk", "entry"
"""The columns of what goes to an actor and of what comes back."""


@dataclass(frozen=True)
class Job:
    """What all actors of a run are told."""

    model: Path
    options: TranscribeOptions
    load: Load
    decides: JsonRow
    """``resume.decided`` where the run was begun; an actor that comes to something else would give other transcripts."""
    folder: str
    """Where relative paths start, on machines that have this folder."""
    block: int
    """Entries that are sent back together. It is a fixed number: a chunk that is done a second time after its actor was lost gives the same
    blocks again, and Ray leaves those out that have come already."""


class ChunkTranscriber:
    """Transcribes chunks.

    Args:
        job: of the run.

    Raises:
        InputError: the model cannot be loaded here, or transcripts would differ from those of the other actors.
    """

    def __init__(self, job: Job) -> None:
        from arkfast.models.bars import without_loading_bars

        without_loading_bars()
        if os.path.isdir(job.folder):
            os.chdir(job.folder)
        self._block, self._fetcher = job.block, Fetcher(job.options.spool_mb)
        self._transcriber = job.load(job.model, job.options)
        ours = decided(self._transcriber, job.options)
        if differing := sorted(name for name in ours.keys() | job.decides.keys() if ours.get(name) != job.decides.get(name)):
            raise InputError(
                f"the Ray node {os.uname().nodename} would give other transcripts than the machine that hands out the rows, since these "
                f"differ there: {', '.join(differing)}; give all machines the same files, packages and devices"
            )

    def __call__(self, batch: pyarrow.Table) -> Iterator[pyarrow.Table]:
        """The results of a chunk, as journal entries in blocks, then what this actor has done so far, or why it cannot go on.

        Args:
            batch: a table with one row, whose column ``chunk`` holds a chunk (``chunk.packed``).
        """
        rows = unpacked(batch.column(CHUNK)[0].as_py())
        notes = Notes(rows)
        known = Rows(((given.row, given.utterance) for given in rows), notes, fetcher=self._fetcher)
        try:
            for result in known.results(self._transcriber):
                turn = known.next()
                if turn.key is not None:
                    notes.add(turn.row, turn.key, result)
                if entries := notes.take(self._block):
                    yield _table(entries)
        except DeviceLost as error:  # nothing works in this process any more; Ray starts another one and gives it the chunk
            print(f"arkfast transcribe: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        except Exception as error:  # Ray would bury the reason under its own
            traceback.print_exc()
            said = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
            yield _table([json_line({"fault": said})])
            return
        spent = {"actor": f"{os.uname().nodename}:{os.getpid()}", "processing_seconds": self._transcriber.processing_seconds}
        yield _table([*notes.take(1), json_line(spent)])


def _table(entries: list[bytes]) -> pyarrow.Table:
    import pyarrow

    return pyarrow.table({ENTRY: pyarrow.array(entries, pyarrow.binary())})
