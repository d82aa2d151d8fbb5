"""Two systems on the same rows, and the gate against an earlier evaluation: what is joined, what is refused, what fails."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arkfast.evaluate.baseline import read_baseline
from arkfast.evaluate.command import main
from arkfast.records import InputError


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def system(wrong: Callable[[int], bool], count: int = 200, language: str = "en") -> list[dict[str, Any]]:
    """Rows of four words, the last of them wrong where ``wrong`` says so."""
    return [
        {"id": f"{language}-{i}", "language": language, "text": "a b c d", "pred_text": "a b c x" if wrong(i) else "a b c d"}
        for i in range(count)
    ]


def evaluate(tmp_path: Path, rows: list[dict[str, Any]], *flags: str, name: str = "new") -> tuple[int, dict[str, Any]]:
    summary = tmp_path / f"{name}.json"
    code = main(["--input", write(tmp_path / f"{name}.in.jsonl", rows), "--summary", str(summary), "--preset", "p", *flags])
    return code, json.loads(summary.read_text()) if summary.exists() else {}


def test_a_known_difference_is_found_whatever_the_order_of_the_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours, theirs = system(lambda i: i % 10 == 0), system(lambda i: i % 5 == 0)
    other = write(tmp_path / "other.jsonl", [{"id": row["id"], "pred_text": row["pred_text"]} for row in theirs[::-1]])
    code, summary = evaluate(tmp_path, ours, "--compare", other)
    found = summary["comparison"]
    assert code == 0
    assert found["difference"] == pytest.approx((20 - 40) / 800)
    assert found["low"] < found["difference"] < found["high"] < 0
    assert found["p_value"] < 0.001
    assert (found["rows"], found["left_out"], found["rate_of_other"], found["metric"]) == (200, 0, 0.05, "wer")
    assert "WER -2.50 points (95 % interval -" in capsys.readouterr().out


def test_equal_systems_do_not_differ_and_groups_are_compared_too(tmp_path: Path) -> None:
    rows = system(lambda i: i % 4 == 0) + system(lambda i: i % 3 == 0, count=50, language="de")
    _, summary = evaluate(tmp_path, rows, "--compare", write(tmp_path / "other.jsonl", rows))
    found = summary["comparison"]
    assert (found["difference"], found["low"], found["high"], found["p_value"]) == (0, 0, 0, 1)
    assert [(g["preset"], g["language"], g["p_value"]) for g in found["groups"]] == [("p", "en", 1), ("p", "de", 1)]


def test_rows_that_one_system_failed_on_are_left_out_of_the_pairs(tmp_path: Path) -> None:
    ours, theirs = system(lambda i: i < 4), system(lambda i: False)
    ours[0]["pred_text"] = theirs[9]["pred_text"] = None
    _, summary = evaluate(tmp_path, ours, "--compare", write(tmp_path / "other.jsonl", theirs), "--allow_failures")
    found = summary["comparison"]
    assert (found["rows"], found["left_out"]) == (198, 2)
    assert found["difference"] == pytest.approx(3 / (198 * 4))


def without(rows: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != key} for row in rows]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:-1], "other.jsonl: has no row with id en-9; compare systems on the same rows"),
        (lambda rows: [*rows, rows[0] | {"id": "more"}], "the input: has no row with id more"),
        (lambda rows: [row | {"id": f"x{row['id']}"} for row in rows], "en-0, en-1, en-2 and 7 more"),
        (lambda rows: [*rows, rows[3]], "other.jsonl:11: id 'en-3' stands already at "),
        (lambda rows: without(rows, "id"), "other.jsonl:1: has no id"),
        (lambda rows: [*rows[:-1], rows[-1] | {"text": "e f"}], ":10: id 'en-9' has the reference 'e f', the input has 'a b c d'"),
        (lambda rows: [row | {"pred_text": None} for row in rows], "no row that both systems have scored"),
    ],
)
def test_rows_that_do_not_match_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]], message: str
) -> None:
    rows = system(lambda i: False, count=10)
    code, summary = evaluate(tmp_path, rows, "--compare", write(tmp_path / "other.jsonl", change(rows)))
    assert (code, summary) == (2, {})
    assert message in capsys.readouterr().err


def test_the_gate_pairs_with_the_baselines_own_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = str(tmp_path / "old.scored.jsonl")
    evaluate(tmp_path, system(lambda i: i < 20), "--output", kept, name="old")
    baseline = ["--baseline", str(tmp_path / "old.json")]
    code, summary = evaluate(tmp_path, system(lambda i: i < 22), *baseline, "--max_regression", "0.1")
    captured = capsys.readouterr()
    assert code == 1
    assert "worse than" in captured.err
    assert "WORSE  all rows: WER 2.75 % against 2.50 %, +0.25 points (95 % interval +0.00 to +0.62)" in captured.out
    gate = summary["gate"]
    assert (gate["paired"], gate["passed"], gate["max_regression_points"]) == (True, False, 0.1)
    assert gate["entries"][0]["difference"] == pytest.approx(2 / 800)
    assert gate["entries"][0]["p_value"] == pytest.approx(0.5, abs=0.02)  # two coins fall alike half of the time
    assert evaluate(tmp_path, system(lambda i: i < 22), *baseline, "--max-regression", "0.25")[0] == 0
    assert evaluate(tmp_path, system(lambda i: i < 5), *baseline)[0] == 0


def test_without_its_rows_the_baselines_counts_are_compared_unpaired(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, old = evaluate(tmp_path, system(lambda i: i < 20), name="old")
    code, summary = evaluate(tmp_path, system(lambda i: i < 24), "--baseline", str(tmp_path / "old.json"))
    assert code == 1
    entry = summary["gate"]["entries"][0]
    assert (summary["gate"]["paired"], entry["p_value"], old["counts"]) == (False, None, [[0, 4, 180], [1, 4, 20]])
    assert entry["difference"] == pytest.approx(4 / 800)
    assert entry["low"] < 0 < entry["high"]
    assert "unpaired: its rows were not kept" in capsys.readouterr().out


def test_a_run_that_writes_over_the_baselines_rows_is_not_compared_with_itself(tmp_path: Path) -> None:
    kept = str(tmp_path / "scored.jsonl")
    evaluate(tmp_path, system(lambda i: i < 20), "--output", kept, name="old")
    flags = ["--output", kept, "--baseline", str(tmp_path / "old.json")]
    code, first = evaluate(tmp_path, system(lambda i: i < 40), *flags)
    assert (code, first["gate"]["paired"]) == (1, True), "read before it is written over"
    code, second = evaluate(tmp_path, system(lambda i: i < 40), *flags)
    assert (code, second["gate"]["paired"]) == (1, False)
    assert second["gate"]["pairing"].endswith("scored.jsonl has been changed since")


def test_a_baseline_pairs_with_the_rows_given_for_comparison(tmp_path: Path) -> None:
    kept = tmp_path / "scored.jsonl"
    evaluate(tmp_path, system(lambda i: i < 20), "--output", str(kept), name="old")
    moved = kept.rename(tmp_path / "moved.jsonl")
    _, summary = evaluate(tmp_path, system(lambda i: i < 20), "--baseline", str(tmp_path / "old.json"), "--compare", str(moved))
    assert summary["gate"]["paired"]


@pytest.mark.parametrize("normalizer", ["basic", "none"])
def test_a_baseline_pairs_with_the_file_that_it_scored(tmp_path: Path, normalizer: str) -> None:
    """No --output was asked for then; pairs are scored anew, so their normaliser may be another."""
    evaluate(tmp_path, system(lambda i: i < 20), name="old")
    scored = str(tmp_path / "old.in.jsonl")
    flags = ["--baseline", str(tmp_path / "old.json"), "--compare", scored, "--normalizer", normalizer]
    _, summary = evaluate(tmp_path, system(lambda i: i < 20), *flags)
    assert (summary["gate"]["paired"], summary["gate"]["pairing"]) == (True, f"its rows are those of {scored}")


def test_another_file_than_the_baselines_is_said_to_be_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = system(lambda i: i < 20)
    evaluate(tmp_path, rows, name="old")
    other = write(tmp_path / "other.jsonl", rows[::-1])
    flags = ["--baseline", str(tmp_path / "old.json"), "--compare", other]
    _, summary = evaluate(tmp_path, rows, *flags)
    said = f"its rows were not kept, and {other} is neither the file that it scored nor the one that it wrote"
    assert (summary["gate"]["paired"], summary["gate"]["pairing"]) == (False, said)
    assert evaluate(tmp_path, rows, *flags, "--normalizer", "none", name="third")[0] == 2
    assert said in capsys.readouterr().err


def test_a_baseline_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    _, old = evaluate(tmp_path, system(lambda i: i < 20), name="old")
    (tmp_path / "old.json").write_text(json.dumps({name: value for name, value in old.items() if name != "transcripts_sha256"}))
    assert evaluate(tmp_path, system(lambda i: i < 20), "--baseline", str(tmp_path / "old.json"))[0] == 0


@pytest.mark.parametrize("kept", [True, False], ids=["paired", "unpaired"])
def test_a_file_under_another_name_is_matched_by_its_languages(tmp_path: Path, capsys: pytest.CaptureFixture[str], kept: bool) -> None:
    """A preset is called after its file; where each side has one, the name decides nothing."""
    rows = system(lambda i: i < 20) + system(lambda i: i < 5, count=20, language="zh")
    output = ["--output", str(tmp_path / "old.out.jsonl")] if kept else []
    assert main(["--input", write(tmp_path / "old.jsonl", rows), "--summary", str(tmp_path / "old.json"), *output]) == 0
    new, baseline = write(tmp_path / "new.jsonl", rows), ["--baseline", str(tmp_path / "old.json")]
    assert main(["--input", new, *baseline, "--summary", str(tmp_path / "new.json")]) == 0
    gate = json.loads((tmp_path / "new.json").read_text())["gate"]
    assert gate["paired"] == kept
    assert [(e["preset"], e["language"], e["difference"]) for e in gate["entries"]] == [(None, None, 0), ("new", "en", 0), ("new", "zh", 0)]
    several = write(tmp_path / "several.jsonl", [row | {"preset": f"p{i % 2}"} for i, row in enumerate(rows)])
    assert main(["--input", several, *baseline]) == 2
    assert "has a group (preset old, language en) that this evaluation lacks" in capsys.readouterr().err


def test_each_group_is_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    english = system(lambda i: i < 20)
    evaluate(tmp_path, english + system(lambda i: i < 5, count=20, language="de"), name="old")
    worse = system(lambda i: i < 10) + system(lambda i: i < 9, count=20, language="de")
    code, summary = evaluate(tmp_path, worse, "--baseline", str(tmp_path / "old.json"))
    assert code == 1
    points = [(e["language"], round(100 * e["difference"], 2)) for e in summary["gate"]["entries"]]
    assert points == [(None, round(-100 * 6 / 880, 2)), ("en", -1.25), ("de", 5.0)]
    assert "WORSE  p de" in capsys.readouterr().out


def test_failures_do_not_hide_a_regression(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(tmp_path, system(lambda i: i < 20), name="old")
    rows = system(lambda i: i < 20)
    for row in rows[:20]:  # the hard rows fail: the rate over the others is 0
        row["pred_text"] = None
    code, summary = evaluate(tmp_path, rows, "--baseline", str(tmp_path / "old.json"), "--allow_failures")
    assert code == 1
    entry = summary["gate"]["entries"][0]
    assert (entry["rate"], entry["difference"]) == (0, -0.025)
    assert entry["difference_with_failures"] == pytest.approx(0.1 - 0.025)
    assert "+7.50 points when failures count as deletions" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rows", "flags", "message"),
    [
        (system(lambda i: False, count=9), [], "has wer of 10 rows where this evaluation has wer of 9"),
        (system(lambda i: False, count=10), ["--unit", "char"], "has wer of 10 rows where this evaluation has cer of 10"),
        (system(lambda i: False, count=10), ["--normalizer", "none"], "was scored by normaliser basic"),
    ],
)
def test_what_cannot_be_compared_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: list[dict[str, Any]], flags: list[str], message: str
) -> None:
    evaluate(tmp_path, system(lambda i: False, count=10), name="old")
    assert evaluate(tmp_path, rows, *flags, "--baseline", str(tmp_path / "old.json"))[0] == 2
    assert message in capsys.readouterr().err


def spoiled(summary: dict[str, Any], where: str, value: Any) -> dict[str, Any]:
    *path, name = where.split(".")
    target = summary
    for key in path:
        target = target[key] if isinstance(target, dict) else target[int(key)]
    target[name] = value
    return summary


@pytest.mark.parametrize(
    ("where", "value", "named"),
    [
        ("output", 5, "output"),
        ("output_sha256", ["x"], "output_sha256"),
        ("transcripts_sha256", 5, "transcripts_sha256"),
        ("normalizer", "x", "normalizer"),
        ("normalizer", {"name": "basic"}, "normalizer"),
        ("counts", [[0, 4, 1], [1, 4]], "counts"),
        ("counts", [[0, 4, 1.5]], "counts"),
        ("counts", [], "counts"),
        ("rate", None, "rate"),
        ("groups.0.rate", "0.1", r"groups\[0\]\.rate"),
        ("groups.0.language", 7, r"groups\[0\]\.language"),
        ("groups.0.utterances", True, r"groups\[0\]\.utterances"),
    ],
)
def test_a_baseline_with_a_field_of_another_kind_is_named(tmp_path: Path, where: str, value: Any, named: str) -> None:
    _, old = evaluate(tmp_path, system(lambda i: i < 2, count=10), name="old")
    (tmp_path / "old.json").write_text(json.dumps(spoiled(old, where, value)))
    with pytest.raises(InputError, match=rf"old\.json: {named}: not what arkfast evaluate --summary writes there"):
        read_baseline(tmp_path / "old.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ('{"wer": 0.1}', "is no summary of schema"),
        ('{"schema": 1, "groups": [3]}', "lacks counts, language, metric"),
        (None, "cannot be read"),
    ],
)
def test_a_bad_baseline_is_named_before_anything_is_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, message: str
) -> None:
    if text is not None:
        (tmp_path / "old.json").write_text(text)
    assert evaluate(tmp_path, system(lambda i: False, count=2), "--baseline", str(tmp_path / "old.json")) == (2, {})
    assert message in capsys.readouterr().err


def test_an_output_never_goes_over_what_is_compared_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = system(lambda i: False, count=2)
    other = write(tmp_path / "other.jsonl", rows)
    assert evaluate(tmp_path, rows, "--compare", other, "--output", other)[0] == 2
    assert "is what is compared with too" in capsys.readouterr().err
    assert len((tmp_path / "other.jsonl").read_text().splitlines()) == 2
