"""JSON from users: whatever is in it, one error that names the file; and no module reads it by another way."""

import ast
import json
from pathlib import Path

import pytest

import arkfast
from arkfast.data import Fields, read_manifest
from arkfast.data.manifest import iter_rows
from arkfast.evaluate.summary import read_summary
from arkfast.files.json_input import MOST_LEVELS, parse_json, parse_json_object
from arkfast.infer.jsonl import read_places
from arkfast.infer.result import bad_line
from arkfast.models.family import read_config
from arkfast.models.weights import weight_files
from arkfast.records import InputError

DEEP = "[" * 100_000 + "]" * 100_000
"""Python's own reader raises a RecursionError."""
DEEPER_THAN_WRITABLE = '{"a":' * 900 + "1" + "}" * 900
"""It is read, and who walks over it or writes it again has no frames left."""

OWN = {
    "arkfast/distill/alignment.py": "the state of a tokenizer that is loaded",
    "arkfast/distill/teachers/vocabulary.py": "the state of a tokenizer that is loaded",
    "arkfast/evaluate/preset_processes.py": "messages between processes of ours",
    "arkfast/evaluate/preset_worker.py": "messages between processes of ours",
    "arkfast/files/json_input.py": "the one way",
    "arkfast/files/lock.py": "a lock, at most some hundred bytes",
    "arkfast/metrics/normalizers/external_worker.py": "requests of ours; it imports nothing of arkfast",
    "arkfast/models/arkasr/new.py": "a tokenizer that was trained a line before",
    "arkfast/prove/training.py": "a log that was written a moment before",
    "arkfast/quickstart/corpus.py": "the quickstart's own files",
    "arkfast/quickstart/progress.py": "the quickstart's own files",
    "arkfast/quickstart/run.py": "the quickstart's own files",
    "arkfast/testing.py": "a tokenizer that was trained a line before",
    "arkfast/train/checkpoints/branch.py": "a checkpoint of ours",
    "arkfast/train/checkpoints/run_folder.py": "a run's folder of ours",
    "arkfast/train/checkpoints/tensors.py": "a checkpoint of ours",
    "arkfast/train/logging/run_log.py": "a log of ours, of which a bad line is left out",
    "arkfast/train/repositories.py": "a run's folder of ours",
}


def readers(source):
    """Lines of a module that call Python's own reader."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    return [call.lineno for call in calls if call.func.attr in ("load", "loads") and getattr(call.func.value, "id", "") == "json"]


def test_users_json_is_read_one_way():
    root = Path(arkfast.__file__).parent.parent
    found = {str(path.relative_to(root)) for path in sorted((root / "arkfast").rglob("*.py")) if readers(path.read_text(encoding="utf-8"))}
    assert found == set(OWN), "read a user's JSON with arkfast.files.json_input, or say above whose the text is"
    assert readers("import json\njson.loads(x)\n") == [2]


@pytest.mark.parametrize("text", [DEEP, DEEPER_THAN_WRITABLE, "[" * (MOST_LEVELS + 1) + "]" * (MOST_LEVELS + 1)])
def test_nesting_is_bounded(text):
    for spelled in (text, text.encode()):
        with pytest.raises(ValueError, match="objects and lists nested more than 100 deep"):
            parse_json(spelled)


def test_everything_else_is_read_as_ever():
    deepest = "[" * MOST_LEVELS + "]" * MOST_LEVELS
    for text in (deepest, '{"a": [{"b": null}, 1.5]}', '"x"', "3"):
        assert parse_json(text) == json.loads(text)
    assert parse_json_object(b'{"\xc3\xa9": 1}') == {"é": 1}
    for bad in (b"\xff", "{", "", "1" * 5000):
        with pytest.raises(ValueError):
            parse_json(bad)
    with pytest.raises(ValueError, match="expected an object, got list"):
        parse_json_object("[]")


@pytest.mark.parametrize("value", [DEEP, DEEPER_THAN_WRITABLE])
def test_every_door(tmp_path, value):
    line = f'{{"audio": "a.wav", "more": {value}}}\n'
    path = tmp_path / "in.jsonl"
    path.write_text(line)
    with pytest.raises(InputError, match=r"in\.jsonl:1: JSON that cannot be read \(objects and lists nested"):
        read_manifest(path)
    (row,) = iter_rows(path)
    assert "nested more than 100 deep" in bad_line(row, fields=Fields()).row()["error"]
    with pytest.raises(InputError, match=r"in\.jsonl:1: not valid JSON \(objects and lists nested"):
        list(read_places(path))
    summary = tmp_path / "summary.json"
    summary.write_text(line)
    with pytest.raises(InputError, match=r"summary\.json: not valid JSON \(objects and lists nested"):
        read_summary(summary)
    for name in ("config.json", "model.safetensors.index.json"):
        (tmp_path / name).write_text(line)
    with pytest.raises(InputError, match=r"config\.json: cannot be read as JSON \(objects and lists nested"):
        read_config(tmp_path)
    with pytest.raises(InputError, match=r"index\.json: cannot be read as a shard index \(ValueError\('objects and lists nested"):
        weight_files(tmp_path)
