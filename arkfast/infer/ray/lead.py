"""A transcription whose rows are handed out over Ray Data: who gets which rows, and what comes back into the journal here.

Ray Data decides which actor does which chunk, replaces actors that die and hands their chunks out again. Nothing but this process writes:
a result is in the journal when it has come back, so a later run does what is missing, as one does that was killed without Ray.
"""

from __future__ import annotations

import os
import signal
import warnings
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from arkfast.console import Console
from arkfast.files.json_input import parse_json_object
from arkfast.infer.journal import Journal, key_of
from arkfast.infer.loading import Load
from arkfast.infer.options import TranscribeOptions
from arkfast.infer.ranks.plan import Lengths
from arkfast.infer.ranks.team import Tally
from arkfast.infer.ray.actor import CHUNK, ENTRY, ChunkTranscriber, Job
from arkfast.infer.ray.chunk import Given, packed
from arkfast.infer.ray.options import RayOptions
from arkfast.infer.result import Result
from arkfast.infer.transcriber import MOST_WORKERS
from arkfast.installation import install_hint
from arkfast.records import InputError, JsonRow, Utterance

CORES = 4
"""Of an actor, where there are no GPUs and nothing is said."""
RETRIES = 3
"""How often a chunk is handed out again whose actor died. A recording that ends every process that reads it ends the run then."""


@dataclass(frozen=True)
class Sizes:
    """How much travels at once."""

    seconds: float
    """Most audio of a chunk. An actor begins each with an empty engine, so that it should take seconds; what it has done of it is sent back
    all along, and only the death of an actor costs a whole one."""
    rows: int
    block: int
    """See ``actor.Job``."""


SIZES = {"cuda": Sizes(16 * 3600.0, 8192, 64), "cpu": Sizes(300.0, 256, 8)}
"""By the kind of device."""


@dataclass(frozen=True)
class Device:
    """As ``torch.device``, which this process does not need."""

    type: str


