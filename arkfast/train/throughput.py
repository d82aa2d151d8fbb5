"""How much arithmetic a step does, and how much of the device's peak that is.

Knows the products of an ARK-ASR model and the peaks of some GPUs; measures nothing. Counted are the forward and backward passes over what
the loss needs: the student three times a forward (its head touches few rows and is left out), the teacher once, with its whole head, and
each prompt once for all its rollouts.
Decoding is not counted, so the share of the peak says what the step as a whole makes of the device.
"""

from __future__ import annotations

from typing import Any

import torch

from arkfast.records import Batch

PEAKS = {"B200": 2250e12, "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}
"""Dense bfloat16 products, operations a second, as NVIDIA's data sheets give them; the first name found in a device's name counts."""


def peak(device: torch.device) -> float | None:
    """Operations a second that the device is sold with, or None where it is not known (a CPU has no one figure)."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((value for key, value in PEAKS.items() if key in name), None)


class ModelCost:
    """Operations of one forward pass, two for each multiply-add.

    Args:
        model: an ``ArkasrForConditionalGeneration``, whole or sharded.
    """

    def __init__(self, model: Any) -> None:
        decoder, encoder = model.config, model.config.whisper_config
        self._decoder = sum(p.numel() for layer in model.model.layers for p in layer.parameters() if p.ndim == 2)
        self._encoder = sum(p.numel() for layer in model.audio_encoder.whisper.layers for p in layer.parameters() if p.ndim == 2)
        self._adapter = sum(p.numel() for p in model.audio_encoder.adapting.parameters() if p.ndim == 2)
        head_dim = getattr(decoder, "head_dim", None) or decoder.hidden_size // decoder.num_attention_heads
        self._decoder_attention = decoder.num_hidden_layers * decoder.num_attention_heads * head_dim
        self._encoder_attention = encoder.encoder_layers * encoder.d_model
        self._head = decoder.vocab_size * decoder.hidden_size
        self._merge = decoder.merge_factor

    def forward(self, batch: Batch, answers: float, *, rollouts: int = 1, head: bool) -> float:
        """One pass over a batch's audio, its prompts and ``answers`` produced tokens in all.

        Args:
            batch: what is read; it must still lie in main memory.
            answers: tokens of all rollouts together.
            rollouts: of each prompt.
            head: the teacher's pass: each answer token meets the whole head, and a prompt is read once for all its rollouts. Else the
                student's, which reads it with each of them.
        """
        frames = (batch.mel_lens.double() + 1) // 2
        prompts = batch.prompt_lens.double()
        width = prompts + answers / (batch.size * rollouts)  # each row's length, answers taken as equally long
        repeated = rollouts - 1 if head else 0  # of a prompt's rows, those that find it read
        tokens = float((rollouts * width - repeated * prompts).sum())
        products = self._encoder * float(frames.sum()) + self._adapter * float((frames / self._merge).sum()) + self._decoder * tokens
        # Scores and their use are a product each; of a causal row half is needed.
        attention = 2 * self._encoder_attention * float((frames**2).sum())
        attention += self._decoder_attention * float((rollouts * width**2 - repeated * prompts**2).sum())
        return 2.0 * (products + attention + (self._head * answers if head else 0.0))
