"""The table of layers, and what imports what in arkfast with its kernels, read from the sources.

``tests/test_repo_shape.py`` enforces the table and ``scripts/draw_architecture.py`` draws it. Nothing of arkfast is imported to read it.
"""

from __future__ import annotations

import ast
import graphlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

# Layer → (its modules, the third-party packages that it adds to those of the layers before it). ``command_line`` raises the error that
# ``records`` defines, a command imports what it runs and ``python -m arkfast`` the command, so ``command_line``, ``cli`` and ``__main__``
# have a layer each.
LAYERS: list[tuple[set[str], set[str]]] = [
    ({"records", "installation"}, {"numpy", "torch", "typing_extensions"}),  # the last comes with torch; annotations alone want it
    ({"files"}, {"zstandard", "compression", "fsspec", "aiohttp", "yarl"}),  # ``compression`` is the standard library's from Python 3.14 on
    ({"command_line", "device", "plots"}, {"yaml"}),
    ({"console"}, {"tqdm"}),
    ({"_C", "kernels", "metrics"}, {"triton", "jiwer", "whisper_normalizer", "wetext"}),
    ({"audio", "reports"}, {"soundfile", "soxr", "av", "jinja2", "markupsafe"}),
    ({"data"}, {"tokenizers"}),
    ({"models"}, {"transformers", "safetensors", "huggingface_hub"}),
    ({"align", "engine", "testing"}, set()),
    ({"distill"}, set()),
    ({"train", "infer", "manifest"}, {"pyarrow", "ray", "silero_vad"}),
    ({"evaluate", "prove", "serve", "vllm_plugin"}, {"fastapi", "starlette", "uvicorn", "python_multipart", "prometheus_client", "vllm"}),
    ({"quickstart", "doctor"}, {"espeakng_loader", "matplotlib"}),
    ({"cli"}, set()),
    ({"__main__"}, set()),
]
RANK = {name: depth for depth, (names, _) in enumerate(LAYERS) for name in names}
ALLOWED = [set().union(*(extra for _, extra in LAYERS[: depth + 1])) for depth in range(len(LAYERS))]
# Packages that only some modules of their layer may import.
ONLY_IN = {
    "jiwer": {"metrics"},
    "matplotlib": {"quickstart"},
    "espeakng_loader": {"quickstart"},
    "jinja2": {"reports"},
    "markupsafe": {"reports"},
    "zstandard": {"files"},
    "fsspec": {"files"},
    "aiohttp": {"files"},
    "yarl": {"files"},
}


def module_name(path: Path, root: Path) -> str:
    """The name under which ``path``, a file somewhere under ``arkfast/``, is imported."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules(root: Path) -> dict[str, Path]:
    """Every module of the package by its name, each once, in the order of their paths.

    Links are followed: by those in ``arkfast/kernels`` the folders of ``kernels/`` are read, as ``arkfast.kernels.*`` and under no other
    name. ``unlinked`` finds a folder of kernels that has no link.
    """
    walk = os.walk(root / "arkfast", followlinks=True)
    paths = sorted(Path(folder, file) for folder, _, files in walk for file in files if file.endswith(".py"))
    return {module_name(path, root): path for path in paths}


def unlinked(root: Path) -> list[str]:
    """One sentence for each package in ``kernels/`` that ``arkfast/kernels`` has no relative link to, and for each link to no package."""
    found = []
    packages = {path.parent.name for path in (root / "kernels").glob("*/__init__.py")}
    links = {path.name: path for path in (root / "arkfast" / "kernels").iterdir() if path.suffix != ".py" and path.name != "__pycache__"}
    for name in sorted(packages | links.keys()):
        target = os.path.join("..", "..", "kernels", name)
        if name not in links:
            found.append(f"kernels/{name} has no link: ln -s ../../kernels/{name} arkfast/kernels/{name}")
        elif name not in packages:
            found.append(f"arkfast/kernels/{name} leads to no package: kernels/{name}/__init__.py does not exist")
        elif not links[name].is_symlink() or os.readlink(links[name]) != target:
            found.append(f"arkfast/kernels/{name} must be a symbolic link to ../../kernels/{name}")
    return found


def import_statements(path: Path, name: str) -> Iterator[tuple[str, list[str]]]:
    """(what is imported, the names that are taken from it) for every import in a file, wherever it stands; names are absolute."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join(filter(None, (".".join(above), base)))
            yield base, [alias.name for alias in node.names]


def imported(path: Path, name: str) -> Iterator[str]:
    """Absolute names of all that a file imports: modules, and the names that it takes from ``arkfast`` itself."""
    for base, names in import_statements(path, name):
        if base == "arkfast" and names:
            yield from (f"arkfast.{x}" for x in names)
        else:
            yield base


def imported_by_name(path: Path) -> Iterator[str]:
    """Modules of arkfast that a file hands to ``import_module`` as strings, as ``arkfast.cli`` does with its commands."""
    source = path.read_text(encoding="utf-8")
    if "import_module" in source:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"arkfast(\.\w+)+\.?", node.value):
                yield node.value.rstrip(".")


def violations(root: Path) -> list[str]:
    """One sentence for each import that breaks the table, and for each module that the table lacks."""
    found = []
    for name, path in modules(root).items():
        here = name.split(".")[1] if "." in name else ""
        if here and here not in RANK:
            found.append(f"{name}: has no layer; add it to the table")
            continue
        depth = RANK.get(here, 0)
        for target in (*imported(path, name), *(imported_by_name(path) if here else ())):
            parts = target.split(".")
            if parts[0] == "kernels":
                found.append(f"{name}: imports {target}; ours is arkfast.kernels")
            elif parts[0] == "arkfast":
                there = parts[1] if len(parts) > 1 else ""
                if there == "__version__" or not there or there == here:
                    continue
                if there not in RANK:
                    found.append(f"{name}: imports {target}, which has no layer")
                elif not here:
                    found.append(f"{name}: the package itself imports {target}; it loads names lazily")
                elif RANK[there] >= depth:
                    found.append(f"{name}: imports {target}, which is not below it")
            elif parts[0] not in sys.stdlib_module_names and (
                not here or parts[0] not in ALLOWED[depth] or here not in ONLY_IN.get(parts[0], {here})
            ):
                found.append(f"{name}: imports {parts[0]}, which its layer may not use")
    return found


def cycle(root: Path) -> list[str]:
    """Modules that import each other in a circle, the first one named again at the end; empty where there is no circle.

    An import of a name is one of the module that holds it, so a package whose ``__init__.py`` gathers names of its own modules is no circle
    unless one of those modules imports from the package itself.
    """
    known = modules(root)
    graph: dict[str, set[str]] = {}
    for name, path in known.items():
        targets = graph.setdefault(name, set())
        for base, names in import_statements(path, name):
            deeper = {f"{base}.{x}" for x in names} & known.keys()
            targets |= deeper
            if base in known and len(deeper) < max(len(names), 1):
                targets.add(base)
        targets.discard(name)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return [str(name) for name in error.args[1]]
    return []


def package_imports(root: Path) -> dict[str, set[str]]:
    """For each module or folder right under ``arkfast``, the others that it imports, by name too."""
    found: dict[str, set[str]] = {}
    for name, path in modules(root).items():
        here = name.split(".")[1] if "." in name else ""
        if not here or here.startswith("__"):
            continue
        targets = found.setdefault(here, set())
        for target in (*imported(path, name), *imported_by_name(path)):
            parts = target.split(".")
            if parts[0] == "arkfast" and len(parts) > 1 and parts[1] != here and not parts[1].startswith("__"):
                targets.add(parts[1])
    return found
