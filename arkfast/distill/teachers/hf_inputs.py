"""What a Transformers speech model hears of a clip, and the ids that it reads before its answer.

Every clip is prepared alone, so that what a model hears never depends on the batch. The model is run here only to find out which language a
clip is in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import AutoFeatureExtractor, AutoProcessor, AutoTokenizer, WhisperFeatureExtractor

from arkfast.audio import SAMPLING_RATE, LogMel
from arkfast.audio.reference import HOP_LENGTH, WINDOW_LENGTH
from arkfast.data.teacher_audio import Samples, Window
from arkfast.distill.teachers.base import Prepare
from arkfast.metrics.languages import canonical, rules_of
from arkfast.records import Batch, InputError

INSTRUCTION = "Please transcribe this audio into text"
"""What stands beside the audio in a chat template where ``--teacher_prompt`` says nothing else."""
START, TRANSCRIBE, NO_TIMESTAMPS = "<|startoftranscript|>", "<|transcribe|>", "<|notimestamps|>"
LANGUAGE = re.compile(r"<\|([a-z]{2,3})\|>")
ENGLISH_ONLY = 51864  # ids of the Whisper models that know one language and have no token for it in their prompt


@dataclass(frozen=True, kw_only=True)
class RowInputs:
    """What one clip is to the model."""

    prompt: list[int]
    """What the decoder reads before the answer."""
    heard: dict[str, torch.Tensor]
    """Tensors for the model's forward (an encoder-decoder's encoder) by name, on its device; the first axis is the clip's."""

    @property
    def shapes(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Clips of equal shapes can share a forward without one tensor being padded for another."""
        return tuple((name, tuple(tensor.shape)) for name, tensor in sorted(self.heard.items()))


Detect = Callable[[Sequence[RowInputs], Sequence[int]], list[int]]
"""Rows with the prompt so far and candidate ids → the most probable candidate of each row."""


class Inputs(Protocol):
    """How clips reach one kind of model."""

    prepare: Prepare
    tokenizer: Any
    leading_blank: bool
    """The model's answers begin with a blank."""
    prompt_ids: frozenset[int]
    """Every id that a prompt may hold."""

    def rows(self, batch: Batch, detect: Detect) -> list[RowInputs]:
        """The inputs of each row."""
        ...


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


class ChatInputs:
    """A decoder that hears: the processor's chat template with the clip and an instruction, prepared when the batch is there.

    Args:
        folder: the checkpoint, with its processor.
        prompt: the instruction, or a whole prompt that holds the processor's audio token; None: ``INSTRUCTION``.
        dtype, device: of what the model hears.

    Raises:
        InputError: the processor cannot be loaded, or cannot make a prompt with audio.
    """

    leading_blank = False

    def __init__(self, folder: Path, *, prompt: str | None, dtype: torch.dtype, device: torch.device) -> None:
        self.prepare: Prepare = Samples()
        self._dtype, self._device = dtype, device
        try:
            self._processor = AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            self.tokenizer = self._processor.tokenizer
            marker = str(getattr(self._processor, "audio_token", ""))
            self._text = prompt if prompt and marker and marker in prompt else self._templated(prompt or INSTRUCTION)
            self.prompt_ids = frozenset(self._row(torch.zeros(SAMPLING_RATE)).prompt)
        except (OSError, ValueError, TypeError, AttributeError, KeyError, ImportError) as error:
            raise InputError(
                f"--teacher_model {folder}: its processor cannot make a prompt with audio ({_first_line(error)}); give a checkpoint with "
                "its processor and chat template, or a whole prompt with its audio token in --teacher_prompt"
            ) from error

    def _templated(self, instruction: str) -> str:
        content = [{"type": "audio", "audio": "clip.wav"}, {"type": "text", "text": instruction}]
        conversation = [{"role": "user", "content": content}]
        return str(self._processor.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True))

    def _row(self, samples: torch.Tensor) -> RowInputs:
        made = self._processor(text=[self._text], audio=[samples.numpy()], sampling_rate=SAMPLING_RATE, return_tensors="pt")
        heard = {
            name: value.to(self._device, self._dtype if value.is_floating_point() else None)
            for name, value in made.items()
            if isinstance(value, torch.Tensor) and name not in ("input_ids", "attention_mask")
        }
        if not heard:
            raise ValueError("it makes no features")
        return RowInputs(prompt=made["input_ids"][0].tolist(), heard=heard)

    def rows(self, batch: Batch, detect: Detect) -> list[RowInputs]:
        """See ``Inputs.rows``."""
        clips = batch.teacher_inputs["samples"]
        return [self._row(clip[:n].cpu()) for clip, (n,) in zip(clips.values, clips.shapes.tolist(), strict=True)]


