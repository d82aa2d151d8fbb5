"""Nobody but ``arkfast.files`` renames or fsyncs, and whoever opens a file to write has a reason."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RENAMES = {"replace", "rename", "renames", "fsync", "fdatasync", "move"}
OPENS = {"write_text", "write_bytes", "NamedTemporaryFile", "mkstemp", "mkdtemp", "TemporaryDirectory"}
REASONS = {
    "arkfast/align/head.py": "into new_files",
    "arkfast/evaluate/preset_processes.py": "what a job says goes to its log as it says it",
    "arkfast/infer/outputs.py": "rows that are printed in another format and that nobody keeps, in a temporary folder",
    "arkfast/quickstart/run.py": "what a training says goes to its log as it says it",
    "arkfast/quickstart/clips.py": "recordings, into a NewFolder",
    "arkfast/quickstart/corpus.py": "manifests, into a NewFolder",
    "arkfast/quickstart/report.py": "into new_files",
    "arkfast/prove/report.py": "into new_files",
    "arkfast/serve/form.py": "an upload, into the spool, which nobody keeps",
    "arkfast/serve/hearing.py": "features, into the spool, which nobody keeps",
    "arkfast/testing.py": "a tiny checkpoint of a test, into the folder that it is given",
    "arkfast/train/checkpoints/run_folder.py": "best.json and a new checkpoint's state, into a NewFolder",
    "arkfast/train/checkpoints/tensors.py": "the seal, into a NewFolder",
}
"""Modules that open files to write, and why that is right."""


JSON_REASONS = {
    "arkfast/data/ids.py": "a fingerprint",
    "arkfast/data/rows.py": "a value in an error",
    "arkfast/evaluate/preset_processes.py": "between a process and its own worker",
    "arkfast/evaluate/preset_worker.py": "between a process and its own worker",
    "arkfast/manifest/corpora/wenetspeech.py": "a row's text as errors show it",
    "arkfast/metrics/normalizers/external.py": "between a process and its own worker",
    "arkfast/metrics/normalizers/external_worker.py": "between a process and its own worker, which may have no arkfast",
    "arkfast/models/contents.py": "a fingerprint",
    "arkfast/prove/report.py": "strict by allow_nan=False: a figure that is not finite is a fault there",
    "arkfast/quickstart/corpus.py": "a copy",
    "arkfast/quickstart/recipe.py": "a fingerprint",
    "arkfast/testing.py": "a tiny checkpoint of a test",
}
"""Modules that write JSON by Python's own means, which would write infinities and NaN, and why none of it reaches a file."""


def of_modules(tree: ast.AST) -> dict[str, str]:
    """Names of a module that stand for os, shutil or functions of theirs, with what they stand for."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name: alias.name for alias in node.names if alias.name in ("os", "shutil")}
        elif isinstance(node, ast.ImportFrom) and node.module in ("os", "shutil"):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def renaming(source: str) -> list[int]:
    """Lines of calls that rename or fsync: those of os and shutil, ``path.rename(…)``, and ``path.replace(…)``, with its one argument."""
    tree = ast.parse(source)
    known, lines = of_modules(tree), []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        call = node.func
        if isinstance(call, ast.Name):
            found = known.get(call.id, "").partition(".")[2] in RENAMES
        elif isinstance(call, ast.Attribute) and isinstance(call.value, ast.Name) and known.get(call.value.id) in ("os", "shutil"):
            found = call.attr in RENAMES
        else:
            one = len(node.args) == 1 and not node.keywords
            found = isinstance(call, ast.Attribute) and (call.attr == "rename" or (call.attr == "replace" and one))
        if found:
            lines.append(node.lineno)
    return lines


def opening(source: str) -> list[int]:
    """Lines of calls that open a file to write it, or make a temporary."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        modes = [*node.args, *(keyword.value for keyword in node.keywords if keyword.arg == "mode")]
        words = {mode.value for mode in modes if isinstance(mode, ast.Constant) and isinstance(mode.value, str)}
        writes = name in ("open", "FileIO") and any(re.fullmatch(r"[rwax][bt+]*", word) and set(word) & set("wax+") for word in words)
        # ``write_text(…)`` without a dot is that of ``files``.
        if writes or (name in OPENS and (isinstance(node.func, ast.Attribute) or not name.startswith("write_"))):
            lines.append(node.lineno)
    return lines


def others(*folders: str) -> dict[str, str]:
    """The sources of every module of these folders but those of ``files``."""
    paths = sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    ours = ROOT / "arkfast" / "files"
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in paths if ours not in path.parents}


def test_no_other_module_renames_or_fsyncs():
    sources = others("arkfast", "kernels", "benchmarks", "scripts")
    assert len(sources) > 200
    assert {name: lines for name, source in sources.items() if (lines := renaming(source))} == {}


def test_every_other_module_that_opens_a_file_to_write_has_its_reason():
    assert {name for name, source in others("arkfast", "kernels").items() if opening(source)} == set(REASONS)


def jsoning(source: str) -> list[int]:
    """Lines that take ``dump`` or ``dumps`` from ``json``."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "json"
            and node.attr in ("dump", "dumps")
        ):
            lines.append(node.lineno)
        if isinstance(node, ast.ImportFrom) and node.module == "json" and {alias.name for alias in node.names} & {"dump", "dumps"}:
            lines.append(node.lineno)
    return lines


def test_every_other_module_that_writes_json_by_itself_has_its_reason():
    assert {name for name, source in others("arkfast").items() if jsoning(source)} == set(JSON_REASONS)


@pytest.mark.parametrize("source", ["import json\njson.dumps(x)", "from json import dump\ndump(x, f)", "import json\nwrite = json.dumps"])
def test_the_guard_sees_json_that_may_not_be_strict(source):
    assert jsoning(source)
    assert not jsoning("import json\njson.loads(text)\nfrom json import loads")


@pytest.mark.parametrize(
    "source",
    [
        "import os\nos.replace(a, b)",
        "import os as system\nsystem.rename(a, b)",
        "def f():\n    import os\n    os.fsync(file.fileno())",
        "from os import fsync\nfsync(3)",
        "from os import replace as put\nput(a, b)",
        "import shutil\nshutil.move(a, b)",
        "path.rename(other)",
        "folder.with_name('x').replace(path)",
    ],
)
def test_the_guard_sees_a_rename(source):
    assert renaming(source)


@pytest.mark.parametrize(
    "source",
    [
        "text.replace('a', 'b')",
        "import dataclasses\ndataclasses.replace(config, seed=1)",
        "from dataclasses import replace\nreplace(config, seed=1)",
        "import os\nos.path.exists(a)",
        "from arkfast.files import move\nmove(a, b)",
    ],
)
def test_the_guard_sees_no_rename_where_there_is_none(source):
    assert not renaming(source)


@pytest.mark.parametrize(
    "source",
    ["path.open('w')", "open(path, 'ab')", "open(path, mode='x')", "path.write_text('')", "wave.open(p, 'wb')", "tempfile.mkdtemp()"],
)
def test_the_guard_sees_what_is_opened_to_write(source):
    assert opening(source)


@pytest.mark.parametrize("source", ["path.open()", "path.open('rb')", "open(path, 'r')", "path.read_text()", "write_text(path, '')"])
def test_the_guard_sees_that_reading_is_not_writing(source):
    assert not opening(source)
