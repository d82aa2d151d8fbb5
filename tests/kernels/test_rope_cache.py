"""The rotation and the write into a cache against float64, against Transformers' function, and for what must stay untouched."""

from __future__ import annotations

import pytest
import torch

from arkfast.kernels import rope_cache

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def angles(rows: int, size: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines as a decoder makes them: each angle for a feature and for the one half a head on."""
    turn = (6 * torch.rand(rows, size // 2)).repeat(1, 2)
    return turn.cos().to(dtype), turn.sin().to(dtype)


def example(rows: int, heads: int, groups: int, size: int, dtype: torch.dtype, length: int = 9) -> dict[str, torch.Tensor]:
    """A step of ``rows`` tokens, and caches of two rows more that hold random numbers."""
    cos, sin = angles(rows, size, dtype)
    return {
        "q": torch.randn(rows, heads * size).to(dtype),
        "k": torch.randn(rows, groups * size).to(dtype),
        "v": torch.randn(rows, groups * size).to(dtype),
        "cos": cos,
        "sin": sin,
        "keys": torch.randn(rows + 2, groups, length, size).to(dtype),
        "values": torch.randn(rows + 2, groups, length, size).to(dtype),
        "positions": torch.randint(0, length, (rows,)),
    }


def exact(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x [T, heads · D] with each pair of features turned, [T, heads, D] in float64, and what its rounding errors go by."""
    x, cos, sin = x.double().unflatten(1, (-1, cos.shape[1])), cos.double()[:, None], sin.double()[:, None]
    half = cos.shape[-1] // 2
    want, size = torch.empty_like(x), torch.empty_like(x)
    for d in range(half):
        a, b = x[..., d], x[..., d + half]
        want[..., d] = a * cos[..., d] - b * sin[..., d]
        want[..., d + half] = b * cos[..., d + half] + a * sin[..., d + half]
        size[..., d] = (a * cos[..., d]).abs() + (b * sin[..., d]).abs()
        size[..., d + half] = (b * cos[..., d + half]).abs() + (a * sin[..., d + half]).abs()
    return want, size


# The decoders of the family, one head, heads of two features, and numbers that no power of two divides.
@pytest.mark.parametrize(("rows", "heads", "groups", "size"), [(3, 14, 2, 64), (1, 16, 2, 128), (2, 1, 1, 2), (5, 6, 3, 20), (2, 5, 5, 66)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_within_the_roundings_of_the_definition(backend, rows, heads, groups, size, dtype):
    x = example(rows, heads, groups, size, dtype)
    before = {name: x[name].clone() for name in ("keys", "values")}
    got = rope_cache(**x, backend=backend)
    assert got.shape == (rows, heads, size)
    assert got.dtype == dtype
    info = torch.finfo(dtype)
    for turned, source in ((got, x["q"]), (x["keys"][range(rows), :, x["positions"]], x["k"])):
        want, error = exact(source, x["cos"], x["sin"])
        # Both products and their sum are rounded.
        assert ((turned.double() - want).abs() <= 1.01 * info.eps * error + 3 * info.eps * info.tiny).all()
    assert torch.equal(x["values"][range(rows), :, x["positions"]], x["v"].unflatten(1, (groups, size)))
    for name in before:
        x[name][range(rows), :, x["positions"]] = before[name][range(rows), :, x["positions"]]
        assert torch.equal(x[name], before[name]), f"{name} changed elsewhere than at the rows' positions"


def norms(size: int, dtype: torch.dtype, eps: float = 1e-6) -> dict[str, torch.Tensor | float]:
    """Weights for the heads of queries and keys, and what is added to the mean square."""
    return {name: (1 + 0.3 * torch.randn(size)).to(dtype) for name in ("q_norm", "k_norm")} | {"eps": eps}


# Heads as Qwen3 has them and as above; an eps that counts, and a head of zeros, which only eps keeps finite.
@pytest.mark.parametrize(("heads", "groups", "size"), [(16, 8, 128), (14, 2, 64), (1, 1, 2), (6, 3, 20), (5, 5, 66)])
@pytest.mark.parametrize("eps", [1e-6, 0.5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_normalised_heads_within_the_roundings_of_the_definition(backend, heads, groups, size, eps, dtype):
    x, own = example(3, heads, groups, size, dtype), norms(size, dtype, eps)
    x["q"][1, :size] = 0.0
    got = rope_cache(**x, **own, backend=backend)
    assert got.dtype == dtype
    info = torch.finfo(dtype)
    for turned, source, weight in ((got, x["q"], own["q_norm"]), (x["keys"][range(3), :, x["positions"]], x["k"], own["k_norm"])):
        wide = source.double().unflatten(1, (-1, size))
        normed = weight.double() * wide / (wide.square().mean(-1, keepdim=True) + eps).sqrt()
        want, error = exact(normed.flatten(1), x["cos"], x["sin"])
        # Two roundings of the norm, both products and their sum are rounded, and float32 sums of squares.
        assert ((turned.double() - want).abs() <= (2.6 * info.eps + 1e-6) * error + 8 * info.eps * info.tiny).all()
    assert torch.equal(x["values"][range(3), :, x["positions"]], x["v"].unflatten(1, (groups, size)))
    assert not got[1, 0].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_torch_backends_bits_with_norms_are_those_of_transformers(dtype):
    qwen3 = pytest.importorskip("transformers.models.qwen3.modeling_qwen3")
    x, own = example(4, 8, 4, 32, dtype), norms(32, dtype)
    want = []
    for name in ("q", "k"):
        norm = qwen3.Qwen3RMSNorm(32, eps=1e-6).to(dtype)
        norm.weight.data = own[f"{name}_norm"]
        want.append(norm(x[name].unflatten(1, (-1, 32))).detach()[:, :, None])
    want_q, want_k = qwen3.apply_rotary_pos_emb(*want, x["cos"][:, None], x["sin"][:, None])
    assert torch.equal(rope_cache(**x, **own, backend="torch"), want_q[:, :, 0])
    assert torch.equal(x["keys"][range(4), :, x["positions"]], want_k[:, :, 0])


def test_norms_make_heads_of_one_length_and_forget_their_scale(backend):
    """Heads have the length √D whatever the queries' scale is, and the values none of it."""
    x = example(4, 3, 3, 16, torch.float32)
    ones = {"q_norm": torch.ones(16), "k_norm": torch.ones(16), "eps": 1e-12}
    got = rope_cache(**x, **ones, backend=backend)
    torch.testing.assert_close(got.norm(dim=-1), torch.full((4, 3), 4.0), rtol=1e-5, atol=0)
    torch.testing.assert_close(rope_cache(**x | {"q": 8 * x["q"]}, **ones, backend=backend), got, rtol=1e-5, atol=1e-6)
    assert torch.equal(x["values"][range(4), :, x["positions"]], x["v"].unflatten(1, (3, 16)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_torch_backends_bits_are_those_of_transformers(dtype):
    """The kernel's are the torch backend's: ``interpret`` and ``gpu`` compare them."""
    qwen2 = pytest.importorskip("transformers.models.qwen2.modeling_qwen2")
    x = example(4, 14, 2, 64, dtype)
    q, k = (x[name].unflatten(1, (-1, 64))[:, :, None] for name in ("q", "k"))
    want_q, want_k = qwen2.apply_rotary_pos_emb(q, k, x["cos"][:, None], x["sin"][:, None])
    got = rope_cache(**x, backend="torch")
    assert torch.equal(got, want_q[:, :, 0])
    assert torch.equal(x["keys"][range(4), :, x["positions"]], want_k[:, :, 0])


def test_float64_is_computed_in_float64():
    x = example(3, 4, 2, 8, torch.float64)
    got = rope_cache(**x)
    torch.testing.assert_close(got, exact(x["q"], x["cos"], x["sin"])[0], rtol=1e-13, atol=1e-14)
    own = norms(8, torch.float64)
    normed = torch.nn.functional.rms_norm(x["q"].unflatten(1, (-1, 8)), (8,), own["q_norm"], 1e-6)
    torch.testing.assert_close(rope_cache(**x, **own), exact(normed.flatten(1), x["cos"], x["sin"])[0], rtol=1e-13, atol=1e-14)


def test_no_turn_changes_nothing_and_a_turn_keeps_lengths(backend):
    x = example(4, 3, 1, 16, torch.float32)
    got = rope_cache(**x, backend=backend)
    torch.testing.assert_close(got.norm(dim=-1), x["q"].unflatten(1, (3, 16)).norm(dim=-1), rtol=1e-5, atol=0)
    x["cos"].fill_(1.0)
    x["sin"].zero_()
    assert torch.equal(rope_cache(**x, backend=backend), x["q"].unflatten(1, (3, 16)))


def test_the_two_halves_of_an_angle_may_differ(backend):
    x = example(3, 2, 1, 6, torch.float32)
    x["cos"], x["sin"] = torch.randn(3, 6), torch.randn(3, 6)
    want, size = exact(x["q"], x["cos"], x["sin"])
    assert ((rope_cache(**x, backend=backend).double() - want).abs() <= 2e-7 * size).all()


def test_parts_of_one_product_and_caches_of_any_layout(backend):
    """Queries, keys and values of a fused projection; a layer of a cache of many; a cache whose positions stand before its heads."""
    x = example(3, 4, 2, 8, torch.float32)
    want = rope_cache(**x, backend=backend)
    fused = torch.cat([x["q"], x["k"], x["v"]], 1)
    layers = torch.zeros(2, *x["keys"].shape)
    before_heads = torch.zeros(5, 9, 2, 8).transpose(1, 2)
    strided = x | {"keys": layers[1], "values": before_heads} | dict(zip("qkv", fused.split([32, 16, 16], 1), strict=True))
    strided |= {"cos": x["cos"].repeat(1, 2)[:, :8], "positions": x["positions"].int().repeat_interleave(2)[::2]}
    assert torch.equal(rope_cache(**strided, backend=backend), want)
    rows, at = range(3), x["positions"]
    assert torch.equal(layers[1][rows, :, at], x["keys"][rows, :, at])
    assert torch.equal(before_heads[rows, :, at], x["values"][rows, :, at])
    assert not layers[0].any()


@pytest.mark.parametrize("position", [-1, 9])
def test_a_position_outside_the_cache(backend, position):
    x = example(3, 4, 2, 8, torch.float32)
    x["positions"][1] = position
    before = {name: x[name].clone() for name in ("keys", "values")}
    if backend == "torch":
        with pytest.raises((RuntimeError, IndexError), match="out of bounds"):
            rope_cache(**x, backend=backend)
        return
    got = rope_cache(**x, backend=backend)
    assert got[1].isnan().all()
    assert got[[0, 2]].isfinite().all()
    for name in before:
        assert torch.equal(x[name][[1, 3, 4]], before[name][[1, 3, 4]])


def test_no_rows(backend):
    x = example(0, 4, 2, 8, torch.float32)
    before = x["keys"].clone()
    assert rope_cache(**x, backend=backend).shape == (0, 4, 8)
    assert torch.equal(x["keys"], before)
