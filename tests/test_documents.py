"""Documents, docstrings and comments name only files, folders, modules and names that exist.

What is looked at: paths that begin with one of the repository's folders (``<op>``, ``*`` and ``{a,b}`` in them stand for anything that is
there), source files by their bare names, links between documents, dotted names that begin with the package's, and in a drawing of the
straight line the names that begin with one of its folders.
"""

from __future__ import annotations

import ast
import io
import itertools
import pkgutil
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

SOURCE = r"(?:py|pyi|sh|cpp|h|md|yaml|toml|sbatch)"
# Made by those who run the commands that name them.
MADE_BY_USERS = {"benchmarks/results"}
# The Open ASR Leaderboard's own, and named as its.
ELSEWHERE = {"run_eval.py", "ark_asr/run_eval.py", "normalizer/eval_utils.py", "normalizer/data_utils.py"}


def documents(root: Path) -> list[Path]:
    found = [*root.glob("README*.md"), *root.glob("docs/**/*.md"), *root.glob("*/README.md"), *root.glob(".github/**/*.md")]
    return sorted({*found, *root.glob("CONTRIBUTING.md")})


@cache
def folders(root: Path) -> tuple[str, ...]:
    """The repository's own top-level folders: not what is built, installed or run there."""
    left_out = re.compile(r"build|dist|runs|wheelhouse|.*\.egg-info|\.(?!ci$|github$).*")
    return tuple(sorted(path.name for path in root.iterdir() if path.is_dir() and not left_out.fullmatch(path.name)))


@cache
def source_files(root: Path) -> frozenset[str]:
    """Paths from the checkout's root with each of their endings: ``engine/rows.py`` and ``rows.py`` for ``arkfast/engine/rows.py``."""
    found: set[str] = set()
    for path in (*(file for name in folders(root) for file in (root / name).rglob("*")), *root.iterdir()):
        parts = path.relative_to(root).parts
        if path.is_file() and "__pycache__" not in parts:
            found |= {"/".join(parts[i:]) for i in range(len(parts))}
    return frozenset(found)


def alternatives(pattern: str) -> Iterator[str]:
    """``a/{b,c}`` is ``a/b`` and ``a/c``, all of which must be there."""
    parts = re.split(r"\{([^{}]*)\}", pattern)
    choices = [part.split(",") if i % 2 else [part] for i, part in enumerate(parts)]
    yield from ("".join(chosen) for chosen in itertools.product(*choices))


def exists(root: Path, path: str) -> bool:
    if path in MADE_BY_USERS or any(path.startswith(f"{made}/") for made in MADE_BY_USERS):
        return True
    patterns = [re.sub(r"<[^<>]*>", "*", pattern) for pattern in alternatives(path)]
    return all(any(True for _ in root.glob(pattern)) if "*" in pattern else (root / pattern).exists() for pattern in patterns)


def resolves(name: str) -> bool:
    try:
        pkgutil.resolve_name(name)
    except (AttributeError, ImportError):
        return False
    return True


def missing(text: str, place: Path, root: Path) -> list[str]:
    """What ``text``, which stands in ``place``, names and is not there."""
    found: list[str] = []
    tops = "|".join(map(re.escape, folders(root)))
    for path in re.findall(rf"(?<![\w/.~$-])((?:{tops})/[\w./<>{{}},*-]*)", text):
        path = re.sub(r"[.,}]+$", "", path) if path.count("{") != path.count("}") or path[-1] in ".," else path
        if not exists(root, path.rstrip("/")):
            found.append(path)
    for name in re.findall(rf"(?<![\w/.~$<>*{{}}:-])((?:[\w-]+/)*[\w-]+\.{SOURCE})\b(?![\w/-])", text):
        if name not in source_files(root) and name not in ELSEWHERE and name.partition("/")[0] not in folders(root):
            found.append(name)
    if place.suffix == ".md":
        for file in re.findall(r"\]\(([^)\s#]+)[^)\s]*\)", text):
            if "://" not in file and not (place.parent / file).exists():
                found.append(file)
    for name in re.findall(r"(?<![\w./-])arkfast(?:\.[A-Za-z_]\w*)+", text):
        if not resolves(name):
            found.append(name)
    inner = "|".join(sorted(path.name for path in (root / "arkfast").iterdir() if (path / "__init__.py").is_file()))
    for line in text.splitlines():
        if " ─ " in line:
            found += [name for name in re.findall(rf"\b(?:{inner})\.\w+", line) if not resolves(f"arkfast.{name}")]
    return list(dict.fromkeys(found))


