"""A stand-in for a model, and transcriptions with it in this process and in its children, for tests of kills and faults."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from arkfast.audio import LogMel
from arkfast.data.pipeline import FeaturePipeline
from arkfast.infer.command import main
from arkfast.infer.journal import _entry
from arkfast.infer.options import TranscribeOptions
from arkfast.infer.result import Result
from arkfast.infer.stream import Memory, Outcome, transcribe_stream
from arkfast.records import Utterance
from arkfast.testing import synthetic_speech, write_wav

CLIPS = 10
WINDOW = 12


class StandIn:
    """In the place of a model: a transcript is a digest of the clip's features, after a while that depends on the clip.

    Args:
        log: a file that the id of every clip that is decoded is added to.
        pause: seconds that a step takes.
    """

    def __init__(self, folder: Path, log: Path, *, pause: float = 0.0) -> None:
        self.checkpoint = self.tokenizer = folder
        self.device, self.dtype, self.model_commit, self.processing_seconds = SimpleNamespace(type="cpu"), "float32", None, 0.0
        self.head_folder, self.batch_size = None, 40
        self._log, self._pause = log, pause
        self._queue: list[tuple[int, str]] = []
        self._tickets = 0
        self._log_mel = LogMel(128)

    def results(
        self, items: Iterable[Utterance | Result], *, memory: Memory | None = None, ready: Callable[[], bool] | None = None
    ) -> Iterator[Result]:
        pipeline = FeaturePipeline(self._log_mel, workers=0, max_seconds=30, prepare=None, on_bad_audio="skip:1", isolate=True)
        return in_parts(
            items,
            lambda clips: transcribe_stream(
                clips, features=pipeline.features, decoder=self, window=WINDOW, frames_per_second=100, memory=memory
            ),
        )

    def submit(self, utterance: Utterance, features: np.ndarray) -> int:
        self._tickets += 1
        self._queue.append((self._tickets, transcript(features)))
        with self._log.open("a") as log:
            log.write(utterance.id + "\n")
        return self._tickets

    def step(self) -> list[Outcome]:
        time.sleep(self._pause)
        self.processing_seconds += self._pause
        ended = [entry for entry in self._queue[:4] if int(entry[1][0], 16) % 3 or entry is self._queue[0]]
        self._queue = [entry for entry in self._queue if entry not in ended]
        return [Outcome(ticket, text, "stop", None) for ticket, text in reversed(ended)]


def load_slowly(model_path: Path, options: TranscribeOptions) -> StandIn:
    """For actors of Ray, which import it from here. Its steps take time and no processor, so that a run can be killed in them."""
    return StandIn(model_path, Path("log"), pause=0.1)


def in_parts(
    items: Iterable[Utterance | Result], transcribe: Callable[[Iterable[Utterance | Result]], Iterator[Result]]
) -> Iterator[Result]:
    """Rows with a field ``parts`` are transcribed as so many clips of 20 ms, as a long recording is."""
    rows: deque[tuple[Utterance | None, int]] = deque()

    def clips() -> Iterator[Utterance | Result]:
        for item in items:
            parts = 0 if isinstance(item, Result) else int(item.extra.get("parts", 0))
            rows.append((item, parts) if isinstance(item, Utterance) and parts else (None, 1))
            if not isinstance(item, Utterance) or not parts:
                yield item
                continue
            for part in range(parts):
                yield replace(item, id=f"{item.id}@{part}", begin=0.02 * part, end=0.02 * (part + 1))

    results = transcribe(clips())
    for result in results:
        utterance, parts = rows.popleft()
        found = [result, *itertools.islice(results, parts - 1)]
        texts = " ".join(part.text_raw or "" for part in found)
        yield (
            result
            if utterance is None
            else Result(utterance=utterance, text_raw=texts, finish_reason="stop", seconds=sum(part.seconds for part in found))
        )


def transcript(features: np.ndarray) -> str:
    return hashlib.sha256(features.tobytes()).hexdigest()[:16]


def make_recordings(folder: Path) -> Path:
    """Ten clips, and three files that are none."""
    for i in range(CLIPS):
        write_wav(folder / f"{i}.wav", synthetic_speech(0.2 + 0.03 * i, seed=i))
    for i in range(3):
        (folder / f"bad{i}.wav").write_text(f"no audio {i}")
    return folder


def manifest(recordings: Path, rows: int, bad: Iterable[int]) -> list[str]:
    """Write in.jsonl, with bad recordings in some rows; returns the ids of all."""
    bad = list(bad)
    lines = [
        {"id": f"r{i}", "audio": str(recordings / (f"bad{bad.index(i) % 3}.wav" if i in bad else f"{i % CLIPS}.wav")), "pred_text": "stale"}
        | ({"begin_time": 0.001 * (i // CLIPS)} if i not in bad else {})
        for i in range(rows)
    ]
    Path("in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [str(line["id"]) for line in lines]


def argv(output: str, *more: str) -> list[str]:
    return ["in.jsonl", "--output", output, "--model_path", "model", *more]


def run(output: str, *more: str, log: str = "log", pause: float = 0.0) -> int:
    return main(argv(output, *more), load=lambda *_: StandIn(Path(), Path(log), pause=pause))  # type: ignore[return-value]


def forked(work: Callable[[], int], said: Path) -> int:
    """Run ``work`` in a child process whose exit code is what it returns; returns the child's id."""
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        code = work()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def wait_until(ready: Callable[[], bool], child: int) -> int | None:
    """Wait for something or for the child's end; returns its status if that came first."""
    for _ in range(60_000):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        if ready():
            return None
        time.sleep(0.001)
    raise AssertionError("neither came")


def ids_in(journal: Path, names: list[str]) -> set[str]:
    entries = [_entry(line) for line in journal.read_bytes().splitlines(keepends=True)]
    return {names[entry["row"]] for entry in entries if entry is not None and "row" in entry}
