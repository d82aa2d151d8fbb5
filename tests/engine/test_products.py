"""Projections of one input as one product: the same ids and scores, the parameters that there were, and fewer products a layer."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from engine_batches import ALLOWED, distinct, make_batch, rows
from safetensors.torch import load_file, save_file
from torch.distributed.fsdp import FSDPModule
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from arkfast.engine import Engine
from arkfast.engine.cache import SlotCache
from arkfast.engine.decoder import decode_step
from arkfast.engine.products import LayerProducts, side_by_side
from arkfast.models import ArkasrForConditionalGeneration
from arkfast.testing import perturb, tiny_model
from arkfast.train.lora import add_adapters

APART = LayerProducts(None, None)
CASES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaForCausalLM, LlamaConfig, {"head_dim": 20}),
    "llama with biases": (LlamaForCausalLM, LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {"head_dim": 16, "num_key_value_heads": 1}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 20}),
}


def made(name: str) -> Any:
    model, config, fields = CASES[name]
    small = {
        "vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.25,
    }  # fmt: skip
    torch.manual_seed(3)
    return perturb(model(config(**{**small, **fields})).eval())


class Products(TorchDispatchMode):
    """Counts matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name().split(".")[0] in ("aten::mm", "aten::addmm"):
            self.counts["products"] += 1
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def steps(causal: Any, products: list[LayerProducts]) -> tuple[torch.Tensor, int]:
    """(scores [rows, V] after five steps of random ids, products of the last one)."""
    cache, generator = SlotCache(causal.config, 6, 8, dtype=torch.float32, device=torch.device("cpu")), torch.Generator().manual_seed(1)
    for position in range(5):
        ids, positions = torch.randint(0, 97, (6,), generator=generator), torch.full((6,), position)
        with Products() as hook:
            hidden = decode_step(causal.model, cache, ids, positions, 8, products)
    return causal.lm_head(hidden), hook.counts["products"]


@pytest.mark.parametrize("name", CASES)
def test_scores_equal_those_of_the_projections_one_by_one(name):
    causal = made(name)
    names, before = list(causal.state_dict()), {name: w.clone() for name, w in causal.state_dict().items()}
    parameters = dict(causal.named_parameters())
    want, apart = steps(causal, [APART] * 3)
    got, joined = steps(causal, side_by_side(causal.model))
    assert want.std() > 0.1
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    assert (apart, joined) == (3 * 7, 3 * 4)
    assert list(causal.state_dict()) == names
    assert all(torch.equal(w, before[name]) for name, w in causal.state_dict().items())
    assert all(parameters[name] is p for name, p in causal.named_parameters())


def test_an_engine_decodes_the_same_ids(monkeypatch):
    batch = make_batch()
    options = {"max_new_tokens": 20, "n": 2, "temperature": 0.8, "seed": 4}
    got = Engine(tiny_model(seed=1), allowed=ALLOWED, topk=4, logprobs=True, slots=3).rollout(batch, **options)
    for module in ("engine", "slots"):
        monkeypatch.setattr(f"arkfast.engine.{module}.side_by_side", lambda decoder: [APART] * len(decoder.layers))
    want = Engine(tiny_model(seed=1), allowed=ALLOWED, topk=4, logprobs=True, slots=3).rollout(batch, **options)
    assert rows(got) == rows(want)
    assert torch.equal(got.topk_ids, want.topk_ids)
    torch.testing.assert_close(got.logprob, want.logprob, atol=1e-5, rtol=0)
    assert distinct(rows(got)) >= 10


def test_weights_that_change_in_place_or_move_are_read_at_the_next_step():
    """As an optimizer changes them, and as a conversion moves them: a new engine on the same weights is the oracle."""
    batch, model = make_batch(), tiny_model(seed=1)
    engine = Engine(model, allowed=ALLOWED)
    first = engine.rollout(batch, max_new_tokens=12)
    changes = {
        "in place": lambda p: p.data.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.2),
        "moved": lambda p: setattr(p, "data", p.data * 1.5),
    }
    for change in changes.values():
        with torch.no_grad():
            for layer in model.model.layers:
                change(layer.self_attn.k_proj.weight)
                change(layer.mlp.up_proj.weight)
        again = engine.rollout(batch, max_new_tokens=12)
        fresh = tiny_model(seed=1)
        fresh.load_state_dict(model.state_dict())
        assert rows(again) == rows(Engine(fresh, allowed=ALLOWED).rollout(batch, max_new_tokens=12))
        assert rows(again) != rows(first)


def test_what_lies_side_by_side_stays_there():
    model = tiny_model(seed=1)
    side_by_side(model.model)
    places = [p.data_ptr() for p in model.parameters()]
    again = side_by_side(model.model)
    assert [p.data_ptr() for p in model.parameters()] == places
    attention = model.model.layers[0].self_attn
    assert again[0].qkv.weight.data_ptr() == attention.q_proj.weight.data_ptr()
    assert torch.equal(again[0].qkv.bias, torch.cat([attention.q_proj.bias, attention.k_proj.bias, attention.v_proj.bias]))


def test_checkpoints_hold_what_they_held(tmp_path):
    plain, model = tiny_model(seed=1), tiny_model(seed=1)
    side_by_side(model.model)
    plain.save_pretrained(tmp_path / "plain")
    model.save_pretrained(tmp_path / "joined")
    want, got = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "joined"))
    assert want.keys() == got.keys()
    assert all(torch.equal(want[name], got[name]) for name in want)
    assert (tmp_path / "plain" / "model.safetensors").stat().st_size == (tmp_path / "joined" / "model.safetensors").stat().st_size
    layer = {f"q.{name}": w for name, w in model.model.layers[0].state_dict().items()}
    save_file(layer, tmp_path / "layer.safetensors")
    assert all(torch.equal(w, layer[name]) for name, w in load_file(tmp_path / "layer.safetensors").items())
    assert isinstance(ArkasrForConditionalGeneration.from_pretrained(tmp_path / "joined"), ArkasrForConditionalGeneration)


def test_training_after_a_rollout_takes_the_same_step():
    """Gradients and AdamW's update of weights that lie side by side, with those that do not."""
    found = []
    for joined in (False, True):
        model = tiny_model(seed=1)
        if joined:
            side_by_side(model.model)
        adamw = torch.optim.AdamW(model.parameters(), lr=0.01)
        for _ in range(2):
            model(input_ids=torch.arange(12)[None], labels=torch.arange(12)[None]).loss.backward()
            adamw.step()
            adamw.zero_grad()
        found.append({name: p.detach().clone() for name, p in model.named_parameters()})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_adapters_hooks_and_sharded_layers_keep_their_projections():
    adapted = tiny_model(seed=1)
    add_adapters(adapted, rank=2, alpha=4.0, seed=0, device=torch.device("cpu"))
    assert side_by_side(adapted.model) == [APART] * 2
    hooked = tiny_model(seed=1)
    hooked.model.layers[0].self_attn.k_proj.register_forward_hook(lambda module, args, out: out * 2)
    assert hooked.model.layers[0].self_attn.q_proj.weight.data_ptr() != side_by_side(hooked.model)[1].qkv.weight.data_ptr()
    assert side_by_side(hooked.model)[0].qkv is None
    assert side_by_side(hooked.model)[0].gate_up is not None
    sharded = tiny_model(seed=1)
    layer = sharded.model.layers[1]
    layer.__class__ = type("FSDPLayer", (FSDPModule, type(layer)), {})
    before = layer.self_attn.q_proj.weight.data_ptr()
    assert side_by_side(sharded.model)[1] == APART
    assert layer.self_attn.q_proj.weight.data_ptr() == before