def words_of(source: str) -> str:
    """The docstrings and comments of a module."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = [ast.get_docstring(node) or "" for node in ast.walk(ast.parse(source)) if isinstance(node, documented)]
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return "\n".join([*docstrings, *(token.string for token in tokens if token.type == tokenize.COMMENT)])


def texts(root: Path) -> Iterator[tuple[Path, str]]:
    """Every document, and what every Python file says in words."""
    for path in documents(root):
        yield path, path.read_text(encoding="utf-8")
    for path in (*root.glob("*.py"), *(path for name in folders(root) for path in sorted((root / name).rglob("*.py")))):
        yield path, words_of(path.read_text(encoding="utf-8"))


def all_missing(root: Path) -> list[str]:
    return [f"{path.relative_to(root)}: {name}" for path, text in texts(root) for name in missing(text, path, root)]


def test_documents_docstrings_and_comments_name_what_exists() -> None:
    assert len(documents(ROOT)) >= 15
    assert all_missing(ROOT) == []


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for file in ("arkfast/engine/__init__.py", "arkfast/engine/rows.py", "kernels/swiglu/op.py", "docs/engine.md", "build/old.py"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    return tmp_path


SOUND = """The engine (`arkfast/engine/rows.py`, `engine/rows.py`, `rows.py`; `arkfast/engine`, arkfast/engine/.) has
`arkfast.engine.Engine`, `arkfast.engine.Engine.rollout` and `arkfast.kernels.union_kl.op`. See [it](engine.md#slots), or
https://example.org/docs/x.py, `kernels/<op>/op.py`, `kernels/{swiglu,*}/op.py`, `/elsewhere/docs/x.py`, `metrics.jsonl`,
`benchmarks/results/<gpu>/<date>.json`, `runs/opd/best`, `<name>.py`.
Batch ─ engine.Engine ─ text
"""


def test_what_exists_is_not_reported(checkout: Path) -> None:
    (checkout / "docs" / "page.md").write_text(SOUND)
    (checkout / "benchmarks").mkdir()
    assert all_missing(checkout) == []


@pytest.mark.parametrize(
    ("text", "reported"),
    [
        ("reads `arkfast/engine/gone.py`.", "arkfast/engine/gone.py"),
        ("stands in kernels/gone/", "kernels/gone/"),
        ("each `kernels/<op>/gone.py`", "kernels/<op>/gone.py"),
        ("both `kernels/swiglu/{op,gone}.py`", "kernels/swiglu/{op,gone}.py"),
        ("(`gone.py` holds the budgets)", "gone.py"),
        ("`engine/old.py`", "engine/old.py"),
        ("`old.py`, which was built", "old.py"),
        ("[there](gone.md#slots)", "gone.md"),
        ("`arkfast.engine.gone`", "arkfast.engine.gone"),
        ("`arkfast.engine.Engine.gone(batch)`", "arkfast.engine.Engine.gone"),
        ("Batch ─ engine.gone ─ text", "engine.gone"),
    ],
)
def test_what_does_not_exist_is_reported(checkout: Path, text: str, reported: str) -> None:
    (checkout / "docs" / "page.md").write_text(f"{SOUND}\n{text}\n")
    (checkout / "benchmarks").mkdir()
    assert all_missing(checkout)[0] == f"docs/page.md: {reported}"
    (checkout / "docs" / "page.md").unlink()
    if "](" not in text:  # only documents have links
        (checkout / "arkfast" / "engine" / "cache.py").write_text(f'"""About it."""\n\nX = 1  # {text}\n\n\ndef f():\n    """{text}"""\n')
        assert all_missing(checkout) == [f"arkfast/engine/cache.py: {reported}"]


def test_the_kernels_page_names_every_op() -> None:
    page = (ROOT / "kernels" / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| `(\w+)` \|", page, flags=re.MULTILINE)
    assert sorted(named) == sorted(path.parent.name for path in (ROOT / "kernels").glob("*/__init__.py"))
