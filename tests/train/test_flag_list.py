"""Every flag and metric name of the original's trainer, from the list beside this file: it has an effect, or a reason that a user can read.

The list's ``variables`` are the launcher's, walked in ``test_launch.py``. An entry holds ``effect``; or ``stage``, the one that logs it
(``calibration`` for what the preflight prints); or ``reason``, the page that says why there is none; or ``refused``, words of the error
that says why; or ``pending``, what it waits for.
Pending entries are printed as warnings, and so are those that are pending no longer.
"""

from __future__ import annotations

import io
import json
import re
import warnings
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from arkfast.command_line import parse
from arkfast.records import InputError
from arkfast.testing import synthetic_speech, tiny_checkpoint, tiny_qwen3_asr, write_wav
from arkfast.train import command
from arkfast.train.config import TrainConfig
from arkfast.train.originals import WITHOUT_EFFECT, without_original_flags

ROOT = Path(__file__).resolve().parents[2]
LIST: dict[str, dict[str, dict[str, str]]] = json.loads((Path(__file__).parent / "original_interface.json").read_text())
REQUIRED = {"--student_model": "/s", "--teacher_model": "/t", "--train_data": "/d", "--output_dir": "/o"}
KINDS = {"effect", "stage", "reason", "refused", "pending", "flag", "forwarded"}


def chosen(section: str, kind: str) -> dict[str, dict[str, str]]:
    return {name: entry for name, entry in LIST[section].items() if kind in entry}


def name_of(entry: str) -> str:
    """``--flag=value`` stands for one of a flag's choices."""
    return entry.partition("=")[0]


def configured(flag: str, value: str) -> tuple[TrainConfig, list[str]]:
    given = {**REQUIRED, name_of(flag): value}
    rest, notes = without_original_flags([word for pair in given.items() for word in pair])
    return parse(TrainConfig, rest, prog="arkfast train", description=""), notes


def report_pending(section: str, done: list[str]) -> None:
    waiting = {name: entry["pending"] for name, entry in chosen(section, "pending").items() if name not in done}
    for reason in sorted(set(waiting.values())):
        names = ", ".join(name for name, why in waiting.items() if why == reason)
        warnings.warn(f"pending {section} ({reason}): {names}", stacklevel=2)
    if done:
        warnings.warn(f"pending no longer, correct tests/train/original_interface.json: {', '.join(done)}", stacklevel=2)


def test_the_list_is_whole_and_each_entry_says_one_thing():
    assert len({name_of(name) for name in LIST["flags"]}) == 46
    assert len(LIST["variables"]) == 62
    for section in LIST.values():
        for name, entry in section.items():
            assert len(KINDS & set(entry)) == 1, name


@pytest.mark.parametrize("flag", chosen("flags", "effect"))
def test_a_flag_with_an_effect_sets_its_field(flag):
    value = LIST["flags"][flag]["value"]
    config, notes = configured(flag, value)
    assert notes == []
    field = getattr(config, name_of(flag)[2:])
    assert (float(value) if isinstance(field, float) else value) == (field if isinstance(field, float) else str(field))
    dashed = [name_of(flag).replace("_", "-"), value]
    rest = [word for pair in REQUIRED.items() if pair[0] != name_of(flag) for word in pair]
    assert parse(TrainConfig, [*rest, *dashed], prog="arkfast train", description="") == config


def test_a_flag_without_effect_is_accepted_and_its_reason_is_written_down():
    page = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")
    plain, _ = configured("--seed", "1")
    for flag, entry in chosen("flags", "reason").items():
        config, _ = configured(flag, entry["value"])
        assert config == plain, flag
        assert entry["reason"] == "docs/migration.md"
        assert f"`{name_of(flag)}`" in page, f"{flag} has no reason on the page"
    assert {name_of(flag)[2:] for flag in chosen("flags", "reason")} == {*WITHOUT_EFFECT, "sampling_rate"}


def test_a_value_that_is_not_obeyed_is_said_once_and_the_original_defaults_are_not():
    words = [
        "--seed",
        "3",
        "--debug-opd-steps=5",
        "--opd_loss_weight",
        "0.5",
        "--opd_eos_loss_weight",
        "0.0",
        "--qwen3_asr_code_path",
        "/code",
    ]
    rest, notes = without_original_flags(words)
    assert rest == ["--seed", "3"]
    assert [note.partition(":")[0] for note in notes] == ["--debug_opd_steps 5", "--opd_loss_weight 0.5", "--qwen3_asr_code_path /code"]
    assert all("has no effect: " in note for note in notes)
    defaults = {"--opd_student_score_mode": "teacher_forcing", "--asr_block_token_id_from": "151670", "--sampling_rate": "16000"}
    assert without_original_flags([word for pair in defaults.items() for word in pair]) == ([], [])
    with pytest.raises(InputError, match="--sampling_rate 8000: the models hear 16000 Hz"):
        without_original_flags(["--sampling_rate", "8000"])
    with pytest.raises(InputError, match="--debug_opd_steps: needs a value"):
        without_original_flags(["--debug_opd_steps"])
    assert without_original_flags(["--unknown", "x", "word"]) == (["--unknown", "x", "word"], [])


