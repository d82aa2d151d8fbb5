"""Transcripts in a Parquet file or in several files: what stands in them, and what becomes of them when a run is killed."""

from __future__ import annotations

import json
import os
import re
import signal
import tracemalloc
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from arkfast.infer import row_files as module
from arkfast.infer.columns import Columns
from arkfast.infer.command import main
from arkfast.infer.result import Result
from arkfast.infer.row_files import RowFiles
from arkfast.infer.stream import Memory
from arkfast.records import InputError, Utterance

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
ROWS = 25
SHARDS = "out-{shard:03d}.jsonl"


class StandIn:
    """In the place of a model: a transcript says the row's id.

    Args:
        kill_at: the row before which the process kills itself.
        failing: ids of rows that have no transcript; all where it is None.
    """

    def __init__(self, *, kill_at: int | None = None, failing: Iterable[str] | None = ("r3",)) -> None:
        self.model_commit, self.processing_seconds, self.batch_size = None, 0.0, 40
        self._kill_at, self._failing = kill_at, failing

    def results(self, items: Iterable[Utterance | Result], *, memory: Memory | None = None) -> Iterator[Result]:
        for number, item in enumerate(items):
            if number == self._kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            if isinstance(item, Result):
                yield item
            elif self._failing is None or item.id in self._failing:
                yield Result(utterance=item, error=f"{item.where}: {item.id} is bad")
            else:
                yield Result(utterance=item, text_raw=f"text of {item.id}", finish_reason="stop", seconds=1.5)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("arkfast.infer.command.decided", lambda transcriber, options: {"model": "stand-in"})
    manifest(ROWS)
    return tmp_path


def manifest(rows: int, **more: Any) -> None:
    lines = [{"id": f"r{i}", "audio": f"{i}.wav", "pred_text": "stale", "speaker": i, **more} for i in range(rows)]
    Path("in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def run(output: str, *more: str, model: StandIn | None = None) -> int:
    argv = ["in.jsonl", "--output", output, "--model_path", "model", "--allow_failures", *more]
    return main(argv, load=lambda *_: model or StandIn())  # type: ignore[return-value]


def killed(output: str, *more: str, model: StandIn | None = None) -> None:
    child = os.fork()
    if not child:
        try:
            run(output, *more, model=model)
        finally:
            os._exit(7)  # the run was not killed
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def contents(pattern: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path().glob(pattern))}


def outputs() -> dict[str, bytes]:
    return {name: content for name, content in contents("out*").items() if re.fullmatch(r"out(-\d+)?\.(jsonl|parquet)", name)}


def lines(path: str = "plain.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_shards_put_behind_one_another_are_the_one_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plain.jsonl") == 0
    assert run(SHARDS, "--rows_per_shard", "10") == 0
    assert "3 files, out-000.jsonl to out-002.jsonl" in capsys.readouterr().err
    found = contents("out-*.jsonl")
    assert list(found) == ["out-000.jsonl", "out-001.jsonl", "out-002.jsonl"]
    assert b"".join(found.values()) == Path("plain.jsonl").read_bytes()
    assert [len(content.splitlines()) for content in found.values()] == [10, 10, 5]
    assert not Path("out-shards.jsonl.partial").exists()
    assert Path("out-shards.jsonl.run.json").exists()


def test_a_smaller_output_leaves_no_shard_of_the_larger_one_before_it(folder: Path) -> None:
    assert run(SHARDS, "--rows_per_shard", "5") == 0
    Path("out-note.jsonl").write_text("of the user")
    Path("out-7.jsonl").write_text("numbered otherwise")
    manifest(7)
    assert run(SHARDS, "--rows_per_shard", "5") == 0
    assert set(contents("out-*.jsonl")) == {"out-000.jsonl", "out-001.jsonl", "out-note.jsonl", "out-7.jsonl"}


def test_a_parquet_file_holds_the_rows_with_their_types(folder: Path) -> None:
    manifest(ROWS, score=1, tags={"a": [1, None]})
    assert run("plain.jsonl") == 0
    assert run("out.parquet") == 0
    table = parquet.read_table("out.parquet")
    wanted = {
        "pred_text": "string",
        "begin_time": "double",
        "audio_seconds": "double",
        "speaker": "int64",
        "warnings": "list<element: string>",
    }
    assert {name: str(table.schema.field(name).type) for name in wanted} == wanted
    for row, line in zip(table.to_pylist(), lines(), strict=True):
        assert {name: value for name, value in row.items() if value is not None} == {
            name: value for name, value in line.items() if value is not None
        }
    assert table.column("pred_text").to_pylist()[3] is None
    assert "stale" not in table.column("pred_text").to_pylist()


