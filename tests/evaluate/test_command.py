"""``arkfast evaluate``: files, exit codes, and transcription first when a model is given."""

import json
from pathlib import Path
from typing import Any

import pytest

from arkfast.evaluate.command import main
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
    assert json.loads(summary.read_text())["wer"] == 4 / 9
    assert "WER" in capsys.readouterr().out


def test_one_bad_file_of_many_is_reported_and_costs_no_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [*perfect(39), {"id": "bad", "text": "two words", "pred_text": None, "status": "error", "error": "gone"}]
    source, summary = write(tmp_path / "in.jsonl", rows), tmp_path / "summary.json"
    assert main(["--input", source, "--summary", str(summary)]) == 1
    captured = capsys.readouterr()
    assert "1 of 40 rows were not scored" in captured.err
    assert "39 of 40" in captured.out
    scores = json.loads(summary.read_text())
    assert (scores["wer"], scores["failed"], scores["coverage"]) == (0.0, 1, 39 / 40)
    assert scores["wer_counting_failures_as_deletions"] == 2 / 80
    assert main(["--input", source, "--allow_failures", "true"]) == 0


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
    assert scores["rtfx"] > 0
    assert sum(row["wer_errors"] or 0 for row in scored) == scores["substitutions"] + scores["deletions"] + scores["insertions"] > 0
    assert len(rows_of(tmp_path / "scored.jsonl.transcripts.jsonl")) == 3
    # the transcripts can be scored again without the model
    assert main(["--input", str(tmp_path / "scored.jsonl.transcripts.jsonl"), "--summary", str(summary)]) == 1
    assert json.loads(summary.read_text())["wer"] == scores["wer"]
    assert "RTFx" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rows", "flags", "message"),
    [
        ([{"text": "a"}], [], "no row has pred_text"),
        ([{"pred_text": "a", "ref": "a"}], [], "--text_field"),
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
