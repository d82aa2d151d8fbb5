"""The page over several evaluations: groups side by side, counts added up, no rate that nobody has scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from arkfast.evaluate import score_rows
from arkfast.evaluate.overview import merge, write_page
from arkfast.evaluate.summary import summarise
from arkfast.records import InputError

SETS: dict[str, list[dict[str, Any]]] = {
    "clean": [{"text": "a b", "pred_text": "a c", "language": "en"}, {"text": "a", "pred_text": None, "status": "error", "language": "en"}],
    "net": [{"text": "你好", "pred_text": "你好", "language": "zh"}],
}


def evaluated(folder: Path, **more: Any) -> tuple[list[dict[str, Any]], list[Path]]:
    summaries, outputs = [], []
    for name, rows in SETS.items():
        scores, scored = score_rows([{**row, "preset": name} for row in rows])
        outputs.append(folder / f"{name}.jsonl")
        outputs[-1].write_text("".join(json.dumps(row) + "\n" for row in scored))
        summaries.append(summarise(scores, **more))
    return summaries, outputs


def test_counts_are_added_and_rates_stay_apart(tmp_path: Path) -> None:
    summaries, _ = evaluated(tmp_path, model_path="/m/ark", audio_seconds=30.0, processing_seconds=2.0, wall_seconds=3.0)
    summaries[1] |= {"audio_seconds": 10.0, "processing_seconds": 3.0, "wall_seconds": 5.0}
    merged = merge(summaries)
    assert (merged["utterances"], merged["scored"], merged["failed"], merged["coverage"]) == (3, 2, 1, 2 / 3)
    assert [group["preset"] for group in merged["groups"]] == ["clean", "net"]
    assert "rate" not in merged
    assert (merged["rtfx"], merged["rtfx_end_to_end"]) == (40 / 5, 40 / 8)
    assert merged["normalizer"] == summaries[0]["normalizer"]
    summaries[1] |= {"model_path": "/m/other", "processing_seconds": None}
    merged = merge(summaries)
    assert "model_path" not in merged  # not the same for both
    assert "rtfx" not in merged


def test_the_page_shows_all_sets(tmp_path: Path) -> None:
    path = tmp_path / "all.html"
    write_page(path, *evaluated(tmp_path))
    source = path.read_text()
    assert "2 test sets, from CER 0.00 % (net zh) to WER 50.00 % (clean en)" in source
    assert '<p class="figure">0.00 to 50.00 % <small>over 2 test sets</small></p>' in source
    assert "<h1>2 test sets</h1>" in source
    assert "left out of the rates" in source
    assert list(tmp_path.glob(".*")) == []
    with pytest.raises(InputError, match="cannot be written"):
        write_page(path / "all.html", *evaluated(tmp_path))  # a file is no folder
    assert path.read_text() == source
    write_page(tmp_path / "absent" / "all.html", *evaluated(tmp_path))
    assert (tmp_path / "absent" / "all.html").read_text() == source


def test_players_find_each_sets_own_recordings(tmp_path: Path) -> None:
    """Every set's relative paths start from its own manifest."""
    summaries, outputs = [], []
    for name in ("clean", "net"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.wav").touch()
        scores, scored = score_rows([{"id": name, "audio": "a.wav", "text": "a", "pred_text": "b", "preset": name}])
        outputs.append(tmp_path / f"{name}_result.jsonl")
        outputs[-1].write_text("".join(json.dumps(row) + "\n" for row in scored))
        summaries.append(summarise(scores, input=str(tmp_path / name / "test.jsonl")))
    write_page(tmp_path / "all.html", summaries, outputs)
    source = (tmp_path / "all.html").read_text()
    assert 'src="clean/a.wav"' in source
    assert 'src="net/a.wav"' in source
