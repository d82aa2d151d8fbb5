"""The ARK-ASR processor: conversations with audio in, model inputs out.

Features come from :mod:`arkfast.audio`, one clip at a time, so they never depend on the batch.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import BatchFeature, ProcessorMixin

from arkfast.models.arkasr import prompt
from arkfast.models.arkasr.audio_input import SAMPLING_RATE, SETTINGS, read_input, read_mapping
from arkfast.records import InputError

if TYPE_CHECKING:
    from arkfast.audio import Loaded, LogMel

HOP_LENGTH = 160
MAX_SAMPLES = 30 * SAMPLING_RATE  # the training distribution's longest clip

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|' + message['role'] + '|>' -}}
{%- if message['content'] is string -%}{{- message['content'] -}}{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'audio' -%}{{- '<|begin_of_audio|><|audio|><|end_of_audio|>' -}}
{%- elif part['type'] == 'text' -%}{{- part['text'] -}}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- if message['role'] == 'assistant' -%}{{- '<|im_end|>' -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""
"""The prompt's layout: no blank and no newline between its parts, one placeholder a clip (expanded when tokenised)."""


class ArkasrProcessor(ProcessorMixin):
    """Tokenizer, feature settings and prompt of an ARK-ASR checkpoint, in the official files."""

    user_token = prompt.USER
    assistant_token = prompt.ASSISTANT
    bos_audio_token = prompt.BEGIN_OF_AUDIO
    eos_audio_token = prompt.END_OF_AUDIO
    assistant_end_token = prompt.END_OF_TURN

    def __init__(
        self,
        feature_extractor: Any = None,
        tokenizer: Any = None,
        audio_token: str = prompt.AUDIO,
        merge_factor: int = prompt.MERGE_FACTOR,
        audio_dtype: str = "float32",
        chat_template: str | None = None,
    ) -> None:
        super().__init__(feature_extractor, tokenizer, chat_template=chat_template or CHAT_TEMPLATE)
        self.audio_token = audio_token
        self.merge_factor = merge_factor
        self.audio_dtype = audio_dtype

    def apply_chat_template(  # type: ignore[override] # the ARK-ASR prompt has neither tools nor documents
        self,
        conversation: Sequence[Any],
        chat_template: str | None = None,
        *,
        add_generation_prompt: bool = False,
        tokenize: bool = True,
        return_tensors: str = "pt",
        return_dict: bool = True,
        sampling_rate: int = SAMPLING_RATE,
        audio_padding: str | bool = "longest",
        audio_max_length: int | None = None,
        text_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Model inputs of one conversation or of a list of them, one clip in each.

        An audio part of a turn holds ``path`` (or ``array``, or either under ``audio``), and may hold ``begin_time`` and ``end_time`` in
        seconds (−1: to the recording's end), ``channel`` and ``audio_track`` (numbers from 0) and, for an array, its ``sampling_rate``.
        What is doubtful about a clip by its levels is a warning.

        Args:
            conversation: turns ``{"role", "content"}``, or a list of such lists.
            chat_template: another Jinja template than the ARK-ASR prompt.
            add_generation_prompt: end with the assistant's marker, as ``generate()`` needs.
            tokenize: False returns the prompt's text, one placeholder a clip, and reads no audio.
            return_tensors: "pt".
            return_dict: False returns ``input_ids`` alone.
            sampling_rate: of arrays that do not name their own, in Hz.
            audio_padding: "longest", or "max_length" to pad features to ``audio_max_length``; the masked encoder does not see it.
            audio_max_length: samples at 16 kHz; a longer clip is cut there with a warning. None: a clip over 30 s is an error.
            text_kwargs: ``padding`` ("longest") and ``padding_side`` ("left").
            **kwargs: the same two, given directly.

        Returns:
            ``input_ids`` and ``attention_mask`` [B, P] int64, padded on the left; ``audios`` [B, 128, T] float32; ``audio_lens`` [B]
            int64 frames.

        Raises:
            InputError: a conversation is malformed, has no clip or several, or its audio cannot be used; the message names it.
        """
        _only("return_tensors", return_tensors, "pt")
        conversations = _conversations(conversation)
        texts = [
            self.tokenizer.apply_chat_template(
                turns, chat_template=chat_template or CHAT_TEMPLATE, tokenize=False, add_generation_prompt=add_generation_prompt
            )
            for turns in conversations
        ]
        if not tokenize:
            return texts if _is_batch(conversation) else texts[0]
        clips = [self._clip(turns, f"conversation {i}", sampling_rate) for i, turns in enumerate(conversations)]
        inputs = self.batch(
            clips, texts, audio_padding=audio_padding, audio_max_length=audio_max_length, **{**kwargs, **(text_kwargs or {})}
        )
        return inputs if return_dict else inputs["input_ids"]

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        audio: object = None,
        *,
        sampling_rate: int = SAMPLING_RATE,
        return_tensors: str = "pt",
        audio_padding: str | bool = "longest",
        audio_max_length: int | None = None,
        padding: str | bool = "longest",
        padding_side: str = "left",
    ) -> BatchFeature:
        """Model inputs of 16 kHz clips and their prompts.

        Args:
            text: a prompt with one audio placeholder for each clip; None: the transcription prompt.
            audio: a mono clip or a list of them: arrays, tensors or lists of floats in −1..1 (or int16), [samples] or [1, samples]. What is
                doubtful about one by its levels is a warning.
            sampling_rate: must be 16000: resampling belongs to reading.
            return_tensors: "pt".
            audio_padding: as in :meth:`apply_chat_template`.
            audio_max_length: as in :meth:`apply_chat_template`.
            padding: "longest".
            padding_side: "left" or "right".

        Returns:
            As :meth:`apply_chat_template`.

        Raises:
            InputError: no clip, a clip that cannot be used, or texts that do not fit the clips.
        """
        _only("sampling_rate", sampling_rate, SAMPLING_RATE)
        if audio is None:
            raise InputError("ArkasrProcessor: no audio; an ARK-ASR prompt has one clip")
        clips = []
        for i, given in enumerate(_listed(audio)):
            clip = read_input(given, where=f"ArkasrProcessor: clip {i}")
            _warn(f"clip {i}", clip)
            clips.append(clip.samples)
        return self.batch(
            clips,
            text,
            return_tensors=return_tensors,
            audio_padding=audio_padding,
            audio_max_length=audio_max_length,
            padding=padding,
            padding_side=padding_side,
        )

    def batch(
        self,
        clips: Sequence[np.ndarray],
        text: str | Sequence[str] | None = None,
        *,
        return_tensors: str = "pt",
        audio_padding: str | bool = "longest",
        audio_max_length: int | None = None,
        padding: str | bool = "longest",
        padding_side: str = "left",
    ) -> BatchFeature:
        """A call for clips that were read already, float32 [samples] each; what is doubtful about them has been told.

        Args:
            clips: the clips.
            text, return_tensors, audio_padding, audio_max_length, padding, padding_side: as for a call.

        Raises:
            InputError: as a call.
        """
        _only("return_tensors", return_tensors, "pt")
        _only("padding", padding, "longest", True)
        _only("padding_side", padding_side, "left", "right")
        _only("audio_padding", audio_padding, "longest", "max_length", True)
        mel, frames = self._features(clips, audio_max_length)
        if audio_padding == "max_length":
            width = (audio_max_length or MAX_SAMPLES) // HOP_LENGTH
            mel = np.pad(mel, ((0, 0), (0, 0), (0, max(0, width - mel.shape[-1]))))
        texts = [text] if isinstance(text, str) else text
        if texts is not None and len(texts) != len(clips):
            raise InputError(f"ArkasrProcessor: {len(texts)} texts for {len(clips)} clips; give one text a clip")
        rows = [self._ids(None if texts is None else texts[i], int(frames[i])) for i in range(len(clips))]
        lens = torch.tensor([len(row) for row in rows])
        longest = int(lens.max())
        input_ids = torch.full((len(rows), longest), self.tokenizer.pad_token_id, dtype=torch.int64)
        attention_mask = torch.zeros_like(input_ids)
        for i, row in enumerate(rows):
            inside = slice(longest - len(row), longest) if padding_side == "left" else slice(0, len(row))
            input_ids[i, inside] = torch.tensor(row)
            attention_mask[i, inside] = 1
        return BatchFeature(
            {
                "input_ids": input_ids,
                "attention_mask": attention_mask,
                "audios": torch.from_numpy(np.ascontiguousarray(mel)),
                "audio_lens": torch.as_tensor(frames, dtype=torch.int64),
            }
        )

    def calculate_audio_token_count(self, mel_frames: int) -> int:
        """Placeholders of a clip of ``mel_frames`` frames: ``max(((frames + 1) // 2) // merge_factor, 1)``."""
        return prompt.audio_token_count(mel_frames, self.merge_factor)

    def _calculate_audio_token_counts_per_sample(
        self,
        audios_raw: Sequence[np.ndarray],
        sampling_rate: int = SAMPLING_RATE,
        audio_max_length: int = MAX_SAMPLES,
        audio_pad_to_multiple_of: None = None,
    ) -> list[int]:
        """Placeholders of each clip: frames are ``min(samples, audio_max_length) // 160``, whatever the batch."""
        _only("sampling_rate", sampling_rate, SAMPLING_RATE)
        _only("audio_pad_to_multiple_of", audio_pad_to_multiple_of, None)
        return [self.calculate_audio_token_count(min(len(samples), audio_max_length) // HOP_LENGTH) for samples in audios_raw]

    def _load_audio_file(
        self, path: str | Path, sampling_rate: int = SAMPLING_RATE, offset: float = 0.0, duration: float | None = None
    ) -> np.ndarray:
        """Read ``duration`` seconds of a recording from ``offset`` on, mono float32 at 16 kHz [samples]."""
        from arkfast import audio

        _only("sampling_rate", sampling_rate, SAMPLING_RATE)
        return audio.load(str(path), begin=offset or None, end=None if duration is None else offset + duration)

    def to_dict(self) -> dict[str, Any]:
        """What ``processor_config.json`` holds: the official fields. The feature settings have their own file."""
        return {
            "audio_dtype": self.audio_dtype,
            "audio_token": self.audio_token,
            "feature_extractor_config": {},
            "merge_factor": self.merge_factor,
            "processor_class": type(self).__name__,
            "tokenizer_config": {},
        }

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> Any:
        """Write the official files: processor_config.json, preprocessor_config.json, chat_template.jinja and the tokenizer's."""
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        self.feature_extractor.save_pretrained(save_directory)
        return super().save_pretrained(str(save_directory), push_to_hub=push_to_hub, **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        """What a call returns."""
        return ["input_ids", "attention_mask", "audios", "audio_lens"]

    @functools.cached_property
    def _prompt(self) -> prompt.Prompt:
        return prompt.Prompt.asr(self.tokenizer, merge_factor=self.merge_factor)

    def _ids(self, text: str | None, frames: int) -> list[int]:
        if text is None:
            return self._prompt.ids(frames)
        around = text.split(self.audio_token)
        if len(around) != 2:
            raise InputError(f"ArkasrProcessor: a prompt needs exactly one {self.audio_token}, found {len(around) - 1} in {text!r}")
        before, after = (self.tokenizer.encode(part, add_special_tokens=False) for part in around)
        return [*before, *[self._prompt.audio_id] * self.calculate_audio_token_count(frames), *after]

    def _features(self, clips: Sequence[np.ndarray], audio_max_length: int | None) -> tuple[np.ndarray, np.ndarray]:
        if not clips:
            raise InputError("ArkasrProcessor: no audio; give at least one clip")
        if audio_max_length is not None:
            for i, clip in enumerate(clips):
                if len(clip) > audio_max_length:
                    dropped = (len(clip) - audio_max_length) / SAMPLING_RATE
                    warnings.warn(f"clip {i}: its last {dropped:.2f} s lie past audio_max_length and are not transcribed", stacklevel=3)
        elif overlong := [(i, len(clip)) for i, clip in enumerate(clips) if len(clip) > MAX_SAMPLES]:
            i, samples = overlong[0]
            raise InputError(
                f"clip {i} lasts {samples / SAMPLING_RATE:.2f} s, and the model hears {MAX_SAMPLES / SAMPLING_RATE:g} s at once; give "
                f"begin_time and end_time of a part in the conversation, or audio_max_length={MAX_SAMPLES} to leave the rest unheard"
            )
        features, frames = _log_mel(self.feature_extractor.feature_size)(
            list(clips), max_samples=audio_max_length or MAX_SAMPLES, overlong="raise" if audio_max_length is None else "truncate"
        )
        return np.asarray(features), frames

    def _clip(self, turns: Sequence[Mapping[str, Any]], where: str, sampling_rate: int) -> np.ndarray:
        """The one clip of a conversation, 16 kHz mono float32."""
        parts = [
            part
            for turn in turns
            if not isinstance(turn["content"], str)
            for part in turn["content"]
            if isinstance(part, Mapping) and part.get("type") == "audio"
        ]
        if len(parts) != 1:
            raise InputError(f"{where}: {len(parts)} audio parts; give exactly one, as {{'type': 'audio', 'path': …}} or 'array'")
        part = parts[0]
        given = [part[key] for key in ("path", "array", "audio") if part.get(key) is not None]
        if len(given) != 1:
            raise InputError(f"{where}: an audio part needs one of 'path' and 'array', got the keys {sorted(part)}")
        settings = {key: part[key] for key in SETTINGS if part.get(key) is not None}
        if isinstance(given[0], Mapping):
            clip = read_mapping({**settings, **given[0]}, where)
        else:
            key = "path" if isinstance(given[0], (str, os.PathLike)) else "array"
            clip = read_mapping({"sampling_rate": sampling_rate, **settings, key: given[0]}, where)
        _warn(where, clip)
        return clip.samples


@functools.cache
def _log_mel(n_mels: int) -> LogMel:
    from arkfast.audio import LogMel

    return LogMel(n_mels)


def _listed(audio: object) -> list[object]:
    """A clip, or clips as a list; a list of numbers is a clip."""
    if isinstance(audio, (np.ndarray, torch.Tensor)):
        if audio.ndim != 1:
            raise InputError(f"ArkasrProcessor: an array of shape {list(audio.shape)} may be channels or clips; pass clips as a list")
        return [audio]
    if isinstance(audio, (list, tuple)):
        return [audio] if audio and isinstance(audio[0], (int, float)) else list(audio)
    return [audio]


def _warn(where: str, clip: Loaded) -> None:
    """Tell what is doubtful about a clip."""
    for doubt in clip.warnings:
        warnings.warn(f"{where}: {doubt}", stacklevel=3)


def _only(name: str, value: Any, *known: Any) -> None:
    if value not in known:
        raise ValueError(f"ArkasrProcessor: {name} must be {' or '.join(map(repr, known))}, got {value!r}")


def _is_batch(conversation: Sequence[Any]) -> bool:
    return len(conversation) > 0 and not isinstance(conversation[0], Mapping)


def _conversations(conversation: Sequence[Any]) -> list[Sequence[Mapping[str, Any]]]:
    conversations = list(conversation) if _is_batch(conversation) else [conversation]
    for i, turns in enumerate(conversations):
        if isinstance(turns, (str, Mapping)) or not turns:
            raise InputError(f"conversation {i}: expected a non-empty list of turns, got {turns!r}")
        for turn in turns:
            if not isinstance(turn, Mapping) or not {"role", "content"} <= set(turn):
                raise InputError(f"conversation {i}: a turn needs 'role' and 'content', got {turn!r}")
            if turn["role"] not in ("system", "user", "assistant"):
                raise InputError(f"conversation {i}: role must be 'system', 'user' or 'assistant', got {turn['role']!r}")
    return conversations
