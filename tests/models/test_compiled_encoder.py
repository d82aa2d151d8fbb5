"""The encoder's compiled layers: the values and gradients of the plain ones, one compilation for all layers and lengths.

A backend that traces and lowers without a code generator stands in for the compiler, so that a CPU shows what a GPU will do.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.distributed as dist
from torch._dynamo.testing import CompileCounterWithBackend
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import init_device_mesh

from arkfast.models import compiled
from arkfast.models.arkasr.audio_tower import EncoderLayer
from arkfast.models.arkasr.modeling import ArkasrForConditionalGeneration
from arkfast.records import InputError
from arkfast.testing import perturb, tiny_model

LENGTHS = [(203, 118, 60, 5), (90, 31), (64,), (300, 2, 41), (17, 18)]
MOST = 1e-5
PARTS = 2
"""Compiled functions of a layer: before its attention and behind it."""
Encoded = tuple[list[torch.Tensor], dict[str, torch.Tensor]]


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Iterator[CompileCounterWithBackend]:
    """Compilation is switched on; how many graphs were compiled."""
    counted = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(compiled, "BACKEND", counted)
    monkeypatch.setattr(compiled, "_refused", [])
    monkeypatch.setenv(compiled.COMPILE, "1")
    torch._dynamo.reset()
    yield counted
    compiled._compiled.cache_clear()
    torch._dynamo.reset()


def encoded(model: ArkasrForConditionalGeneration, *, packed: bool = True) -> Encoded:
    """Embeddings of batches of five lengths, and the summed gradients of all that is trained."""
    generator, found = torch.Generator().manual_seed(3), []
    model.zero_grad()
    for frames in LENGTHS:
        mel = torch.randn(len(frames), 128, max(frames), generator=generator)
        embeddings, _ = model.get_audio_features(mel, torch.tensor(frames), frames=frames if packed else None)
        if embeddings.requires_grad:
            (embeddings * torch.randn(embeddings.shape, generator=generator)).sum().backward()
        found.append(embeddings.detach())
    return found, {name: p.grad.clone() for name, p in model.audio_encoder.named_parameters() if p.grad is not None}


def assert_same(got: Encoded, want: Encoded) -> None:
    for a, b in zip(got[0], want[0], strict=True):
        assert float((a - b).abs().max()) <= MOST * float(b.abs().max())
    assert got[1].keys() == want[1].keys()
    for name, gradient in want[1].items():
        assert float((got[1][name] - gradient).norm()) <= MOST * float(gradient.norm()), name


def plain(run: Callable[[], Encoded]) -> Encoded:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(compiled.COMPILE, "0")
        return run()


def trained(**options: bool) -> ArkasrForConditionalGeneration:
    return perturb(tiny_model(0, **options)).train()


def test_layers_and_lengths_share_one_compilation(counter: CompileCounterWithBackend) -> None:
    model = trained()
    assert len(model.audio_encoder.whisper.layers) > 1
    names = [*model.state_dict()]
    assert_same(encoded(model), plain(lambda: encoded(model)))
    assert counter.frame_count == PARTS
    assert [*model.state_dict()] == names
    assert not compiled._refused


def test_the_masked_form_is_compiled_too(counter: CompileCounterWithBackend) -> None:
    model = trained()
    assert_same(encoded(model, packed=False), plain(lambda: encoded(model, packed=False)))
    assert counter.frame_count <= 3 * PARTS, "one clip alone, and one whose frames are all its own, may be laid out otherwise"


def test_without_gradients(counter: CompileCounterWithBackend) -> None:
    model = trained().eval()
    with torch.no_grad():
        assert_same(encoded(model), plain(lambda: encoded(model)))
    assert counter.frame_count == PARTS


def checkpointing(model: ArkasrForConditionalGeneration) -> None:
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def frozen(model: ArkasrForConditionalGeneration) -> None:
    model.audio_encoder.whisper.requires_grad_(False)


def half_frozen(model: ArkasrForConditionalGeneration) -> None:
    model.audio_encoder.whisper.layers[0].requires_grad_(False)


@pytest.mark.parametrize("change", [checkpointing, frozen, half_frozen])
def test_what_training_does_to_a_tower(counter: CompileCounterWithBackend, change: Callable[..., None]) -> None:
    model = trained()
    change(model)
    assert_same(encoded(model), plain(lambda: encoded(model)))
    assert PARTS <= counter.frame_count <= 2 * PARTS, "a frozen layer and a trained one are compiled once each"
    assert not compiled._refused


def test_adapters(counter: CompileCounterWithBackend) -> None:
    """Beside the projections' own weights, as LoRA puts them."""

    class Adapted(torch.nn.Linear):
        a: torch.nn.Parameter
        b: torch.nn.Parameter

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input) + input @ self.a.t() @ self.b.t()

    model = trained().requires_grad_(False)
    for layer in model.audio_encoder.whisper.layers:
        for linear in (layer.self_attn.q_proj, layer.fc1):
            linear.__class__ = Adapted
            linear.a = torch.nn.Parameter(torch.randn(2, linear.in_features))
            linear.b = torch.nn.Parameter(torch.randn(linear.out_features, 2))
    got = encoded(model)
    assert all(gradient.any() for gradient in got[1].values())
    assert len(got[1]) == 4 * len(model.audio_encoder.whisper.layers)
    assert_same(got, plain(lambda: encoded(model)))
    assert counter.frame_count == 2 * PARTS, "nothing before the first layer is trained, which is compiled for itself"


