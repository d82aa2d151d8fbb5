"""What a run trains on: rows that are checked before a model loads, then batches for this process, window by window.

Of the models only their features, their prompt and what the teacher prepares reach this module.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import numpy as np

from arkfast.audio import LogMel
from arkfast.audio.channels import parse_channel
from arkfast.data import BadAudioPolicy, DataOrder, FeatureItem, FeaturePipeline, Fields, Loader, collate, planned_seconds, read_manifest
from arkfast.data.bad_audio import BadAudioLimit
from arkfast.data.collate import read_clip
from arkfast.data.dealer import Dealer, Window
from arkfast.data.tasks import Task, find_task
from arkfast.distill.teachers import Prepare
from arkfast.records import Batch, InputError, Interface, Prompt, Utterance
from arkfast.train.checkpoints.identity import contents_of_rows
from arkfast.train.config import TrainConfig
from arkfast.train.objective import guards_of
from arkfast.train.parallel import Parallel

DOUBTS_NAMED = 20
"""Warnings about recordings that are said in a run."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows of a run, the same on every rank."""

    train: list[Utterance]
    """To train on."""
    seconds: list[float]
    """How long each is taken to be when batches are planned."""
    dev: list[Utterance]
    """To measure WER on, shortest first; empty where there are none."""


def read_rows(config: TrainConfig, parallel: Parallel) -> Rows:
    """Read and check the manifests; every rank calls it.

    Raises:
        InputError: a row cannot be used, a clip is longer than ``--max_audio_seconds`` allows (of the rows to train on only where none is
            passed over), or ranks read different rows. Rank 0 raises it; the others exit.
    """
    with parallel.agreeing():
        task = find_task(config.task)
        limit = config.train_max_samples if config.train_max_samples > 0 else None
        fields = Fields(channel=parse_channel(config.channel), audio_track=config.audio_track, on_truncated=config.on_truncated)
        train = read_manifest(config.train_data, fields=fields, task=config.task, limit=limit)
        for row in train if config.stage in ("sft", "ctc_head") else ():
            task.check_target(row)
        dev = read_manifest(config.eval_data, fields=fields, task=config.task) if config.eval_data else []
        for row in dev:
            task.check_reference(row)
    seconds: list[float] = []
    dev_seconds: list[float] = []
    with parallel.agreeing():
        # One rank reads the files' headers for all: the plan must be the same everywhere.
        if parallel.is_first:
            skips = BadAudioLimit(config.on_bad_audio).skips
            seconds = planned_seconds(train, task.seconds, unreadable=config.max_audio_seconds if skips else None)
            dev_seconds = planned_seconds(dev, task.seconds)
            if not skips:
                _refuse_overlong(train, seconds, config.max_audio_seconds)
            _refuse_overlong(dev, dev_seconds, config.max_audio_seconds)
    seconds, dev_seconds = parallel.broadcast((seconds, dev_seconds))
    contents = [contents_of_rows(train, seconds), contents_of_rows(dev, ())]
    with parallel.agreeing():
        if parallel.broadcast(contents) != contents:
            raise InputError(f"--train_data {config.train_data}: other rows than rank 0 reads; give every machine the same files")
    dev = [dev[i] for i in sorted(range(len(dev)), key=dev_seconds.__getitem__)]
    return Rows(train=train, seconds=seconds, dev=dev)


def _refuse_overlong(rows: Sequence[Utterance], seconds: Sequence[float], limit: float) -> None:
    """Raise for the first row over the limit now, lest it end the run when its turn comes.

    Planned lengths are what headers and manifests say, which may be a little more than there is; so a row that they put over the limit is
    decoded, which stops at the limit, and that decides.
    """
    for row, length in zip(rows, seconds, strict=True):
        if length > limit and isinstance(row.audio, str):
            read_clip(row, max_seconds=limit)


def micro_batches(config: TrainConfig, parallel: Parallel) -> int:
    """Micro-batches of all processes in a step."""
    return config.micro_batches_per_step or config.gradient_accumulation_steps * parallel.world


def batch_of(
    items: Sequence[FeatureItem],
    prompt: Prompt,
    *,
    hears: bool,
    prepared: bool = False,
    targets: Callable[[Utterance], list[int]] | None = None,
    pinned: bool = False,
) -> Batch:
    """A batch of usable items.

    Args:
        items: of a pipeline.
        prompt: how an utterance becomes ids.
        hears: whether the items have features.
        prepared: whether a teacher prepared something of each.
        targets: an utterance's reference as ids, where it is learnt.
        pinned: put it into memory from which a GPU fetches it while the host goes on.
    """
    rows = [item.utterance for item in items]
    features = [item.features for item in items if isinstance(item.features, np.ndarray)] if hears else None
    batch = collate(
        rows,
        features,
        prompt,
        None if targets is None else [targets(row) for row in rows],
        [item.prepared for item in items] if prepared else None,
    )
    return batch.pinned() if pinned else batch


