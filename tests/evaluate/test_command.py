"""``arkfast evaluate``: files, exit codes, and transcription first when a model is given."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from arkfast.evaluate import score_rows
from arkfast.evaluate.command import main, speed
from arkfast.evaluate.summary import markdown, summarise
from arkfast.infer.summary import Summary
from arkfast.metrics import get_normalizer
from arkfast.testing import synthetic_speech, tiny_checkpoint, write_wav


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def perfect(count: int) -> list[dict[str, Any]]:
    return [{"id": str(i), "text": f"Utterance {i}.", "pred_text": f"utterance {i}", "status": "ok"} for i in range(count)]


def test_rows_summary_and_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [*perfect(2), {"id": "long", "text": "a b c d", "pred_text": "a"}, {"id": "last", "text": "x", "pred_text": "y"}]
    output, summary = tmp_path / "new" / "scored.jsonl", tmp_path / "other" / "summary.json"
    code = main(["--input", write(tmp_path / "in.jsonl", rows), "--output", str(output), "--summary", str(summary)])
    assert code == 0
    assert [row["id"] for row in rows_of(output)] == ["0", "1", "long", "last"]
    assert [row["wer_errors"] for row in rows_of(output)] == [0, 0, 3, 1]
    found = json.loads(summary.read_text())
    assert found["wer"] == 4 / 9
    assert (found["input"], found["output"]) == (str(tmp_path / "in.jsonl"), str(output))
    assert found["output_sha256"] == hashlib.sha256(output.read_bytes()).hexdigest()
    assert found["normalizer"] == get_normalizer("basic").identity()
    assert [(g["preset"], g["language"], g["metric"]) for g in found["groups"]] == [("in", None, "wer")]
    out = capsys.readouterr().out
    assert "WER" in out
    assert "no language given: script of the references" in out


def test_one_bad_file_of_many_is_reported_and_costs_no_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [*perfect(39), {"id": "bad", "text": "two words", "pred_text": None, "status": "error", "error": "gone"}]
    source, summary = write(tmp_path / "in.jsonl", rows), tmp_path / "summary.json"
    assert main(["--input", source, "--summary", str(summary)]) == 1
    captured = capsys.readouterr()
    assert "1 of 40 rows were not scored" in captured.err
    assert "39 of 40" in captured.out
    scores = json.loads(summary.read_text())
    assert (scores["wer"], scores["failed"], scores["coverage"]) == (0.0, 1, 39 / 40)
    assert scores["rate_with_failures"] == 2 / 80
    assert main(["--input", source, "--allow_failures"]) == main(["--input", source, "--allow-failures", "true"]) == 0


def test_a_model_transcribes_first_and_its_transcripts_are_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_checkpoint(tmp_path / "model")
    for i in range(2):
        write_wav(tmp_path / f"{i}.wav", synthetic_speech(0.5 + i, seed=i))
    rows = [{"audio": f"{name}.wav", "ref": "a b", "pred_text": "a b"} for name in ("0", "gone", "1")]
    output, summary = tmp_path / "scored.jsonl", tmp_path / "summary.json"
    flags = ["--model_path", str(model), "--text_field", "ref", "--max_new_tokens", "8", "--device", "cpu"]
    code = main(["--input", write(tmp_path / "in.jsonl", rows), "--output", str(output), "--summary", str(summary), *flags])
    assert code == 1
    scored, scores = rows_of(output), json.loads(summary.read_text())
    assert [row["status"] for row in scored] == ["ok", "error", "ok"]
    assert all(row["pred_text"] != "a b" for row in scored)
    assert scored[1]["wer_errors"] is None
    assert (scores["scored"], scores["failed"], scores["audio_seconds"]) == (2, 1, 2.0)
    assert 0 < scores["processing_seconds"] < scores["wall_seconds"]
    assert scores["rtfx"] == 2.0 / scores["processing_seconds"] > scores["rtfx_end_to_end"] == 2.0 / scores["wall_seconds"]
    assert scores["model_path"] == str(model)
    assert sum(row["wer_errors"] or 0 for row in scored) == scores["substitutions"] + scores["deletions"] + scores["insertions"] > 0
    assert len(rows_of(tmp_path / "scored.jsonl.tmp_unsorted.jsonl")) == 3
    # the transcripts can be scored again without the model
    assert main(["--input", str(tmp_path / "scored.jsonl.tmp_unsorted.jsonl"), "--summary", str(summary)]) == 1
    again = json.loads(summary.read_text())
    assert (again["wer"], again["rtfx"], again["rtfx_end_to_end"]) == (scores["wer"], None, None)
    said = f"RTFx {scores['rtfx_end_to_end']:.1f} end to end, {scores['rtfx']:.1f} by processing time"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rows", "flags", "message"),
    [
        ([{"text": "a"}], [], "no row has pred_text"),
        ([{"pred_text": "a", "ref": "a"}], [], "--text_field"),
        ([{"hyp": "a", "text": "a"}], [], "--pred_field"),
        ([], [], "holds no rows"),
        ([{"text": "a", "pred_text": "a"}], ["--output", "SELF"], "is the input too"),
    ],
)
def test_what_cannot_be_scored_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: list[dict[str, Any]], flags: list[str], message: str
) -> None:
    source = write(tmp_path / "in.jsonl", rows)
    assert main(["--input", source, *[source if flag == "SELF" else flag for flag in flags]]) == 2
    assert message in capsys.readouterr().err
    assert rows_of(tmp_path / "in.jsonl") == rows


def test_a_broken_line_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "a", "pred_text": "a"}\n{"text": "b", "pre')
    assert main(["--input", str(tmp_path / "in.jsonl")]) == 2
    assert "in.jsonl:2: not valid JSON" in capsys.readouterr().err


def test_a_model_without_a_place_for_transcripts_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--input", str(tmp_path / "in.jsonl"), "--model_path", str(tmp_path)])
    assert caught.value.code == 2
    assert "--tmp_output" in capsys.readouterr().err


def test_one_failed_row_in_four_hundred_of_a_perfect_system(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [*perfect(399), {"id": "bad", "text": "two words", "pred_text": None, "status": "error", "error": "gone"}]
    assert main(["--input", write(tmp_path / "in.jsonl", rows)]) == 1
    out = capsys.readouterr().out
    assert re.search(r"^WER +0\.00 %", out, re.MULTILINE)
    assert "399 of 400 rows" in out
    assert "WER counting them as deletions 0.25 %" in out


def test_other_peoples_fields(tmp_path: Path) -> None:
    rows = [{"reference": "a b", "hyp": "a"}, {"reference": "c", "hyp": "c"}]
    summary = tmp_path / "s.json"
    flags = ["--text_field", "reference", "--pred_field", "hyp", "--summary", str(summary), "--language", "en", "--preset", "mine"]
    assert main(["--input", write(tmp_path / "in.jsonl", rows), *flags]) == 0
    found = json.loads(summary.read_text())
    assert found["wer"] == 1 / 3
    assert [(g["preset"], g["language"], g["unit_rule"]) for g in found["groups"]] == [("mine", "en", "language en")]


def test_rows_in_the_originals_order(tmp_path: Path) -> None:
    rows = [*perfect(2), {"id": "bad", "text": "x", "pred_text": None}, {"id": "far", "text": "abcd", "pred_text": "x"}, *perfect(1)]
    rows[-1]["id"] = "last"
    rows.insert(0, {"id": "near", "text": "abc", "pred_text": "abd"})
    source, output = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    assert main(["--input", source, "--output", str(output), "--sort", "cer_errors", "--allow_failures"]) == 0
    scored = rows_of(output)
    assert [row["id"] for row in scored] == ["far", "near", "0", "1", "last", "bad"]
    names = ["ref_text", "ref_text_clean", "pred_text_clean", "cer_errors", "wer_errors", "ref_words", "ref_chars"]
    assert all(name in row for name in names for row in scored)


def test_the_script_at_the_originals_path_takes_its_flags_and_order(tmp_path: Path) -> None:
    script = Path(__file__).resolve().parents[2] / "scripts" / "eval" / "eval_jwer_ark_asr_transformers.py"
    rows = [{"id": "near", "text": "abc", "pred_text": "abd"}, {"id": "far", "text": "abcd", "pred_text": "x"}]
    source, output = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    flags = ["--input", source, "--output", str(output), "--disable_text_normalize", "--max-audio-seconds", "30"]
    done = subprocess.run([sys.executable, str(script), *flags], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [row["id"] for row in rows_of(output)] == ["far", "near"]


def test_an_external_normaliser_reaches_texts_and_summary(tmp_path: Path) -> None:
    (tmp_path / "text_process.py").write_text("__version__ = '7'\ndef text_normalize(text):\n    return text.replace('3', 'three')\n")
    rows = [{"text": "3 words", "pred_text": "three words"}]
    flags = ["--text_normalize_python", sys.executable, "--text_normalize_workdir", str(tmp_path), "--summary", str(tmp_path / "s.json")]
    assert main(["--input", write(tmp_path / "in.jsonl", rows), *flags]) == 0
    found = json.loads((tmp_path / "s.json").read_text())
    assert (found["wer"], found["normalizer"]["name"], found["normalizer"]["version"]) == (0.0, "external", "7")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--normalizer", "whisper", "--text_normalize_python", "python3"], "--normalizer for whisper; give one of them"),
        (["--disable_text_normalize", "--text_normalize_python", "python3"], "ask for different normalisers"),
        (["--text_normalize_workdir", "."], "of use with --text_normalize_python only"),
        (["--max_regression", "-1"], "max_regression must be percentage points"),
        (["--language", "und"], "names no language"),
        (["--unit", "phone"], "expected one of auto, word, char, mixed"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--input", "in.jsonl", *flags])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_a_missing_normaliser_is_told_before_anything_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--input", str(tmp_path / "none.jsonl"), "--normalizer", "external"]) == 2
    assert "needs --text_normalize_python" in capsys.readouterr().err


def checkout(folder: Path) -> str:
    """A stand-in for the leaderboard's repository with English rules alone, as where a package of the others is missing."""
    package = folder / "normalizer"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("class EnglishTextNormalizer:\n    def __call__(self, s):\n        return s.lower()\n")
    (package / "data_utils.py").write_text("import a_package_that_nobody_has\n")
    return str(folder)


