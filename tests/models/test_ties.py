"""Head and token table: one tensor by ``config.json``, two by the files. Whoever opens such a checkpoint reads it as it is stored."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from arkfast.models import ArkasrForConditionalGeneration, ArkasrProcessor, load_model, weights
from arkfast.models.arkasr.outside import ArkasrOutside
from arkfast.models.family import find_family
from arkfast.records import InputError
from arkfast.testing import tiny_checkpoint
from arkfast.train.checkpoints.export import write_model
from arkfast.train.stored import StoredModel

HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"


def with_head(folder: Path, change, *, shards: bool = False) -> Path:
    """A checkpoint whose configuration ties, and whose files hold a head besides: the table, changed."""
    tiny_checkpoint(folder, seed=3)
    tensors = load_file(folder / "model.safetensors")
    tensors[HEAD] = change(tensors[TABLE].clone())
    assert json.loads((folder / "config.json").read_text()).get("tie_word_embeddings", True)
    if not shards:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    (folder / "model.safetensors").unlink()
    parts = {"model-00001-of-00002.safetensors": {HEAD: tensors.pop(HEAD)}, "model-00002-of-00002.safetensors": tensors}
    for name, part in parts.items():
        save_file(part, folder / name, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {tensor: name for name, part in parts.items() for tensor in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def one_value(table: torch.Tensor) -> torch.Tensor:
    table[-1, -1] += 1
    return table


@pytest.fixture(scope="module", params=["one file", "shards"])
def apart(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_head(tmp_path_factory.mktemp("apart") / "model", one_value, shards=request.param == "shards")


@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings:RuntimeWarning")
def test_every_reader_has_the_stored_head(apart: Path, tmp_path: Path) -> None:
    model, family = load_model(apart), find_family(apart)
    table, head = model.model.embed_tokens.weight, model.lm_head.weight
    assert not torch.equal(table, head)
    assert torch.equal(table[:-1], head[:-1])
    assert not model.config.tie_word_embeddings

    stored = StoredModel(family, apart, "sdpa")
    stored.fill(stored.model, torch.device("cpu"), torch.float32)
    assert torch.equal(stored.model.lm_head.weight, head)
    assert torch.equal(stored.model.model.embed_tokens.weight, table)
    assert {name for name, _ in stored.model.named_parameters()} == {name for name, _ in model.named_parameters()} >= {HEAD, TABLE}

    for theirs in (ArkasrForConditionalGeneration, AutoModelForCausalLM):
        loaded = theirs.from_pretrained(apart)
        assert torch.equal(loaded.lm_head.weight, head)
        assert torch.equal(loaded.model.embed_tokens.weight, table)
    assert torch.equal(ArkasrOutside(apart, torch.device("cpu"))._decoder.lm_head.weight, head)

    write_model(tmp_path / "ours", model, model.state_dict(), ArkasrProcessor.from_pretrained(apart))
    loaded.save_pretrained(tmp_path / "theirs")
    for folder in (tmp_path / "ours", tmp_path / "theirs"):
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # what we write needs no second reading
            again = load_model(folder)
        assert torch.equal(again.lm_head.weight, head)
        assert torch.equal(again.model.embed_tokens.weight, table)
        assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is False


def test_it_is_said_at_load(apart: Path) -> None:
    said = r"config.json says that model.embed_tokens.weight and lm_head.weight are one tensor .* Set tie_word_embeddings to false"
    with pytest.warns(RuntimeWarning, match=said):
        load_model(apart)
    with pytest.warns(RuntimeWarning, match=said):
        find_family(apart).shell(apart, attn_implementation="sdpa")


def test_an_equal_head_is_the_table_and_nothing_is_said(tmp_path: Path) -> None:
    folder = with_head(tmp_path / "model", lambda table: table)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        model = load_model(folder)
        shell = find_family(folder).shell(folder, attn_implementation="sdpa")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert shell.lm_head.weight is shell.model.embed_tokens.weight
    assert shell.config.tie_word_embeddings


def test_a_head_of_another_shape_is_named(tmp_path: Path) -> None:
    folder = with_head(tmp_path / "model", lambda table: torch.zeros(3, 4))
    with pytest.raises(InputError, match=r"wrong shape: lm_head.weight \[3, 4\], expected"):
        load_model(folder)


def test_a_comparison_holds_a_few_rows_of_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = with_head(tmp_path / "model", one_value)
    rows, width = load_file(folder / "model.safetensors")[HEAD].shape
    read: list[int] = []

    class Slice:
        def __init__(self, inner: object) -> None:
            self.get_shape, self._inner = inner.get_shape, inner

        def __getitem__(self, part: slice) -> torch.Tensor:
            found = self._inner[part]
            read.append(found.numel())
            return found

    class Opened:
        def __init__(self, *args: object, **options: object) -> None:
            self._file = opened(*args, **options)

        def __enter__(self) -> Opened:
            self._file.__enter__()
            return self

        def __exit__(self, *error: object) -> None:
            self._file.__exit__(*error)

        def keys(self) -> list[str]:
            return self._file.keys()

        def get_slice(self, name: str) -> Slice:
            return Slice(self._file.get_slice(name))

        def get_tensor(self, name: str) -> torch.Tensor:
            raise AssertionError(f"{name} is read whole")

    opened = weights.safe_open
    monkeypatch.setattr(weights, "safe_open", Opened)
    monkeypatch.setattr(weights, "COMPARED", 8 * width)
    with pytest.warns(RuntimeWarning, match="tie_word_embeddings"):
        find_family(folder).shell(folder, attn_implementation="sdpa")
    assert max(read) == 8 * width
    assert sum(read) == 2 * rows * width  # the difference is in the last row
