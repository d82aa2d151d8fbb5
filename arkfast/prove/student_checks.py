"""The student's side of the comparisons: tokenizer, features, prompts, encoder states, greedy tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from arkfast.audio.reference import log_mel_reference
from arkfast.models.outside import Outside
from arkfast.prove.clips import Clip
from arkfast.prove.ours import Heard, Ids
from arkfast.prove.outcome import Outcome, not_compared, within
from arkfast.records import TokenizerLike
from arkfast.train.audit import comes_back

FEATURES, BATCH, DEEP = 1e-6, 1e-5, 1e-4
_WHISPER = "Transformers' features beside ours"
_STATES = "encoder states beside Transformers'"
_TOKENS = "greedy tokens beside Transformers' generate"
_PROMPT = "prompt beside the checkpoint's template"
OUTSIDE = (_WHISPER, _PROMPT, _STATES, _TOKENS)
"""The comparisons that need the student in Transformers' own classes."""


def tokenizer(own: TokenizerLike, clips: Sequence[Clip]) -> Outcome:
    """Whether the clips' references come back unchanged from the student's tokenizer."""
    name = "references through the student's tokenizer"
    texts = [(clip.row.name, clip.row.text) for clip in clips if clip.row.text and clip.row.text.strip()]
    if not texts:
        return not_compared(name, "none of the clips has a reference")
    lost = [name for name, text in texts if not comes_back(own, text)]
    detail = f"{len(lost)} of {len(texts)} texts are not themselves again" + (f", the first of {lost[0]}" if lost else "")
    return within(name, len(lost) / len(texts), 0.5, reason="a text may hold a character that the vocabulary lacks", detail=detail)


def features(heard: Heard, clips: Sequence[Clip], n_mels: int) -> Outcome:
    """Ours against the definition in float64."""
    worst, place = -1.0, ""
    for mine, clip in zip(heard.features, clips, strict=True):
        exact, _ = log_mel_reference(clip.samples, n_mels=n_mels)
        difference = float(np.abs(mine - exact).max()) if mine.shape == exact.shape else float("inf")
        worst, place = max((worst, place), (difference, clip.row.name))
    return within(
        "features beside the definition in float64",
        worst,
        FEATURES,
        reason="float32 holds values of this size to 1e-7, and they are rounded a few times",
        detail=f"{len(clips)} clips; largest difference of a value, at {place}",
    )


def batch(heard: Heard, clips: Sequence[Clip]) -> Outcome:
    """Encoder states of the batch against those of each clip by itself."""
    worst, place = _worst([(_relative(a, b), clip) for a, b, clip in zip(heard.together, heard.alone, clips, strict=True)])
    return within(
        "encoder states, batch against one by one",
        worst,
        BATCH,
        reason="a clip must not depend on its batch mates; sums in another order differ in float32's last digits",
        detail=f"{len(clips)} clips; largest difference as a share of the largest state, at {place}",
    )


def outside(own: Ids, heard: Heard, clips: Sequence[Clip], other: Outside) -> list[Outcome]:
    """What needs the student in Transformers' own classes."""
    found = [_features(heard, clips, other), _prompts(own, heard, clips, other)]
    states = [(_relative(mine, other.audio(clip.samples).cpu()), clip) for mine, clip in zip(heard.alone, clips, strict=True)]
    worst, place = _worst(states)
    found.append(
        within(
            _STATES,
            worst,
            DEEP,
            reason="features differ by up to 1e-4 and sums are taken in another order in each layer; another weight changes whole digits",
            detail=f"{other.made_of}; largest difference as a share of the largest state, at {place}",
        )
    )
    return [*found, _tokens(own, heard, clips, other)]


def _features(heard: Heard, clips: Sequence[Clip], other: Outside) -> Outcome:
    pairs = []
    for mine, clip in zip(heard.features, clips, strict=True):
        theirs = other.features(clip.samples)
        pairs.append((float(np.abs(mine - theirs).max()) if mine.shape == theirs.shape else float("inf"), clip))
    worst, place = _worst(pairs)
    return within(
        _WHISPER,
        worst,
        DEEP,
        reason="Transformers' transform is in float32, which leaves errors of a few 1e-5 far below a frame's peak",
        detail=f"{len(clips)} clips, with the checkpoint's own settings; largest difference of a value, at {place}",
    )


def _prompts(own: Ids, heard: Heard, clips: Sequence[Clip], other: Outside) -> Outcome:
    differing, said = 0, "the same ids in every prompt"
    for mine, clip in zip(heard.prompts, clips, strict=True):
        theirs = other.prompt(clip.samples, clip.row)
        if mine != theirs:
            differing += 1
            place = first_difference(mine, theirs)
            said = (
                f"{clip.row.name}: at place {place} ours has {shown(own.interface.tokenizer, mine, place)}, the other "
                f"{shown(own.interface.tokenizer, theirs, place)} ({len(mine)} and {len(theirs)} ids)"
            )
    return within(
        _PROMPT, float(differing), 0.0, reason="ids are equal or they are not", detail=f"{other.prompt_from}; {len(clips)} clips; {said}"
    )


def _tokens(own: Ids, heard: Heard, clips: Sequence[Clip], other: Outside) -> Outcome:
    limit, differing, ties, said = heard.rollout.tokens.shape[1], 0, 0, ""
    for mine, clip in zip(heard.answers, clips, strict=True):
        theirs = other.generate(clip.samples, clip.row, allowed=own.allowed, max_new_tokens=limit)
        place = first_difference(mine, theirs)
        if place is None:
            continue
        if place < min(len(mine), len(theirs)):
            scores = other.scores(clip.samples, clip.row, mine[: place + 1])[place]
            gap = float((scores[theirs[place]] - scores[mine[place]]) / scores.abs().max())
            if abs(gap) <= DEEP:
                ties += 1
                continue
        differing += 1
        tokenizer = own.interface.tokenizer
        said = said or (
            f"; {clip.row.name}: at token {place} the engine has {shown(tokenizer, mine, place)}, generate "
            f"{shown(tokenizer, theirs, place)}"
        )
    count = len({token for answer in heard.answers for token in answer})
    tied = f"; {ties} part at two tokens of equal score" if ties else ""
    return within(
        _TOKENS,
        float(differing),
        0.0,
        reason="tokens are equal or they are not, except where two scores are equal to 1e-4 of the largest",
        detail=f"{len(clips)} answers, {sum(map(len, heard.answers))} tokens, {count} distinct ones{tied}{said}",
    )


def first_difference(a: Sequence[int], b: Sequence[int]) -> int | None:
    """Where two lists part; None where they are equal."""
    if list(a) == list(b):
        return None
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def shown(own: TokenizerLike, ids: Sequence[int], place: int | None) -> str:
    """An id of a list and its token."""
    if place is None or place >= len(ids):
        return "nothing"
    return f"{ids[place]} ({own.convert_ids_to_tokens([ids[place]])[0]!r})"


def _relative(a: torch.Tensor, b: torch.Tensor) -> float:
    if a.shape != b.shape:
        return float("inf")
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-30))


def _worst(pairs: Sequence[tuple[float, Clip]]) -> tuple[float, str]:
    """The largest difference and whose it is; one that is not a number counts as the largest."""
    value, clip = max(pairs, key=lambda pair: float("inf") if pair[0] != pair[0] else pair[0])
    return value, clip.row.name
