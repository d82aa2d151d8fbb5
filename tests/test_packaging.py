"""What an install brings: one package, with or without a compiler, beside Hugging Face's ``kernels``."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "arkfast", "kernels", "csrc")


@pytest.fixture
def checkout(tmp_path_factory):
    """A copy of what a build reads, so that nothing is built in the working tree and no build finds another's leavings."""
    copy = tmp_path_factory.mktemp("checkout")
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info")
    for name in SOURCES:
        source = ROOT / name
        shutil.copytree(source, copy / name, ignore=ignored) if source.is_dir() else shutil.copy(source, copy / name)
    return copy


def build(checkout, out, **environment):
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-cache-dir",
        "-w",
        str(out),
        str(checkout),
    ]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = Path(out).glob("*.whl")
    return wheel


def files(wheel):
    return [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]


def test_wheel_holds_only_arkfast_with_kernels_types_and_extension(checkout, tmp_path):
    names = files(build(checkout, tmp_path, ARKFAST_REQUIRE_EXT="1"))
    assert {name.partition("/")[0] for name in names} == {"arkfast"}
    for wanted in ("arkfast/py.typed", "arkfast/_C.pyi", "arkfast/kernels/__init__.py", "arkfast/kernels/union_kl/op.py", "arkfast/cli.py"):
        assert wanted in names
    assert any(name.startswith("arkfast/_C.") and name.endswith((".so", ".pyd")) for name in names)
    assert {name.split("/")[2] for name in names if name.startswith("arkfast/kernels/") and name.count("/") == 3} == {
        path.parent.name for path in ROOT.glob("kernels/*/__init__.py")
    }


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
    run = subprocess.run([sys.executable, "-S", "-c", code, site], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


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
        run = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        assert "site-packages" in run.stdout


@pytest.mark.parametrize("command", ["train", "report", "transcribe", "evaluate", "manifest", "quickstart", "doctor"])
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


def test_doctor_tells_what_runs_and_what_is_missing(monkeypatch, capsys):
    from arkfast import doctor

    real = doctor.version
    monkeypatch.setattr(doctor, "version", lambda name: None if name == "jiwer" else real(name))
    assert doctor.main([]) == 0
    out = capsys.readouterr().out
    assert "kernel backend       torch" in out
    assert "log-mel" in out
    assert "missing jiwer: pip install 'arkfast[asr]'" in out
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
