"""Whether autograd records a call. Knows no op."""

from __future__ import annotations

import torch


def recorded(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The tensors as an ``autograd.Function`` should get them: without their ``requires_grad`` where no gradient is recorded.

    ``ctx.needs_input_grad`` repeats what the inputs say, under ``torch.no_grad`` too, and a forward that has its gradients ready would make
    them for nobody.
    """
    return tensors if torch.is_grad_enabled() else tuple(x.detach() for x in tensors)
