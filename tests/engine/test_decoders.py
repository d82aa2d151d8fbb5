"""Llama, Qwen2 and Qwen3 decoders: decoding equals Transformers' generate, and what would be computed wrongly is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from engine_batches import distinct
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeModel,
)
from transformers.models.llama.modeling_llama import LlamaAttention

from arkfast.engine import Sampling
from arkfast.engine.decoder import check_decoder, decode_step
from arkfast.engine.prefill import prefill_each
from arkfast.engine.request import Entry
from arkfast.engine.rows import DONE, Choosing
from arkfast.engine.slots import Slots
from arkfast.testing import perturb

V, STOP, PAD = 97, 95, 96
BLOCKED = torch.tensor([3, *range(90, STOP), PAD], dtype=torch.int32)
LENGTHS = [7, 23, 1, 12, 30, 5, 18]
NEW = 24
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 16}

# Each has something that the others lack: head sizes of its own, one key-value head or as many as query heads, biases, a tied head, angles
# that are scaled (for these short rows too).
CASES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaForCausalLM, LlamaConfig, {"head_dim": 20}),
    "llama with biases, tied, llama3 angles": (
        LlamaForCausalLM,
        LlamaConfig,
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "rope_parameters": LLAMA3},
    ),
    "llama, every head its own keys": (LlamaForCausalLM, LlamaConfig, {"num_key_value_heads": 4, "head_dim": 6}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {"tie_word_embeddings": False}),
    "qwen2, tied, head size, one key-value head": (
        Qwen2ForCausalLM,
        Qwen2Config,
        {"tie_word_embeddings": True, "head_dim": 16, "num_key_value_heads": 1},
    ),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 20}),
    "qwen3 with biases, tied, yarn angles": (
        Qwen3ForCausalLM,
        Qwen3Config,
        {"head_dim": 16, "attention_bias": True, "tie_word_embeddings": True, "rope_parameters": YARN, "rms_norm_eps": 1e-3},
    ),
}


def sized(config: Any, **fields: Any) -> Any:
    """A small config of 97 ids whose output is not one id over and over."""
    small = {
        "vocab_size": V, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.25, "bos_token_id": PAD, "eos_token_id": STOP,
        "pad_token_id": PAD,
    }  # fmt: skip
    return config(**{**small, **fields})


def made(name: str, seed: int = 0, **more: Any) -> Any:
    model, config, fields = CASES[name]
    torch.manual_seed(seed)
    return perturb(model(sized(config, **fields, **more)).eval())


class Text(nn.Module):
    """A language model as the engine takes one: its prompts are ids alone."""

    def __init__(self, causal: Any) -> None:
        super().__init__()
        self.model, self.lm_head, self.config = causal.model, causal.lm_head, causal.config

    def encode_prompt(self, input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
        return self.model.embed_tokens(input_ids)


def prompts_of(lengths: list[int], seed: int = 5) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 90, (n,), generator=generator) for n in lengths]


@torch.no_grad()
def decoded(causal: Any, prompts: list[torch.Tensor], slots: int) -> tuple[list[list[int]], list[torch.Tensor]]:
    """(ids, their log-probabilities) of each prompt, through so many slots, which are refilled as rows end."""
    model, none = Text(causal), torch.zeros(0, causal.config.hidden_size, dtype=causal.dtype)
    choosing = Choosing(width=causal.config.vocab_size, blocked=BLOCKED, stop_ids=torch.tensor([STOP]), topk=0, logprobs=True)
    own = Slots(model, choosing, rows=slots, length=max(map(len, prompts)) + NEW, new=NEW, graphs=False)
    waiting, found = list(range(len(prompts))), {}
    while waiting or own.entries:
        taken = [waiting.pop(0) for _ in range(min(own.free, len(waiting)))]
        if taken:
            entries = [Entry(id=i, prompt=len(prompts[i]), limit=NEW, key=i, number=0, sampling=Sampling()) for i in taken]
            own.admit(prefill_each(model, [prompts[i] for i in taken], [none] * len(taken)), range(len(taken)), entries)
        own.advance(3)
        ended = [place for place, _, state in own.look(loops_since=0) if state & DONE]
        for place in ended:
            entry = own.entries[place]
            found[entry.id] = own.state.tokens[place, : entry.produced].tolist(), own.state.logprob[place, : entry.produced].clone()
        own.release(ended)
    return [found[i][0] for i in range(len(prompts))], [found[i][1] for i in range(len(prompts))]


def generated(causal: Any, prompts: list[torch.Tensor]) -> tuple[list[list[int]], list[torch.Tensor]]:
    """The same of ``generate``, one prompt at a time, so that nothing is padded."""
    rows, logprobs = [], []
    for prompt in prompts:
        out = causal.generate(
            input_ids=prompt[None], attention_mask=torch.ones_like(prompt)[None], do_sample=False, max_new_tokens=NEW,
            suppress_tokens=BLOCKED.tolist(), return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
        new = out.sequences[0, len(prompt) :]
        rows.append(new.tolist())
        logprobs.append(torch.cat(out.scores).float().log_softmax(-1).gather(1, new[:, None])[:, 0])
    return rows, logprobs


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", CASES)
def test_greedy_equals_generate(name, attention):
    causal = made(name)
    causal.set_attn_implementation(attention)
    check_decoder(causal.model)
    prompts = prompts_of(LENGTHS)
    want, want_logprobs = generated(causal, prompts)
    assert distinct(want) >= 10, "too few distinct ids for the comparison to mean anything"
    for slots in (len(prompts), 3):
        got, logprobs = decoded(causal, prompts, slots)
        assert got == want
        for ours, theirs in zip(logprobs, want_logprobs, strict=True):
            torch.testing.assert_close(ours, theirs, atol=5e-5, rtol=0)


@torch.no_grad()
def stepped(causal: Any, prompt: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Hidden states [tokens, H] of tokens that follow a prompt, one decode step each."""
    slots = Slots(
        Text(causal), Choosing(width=causal.config.vocab_size, blocked=BLOCKED, stop_ids=torch.tensor([STOP]), topk=0, logprobs=False),
        rows=1, length=len(prompt) + len(tokens), new=1, graphs=False,
    )  # fmt: skip
    prefilled = prefill_each(Text(causal), [prompt], [torch.zeros(0, causal.config.hidden_size, dtype=causal.dtype)])
    slots.cache.admit(prefilled.cache, torch.tensor([0]), slice(0, 1))
    at = len(prompt) + torch.arange(len(tokens))
    return torch.cat(
        [
            decode_step(causal.model, slots.cache, tokens[i : i + 1], at[i : i + 1], slots.cache.length, slots.products)
            for i in range(len(tokens))
        ]
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", CASES)
def test_narrow_types_err_no_more_than_transformers(name, dtype):
    """Against the same weights in float32: the error of Transformers' own forward, and a hair."""
    prompt, tokens = prompts_of([11, NEW], seed=7)
    narrow = made(name).to(dtype)
    ours = stepped(narrow, prompt, tokens).float()
    both = torch.cat([prompt, tokens])[None]
    with torch.no_grad():
        theirs = narrow.model(both).last_hidden_state[0, len(prompt) :].float()
        truth = narrow.float().model(both).last_hidden_state[0, len(prompt) :]
    assert ours.std() > 0.1
    error, allowed = (ours - truth).norm() / truth.norm(), (theirs - truth).norm() / truth.norm()
    assert error <= 1.3 * allowed + torch.finfo(dtype).eps


@pytest.mark.parametrize("rope", [LLAMA3, YARN], ids=["llama3", "yarn"])
def test_scaled_angles_change_what_is_decoded(rope):
    """Else the cases above that have them prove nothing of them."""
    prompts = prompts_of(LENGTHS[:2])
    plain = decoded(made("llama"), prompts, 2)[0]
    assert decoded(made("llama", rope_parameters=rope), prompts, 2)[0] != plain


def test_head_norms_change_what_is_decoded():
    causal, prompts = made("qwen3"), prompts_of(LENGTHS[:2])
    before = decoded(causal, prompts, 2)[0]
    with torch.no_grad():
        for layer in causal.model.layers:
            layer.self_attn.k_norm.weight.mul_(0.25)
    assert decoded(causal, prompts, 2)[0] != before


class OwnAttention(LlamaAttention):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


class Wrapped(LlamaAttention):
    """As sharding wraps a module: another class, the same forward."""


def with_attention(kind: type[nn.Module]) -> Any:
    decoder = made("llama").model
    decoder.layers[1].self_attn = kind(decoder.config, 1)
    return decoder


def changed(name: str, change: Any) -> Any:
    decoder = made(name).model
    change(decoder)
    return decoder


MOE = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0}
REFUSED: dict[str, tuple[Any, str]] = {
    "experts": (lambda: Qwen3MoeModel(sized(Qwen3MoeConfig, head_dim=12, **MOE)), "the decoder is a Qwen3MoeModel; it must be one of"),
    "another family": (
        lambda: MistralModel(sized(MistralConfig)),
        "is a MistralModel; it must be one of .*LlamaModel, Qwen2Model, Qwen3Model",
    ),
    "sliding window": (
        lambda: made("qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=1).model,
        "layer 1 of the decoder attends in a sliding window",
    ),
    "sliding window of Qwen3": (
        lambda: made("qwen3", use_sliding_window=True, sliding_window=4, max_window_layers=2).model,
        "layer 2 of the decoder attends in a sliding window",
    ),
    "layer type": (
        lambda: changed("qwen2", lambda d: setattr(d.layers[2].self_attn, "layer_type", "chunked_attention")),
        "layer 2 of the decoder has 'chunked_attention'",
    ),
    "activation": (lambda: made("llama", hidden_act="gelu").model, "activation must be silu, as in Llama, Qwen2 and Qwen3, not gelu"),
    "attention's forward": (
        lambda: with_attention(OwnAttention),
        "layer 1 of the decoder has a OwnAttention, whose forward is not that of LlamaAttention",
    ),
    "norm": (
        lambda: changed("qwen2", lambda d: setattr(d, "norm", nn.LayerNorm(48))),
        "the decoder has a LayerNorm in place of a Qwen2RMSNorm",
    ),
    "head norm": (
        lambda: changed("qwen3", lambda d: setattr(d.layers[0].self_attn, "k_norm", nn.Identity())),
        "layer 0 of the decoder has a Identity in place of a Qwen3RMSNorm",
    ),
    "head norms that differ": (
        lambda: changed("qwen3", lambda d: setattr(d.layers[0].self_attn.k_norm, "variance_epsilon", 0.1)),
        "layer 0 of the decoder normalises queries and keys with different eps",
    ),
    "angles of the longest row": (
        lambda: made("llama", rope_parameters=DYNAMIC).model,
        "rotary embedding is 'dynamic', whose angles change",
    ),
    "angles of another size": (
        lambda: changed("llama", lambda d: setattr(d.rotary_emb, "inv_freq", torch.ones(5))),
        "layer 0 of the decoder has heads of 20 features, of which the rotary embedding turns 10",
    ),
    "not causal": (
        lambda: changed("qwen2", lambda d: setattr(d.config, "is_causal", False)),
        "config says is_causal=False",
    ),
    "a layer that is not causal": (
        lambda: changed("qwen3", lambda d: setattr(d.layers[1].self_attn, "is_causal", False)),
        "layer 1 of the decoder is not causal",
    ),
    "fewer layers": (lambda: changed("llama", lambda d: d.layers.__delitem__(2)), "the decoder has 2 layers and its config says 3"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_computed_wrongly_is_refused(name):
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=f"Engine: .*{message}"):
        check_decoder(make())


def test_a_class_that_keeps_the_forward_is_taken():
    check_decoder(with_attention(Wrapped))


def test_a_layer_of_another_family_is_refused():
    decoder = made("qwen2").model
    decoder.layers[0].self_attn = LlamaAttention(sized(LlamaConfig), 0)
    with pytest.raises(ValueError, match="layer 0 of the decoder has a LlamaAttention in place of a Qwen2Attention"):
        check_decoder(decoder)