def test_the_types_of_our_fields_depend_on_no_row(folder: Path) -> None:
    assert run("some.parquet") == 0
    assert run("all.parquet", model=StandIn(failing=())) == 0
    assert parquet.read_schema("some.parquet").equals(parquet.read_schema("all.parquet"))


@pytest.mark.parametrize("output", [SHARDS, "out.parquet", "out-{shard}.parquet"])
@pytest.mark.parametrize("where", ["rows", "write"])
def test_a_killed_run_is_gone_on_with_to_the_same_files(folder: Path, monkeypatch: pytest.MonkeyPatch, output: str, where: str) -> None:
    more = ["--rows_per_shard", "4"] if "{" in output else []
    assert run(output, *more) == 0
    whole = outputs()
    for path in Path().glob("out*"):
        path.unlink()
    if where == "rows":
        killed(output, *more, model=StandIn(kill_at=11))
    else:
        with monkeypatch.context() as patch:
            patch.setattr(module, "new_files", lambda paths: os.kill(os.getpid(), signal.SIGKILL))
            killed(output, *more)
    assert not outputs()
    assert run(output, *more) == 0
    found = outputs()
    if output.endswith("jsonl"):
        assert found == whole
    else:
        assert found.keys() == whole.keys()
        for name in found:
            again = parquet.read_table(name)
            assert again.equals(parquet.read_table(pyarrow.BufferReader(whole[name])))


@pytest.mark.parametrize("output", [SHARDS, "out.parquet"])
def test_an_output_is_never_replaced_by_one_in_which_every_row_failed(
    folder: Path, output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(output) == 0
    before = outputs()
    assert run(output, "--resume", "false", "--retry_failed", model=StandIn(failing=None)) == 2
    assert "failed" in capsys.readouterr().err
    assert outputs() == before


def test_a_table_that_cannot_be_written_leaves_the_earlier_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("out.parquet") == 0
    before = Path("out.parquet").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_write_table", full)
    assert run("out.parquet", "--resume", "false") == 2
    assert Path("out.parquet").read_bytes() == before
    assert len(lines("out.parquet.partial")) == ROWS
    monkeypatch.undo()


@pytest.mark.parametrize(
    ("values", "kind", "kept"),
    [
        ([1, None, 2], "int64", [1, None, 2]),
        ([1, 2.5], "double", [1.0, 2.5]),
        ([2**60, 0.5], "string", [str(2**60), "0.5"]),
        ([2**70], "string", [str(2**70)]),
        ([1, "one"], "string", ["1", '"one"']),
        ([True, 1], "string", ["true", "1"]),
        ([None, None], "string", [None, None]),
        ([[1], []], "list<element: int64>", [[1], []]),
        ([[1], ["a"]], "string", ["[1]", '["a"]']),
        ([{"a": 1}, {"b": "x"}], "struct<a: int64, b: string>", [{"a": 1, "b": None}, {"a": None, "b": "x"}]),
        ([{"a": 1}, {"a": "x"}], "string", ['{"a": 1}', '{"a": "x"}']),
        ([{}], "string", ["{}"]),
        (["\ud800"], "string", ["\\ud800"]),
    ],
)
def test_a_field_of_the_input_has_the_type_that_all_its_values_have(tmp_path: Path, values: list[Any], kind: str, kept: list[Any]) -> None:
    partial = tmp_path / "rows"
    partial.write_text("".join(json.dumps({"id": "r", "field": value}) + "\n" for value in values))
    said = RowFiles(tmp_path / "out.parquet").write(partial, len(values))
    column = parquet.read_table(tmp_path / "out.parquet").column("field")
    assert str(column.type).replace("item:", "element:") == kind
    assert column.to_pylist() == kept
    as_text = kind == "string" and any(isinstance(value, (int, list, dict)) for value in values)
    assert ("JSON text, since values share no type: field" in said) == as_text


def test_every_field_of_ours_is_a_column_of_one_type_or_is_found_where_it_stands() -> None:
    from arkfast.infer.columns import _OURS
    from arkfast.infer.result import OUTPUT_FIELDS

    assert set(OUTPUT_FIELDS) - set(_OURS) <= {"words", "word_confidence"}
    words = [{"word": "a", "start": 0, "end": 0.5}]
    schema = Columns([{"words": words, "repetition": 1, "compression_ratio": 2.5}, {"words": None}]).schema()
    assert str(schema.field("words").type).startswith("list<")
    assert str(schema.field("repetition").type) == str(schema.field("compression_ratio").type) == "double"


def test_names_that_differ_in_case_alone_stand_apart() -> None:
    columns = Columns([{"pred_text": "new", "Pred_Text": "old", "input_pred_text": "older"}])
    assert columns.renamed == {"Pred_Text": "input_Pred_Text", "input_pred_text": "input_input_pred_text"}
    assert columns.row({"pred_text": "new", "Pred_Text": "old"}) == {"pred_text": "new", "input_Pred_Text": "old"}


def test_memory_does_not_grow_with_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROW_GROUP", 50)
    line = json.dumps({"id": "r", "text": "x" * 1000}) + "\n"

    def peak(rows: int) -> int:
        partial = tmp_path / "rows"
        partial.write_text(line * rows)
        tracemalloc.start()
        RowFiles(tmp_path / "out.parquet").write(partial, rows)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert parquet.ParquetFile(tmp_path / "out.parquet").num_row_groups == rows // 50
        return most

    assert peak(2000) < peak(200) + 500_000  # all rows are 2 MB


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--output", "out.jsonl", "--rows_per_shard", "5"], "needs several files"),
        (["--output", SHARDS, "--rows_per_shard", "0"], "at least 1"),
        (["--output", "{shard}-{shard}.jsonl"], "stands once and in its name"),
        (["--output", "{shard}/out.jsonl"], "stands once and in its name"),
        (["--output", "out-{shard:x}.jsonl"], "stands once and in its name"),
        (["--output", "out.parquet", "--output_dir", "texts"], "--output_dir"),
    ],
)
def test_what_does_not_go_together_is_said(folder: Path, capsys: pytest.CaptureFixture[str], flags: list[str], says: str) -> None:
    assert main(["in.jsonl", *flags, "--model_path", "model"]) == 2
    assert says in capsys.readouterr().err