# Of the original's flags that have nothing to do here, each default as the original has it, and as a launcher may write it.
DEFAULTS = {
    "--qwen3_asr_code_path": [""], "--teacher_vllm_gpu_memory_utilization": ["0.3", "0.30"], "--hf_cache_dir": [".cache/hf_datasets"],
    "--dataloader_persistent_workers": ["False", "false", "0"], "--dataloader_multiprocessing_context": [""],
    "--opd_loss_weight": ["1.0", "1", "1.00"], "--opd_eos_loss_weight": ["0.0", "0"], "--asr_terminal_loss_weight": ["0.0"],
    "--opd_append_teacher_eos_for_stopped_rollouts": ["False"], "--opd_student_score_mode": ["teacher_forcing"],
    "--debug_generation_steps": ["0"], "--debug_opd_steps": ["0"], "--asr_block_token_id_from": ["151670"], "--sampling_rate": ["16000"],
}  # fmt: skip


def test_every_default_of_the_original_is_silent(monkeypatch):
    assert {flag[2:] for flag in DEFAULTS} == {*WITHOUT_EFFECT, "sampling_rate"}
    for flag, values in DEFAULTS.items():
        for value in values:
            assert without_original_flags([flag, value]) == ([], []), (flag, value)
            assert without_original_flags([f"{flag}={value}"]) == ([], []), (flag, value)
    assert without_original_flags(["--hf_cache_dir", "/data/cache"])[1] != []
    monkeypatch.setenv("HF_DATASETS_CACHE", "/data/cache")
    assert without_original_flags(["--hf_cache_dir", "/data/cache"]) == ([], []), "the original's default where this is set"


def test_what_is_refused_says_why(capsys):
    for flag, entry in chosen("flags", "refused").items():
        with pytest.raises(SystemExit):
            configured(flag, entry["value"])
        assert f"{name_of(flag)} {entry['value']}: " in (said := capsys.readouterr().err)
        assert entry["refused"] in said


def test_the_page_promises_names_that_are_logged(records):
    page = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")
    (promise,) = re.findall(r"^\| JSON lines on standard output \|.*?; (.*) keep their names\.", page, flags=re.MULTILINE)
    names = re.findall(r"`(\w+)`", promise)
    assert len(names) > 8
    assert [name for name in names if name not in records["opd"]] == []
    assert "asr_loss" in records["td"]


def test_the_command_takes_these_flags(monkeypatch, capsys):
    if not hasattr(command, "without_original_flags"):
        warnings.warn("pending: arkfast/train/command.py does not call without_original_flags", stacklevel=1)
        return
    import arkfast.train.trainer as trainer

    seen: list[TrainConfig] = []

    class Recorder:
        def __init__(self, config: TrainConfig) -> None:
            seen.append(config)

        def run(self) -> None:
            pass

    monkeypatch.setattr(trainer, "Trainer", Recorder)
    words = [word for pair in REQUIRED.items() for word in pair]
    assert command.main([*words, "--debug_opd_steps", "5", "--hf_cache_dir", "/cache"]) == 0
    assert str(seen[0].student_model) == "/s"
    assert "--debug_opd_steps 5: has no effect" in capsys.readouterr().err


def test_pending_flags_are_shown():
    done = []
    for flag, entry in chosen("flags", "pending").items():
        try:
            configured(flag, entry["value"])
        except SystemExit:
            continue
        done.append(flag)
    report_pending("flags", done)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The record of one step of each stage, and what their preflights printed."""
    from arkfast.train.trainer import Trainer

    root = tmp_path_factory.mktemp("world")
    tiny_checkpoint(root / "student", seed=1)
    tiny_checkpoint(root / "teacher", seed=2)
    rows = []
    for i in range(2):
        write_wav(root / f"{i}.wav", synthetic_speech(0.5, seed=i))
        rows.append({"audio": f"{i}.wav", "text": "one two", "id": f"clip{i}"})
    (root / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found: dict[str, dict[str, Any]] = {"calibration": {}}
    for stage in ("opd", "td"):
        config = TrainConfig(
            stage=stage, output_dir=root / stage, student_model=root / "student", teacher_model=root / "teacher",
            train_data=root / "train.jsonl", per_device_train_batch_size=2, max_steps=1, opd_top_k=8, asr_opd_max_new_tokens=6, gates="off",
            dataloader_num_workers=0, num_threads=1,
        )  # fmt: skip
        Trainer(config).run()
        (found[stage],) = map(json.loads, (root / stage / "metrics.jsonl").read_text().splitlines())
        with redirect_stdout(io.StringIO()) as said:
            Trainer(replace(config, calibrate_only=True, output_dir=root / f"look_{stage}")).run()
        found["calibration"] |= json.loads(said.getvalue().split("[calibration summary]")[1].splitlines()[0])
        if stage == "opd":
            tiny_qwen3_asr(root / "told", seed=3)
            told = replace(config, teacher_backend="qwen3_asr_transformers", teacher_model=root / "told", output_dir=root / "told_run")
            Trainer(told).run()
            (found["opd, told languages"],) = map(json.loads, (root / "told_run" / "metrics.jsonl").read_text().splitlines())
    return found


def test_metrics_are_logged_under_their_names(records):
    missing = [name for name in chosen("metrics", "effect") if name not in records["opd"]]
    missing += [name for name, entry in chosen("metrics", "stage").items() if name not in records[entry["stage"]]]
    assert missing == []


def test_metrics_that_are_not_logged_have_a_reason(records):
    page = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")
    for name, entry in chosen("metrics", "reason").items():
        assert entry["reason"] == "docs/migration.md"
        assert re.search(rf"`{re.escape(name)}`", page), f"{name} has no reason on the page"
        assert name not in records["opd"], f"{name} is logged; correct the list"


def test_pending_metrics_are_shown(records):
    report_pending("metrics", [name for name in chosen("metrics", "pending") if any(name in record for record in records.values())])
