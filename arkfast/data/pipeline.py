"""Utterances in, features out in the same order, made ahead by worker processes.

This module decides how far to read ahead and what becomes of bad clips. Which process works on what is decided in ``pool``; the work
itself, decoding and features, is in ``worker``.
"""

from __future__ import annotations

import os
import pickle
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from arkfast.audio import LogMel
from arkfast.audio.load import NOTHING_CHOSEN, Used
from arkfast.data.bad_audio import BadAudioLimit
from arkfast.data.pool import Job, Pool, WorkersBroken
from arkfast.data.worker import Features, Prepare
from arkfast.records import InputError, Utterance

MAX_WINDOW = 1024  # clips in flight: bounds the memory, and their slot numbers always fit into a pipe that nobody reads yet


Outcome = tuple[np.ndarray | InputError, object, tuple[str, ...], Used]
"""All of a ``FeatureItem`` but its utterance."""
UNHEARD: np.ndarray = np.zeros((0, 0), dtype=np.float32)
"""The features of an utterance where nothing is heard."""


class FeatureItem(NamedTuple):
    """An utterance and what became of it."""

    utterance: Utterance
    features: np.ndarray | InputError
    """Float32 [n_mels, T] at 100 frames a second, or why there are none."""
    prepared: Any = None
    """What the second extractor made of the same waveform."""
    warnings: tuple[str, ...] = ()
    """A sentence for each thing about the clip that is doubtful and no error."""
    used: Used = NOTHING_CHOSEN
    """What was heard of several channels or audio tracks, as ``Loaded.used`` has it."""


class BadAudioPolicy:
    """What becomes of clips that cannot be used: ``fail`` ends the run at the first, ``skip:<max ratio>`` passes over them.

    Items are judged in the data's order, so the verdict falls at the same row whatever the workers' timing. ``BadAudioLimit`` says how many
    may be bad.

    Args:
        rule: ``fail``, or ``skip:`` and a share in [0, 1].
        rows: how many rows an epoch has, where that is known.
        on_skip: called with (utterance, error) for every clip passed over.
        on_doubt: called with (utterance, warning) for everything that is doubtful about a clip and no error.

    Raises:
        ValueError: a rule of neither form.

    Attributes:
        seen: items judged so far.
        skipped: bad ones among them.
    """

    def __init__(
        self,
        rule: str = "fail",
        *,
        rows: int | None = None,
        on_skip: Callable[[Utterance, InputError], None] | None = None,
        on_doubt: Callable[[Utterance, str], None] | None = None,
    ) -> None:
        self.rule, self._on_skip, self._on_doubt = rule, on_skip, on_doubt
        self._limit = BadAudioLimit(rule, rows=rows)
        self.seen = self.skipped = 0

    @property
    def skips(self) -> bool:
        """Whether a bad clip may be passed over."""
        return self._limit.skips

    def judge(self, item: FeatureItem) -> None:
        """Count an item; raise its error, or ``InputError`` when the share of bad ones is past the limit."""
        self.seen += 1
        if not isinstance(error := item.features, InputError):
            if self._on_doubt is not None:
                for warning in item.warnings:
                    self._on_doubt(item.utterance, warning)
            return
        if not self.skips:
            raise error
        self.skipped += 1
        if self._on_skip:
            self._on_skip(item.utterance, error)
        if self._limit.passed(self.skipped, self.seen):
            message = f"{self.skipped} of {self.seen} clips so far are bad, over the limit of {self.rule}; the last: {error}"
            raise InputError(message) from error


