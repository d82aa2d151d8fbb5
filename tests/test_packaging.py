"""What an install brings: one package, with or without a compiler, beside Hugging Face's ``kernels``; from a checkout, its source
distribution or in place."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

import arkfast

ROOT = Path(__file__).resolve().parents[1]
SOURCES = (
    "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "README_zh.md", "CHANGELOG.md", "CITATION.cff", "LICENSE", "constraints.txt",
    "arkfast", "kernels", "csrc", "configs", "recipes", "docs",
)  # fmt: skip
"""What a build reads, and a test, which no build may take along."""


def copy_checkout(copy: Path) -> Path:
    """A copy of what a build reads, so that nothing is built in the working tree and no build finds another's leavings."""
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info")
    for name in SOURCES:
        source = ROOT / name
        shutil.copytree(source, copy / name, symlinks=True, ignore=ignored) if source.is_dir() else shutil.copy(source, copy / name)
    (copy / "tests").mkdir()
    (copy / "tests" / "test_nothing.py").write_text("")
    return copy


@pytest.fixture
def checkout(tmp_path_factory):
    return copy_checkout(tmp_path_factory.mktemp("checkout"))


def run(*words, cwd, **environment):
    return subprocess.run([*map(str, words)], cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True)


def build(source, out, **environment):
    """The wheel of a checkout or of a source distribution."""
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-cache-dir")
    done = run(sys.executable, "-m", "pip", "wheel", *options, "-w", out, source, cwd=None, **environment)
    assert done.returncode == 0, done.stderr
    (wheel,) = Path(out).glob("*.whl")
    return wheel


def files(wheel):
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}


def is_extension(name):
    return name.startswith("arkfast/_C.") and name.endswith((".so", ".pyd"))


@dataclass(frozen=True, kw_only=True)
class Built:
    checkout: Path
    wheel: Path
    sdist: Path
    wheel_of_sdist: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A checkout, its wheel, its source distribution, and the wheel of that."""
    folder = tmp_path_factory.mktemp("built")
    checkout = copy_checkout(tmp_path_factory.mktemp("checkout"))
    code = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    done = run(sys.executable, "-c", code, folder, cwd=checkout)
    assert done.returncode == 0, done.stderr
    (sdist,) = folder.glob("*.tar.gz")
    return Built(
        checkout=checkout,
        wheel=build(checkout, folder / "of_checkout", ARKFAST_REQUIRE_EXT="1"),
        sdist=sdist,
        wheel_of_sdist=build(sdist, folder / "of_sdist", ARKFAST_REQUIRE_EXT="1"),
    )


@pytest.mark.slow
def test_wheel_holds_only_arkfast_with_kernels_types_and_extension(built):
    names = files(built.wheel)
    assert built.wheel.name.startswith(f"arkfast_opd-{arkfast.__version__}-")
    assert {name.partition("/")[0] for name in names} == {"arkfast"}
    for wanted in ("arkfast/py.typed", "arkfast/_C.pyi", "arkfast/kernels/__init__.py", "arkfast/kernels/union_kl/op.py", "arkfast/cli.py"):
        assert wanted in names
    templates = {f"arkfast/reports/templates/{path.name}" for path in (ROOT / "arkfast" / "reports" / "templates").iterdir()}
    assert len(templates) >= 6
    assert templates <= names
    assert any(map(is_extension, names))
    assert {name.split("/")[2] for name in names if name.startswith("arkfast/kernels/") and name.count("/") == 3} == {
        path.parent.name for path in ROOT.glob("kernels/*/__init__.py")
    }


@pytest.mark.slow
def test_wheels_of_checkout_and_source_distribution_hold_every_file_of_the_package(built):
    """Modules and data files: what lies in the source tree, all of it, and beside it the extension alone."""
    walk = os.walk(built.checkout / "arkfast", followlinks=True)
    sources = {Path(folder, name).relative_to(built.checkout).as_posix() for folder, _, names in walk for name in names}
    assert {Path(name).suffix for name in sources} == {".py", ".pyi", ".typed", ".html", ".css", ".js", ".svg"}, (
        "a new kind of file: name it in package_data, then here"
    )
    for wheel in (built.wheel, built.wheel_of_sdist):
        names = files(wheel)
        assert len(list(filter(is_extension, names))) == 1
        assert {name for name in names if not is_extension(name)} == sources


@pytest.mark.slow
def test_source_distribution_holds_what_a_build_needs_and_no_tests(built):
    with tarfile.open(built.sdist) as archive:
        members = archive.getmembers()
    assert built.sdist.name == f"arkfast_opd-{arkfast.__version__}.tar.gz"
    assert not any(member.issym() or member.islnk() for member in members), "links are lost on some systems"
    names = {member.name.partition("/")[2] for member in members if member.isfile()}
    # Hidden files there are for those who edit C++.
    for folder in ("csrc", "configs", "recipes", "docs"):
        held = {path for path in (built.checkout / folder).rglob("*") if path.is_file() and not path.name.startswith(".")}
        assert {name for name in names if name.startswith(f"{folder}/")} == {str(path.relative_to(built.checkout)) for path in held}
    assert {"setup.py", "pyproject.toml", "MANIFEST.in", "constraints.txt", "README.md", "README_zh.md", "LICENSE", "CHANGELOG.md"} <= names
    assert "arkfast/kernels/row_topk/op.py" in names
    assert not any(name.startswith("tests/") or name.endswith((".so", ".pyc")) for name in names)


def test_a_module_that_is_gone_leaves_the_next_build(checkout):
    (checkout / "arkfast" / "leftover.py").write_text("")
    build_py = (sys.executable, "setup.py", "-q", "build_py", "--build-lib", "built")
    assert run(*build_py, cwd=checkout).returncode == 0
    assert (checkout / "built" / "arkfast" / "leftover.py").exists()
    assert (checkout / "built" / "arkfast" / "reports" / "templates" / "base.html").exists(), "templates are package data"
    (checkout / "arkfast" / "leftover.py").unlink()
    assert run(*build_py, cwd=checkout).returncode == 0
    assert not (checkout / "built" / "arkfast" / "leftover.py").exists()
    assert (checkout / "built" / "arkfast" / "kernels" / "row_topk" / "op.py").is_file()


def test_an_editable_install_reads_the_checkout(checkout, tmp_path):
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-cache-dir", "--no-index", "--target", tmp_path / "site")
    done = run(sys.executable, "-m", "pip", "install", *options, "-e", checkout, cwd=tmp_path, CXX="/bin/false")
    assert done.returncode == 0, done.stderr
    code = """
