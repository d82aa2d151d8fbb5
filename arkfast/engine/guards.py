"""Limits that keep a transcript from running away: loops, and more tokens than the audio can hold.

A loop is cut at a place that depends on the row's ids alone, not on when somebody looked.
"""

from __future__ import annotations

import math

import torch

LONGEST_PERIOD = 16
"""Tokens of the longest phrase whose repetition counts as a loop."""
REPEATS = 6
"""How often a phrase has to stand in a row."""
LOOP_TOKENS = 24
"""How long the repetition has to be at least; numbers and laughter repeat single tokens legitimately."""
LOOP_WINDOW = max(LONGEST_PERIOD * REPEATS, LOOP_TOKENS)
"""Tokens, the last included, that decide whether a loop ends at a position."""


def loop_ends(tokens: torch.Tensor, lens: torch.Tensor, new: int) -> torch.Tensor:
    """The length at which each row first ends in a loop.

    Args:
        tokens: [R, L] int64 produced ids; what stands past a row's length is not looked at.
        lens: [R] int64 lengths.
        new: only the last so many positions of a row can be the loop's end; the others were asked about before.

    Returns:
        [R] int64: the shortest length, of the last ``new``, whose last tokens are one phrase over and over; 0 where there is none.
    """
    width = LOOP_WINDOW + new
    device = tokens.device
    # positions lens − width … lens − 1; those before the row's begin are told apart by a value that equals nothing
    place = lens[:, None] - width + torch.arange(width, device=device)
    window = torch.where(place >= 0, tokens.gather(1, place.clamp(0, tokens.shape[1] - 1)), -1 - torch.arange(width, device=device))
    index = torch.arange(width, device=device)
    found = torch.zeros_like(window, dtype=torch.bool)
    for period in range(1, LONGEST_PERIOD + 1):
        equal = torch.zeros_like(found)
        equal[:, period:] = window[:, period:] == window[:, :-period]
        run = index - torch.where(equal, -1, index).cummax(1).values
        found |= run >= max(REPEATS * period, LOOP_TOKENS) - period
    found &= index >= width - new
    first = torch.where(found, index, width).amin(1)
    return torch.where(first < width, lens - width + first + 1, 0)


def token_limit(seconds: float, max_new_tokens: int, tokens_per_second: float | None, margin: int = 32) -> int:
    """The most tokens that a transcript of ``seconds`` of audio may have, the end token included.

    Args:
        seconds: of the clip.
        max_new_tokens: limit whatever the length.
        tokens_per_second: of the fastest speech that is believed; None: no limit of this kind.
        margin: further tokens that every clip may have, since short clips vary most.
    """
    if tokens_per_second is None:
        return max_new_tokens
    return min(max_new_tokens, math.ceil(min(seconds * tokens_per_second, max_new_tokens)) + margin)
