"""Placing audio rows at placeholders, in plain torch.

Letters: B prompts, P prompt ids, V table rows, Ta audio rows of a padded clip, H features.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F


def mismatched(input_ids: torch.Tensor, audio_lens: torch.Tensor, audio_id: int, available: int) -> torch.Tensor:
    """[B] bool: rows whose placeholders are not as many as their clip's rows, or whose clip says it has more than ``available`` rows."""
    return ((input_ids == audio_id).sum(1) != audio_lens) | (audio_lens > available)


def merge(input_ids: torch.Tensor, table: torch.Tensor, audio: torch.Tensor, audio_lens: torch.Tensor, audio_id: int) -> torch.Tensor:
    """[B, P, H]: table rows of the ids, with placeholder j of a row replaced by that row's audio row j, zeros past its ``audio_lens``."""
    batch, available = audio.shape[:2]
    placeholder = input_ids == audio_id
    text = F.embedding(input_ids.masked_fill(placeholder | (input_ids < 0), 0), table)
    if available == 0:
        rows = torch.zeros_like(text)
    else:
        slot = placeholder.cumsum(1) - 1
        filled = placeholder & (slot < audio_lens[:, None].clamp_max(available))
        first_row = torch.arange(batch, device=audio.device)[:, None] * available
        place = (first_row + slot.clamp(0, available - 1)).flatten()
        rows = audio.flatten(0, 1).index_select(0, place).view_as(text).to(text.dtype)
        # Chosen, not multiplied: rows past a clip's length may hold anything.
        rows = torch.where(filled[..., None], rows, 0.0)
    return torch.where(placeholder[..., None], rows, text.masked_fill((input_ids < 0)[..., None], 0.0))
