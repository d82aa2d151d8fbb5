"""A stream of utterances to a stream of results in the same order, with faults kept to their clip.

Features and decoder are handed in. A result does not depend on what else is under way, as long as the decoder keeps a clip's transcript
independent of the others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from arkfast.audio.load import Used
from arkfast.data.pipeline import FeatureItem
from arkfast.infer.result import FinishReason, Result
from arkfast.records import InputError, JsonObject, JsonRow, Utterance

if TYPE_CHECKING:
    import numpy as np


FRAMES_PER_SECOND = 100  # of the features


class DeviceLost(RuntimeError):
    """The device can run nothing more in this process. Going on with the other clips cannot help, so the run ends here."""


class Outcome(NamedTuple):
    """What became of a clip that was submitted."""

    ticket: int
    """What ``submit`` returned."""
    text: str | None
    """The raw transcript; None when decoding failed."""
    finish_reason: FinishReason | None
    error: str | None
    """Why there is no transcript."""
    words: Sequence[JsonObject] | None = None
    """``Result.words``."""
    words_error: str | None = None
    """``Result.words_error``."""
    scores: JsonRow | None = None
    """``Result.scores``; None where there are none."""
    warnings: tuple[str, ...] = ()
    """What is doubtful, beside what is doubtful about the recording."""
    tokens: Sequence[int] = ()
    """The ids that wrote the text, without the end token."""


class Decoder(Protocol):
    """Turns features into transcripts, several clips at a time."""

    def submit(self, utterance: Utterance, features: np.ndarray) -> int:
        """Take a clip's features, [n_mels, T] float32, and return its ticket. An exception is that clip's fault."""

    def step(self) -> list[Outcome]:
        """Go on for a while and return what has ended, in any order. An exception ends the run."""


class Memory(Protocol):
    """What is known of clips already, and where new results are kept. It is asked and told in the clips' order."""

    def find(self, clip: Utterance) -> Result | None:
        """The clip's result; None where it has to be transcribed."""

    def keep(self, result: Result) -> None:
        """Take the result of the next clip for which ``find`` gave None."""


class Gate:
    """Says whether the next clip can be had without waiting for rows that are under way.

    Args:
        ready: says it of the next row.

    Attributes:
        inside: whether the next clip belongs to a row whose clips are being handed out, so that nothing has to be waited for.
    """

    def __init__(self, ready: Callable[[], bool] | None) -> None:
        self._ready, self.inside = ready, False

    def __call__(self) -> bool:
        return self.inside or self._ready is None or self._ready()


@dataclass
class _Place:
    """A row's place in the order."""

    utterance: Utterance
    result: Result | None = None
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()
    used: Used = field(default_factory=dict)
    known: bool = False
    """Whether the result came with the items or from the memory."""


Features = Callable[[Iterable["Utterance | FeatureItem"]], Generator[FeatureItem, None, None]]
"""Gives each utterance with its features, in order. Results that are known already pass through."""


def transcribe_stream(
    items: Iterable[Utterance | Result],
    *,
    features: Features,
    decoder: Decoder,
    window: int,
    frames_per_second: float,
    memory: Memory | None = None,
    ready: Callable[[], bool] = lambda: True,
) -> Generator[Result, None, None]:
    """One result for each item, in the items' order.

    Up to ``window`` items are under way at once, so that the decoder can choose clips of similar length and short ones need not wait for
    long ones; results wait for those before them. Memory is bounded by one window's features.

    Args:
        items: utterances, and results that are already known (rows that failed before), which pass through in their places.
        features: makes features. A clip whose features are an ``InputError`` fails alone.
        decoder: transcribes the features.
        window: how many items are under way at once.
        frames_per_second: how many frames a second of audio has, for ``Result.seconds``.
        memory: is asked about each utterance before its features are made, and told its result before that is yielded; None for none.
        ready: says whether the next item can be had without waiting. Where it cannot, what is under way goes on meanwhile.

    Raises:
        DeviceLost: the decoder raised it. Results of the clips before have been yielded.
        ImportError: ``features`` raised it, because no clip can be read without the package.
    """
    places: deque[_Place] = deque()
    waiting: dict[int, _Place] = {}
    with closing(features(_as_features(items, memory))) as stream:
        more = True
        while True:
            while more and len(places) < window and (not places or ready()):
                item = next(stream, None)
                more = item is not None
                if item is not None:
                    places.append(_begun(item, decoder, waiting, frames_per_second))
            while places and (result := places[0].result) is not None:
                place = places.popleft()
                if memory is not None and not place.known:
                    memory.keep(result)
                yield result
            if not places and not more:
                return
            if not places or places[0].result is not None or (more and len(places) < window and ready()):
                continue
            for outcome in decoder.step():
                place = waiting.pop(outcome.ticket)
                place.result = _result(place, outcome)


def _as_features(items: Iterable[Utterance | Result], memory: Memory | None) -> Iterator[Utterance | FeatureItem]:
    """Give known results a form in which they pass through the making of features."""
    for item in items:
        known = item if isinstance(item, Result) else None if memory is None else memory.find(item)
        if known is not None:
            yield FeatureItem(known.utterance, InputError(known.error or "known"), known)
        elif isinstance(item, Utterance):
            yield item


def _begun(item: FeatureItem, decoder: Decoder, waiting: dict[int, _Place], frames_per_second: float) -> _Place:
    utterance, features, known, warnings, used = item
    if isinstance(known, Result):
        return _Place(utterance, known, known=True)
    if isinstance(features, InputError):
        return _Place(utterance, Result(utterance=utterance, error=str(features)))
    place = _Place(utterance, seconds=features.shape[1] / frames_per_second, warnings=warnings, used=used)
    try:
        waiting[decoder.submit(utterance, features)] = place
    except Exception as error:  # one clip's fault, whatever it is, must not cost the others
        place.result = Result(utterance=utterance, error=_message(utterance, error), warnings=warnings, used=used)
    return place


def _result(place: _Place, outcome: Outcome) -> Result:
    failed = outcome.text is None
    return Result(
        utterance=place.utterance,
        text_raw=outcome.text,
        finish_reason=None if failed else outcome.finish_reason,
        error=f"{place.utterance.name}: {outcome.error}" if failed else None,
        seconds=0.0 if failed else place.seconds,
        warnings=(*place.warnings, *outcome.warnings),
        used=place.used,
        scores=outcome.scores or {},
        words=outcome.words,
        words_error=outcome.words_error,
    )


def _message(utterance: Utterance, error: Exception) -> str:
    """The error as one line for the row."""
    text = " ".join(str(error).split())
    return f"{utterance.name}: {text}" if isinstance(error, InputError) else f"{utterance.name}: {type(error).__name__}: {text}"