def test_a_shard_is_never_written_over_while_it_is_the_input(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("in.jsonl").rename("out-000.jsonl")
    assert main(["out-000.jsonl", "--output", SHARDS, "--model_path", "model"]) == 2
    assert "is an input" in capsys.readouterr().err


def test_without_pyarrow_the_error_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pyarrow.*\[parquet\]"):
        module.row_files(Path("out.parquet"), None)
    assert module.row_files(Path("out.jsonl"), None) is None


def test_too_many_shards_are_refused(tmp_path: Path) -> None:
    (tmp_path / "rows").write_text("{}\n")
    with pytest.raises(InputError, match="larger --rows_per_shard"):
        RowFiles(tmp_path / SHARDS, 1).write(tmp_path / "rows", module.MOST_SHARDS + 1)


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["s3://bucket/in.jsonl?key=secret", "--output", "out.jsonl"], "needs the package s3fs"),
        (["ftp://host/in.jsonl?key=secret", "--output", "out.jsonl"], "is an address of a kind that is not read"),
        (["in.jsonl", "--output", "gs://bucket/out.jsonl"], "outputs are files of this machine"),
        (["in.jsonl", "--output_dir", "s3://bucket/secret"], "outputs are files of this machine"),
    ],
)
def test_an_address_is_refused_and_no_folder_is_made_of_it(
    folder: Path, capsys: pytest.CaptureFixture[str], flags: list[str], why: str
) -> None:
    before = sorted(folder.rglob("*"))
    assert main([*flags, "--model_path", "model"], load=lambda *_: StandIn()) == 2  # type: ignore[return-value]
    said = capsys.readouterr().err
    assert why in said
    assert "secret" not in said
    assert sorted(folder.rglob("*")) == before


def test_a_row_has_the_originals_fields_first_and_the_inputs_other_fields_behind(folder: Path) -> None:
    """open-audio-opd's rows: audio, text, pred_text, pred_text_raw, begin_time, end_time, then the input's other fields."""
    originals = ["audio", "text", "pred_text", "pred_text_raw", "begin_time", "end_time"]
    manifest(4, text="reference", note="mine")
    assert run("plain.jsonl") == 0
    for row in lines():
        assert list(row)[: len(originals)] == originals
        assert list(row)[-2:] == ["speaker", "note"]
        assert (row["text"], row["note"], row["begin_time"], row["end_time"]) == ("reference", "mine", -1, -1)
    assert lines()[0]["pred_text"] == lines()[0]["pred_text_raw"] == "text of r0"