def targets_of(config: TrainConfig, task: Task, interface: Interface) -> Callable[[Utterance], list[int]] | None:
    """An utterance's reference as ids, where the run learns it: no ids for a row without text in a stage that can do without."""
    if config.stage == "sft":
        return partial(task.targets, interface=interface)
    if config.unsupported_language == "sft" or (config.stage == "opd" and guards_of(config).needs_references):
        return lambda utterance: task.targets(utterance, interface) if (utterance.text or "").strip() else []
    return None


class Doubts:
    """Says which recordings are doubtful, each once and the first few only: a run has no rows to write it into.

    Args:
        say: takes a sentence.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._named: set[str] = set()

    def __call__(self, row: Utterance, warning: str) -> None:
        """Say what is doubtful about a row's recording."""
        sentence = f"{row.name}: {warning}"
        if sentence in self._named or len(self._named) > DOUBTS_NAMED:
            return
        self._named.add(sentence)
        if len(self._named) > DOUBTS_NAMED:
            sentence = "further doubtful recordings are not named; arkfast manifest check --decode true lists all of them"
        self._say(sentence)


class Feed:
    """This process's batches.

    Args:
        rows: of the run.
        config: batch sizes, order, workers and the policy for bad audio.
        parallel: the processes.
        log_mel: features; None: the task hears nothing.
        prepare: what a teacher makes of each waveform.
        make: the usable items of a batch → batch.
        on_skip: told of each row that is passed over.
        say: told of recordings that are doubtful.
    """

    def __init__(
        self,
        rows: Rows,
        config: TrainConfig,
        parallel: Parallel,
        log_mel: LogMel | None,
        prepare: Prepare | None,
        make: Callable[[Sequence[FeatureItem]], Batch],
        on_skip: Callable[[Utterance, InputError], None],
        say: Callable[[str], None],
    ) -> None:
        self.micro_batches = micro_batches(config, parallel)
        """Of all processes in a step."""
        self._order = DataOrder(
            rows.seconds,
            batch_size=config.per_device_train_batch_size,
            seed=config.seed,
            shuffle=config.shuffle_train,
            batch_seconds=config.batch_seconds or None,
        )
        # A share of bad rows is a share of those that all processes met since the run began, which the recorder counts and judges.
        rule = config.on_bad_audio if config.on_bad_audio == "fail" else "skip:1"
        pipeline = FeaturePipeline(
            log_mel,
            workers=config.dataloader_num_workers,
            prefetch=config.dataloader_prefetch_factor * self._order.typical_rows,
            max_seconds=config.max_audio_seconds,
            prepare=prepare,
            on_bad_audio=BadAudioPolicy(rule, rows=len(rows.train), on_skip=on_skip, on_doubt=Doubts(say)),
        )
        # What a teacher prepared is not kept, so that rows that come again are read again for it.
        cache_mb = config.feature_cache_mb // 2 if prepare is None else 0
        self._loader = Loader(self._order, rows.train, pipeline, make, cache_mb=cache_mb)
        self.end = None if config.max_steps else config.total_epochs * len(rows.train)
        """The cursor at which the data ends; None: never."""
        self._dealer = Dealer(self._order, batches=self.micro_batches, rank=parallel.rank, world=parallel.world, end=self.end)
        self._max_steps, self._epochs = config.max_steps, config.total_epochs

    def total_steps(self, step: int, cursor: int) -> int:
        """Optimizer steps of a run that stands after ``step`` of them and ``cursor`` rows: without ``--max_steps`` as many more as what is
        left of the data makes."""
        return self._max_steps or step + -(-self._order.batch_count(self._epochs, cursor=cursor) // self.micro_batches)

    def leads(self, before: int, after: int) -> bool:
        """Whether the window that begins at one cursor ends at another."""
        window = next(self._dealer.windows(before), None)
        return window is not None and window.cursor == after

    def windows(self, cursor: int) -> Generator[tuple[Window, Iterator[Batch | None]], None, None]:
        """The windows from ``cursor`` on, each with this process's batches: ``rounds`` of them, None where it has nothing to do.

        Batches are to be taken in turn, all of a window before the next.
        """
        plan = (rows for window in self._dealer.windows(cursor) for rows in window.share)
        with closing(self._loader.planned(plan)) as batches:
            for window in self._dealer.windows(cursor):
                yield window, self._batches(window, batches)

    @staticmethod
    def _batches(window: Window, batches: Iterator[Batch | None]) -> Iterator[Batch | None]:
        for i in range(window.rounds):
            yield next(batches) if i < len(window.share) else None
