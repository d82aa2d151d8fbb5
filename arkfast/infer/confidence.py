"""How sure a model was of a transcript: log-probabilities of its ids, and what its text says of itself.

Names are OpenAI's where it has them. The confidence of a word is the probability that the model gave its ids, and where a calibration is
given (``arkfast.infer.calibration``), the share of such words that were right.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from arkfast.data.transcript import clean_transcript
from arkfast.infer.result import DETECTED
from arkfast.metrics.languages import tokenize, without_word_spaces
from arkfast.records import JsonObject, JsonRow, TokenizerLike

PHRASE = 3
"""Consecutive ids whose return counts as a repetition."""
_WORD = re.compile(r"\S+")


def compression_ratio(text: str) -> float:
    """Bytes of a text over those that zlib leaves of it, as Whisper has it; over 2.4 it repeats itself. 0 for an empty text."""
    data = text.encode()
    return len(data) / len(zlib.compress(data)) if data else 0.0


def repetition(tokens: Sequence[int]) -> float:
    """The share of runs of three ids that stood in the transcript before; 0 where there are fewer than three ids."""
    if len(tokens) < PHRASE:
        return 0.0
    runs = np.lib.stride_tricks.sliding_window_view(np.asarray(tokens), PHRASE)
    return 1.0 - len(np.unique(runs, axis=0)) / len(runs)


def spans(text: str) -> list[tuple[int, int]]:
    """Where each word of a text stands: between blanks, and each character alone in scripts without word spaces. Marks without a letter
    or a digit are no words."""
    found: list[tuple[int, int]] = []
    for match in _WORD.finditer(text):
        at = match.start()
        units = tokenize(match.group(), "mixed") if without_word_spaces(match.group()) else [match.group()]
        for unit in units:
            at = text.index(unit, at)
            if any(character.isalnum() for character in unit):
                found.append((at, at + len(unit)))
            at += len(unit)
    return found


def word_probabilities(tokens: Sequence[int], logprobs: Sequence[float], tokenizer: TokenizerLike) -> list[tuple[str, float]]:
    """Each word of a transcript with the probability of the ids that wrote it, the product of theirs.

    An id that wrote parts of two words counts for both.

    Args:
        tokens: ids, without the end token.
        logprobs: log-probability of each.
        tokenizer: of the ids.
    """
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    begins, ends = _places(tokens, text, tokenizer)
    values = np.asarray(logprobs[: len(tokens)], dtype=np.float64)
    words: list[tuple[str, float]] = []
    for start, stop in spans(text):
        inside = (begins < stop) & (ends > start)
        words.append((text[start:stop], math.exp(min(0.0, float(values[inside].sum())))))
    return words


def _places(tokens: Sequence[int], text: str, tokenizer: TokenizerLike) -> tuple[np.ndarray, np.ndarray]:
    """[n] and [n] int64: where in ``text`` each id's part begins and ends."""
    lengths = [len(piece or "") for piece in tokenizer.convert_ids_to_tokens(list(tokens))]
    widths = [len(character.encode()) for character in text]
    if sum(lengths) == sum(widths):  # pieces of a byte-level vocabulary have a character for each byte
        last, stop = np.cumsum(widths), np.cumsum(lengths)
        return np.searchsorted(last, stop - lengths, side="right"), np.searchsorted(last, stop, side="left") + 1
    ends = np.array([len(tokenizer.decode(tokens[: n + 1], skip_special_tokens=True)) for n in range(len(tokens))], dtype=np.int64)
    return np.concatenate([[0], ends[:-1]]).astype(np.int64)[: len(ends)], ends


def clip_scores(
    tokens: Sequence[int],
    logprobs: Sequence[float],
    *,
    text: str,
    tokenizer: TokenizerLike,
    calibrated: Callable[[float], float] | None,
) -> JsonObject:
    """What is said of one clip's transcript.

    Args:
        tokens: its ids, without the end token.
        logprobs: of the ids, and of the end token where it was produced.
        text: the transcript as decoded.
        tokenizer: of the ids.
        calibrated: makes the share of right words of a word's probability; None leaves it.

    Returns:
        ``avg_logprob``: mean over the ids, the end token's included; None where there is none. ``compression_ratio``, ``repetition``.
        ``word_confidence``: each word with its ``confidence``. ``confidence``: their mean, None without words.
    """
    words = word_probabilities(tokens, logprobs, tokenizer)
    rated: list[JsonObject] = [{"word": word, "confidence": round(calibrated(p) if calibrated else p, 4)} for word, p in words]
    return {
        "avg_logprob": round(sum(logprobs) / len(logprobs), 4) if logprobs else None,
        "compression_ratio": round(compression_ratio(clean_transcript(text)), 4),
        "repetition": round(repetition(tokens), 4),
        "confidence": _mean([word["confidence"] for word in rated], None),
        "word_confidence": rated,
    }


def joined_scores(parts: Iterable[tuple[float, JsonRow]], *, text: str) -> JsonObject:
    """What is said of a recording, from what is said of its clips.

    Args:
        parts: seconds of each clip, and its scores.
        text: the whole transcript.

    Returns:
        Those names that every clip has: ``avg_logprob`` as the mean over seconds of audio, ``repetition`` the largest, ``no_speech`` where
        no clip has speech, ``no_speech_prob`` the least; the words of all clips and the mean of their confidences;
        ``detected_language`` the one of most seconds, None where no clip has any.
    """
    given = list(parts)
    names = set.intersection(*(set(scores) for _, scores in given)) if given else set()
    found: JsonObject = {}
    if "no_speech_prob" in names:
        found["no_speech_prob"] = min(scores["no_speech_prob"] for _, scores in given)
    if "no_speech" in names and all(scores["no_speech"] for _, scores in given):
        found["no_speech"] = True
    if DETECTED in names:
        heard: dict[str, float] = {}
        for seconds, scores in given:
            if scores[DETECTED] is not None:
                heard[scores[DETECTED]] = heard.get(scores[DETECTED], 0.0) + seconds
        found[DETECTED] = max(heard, key=heard.__getitem__, default=None)
    if "avg_logprob" in names:
        said = [(seconds, scores["avg_logprob"]) for seconds, scores in given if scores["avg_logprob"] is not None]
        words = [word for _, scores in given for word in scores["word_confidence"]]
        found |= {
            "avg_logprob": _mean([value for _, value in said], [seconds for seconds, _ in said]),
            "compression_ratio": round(compression_ratio(text), 4),
            "repetition": max(scores["repetition"] for _, scores in given),
            "confidence": _mean([word["confidence"] for word in words], None),
            "word_confidence": words,
        }
    return found


def _mean(values: Sequence[float], weights: Sequence[float] | None) -> float | None:
    return round(float(np.average(values, weights=weights)), 4) if values else None
