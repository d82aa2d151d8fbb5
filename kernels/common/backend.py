"""Which implementation of an op runs. Knows the backends' names; knows no op."""

from __future__ import annotations

from typing import Literal

from arkfast.kernels.common.checks import check_choice

Backend = Literal["auto", "triton", "torch"]


def available_backends() -> tuple[str, ...]:
    """The backends that can run here, best first; "auto" takes the first that an op has."""
    return ("torch",)


def resolve_backend(backend: str, op: str = "arkfast.kernels") -> str:
    """The backend that runs for a request: "auto" and "torch" give "torch".

    Raises:
        ValueError: for an unknown name, and for "triton", which no op of this version has.
    """
    check_choice(op, "backend", backend, ("auto", "triton", "torch"))
    if backend == "triton":
        raise ValueError(f"{op}: this version has no Triton kernel for {op}; use backend='auto' or backend='torch'")
    return "torch"
