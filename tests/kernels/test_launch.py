"""Kernels start on the GPU of the tensors that they are given, not on the one that happens to be current."""

from __future__ import annotations

import ast
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from arkfast.kernels.common import launch

FOLDERS = sorted(path.parent for path in (Path(__file__).resolve().parents[2] / "kernels").glob("*/kernel.py"))


def test_a_launcher_runs_on_the_device_of_its_first_tensor(monkeypatch):
    entered = []

    @contextmanager
    def device_of(tensor):
        entered.append(tensor)
        yield
        entered.append("left")

    monkeypatch.setattr(launch, "on_device_of", device_of)

    @launch.on_its_device
    def launcher(settings, a, b, *, c):
        assert entered == [a]
        return settings, b, c

    first, second = torch.zeros(1), torch.ones(1)
    assert launcher("x", first, second, c=3) == ("x", second, 3)
    assert entered == [first, "left"]


def launches_unguarded(source: str) -> list[str]:
    """Functions with a launch ``kernel.name[grid](…)`` that neither are ``on_its_device`` nor are called in a ``with on_device_of``."""
    module = ast.parse(source)
    guarded = {
        name.id
        for block in ast.walk(module)
        if isinstance(block, ast.With) and any("on_device_of" in ast.unparse(item) for item in block.items)
        for name in ast.walk(block)
        if isinstance(name, ast.Name)
    }
    found = []
    for function in (node for node in ast.walk(module) if isinstance(node, ast.FunctionDef)):
        launches = any(
            isinstance(call, ast.Call) and isinstance(call.func, ast.Subscript) and ast.unparse(call.func).startswith("kernel.")
            for call in ast.walk(function)
        )
        decorated = any("on_its_device" in ast.unparse(decorator) for decorator in function.decorator_list)
        if launches and not decorated and function.name not in guarded:
            found.append(function.name)
    return found


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_launch_is_on_the_tensors_device(folder):
    """Launchers in files of their own are called by row_topk's and linear_topk's ops, in a context there."""
    sources = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.py")}
    if folder.name in ("row_topk", "linear_topk"):
        assert "on_device_of(" in sources["op.py"]
        return
    assert [name for source in sources.values() for name in launches_unguarded(source)] == []


def test_an_unguarded_launch_is_found():
    bare = "def go(x):\n    kernel.rows[(1,)](x)\n"
    assert launches_unguarded(bare) == ["go"]
    assert launches_unguarded(f"@on_its_device\n{bare}") == []
    assert launches_unguarded(f"{bare}def op(x):\n    with on_device_of(x):\n        return go(x)\n") == []
