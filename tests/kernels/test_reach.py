"""Nothing in ``kernels`` lies idle: every Triton kernel is launched by its op's folder, and every public op is reached from the product.

Reached means: called in ``arkfast`` or ``examples``, or by an op that is. Read from the source, so that it holds where no kernel can run.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KERNEL_FILES = sorted(ROOT.glob("kernels/*/kernel.py"))
SERVICES = {"UnfitError", "available_backends", "fallbacks", "reset_usage", "usage"}
"""Public names that are no op: which backend runs, and what has run."""


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def functions(module: ast.Module) -> Iterator[ast.FunctionDef]:
    yield from (node for node in module.body if isinstance(node, ast.FunctionDef))


def is_kernel(function: ast.FunctionDef) -> bool:
    return any("jit" in ast.unparse(decorator) for decorator in function.decorator_list)


def names_in(node: ast.AST) -> set[str]:
    """Every identifier that is read: plain names and attributes."""
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} | {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}


def launched(module: ast.Module) -> set[str]:
    """Names in ``kernel.name[grid](…)`` and ``name[grid](…)``."""
    calls = (node.func.value for node in ast.walk(module) if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript))
    return {name for call in calls for name in names_in(call)}


def launched_in(folder: Path) -> set[str]:
    return {name for path in folder.glob("*.py") if path.name != "kernel.py" for name in launched(tree(path))}


def idle_kernels(root: Path) -> list[str]:
    """Jitted functions that no launcher of their folder launches and no launched one calls, directly or not."""
    idle = []
    everywhere = {f.name: f for path in root.glob("kernels/*/kernel.py") for f in functions(tree(path)) if is_kernel(f)}
    live = {name for path in root.glob("kernels/*/kernel.py") for name in launched_in(path.parent)} & set(everywhere)
    while more := {name for kernel in live for name in names_in(everywhere[kernel])} & set(everywhere) - live:
        live |= more
    for path in sorted(root.glob("kernels/*/kernel.py")):
        idle += [f"{path.parent.name}.{f.name}" for f in functions(tree(path)) if is_kernel(f) and f.name not in live]
    return idle


def public_ops(root: Path) -> dict[str, str]:
    """Public function → the folder it comes from."""
    found = {}
    for node in tree(root / "arkfast" / "kernels" / "__init__.py").body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("arkfast.kernels."):
            names = (alias.name for alias in node.names if alias.name.islower())
            found |= {name: node.module.split(".")[2] for name in names if name not in SERVICES}
    return found


def unreached_ops(root: Path) -> list[str]:
    ops = public_ops(root)
    definitions: dict[str, set[str]] = {}
    for path in root.glob("kernels/*/*.py"):
        for node in tree(path).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                definitions.setdefault(node.name, set()).update(names_in(node))
    callers = [*root.glob("arkfast/**/*.py"), *root.glob("examples/**/*.py")]
    used = {name for path in callers if path.parent.name != "kernels" for name in names_in(tree(path))} & set(ops)
    seen: set[str] = set()
    while used - seen:
        name = (used - seen).pop()
        seen.add(name)
        used |= definitions.get(name, set()) & (set(definitions) | set(ops))
    return sorted(set(ops) - seen)


def test_every_kernel_is_launched():
    assert KERNEL_FILES
    assert idle_kernels(ROOT) == []


def test_every_op_is_reached():
    assert {"topk_lse", "opd_union_kl", "linear_kl", "audio_embed_merge", "decode_attention"} <= set(public_ops(ROOT))
    assert unreached_ops(ROOT) == []


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A repository with one op that the trainer calls through another."""
    write(tmp_path, "arkfast/kernels/__init__.py", "from arkfast.kernels.one import inner, outer\n")
    write(tmp_path, "kernels/one/kernel.py", "@triton.jit\ndef helper():\n    pass\n\n\n@triton.jit\ndef rows():\n    helper()\n")
    write(tmp_path, "kernels/one/op.py", "def inner():\n    kernel.rows[(1,)]()\n\n\ndef outer():\n    return inner()\n")
    write(tmp_path, "arkfast/train/loop.py", "from arkfast.kernels import outer\n\nouter()\n")
    return tmp_path


def test_a_kernel_that_nothing_launches_is_found(small):
    assert idle_kernels(small) == []
    write(small, "kernels/one/op.py", "from arkfast.kernels.one.kernel import rows\n")
    assert idle_kernels(small) == ["one.helper", "one.rows"]


def test_an_op_that_nothing_calls_is_found(small):
    assert unreached_ops(small) == []
    write(small, "arkfast/train/loop.py", "from arkfast.kernels import outer\n")
    assert unreached_ops(small) == ["inner", "outer"]
