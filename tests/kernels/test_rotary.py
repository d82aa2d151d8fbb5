"""The rotation of neighbours against float64: values, gradients, layouts, lengths of every kind, and under torch.compile."""

from __future__ import annotations

import pytest
import torch

from arkfast.kernels import rotary

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# The encoder's heads, with as many keys; fewer keys; all features turned; one pair; and numbers that no power of two divides.
SHAPES = [(3, 20, 20, 64, 16), (1, 4, 2, 16, 8), (2, 1, 3, 2, 1), (17, 3, 5, 22, 7), (5, 2, 2, 33, 11), (2, 1, 1, 256, 64)]


def example(positions: int, heads: int, groups: int, size: int, pairs: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """(q, k, cos, sin)."""
    turn = 6 * torch.rand(positions, pairs)
    return (
        torch.randn(positions, heads, size).to(dtype),
        torch.randn(positions, groups, size).to(dtype),
        turn.cos().to(dtype),
        turn.sin().to(dtype),
    )


def exact(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, way: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """x turned, in float64 and pair by pair, and what its rounding errors go by: nothing where features pass unchanged."""
    x, cos, sin = x.double(), cos.double()[:, None], way * sin.double()[:, None]
    want, size = x.clone(), torch.zeros_like(x)
    for i in range(cos.shape[2]):
        a, b, c, s = x[..., 2 * i], x[..., 2 * i + 1], cos[..., i], sin[..., i]
        want[..., 2 * i], want[..., 2 * i + 1] = a * c - b * s, b * c + a * s
        size[..., 2 * i], size[..., 2 * i + 1] = (a * c).abs() + (b * s).abs(), (b * c).abs() + (a * s).abs()
    return want, size


def assert_turned(got: torch.Tensor, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, way: int = 1) -> None:
    want, size = exact(x, cos, sin, way)
    assert got.shape == x.shape
    assert got.dtype == x.dtype
    assert got.is_contiguous()
    info = torch.finfo(x.dtype)
    # Both products and their sum are rounded.
    assert ((got.double() - want).abs() <= 1.01 * info.eps * size + 3 * info.eps * info.tiny * (size > 0)).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_within_the_roundings_of_the_definition(backend, shape, dtype):
    q, k, cos, sin = example(*shape, dtype)
    for got, x in zip(rotary(q, k, cos, sin, backend=backend), (q, k), strict=True):
        assert_turned(got, x, cos, sin)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gradient_is_turned_back(backend, shape, dtype):
    q, k, cos, sin = example(*shape, dtype)
    d_q, d_k = torch.randn_like(q), torch.randn_like(k)
    for wanted in ((True, True), (True, False), (False, True)):
        leaves = [x.clone().requires_grad_(want) for x, want in zip((q, k), wanted, strict=True)]
        torch.autograd.backward(
            [out for out in rotary(*leaves, cos, sin, backend=backend) if out.requires_grad],
            [d for d, out in zip((d_q, d_k), rotary(*leaves, cos, sin, backend=backend), strict=True) if out.requires_grad],
        )
        for leaf, d, want in zip(leaves, (d_q, d_k), wanted, strict=True):
            if want:
                assert_turned(leaf.grad, d, cos, sin, way=-1)
            else:
                assert leaf.grad is None


def test_the_torch_backends_gradients_are_those_of_its_own_operations():
    from arkfast.kernels.rotary import reference

    q, k, cos, sin = example(9, 4, 3, 24, 6, torch.float64)
    q.requires_grad_(), k.requires_grad_()
    weights = torch.randn(9, 4, 24).double(), torch.randn(9, 3, 24).double()

    def gradients(found: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(sum((x * w).sum() for x, w in zip(found, weights, strict=True)), (q, k))

    plain = gradients((reference.turned(q, cos, sin), reference.turned(k, cos, sin)))
    assert all(torch.equal(a, b) for a, b in zip(gradients(rotary(q, k, cos, sin)), plain, strict=True))


def test_gradients_by_differences_once_and_twice():
    q, k, cos, sin = example(3, 2, 1, 6, 2, torch.float64)
    q.requires_grad_(), k.requires_grad_()
    torch.autograd.gradcheck(lambda q, k: rotary(q, k, cos, sin), (q, k))
    torch.autograd.gradgradcheck(lambda q, k: rotary(q, k, cos, sin), (q, k))


def test_turning_back_gives_the_inputs_and_lengths_stay(backend):
    q, k, cos, sin = example(11, 3, 2, 32, 8, torch.float32)
    there = rotary(q, k, cos, sin, backend=backend)
    for back, turned, x in zip(rotary(*there, cos, -sin, backend=backend), there, (q, k), strict=True):
        torch.testing.assert_close(back, x, rtol=0, atol=2e-6)
        torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1), rtol=1e-5, atol=0)


def test_parts_of_one_product_and_other_layouts(backend):
    """Queries and keys of a fused projection, heads before positions, a table repeated for many rows, features that are no neighbours."""
    q, k, cos, sin = example(6, 4, 2, 16, 4, torch.float32)
    want = rotary(q, k, cos, sin, backend=backend)
    fused = torch.cat([q.flatten(1), k.flatten(1), torch.randn(6, 32)], 1)
    parts = fused[:, :64].unflatten(1, (4, 16)), fused[:, 64:96].unflatten(1, (2, 16))
    turned_round = q.transpose(0, 1).contiguous().transpose(0, 1), k.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    wide = torch.cat([cos, sin], 1)
    for given in (parts, turned_round):
        found = rotary(*given, wide[:, :4], wide[:, 4:], backend=backend)
        assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True))
    one = rotary(q, k, cos[:1].expand(6, 4), sin[:1].expand(6, 4), backend=backend)
    assert torch.equal(one[0], rotary(q, k, cos[:1].repeat(6, 1), sin[:1].repeat(6, 1), backend=backend)[0])


