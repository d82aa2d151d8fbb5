"""Keys and values of what is being decoded: one preallocated slot a sequence, and the keys that a prefill makes.

Every row has its own write position, so prompts are padded on the right and no position
is ever shifted.
"""

from __future__ import annotations

from typing import Any

import torch


class PromptCache:
    """The keys and values of one prefill, as Transformers' decoder hands them over: it calls ``update`` once a layer.

    A decoder that makes its mask itself (Llama's) asks before how much there is to see.
    """

    def __init__(self) -> None:
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: object, **__: object) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep ``keys`` and ``values`` [rows, kv heads, prompt, head size] and give them back: a prompt attends to itself alone."""
        assert layer == len(self.keys), "layers come in order"
        self.keys.append(keys)
        self.values.append(values)
        return keys, values

    def get_query_offset(self, _layer: int) -> int:
        """How many positions stand before the prompt."""
        return 0

    def get_mask_sizes(self, width: int, _layer: int) -> tuple[int, int]:
        """(positions that a prompt of ``width`` attends to, the first of them)."""
        return width, 0


class SlotCache:
    """Keys and values of ``rows`` sequences of up to ``length`` positions, written in place.

    What stands past a row's own length is finite: memory is zeroed once, and ``clear`` wipes a row that may hold NaN.

    Args:
        config: the decoder's configuration.
        rows, length: as above.
        dtype, device: of keys and values.

    Attributes:
        keys, values: one tensor [rows, kv heads, length, head size] a layer.
    """

    def __init__(self, config: Any, rows: int, length: int, *, dtype: torch.dtype, device: torch.device) -> None:
        head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = (config.num_hidden_layers, rows, config.num_key_value_heads, length, head_size)
        self.rows, self.length = rows, length
        self.keys = torch.zeros(shape, dtype=dtype, device=device).unbind(0)
        self.values = torch.zeros(shape, dtype=dtype, device=device).unbind(0)

    @property
    def bytes(self) -> int:
        """Memory that keys and values take."""
        return sum(own.nbytes for own in (*self.keys, *self.values))

    def admit(self, prompts: PromptCache, source: torch.Tensor, rows: slice) -> None:
        """Copy the prompts ``source`` [rows] int64 of a prefill into the slots ``rows``."""
        width = prompts.keys[0].shape[2]
        for own, new in zip((*self.keys, *self.values), (*prompts.keys, *prompts.values), strict=True):
            own[rows, :, :width] = new.index_select(0, source)

    def move(self, source: torch.Tensor, target: torch.Tensor, width: int) -> None:
        """Copy the first ``width`` positions of the slots ``source`` [n] int64 over those of ``target`` [n]; the two are disjoint."""
        for own in (*self.keys, *self.values):
            own[target, :, :width] = own[source, :, :width]

    def clear(self, rows: torch.Tensor) -> None:
        """Zero the slots ``rows`` [n] int64."""
        for own in (*self.keys, *self.values):
            own[rows] = 0
