"""A key-value cache with one preallocated slot a sequence.

Knows where keys stand; knows nothing of tokens. Every row has its own write position, so prompts are padded on the right and no
position is ever shifted. Transformers' decoder calls only ``update`` when positions and masks are given.
"""

from __future__ import annotations

from typing import Any

import torch


class SlotCache:
    """Keys and values [layers, rows, kv heads, length, head size], written in place.

    Args:
        config: the decoder's configuration.
        rows: sequences held.
        length: positions of each sequence.
        dtype, device: of keys and values.
    """

    def __init__(self, config: Any, rows: int, length: int, *, dtype: torch.dtype, device: torch.device) -> None:
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = (config.num_hidden_layers, rows, config.num_key_value_heads, length, head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self._rows = torch.arange(rows, device=device)
        self._positions: torch.Tensor | None = None
        self.limit = 0

    def write_at(self, positions: torch.Tensor | None, limit: int) -> None:
        """Say where the next forward writes: ``positions`` [rows] for one token a row, None for positions 0 … of a prefill.

        Attention then sees the first ``limit`` positions; the mask hides those past each row's own.
        """
        self._positions, self.limit = positions, limit

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Store ``keys`` and ``values`` [rows, kv heads, tokens, head size] and return all that attention may look at."""
        if self._positions is None:
            self.keys[layer, :, :, : keys.shape[2]] = keys
            self.values[layer, :, :, : values.shape[2]] = values
        else:
            self.keys[layer, self._rows, :, self._positions] = keys[:, :, 0]
            self.values[layer, self._rows, :, self._positions] = values[:, :, 0]
        return self.keys[layer, :, :, : self.limit], self.values[layer, :, :, : self.limit]

    def repeat(self, times: int, length: int) -> SlotCache:
        """A cache with every row ``times`` times in a row, of ``length`` positions."""
        if times == 1 and length <= self.keys.shape[3]:
            return self
        new = object.__new__(SlotCache)
        grow = length - self.keys.shape[3]
        new.keys = torch.nn.functional.pad(self.keys.repeat_interleave(times, dim=1), (0, 0, 0, max(grow, 0)))
        new.values = torch.nn.functional.pad(self.values.repeat_interleave(times, dim=1), (0, 0, 0, max(grow, 0)))
        new._rows = torch.arange(new.keys.shape[1], device=self.keys.device)
        new._positions, new.limit = None, 0
        return new
