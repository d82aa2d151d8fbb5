"""The four ops of a decode step on a GPU: float64 at the decoders' shapes, the same bits again, no wait, and a step in one CUDA graph."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from arkfast.kernels import add_rms_norm, decode_attention, rope_cache, swiglu

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
DECODERS = {"0.6B": (896, 14, 2, 64, 4864), "3B": (2048, 16, 2, 128, 11_008)}
"""Hidden width, query heads, key-value heads, features of a head, width of the feed-forward layers."""
QWEN3 = {"Qwen3-0.6B": (1024, 16, 8, 128, 3072)}
"""The same of a decoder that normalises its queries and keys."""
LENGTH = 1200


def example(decoder: str, rows: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """A step of ``rows`` tokens whose rows of the cache are 1 to LENGTH long: one part of the attention, two and three."""
    hidden, heads, groups, size, inner = (DECODERS | QWEN3)[decoder]
    turn = (6 * torch.rand(rows, size // 2, device="cuda")).repeat(1, 2)
    widths = {"x": hidden, "residual": hidden, "q": heads * size, "k": groups * size, "v": groups * size, "gate": inner, "up": inner}
    return {
        **{name: torch.randn(rows, width, device="cuda").to(dtype) for name, width in widths.items()},
        "weight": (1 + 0.3 * torch.randn(hidden, device="cuda")).to(dtype),
        "cos": turn.cos().to(dtype),
        "sin": turn.sin().to(dtype),
        "keys": torch.randn(rows, groups, LENGTH, size, device="cuda").to(dtype),
        "values": torch.randn(rows, groups, LENGTH, size, device="cuda").to(dtype),
        "positions": torch.linspace(0, LENGTH - 1, rows, device="cuda").long(),
        **({name: (1 + 0.3 * torch.randn(size, device="cuda")).to(dtype) for name in ("q_norm", "k_norm")} if decoder in QWEN3 else {}),
    }


def step(c: dict[str, torch.Tensor], limit: int | None = None) -> tuple[torch.Tensor, ...]:
    """The ops in the order of a layer; its matrix products are left out."""
    normed, total = add_rms_norm(c["x"], c["residual"], c["weight"], 1e-6, backend="triton")
    norms = {"q_norm": c["q_norm"], "k_norm": c["k_norm"], "eps": 1e-6} if "q_norm" in c else {}
    query = rope_cache(*(c[name] for name in ("q", "k", "v", "cos", "sin", "keys", "values", "positions")), **norms, backend="triton")
    mixed = decode_attention(query, c["keys"], c["values"], c["positions"] + 1, limit=limit, backend="triton")
    return normed, total, query, mixed, swiglu(c["gate"], c["up"], backend="triton")


def turned(x: torch.Tensor, c: dict[str, torch.Tensor]) -> torch.Tensor:
    """The rotation with the roundings of its three operations, as torch runs them."""
    x = x.unflatten(1, (-1, c["cos"].shape[1]))
    low, high = x.chunk(2, -1)
    return x * c["cos"][:, None] + torch.cat((-high, low), -1) * c["sin"][:, None]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 64, 256])
@pytest.mark.parametrize("decoder", DECODERS)
def test_a_step_equals_float64(decoder, rows, dtype):
    c = example(decoder, rows, dtype)
    at = torch.arange(rows, device="cuda"), slice(None), c["positions"]
    keys, values = c["keys"].clone(), c["values"].clone()
    normed, total, query, mixed, gated = step(c)
    eps = torch.finfo(dtype).eps
    assert torch.equal(total, c["x"] + c["residual"])
    wide = total.double()
    want = c["weight"].double() * wide * torch.rsqrt(wide.square().mean(1, keepdim=True) + 1e-6)
    assert ((normed.double() - want).abs() <= (1.01 * eps + 2e-6) * want.abs() + eps * torch.finfo(dtype).tiny).all()
    assert torch.equal(query, turned(c["q"], c))
    keys[at], values[at] = turned(c["k"], c), c["v"].unflatten(1, (-1, query.shape[2]))
    assert torch.equal(c["keys"], keys)
    assert torch.equal(c["values"], values)
    seen = (torch.arange(LENGTH, device="cuda") <= c["positions"][:, None])[:, None, None]
    wide = F.scaled_dot_product_attention(query.double()[:, :, None], keys.double(), values.double(), attn_mask=seen, enable_gqa=True)
    size = F.scaled_dot_product_attention(query.double()[:, :, None], keys.double(), values.double().abs(), attn_mask=seen, enable_gqa=True)
    assert ((mixed.double() - wide[:, :, 0].flatten(1)).abs() <= (1.01 * eps + 2e-5) * size[:, :, 0].flatten(1)).all()
    want = F.silu(c["gate"].double()) * c["up"].double()
    assert ((gated.double() - want).abs() <= (1.01 * eps + 4e-6) * want.abs() + eps * torch.finfo(dtype).tiny * (1 + c["up"].abs())).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 256])
def test_normalised_heads_are_the_torch_backends(rows, dtype):
    """But for the order in which the squares are summed: float32 heads differ in their last bits, and roundings of narrow ones seldom."""
    c = example("Qwen3-0.6B", rows, dtype)
    norms = {"q_norm": c["q_norm"], "k_norm": c["k_norm"], "eps": 1e-6}
    results = []
    for backend in ("torch", "triton"):
        own = {name: c[name].clone() for name in ("q", "k", "v", "cos", "sin", "keys", "values", "positions")}
        results.append((rope_cache(**own, **norms, backend=backend), own["keys"], own["values"]))
    (query, keys, values), (got, got_keys, got_values) = results
    for a, b in ((query, got), (keys, got_keys)):
        units = 6 if dtype == torch.float32 else 2
        assert ((a.double() - b.double()).abs() <= units * torch.finfo(dtype).eps * a.double().abs().amax(-1, keepdim=True)).all()
        assert (a != b).double().mean() < 0.02 or dtype == torch.float32
    assert torch.equal(values, got_values)


def test_keys_past_a_rows_length_are_not_read():
    c = example("0.6B", 64, torch.bfloat16)
    want = step(c)[3]
    past = (torch.arange(LENGTH, device="cuda") > c["positions"][:, None])[:, None, :, None]
    c["keys"].masked_fill_(past, float("nan"))
    c["values"].masked_fill_(past, float("nan"))
    assert torch.equal(step(c)[3], want)


def test_the_same_bits_again_alone_and_in_a_longer_cache():
    c = example("0.6B", 64, torch.bfloat16)
    first, again = step(c), step(c)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    query, lens = first[2], c["positions"] + 1
    short = lens <= 512
    arguments = query[short], c["keys"][short], c["values"][short], lens[short]
    assert torch.equal(decode_attention(*arguments, limit=512, backend="triton"), first[3][short])
    assert torch.equal(decode_attention(*(x[3:4] for x in (query, c["keys"], c["values"], lens)), backend="triton"), first[3][3:4])


@pytest.mark.parametrize("decoder", DECODERS | QWEN3)
def test_nothing_waits_for_the_device(no_sync, decoder):
    c = example(decoder, 64, torch.bfloat16)
    step(c)
    with no_sync():
        step(c)


@pytest.mark.parametrize("limit", [512, LENGTH])
@pytest.mark.parametrize("decoder", DECODERS | QWEN3)
def test_a_step_in_a_cuda_graph(decoder, limit):
    """Replayed with other tokens at other positions, it writes where they stand and looks at as many keys as they have."""
    c = example(decoder, 64, torch.bfloat16)
    c["positions"].clamp_(max=limit - 2)
    step(c, limit)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step(c, limit)
    for _ in range(2):
        for name in ("x", "q", "k", "v", "gate"):
            c[name].copy_(torch.randn_like(c[name]))
        c["positions"].copy_(torch.randint(0, limit, (64,), device="cuda"))
        alone = {name: part.clone() for name, part in c.items()}
        want = step(alone, limit)
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(out, want, strict=True))
        assert torch.equal(c["keys"], alone["keys"])
        assert torch.equal(c["values"], alone["values"])
