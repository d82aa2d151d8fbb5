"""Every flag of the original's inference and evaluation scripts, from the list beside this file, and what the options ask of the engine.

An entry of the list holds ``default``, the original's; ``value``, another one (null for a switch); and ``effect``; or ``reason``, the page
that says why there is none; or ``flag``, the one that a launcher's variable is handed on by. ``with`` is a flag without which it is of no
use. A default of ours that differs has a row in docs/changed-defaults.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from arkfast.command_line import parse
from arkfast.engine import Sampling
from arkfast.evaluate.options import EvaluateConfig
from arkfast.evaluate.preset_jobs import Settings
from arkfast.infer.command import TranscribeConfig
from arkfast.infer.options import TranscribeOptions
from arkfast.records import InputError

ROOT = Path(__file__).resolve().parents[2]
LIST: dict[str, dict[str, dict[str, Any]]] = json.loads((Path(__file__).parent / "original_interface.json").read_text())
CONFIGS: dict[str, Any] = {"transcribe": TranscribeConfig, "evaluate": EvaluateConfig}
REQUIRED = {"--input": "/in.jsonl", "--output": "/out.jsonl", "--model_path": "/model"}
FLAGS = [("transcribe", flag) for flag in LIST["transcribe"]] + [("evaluate", flag) for door in CONFIGS for flag in LIST[door]]


def entry_of(flag: str) -> dict[str, Any]:
    return next(LIST[door][flag] for door in CONFIGS if flag in LIST[door])


def name_of(flag: str) -> str:
    """``--flag=value`` stands for one of a flag's choices."""
    return flag.partition("=")[0]


def words(flag: str, *, dashes: bool = False) -> list[str]:
    """The command line with a flag's value of the list, and what it needs."""
    entry, name = entry_of(flag), name_of(flag)
    given = [word for key, value in REQUIRED.items() if key != name for word in (key, value)]
    given += entry["with"].split("=") if "with" in entry else []
    return [*given, name.replace("_", "-") if dashes else name, *([] if entry["value"] is None else [entry["value"]])]


def same(text: str | None, value: Any) -> bool:
    """Whether a flag's text means the value; None is a switch alone."""
    if text is None:
        return value is True
    return float(text) == value if isinstance(value, (int, float)) and not isinstance(value, bool) else text == str(value)


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def test_the_list_is_whole_and_each_entry_says_one_thing() -> None:
    counts = {section: len({name_of(name) for name in entries}) for section, entries in LIST.items()}
    assert counts == {"transcribe": 20, "evaluate": 4, "presets": 16}
    for entries in LIST.values():
        for name, entry in entries.items():
            assert len({"effect", "reason", "flag"} & set(entry)) == 1, name


@pytest.mark.parametrize(("door", "flag"), FLAGS)
def test_every_flag_is_accepted_in_both_spellings_and_sets_its_field(door: str, flag: str) -> None:
    config = parse(CONFIGS[door], words(flag), prog="test", description="")
    assert same(entry_of(flag)["value"], getattr(config, name_of(flag)[2:]))
    assert parse(CONFIGS[door], words(flag, dashes=True), prog="test", description="") == config
    said = [note for note in config.notes() if note.startswith(name_of(flag) + " ")]
    assert bool(said) == ("reason" in entry_of(flag)), said


@pytest.mark.parametrize(("door", "flag"), [(door, flag) for door, flag in FLAGS if "reason" in entry_of(flag)])
def test_what_is_not_obeyed_is_said_and_explained(door: str, flag: str) -> None:
    entry = entry_of(flag)
    assert entry["reason"] == "docs/migration.md"
    assert f"`{name_of(flag)}" in page("migration.md")
    plain = [word for pair in REQUIRED.items() for word in pair]
    assert parse(CONFIGS[door], plain, prog="test", description="").notes() == []


@pytest.mark.parametrize(("door", "flag"), FLAGS)
def test_defaults_are_the_originals_or_have_a_row(door: str, flag: str) -> None:
    default, name = entry_of(flag)["default"], name_of(flag)
    if default is None:
        return
    config = parse(CONFIGS[door], [word for pair in REQUIRED.items() for word in pair], prog="test", description="")
    ours = getattr(config, name[2:])
    assert same(default, ours) or f"`transcribe {name}`" in page("changed-defaults.md"), f"{name}: {default} there, {ours} here"


