"""The layout rules, each with a case that breaks it; the table of layers stands in ``scripts/import_graph.py``.

Layers import only downward and siblings never import each other; every module has a layer; third-party packages stand where the design
allows them; and the name ``kernels`` never resolves into the checkout, because Transformers imports Hugging Face's package of that name.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


def load_import_graph() -> ModuleType:
    """``scripts/import_graph.py``, without the folder ``scripts`` on the path, whose folders could hide packages of the same names."""
    spec = importlib.util.spec_from_file_location("import_graph", ROOT / "scripts" / "import_graph.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


import_graph = load_import_graph()
violations, cycle = import_graph.violations, import_graph.cycle


def test_imports_follow_the_layers():
    assert violations(ROOT) == []


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("arkfast/audio/x.py", "from arkfast.models import load_model\n", "which is not below it"),
        ("arkfast/train/x.py", "import arkfast.infer\n", "which is not below it"),
        ("arkfast/engine/x.py", "def f():\n    from ..distill import step\n", "which is not below it"),
        ("arkfast/data/x.py", "from .. import evaluate\n", "which is not below it"),
        ("kernels/common/x.py", "from arkfast.audio import load\n", "which is not below it"),
        ("arkfast/helpers.py", "x = 1\n", "has no layer"),
        ("arkfast/cli.py", "from arkfast.helpers import x\n", "which has no layer"),
        ("arkfast/__init__.py", "from arkfast import records\n", "loads names lazily"),
        ("arkfast/data/x.py", "import transformers\n", "its layer may not use"),
        ("arkfast/train/x.py", "import librosa\n", "its layer may not use"),
        ("arkfast/train/x.py", "def f():\n    import jiwer\n", "its layer may not use"),
        ("arkfast/models/x.py", "from kernels import get_kernel\n", "ours is arkfast.kernels"),
    ],
)
def test_each_rule_catches_its_breach(tmp_path, file, text, message):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    (tmp_path / "kernels").mkdir(exist_ok=True)
    path.write_text(text)
    assert any(message in violation for violation in violations(tmp_path)), violations(tmp_path)


def test_no_modules_import_each_other_in_a_circle():
    assert cycle(ROOT) == []


@pytest.mark.parametrize(
    "files",
    [
        {"arkfast/data/a.py": "from arkfast.data.b import x\n", "arkfast/data/b.py": "def f():\n    from . import a\n"},
        {"arkfast/data/__init__.py": "from .a import x\n", "arkfast/data/a.py": "from arkfast.data import y\n"},
        {"kernels/common/a.py": "import arkfast.kernels.swiglu.op\n", "kernels/swiglu/op.py": "from ..common.a import x\n"},
    ],
)
def test_a_circle_is_found(tmp_path, files):
    for file, text in files.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    found = cycle(tmp_path)
    assert len(set(found)) == len(files), found
    assert found[0] == found[-1]


def test_kernels_folder_and_test_folders_are_not_packages():
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_the_name_kernels_is_never_ours(tmp_path):
    """From elsewhere, and in a process started in the checkout, where only a bare namespace folder may carry the name.

    A regular package named ``kernels`` anywhere on the path wins over a namespace folder, so Hugging Face's package, or the stand-in that
    this test puts last on the path, is the one that Transformers finds beside ours.
    """
    package = tmp_path / "kernels"
    package.mkdir()
    (package / "__init__.py").write_text("")
    code = "import sys; import arkfast.kernels; sys.path.append(sys.argv[1]); import kernels; print(kernels.__file__)"
    for cwd in (tmp_path, ROOT):
        run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=cwd, capture_output=True, text=True)
        found = run.stdout.strip()
        assert found.endswith("__init__.py"), run.stderr
        assert not Path(found).is_relative_to(ROOT / "kernels"), found
    spec = importlib.util.find_spec("kernels")
    assert spec is None or spec.origin is None or not Path(spec.origin).is_relative_to(ROOT / "kernels")


def test_importing_arkfast_is_light():
    code = "import sys, arkfast, arkfast.cli; print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_scripts_parse():
    scripts = [*ROOT.glob("scripts/*.sh"), ROOT / ".ci" / "run"]
    assert len(scripts) >= 4
    for script in scripts:
        assert subprocess.run(["bash", "-n", str(script)], capture_output=True).returncode == 0, script
