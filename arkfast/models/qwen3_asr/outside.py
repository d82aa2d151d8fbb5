"""Qwen3-ASR by Transformers' own processor, model and ``generate``, one clip at a time.

A checkpoint in the layout of the model's first publication, which Transformers does not read, is renamed by ``load_model``; what computes
is Transformers' class all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    Qwen3ASRFeatureExtractor,
    Qwen3ASRForConditionalGeneration,
    Qwen3ASRProcessor,
)

from arkfast.models.family import read_config
from arkfast.models.qwen3_asr.languages import spoken
from arkfast.models.qwen3_asr.load import load_model
from arkfast.records import AllowedTokens, InputError, Utterance

_NAMED = {"audio_token": "<|audio_pad|>", "audio_bos_token": "<|audio_start|>", "audio_eos_token": "<|audio_end|>"}
_LAYOUT = ("<|im_start|>system\n<|im_end|>\n<|im_start|>user\n<|audio_start|><|audio_pad|><|audio_end|><|im_end|>\n<|im_start|>assistant\n"
           "language {}<asr_text>")  # fmt: skip


def load(folder: Path, device: torch.device) -> Qwen3AsrOutside:
    """The checkpoint's model.

    Raises:
        InputError: its files cannot be read, or lack tensors.
    """
    return Qwen3AsrOutside(folder, device)


class Qwen3AsrOutside:
    """See ``Outside``.

    Args:
        folder: of the checkpoint.
        device: where it computes.
    """

    made_of = "Qwen3ASRProcessor and Qwen3ASRForConditionalGeneration"
    prompt_from = "the layout of its processor"

    def __init__(self, folder: Path, device: torch.device) -> None:
        self._device = device
        try:
            if "thinker_config" in read_config(folder):
                self._model: Any = load_model(folder, dtype=torch.float32, attn_implementation="sdpa", device=device).whole
            else:
                whole: Any = Qwen3ASRForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
                self._model = whole.to(device)
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, extra_special_tokens=_NAMED)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            said = " ".join(repr(error).split())
            raise InputError(f"{folder}: Transformers' classes cannot be filled from it ({said}); copy the checkpoint again") from error
        self._model.eval()
        self._processor: Any = Qwen3ASRProcessor(Qwen3ASRFeatureExtractor(), tokenizer)

    def refuses(self, utterance: Utterance) -> str | None:
        """See ``Outside.refuses``: the processor has to be told a language."""
        name = spoken(utterance.language, utterance.text).name
        return None if name else f"{utterance.name}: neither its language nor its script says what the teacher is to be told"

    def _inputs(self, waveform: np.ndarray, utterance: Utterance) -> dict[str, Tensor]:
        text = _LAYOUT.format(spoken(utterance.language, utterance.text).name)
        found = self._processor(text=[text], audio=[waveform], sampling_rate=16_000)
        mask = found["input_features_mask"]
        # Frames past a clip's end hold the features' floor, which the convolutions of its last chunk would read.
        features = found["input_features"] * mask[:, None]
        inputs = {"input_ids": found["input_ids"], "input_features": features, "input_features_mask": mask}
        return {name: tensor.to(self._device) for name, tensor in inputs.items()}

    def features(self, waveform: np.ndarray) -> np.ndarray:
        """See ``Outside.features``."""
        found = self._processor.feature_extractor([waveform], sampling_rate=16_000, return_attention_mask=True, return_tensors="np")
        frames = int(np.asarray(found["attention_mask"])[0].sum())
        return np.asarray(found["input_features"][0][:, :frames], dtype=np.float32)

    def prompt(self, waveform: np.ndarray, utterance: Utterance) -> list[int]:
        """See ``Outside.prompt``."""
        ids: list[int] = self._inputs(waveform, utterance)["input_ids"][0].tolist()
        return ids

    @torch.no_grad()
    def audio(self, waveform: np.ndarray) -> Tensor:
        """See ``Outside.audio``."""
        found = self._inputs(waveform, Utterance(id="clip", audio=None, language="en"))
        features = self._model.model.get_audio_features(found["input_features"], found["input_features_mask"])
        embeddings: Tensor = getattr(features, "pooler_output", features)
        return embeddings.reshape(-1, embeddings.shape[-1])

    @torch.no_grad()
    def scores(self, waveform: np.ndarray, utterance: Utterance, answer: Sequence[int]) -> Tensor:
        """See ``Outside.scores``."""
        inputs = self._inputs(waveform, utterance)
        first = inputs["input_ids"].shape[1] - 1
        answered = torch.tensor([list(answer)], device=self._device)
        ids = torch.cat([inputs["input_ids"], answered], 1)
        keep = torch.arange(first, first + len(answer), device=self._device)
        found = self._model(**{**inputs, "input_ids": ids}, attention_mask=torch.ones_like(ids), use_cache=False, logits_to_keep=keep)
        logits: Tensor = found.logits
        return logits[0].float().cpu()

    @torch.no_grad()
    def generate(self, waveform: np.ndarray, utterance: Utterance, *, allowed: AllowedTokens, max_new_tokens: int) -> list[int]:
        """See ``Outside.generate``."""
        stops, inputs = list(allowed.stop_ids), self._inputs(waveform, utterance)
        settings = GenerationConfig(
            do_sample=False,
            num_beams=1,
            max_new_tokens=max_new_tokens,
            eos_token_id=stops,
            pad_token_id=stops[0],
            suppress_tokens=allowed.blocked(self._model.lm_head.weight.shape[0]).tolist() or None,
        )
        found = self._model.generate(**inputs, attention_mask=torch.ones_like(inputs["input_ids"]), generation_config=settings)
        ids: list[int] = found[0, inputs["input_ids"].shape[1] :].tolist()
        return ids