@pytest.mark.parametrize("name", LIST["presets"])
def test_every_variable_of_the_launcher_reaches_the_jobs_or_the_script(name: str) -> None:
    entry = LIST["presets"][name]
    required = {"MODEL_PATH": "/model", "EVAL_DATA_DIR": "/eval", "OUTPUT_DIR": "/results"}
    assert f"`{name}`" in page("evaluation-presets.md")
    if "value" not in entry:  # the shell's own
        assert f"${{{name}:-" in (ROOT / "scripts" / "evaluate_presets.sh").read_text()
        return
    settings, plain = Settings.from_environment(required | {name: entry["value"]}), Settings.from_environment(required)
    assert settings != plain
    if "flag" in entry:
        command = settings.command(settings.job("net"), "0", "python3")
        assert command[command.index(entry["flag"]) + 1] == entry["value"]
    if name not in required:
        default = getattr(plain, name.lower())
        default = " ".join(default) if isinstance(default, tuple) else default
        assert entry["default"] == default or f"launcher: `{name}`" in page("changed-defaults.md")


def options(**fields: Any) -> TranscribeOptions:
    return TranscribeOptions(**fields)


def test_sampling_is_what_the_flags_ask_for() -> None:
    drawn = {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "seed": 3}
    assert options().sampling() == Sampling()
    assert options(do_sample=True).sampling() == Sampling(temperature=0.5)
    assert options(do_sample=True, repetition_penalty=1.2, **drawn).sampling() == Sampling(repetition_penalty=1.2, **drawn)
    assert options(repetition_penalty=1.2, **drawn).sampling() == Sampling(repetition_penalty=1.2)


def test_flags_of_draws_without_draws_are_said() -> None:
    notes = options(temperature=0.7, seed=3).notes()
    assert notes == [
        "--temperature 0.7: has no effect: tokens are drawn with --do_sample only",
        "--seed 3: has no effect: tokens are drawn with --do_sample only",
    ]
    assert options(do_sample=True, temperature=0.7, seed=3).notes() == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target_sr": 8000}, "--target_sr 8000: the models hear 16000 Hz"),
        ({"do_sample": True, "temperature": 0.0}, "--do_sample needs a --temperature above 0"),
        ({"do_sample": True, "temperature": -1.0}, "--temperature is out of range: -1"),
        ({"do_sample": True, "top_p": 0.0}, "--top_p is out of range: 0"),
        ({"do_sample": True, "top_k": -1}, "--top_k is out of range: -1"),
        ({"repetition_penalty": 0.0}, "--repetition_penalty is out of range: 0"),
        ({"seed": 1 << 63}, "--seed must be at least 0 and below"),
        ({"do_sample": True, "top_k": 1 << 63}, "--top_k is out of range: 9223372036854775808"),
        ({"do_sample": True, "temperature": 1e39}, "--temperature is out of range: 1e"),
        ({"max_audio_seconds": float("inf")}, "max_audio_seconds must be above 0 and finite, got inf"),
        ({"max_audio_seconds": float("nan")}, "max_audio_seconds must be above 0 and finite, got nan"),
        ({"max_tokens_per_second": float("inf")}, "max_tokens_per_second must be at least 0 .* and finite, got inf"),
        ({"audio_gain": 0.0}, "audio_gain must be above 0"),
        ({"audio_gain": float("inf")}, "audio_gain must be above 0 and finite"),
    ],
)
def test_values_that_mean_nothing_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        options(**fields)


def test_options_need_no_torch() -> None:
    """Help and wrong flags come at once, and scoring alone loads no model."""
    code = "import sys; from arkfast.evaluate.options import EvaluateConfig as E; E(input='a'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_commands_modules_need_no_torch() -> None:
    """Each start of ``arkfast evaluate`` on rows that have their transcripts would pay seconds for it, and so would each wrong argument."""
    code = "import sys, arkfast.infer.command, arkfast.evaluate.command; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("door", ["word", "flag", "file"])
def test_an_address_that_would_be_another_one_as_a_path_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], door: str) -> None:
    address, file = "https://h/a//b?sig=s3cr3t", tmp_path / "flags.yaml"
    file.write_text(f"input: {address}\n")
    words = {"word": [address], "flag": [f"--input={address}"], "file": ["--config", str(file)]}[door]
    with pytest.raises(SystemExit):
        parse(TranscribeConfig, [*words, "--output", "b.jsonl"], prog="arkfast", description="", position="input", further="more_inputs")
    assert "error: --input: https://h/a//b?…: an address with // or /. behind its beginning" in capsys.readouterr().err
