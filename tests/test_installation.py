"""The distribution's name: what hints say, which other packages are noticed, and that nothing tells anybody to install another's name."""

import re
import subprocess
from pathlib import Path

import pytest

import arkfast
from arkfast import doctor
from arkfast.installation import DISTRIBUTION, install_hint, namesakes

ROOT = Path(__file__).resolve().parents[1]
OURS = "On-policy distillation and inference for compact speech-recognition models"
TAKEN = "arkfast"  # on the package index; apart from the words before it, so that this file does not say what it forbids


def test_hints_name_the_checkout():
    assert install_hint() == "pip install -e . (in a checkout of arkfast)"
    assert install_hint("asr") == "pip install -e '.[asr]' (in a checkout of arkfast)"
    assert install_hint("asr", "quickstart") == "pip install -e '.[asr,quickstart]' (in a checkout of arkfast)"


def test_the_project_file_says_the_same_name_version_and_description():
    fields = dict(re.findall(r'^(name|version|description) = "([^"]*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    assert fields == {"name": DISTRIBUTION, "version": arkfast.__version__, "description": OURS}


def test_extras_that_hints_name_exist():
    table = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1]
    extras = set(re.findall(r"^(\w+) = \[", table, re.MULTILINE))
    sources = [path.read_text(encoding="utf-8") for folder in ("arkfast", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    calls = [call for text in sources for call in re.findall(r"install_hint\((.*?)\)", text)]
    hinted = {name for call in calls for name in re.findall(r"""['"](\w+)['"]""", call)}
    hinted |= {name for _, names in doctor.DOORS.values() for name in names}
    assert {"asr", "containers", "quickstart"} <= hinted <= extras


MODULES = {
    "huggingface-hub": "huggingface_hub",
    "pyyaml": "yaml",
    "whisper-normalizer": "whisper_normalizer",
    "espeakng-loader": "espeakng_loader",
    "silero-vad": "silero_vad",
    "tensorboard": "torch.utils.tensorboard",
    "python-multipart": "python_multipart",
    "prometheus-client": "prometheus_client",
}
"""Packages whose module has another name."""
CALLED = {
    "ruff": "scripts/test.sh", "mypy": "scripts/test.sh", "types-pyyaml": "", "types-tqdm": "", "cmake": "setup.py", "ninja": "setup.py",
    "pytest-benchmark": "docs/kernels.md", "pytest-xdist": "scripts/test.sh", "kernels": "tests/test_packaging.py", "zstandard": "",
}  # fmt: skip
"""Packages that are called by their command or looked up by their name, and the file that does; none for what the type checker reads."""


def unused(project: str, code: str, called: dict[str, str]) -> list[str]:
    """The packages of a project file's extras that no code imports and nobody calls."""
    table = project.split("[project.optional-dependencies]")[1].split("\n[")[0]
    packages = dict.fromkeys(name.lower() for name in re.findall(r'"([A-Za-z][\w.-]*)', table))
    return [name for name in packages if name not in called and not imported(MODULES.get(name, name), code)]


def imported(module: str, code: str) -> bool:
    return re.search(rf"^\s*(import|from) {re.escape(module)}\b|importorskip\(.{re.escape(module)}\b", code, re.MULTILINE) is not None


def test_no_extra_brings_what_no_code_uses():
    paths = [path for folder in ("arkfast", "tests", "benchmarks", "scripts") for path in (ROOT / folder).rglob("*.py")]
    code = "\n".join(path.read_text(encoding="utf-8") for path in (*paths, ROOT / "setup.py"))
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert unused(project, code, CALLED) == []
    for name, file in CALLED.items():
        assert not file or name in (ROOT / file).read_text(encoding="utf-8").lower(), f"{file} no longer calls {name}"


def test_an_extra_without_use_is_found():
    table = 'asr = ["soundfile>=0.13"]\nserve = ["fastapi>=0.115", "uvicorn[standard]"]\n'
    project = f"[project.optional-dependencies]\n{table}[project.scripts]\n"
    assert unused(project, "import soundfile\n# import fastapi\n", {}) == ["fastapi", "uvicorn"]


def install(site: Path, name: str, *, summary: str = "Something else", top_level: str = "", record: str = "") -> None:
    """The metadata that an installed distribution leaves."""
    folder = site / f"{name.replace('-', '_')}-1.2.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\nSummary: {summary}\n\nA long description\n")
    for file, text in (("top_level.txt", top_level), ("RECORD", record)):
        if text:
            (folder / file).write_text(text)


BY_NAME = "is another project's package, which has the name of this one's import"
BY_FILES = "is another project's package, whose files can hide this one's or mix with them"
EARLIER = "is this project under its earlier name"


@pytest.mark.parametrize(
    ("distribution", "message"),
    [
        ({"name": "arkfast"}, f"arkfast 1.2 in {{site}} {BY_NAME}: pip uninstall arkfast"),
        ({"name": "ArkFast", "record": "poc.py,,\n"}, f"ArkFast 1.2 in {{site}} {BY_NAME}: pip uninstall ArkFast"),
        ({"name": "arkfast", "top_level": "arkfast\n"}, f"arkfast 1.2 in {{site}} {BY_FILES}: pip uninstall arkfast"),
        ({"name": "arkfast", "record": "arkfast/__init__.py,,\n"}, f"arkfast 1.2 in {{site}} {BY_FILES}: pip uninstall arkfast"),
        ({"name": "poc-tools", "top_level": "poc\narkfast\n"}, f"poc-tools 1.2 in {{site}} {BY_FILES}: pip uninstall poc-tools"),
        ({"name": "poc-tools", "record": "poc.py,,\narkfast.py,,\n"}, f"poc-tools 1.2 in {{site}} {BY_FILES}: pip uninstall poc-tools"),
        ({"name": "arkfast", "summary": OURS}, f"arkfast 1.2 in {{site}} {EARLIER}: pip uninstall arkfast"),
    ],
)
def test_doctor_says_what_stands_in_the_way(tmp_path, monkeypatch, capsys, distribution, message):
    install(tmp_path, **distribution)
    monkeypatch.syspath_prepend(tmp_path)
    (found,) = [namesake for namesake in namesakes() if namesake.folder == tmp_path.resolve()]
    assert found.version == "1.2"
    assert doctor.main([]) == 0
    out = capsys.readouterr().out
    assert "\nto mend\n" in out
    (line,) = (line for line in out.splitlines() if str(tmp_path) in line)
    assert message.format(site=tmp_path.resolve()) in line
    assert line.endswith(", then pip install -e '.[asr]' (in a checkout of arkfast)")


def test_what_a_build_left_beside_the_sources_is_to_be_deleted(tmp_path, monkeypatch):
    leftover = tmp_path / "arkfast.egg-info"
    leftover.mkdir()
    (leftover / "PKG-INFO").write_text(f"Metadata-Version: 2.1\nName: arkfast\nVersion: 0.1.0\nSummary: {OURS}\n")
    (leftover / "top_level.txt").write_text("arkfast\n")
    monkeypatch.syspath_prepend(tmp_path)
    (found,) = [namesake for namesake in namesakes() if namesake.folder == tmp_path.resolve()]
    assert found.ours
    assert f"is this project under its earlier name: delete {leftover.resolve()}, then" in found.advice()


@pytest.mark.parametrize(
    "distribution",
    [
        {"name": "arkfast-opd", "summary": OURS, "top_level": "arkfast\n"},
        {"name": "arkfast_opd", "summary": OURS, "record": "arkfast/__init__.py,,\n"},
        {"name": "arkfast-tools", "top_level": "arkfast_tools\n", "record": "arkfast_tools/__init__.py,,\nother/arkfast/x.py,,\n"},
    ],
)
def test_ours_and_packages_of_other_names_stand_in_nobodys_way(tmp_path, monkeypatch, distribution):
    install(tmp_path, **distribution)
    (tmp_path / "damaged-1.0.dist-info").mkdir()  # without any metadata
    monkeypatch.syspath_prepend(tmp_path)
    assert [namesake for namesake in namesakes() if namesake.folder == tmp_path.resolve()] == []


def test_doctor_is_silent_where_nothing_stands_in_the_way(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "namesakes", list)
    assert doctor.main([]) == 0
    assert "to mend" not in capsys.readouterr().out


def tells_to_install_the_taken_name(text: str) -> bool:
    return re.search(rf"(?<!un)install(\s+-\S+)*\s+['\"`]?{TAKEN}(?!-opd|_opd)", text) is not None


def test_no_tracked_file_tells_anybody_to_install_the_name_of_another_project():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    texts = {path: path.read_text(encoding="utf-8", errors="replace") for path in files if path.is_file()}
    assert len(texts) > 300
    assert [str(path.relative_to(ROOT)) for path, text in texts.items() if tells_to_install_the_taken_name(text)] == []


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("pip install ", "", True),
        ("pip install '", "[asr]'", True),
        ("`pip install -U --no-deps ", "`", True),
        ("run pip install\n", " and go on", True),
        ("reinstall ", "[train]", True),
        ("pip uninstall ", "", False),
        ("pip install ", "-opd", False),
        ("pip install ./wheelhouse/", "_opd-0.1.0-py3-none-any.whl", False),
        ("pip install -e . # in a checkout of ", "", False),
    ],
)
def test_a_line_that_tells_it_is_found(before, after, told):
    assert tells_to_install_the_taken_name(before + TAKEN + after) is told