class OnRay:
    """Stands in the place of a ``Transcriber`` where actors of Ray have the model and this process has none.

    Args:
        where: where Ray is.
        model_path: the checkpoint; where it is a folder, all machines see it.
        options: the flags.
        load: loads the model in an actor.

    Raises:
        InputError: Ray is not installed, cannot be started or reached, or has not what was asked for; the checkpoint cannot be read.
    """

    def __init__(self, where: RayOptions, model_path: Path, options: TranscribeOptions, *, load: Load) -> None:
        from arkfast.models.hub import checkpoint_folder, commit_of

        if find_spec("ray") is None:
            raise InputError(f"--ray needs the package ray, {install_hint('ray')}; torchrun and --shard need none")
        if options.device not in (None, "cuda", "cpu"):
            raise InputError(f"--device {options.device}: Ray gives each actor a GPU of its own; leave it out, or give cuda or cpu")
        folder = checkpoint_folder(model_path, revision=options.revision, flag="model_path")
        self.checkpoint, self.model_commit = folder, commit_of(folder)
        self.tokenizer = folder
        if options.processor_path is not None and options.processor_path != model_path:
            self.tokenizer = checkpoint_folder(options.processor_path, flag="processor_path", contents="processor")
        self.head_folder: Path | None = None
        if options.timestamps != "segment":
            from arkfast.infer.words import head_folder

            self.head_folder = head_folder(folder, options.aligner)
        self.processing_seconds = 0.0
        self.batch_size = options.batch_size
        self._begin(where.ray_address)
        try:
            self._settle(where, options)
        except BaseException:
            self.close()
            raise
        if options.dtype == "auto":
            self.dtype: str = "bfloat16" if self.device.type == "cuda" else "float32"
        else:
            self.dtype = options.dtype
        local = model_path.exists()
        self._model, self._load = model_path.absolute() if local else model_path, load

    def _begin(self, address: str | None) -> None:
        for name, value in environment(address).items():
            os.environ[name] = value
        import logging

        import ray

        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            if address is None:
                ray.init(address="local", include_dashboard=False, logging_level=logging.ERROR)
            else:
                ray.init(address=address, logging_level=logging.ERROR)
        except Exception as error:  # Ray raises whatever its parts do
            what = f"--ray_address {address}: no Ray cluster can be reached there" if address else "--ray: Ray cannot be started here"
            raise InputError(f"{what} ({_reason(error)})") from error
        finally:
            for number, handler in before.items():  # Ray sets its own, which would end this process without a word
                signal.signal(number, handler)

    def _settle(self, where: RayOptions, options: TranscribeOptions) -> None:
        """Find what an actor gets, and how many there are."""
        import ray

        there = ray.cluster_resources()
        gpus, cores = int(there.get("GPU", 0)), max(1, int(there.get("CPU", 0)))
        on_gpu = options.device == "cuda" or (options.device is None and gpus > 0)
        self.device = Device("cuda" if on_gpu else "cpu")
        self.least, self.most = where.actors() or ((max(1, gpus),) * 2 if on_gpu else (max(1, cores // CORES),) * 2)
        if where.ray_address is None and self.least > (gpus if on_gpu else cores):  # a cluster may grow
            have = f"{gpus} GPUs" if on_gpu else f"{cores} cores"
            raise InputError(f"--ray: this machine has {have}, and each of {self.least} actors takes one; give a smaller --ray_actors")
        self._cores = 1 if on_gpu else max(1, cores // self.most)
        if on_gpu and options.num_workers is None:
            options = replace(options, num_workers=max(1, min(MOST_WORKERS, cores // (2 * max(1, gpus)))))
        self._options = options

    def __enter__(self) -> OnRay:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End Ray where it was started for this run, and leave the cluster alone otherwise."""
        import ray

        with suppress(Exception):  # what ended the run is what is told
            ray.shutdown()

    def results(self, items: Iterable[Utterance | Result], *, memory: object = None, ready: object = None) -> Iterator[Result]:
        """The results among the items; every other row has failed, since no actor gave its result."""
        for item in items:
            yield item if isinstance(item, Result) else Result(utterance=item, error=f"{item.name}: {_LOST}")

    def hand_out(
        self,
        items: Callable[[], Iterator[Utterance | Result]],
        *,
        lengths: Lengths,
        rows: int,
        decides: JsonRow,
        journal: Journal,
        console: Console,
    ) -> Tally:
        """Have all rows done that the journal lacks, so that their results are in the journal.

        Args:
            items: all rows in order, bad lines as results.
            lengths: of the rows.
            rows: how many there are.
            decides: ``resume.decided``.
            journal: where results go.
            console: where progress is told.

        Returns:
            What was done in this run.

        Raises:
            InputError: the journal cannot be written, or Ray gave up; what was done until then is in the journal.
        """
        sizes = SIZES[self.device.type]
        starts = lengths.chunks(self.most, seconds=sizes.seconds, rows=sizes.rows, done=journal.holds)
        chunks = [{CHUNK: packed(chunk)} for chunk in _chunks(items(), journal, starts)]
        tally, spent = Tally(), dict[str, float]()
        if not chunks:
            return tally
        console.begin(unit="row", total=rows, done=journal.held)
        job = Job(self._model, self._options, self._load, decides, os.getcwd(), sizes.block)
        try:
            for entry in self._entries(chunks, job):
                if "fault" in entry:
                    raise InputError(f"--ray: an actor cannot go on: {entry['fault']}; {_GO_ON}")
                if "actor" in entry:
                    spent[entry["actor"]] = entry["processing_seconds"]
                    tally.processing_seconds = max(spent.values())
                    continue
                journal.add_stored(entry["row"], entry["key"], entry["result"], segment=entry.get("segment"))
                if "segment" not in entry:
                    failed = "error" in entry["result"]
                    tally.rows, tally.failed = tally.rows + 1, tally.failed + failed
                    tally.seconds += entry["result"].get("seconds", 0.0)
                    said = f"{tally.seconds / 3600:.2f} h of audio, Ray"
                    console.advance(f"{said}, {tally.failed} failed" if tally.failed else said, by=1)
        finally:
            console.end()
        return tally

    def _entries(self, chunks: list[dict[str, bytes]], job: Job) -> Iterator[JsonRow]:
        """What the actors say, as it comes."""
        import logging

        import pyarrow
        import ray.data
        from ray.exceptions import RayError

        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.target_max_block_size = 1  # each block goes out when it is there, and not when megabytes have come together
        context.print_on_execution_start = False
        for handler in logging.getLogger("ray.data").handlers:  # its file in the session's folder has everything all the same
            if isinstance(handler, logging.StreamHandler):
                handler.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Ray means to take max_task_retries away from 2.64 on, before which the extra ends
            dataset = ray.data.from_items(chunks, override_num_blocks=len(chunks)).map_batches(
                ChunkTranscriber,
                fn_constructor_args=(job,),
                batch_size=1,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(min_size=self.least, max_size=self.most),
                num_cpus=self._cores,
                num_gpus=1 if self.device.type == "cuda" else None,
                max_task_retries=RETRIES,
            )
        try:
            for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                assert isinstance(batch, pyarrow.Table)
                for entry in batch.column(ENTRY).to_pylist():
                    yield parse_json_object(entry)
        except RayError as error:
            raise InputError(f"--ray: Ray gave up: {_reason(error)}; {_GO_ON}") from error


_GO_ON = "what was done is in the journal, and the same command goes on from there"
_LOST = "no actor gave its result, or its recording was changed while the others were transcribed; --retry_failed does it anew"


def environment(address: str | None) -> Mapping[str, str]:
    """Variables that Ray reads when it is imported and started: nothing is reported to its makers, and what is started here for one run is
    reached from this machine alone.

    Args:
        address: of a cluster that runs already, which decides for itself.
    """
    quiet = {"RAY_USAGE_STATS_ENABLED": "0"}
    if address is not None:
        return quiet
    # Ray binds its services to the loopback address where it takes the machine for one that cannot be part of a cluster.
    return quiet | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


def _chunks(items: Iterator[Utterance | Result], journal: Journal, starts: array[int]) -> Iterator[list[Given]]:
    """The rows that the journal lacks, by chunks; a chunk without any is left out."""
    chunk: list[Given] = []
    begins = set(starts)
    for row, item in enumerate(items):
        if row in begins and chunk:
            yield chunk
            chunk = []
        if isinstance(item, Result):
            continue
        key = key_of(item)
        if journal.find(row, key, item) is None:
            chunk.append(Given(row, key, item, journal.clips(row, key)))
    if chunk:
        yield chunk


def _reason(error: BaseException) -> str:
    """The last line of an error of Ray's, which has what an actor raised below the actor's stack."""
    cause = getattr(error, "cause", None)
    lines = [line.strip() for line in str(cause if isinstance(cause, BaseException) else error).splitlines() if line.strip()]
    return lines[-1].removeprefix(f"{InputError.__module__}.{InputError.__name__}: ") if lines else type(error).__name__
