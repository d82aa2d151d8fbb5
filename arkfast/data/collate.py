"""From utterances to a batch: log-mel features, prompt ids, target ids, a teacher's own inputs.

A clip's features never depend on its batch mates. A feature worker imports this module, so torch is imported where a batch is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypedDict

import numpy as np
from numpy.typing import NDArray

from arkfast import audio
from arkfast.audio import Loaded
from arkfast.audio.channels import Channel, check_channel, check_track
from arkfast.audio.levels import doubts
from arkfast.audio.segment import cut_samples
from arkfast.audio.waveform import as_array, as_samples
from arkfast.data.shards import open_audio
from arkfast.records import Batch, InputError, OnTruncated, Padded, Prompt, Utterance

if TYPE_CHECKING:
    import torch

    from arkfast.audio import LogMel


def read_clip(utterance: Utterance, *, max_seconds: float | None = 30.0) -> Loaded:
    """One utterance's samples at 16 kHz, what is doubtful about them, and what was heard of several channels and tracks.

    Args:
        utterance: has audio.
        max_seconds: the longest clip allowed; None allows any.

    Raises:
        InputError: the audio is missing, unreadable, empty, longer than ``max_seconds``, senseless by its levels, or has no such segment,
            channel or track.
        TypeError: samples in memory have a type that is no audio.
    """
    if isinstance(utterance.audio, str):
        source, name = open_audio(utterance)
        return audio.read(source, max_seconds=max_seconds, name=name, **what_is_heard(utterance))
    cut = samples_in_memory(utterance, max_seconds=max_seconds)
    return Loaded(cut, doubts(utterance.name, cut, audio.SAMPLING_RATE))


class Heard(TypedDict):
    """What an utterance says of its recording, by the names of ``audio.read``."""

    begin: float | None
    end: float | None
    channel: Channel
    audio_track: int | None
    on_truncated: OnTruncated


def what_is_heard(utterance: Utterance) -> Heard:
    """Which part of its recording an utterance is, and how that is read."""
    return Heard(
        begin=utterance.begin,
        end=utterance.end,
        channel=utterance.channel,
        audio_track=utterance.audio_track,
        on_truncated=utterance.on_truncated,
    )


def samples_in_memory(utterance: Utterance, *, max_seconds: float | None) -> NDArray[np.float32]:
    """[n] samples at 16 kHz of an utterance that brings them with it, its segment alone; raises as ``read_clip`` does."""
    samples = utterance.audio
    if samples is None:
        raise InputError(f"{utterance.name}: no audio; the task needs a recording in every row")
    check_channel(utterance.name, utterance.channel or (), 1)
    check_track(utterance.name, utterance.audio_track or 0, 1)
    segment = cut_samples(as_array(samples), utterance.begin, utterance.end, max_seconds=max_seconds, label=utterance.name)
    return as_samples(utterance.name, segment)


def features_of(samples: NDArray[np.float32], log_mel: LogMel, name: str) -> NDArray[np.float32]:
    """Log-mel features of a clip, float32 [n_mels, T] at 100 frames a second.

    Args:
        samples: float32 [n] at 16 kHz.
        log_mel: makes them.
        name: what errors call the clip.

    Raises:
        InputError: a sample is not finite.
    """
    try:
        features, frames = log_mel([samples], max_samples=None)  # the segment was held to the limit already
    except ValueError as error:
        raise InputError(f"{name}: {error}") from error
    return np.asarray(features)[0, :, : int(frames[0])]


def extract(utterance: Utterance, log_mel: LogMel, *, max_seconds: float = 30.0) -> NDArray[np.float32]:
    """One utterance's log-mel features, float32 [n_mels, T] at 100 frames a second.

    Raises:
        InputError: as ``read_clip``, or a sample is not finite.
        TypeError: samples in memory have a type that is no audio.
    """
    return features_of(read_clip(utterance, max_seconds=max_seconds).samples, log_mel, clip_name(utterance))


def clip_name(utterance: Utterance) -> str:
    """What errors call an utterance's clip: its row and its recording."""
    return f"{utterance.where}: {utterance.audio}" if utterance.where and isinstance(utterance.audio, str) else utterance.name


def collate(
    utterances: Sequence[Utterance],
    features: Sequence[np.ndarray] | None,
    prompt: Prompt,
    targets: Sequence[Sequence[int]] | None = None,
    prepared: Sequence[Mapping[str, np.ndarray]] | None = None,
) -> Batch:
    """A batch of ``utterances`` with their ``features`` ([n_mels, T] each, from ``extract``).

    Args:
        utterances: the rows, B of them.
        features: log-mel of each row; None: the task hears nothing.
        prompt: how an utterance becomes ids.
        targets: ids that each row is to be answered with, the end token last; None: nothing is learnt from references.
        prepared: what a teacher's ``prepare`` made of each row's waveform, the same names in each; None: there is no such teacher.
    """
    import torch

    mel = lens = None
    frames = [0] * len(utterances)
    if features is not None:
        assert len(utterances) == len(features) > 0
        frames = [f.shape[1] for f in features]
        lens = torch.tensor(frames, dtype=torch.int64)
        mel = torch.zeros(len(features), features[0].shape[0], max(frames), dtype=torch.float32)
        for i, feature in enumerate(features):
            mel[i, :, : feature.shape[1]] = torch.from_numpy(feature)
    input_ids, prompt_lens = pad_right([prompt.ids(n, u) for n, u in zip(frames, utterances, strict=True)])
    target_ids, target_lens = (None, None) if targets is None else pad_right(targets)
    names = list(prepared[0]) if prepared else []
    return Batch(
        ids=tuple(u.id for u in utterances),
        keys=torch.tensor([u.key for u in utterances], dtype=torch.int64),
        mel=mel,
        mel_lens=lens,
        mel_frames=None if features is None else tuple(frames),
        input_ids=input_ids,
        prompt_lens=prompt_lens,
        prompt_sizes=tuple(prompt_lens.tolist()),
        target_ids=target_ids,
        target_lens=target_lens,
        target_sizes=None if target_lens is None else tuple(target_lens.tolist()),
        languages=tuple(u.language for u in utterances),
        texts=tuple(u.text for u in utterances),
        seconds=float(sum(frames)) * audio.HOP_LENGTH / audio.SAMPLING_RATE,
        teacher_inputs={name: pad([row[name] for row in prepared or ()]) for name in names},
    )


def pad_right(rows: Sequence[Sequence[int]], value: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Ragged id lists → ([B, longest] int64 padded with ``value``, [B] int64 lengths)."""
    import torch

    lens = torch.tensor([len(row) for row in rows], dtype=torch.int64)
    padded = torch.full((len(rows), int(lens.max()) if len(rows) else 0), value, dtype=torch.int64)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = torch.as_tensor(row, dtype=torch.int64)
    return padded, lens


def pad(arrays: Sequence[np.ndarray]) -> Padded:
    """B arrays of one dtype and as many axes in one tensor, zeros past each."""
    import torch

    tensors = [torch.from_numpy(array) for array in arrays]
    shapes = torch.tensor([tensor.shape for tensor in tensors], dtype=torch.int64).reshape(len(tensors), tensors[0].ndim)
    values = torch.zeros(len(tensors), *shapes.amax(0).tolist(), dtype=tensors[0].dtype)
    for own, tensor in zip(values, tensors, strict=True):
        own[tuple(slice(n) for n in tensor.shape)] = tensor
    return Padded(values=values, shapes=shapes, sizes=tuple(tuple(tensor.shape) for tensor in tensors))