import site, sys
site.addsitedir(sys.argv[1])
import arkfast.kernels.row_topk.op as op
print(op.__file__)
from importlib import metadata
print(metadata.metadata("arkfast-opd")["Name"])
"""
    # -S leaves out the hooks of this environment's own editable install, whose module of the same name must not come first either.
    site = tmp_path / "site"
    found_in = os.pathsep.join((str(site), sysconfig.get_path("purelib")))
    done = run(sys.executable, "-S", "-c", code, site, cwd=tmp_path, PYTHONPATH=found_in)
    assert done.returncode == 0, done.stderr
    file, name = done.stdout.splitlines()
    assert Path(file) == checkout / "arkfast" / "kernels" / "row_topk" / "op.py"
    assert Path(file).exists()
    assert name == "arkfast-opd"


def test_this_environments_install_finds_kernels_from_anywhere(tmp_path):
    done = run(sys.executable, "-c", "import arkfast.kernels.row_topk.op as op; print(op.__file__)", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).exists()


@pytest.mark.parametrize("left", ["a file with the target's name", "nothing"])
def test_a_copy_without_symbolic_links_says_so(checkout, left):
    """As git leaves one on a system without links, or a program that unpacks archives and knows none."""
    for path in (checkout / "arkfast" / "kernels").iterdir():
        if path.is_symlink():
            target = os.readlink(path)
            path.unlink()
            if left != "nothing":
                path.write_text(target)
    said = "symbolic links to those of kernels/, which this copy of the repository has lost; clone it with"
    done = run(sys.executable, "-c", "import arkfast.kernels", cwd=checkout)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert said in last
    assert "During handling" not in done.stderr
    command = run(sys.executable, "-m", "arkfast", "doctor", cwd=checkout)
    assert command.returncode == 2
    assert command.stderr.startswith("arkfast doctor: error: ")
    assert said in command.stderr
    assert len(command.stderr.splitlines()) == 1
    install = run(sys.executable, "setup.py", "--version", cwd=checkout)
    assert install.returncode == 1
    assert "arkfast/kernels has no link to kernels/add_rms_norm, kernels/common, " in install.stderr
    assert "git clone -c core.symlinks=true" in install.stderr


def test_without_a_compiler_the_install_gives_working_kernels_and_features(checkout, tmp_path):
    wheel = build(checkout, tmp_path / "wheel", CXX="/bin/false")
    assert not any(name.startswith("arkfast/_C.") and not name.endswith(".pyi") for name in files(wheel))
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = """
import sys, warnings
import arkfast
assert arkfast.__file__.startswith(sys.argv[1]), arkfast.__file__
import torch
from arkfast.kernels import union_topk_kl
student = torch.randn(5, 50, requires_grad=True)
union_topk_kl(student, torch.randn(5, 50), k=8).backward()
assert torch.isfinite(student.grad).all()
assert student.grad.abs().sum() > 0
import numpy
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    log_mel = arkfast.LogMel()
    features, frames = log_mel([numpy.zeros(16000, dtype=numpy.float32)])
