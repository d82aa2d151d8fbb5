"""The journal alone: what is taken from it, what is not, and what is done about damage."""

from __future__ import annotations

import os
from dataclasses import MISSING, fields, replace
from pathlib import Path

import pytest

from arkfast.infer.journal import DECIDES_NOTHING, Journal, deciding, key_of
from arkfast.infer.options import TranscribeOptions
from arkfast.infer.result import Result
from arkfast.records import InputError, JsonObject, Utterance

DECIDES: JsonObject = {"model": "a", "max_new_tokens": 256, "rate": 0.1}
ROWS = 4


def utterance(row: int = 0) -> Utterance:
    return Utterance(id=f"u{row}", audio=f"/nowhere/{row}.wav", where=f"in.jsonl:{row + 1}")


def result(row: int, text: str | None = "text") -> Result:
    if text is None:
        return Result(utterance=utterance(row), error=f"in.jsonl:{row + 1}: no such file")
    return Result(utterance=utterance(row), text_raw=text, finish_reason="stop", seconds=1.5)


def write(path: Path, results: dict[int, Result], decides: JsonObject = DECIDES) -> None:
    journal = Journal(path, rows=ROWS, decides=decides)
    for row, found in results.items():
        journal.add(row, key_of(found.utterance), found)
    journal.close()


def found(path: Path, decides: JsonObject = DECIDES, *, retry_failed: bool = False, resume: bool = True) -> dict[int, str | None]:
    """Row → text, or None for an error, of what a further run takes."""
    journal = Journal(path, rows=ROWS, decides=decides, retry_failed=retry_failed, resume=resume)
    taken = {row: journal.find(row, key_of(utterance(row)), utterance(row)) for row in range(ROWS)}
    assert journal.held == sum(found is not None for found in taken.values()) == sum(map(journal.holds, range(ROWS)))
    journal.close()
    return {row: found.text_raw for row, found in taken.items() if found is not None}


def test_every_field_of_a_result_comes_back(tmp_path: Path) -> None:
    given = {
        "utterance": utterance(), "text_raw": "naïve 你好 \ud800\u2028", "finish_reason": "length", "seconds": 0.1 + 0.2,
        "warnings": ("one", "two"), "used": {"channel": [1, 2], "channels": 3},
        "words": ({"word": "naïve", "start": 0.1, "end": 0.2},), "words_error": "the rest has no times",
        "scores": {"no_speech": True, "confidence": 0.25}, "vad": "energy",
        "segments": ({"start": 0.0, "end": 1.5, "text": "a"}, {"start": 1.5, "end": 2.1, "text": None, "error": "bad"}),
    }  # fmt: skip
    full = Result(**given)
    plain = {f.name for f in fields(Result) if getattr(full, f.name) == f.default and f.default_factory is MISSING}
    assert plain == {"error"}, "a field of a result that this test leaves at its default is not tried"
    failed = Result(utterance=utterance(1), error="in.jsonl:2: bad", warnings=("doubtful",))
    write(tmp_path / "j", {0: full, 1: failed})
    journal = Journal(tmp_path / "j", rows=ROWS, decides=DECIDES)
    assert journal.find(0, key_of(utterance()), utterance()) == full
    assert journal.find(1, key_of(utterance(1)), utterance(1)) == failed
    journal.close()


def test_the_last_result_counts_and_failed_ones_are_done_anew_on_request(tmp_path: Path) -> None:
    path = tmp_path / "j"
    write(path, {0: result(0, "old"), 1: result(1, None), 2: result(2, None)})
    write(path, {0: result(0, "new"), 2: result(2, "mended")})
    assert found(path) == {0: "new", 1: None, 2: "mended"}
    assert found(path, retry_failed=True) == {0: "new", 2: "mended"}


def test_clips_of_a_row_are_known_until_the_row_is(tmp_path: Path) -> None:
    path, key = tmp_path / "j", key_of(utterance(1))
    journal = Journal(path, rows=ROWS, decides=DECIDES)
    for name, text in (("a", "first"), ("b", None)):
        journal.add(1, key, result(1, text), segment=name)
    journal.close()

    def clips(*, retry_failed: bool = False) -> list[str | None]:
        again = Journal(path, rows=ROWS, decides=DECIDES, retry_failed=retry_failed)
        found = [again.find(1, key, utterance(1), segment=name) for name in ("a", "b", "c")]
        assert again.find(1, "another", utterance(1), segment="a") is None
        assert again.find(0, key, utterance(0), segment="a") is None
        again.close()
        return [None if clip is None else clip.text_raw or "failed" for clip in found]

    assert clips() == ["first", "failed", None]
    write(path, {1: result(1, None)})
    assert clips() == ["first", "failed", None], "of a row that failed because one of its clips did"
    assert clips(retry_failed=True) == ["first", None, None]
    write(path, {1: result(1, "whole")})
    assert clips() == [None, None, None]


