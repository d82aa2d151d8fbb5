"""The hooks of pre-commit are this repository's own: they download nothing, and what they name is there."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml", reason="pyyaml is not installed (extra asr)")

ROOT = Path(__file__).resolve().parents[1]


def faults(text: str, root: Path) -> list[str]:
    """What is wrong with a configuration of hooks."""
    found = []
    repos: list[dict[str, Any]] = yaml.safe_load(text)["repos"]
    for repo in repos:
        if repo["repo"] != "local":
            found.append(f"{repo['repo']}: is fetched from elsewhere")
            continue
        for hook in repo["hooks"]:
            if hook["language"] != "system":
                found.append(f"{hook['id']}: language {hook['language']} makes an environment of its own")
            files = [word for word in shlex.split(hook["entry"]) if "/" in word and " " not in word and not word.startswith(".venv/")]
            found += [f"{hook['id']}: {file} does not exist" for file in files if not (root / file).exists()]
    return found


def test_hooks_are_local_and_name_what_exists() -> None:
    text = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    assert faults(text, ROOT) == []
    assert {hook["id"] for hook in yaml.safe_load(text)["repos"][0]["hooks"]} == {"ruff-check", "ruff-format", "shape", "mypy"}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("repos: [{repo: 'https://example.org/hooks', rev: v1, hooks: [{id: x}]}]", "is fetched from elsewhere"),
        ("repos: [{repo: local, hooks: [{id: x, language: python, entry: ruff}]}]", "language python"),
        ("repos: [{repo: local, hooks: [{id: x, language: system, entry: pytest tests/gone.py}]}]", "tests/gone.py does not exist"),
    ],
)
def test_each_fault_is_found(text: str, fault: str) -> None:
    (found,) = faults(text, ROOT)
    assert fault in found