def test_what_does_not_turn_passes_whatever_it_is(backend):
    q, k, cos, sin = example(4, 2, 2, 8, 2, torch.float32)
    q[..., 4:] = torch.tensor([float("inf"), -float("inf"), -0.0, 3e38])
    got = rotary(q, k, cos, sin, backend=backend)[0]
    assert torch.equal(got[..., 4:], q[..., 4:])
    assert got[..., :4].isfinite().all()


@pytest.mark.parametrize("seed", range(3))
def test_positions_of_any_number_do_not_depend_on_each_other(backend, seed):
    generator = torch.Generator().manual_seed(seed)
    for positions in [0, 1, *torch.randint(2, 150, (4,), generator=generator).tolist()]:
        q, k, cos, sin = example(positions, 3, 2, 12, 3, torch.bfloat16)
        whole = rotary(q, k, cos, sin, backend=backend)
        cut = positions // 3
        for part in (slice(0, cut), slice(cut, positions)):
            found = rotary(q[part], k[part], cos[part], sin[part], backend=backend)
            assert all(torch.equal(a, b[part]) for a, b in zip(found, whole, strict=True))


def test_one_graph_takes_it_at_any_length():
    """torch.compile sees one operator, forward and backward, and lengths are symbols."""
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda q, k, cos, sin: rotary(2 * q, k, cos, sin), backend=counter, dynamic=True, fullgraph=True)
    for positions in (5, 9, 2, 30, 7):
        q, k, cos, sin = example(positions, 3, 2, 12, 3, torch.float32)
        leaves = q.clone().requires_grad_(), k.clone().requires_grad_()
        found = compiled(*leaves, cos, sin)
        (found[0].sum() + found[1].sum()).backward()
        want = rotary(2 * q, k, cos, sin)
        assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True))
        assert torch.equal(leaves[0].grad, 2 * rotary(torch.ones_like(q), k, cos, -sin)[0])
    assert counter.frame_count == 1
