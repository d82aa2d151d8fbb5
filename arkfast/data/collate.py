"""From utterances to a batch: log-mel features, prompt ids, target ids.

Knows audio, features and the prompt; knows no model. A clip's features never depend on its batch mates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from arkfast import audio
from arkfast.audio.segment import cut_samples
from arkfast.data.prompt import END_OF_TURN, Prompt, pad_right
from arkfast.data.shards import open_audio
from arkfast.records import Batch, InputError, Utterance

if TYPE_CHECKING:
    import numpy as np

    from arkfast.audio import LogMel


def extract(utterance: Utterance, log_mel: LogMel, *, max_seconds: float = 30.0) -> np.ndarray:
    """One utterance's log-mel features, float32 [n_mels, T] at 100 frames a second.

    Raises:
        InputError: the audio is missing, unreadable, empty, not finite, longer than ``max_seconds``, or its segment lies outside it.
    """
    samples = utterance.audio
    if isinstance(samples, str):
        source, name = open_audio(utterance)
        samples = audio.load(source, begin=utterance.begin, end=utterance.end, max_seconds=max_seconds, name=name)
    else:
        samples = cut_samples(samples, utterance.begin, utterance.end, max_seconds=max_seconds, label=utterance.name)
    try:
        features, frames = log_mel([samples], max_samples=None)  # the limit was the segment's
    except ValueError as error:
        raise InputError(f"{_name(utterance)}: {error}") from error
    return features[0, :, : int(frames[0])]


def _name(utterance: Utterance) -> str:
    return f"{utterance.where}: {utterance.audio}" if utterance.where and isinstance(utterance.audio, str) else utterance.name


def target_ids(utterance: Utterance, tokenizer: Any) -> list[int]:
    """The transcript's ids with the end token.

    Raises:
        InputError: the row carries no text, or only blanks.
    """
    if utterance.text is None or not utterance.text.strip():
        raise InputError(f"{utterance.name}: no text; supervised training needs a transcript in every row")
    return [*tokenizer.encode(utterance.text, add_special_tokens=False), tokenizer.convert_tokens_to_ids(END_OF_TURN)]


def collate(utterances: Sequence[Utterance], features: Sequence[np.ndarray], prompt: Prompt, tokenizer: Any = None) -> Batch:
    """A batch of ``utterances`` with their ``features`` ([n_mels, T] each, from ``extract``).

    Args:
        utterances: the rows, B of them.
        features: log-mel of each row.
        prompt: how a clip becomes ids.
        tokenizer: given, each row's text becomes ``target_ids`` (and a row without text is an error).
    """
    import torch

    assert len(utterances) == len(features) > 0
    lens = torch.tensor([f.shape[1] for f in features], dtype=torch.int64)
    mel = torch.zeros(len(features), features[0].shape[0], int(lens.max()), dtype=torch.float32)
    for i, feature in enumerate(features):
        mel[i, :, : feature.shape[1]] = torch.from_numpy(feature)
    input_ids, prompt_lens = pad_right([prompt.ids(int(frames)) for frames in lens])
    targets = pad_right([target_ids(u, tokenizer) for u in utterances]) if tokenizer is not None else (None, None)
    return Batch(
        ids=tuple(u.id for u in utterances),
        keys=torch.tensor([u.key for u in utterances], dtype=torch.int64),
        mel=mel,
        mel_lens=lens,
        input_ids=input_ids,
        prompt_lens=prompt_lens,
        target_ids=targets[0],
        target_lens=targets[1],
        languages=tuple(u.language for u in utterances),
        texts=tuple(u.text for u in utterances),
        seconds=float(lens.sum()) * audio.HOP_LENGTH / audio.SAMPLING_RATE,
    )
