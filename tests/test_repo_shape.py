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
violations, cycle, modules, unlinked = import_graph.violations, import_graph.cycle, import_graph.modules, import_graph.unlinked


def write(root: Path, file: str, text: str) -> None:
    """A file of a made-up checkout; a folder of ``kernels/`` gets its link."""
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    (root / "arkfast" / "kernels").mkdir(parents=True, exist_ok=True)
    if file.startswith("kernels/"):
        link = root / "arkfast" / path.parent.relative_to(root)
        if not link.is_symlink():
            link.symlink_to(Path("..", "..", "kernels", path.parent.name))


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
        ("kernels/common/x.py", "import kernels.swiglu\n", "arkfast.kernels.common.x: imports kernels.swiglu; ours is arkfast.kernels"),
        ("arkfast/cli.py", "import arkfast.__main__\n", "which is not below it"),
        ("arkfast/data/x.py", "from importlib import import_module\nx = import_module('arkfast.infer.command')\n", "which is not below it"),
        ("arkfast/models/x.py", "import importlib\nx = importlib.import_module(f'arkfast.distill.{y}')\n", "which is not below it"),
    ],
)
def test_each_rule_catches_its_breach(tmp_path, file, text, message):
    write(tmp_path, file, text)
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
        write(tmp_path, file, text)
    found = cycle(tmp_path)
    assert len(set(found)) == len(files), found
    assert found[0] == found[-1]


def test_every_file_of_kernels_is_read_once_as_a_module_of_arkfast():
    known = modules(ROOT)
    files = [path.resolve() for path in known.values()]
    assert len(set(files)) == len(files)
    inner = {path.resolve(): name for name, path in known.items() if path.resolve().is_relative_to(ROOT / "kernels")}
    assert inner.keys() == {path.resolve() for path in (ROOT / "kernels").rglob("*.py")}
    assert len(inner) > 50
    assert all(name.startswith("arkfast.kernels.") for name in inner.values())


def test_ruff_reads_no_file_twice():
    shown = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--show-files", "."], cwd=ROOT, capture_output=True, text=True, check=True
    )
    files = [Path(line).resolve() for line in shown.stdout.splitlines()]
    assert len(set(files)) == len(files)
    assert ROOT / "kernels" / "row_topk" / "op.py" in files


def test_folders_of_kernels_and_links_to_them_are_in_step():
    assert unlinked(ROOT) == []


@pytest.mark.parametrize(
    ("name", "target", "message"),
    [
        ("swiglu", None, "kernels/swiglu has no link"),
        ("row_topk", "../../kernels/row_topk", "arkfast/kernels/row_topk leads to no package"),
        ("swiglu", "../../kernels/common", "must be a symbolic link to ../../kernels/swiglu"),
        ("swiglu", "{root}/kernels/swiglu", "must be a symbolic link to ../../kernels/swiglu"),
        ("swiglu", "a copy of the folder", "must be a symbolic link to ../../kernels/swiglu"),
    ],
)
def test_a_link_that_is_missing_stale_wrong_or_absolute_is_found(tmp_path, name, target, message):
    for op in ("swiglu", "common"):
        write(tmp_path, f"kernels/{op}/__init__.py", "")
    write(tmp_path, "arkfast/kernels/__init__.py", "")
    assert unlinked(tmp_path) == []
    link = tmp_path / "arkfast" / "kernels" / name
    link.unlink(missing_ok=True)
    if target == "a copy of the folder":
        write(link, "__init__.py", "")
    elif target is not None:
        link.symlink_to(target.format(root=tmp_path))
    (found,) = unlinked(tmp_path)
    assert message in found


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


def test_what_orders_the_tests_names_what_is_there():
    spec = importlib.util.spec_from_file_location("of_all_tests", ROOT / "tests" / "conftest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert all((ROOT / "tests" / name).is_file() for name in module.LONGEST)
    assert all((ROOT / "tests" / name).exists() for name in module.ALONE)


def test_scripts_parse():
    scripts = [*ROOT.glob("scripts/*.sh"), ROOT / ".ci" / "run"]
    assert len(scripts) >= 4
    for script in scripts:
        assert subprocess.run(["bash", "-n", str(script)], capture_output=True).returncode == 0, script
