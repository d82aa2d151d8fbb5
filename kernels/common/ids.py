"""Token ids in the width that kernels sort and compare them in."""

from __future__ import annotations

import torch

LARGEST = 2**31 - 1
"""Past every table: rows are numbered from 0 in int32."""


def narrowed(ids: torch.Tensor) -> torch.Tensor:
    """ids of int32 or int64 as int32. One that int32 does not hold keeps its side: −1, or ``LARGEST``, instead of another id's number."""
    return ids if ids.dtype == torch.int32 else ids.clamp(-1, LARGEST).to(torch.int32)
