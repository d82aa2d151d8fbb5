"""The quickstart's plan, its verdict, and one run from end to end at a size that learns nothing."""

import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from arkfast.quickstart.arms import plan
from arkfast.quickstart.config import QuickstartConfig
from arkfast.quickstart.progress import records, row_of, steps_done
from arkfast.quickstart.results import ARM_LABELS
from arkfast.quickstart.run import Quickstart, lowered
from arkfast.records import InputError

SMALL = {
    "train_clips": 40, "label_clips": 20, "pool_clips": 30, "dev_clips": 6, "test_clips": 6, "teacher_steps": 3, "student_steps": 3,
    "arm_steps": 4, "batch_size": 4,
}  # fmt: skip


def test_the_verdict_needs_both():
    assert lowered({"opd": 0.1, "base": 0.2, "sft": 0.15})
    assert not lowered({"opd": 0.17, "base": 0.2, "sft": 0.15})
    assert not lowered({"opd": 0.2, "base": 0.2, "sft": 0.25})
    assert not lowered({"opd": math.nan, "base": 0.2, "sft": 0.25})


def test_the_arms_have_equal_steps_and_never_see_test_data():
    corpus = SimpleNamespace(
        recipe=SimpleNamespace(digits=(3, 9)), **{name: Path(f"{name}.jsonl") for name in ("train", "labels", "pool", "dev", "test")}
    )
    arms = {arm.name: arm for arm in plan(Path("r"), QuickstartConfig(), corpus)}
    assert set(arms) == set(ARM_LABELS)
    assert {arms[name].steps for name in ("opd", "sft", "pseudo", "td_opd")} == {QuickstartConfig().arm_steps}
    assert arms["opd"].after == ("base", "teacher")
    assert arms["td_opd"].stages[1].flags["student_model"] == arms["td_opd"].stages[0].model
    for arm in arms.values():
        for stage in arm.stages:
            assert "test.jsonl" not in " ".join(stage.words())
            assert stage.flags["train_data"] == {"teacher": corpus.train, "base": corpus.labels, "sft": corpus.labels}.get(
                arm.name, corpus.pool
            )
            assert ("ctc_weight" in stage.flags) == (arm.name in ("teacher", "base"))


def test_rows_are_read_from_logs_while_they_grow(tmp_path):
    corpus = SimpleNamespace(
        recipe=SimpleNamespace(digits=(3, 9)), **{name: Path(name) for name in ("train", "labels", "pool", "dev", "test")}
    )
    arm = next(arm for arm in plan(tmp_path, QuickstartConfig(**SMALL), corpus) if arm.name == "td_opd")
    assert row_of(arm, done=False).state == "pending"
    first, second = (stage.folder for stage in arm.stages)
    first.mkdir(parents=True)
    second.mkdir(parents=True)
    step = {"loss": 1.0, "time_per_step": 0.5}
    (first / "metrics.jsonl").write_text(
        "".join(json.dumps(x) + "\n" for x in ({"step": 1, **step}, {"step": 2, **step}, {"step": 2, "eval_wer": 40.0}))
    )
    (second / "metrics.jsonl").write_text(json.dumps({"step": 1, "opd_valid_topk_mean": 9.0, **step}) + "\n" + '{"step": 2, "eval')
    assert len(records(second)) == 1, "a line that is being written is not read"
    assert steps_done(first) == 2
    row = row_of(arm, done=False)
    assert (row.state, row.steps, row.total_steps, row.seconds, row.support, row.curve) == ("running", 3, 4, 1.5, 9.0, ((2, 0.4),))


def test_another_quickstart_is_not_overwritten(tmp_path):
    Quickstart(QuickstartConfig(output_dir=tmp_path / "q", **SMALL))
    Quickstart(QuickstartConfig(output_dir=tmp_path / "q", jobs=1, **SMALL))
    with pytest.raises(InputError, match=r"holds a quickstart of other settings \(seed 0 there, 1 here\)"):
        Quickstart(QuickstartConfig(output_dir=tmp_path / "q", seed=1, **SMALL))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="not empty and not a quickstart"):
        Quickstart(QuickstartConfig(output_dir=tmp_path / "full", **SMALL))


@pytest.mark.parametrize("module", ["matplotlib", "espeakng_loader"])
def test_a_missing_package_is_named_before_anything_is_made(tmp_path, monkeypatch, capsys, module):
    from arkfast import cli

    monkeypatch.setitem(sys.modules, module, None)  # as an import of what is not installed
    assert cli.main(["quickstart", "--output_dir", str(tmp_path / "q")]) == 2
    said = capsys.readouterr().err
    assert f"packages are missing that the quickstart needs: {module.replace('_', '-')}; pip install -e '.[asr,quickstart]'" in said
    assert not (tmp_path / "q").exists()


def test_quiet_and_the_log_file_do_not_make_another_quickstart(tmp_path):
    Quickstart(QuickstartConfig(output_dir=tmp_path / "q", **SMALL))
    Quickstart(QuickstartConfig(output_dir=tmp_path / "q", quiet=True, log_file=tmp_path / "log.txt", **SMALL))


def test_from_end_to_end_and_once_more(tmp_path):
    pytest.importorskip("espeakng_loader", reason="espeakng-loader is not installed (extra quickstart)")
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra quickstart)")
    out = tmp_path / "q"
    words = [f"--{name}={value}" for name, value in {**SMALL, "output_dir": out}.items()]
    command = [sys.executable, "-m", "arkfast.cli", "quickstart", *words]
    first = subprocess.run(command, capture_output=True, text=True)
    assert first.returncode in (0, 1), first.stderr
    assert "Traceback" not in first.stderr, first.stderr
    summaries = {}
    for arm in ARM_LABELS:
        for split in ("dev", "test"):
            rows = [json.loads(line) for line in (out / "transcripts" / f"{arm}.{split}.jsonl").read_text().splitlines()]
            assert [row["status"] for row in rows] == ["ok"] * 6
            summaries[arm, split] = rows
        assert ARM_LABELS[arm] in first.stdout
    assert (out / "picture.png").stat().st_size > 10_000
    page = (out / "report.html").read_text()
    assert "arkfast transcribe" in page
    three = [json.loads(line) for line in (out / "three.transcribed.jsonl").read_text().splitlines()]
    assert [row["pred_text"] for row in three] == [row["pred_text"] for row in summaries["opd", "test"][:3]]
    assert (out / "opd" / "last" / "config.json").is_file()
    assert ("OPD lowered it" in first.stdout) == (first.returncode == 0)

    kept = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    second = subprocess.run([*command, "--quiet", "--log_file", str(tmp_path / "log.txt")], capture_output=True, text=True)
    assert second.returncode == first.returncode
    assert (second.stdout, second.stderr) == ("", "")
    assert str(out / "report.html") in (tmp_path / "log.txt").read_text()
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")} == kept, "nothing complete is trained again"