@pytest.mark.parametrize(
    ("row", "flags", "message"),
    [
        ({"text": "a"}, ["--group_by", "speaker"], "in.jsonl:2: field 'speaker', by which --group_by resamples"),
        ({"text": "a", "speaker": "s", "language": "de"}, ["--leaderboard_path", "CHECKOUT"], "in.jsonl:2: --leaderboard_path"),
        ({"text": "a", "preset": 5}, [], "field 'preset' must be text"),
    ],
)
def test_rows_that_could_not_be_scored_are_told_before_the_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], row: dict[str, Any], flags: list[str], message: str
) -> None:
    rows = [{"audio": "a.wav", "text": "a", "speaker": "s"}, {"audio": "b.wav", **row}]
    flags = [checkout(tmp_path / "checkout") if flag == "CHECKOUT" else flag for flag in flags]
    output = tmp_path / "out.jsonl"
    flags += ["--model_path", str(tmp_path / "no model"), "--output", str(output)]
    assert main(["--input", write(tmp_path / "in.jsonl", rows), *flags]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "nothing was transcribed" in said
    assert list(tmp_path.glob("out*")) == []


def test_a_manifest_without_references_is_not_transcribed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model_path", str(tmp_path / "no model"), "--output", str(tmp_path / "out.jsonl"), "--text_field", "ref"]
    assert main(["--input", write(tmp_path / "in.jsonl", [{"audio": "a.wav", "text": "a"}]), *flags]) == 2
    assert "no row has a reference in field 'ref'" in capsys.readouterr().err


def test_a_bad_line_needs_no_field_to_resample_by(tmp_path: Path) -> None:
    """It is a failed row, which costs itself and nothing else."""
    write_wav(tmp_path / "a.wav", synthetic_speech(0.5))
    source = write(tmp_path / "in.jsonl", [{"audio": "a.wav", "text": "a", "speaker": "s"}])
    with Path(source).open("a", encoding="utf-8") as file:
        file.write('{"audio": \n')
    output, summary = tmp_path / "out.jsonl", tmp_path / "summary.json"
    flags = ["--model_path", str(tiny_checkpoint(tmp_path / "model")), "--max_new_tokens", "8", "--device", "cpu", "--allow_failures"]
    files = ["--output", str(output), "--summary", str(summary)]
    assert main(["--input", source, *files, *flags, "--group_by", "speaker"]) == 0
    assert [row["outcome"] for row in rows_of(output)] == ["scored", "failed"]
    assert json.loads(summary.read_text())["failed"] == 1


def test_two_outputs_in_one_file_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, path = write(tmp_path / "in.jsonl", perfect(1)), str(tmp_path / "out")
    assert main(["--input", source, "--output", path, "--summary", path]) == 2
    assert "are one file" in capsys.readouterr().err
    assert not Path(path).exists()


def test_markdown_has_a_line_for_each_preset_and_language(tmp_path: Path) -> None:
    rows = [
        {"text": "a b", "pred_text": "a", "language": "en", "preset": "clean"},
        {"text": "你好", "pred_text": "你号", "language": "zh", "preset": "net|1"},
        {"text": "", "pred_text": "uh", "language": "en", "preset": "clean"},
    ]
    path = tmp_path / "table.md"
    assert main(["--input", write(tmp_path / "in.jsonl", rows), "--markdown", str(path)]) == 0
    head, rule, first, second, *_ = path.read_text(encoding="utf-8").splitlines()
    columns = [cell.strip() for cell in head.strip("|").split("|")]
    assert rule.count("|") == len(columns) + 1
    clean = dict(zip(columns, (cell.strip() for cell in first.strip("|").split("|")), strict=True))
    assert (clean["preset"], clean["language"], clean["rate"], clean["units"]) == ("clean", "en", "WER 100.00", "2")
    assert (clean["del"], clean["ins"], clean["on empty references"], clean["RTFx"]) == ("1", "1", "1 in 1 of 1", "–")
    assert second.startswith("| net\\|1 | zh | CER 50.00 |")
    text = path.read_text(encoding="utf-8")
    assert f"`basic` {get_normalizer('basic').version}" in text
    assert "RTFx by processing time" not in text
    summary = summarise(score_rows(rows)[0])
    assert "RTFx by processing time, which leaves out" in markdown([summary | {"rtfx": 3.0}, summary])


def test_the_page_has_the_scores_and_the_rows(tmp_path: Path) -> None:
    rows = [{"id": "clip-seven", "text": "a b c <i>", "pred_text": "a b x", "language": "en"}]
    path = tmp_path / "new" / "page.html"
    assert main(["--input", write(tmp_path / "in.jsonl", rows), "--html", str(path)]) == 0
    text = path.read_text(encoding="utf-8")
    assert text.lower().startswith("<!doctype html>")
    assert "clip-seven" in text
    assert "50.00" in text  # x for c, and i missing, of four words
    assert "<i>" not in text


@pytest.mark.parametrize("page", ["pages/page.html", "page.html", "data/page.html"])
def test_players_find_the_recordings_of_a_relative_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: str) -> None:
    """And still do when the folder of both is moved."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "wav").mkdir(parents=True)
    (tmp_path / "data" / "wav" / "a.wav").touch()
    rows = [{"id": name, "audio": f"wav/{name}.wav", "text": "a", "pred_text": "b"} for name in ("a", "gone")]
    assert main(["--input", write(Path("data/in.jsonl"), rows), "--html", page]) == 0
    sources = re.findall(r'<audio [^>]*src="([^"]*)"', Path(page).read_text())
    assert len(sources) == 1
    assert not sources[0].startswith("/")
    assert (Path(page).parent / sources[0]).resolve() == tmp_path / "data" / "wav" / "a.wav"


def test_half_of_a_surrogate_pair_is_written_as_its_escape(tmp_path: Path) -> None:
    rows = [{"id": "x\ud800", "text": "a", "pred_text": "b\udfff", "preset": "p\ud800"}]
    files = {name: tmp_path / f"out.{name}" for name in ("html", "markdown", "summary", "output")}
    flags = [word for name, path in files.items() for word in (f"--{name}", str(path))]
    source = write(tmp_path / "in.jsonl", rows)
    done = subprocess.run([sys.executable, "-m", "arkfast.cli", "evaluate", "--input", source, *flags], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "x\\ud800" in files["html"].read_text(encoding="utf-8")
    assert json.loads(files["summary"].read_text(encoding="utf-8"))["groups"][0]["preset"] == "p\ud800"
    assert rows_of(files["output"])[0]["id"] == "x\ud800"


def test_both_real_time_factors() -> None:
    run = Summary(rows=1, failed=0, truncated=0, audio_seconds=60.0, wall_seconds=6.0, processing_seconds=2.0)
    assert (speed(run)["rtfx"], speed(run)["rtfx_end_to_end"]) == (30.0, 10.0)
    assert run.line().endswith("60.0 s of audio in 6.0 s, RTFx 10.0 end to end, 30.0 by processing time")
    unmeasured = Summary(rows=1, failed=0, truncated=0, audio_seconds=60.0, wall_seconds=6.0)
    found = speed(unmeasured)
    assert (found["rtfx"], found["processing_seconds"], found["rtfx_end_to_end"]) == (None, None, 10.0)
    assert unmeasured.line().endswith("60.0 s of audio in 6.0 s, RTFx 10.0 end to end")
    assert speed(None) == {}


def test_a_lost_device_ends_the_command_with_its_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from arkfast.infer.stream import DeviceLost

    def lost(*_args: Any, **_options: Any) -> None:
        raise DeviceLost("the device failed")

    monkeypatch.setattr("arkfast.evaluate.command.transcribe_file", lost)
    source = write(tmp_path / "eval.jsonl", [{"id": "a", "audio": "a.wav", "text": "one"}])
    assert main(["--input", source, "--model_path", str(tmp_path), "--output", str(tmp_path / "out.jsonl")]) == 2
    assert capsys.readouterr().err.endswith("arkfast evaluate: error: the device failed\n")


def test_failed_rows_are_explained_on_the_screen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = [{"text": "a", "pred_text": None, "status": "error", "error": f"{i % 4}.wav:\n no such file"} for i in range(9)]
    assert main(["--input", write(tmp_path / "in.jsonl", [*perfect(1), *bad])]) == 1
    said = capsys.readouterr().err
    assert said.splitlines()[1:] == [f"  {i}.wav: no such file" for i in range(3)]


def test_normaliser_options_are_in_every_result_and_keep_other_figures_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"id": "a", "text": "so yes", "pred_text": "so [noise] uh yes", "language": "en"}]
    source, old = write(tmp_path / "in.jsonl", rows), tmp_path / "old.json"
    assert main(["--input", source, "--summary", str(old)]) == 0
    assert json.loads(old.read_text())["wer"] == 1.0
    files = {name: tmp_path / f"new.{name}" for name in ("summary", "markdown", "html")}
    flags = ["--normalizer_options", "tags,fillers", *(word for name, path in files.items() for word in (f"--{name}", str(path)))]
    capsys.readouterr()
    assert main(["--input", source, *flags]) == 0
    assert json.loads(files["summary"].read_text())["normalizer"]["options"] == ["tags", "fillers"]
    assert json.loads(files["summary"].read_text())["wer"] == 0.0
    for shown in (capsys.readouterr().out, files["markdown"].read_text(), files["html"].read_text()):
        assert "options tags, fillers" in shown
    baseline = json.loads(old.read_text()) | {"transcripts_sha256": None, "output": None, "output_sha256": None}
    old.write_text(json.dumps(baseline))
    assert main(["--input", source, *flags[:2], "--baseline", str(old)]) == 2
    assert re.search(r"was scored by normaliser basic \S+ \(\w+\), this by basic .*, options tags, fillers", capsys.readouterr().err)


def exit_code(words: list[str]) -> object:
    try:
        return main(words)
    except SystemExit as stopped:
        return stopped.code


@pytest.mark.parametrize(("flags", "message"), [
    (["--normalizer_options", "tag"], "expected one of prefix, tags"),
    (["--filler_words", "uh"], "--filler_words is of use with --normalizer_options fillers only"),
    (["--language", "chinse"], "--language 'chinse' is not known; did you mean chinese"),
    (["--language", "und"], "names no language"),
])  # fmt: skip
def test_wrong_options_and_languages_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str) -> None:
    source = write(tmp_path / "in.jsonl", perfect(1))
    assert exit_code([source, *flags]) == 2
    assert message in capsys.readouterr().err
    assert main([source, "--language", "日本語"]) == main([source, "--language", "bzj"]) == 0
