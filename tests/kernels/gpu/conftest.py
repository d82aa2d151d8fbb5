"""Tests of the kernels on a GPU: skipped, with the reason, where there is none.

The contract tests of the folder above run there too, with tensors on the GPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = os.path.dirname(__file__)
    reason = None
    if os.environ.get("TRITON_INTERPRET") == "1":
        reason = "TRITON_INTERPRET=1: this process interprets kernels"
    elif not torch.cuda.is_available():
        reason = "no CUDA device is seen"
    for item in items:
        if str(item.path).startswith(here):
            item.add_marker(pytest.mark.gpu)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def no_sync() -> Callable[[], AbstractContextManager[None]]:
    """``with no_sync():`` raises where the host waits for the device."""

    @contextmanager
    def strict() -> Iterator[None]:
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return strict
