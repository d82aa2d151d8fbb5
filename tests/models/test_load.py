"""Checkpoints on disk: identical bytes after a round trip, tied and stored heads, and what a bad one is told."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from arkfast.models import ArkasrForConditionalGeneration, load_model
from arkfast.records import InputError
from arkfast.testing import tiny_checkpoint


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "tiny")


def _rewrite(path: Path, change) -> None:
    file = path / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("tied", [True, False])
def test_save_load_save_is_byte_identical(tmp_path: Path, tied: bool) -> None:
    first = tiny_checkpoint(tmp_path / "first", tied=tied)
    load_model(first).save_pretrained(tmp_path / "second")
    load_model(tmp_path / "second").save_pretrained(tmp_path / "third")
    for name in ("model.safetensors", "config.json", "generation_config.json"):
        assert _digest(first / name) == _digest(tmp_path / "second" / name) == _digest(tmp_path / "third" / name), name
    assert ("lm_head.weight" in load_file(first / "model.safetensors")) is not tied


def test_state_dict_has_the_official_names(checkpoint: Path) -> None:
    names = set(load_file(checkpoint / "model.safetensors"))
    layer = "audio_encoder.whisper.layers.1."
    assert {name for name in names if name.startswith(layer)} == {
        layer + name
        for name in (
            *(f"{part}.{kind}" for part in ("self_attn_layer_norm", "final_layer_norm", "fc1", "fc2") for kind in ("weight", "bias")),
            *(f"self_attn.{part}.{kind}" for part in ("q_proj", "v_proj", "out_proj") for kind in ("weight", "bias")),
            "self_attn.k_proj.weight",
        )
    }
    others = {name for name in names if name.startswith("audio_encoder.") and ".layers." not in name}
    parts = ("whisper.conv1", "whisper.conv2", "layer_norm", "adapting.0", "adapting.2")
    assert others == {f"audio_encoder.{part}.{kind}" for part in parts for kind in ("weight", "bias")}
    assert names >= {"model.embed_tokens.weight", "model.norm.weight", "model.layers.0.self_attn.q_proj.bias"}


def test_a_stored_head_of_a_tied_model_loads_and_is_not_written_again(checkpoint: Path, tmp_path: Path) -> None:
    before = _digest(checkpoint / "model.safetensors")
    _rewrite(checkpoint, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    model = load_model(checkpoint)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    model.save_pretrained(tmp_path / "again")
    assert _digest(tmp_path / "again" / "model.safetensors") == before


def test_a_tied_model_stored_by_its_head_alone_loads(checkpoint: Path) -> None:
    table = load_file(checkpoint / "model.safetensors")["model.embed_tokens.weight"]
    _rewrite(checkpoint, lambda t: t.update({"lm_head.weight": t.pop("model.embed_tokens.weight")}))
    assert torch.equal(load_model(checkpoint).model.embed_tokens.weight, table)


def test_tensors_of_the_official_files_that_are_not_used_are_ignored(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    unused = {
        "audio_encoder.whisper.embed_positions.weight": torch.zeros(1500, 32),
        "audio_encoder.whisper.layer_norm.weight": torch.ones(32),
        "audio_encoder.whisper.layer_norm.bias": torch.zeros(32),
    }
    _rewrite(checkpoint, lambda t: t.update(unused))
    assert isinstance(load_model(checkpoint), ArkasrForConditionalGeneration)
    assert "embed_positions" not in caplog.text


def test_dtype_and_attention_are_as_asked(checkpoint: Path) -> None:
    model = load_model(checkpoint, dtype="bfloat16", attn_implementation="eager", device="cpu")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.config._attn_implementation == "eager"
    assert not model.training


def test_sharded_checkpoints_load(checkpoint: Path, tmp_path: Path) -> None:
    model = load_model(checkpoint)
    sharded = tmp_path / "sharded"
    model.save_pretrained(sharded, max_shard_size="100KB")
    shards = sorted(sharded.glob("model-*.safetensors"))
    assert len(shards) > 1
    again = load_model(sharded)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    shards[0].unlink()
    with pytest.raises(InputError, match=shards[0].name):
        load_model(sharded)


def test_differing_tensors_are_listed_with_their_shapes(checkpoint: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["audio_encoder.layer_norm.bias"]
        tensors["audio_encoder.proj.weight"] = torch.zeros(3, 4)
        tensors["model.norm.weight"] = torch.ones(49)

    _rewrite(checkpoint, change)
    with pytest.raises(InputError) as caught:
        load_model(checkpoint)
    message = str(caught.value)
    assert message.startswith(str(checkpoint))
    assert "missing: audio_encoder.layer_norm.bias expected [32]" in message
    assert "unexpected: audio_encoder.proj.weight [3, 4]" in message
    assert "wrong shape: model.norm.weight [49], expected [48]" in message


def test_a_long_list_is_cut_and_counted(checkpoint: Path) -> None:
    _rewrite(checkpoint, lambda t: [t.pop(name) for name in list(t) if name.startswith("audio_encoder.whisper.layers.0.")])
    with pytest.raises(InputError, match="missing: and 5 more") as caught:
        load_model(checkpoint)
    assert str(caught.value).count("missing: audio_encoder") == 10


def test_a_head_is_missing_only_where_it_is_not_tied(tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path / "untied", tied=False)
    _rewrite(path, lambda t: t.pop("lm_head.weight"))
    with pytest.raises(InputError, match=r"missing: lm_head\.weight"):
        load_model(path)


def test_bad_folders_say_what_is_wrong(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such checkpoint folder"):
        load_model(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no config\.json"):
        load_model(tmp_path / "empty")

    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match="not a complete safetensors file"):
        load_model(checkpoint)
    weights.unlink()
    with pytest.raises(InputError, match=r"no model\.safetensors"):
        load_model(checkpoint)
    (checkpoint / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"pytorch_model\.bin but no safetensors.*can run code"):
        load_model(checkpoint)

    config = checkpoint / "config.json"
    fields = json.loads(config.read_text())
    config.write_text(json.dumps({**fields, "model_type": "whisper"}))
    with pytest.raises(InputError, match="'whisper', expected 'arkasr'"):
        load_model(checkpoint)
    config.write_text(json.dumps({**fields, "use_rope": False}))
    with pytest.raises(InputError, match="use_rope"):
        load_model(checkpoint)
    config.write_text("{")
    with pytest.raises(InputError, match="cannot be read as JSON"):
        load_model(checkpoint)