class EncoderDecoderInputs:
    """An encoder that hears and a decoder that writes.

    A Whisper model hears windows of the length that it was trained on (30 s), whose log-mel features are made by the feature workers; its
    prompt is start, language, transcribe and no timestamps. The language is the data's, where the model has a token for it, and else what
    the model itself takes the clip for. Features of another extractor are made when the batch is there, and another model's prompt is its
    start token.

    Args:
        folder: the checkpoint.
        model: its model.
        prompt: the decoder's prompt, special tokens by their names; None: as above.
        dtype, device: of what the model hears.

    Raises:
        InputError: tokenizer or feature extractor cannot be used.
    """

    def __init__(self, folder: Path, model: Any, *, prompt: str | None, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype, self._device = dtype, device
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            self._extractor = AutoFeatureExtractor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, ImportError) as error:
            raise InputError(
                f"--teacher_model {folder}: its tokenizer or feature extractor cannot be loaded ({_first_line(error)}); give a complete "
                "checkpoint"
            ) from error
        window = self._window()
        self._in_workers = window is not None
        self.prepare: Prepare = window or Samples()
        ids = {str(token): int(i) for i, token in self.tokenizer.added_tokens_decoder.items()}
        self.leading_blank = START in ids
        start = model.generation_config.decoder_start_token_id
        self._prompt = [int(model.config.decoder_start_token_id if start is None else start)]
        self._languages: dict[str, int] = {}
        self._end_of_prompt: list[int] = []
        if prompt:
            self._prompt = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        elif START in ids:
            self._end_of_prompt = [ids[NO_TIMESTAMPS]] if NO_TIMESTAMPS in ids else []
            if getattr(model.generation_config, "is_multilingual", model.config.vocab_size != ENGLISH_ONLY):
                self._languages = {canonical(found[1]) or found[1]: i for name, i in ids.items() if (found := LANGUAGE.fullmatch(name))}
                self._end_of_prompt = [ids[TRANSCRIBE], *self._end_of_prompt] if TRANSCRIBE in ids else self._end_of_prompt
            if self._prompt != [ids[START]]:
                raise InputError(
                    f"--teacher_model {folder}: its answers start with id {self._prompt[0]} by its configuration (decoder_start_token_id), "
                    f"and {START} is id {ids[START]} in its tokenizer; give the tokenizer that the model was trained with"
                )
        self.prompt_ids = frozenset([*self._prompt, *self._languages.values(), *self._end_of_prompt])

    def _window(self) -> Window | None:
        """The feature workers' part; None where the extractor is not Whisper's with its usual settings."""
        extractor = self._extractor
        if type(extractor) is not WhisperFeatureExtractor or extractor.dither:
            return None
        if (extractor.sampling_rate, extractor.hop_length, extractor.n_fft) != (SAMPLING_RATE, HOP_LENGTH, WINDOW_LENGTH):
            return None
        return Window(LogMel(extractor.feature_size), extractor.n_samples)

    def rows(self, batch: Batch, detect: Detect) -> list[RowInputs]:
        """See ``Inputs.rows``."""
        if self._in_workers:
            features = batch.teacher_inputs["input_features"].values.to(self._dtype)
            heard = [{"input_features": row[None]} for row in features]
        else:
            clips = batch.teacher_inputs["samples"]
            heard = [self._extracted(clip[:n].cpu()) for clip, (n,) in zip(clips.values, clips.shapes.tolist(), strict=True)]
        rows = [RowInputs(prompt=list(self._prompt), heard=own) for own in heard]
        if not self._languages:
            return [RowInputs(prompt=row.prompt + self._end_of_prompt, heard=row.heard) for row in rows]
        told = [self._languages.get(rules_of(canonical(name)) or "") for name in batch.languages or (None,) * batch.size]
        unknown = [i for i, language in enumerate(told) if language is None]
        heard_as = iter(detect([rows[i] for i in unknown], sorted(self._languages.values())) if unknown else [])
        spoken = [next(heard_as) if language is None else language for language in told]
        return [
            RowInputs(prompt=[*row.prompt, language, *self._end_of_prompt], heard=row.heard)
            for row, language in zip(rows, spoken, strict=True)
        ]

    def _extracted(self, samples: torch.Tensor) -> dict[str, torch.Tensor]:
        made = self._extractor(samples.numpy(), sampling_rate=SAMPLING_RATE, return_tensors="pt")
        return {name: value.to(self._device, self._dtype if value.is_floating_point() else None) for name, value in made.items()}
