"""What the READMEs show: the same commands in both, how to install before all else, and a loss that is the same before and after."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "README_zh.md")
SET_UP = ["bash scripts/setup.sh", "source .venv/bin/activate", "arkfast doctor"]


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a page in a language."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("language", ["bash", "python"])
def test_both_pages_show_the_same(language: str) -> None:
    shown = [blocks(page, language) for page in PAGES]
    assert len(shown[0]) >= 1
    assert shown[0] == shown[1]


@pytest.mark.parametrize("page", PAGES)
def test_the_first_screen_says_how_to_install_and_whose_the_plain_name_is(page: str) -> None:
    assert blocks(page, "bash")[0].splitlines() == SET_UP
    screen = "\n".join((ROOT / page).read_text(encoding="utf-8").splitlines()[:30])
    assert "\n".join(SET_UP) in screen
    assert "**`arkfast-opd`**" in screen
    assert {"README.md": "`arkfast` on the index is another project's", "README_zh.md": "`arkfast` 的包属于另一个项目"}[page] in screen


@pytest.mark.parametrize("page", PAGES)
def test_both_pages_have_the_same_sections(page: str) -> None:
    sections = [len(re.findall(r"^## ", (ROOT / name).read_text(encoding="utf-8"), flags=re.MULTILINE)) for name in PAGES]
    assert sections[0] == sections[1] > 5
    words = re.findall(r"`--[a-z_]+`", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert [word for word in words if word not in (ROOT / page).read_text(encoding="utf-8")] == []


def test_the_loss_before_and_after_is_the_same() -> None:
    before, after = blocks("README.md", "python")
    found = []
    for code in (before, after):
        student, teacher = (torch.randn(40, 300, generator=torch.Generator().manual_seed(seed)).requires_grad_() for seed in (1, 2))
        names = {"torch": torch, "student_logits": student, "teacher_logits": teacher.detach(), "tau": 1.7}
        exec(code, names)
        loss = names["loss"]
        assert isinstance(loss, torch.Tensor)
        loss.backward()
        assert student.grad is not None
        found.append((loss.detach(), student.grad))
    assert found[0][0] > 0.5
    torch.testing.assert_close(found[0], found[1])


def commands(text: str) -> list[str]:
    """Lines of fenced blocks, and code within the text."""
    fences = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    outside = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return [line.strip() for block in fences for line in block.splitlines()] + re.findall(r"`([^`\n]+)`", outside)


def wrong_way(command: str) -> bool:
    """Whether a command is typed in another way than in a shell whose environment is active."""
    return re.match(r"(\.venv/bin/(?!activate)\S+ |(\S+/)?python3? -m (arkfast|pip|pytest|mypy)\b)", command) is not None


def test_documents_use_one_way_to_run_commands() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "kernels").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")]
    assert len(pages) > 15
    told = {page.name: [command for command in commands(page.read_text(encoding="utf-8")) if wrong_way(command)] for page in pages}
    # The changelog names the second way to call the command; nobody is told to type it.
    assert {name: found for name, found in told.items() if found and name != "CHANGELOG.md"} == {}


@pytest.mark.parametrize(
    ("command", "wrong"),
    [
        (".venv/bin/arkfast doctor", True),
        (".venv/bin/python -m pytest -q tests", True),
        ("python -m arkfast train", True),
        ("python3 -m pip list", True),
        ("arkfast doctor", False),
        ("source .venv/bin/activate", False),
        ("python scripts/leaderboard_eval.py --split x", False),
    ],
)
def test_another_way_is_found(command: str, wrong: bool) -> None:
    assert wrong_way(command) is wrong


def test_scripts_end_with_the_line_to_type() -> None:
    """Where the environment is there already, setting up is that line alone; scripts that call it have their own last line."""
    import shutil
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        for path in ("setup.py", "pyproject.toml", "constraints.txt", "scripts/setup.sh", "csrc"):
            (copy / path).parent.mkdir(parents=True, exist_ok=True)
            source = ROOT / path
            shutil.copytree(source, copy / path) if source.is_dir() else shutil.copy(source, copy / path)
        listing = r"find setup.py pyproject.toml constraints.txt scripts/setup.sh csrc -type f -not -name '*.pyc' -print0"
        stamp = subprocess.run(["bash", "-c", f"{listing} | sort -z | xargs -0 cat | cksum"], cwd=copy, capture_output=True, text=True)
        (copy / ".venv").mkdir()
        (copy / ".venv" / ".arkfast-setup").write_text(stamp.stdout.rstrip("\n"))
        for words, said in (([], "source .venv/bin/activate\n"), (["--called"], "")):
            done = subprocess.run(["bash", "scripts/setup.sh", *words], cwd=copy, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            assert done.stdout.endswith(said)
            assert bool(done.stdout) == bool(said)
    assert 'echo "To go on, type: source .venv/bin/activate"' in (ROOT / "scripts" / "quickstart.sh").read_text()


@pytest.mark.slow
def test_the_first_hour_fails_on_what_a_page_gets_wrong(tmp_path: Path) -> None:
    page = tmp_path / "PAGE.md"
    shown = ("arkfast no_such_command", "arkfst doctor", "arkfast doctor  # fine", "cat gone.txt || true")
    lines = ("```bash", *shown, "```", "`arkfast x y`")
    page.write_text("\n".join(lines) + "\n")
    done = subprocess.run(["bash", ROOT / "tests" / "first_hour.sh", page], capture_output=True, text=True)
    assert done.returncode == 1
    assert "5 commands ran, 4 failed" in done.stdout
    for place in ("2: ended with 2", "3: ended with 127, said 'command not found'", "5: said 'No such file", "7: ended with 2"):
        assert f"FAILED: PAGE.md:{place}" in done.stderr
