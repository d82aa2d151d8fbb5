"""The arithmetic of a Qwen3-ASR teacher."""

from __future__ import annotations

from dataclasses import replace

import torch

from arkfast.models.cost import DecoderCost, matrix_elements
from arkfast.models.qwen3_asr.modeling import Qwen3AsrModel, encoder_config, halved_thrice, token_count
from arkfast.records import Batch


class Qwen3AsrCost(DecoderCost):
    """The encoder over the clips that the teacher prepared, the decoder over its own prompts.

    Args:
        model: the teacher's.
        around: ids of a prompt that are no audio placeholders.
    """

    def __init__(self, model: Qwen3AsrModel, *, around: int) -> None:
        super().__init__(model)
        tower, whole = model.whole.model.audio_tower, model.whole.model
        self._chunk, self._around = model.chunk, around
        self._full, self._window = model.full_attention, model.window * halved_thrice(model.chunk)
        self._per_token = matrix_elements([*tower.layers, tower.conv_out, whole.multi_modal_projector])
        self._width = len(tower.layers) * encoder_config(model.whole.config).d_model
        bins, frames = encoder_config(model.whole.config).num_mel_bins, model.chunk
        self._per_chunk = 0
        for convolution in (tower.conv2d1, tower.conv2d2, tower.conv2d3):
            bins, frames = (bins + 1) // 2, (frames + 1) // 2
            self._per_chunk += convolution.weight.numel() * bins * frames

    def _counts(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        frames = batch.teacher_inputs["mel"].shapes[:, 1]
        return frames, token_count(frames, self._chunk).double()

    def forward(self, batch: Batch, answers: float, *, rollouts: int = 1, head: bool) -> float:
        """See ``Cost.forward``."""
        _, tokens = self._counts(batch)
        return super().forward(replace(batch, prompt_lens=tokens + self._around), answers, rollouts=rollouts, head=head)

    def encoder(self, batch: Batch) -> float:
        """Multiply-adds of convolutions, encoder and projector."""
        frames, tokens = self._counts(batch)
        attended = tokens if self._full else tokens.clamp(max=self._window)
        products = self._per_token * float(tokens.sum()) + 2 * self._width * float((tokens * attended).sum())
        return products + self._per_chunk * float((-(-frames // self._chunk)).double().sum())
