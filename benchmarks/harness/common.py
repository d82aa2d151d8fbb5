"""Pieces that several suites use: random inputs of the right statistics, our backends, compiled and installed-only providers."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from typing import Any

import torch
from shapes import POSITIONS, USED_IDS, Shape

from arkfast.kernels import available_backends

SPREAD = 3.0
"""Standard deviation of a logit: a trained head's rows spread about so, and bfloat16 logits of that size tie at the edge of every top-k."""


def generator(device: torch.device, seed: int) -> torch.Generator:
    """A seeded generator of a device."""
    return torch.Generator(device).manual_seed(seed)


def normal(*size: int, device: torch.device, seed: int, scale: float = 1.0, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Random numbers N(0, scale²); never zeros, which a GPU multiplies faster."""
    return torch.randn(*size, device=device, dtype=dtype, generator=generator(device, seed)).mul_(scale)


def linear_input(T: int, V: int, H: int, device: torch.device, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(hidden [T, H], weight [V, H]) in bfloat16 whose logits are N(0, SPREAD²)."""
    hidden = normal(T, H, device=device, seed=seed)
    return hidden, normal(V, H, device=device, seed=seed + 1_000, scale=SPREAD / H**0.5)


def zipf_ids(T: int, U: int, V: int, device: torch.device, seed: int) -> torch.Tensor:
    """[T, U] int32 ids whose frequencies fall as 1 / rank, as words do; ids of a row may repeat."""
    limit = min(V, USED_IDS)
    # The inverse of the distribution function log(rank) / log(limit).
    share = torch.rand(T, U, device=device, generator=generator(device, seed), dtype=torch.float64)
    rank = torch.exp(share * torch.log(torch.tensor(float(limit), dtype=torch.float64))).long() - 1
    # A shuffle of the ranks by a multiplier without common factor, so that frequent ids are no neighbours.
    return (rank.clamp_(0, limit - 1) * 7_919 % limit).to(torch.int32)


MOST_TORCH = min(POSITIONS)
"""On a GPU our torch backend is timed up to so many positions: it sorts whole rows, for seconds beyond."""


def our_backends(shape: Shape) -> tuple[str, ...]:
    """Backends that can run here, an interpreter not among them: its times mean nothing."""
    found = ["torch"] if os.environ.get("TRITON_INTERPRET") == "1" else list(available_backends())
    return tuple(name for name in found if name != "torch" or len(found) == 1 or shape.T <= MOST_TORCH)


COMPILED = {("", 0, 0), ("rows", 0, 0), ("", 1_024, 0), ("forward", 1_024, 0), ("", 896, 2_048), ("layer", 896, 0)}
"""(mode, H, HT) of the shape at which a suite's ``torch.compile`` is timed; the suites of decoding add which number of rows."""


def compiles(device: torch.device, shape: Shape) -> bool:
    """Whether torch.compile is a provider: on a GPU, at one core shape of a suite alone, since every shape costs it many seconds."""
    chosen = (shape.mode, shape.H, shape.HT) in COMPILED and shape.T not in (min(POSITIONS), max(POSITIONS))
    return device.type == "cuda" and shape.core and chosen


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """``torch.compile`` for one shape, compiled when first called."""
    compilation: list[Callable[..., Any]] = []

    def run(*arguments: Any) -> Any:
        if not compilation:
            # Past a number of shapes torch gives up compiling without a word.
            torch.compiler.reset()
            compilation.append(torch.compile(function, dynamic=False))
        return compilation[0](*arguments)

    return run


def installed(package: str) -> bool:
    """Whether an optional package can be imported."""
    return importlib.util.find_spec(package) is not None
