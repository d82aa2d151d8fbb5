"""Whether autograd records a call, and that what it records can be differentiated once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch.autograd.function import FunctionCtx, once_differentiable

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C", bound=FunctionCtx)


def recorded(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The tensors as an ``autograd.Function`` should get them: without their ``requires_grad`` where no gradient is recorded.

    ``ctx.needs_input_grad`` repeats what the inputs say, under ``torch.no_grad`` too, and a forward that has its gradients ready would
    compute them for nothing.
    """
    return tensors if torch.is_grad_enabled() else tuple(x.detach() for x in tensors)


def refuse_second_gradient(op: str) -> None:
    """Raises RuntimeError in a backward whose own gradient is wanted (``create_graph=True``).

    ``once_differentiable`` alone lets it pass where what comes upstream has no gradient, as below a scalar loss: the result then is a
    constant, and a penalty on it moves nothing.
    """
    # While torch.compile traces a backward, gradients are recorded for its own sake.
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(
            f"{op}: gradients of gradients are not available, and create_graph=True asks for them; leave it out, and put a penalty on "
            "gradients on a loss of plain torch"
        )


def first_order(op: str) -> Callable[[Callable[Concatenate[C, P], R]], Callable[Concatenate[C, P], R]]:
    """Marks the backward of the public function ``op``: it has no gradient of its own, and says so where one is wanted."""

    def marked(backward: Callable[Concatenate[C, P], R]) -> Callable[Concatenate[C, P], R]:
        once: Callable[Concatenate[C, P], R] = once_differentiable(backward)

        @functools.wraps(backward)
        def checked(ctx: C, *args: P.args, **kwargs: P.kwargs) -> R:
            refuse_second_gradient(op)
            return once(ctx, *args, **kwargs)

        return checked

    return marked