@pytest.mark.parametrize("cut", [2, 5, 40])
def test_a_torn_line_costs_its_own_result(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "j"
    write(path, {0: result(0, "a"), 1: result(1, "b")})
    path.write_bytes(path.read_bytes()[:-cut])
    assert found(path) == {0: "a"}
    write(path, {2: result(2, "c")})
    assert found(path) == {0: "a", 2: "c"}, "what is written after a torn line is whole"


def test_a_line_that_lacks_its_end_alone_is_mended(tmp_path: Path) -> None:
    path = tmp_path / "j"
    write(path, {0: result(0, "a"), 1: result(1, "b")})
    path.write_bytes(path.read_bytes()[:-1])
    write(path, {2: result(2, "c")})
    assert found(path) == {0: "a", 1: "b", 2: "c"}


def test_damaged_lines_are_counted_and_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "j"
    write(path, {0: result(0, "first"), 1: result(1, "zwei"), 2: result(2, "third")})
    path.write_bytes(path.read_bytes().replace(b"zwei", b"zwey"))
    journal = Journal(path, rows=ROWS, decides=DECIDES)
    assert journal.damaged == 1
    journal.close()
    assert found(path) == {0: "first", 2: "third"}


def test_results_of_other_settings_are_not_taken_and_not_lost(tmp_path: Path) -> None:
    path, other = tmp_path / "j", {**DECIDES, "max_new_tokens": 24}
    write(path, {0: result(0, "a")})
    journal = Journal(path, rows=ROWS, decides=other)
    assert (journal.held, journal.other, journal.differing) == (0, 1, ("max_new_tokens",))
    journal.add(0, key_of(utterance()), result(0, "b"))
    journal.close()
    assert found(path, other) == {0: "b"}
    assert found(path) == {0: "a"}


def test_a_run_that_does_nothing_leaves_none_and_one_begun_anew_takes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "j"
    assert found(path) == {}
    assert not path.exists()
    write(path, {0: result(0, "a")})
    assert found(path, resume=False) == {}
    assert found(path) == {0: "a"}, "nothing was written, so nothing is lost"
    anew = Journal(path, rows=ROWS, decides=DECIDES, resume=False)
    anew.add(1, key_of(utterance(1)), result(1, "b"))
    anew.close()
    assert found(path) == {1: "b"}


def test_a_file_that_is_no_journal_is_moved_aside(tmp_path: Path) -> None:
    path = tmp_path / "j"
    path.write_text("my notes\n")
    assert found(path) == {}
    assert path.read_text() == "my notes\n"
    write(path, {0: result(0)})
    assert (tmp_path / "j.old").read_text() == "my notes\n"
    assert found(path) == {0: "text"}


def test_another_format_is_refused_by_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "j"
    with monkeypatch.context() as later:
        later.setattr("arkfast.infer.journal.VERSION", 2)
        write(path, {0: result(0)})
    with pytest.raises(InputError, match="is a journal of format 2, and this version of arkfast reads format 1"):
        Journal(path, rows=ROWS, decides=DECIDES)


def test_a_row_number_that_the_run_does_not_have_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path / "j", {0: result(0), 3: result(3)})
    journal = Journal(tmp_path / "j", rows=2, decides=DECIDES)
    assert journal.held == 1
    journal.close()


def test_an_error_never_names_another_line(tmp_path: Path) -> None:
    write(tmp_path / "j", {0: result(0, None), 1: result(1)})
    journal = Journal(tmp_path / "j", rows=ROWS, decides=DECIDES)
    moved = [replace(utterance(row), where=f"renamed.jsonl:{row + 1}") for row in range(2)]
    assert journal.find(0, key_of(moved[0]), moved[0]) is None
    taken = journal.find(1, key_of(moved[1]), moved[1])
    assert taken is not None
    assert taken.utterance.where == "renamed.jsonl:2"
    journal.close()


CHANGES: dict[str, object] = {
    "id": "other", "audio": "/nowhere/else.wav", "begin": 1.0, "end": 2.0, "channel": (1,), "audio_track": 1, "on_truncated": "fail",
    "language": "en", "task": "other",
}  # fmt: skip
PASSED_ON = {"text": "reference", "extra": {"speaker": 7}, "where": "elsewhere:1"}


def test_a_key_knows_what_decides_a_transcript() -> None:
    assert CHANGES.keys() | PASSED_ON.keys() == {f.name for f in fields(Utterance)}, (
        "a new field of an utterance belongs into one of the two"
    )
    key = key_of(utterance())
    for name, value in CHANGES.items():
        assert key_of(replace(utterance(), **{name: value})) != key, name
    for name, value in PASSED_ON.items():
        assert key_of(replace(utterance(), **{name: value})) == key, name


@pytest.mark.parametrize("reference", ["{}", "{}::clip.wav@512+4"])
def test_a_recording_that_was_replaced_is_another(tmp_path: Path, reference: str) -> None:
    file = tmp_path / "a.tar"
    file.write_bytes(b"1234")
    os.utime(file, ns=(0, 1_000_000_000))
    asked = Utterance(id="a", audio=reference.format(file))
    key = key_of(asked)
    assert key_of(asked) == key
    os.utime(file, ns=(0, 2_000_000_000))
    assert key_of(asked) != key
    os.utime(file, ns=(0, 1_000_000_000))
    assert key_of(asked) == key
    file.write_bytes(b"12345")
    os.utime(file, ns=(0, 1_000_000_000))
    assert key_of(asked) != key
    file.unlink()
    assert key_of(asked) != key


def test_every_flag_decides_unless_it_is_known_not_to() -> None:
    assert {f.name for f in fields(TranscribeOptions)} >= DECIDES_NOTHING
    decides = deciding(TranscribeOptions(), contents={"weights": "abc"}, device="cpu", dtype="float32")
    assert {"max_new_tokens", "seed", "audio_gain", "cut_loops", "arkfast", "device", "dtype", "file weights"} <= decides.keys()
    assert not {"batch_size", "num_workers"} & decides.keys()
    assert deciding(TranscribeOptions(batch_size=3), contents={"weights": "abc"}, device="cpu", dtype="float32") == decides
    assert deciding(TranscribeOptions(max_new_tokens=3), contents={"weights": "abc"}, device="cpu", dtype="float32") != decides
    assert deciding(TranscribeOptions(), contents={"weights": "xyz"}, device="cpu", dtype="float32") != decides
