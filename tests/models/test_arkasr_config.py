"""The official configuration files, and what they describe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from arkfast.models import ArkasrConfig, ArkasrForConditionalGeneration
from arkfast.testing import tiny_config

CONFIGS = Path(__file__).parent / "configs"
# Counted from the published tensor shapes: encoder with its norm, adapter, decoder with a tied head.
PARAMETERS = {
    "ark_asr_0.6b": (635_048_960, 10_783_360, 504_804_480),
    "ark_asr_3b": (635_048_960, 29_366_272, 3_085_938_688),
}


def _fields(name: str) -> dict:
    return json.loads((CONFIGS / f"{name}.json").read_text())


@pytest.mark.parametrize("name", PARAMETERS)
def test_official_config_gives_the_official_parameters(name: str) -> None:
    config = ArkasrConfig(**_fields(name))
    with torch.device("meta"):
        model = ArkasrForConditionalGeneration(config)

    def count(*modules: torch.nn.Module) -> int:
        return sum(p.numel() for module in modules for p in module.parameters())

    encoder = model.audio_encoder
    assert (count(encoder.whisper, encoder.layer_norm), count(encoder.adapting), count(model.model)) == PARAMETERS[name]
    assert sum(p.numel() for p in model.parameters()) == sum(PARAMETERS[name])  # the head is the token table
    hidden = config.hidden_size
    assert encoder.adapting[0].weight.shape == (2 * hidden, 5120)
    assert encoder.adapting[2].weight.shape == (hidden, 2 * hidden)
    assert model.audio_encoder.whisper.layers[31].self_attn.k_proj.bias is None


@pytest.mark.parametrize("name", PARAMETERS)
def test_official_config_round_trips(name: str, tmp_path: Path) -> None:
    fields = _fields(name)
    (tmp_path / "config.json").write_text(json.dumps(fields))
    config = AutoConfig.from_pretrained(tmp_path, trust_remote_code=True)  # ours wins over auto_map
    assert type(config) is ArkasrConfig
    assert config.rope_parameters["rope_theta"] == 1_000_000.0
    assert config.head_dim == fields["head_dim"]
    assert config.masked_encoding
    config.save_pretrained(tmp_path / "again")
    saved = json.loads((tmp_path / "again" / "config.json").read_text())
    for field, value in fields.items():
        if field == "whisper_config":
            assert {name: saved[field][name] for name in value} == value
        elif field not in ("torch_dtype", "transformers_version", "auto_map"):
            assert saved[field] == value, field
    assert saved["dtype"] == "bfloat16"
    assert "auto_map" not in saved  # it names code files that a saved checkpoint does not hold
    AutoConfig.from_pretrained(tmp_path / "again").save_pretrained(tmp_path / "third")
    assert (tmp_path / "third" / "config.json").read_text() == (tmp_path / "again" / "config.json").read_text()


def test_unknown_fields_are_kept() -> None:
    config = ArkasrConfig(**_fields("ark_asr_0.6b"), bicodec_rows=12288)
    assert ArkasrConfig(**config.to_dict()).bicodec_rows == 12288


def test_both_spellings_of_the_rope_base_reach_the_decoder() -> None:
    flat, nested = tiny_config(rope_theta=5e5), tiny_config(rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    assert flat.rope_parameters == nested.rope_parameters
    assert tiny_config().rope_parameters["rope_theta"] == 1e6


@pytest.mark.parametrize(("field", "value", "word"), [("use_rope", False, "use_rope"), ("adapter_type", "conv", "adapter_type")])
def test_unsupported_variants_are_refused(field: str, value: object, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        tiny_config(**{field: value})
