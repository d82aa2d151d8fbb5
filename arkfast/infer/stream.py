"""A stream of utterances to a stream of results in the same order: windows, length buckets, and faults kept to their clip.

Knows when to make features and what to decode together; knows neither audio nor a model: both come in as functions. A result does not
depend on the window or the batch, as long as ``decode`` keeps a clip's transcript independent of its batch mates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from arkfast.infer.result import FinishReason, Result
from arkfast.records import InputError, Utterance

if TYPE_CHECKING:
    import numpy as np

Features = Callable[[Utterance], "np.ndarray"]
"""An utterance's features, [n_mels, T] float32; raises when the clip is bad."""
Decode = Callable[[Sequence[Utterance], Sequence["np.ndarray"]], Sequence[tuple[str, FinishReason]]]
"""(raw transcript, finish reason) of each clip of a batch; raises when the batch cannot be decoded."""


class DeviceLost(RuntimeError):
    """The device can run nothing more in this process, so a smaller batch cannot help: the run ends here."""


def transcribe_stream(
    items: Iterable[Utterance | Result],
    *,
    features: Features,
    decode: Decode,
    batch_size: int,
    window: int,
    frames_per_second: float,
) -> Iterator[Result]:
    """One result for each item, in the items' order.

    ``window`` items are taken at a time; their clips are decoded longest first, ``batch_size`` clips of similar length together, so that
    little is padding and a batch that is too large fails early. Memory is bounded by one window's features.

    Args:
        items: utterances, and results that are already known (rows that failed before), which pass through in their places.
        features: makes a clip's features; any exception but an ImportError fails that clip alone.
        decode: transcribes a batch; when it raises, the batch is halved until the bad clip stands alone.
        batch_size: most clips in a batch.
        window: items sorted together.
        frames_per_second: of the features, for ``Result.seconds``.

    Raises:
        DeviceLost: from ``decode``; results of the windows before have been yielded.
        ImportError: from ``features``: no clip can be read without the package.
    """
    stream = iter(items)
    while taken := list(islice(stream, window)):
        results: list[Result | None] = [item if isinstance(item, Result) else None for item in taken]
        clips: list[tuple[int, Utterance, np.ndarray]] = []
        for i, item in enumerate(taken):
            if isinstance(item, Result):
                continue
            try:
                clips.append((i, item, features(item)))
            except ImportError:  # a missing package is nobody's clip
                raise
            except Exception as error:  # one clip's fault, whatever it is, must not cost the others
                results[i] = Result(utterance=item, error=_message(item, error))
        clips.sort(key=lambda clip: -clip[2].shape[1])
        for start in range(0, len(clips), batch_size):
            batch = clips[start : start + batch_size]
            utterances = [utterance for _, utterance, _ in batch]
            outcomes = _isolate(utterances, [feature for _, _, feature in batch], decode)
            for (i, utterance, feature), outcome in zip(batch, outcomes, strict=True):
                if isinstance(outcome, Exception):
                    results[i] = Result(utterance=utterance, error=_message(utterance, outcome))
                else:
                    text, reason = outcome
                    seconds = feature.shape[1] / frames_per_second
                    results[i] = Result(utterance=utterance, text_raw=text, finish_reason=reason, seconds=seconds)
        for result in results:
            assert result is not None, "every item of a window has a result"
            yield result


def _isolate(utterances: Sequence[Utterance], features: Sequence[np.ndarray], decode: Decode) -> list[tuple[str, FinishReason] | Exception]:
    """Each clip's outcome, the batch halved wherever decoding raises."""
    try:
        outcomes = list(decode(utterances, features))
        assert len(outcomes) == len(utterances), f"decode returned {len(outcomes)} transcripts for {len(utterances)} clips"
        return [*outcomes]
    except DeviceLost:
        raise
    except Exception as error:
        if len(utterances) == 1:
            return [error]
    half = len(utterances) // 2
    return _isolate(utterances[:half], features[:half], decode) + _isolate(utterances[half:], features[half:], decode)


def _message(utterance: Utterance, error: Exception) -> str:
    """One line for the row; an ``InputError`` names its input already."""
    if isinstance(error, InputError):
        return str(error)
    return f"{utterance.name}: {type(error).__name__}: {' '.join(str(error).split())}"
