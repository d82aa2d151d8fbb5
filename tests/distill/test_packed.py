"""The student's pass over rows that lie end to end: losses and gradients are those of padded rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from distill_batches import ALLOWED, make_batch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from arkfast.distill import opd_step, sft_step
from arkfast.distill.references import references
from arkfast.distill.sequence import at_predicting_positions
from arkfast.distill.teachers.arkasr import ArkasrTeacher
from arkfast.engine import Engine
from arkfast.models import packing
from arkfast.models.arkasr.family import family
from arkfast.models.causal import CausalSpeechModel
from arkfast.models.packed import PACKED, pack, packs
from arkfast.records import Batch, Rollout
from arkfast.testing import perturb, tiny_model
from arkfast.train.lora import add_adapters
from arkfast.train.rollout_copy import WholeEngine
from arkfast.train.student import Student


def stepped(
    stage: str, *, packed: bool, prepare: Any = lambda model: None, checkpointing: bool = False
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """(the loss of one step, its gradients)."""
    model, batch = tiny_model(seed=1), make_batch()
    prepare(model)
    if packed:
        assert pack(model)
    assert packs(model) == packed
    student = Student(model, family.shard_units(model), checkpointing=checkpointing)
    engine = WholeEngine(Engine(model, allowed=ALLOWED, topk=8), student, None, lambda: 0)
    teacher = ArkasrTeacher(tiny_model(seed=2), allowed=ALLOWED, top_k=8)

    def work() -> torch.Tensor:
        if stage == "sft":
            loss = sft_step(model, engine, batch)
        else:
            loss = opd_step(model, engine, teacher, batch, tau=1.5, max_new_tokens=10, n=3, temperature=0.9, seed=2)
        loss.total.backward()
        return loss.total.detach()

    return student.inside(work), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def frozen(model: Any) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith("audio_encoder.") and ".mlp." not in name)


def adapted(model: Any) -> None:
    add_adapters(model, rank=3, alpha=6.0, seed=5, device=torch.device("cpu"))
    perturb(model)


CASES = {"plain": lambda model: None, "frozen": frozen, "adapters": adapted}


@pytest.mark.parametrize("stage", ["opd", "sft"])
@pytest.mark.parametrize("case", [*CASES, "checkpointing"])
def test_loss_and_gradients_equal_those_of_padded_rows(stage: str, case: str) -> None:
    prepare = CASES.get(case, CASES["plain"])
    want, reference = stepped(stage, packed=False, prepare=prepare)
    got, gradients = stepped(stage, packed=True, prepare=prepare, checkpointing=case == "checkpointing")
    assert want > 0.1
    torch.testing.assert_close(got, want, rtol=1e-5, atol=0)
    assert gradients.keys() == reference.keys()
    assert any(float(gradient.norm()) > 0.01 for gradient in reference.values())
    for name, gradient in reference.items():
        assert float((gradients[name] - gradient).norm()) <= 1e-5 * float(gradient.norm()) + 1e-6, name


class Llama(CausalSpeechModel, LlamaForCausalLM):
    pass


class Qwen3(CausalSpeechModel, Qwen3ForCausalLM):
    pass


@pytest.mark.parametrize(("kind", "config"), [(Llama, LlamaConfig), (Qwen3, Qwen3Config)], ids=["llama", "qwen3"])
@pytest.mark.parametrize("known", [False, True], ids=["lengths read", "lengths known"])
def test_other_decoders_and_rows_of_one_token(kind: Any, config: Any, known: bool) -> None:
    """Hidden states of random rows, the shortest ones among them, in the order of the padded pass; grouped heads."""
    torch.manual_seed(0)
    small = {"vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 12,
             "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.25}  # fmt: skip
    model = perturb(kind(config(**small)).eval())
    prompts, lens, owner = [4, 1, 7], [3, 1, 6, 2, 1], [2, 0, 0, 1, 2]
    batch = Batch(
        ids=("a", "b", "c"), keys=torch.arange(3), mel=None, mel_lens=None, input_ids=torch.randint(0, 97, (3, 7)),
        prompt_lens=torch.tensor(prompts), prompt_sizes=tuple(prompts) if known else None,
    )  # fmt: skip
    rollout = Rollout(
        tokens=torch.randint(0, 97, (5, 6)), lens=torch.tensor(lens), stopped=torch.ones(5, dtype=torch.bool), owner=torch.tensor(owner),
        total=13 if known else None, sizes=tuple(zip(owner, lens, strict=True)) if known else None,
    )  # fmt: skip
    want = at_predicting_positions(model, batch, None, rollout, lambda hidden, weight: hidden)
    pack(model)
    seen: list[tuple[int, ...]] = []
    model.model.layers[0].register_forward_pre_hook(lambda module, given: seen.append(tuple(given[0].shape)))
    got = at_predicting_positions(model, batch, None, rollout, lambda hidden, weight: hidden)
    assert want.shape == (13, 48)
    assert seen == [(1, 7 + 2 + 4 + 4 + 5 + 1 + 1 + 7, 48)], "no padding, and no last tokens"
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_a_model_that_packs_computes_all_else_as_before() -> None:
    model, batch = tiny_model(seed=1), make_batch()
    ids, mask = torch.randint(0, 90, (3, 9)), torch.tensor([[1] * 9, [0] * 4 + [1] * 5, [1] * 6 + [0] * 3])
    want, rollout = model(input_ids=ids, attention_mask=mask).logits, Engine(model, allowed=ALLOWED).rollout(batch, max_new_tokens=8)
    assert pack(model)
    assert pack(model), "twice is as good as once"
    got = model(input_ids=ids, attention_mask=mask).logits
    assert torch.equal(got[mask.bool()], want[mask.bool()])
    again = Engine(model, allowed=ALLOWED).rollout(batch, max_new_tokens=8)
    assert torch.equal(again.tokens, rollout.tokens)
    eager = tiny_model(seed=1)
    eager.set_attn_implementation("eager")
    assert not pack(eager)


def test_a_model_that_packs_is_written_as_one_that_does_not(tmp_path: Any) -> None:
    plain, model = tiny_model(seed=1), tiny_model(seed=1)
    pack(model)
    for name, own in (("plain", plain), ("packed", model)):
        own.save_pretrained(tmp_path / name)
    assert (tmp_path / "plain" / "config.json").read_text() == (tmp_path / "packed" / "config.json").read_text()
    assert PACKED not in (tmp_path / "packed" / "config.json").read_text()


@pytest.mark.parametrize("takes_groups", [False, True])
def test_on_a_gpu_all_rows_are_one_call(monkeypatch: pytest.MonkeyPatch, takes_groups: bool) -> None:
    given: list[Any] = []
    monkeypatch.setattr(packing, "varlen_attn", lambda *a, **b: (given.append((a, b)), a[0])[1])
    monkeypatch.setattr(packing, "on_gpu", lambda _: True)
    monkeypatch.setattr(packing, "TAKES_GROUPS", takes_groups)
    rows = packing.Packing([3, 1, 5], torch.device("cpu"))
    q, k = torch.randn(9, 4, 8).bfloat16(), torch.randn(9, 2, 8).bfloat16()
    assert rows.attend(q, k, k, scale=0.5, causal=True) is q
    ((_, keys, _, begin, _, most, _), options) = given[0]
    assert (begin.tolist(), most) == ([0, 3, 4, 9], 5)
    assert options == {"scale": 0.5, "window_size": (-1, 0), **({"enable_gqa": True} if takes_groups else {})}
    assert torch.equal(keys, k if takes_groups else k[:, [0, 0, 1, 1]])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is seen")
def test_in_bfloat16_packed_rows_err_no_more_than_padded_ones() -> None:
    """Hidden states of rows with grouped heads, and a gradient through them, against float32."""
    batch = make_batch((37, 96, 61, 8, 122), ((3, 4, 95), (7, 95), (9, 10, 11, 12, 95), (95,), (5, 95))).to("cuda")
    weight = torch.randn(13, 64, generator=torch.Generator().manual_seed(0)).cuda()
    found = {}
    for name, dtype, packed in (("truth", torch.float32, False), ("padded", torch.bfloat16, False), ("packed", torch.bfloat16, True)):
        model = tiny_model(seed=1, hidden_size=64).cuda().to(dtype)
        assert not packed or pack(model)
        audio = model.get_audio_features(batch.mel, batch.mel_lens)
        rollout = references(batch, range(5))
        hidden = at_predicting_positions(model, batch, audio, rollout, lambda hidden, weight: hidden).float()
        (hidden * weight).sum().backward()
        found[name] = hidden.detach(), model.model.layers[0].self_attn.k_proj.weight.grad.float()
    for padded, packed, truth in zip(found["padded"], found["packed"], found["truth"], strict=True):
        assert (packed - truth).norm() <= 1.5 * (padded - truth).norm() + 1e-3 * truth.norm()


def test_a_pass_over_packed_rows_reads_nothing_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = tiny_model(seed=1), make_batch()
    pack(model)
    engine = Engine(model, allowed=ALLOWED, topk=8)
    batch = replace(batch, prompt_sizes=tuple(batch.prompt_lens.tolist()))
    rollout = engine.rollout(batch, max_new_tokens=6, n=2)
    assert rollout.sizes == tuple(zip(rollout.owner.tolist(), rollout.lens.tolist(), strict=True))
    audio = model.get_audio_features(batch.mel, batch.mel_lens, frames=tuple(batch.mel_lens.tolist()))
    for name in ("tolist", "item", "numpy", "__bool__", "__int__", "nonzero"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_: pytest.fail("a value is read"))
    at_predicting_positions(model, batch, audio, rollout, lambda hidden, weight: hidden)
