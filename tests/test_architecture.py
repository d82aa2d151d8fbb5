"""The picture of the architecture is the one that the imports give, and the page about it leaves no module out."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "architecture.svg"


def draw(root: Path, output: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / "scripts" / "draw_architecture.py"), "--output", str(output)]
    return subprocess.run(command, capture_output=True, text=True)


def boxes(picture: str) -> set[str]:
    """The names in the boxes."""
    return {element.text or "" for element in ElementTree.fromstring(picture).iter() if element.get("class") == "name"}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for folder in ("scripts", "arkfast", "kernels"):
        shutil.copytree(ROOT / folder, tmp_path / "checkout" / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    return tmp_path / "checkout"


def test_the_picture_is_what_the_script_draws(tmp_path: Path) -> None:
    done = draw(ROOT, tmp_path / "drawn.svg")
    assert done.returncode == 0, done.stderr
    same = (tmp_path / "drawn.svg").read_bytes() == PICTURE.read_bytes()
    assert same, "the imports have changed: run python scripts/draw_architecture.py, look at docs/architecture.svg and commit it"


def test_a_new_import_and_a_new_folder_change_the_picture(checkout: Path, tmp_path: Path) -> None:
    assert draw(checkout, tmp_path / "before.svg").returncode == 0
    before = (tmp_path / "before.svg").read_text(encoding="utf-8")
    path = checkout / "arkfast" / "doctor.py"
    path.write_text(path.read_text(encoding="utf-8") + "\n\ndef late():\n    import arkfast.evaluate\n", encoding="utf-8")
    assert draw(checkout, tmp_path / "import.svg").returncode == 0
    after = (tmp_path / "import.svg").read_text(encoding="utf-8")
    assert after != before
    assert boxes(after) == boxes(before) == {path.stem for path in (checkout / "arkfast").iterdir()} - {"__init__", "__main__", "py"}


def test_what_has_no_layer_or_imports_upward_is_no_picture(checkout: Path, tmp_path: Path) -> None:
    (checkout / "arkfast" / "helpers.py").write_text("x = 1\n")
    done = draw(checkout, tmp_path / "no.svg")
    assert done.returncode == 1
    assert "arkfast.helpers has no layer" in done.stderr
    (checkout / "arkfast" / "helpers.py").rename(checkout / "arkfast" / "audio" / "helpers.py")
    (checkout / "arkfast" / "audio" / "helpers.py").write_text("from arkfast.infer import Transcriber\n")
    done = draw(checkout, tmp_path / "no.svg")
    assert done.returncode == 1
    assert "arkfast.audio imports arkfast.infer, which is not below it" in done.stderr
    assert not (tmp_path / "no.svg").exists()


def test_the_page_names_every_box() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| `(\w+)` \|", page, flags=re.MULTILINE))
    assert named == boxes(PICTURE.read_text(encoding="utf-8"))