assert (log_mel.backend, features.shape) == ("numpy", (1, 128, 100))
assert any("C++" in str(warning.message) for warning in said), [str(w.message) for w in said]
"""
    # -S leaves out the path hooks of an editable install, which would find the checkout's extension.
    site, others = str(tmp_path / "site"), sysconfig.get_path("purelib")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((site, others))}
    done = subprocess.run([sys.executable, "-S", "-c", code, site], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_required_extension_that_does_not_build_fails_the_install(checkout, tmp_path):
    with pytest.raises(AssertionError):
        build(checkout, tmp_path, CXX="/bin/false", ARKFAST_REQUIRE_EXT="1")


def test_transformers_imports_beside_hugging_faces_kernels(tmp_path):
    """From anywhere and from the checkout, whose top-level folder has the same name."""
    pytest.importorskip("kernels", reason="Hugging Face's kernels package is not installed (extra dev)")
    code = (
        "import arkfast.kernels, arkfast.models, transformers, kernels; from kernels import get_kernel;"
        "from transformers import Qwen2ForCausalLM; print(kernels.__file__)"
    )
    for cwd in (tmp_path, ROOT):
        done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "site-packages" in done.stdout


@pytest.mark.parametrize("command", ["train", "report", "transcribe", "evaluate", "manifest", "prove", "quickstart", "doctor"])
def test_every_command_has_help_and_names_an_unknown_flag(command):
    shown = subprocess.run([sys.executable, "-m", "arkfast.cli", command, "--help"], capture_output=True, text=True)
    assert shown.returncode == 0
    assert f"usage: arkfast {command}" in shown.stdout
    wrong = subprocess.run([sys.executable, "-m", "arkfast.cli", command, "--not_a_flag", "1"], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "unknown flag --not_a_flag" in wrong.stderr
    assert "Traceback" not in wrong.stderr


def test_the_command_line_names_commands(capsys):
    from arkfast.cli import COMMANDS, main

    assert main([]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in COMMANDS)
    assert main(["transribe"]) == 2
    assert "unknown command 'transribe'" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_the_command_prints_its_version(capsys, flag):
    from arkfast.cli import main

    assert main([flag]) == 0
    assert capsys.readouterr().out == f"{arkfast.__version__}\n"


def test_the_package_runs_as_the_command(tmp_path):
    version = run(sys.executable, "-m", "arkfast", "--version", cwd=tmp_path)
    assert (version.returncode, version.stdout) == (0, f"{arkfast.__version__}\n")
    usage = run(sys.executable, "-m", "arkfast", cwd=tmp_path)
    assert usage.returncode == 0
    assert "usage: arkfast COMMAND" in usage.stdout
    wrong = run(sys.executable, "-m", "arkfast", "transribe", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "arkfast: error: unknown command 'transribe'" in wrong.stderr


def test_doctor_tells_what_runs_and_what_is_missing(monkeypatch, capsys):
    from arkfast import doctor

    real = doctor.version
    monkeypatch.setattr(doctor, "version", lambda name: None if name == "jiwer" else real(name))
    assert doctor.main([]) == 0
    out = capsys.readouterr().out
    assert "kernel backend       torch" in out
    assert "log-mel" in out
    assert "missing jiwer: pip install -e '.[asr]' (in a checkout of arkfast)" in out
    assert f"torch                {real('torch')}" in out


def test_lazy_names_are_what_their_modules_hold():
    import arkfast
    import arkfast.audio
    import arkfast.evaluate
    import arkfast.infer
    import arkfast.models

    assert arkfast.LogMel is arkfast.audio.LogMel
    assert arkfast.Transcriber is arkfast.infer.Transcriber
    assert arkfast.evaluate_rows is arkfast.evaluate.evaluate_rows
    assert arkfast.ArkasrConfig is arkfast.models.ArkasrConfig
    assert set(dir(arkfast)) >= {"LogMel", "Transcriber", "ArkasrProcessor", "ArkasrForConditionalGeneration", "__version__"}
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = arkfast.Nothing