class FeaturePipeline:
    """Turns a stream of utterances into a stream of features, in order, ahead of the consumer.

    What comes out does not depend on the number of workers or their timing, to the bit. A worker that dies (killed, crashed, out of
    memory) or spends more than ``timeout`` on a clip is replaced; that clip is tried once more, then it is a bad clip that says why.

    Args:
        log_mel: the extractor; None: nothing is heard, and every item passes with features of no frames.
        workers: processes; 0 does the work in the caller's thread, when an item is asked for, without protection against crashes.
        prefetch: clips for each worker that are in work or wait for the consumer, at most 1024 in all.
        max_seconds: longer audio is bad.
        prepare: a second extractor for the workers, e.g. a teacher's: waveform → anything that can be pickled; arrays travel fastest.
            It must be picklable, and come from a module that a worker can import.
        on_bad_audio: ``fail``, ``skip:<max ratio>``, or a policy that the caller keeps.
        timeout: seconds that a worker may spend on one clip.
        samples: each clip's samples, float32 [1, n] at 16 kHz, come in place of its features.
        isolate: whatever an extractor raises is that clip's fault, as bad audio is, save a missing package.
        ready: says whether the source of the items has the next one at hand; clips in work are given before it is waited for.

    Raises:
        ValueError: a number out of range, a rule that is neither form, or extractors that cannot be pickled.
    """

    def __init__(
        self,
        log_mel: LogMel | None,
        *,
        workers: int = 0,
        prefetch: int = 8,
        max_seconds: float = 30.0,
        prepare: Prepare | None = None,
        on_bad_audio: str | BadAudioPolicy = "fail",
        timeout: float = 120.0,
        isolate: bool = False,
        samples: bool = False,
        ready: Callable[[], bool] = lambda: True,
    ) -> None:
        for name, value, least in (("workers", workers, 0), ("prefetch", prefetch, 1)):
            if value < least:
                raise ValueError(f"FeaturePipeline: {name} must be at least {least}, got {value}")
        for name, seconds in (("max_seconds", max_seconds), ("timeout", timeout)):
            if not seconds > 0:
                raise ValueError(f"FeaturePipeline: {name} must be above 0, got {seconds}")
        if workers and os.name != "posix":
            warnings.warn("arkfast: feature workers need POSIX; features are made in the caller's thread", RuntimeWarning, stacklevel=2)
            workers = 0
        self.policy = on_bad_audio if isinstance(on_bad_audio, BadAudioPolicy) else BadAudioPolicy(on_bad_audio)
        self._features = None if log_mel is None else Features(log_mel, max_seconds, prepare, samples=samples)
        if self._features is None:
            workers = 0
        if workers:
            try:
                pickle.dumps(self._features, protocol=5)
            except Exception as error:  # pickle raises whatever an object's own methods raise, and three types of its own
                raise ValueError(f"FeaturePipeline: prepare cannot be sent to workers ({error}); give a function of a module") from error
        self._workers, self._timeout, self._isolate = workers, timeout, isolate
        self._window = min(workers * prefetch, MAX_WINDOW)
        self._ready, self._in_work = ready, 0

    def ready(self) -> bool:
        """Whether the next item of ``features`` can be had without waiting for the source of the items."""
        return self._in_work > 0 or self._ready()

    def features(self, items: Iterable[Utterance | FeatureItem]) -> Generator[FeatureItem, None, None]:
        """Each utterance with its features, in order; a bad one, where the policy passes over it, with its error.

        Workers start with the first utterance that needs one and end with the iterator: exhausted, closed or garbage.

        Args:
            items: utterances; a ``FeatureItem`` among them is known already and passes through in its place. Read as far ahead as the
                window reaches, and no further.

        Raises:
            InputError: in a bad item's turn, as the policy says.
            WorkersBroken: workers cannot be started.
            Exception: whatever else an extractor raised, in its item's turn, and whatever ``items`` raised, after the items before.
        """
        with closing(self._ahead(items) if self._workers else self._here(items)) as stream:
            for item in stream:
                self.policy.judge(item)
                yield item

    def _here(self, items: Iterable[Utterance | FeatureItem]) -> Generator[FeatureItem, None, None]:
        for item in items:
            if isinstance(item, FeatureItem):
                yield item
                continue
            if (features := self._features) is None:
                yield FeatureItem(item, UNHEARD)
            else:
                yield self._item(item, partial(features, item))

    def _item(self, utterance: Utterance, make: Callable[[], Outcome]) -> FeatureItem:
        try:
            return FeatureItem(utterance, *make())
        except InputError as error:
            return FeatureItem(utterance, error)
        except Exception as error:
            if not self._isolate or isinstance(error, (ImportError, WorkersBroken)):
                raise
            return FeatureItem(utterance, InputError(f"{utterance.name}: {type(error).__name__}: {' '.join(str(error).split())}"))

    def _ahead(self, items: Iterable[Utterance | FeatureItem]) -> Generator[FeatureItem, None, None]:
        window: deque[Job | FeatureItem | Exception] = deque()
        source: Iterator[Utterance | FeatureItem] | None = iter(items)
        self._in_work = 0
        assert self._features is not None, "what hears nothing has no workers"
        with Pool(self._features, self._workers, self._window, self._timeout) as pool:
            while True:
                while source is not None and len(window) < self._window and (not window or self._ready()):
                    try:
                        item = next(source)
                    except StopIteration:
                        source = None
                    except Exception as error:
                        source = None
                        window.append(error)
                    else:
                        window.append(item if isinstance(item, FeatureItem) else pool.submit(item))
                if not window:
                    return
                head = window.popleft()
                self._in_work = len(window)
                if isinstance(head, Exception):
                    raise head
                if isinstance(head, FeatureItem):
                    yield head
                else:
                    yield self._item(head.utterance, partial(pool.take, head))