def test_sharded_layers(counter: CompileCounterWithBackend) -> None:
    """FSDP2 gathers a layer's weights around its forward, within which its parts are compiled."""
    ours = not dist.is_initialized()
    if ours:
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        want = plain(lambda: encoded(trained()))
        model, mesh = trained(), init_device_mesh("cpu", (1,))
        for layer in model.audio_encoder.whisper.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model.audio_encoder, mesh=mesh)
        got = encoded(model)
        assert_same((got[0], {name: gradient.full_tensor() for name, gradient in got[1].items()}), want)
        assert counter.frame_count == PARTS
        assert not compiled._refused
    finally:
        if ours:
            dist.destroy_process_group()


def test_a_compiler_that_fails_costs_one_warning(counter: CompileCounterWithBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError("no space left for what is compiled")

    monkeypatch.setattr(compiled, "BACKEND", broken)
    model = trained()
    with pytest.warns(RuntimeWarning, match="could not be compiled and runs slower .*no space left .*ARKFAST_COMPILE_ENCODER=0") as said:
        got = encoded(model)
    assert len(said) == 1
    assert_same(got, plain(lambda: encoded(model)))


def test_the_switch() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda:0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "_refused", [])
        patch.setattr(compiled, "device_refusal", lambda device: None)
        assert compiled.wanted(gpu, {})
        assert not compiled.wanted(cpu, {})
        assert not compiled.wanted(gpu, {compiled.COMPILE: "0"})
        assert compiled.wanted(cpu, {compiled.COMPILE: "1"})
        patch.setattr(compiled, "device_refusal", lambda device: "no compiler")
        assert not compiled.wanted(gpu, {})
    with pytest.raises(InputError, match="ARKFAST_COMPILE_ENCODER=yes: must be 0 or 1"):
        compiled.wanted(gpu, {compiled.COMPILE: "yes"})


def test_on_a_cpu_nothing_is_compiled_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(compiled.COMPILE, raising=False)
    monkeypatch.setattr(compiled, "_compiled", lambda *_: pytest.fail("compiled"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoded(trained())


@pytest.mark.slow
def test_the_compiler_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inductor's own code for the CPU, values and gradients."""
    monkeypatch.setattr(compiled, "_refused", [])
    monkeypatch.setenv(compiled.COMPILE, "1")
    torch._dynamo.reset()
    model = trained()
    assert_same(encoded(model), plain(lambda: encoded(model)))
    assert not compiled._refused
    assert isinstance(model.audio_encoder.whisper.layers[0], EncoderLayer)
    torch._dynamo.reset()
