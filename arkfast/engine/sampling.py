"""Choosing the next token.

Sampling is argmax over scores plus Gumbel noise, and the noise is a hash of (seed, utterance, rollout, position, token): neither the
batch that a row happens to sit in nor the number of processes changes a rollout. (Gumbel-max: Gumbel 1954; a counter-based generator
as in Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", here with the SplitMix64 finaliser.)
"""

from __future__ import annotations

import torch

from arkfast.kernels.common.ranges import left_out


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


def step_seed(seed: int, step: int) -> int:
    """The seed of one step of a run, an int64 number: a hash of the pair.

    A sum of both would draw the same at step t of a run with seed s and at step t − 1 of one with seed s + 1.
    """
    pair = torch.tensor([_wrap(seed), _wrap(step)])
    return int(_mix(_mix(pair[0] + _GOLDEN) ^ (pair[1] * _MIX2)))


_BITS = 23
"""Of each hash that make its uniform number: with the half that keeps it off 0 and 1, as many as float32 holds exactly."""


def _gumbel(bits: torch.Tensor) -> torch.Tensor:
    """Standard Gumbel noise, float32, of ``_BITS`` random bits each, int64; all of it is finite."""
    uniform = (bits.to(torch.float32) + 0.5) * 2.0**-_BITS  # 2⁻²⁴ to 1 − 2⁻²⁴; one more bit, and the last would be rounded to 1
    return -torch.log(-torch.log(uniform))


def gumbel_noise(
    keys: torch.Tensor, rollouts: torch.Tensor, positions: torch.Tensor | int, vocab_size: int, seeds: torch.Tensor | int
) -> torch.Tensor:
    """Standard Gumbel noise, float32 [R, vocab_size], between −2.9 and 16.7.

    Args:
        keys: [R] int64 ``Utterance.key`` of each row.
        rollouts: [R] int64 which of its utterance's rollouts a row is.
        positions: [R] int64, or one for all: of the token to be drawn, from 0.
        vocab_size: ids 0 … vocab_size − 1 get one draw each.
        seeds: [R] int64, or one for all: of the run, or of its step (``step_seed``) where fresh noise is wanted each time.
    """
    seeds = _wrap(seeds * _GOLDEN) if isinstance(seeds, int) else seeds * _GOLDEN
    positions = _wrap(positions * _MIX2) if isinstance(positions, int) else positions * _MIX2
    row = _mix(_mix(_mix(keys + _GOLDEN) ^ seeds) + rollouts * _MIX1 + positions)
    ids = torch.arange(vocab_size, device=keys.device, dtype=torch.int64)
    return _gumbel(_shift_right(_mix(row[:, None] + (ids[None] + 1) * _GOLDEN), 64 - _BITS))


def noisiest(scores: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """[R] int64 the id of the best sum of ``scores`` and ``noise`` [R, V]; an id whose score is −inf is never drawn, even if its noise is
    the highest."""
    return (scores + noise).masked_fill(scores == float("-inf"), float("-inf")).argmax(-1)


def confine(scores: torch.Tensor, ranges: torch.Tensor) -> torch.Tensor:
    """``scores`` [R, V] with ids outside each row's own ``ranges`` [R, ranges, 2] int32 at −inf."""
    outside = left_out(scores.shape[1], None, ranges)
    assert outside is not None
    return scores.masked_fill(outside, float("-inf"))


def restrict(scores: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """``scores`` [R, V] with ids outside the best ones at −inf.

    Args:
        scores: after the temperature.
        top_k: [R] int64; ids below the ``top_k``-th best score are left out; 0 leaves none out.
        top_p: [R] float32; ids outside the smallest set of probability ``top_p`` among the rest are left out; the best always stays.
    """
    ordered, index = scores.sort(dim=-1, descending=True, stable=True)
    last = torch.where(top_k > 0, top_k, scores.shape[-1]).clamp(max=scores.shape[-1]) - 1
    ordered = ordered.masked_fill(ordered < ordered.gather(-1, last[:, None]), float("-inf"))
    probability = ordered.softmax(-1)
    # compared as a sum from the best down, which reaches 1 only roughly: a row that is not restricted must lose nothing to rounding
    outside = (before(probability) >= top_p[:, None]) & (top_p[:, None] < 1.0)
    return torch.empty_like(scores).scatter_(-1, index, ordered.masked_fill(outside, float("-inf")))


def before(probability: torch.Tensor) -> torch.Tensor:
    """[R, V] what comes before each of ``probability`` [R, V] float32, added up.

    Where PyTorch is to be deterministic these are sums of multiples of 2⁻⁴⁰: it has no sum of floats on a GPU in a fixed order.
    """
    if not torch.are_deterministic_algorithms_enabled():
        return probability.cumsum(-1) - probability
    parts = (probability.double() * 2**40).long()
    return (parts.cumsum(-1) - parts).double() / 2**40


def penalise(scores: torch.Tensor, seen: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
    """``scores`` [R, V] with those of ``seen`` [R, V] bool ids divided by their row's ``penalty`` [R], negative ones multiplied."""
    penalty = penalty[:, None]
    return torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)
