"""The layout rules, each with a case that breaks it.

Layers import only downward and siblings never import each other; every module has a layer; third-party packages stand where the design
allows them; and the name ``kernels`` never resolves into the checkout, because Transformers imports Hugging Face's package of that name.
"""

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Layer → (its modules, the third-party packages that it adds to those of the layers before it). ``command_line`` raises the error that
# ``records`` defines, and a command imports the doors, so ``command_line`` and ``cli`` have a layer each.
LAYERS: list[tuple[set[str], set[str]]] = [
    ({"records"}, {"numpy", "torch"}),
    ({"command_line", "plots"}, {"yaml"}),
    ({"_C", "kernels", "metrics"}, {"triton", "jiwer", "whisper_normalizer", "wetext"}),
    ({"audio"}, {"soundfile", "soxr", "av"}),
    ({"data"}, {"tokenizers"}),
    ({"models"}, {"transformers", "safetensors"}),
    ({"engine", "testing"}, set()),
    ({"distill"}, set()),
    ({"train", "infer", "manifest"}, {"tqdm", "rich", "ray"}),
    ({"evaluate", "serve", "vllm_plugin"}, {"fastapi", "vllm"}),
    ({"quickstart", "doctor"}, {"espeakng_loader", "matplotlib"}),
    ({"cli"}, set()),
]
RANK = {name: depth for depth, (names, _) in enumerate(LAYERS) for name in names}
ALLOWED = [set().union(*(extra for _, extra in LAYERS[: depth + 1])) for depth in range(len(LAYERS))]
# Packages that only some modules of their layer may import.
ONLY_IN = {"jiwer": {"metrics"}, "matplotlib": {"quickstart"}, "espeakng_loader": {"quickstart"}}


def module_name(path: Path, root: Path) -> str:
    top = "arkfast.kernels" if path.is_relative_to(root / "kernels") else "arkfast"
    base = root / ("kernels" if top == "arkfast.kernels" else "arkfast")
    parts = path.relative_to(base).with_suffix("").parts
    return ".".join((top, *(parts[:-1] if parts[-1] == "__init__" else parts)))


def imported(path: Path, name: str) -> Iterator[str]:
    """Absolute names of all that a file imports, wherever in it the import stands."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join(filter(None, (".".join(package.split(".")[: len(package.split(".")) - node.level + 1]), base)))
            if base == "arkfast":
                yield from (f"arkfast.{alias.name}" for alias in node.names)
            else:
                yield base


def violations(root: Path) -> list[str]:
    found = []
    for path in sorted([*(root / "arkfast").rglob("*.py"), *(root / "kernels").rglob("*.py")]):
        name = module_name(path, root)
        here = name.split(".")[1] if "." in name else ""
        if here and here not in RANK:
            found.append(f"{name}: has no layer; add it to the table")
            continue
        depth = RANK.get(here, 0)
        for target in imported(path, name):
            parts = target.split(".")
            if parts[0] == "kernels":
                found.append(f"{name}: imports {target}; ours is arkfast.kernels")
            elif parts[0] == "arkfast":
                there = parts[1] if len(parts) > 1 else ""
                if there.startswith("__") or not there or there == here:
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
