"""Choosing the next token.

Sampling is argmax over scores plus Gumbel noise, and the noise is a hash of (seed, utterance, rollout, position, token): neither the
batch that a row happens to sit in nor the number of processes changes a rollout. (Gumbel-max: Gumbel 1954; a counter-based generator
as in Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", here with the SplitMix64 finaliser.)
"""

from __future__ import annotations

import torch


def _wrap(number: int) -> int:
    """``number`` modulo 2⁶⁴ as the int64 that torch takes."""
    number &= (1 << 64) - 1
    return number - (1 << 64) if number >= 1 << 63 else number


_GOLDEN = _wrap(0x9E3779B97F4A7C15)
_MIX1 = _wrap(0xBF58476D1CE4E5B9)
_MIX2 = _wrap(0x94D049BB133111EB)


def _shift_right(x: torch.Tensor, bits: int) -> torch.Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: torch.Tensor) -> torch.Tensor:
    """SplitMix64's finaliser on int64 tensors; products wrap modulo 2⁶⁴."""
    x = (x ^ _shift_right(x, 30)) * _MIX1
    x = (x ^ _shift_right(x, 27)) * _MIX2
    return x ^ _shift_right(x, 31)


def gumbel_noise(keys: torch.Tensor, rollouts: torch.Tensor, position: int, vocab_size: int, seed: int) -> torch.Tensor:
    """Standard Gumbel noise, float32 [R, vocab_size].

    Args:
        keys: [R] int64 ``Utterance.key`` of each row.
        rollouts: [R] int64 which of its utterance's rollouts a row is.
        position: of the token to be drawn, from 0.
        vocab_size: ids 0 … vocab_size − 1 get one draw each.
        seed: of the run (and step, where fresh noise is wanted each epoch).
    """
    row = _mix(_mix(_mix(keys + _GOLDEN) ^ _wrap(seed * _GOLDEN)) + rollouts * _MIX1 + _wrap(position * _MIX2))
    ids = torch.arange(vocab_size, device=keys.device, dtype=torch.int64)
    bits = _shift_right(_mix(row[:, None] + (ids[None] + 1) * _GOLDEN), 40)
    uniform = (bits.to(torch.float32) + 0.5) * 2.0**-24
    return -torch.log(-torch.log(uniform))


def restrict(scores: torch.Tensor, *, top_k: int = 0, top_p: float = 1.0) -> torch.Tensor:
    """``scores`` [R, V] with ids outside the ``top_k`` best, or outside the smallest set of probability ``top_p``, at −inf."""
    if 0 < top_k < scores.shape[-1]:
        limit = scores.topk(top_k, dim=-1).values[:, -1:]
        scores = scores.masked_fill(scores < limit, float("-inf"))
    if top_p < 1.0:
        ordered, index = scores.sort(dim=-1, descending=True, stable=True)
        probability = ordered.softmax(-1)
        outside = probability.cumsum(-1) - probability >= top_p  # the first id always stays
        scores = scores.masked_fill(outside.scatter(-1, index, outside), float("-inf"))
    return scores
