"""Transcription with a tiny random model: every row accounted for, each transcript its clip's own, and no file lost."""

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny_transcriptions import SECONDS, TOKENS, rows_of
from transformers import AutoTokenizer

from arkfast import Transcriber
from arkfast.audio import LogMel
from arkfast.data import collate, extract
from arkfast.engine import Engine
from arkfast.infer.command import TranscribeConfig, _items
from arkfast.infer.result import OUTPUT_FIELDS
from arkfast.models import load_model
from arkfast.models.arkasr.prompt import Prompt
from arkfast.records import AllowedTokens, Utterance
from arkfast.testing import synthetic_speech


def test_every_line_has_one_row_and_good_ones_equal_those_transcribed_alone(
    transcribe: Callable[..., tuple[int, Path]], model: Path, audio: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines: list[Any] = [
        {"audio": str(audio / "0.wav"), "text": "zero", "language": "en", "speaker": 7},
        {"audio": str(audio / "gone.wav"), "text": "gone"},
        {"audio": str(audio / "1.wav"), "id": "one"},
        '{"audio": "half',
        {"audio": str(audio / "nan.wav"), "text": "nan"},
        {"audio": str(audio / "2.wav"), "begin_time": 0.5, "end_time": 0.25, "text": "backwards", "id": "b"},
        {"audio": str(audio / "3.wav"), "begin_time": 0.5, "end_time": 1.5},
        {"audio": str(audio / "empty.wav")},
        {"text": "no audio at all"},
        "[1, 2]",
        {"audio": str(audio / "text.wav")},
        {"audio": str(audio / "3.wav"), "begin_time": -1, "end_time": None},
        {"audio": str(audio / "2.wav"), "end_time": 60},
        {"audio": str(audio / "4.wav")},
    ]
    code, output = transcribe(lines, "--batch_size", "3")
    rows = rows_of(output)
    assert code == 1
    assert len(rows) == len(lines)
    good = [0, 2, 6, 11, 13]
    assert [i for i, row in enumerate(rows) if row["status"] == "ok"] == good
    for i, row in enumerate(rows):
        if i not in good:
            assert (row["status"], row["pred_text"], row["pred_text_raw"], row["finish_reason"]) == ("error", None, None, None)
            assert f"in.jsonl:{i + 1}:" in row["error"]
    assert [rows[i]["text"] for i in (1, 4, 5, 8)] == ["gone", "nan", "backwards", "no audio at all"]
    assert (rows[5]["id"], rows[5]["line"]) == ("b", 6)
    assert (rows[5]["begin_time"], rows[5]["end_time"]) == (0.5, 0.25)
    assert (rows[3]["line"], rows[3]["raw_line"], rows[3]["audio"]) == (4, '{"audio": "half', None)
    assert (rows[0]["speaker"], rows[0]["language"], rows[0]["begin_time"], rows[0]["end_time"]) == (7, "en", -1, -1)
    assert (rows[2]["id"], rows[13]["id"]) == ("one", "in.jsonl:14")
    assert (rows[6]["begin_time"], rows[6]["end_time"], rows[11]["end_time"]) == (0.5, 1.5, -1)
    assert "5 of 14 rows transcribed, 9 failed" in capsys.readouterr().out

    alone = Transcriber(model, device="cpu", batch_size=1, max_new_tokens=int(TOKENS))
    texts = {rows[i]["pred_text_raw"] for i in good}
    assert len(texts) > 1, "with equal transcripts the comparison below would show nothing"
    for i in good:
        (row,) = alone([Utterance(id="x", audio=str(audio / Path(rows[i]["audio"]).name), **segment_of(rows[i]))])
        assert {k: row[k] for k in ("pred_text", "pred_text_raw", "finish_reason")} == {
            k: rows[i][k] for k in ("pred_text", "pred_text_raw", "finish_reason")
        }


def segment_of(row: dict[str, Any]) -> dict[str, float | None]:
    return {"begin": None if row["begin_time"] < 0 else row["begin_time"], "end": None if row["end_time"] < 0 else row["end_time"]}


def test_stale_fields_of_the_input_never_reach_the_output(transcribe: Callable[..., tuple[int, Path]], audio: Path) -> None:
    stale = {"pred_text": "OLD VALUE", "pred_text_raw": "OLD VALUE", "status": "error", "error": "OLD VALUE", "finish_reason": "OLD VALUE"}
    code, output = transcribe([{"audio": str(audio / "0.wav")} | stale, {"audio": str(audio / "gone.wav")} | stale | {"status": "ok"}])
    good, bad = rows_of(output)
    assert code == 1
    assert "OLD VALUE" not in json.dumps([good, bad])
    always = {
        "audio", "text", "pred_text", "pred_text_raw", "begin_time", "end_time", "id", "language", "status", "finish_reason",
        "audio_seconds",
    }  # fmt: skip
    assert list(good) == [name for name in OUTPUT_FIELDS if name in always]
    assert (good["status"], bad["status"], bad["pred_text"]) == ("ok", "error", None)


def test_allow_failures_and_renamed_fields(transcribe: Callable[..., tuple[int, Path]], audio: Path) -> None:
    lines = [{"wav": str(audio / "1.wav"), "ref": "hi", "from": 0.25, "to": 0.75}, {"wav": str(audio / "gone.wav"), "ref": "x"}]
    flags = ["--audio-field", "wav", "--text-field", "ref", "--begin-field", "from", "--end-field", "to"]
    code, output = transcribe(lines, *flags, "--allow_failures", "true")
    good, bad = rows_of(output)
    assert code == 0
    assert (good["audio"], good["text"], good["begin_time"], good["end_time"]) == (str(audio / "1.wav"), "hi", 0.25, 0.75)
    assert (bad["status"], bad["text"]) == ("error", "x")


def test_a_transcript_that_ends_is_cut_before_its_end_token(
    transcribe: Callable[..., tuple[int, Path]], model: Path, audio: Path, tmp_path: Path
) -> None:
    # The random model never ends by itself, so one of the ids that it writes is made the end.
    ids = greedy_ids(model, audio / "1.wav")
    end = next(i for i in range(3, len(ids)) if ids[i] not in ids[:i])
    stopping = shutil.copytree(model, tmp_path / "stopping")
    config = json.loads((stopping / "config.json").read_text())
    (stopping / "config.json").write_text(json.dumps(config | {"eos_token_id": ids[end]}))
    code, output = transcribe([{"audio": str(audio / "1.wav")}], "--model_path", str(stopping))
    (row,) = rows_of(output)
    assert (code, row["finish_reason"]) == (0, "stop")
    assert row["pred_text_raw"] == AutoTokenizer.from_pretrained(model).decode(ids[:end])


def greedy_ids(model: Path, recording: Path) -> list[int]:
    tokenizer, loaded = AutoTokenizer.from_pretrained(model), load_model(model)
    utterance = Utterance(id="x", audio=str(recording))
    batch = collate([utterance], [extract(utterance, LogMel())], Prompt.asr(tokenizer))
    engine = Engine(loaded, allowed=AllowedTokens.asr(tokenizer, loaded.config))
    return engine.rollout(batch, max_new_tokens=int(TOKENS)).tokens[0].tolist()


def test_limits_are_fields_or_errors(transcribe: Callable[..., tuple[int, Path]], audio: Path) -> None:
    code, output = transcribe(
        [{"audio": str(audio / "0.wav")}, {"audio": str(audio / "3.wav")}],
        "--max_audio_seconds",
        "2",
        "--max_new_tokens",
        "1",
        "--vad",
        "none",
    )
    short, long = rows_of(output)
    assert code == 1
    assert (short["status"], short["finish_reason"]) == ("ok", "length")
    assert long["status"] == "error"
    assert "2 s" in long["error"]


def test_workers_change_nothing(transcribe: Callable[..., tuple[int, Path]], audio: Path) -> None:
    lines = [{"audio": str(audio / name)} for name in ("0.wav", "text.wav", "1.wav", "gone.wav", "2.wav", "empty.wav", "4.wav")]
    found = []
    for workers in ("0", "2"):
        code, output = transcribe(lines, "--num_workers", workers, "--batch_size", "2")
        assert code == 1
        found.append(rows_of(output))
    assert found[0] == found[1]
    assert [row["status"] for row in found[0]] == ["ok", "error", "ok", "error", "ok", "error", "ok"]


def test_a_transcript_cannot_be_longer_than_its_audio_allows(transcribe: Callable[..., tuple[int, Path]], audio: Path) -> None:
    """0.4 s at 1 token a second, plus 32; the random model goes on to its limit."""
    code, output = transcribe(
        [{"audio": str(audio / "0.wav")}], "--max_new_tokens", "60", "--max_tokens_per_second", "1", "--cut_loops", "false"
    )
    (limited,) = rows_of(output)
    assert code == 0
    code, output = transcribe(
        [{"audio": str(audio / "0.wav")}], "--max_new_tokens", "60", "--max_tokens_per_second", "0", "--cut_loops", "false"
    )
    (free,) = rows_of(output)
    assert code == 0
    assert limited["finish_reason"] == "length"
    assert len(limited["pred_text_raw"]) < len(free["pred_text_raw"])
    assert free["pred_text_raw"].startswith(limited["pred_text_raw"].rstrip("�"))


def test_a_loop_is_cut_and_said(tmp_path: Path, model: Path, audio: Path) -> None:
    """A head of zeros says the lowest id for ever."""
    from safetensors.torch import load_file, save_file

    looping = shutil.copytree(model, tmp_path / "looping")
    weights = load_file(looping / "model.safetensors")
    weights["model.norm.weight"] *= 0
    save_file(weights, looping / "model.safetensors", metadata={"format": "pt"})
    utterance = Utterance(id="a", audio=str(audio / "0.wav"))
    (cut,) = Transcriber(looping, device="cpu", max_new_tokens=80, max_tokens_per_second=0)([utterance])
    (whole,) = Transcriber(looping, device="cpu", max_new_tokens=80, max_tokens_per_second=0, cut_loops=False)([utterance])
    assert (cut["finish_reason"], len(cut["pred_text_raw"])) == ("repetition", 24)
    assert (whole["finish_reason"], len(whole["pred_text_raw"])) == ("length", 80)


def test_samples_in_memory(model: Path) -> None:
    transcriber = Transcriber(model, device="cpu", max_new_tokens=8)
    samples = synthetic_speech(0.8, seed=5)
    good, bad = transcriber(
        [Utterance(id="a", audio=samples, text="hi"), Utterance(id="b", audio=np.full(16000, np.inf, dtype=np.float32))]
    )
    assert (good["id"], good["audio"], good["text"], good["status"]) == ("a", None, "hi", "ok")
    assert (bad["id"], bad["status"]) == ("b", "error")
    assert bad["error"].startswith("b: ")


@pytest.mark.parametrize("begun", [0, 1, 3])
def test_a_further_call_ends_the_iterator_before_it(model: Path, begun: int) -> None:
    """The second gives all its rows, wherever the first stood, and the first says why it gives none any more."""
    transcriber = Transcriber(model, device="cpu", max_new_tokens=8, batch_size=1)
    clips = [Utterance(id=str(i), audio=synthetic_speech(seconds, seed=i)) for i, seconds in enumerate(SECONDS)]
    want = list(transcriber(clips))
    first = transcriber(clips)
    assert list(itertools.islice(first, begun)) == want[:begun]
    second = transcriber(clips)
    with pytest.raises(RuntimeError, match="ended by a further call; take all its rows before the next call"):
        next(first)
    assert [next(second)] == want[:1]
    with pytest.raises(StopIteration):
        next(first)
    assert list(second) == want[1:]
    assert list(transcriber(clips)) == want


def test_processing_time_is_that_of_features_and_steps(model: Path, audio: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that goes on by 1 whenever it is looked at, each of them takes 1, and nothing else is counted."""
    from arkfast.infer import transcriber

    steps, ticks, step = itertools.count(), itertools.count(), Engine.step

    def counted(self: Engine) -> Any:
        next(steps)
        return step(self)

    monkeypatch.setattr(Engine, "step", counted)
    monkeypatch.setattr(transcriber, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    timed = Transcriber(model, device="cpu", max_new_tokens=8, batch_size=2)
    rows = list(timed([Utterance(id=name, audio=str(audio / f"{name}.wav")) for name in ("0", "gone", "1", "2")]))
    assert [row["status"] for row in rows] == ["ok", "error", "ok", "ok"]
    assert timed.processing_seconds == next(steps) + 3


def test_scores_that_are_not_numbers_are_a_failed_row_not_a_transcript(tmp_path: Path, model: Path, audio: Path) -> None:
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    (row,) = Transcriber(broken, max_new_tokens=5)([Utterance(id="a", audio=str(audio / "0.wav"))])
    assert row["status"] == "error"
    assert row["pred_text"] is None
    assert "not numbers" in row["error"]


def test_bad_lines_of_files_of_one_name_keep_their_folders_apart(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "t.jsonl").write_text('{"audio": "x.wav"}\n{"audio": 3}\n')
    items = list(_items(tmp_path / "{a,b}" / "t.jsonl", TranscribeConfig(input=tmp_path, output=tmp_path, model_path=tmp_path)))
    rows = [item if isinstance(item, Utterance) else item.utterance for item in items]
    assert [row.id for row in rows] == ["a/t.jsonl:1", "a/t.jsonl:2", "b/t.jsonl:1", "b/t.jsonl:2"]
    assert rows[3].where == str(tmp_path / "b" / "t.jsonl:2")


@pytest.mark.parametrize("workers", ["0", "1"])
def test_channels_and_doubts_stand_in_the_rows(
    transcribe: Callable[..., tuple[int, Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: str
) -> None:
    import soundfile

    left, right = synthetic_speech(1.0, seed=1), synthetic_speech(1.0, seed=2)
    for name, samples in {
        "call": np.stack([left, right], axis=1),
        "left": left,
        "right": right,
        "mix": (left + right) / 2,
        "turned": np.stack([left, -left], axis=1),
        "silent": np.zeros(16000),
        "unscaled": 32768 * left,
        "loud": 20 * left,
    }.items():
        soundfile.write(tmp_path / f"{name}.wav", samples, 16000, subtype="FLOAT")
    lines = [
        {"audio": "call.wav", "channel": 0},
        {"audio": "call.wav"},
        {"audio": "call.wav", "channel": "average"},
        {"audio": "left.wav", "channel": 0},
        {"audio": "right.wav", "channel": "average"},
        {"audio": "mix.wav", "channel": "average"},
        {"audio": "call.wav", "channel": 2},
        {"audio": "turned.wav", "channel": "average"},
        {"audio": "silent.wav", "channel": "average"},
        {"audio": "unscaled.wav", "channel": "average"},
        {"audio": "loud.wav", "channel": "average"},
        {"audio": "left.wav", "begin_time": 0.3, "end_time": 0.35, "channel": "average"},
    ]
    code, output = transcribe(lines, "--channel", "1", "--num_workers", workers)
    assert code == 1
    rows = rows_of(output)
    texts = [row["pred_text_raw"] for row in rows]
    assert (texts[0], texts[1], texts[2]) == (texts[3], texts[4], texts[5]), "each channel is its talker"
    assert len(set(texts[:3])) == 3
    used = [row.get("audio_used") for row in rows]
    assert used[:3] == [{"channel": channel, "channels": 2} for channel in (0, 1, "average")]
    assert used[3:] == [None] * 9
    assert [row.get("channel") for row in rows[:4]] == [0, None, "average", 0], "the input's own field passes through"
    assert [row["status"] for row in rows] == ["ok"] * 6 + ["error", "error", "ok", "error", "ok", "ok"]
    assert "call.wav: there is no channel 2: the recording has 2 channels" in rows[6]["error"]
    assert "turned.wav: the channels cancel one another" in rows[7]["error"]
    assert "unscaled.wav: samples reach" in rows[9]["error"]
    doubts = {i: row["warnings"] for i, row in enumerate(rows) if "warnings" in row}
    assert doubts.keys() == {8, 10, 11}
    assert doubts[8] == ["digital silence: every sample is 0"]
    assert doubts[10][0].endswith("full scale is 1: are they scaled?")
    assert doubts[11] == ["a clip of 0.050 s is too short for a word"]
    said = capsys.readouterr().out
    assert said.startswith("9 of 12 rows transcribed, 3 failed, ")
    assert ", 3 with warnings, " in said
