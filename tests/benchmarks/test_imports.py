"""What the GPU suite imports must be there on a machine with torch, Triton, Transformers and pytest alone."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BLOCKED = ("soundfile", "soxr", "jiwer", "fastapi", "rich", "hypothesis")
CODE = """
import importlib, importlib.util, sys
from importlib.machinery import PathFinder
from pathlib import Path

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        # Not an error: other packages ask whether these are there, and make do without.
        return None if name.partition(".")[0] in BLOCKED else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Without
root = Path(ROOT)
sys.path[:0] = [str(root / "benchmarks"), str(root)]
names = ["gpu_suite", "small_run", "shapes", "arkfast.kernels"]
import gpu_suite
names += [f"bench_{group}" for group in gpu_suite.SUITES]
names += [f"harness.{path.stem}" for path in sorted((root / "benchmarks" / "harness").glob("[!_]*.py"))]
names += [f"arkfast.kernels.{path.parent.name}" for path in sorted((root / "kernels").glob("*/__init__.py"))]
for name in names:
    importlib.import_module(name)
files = [root / "tests" / "kernels" / "conftest.py", *sorted((root / "tests" / "kernels" / "gpu").glob("*.py"))]
for path in sorted(root.glob("tests/*/test_*_gpu.py")):
    files += [path.parent / "conftest.py", path]
for path in [*files, root / "benchmarks" / "conftest.py"]:
    spec = importlib.util.spec_from_file_location(f"loaded_{path.parent.name}_{path.stem}", path)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
assert not set(BLOCKED) & set(sys.modules), sorted(set(BLOCKED) & set(sys.modules))
print(len(names))
"""


def run(*blocked):
    code = f"BLOCKED, ROOT = {blocked!r}, {str(ROOT)!r}\n{CODE}"
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)


def test_nothing_that_the_gpu_suite_needs_asks_for_audio_or_service_packages():
    done = run(*BLOCKED)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) >= 20


def test_the_block_blocks():
    done = run("torch")
    assert done.returncode != 0
    assert "No module named 'torch'" in done.stderr
