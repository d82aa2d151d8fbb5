"""Sequences of different lengths laid end to end, so that no product and no attention runs over padding.

A sequence then cannot depend on how long those beside it are. Lengths are known to the host: nothing here waits for the device. Shape
letters: B sequences, S positions of the longest, P positions of all.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

TAKES_GROUPS = "enable_gqa" in inspect.signature(varlen_attn).parameters
"""Whether PyTorch's attention takes fewer heads of keys and values than of queries; its first versions did not."""
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Attention of one sequence: queries, keys and values [1, heads, S, head size] → the same shape."""


class Packing:
    """Where the sequences of a batch lie.

    Args:
        lens: positions of each sequence, at least one.
        device: where the tensors are.

    Attributes:
        row, place: [P] int64 the sequence of each position and its place there.
        bounds: [B + 1] int32 where sequences begin, and the end of the last.
    """

    def __init__(self, lens: Sequence[int], device: torch.device) -> None:
        self.lens = tuple(lens)
        row, place = counted_off(np.asarray(self.lens))
        bounds = np.concatenate([[0], np.cumsum(self.lens)]).astype(np.int32)
        self.row, self.place, self.bounds = (sent(torch.from_numpy(index), device) for index in (row, place, bounds))

    def pack(self, padded: Tensor) -> Tensor:
        """[B, S, …] → [P, …]."""
        return padded.flatten(0, 1).index_select(0, self.row * padded.shape[1] + self.place)

    def unpack(self, packed: Tensor, width: int) -> Tensor:
        """[P, …] → [B, width, …], zeros past each sequence's end."""
        padded = packed.new_zeros(len(self.lens) * width, *packed.shape[1:])
        return padded.index_copy(0, self.row * width + self.place, packed).unflatten(0, (len(self.lens), width))

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, causal: bool = False, own: Attend | None = None
    ) -> Tensor:
        """Attention within each sequence.

        On a GPU in half precision it is one call for all of them, where the head size is a multiple of 8; elsewhere, each sequence is a
        call of its own.

        Args:
            q: [P, heads, head size].
            k, v: [P, heads, head size], or with fewer heads, each of which serves as many neighbouring ones of the queries.
            scale: of the scores; None: head size to the power of −1/2.
            causal: let each position see those up to itself; else it sees its whole sequence.
            own: attention of one sequence in place of PyTorch's; it is then called for each.

        Returns:
            [P, heads, head size].
        """
        one_call = own is None and on_gpu(q) and q.dtype in (torch.bfloat16, torch.float16) and q.shape[2] % 8 == 0
        grouped = q.shape[1] // k.shape[1]
        if grouped > 1 and not (one_call and TAKES_GROUPS):
            k, v = k.repeat_interleave(grouped, 1), v.repeat_interleave(grouped, 1)
        if one_call:
            longest, window = max(self.lens), (-1, 0 if causal else -1)
            if q.shape[1] == k.shape[1]:
                found = varlen_attn(q, k, v, self.bounds, self.bounds, longest, longest, scale=scale, window_size=window)
            else:
                found = varlen_attn(q, k, v, self.bounds, self.bounds, longest, longest, scale=scale, window_size=window, enable_gqa=True)
            assert isinstance(found, Tensor)  # a pair only where more is asked for
            return found
        attend: Attend = own or (lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=scale, is_causal=causal))
        parts = zip(*(x.transpose(0, 1)[None].split(self.lens, dim=2) for x in (q, k, v)), strict=True)
        return torch.cat([attend(*part) for part in parts], dim=2)[0].transpose(0, 1)


def sent(values: Tensor, device: torch.device) -> Tensor:
    """``values`` of the host on ``device``. A GPU fetches them from pinned memory, for which the host waits neither for them nor for what
    the device was given before."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def on_gpu(tensor: Tensor) -> bool:
    """Whether a tensor is where attention over sequences of different lengths is one call."""
    return tensor.is_cuda


def counted_off(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(row, place in the row) int64 of each of ``counts`` things of every row, rows ascending."""
    row = np.repeat(np.arange(len(counts)), counts)
    return row, np.arange(len(row)) - (np.cumsum(counts) - counts)[row]
