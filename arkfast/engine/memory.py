"""How many rows a device's memory holds: one rule for transcription, the service and the rollouts of training.

It is asked before the memory is taken, so that a large GPU is used without a number that somebody has to find out.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from arkfast.engine.graphs import BUCKETS
from arkfast.engine.prefill import ENCODER_FRAMES, PREFILL_TOKENS, suited
from arkfast.models.family import SpeechModel

MOST_SLOTS = {"cuda": 256, "cpu": 40}
"""Rows decoded at once where nobody says how many and memory holds them. On a CPU larger products gain nothing."""
SHARE = 0.8
"""Of what is left beside the peaks, the part that rows may take; the rest is for captured steps and for what the allocator cannot use."""
ENCODER_BYTES = 16 * 1024
"""Bytes of an encoder's activations for each mel frame and byte of its precision: 16 · width / 2 (two convolutions, then a layer's
projections and its feed-forward part at half the frames) for a width of 2,048, above that of any published checkpoint."""


class Footprint(NamedTuple):
    """What decoding takes of the device's memory, in bytes."""

    position: int
    """Keys and values of one position of one row, over all layers."""
    row: int
    """What a row takes whatever its length: its scores as they are computed and as they are chosen from."""
    peak: int
    """What encoding and prefill take at most, beside the rows."""


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be taken on ``device``, what PyTorch holds without using it included; None where the device is not a GPU."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def footprint(model: SpeechModel, device: torch.device) -> Footprint:
    """What decoding with ``model`` takes; the peaks are upper bounds, from the budgets of ``prefill``."""
    config, weight = model.model.config, model.lm_head.weight
    size = weight.dtype.itemsize
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    position = 2 * config.num_hidden_layers * config.num_key_value_heads * head_size * size
    # A layer's input, its residual and three projections of the hidden size, and three of the feed-forward part's.
    activation = (5 * config.hidden_size + 3 * config.intermediate_size) * size
    encoder = 0 if model.audio_input is None else suited(ENCODER_FRAMES, device).most * ENCODER_BYTES * size
    # Prompts of one group wait for slots and those of one are given theirs, while the next are computed beside clips that are encoded.
    prefill = suited(PREFILL_TOKENS, device).most * (3 * position + activation)
    return Footprint(position=position, row=weight.shape[0] * (size + 8), peak=encoder + prefill)


def slots_within(free: int, taken: Footprint, *, length: int, most: int) -> int:
    """How many rows of ``length`` positions go into ``free`` bytes: at least 1, at most ``most``, and else one of ``graphs.BUCKETS``."""
    fit = int(SHARE * max(0, free - taken.peak)) // (taken.position * length + taken.row)
    if fit >= most:
        return most
    return max((size for size in (*BUCKETS, *range(BUCKETS[-1], fit + 1, 64)) if size <= fit), default=1)


def default_slots(model: SpeechModel, *, length: int) -> int:
    """Rows of ``length`` positions to decode at once where nobody says how many: what memory holds, up to ``MOST_SLOTS``."""
    device = model.lm_head.weight.device
    most = MOST_SLOTS.get(device.type, MOST_SLOTS["cuda"])
    free = free_memory(device)
    return most if free is None else slots_within(free, footprint(model, device), length=length, most=most)
