"""The audio encoder against an outside implementation, alone and in batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GlmAsrEncoderConfig
from transformers.models.glmasr.modeling_glmasr import GlmAsrEncoder

from arkfast.kernels import rotary
from arkfast.models import packing
from arkfast.models.arkasr.audio_tower import FP16_LIMIT, EncoderLayer, audio_token_count, rope_tables
from arkfast.models.arkasr.modeling import ArkasrForConditionalGeneration
from arkfast.testing import perturb, tiny_config, tiny_model

TOLERANCE = 1e-5  # of the values' own size: float32 sums of a few hundred terms in another order


def _difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.fixture(scope="module")
def model() -> ArkasrForConditionalGeneration:
    return perturb(tiny_model(0))


@pytest.fixture
def mel() -> torch.Tensor:
    return torch.randn(4, 128, 203, generator=torch.Generator().manual_seed(1))


def _as_glm(model: ArkasrForConditionalGeneration) -> GlmAsrEncoder:
    """Transformers' encoder with our weights: it rotates halves where ARK rotates neighbours, so q and k rows are permuted."""
    whisper = model.config.whisper_config
    heads, width = whisper.encoder_attention_heads, whisper.d_model
    config = GlmAsrEncoderConfig(
        hidden_size=width,
        intermediate_size=whisper.encoder_ffn_dim,
        num_hidden_layers=whisper.encoder_layers,
        num_attention_heads=heads,
        num_mel_bins=128,
        max_position_embeddings=1500,
        attn_implementation="sdpa",
    )
    glm = GlmAsrEncoder(config).eval()
    head_dim = width // heads
    rotated = head_dim // 2
    within = [*range(0, rotated, 2), *range(1, rotated, 2), *range(rotated, head_dim)]
    rows = torch.tensor([head * head_dim + row for head in range(heads) for row in within])
    renamed = {}
    for name, value in model.audio_encoder.state_dict().items():
        if name.startswith("adapting"):
            continue
        if ".q_proj." in name or ".k_proj." in name:
            value = value[rows]
        name = name.removeprefix("whisper.")
        for ours, theirs in (
            ("out_proj", "o_proj"),
            ("self_attn_layer_norm", "input_layernorm"),
            ("final_layer_norm", "post_attention_layernorm"),
            ("fc1", "mlp.fc1"),
            ("fc2", "mlp.fc2"),
        ):
            name = name.replace(ours, theirs)
        renamed["norm" + name.removeprefix("layer_norm") if name.startswith("layer_norm") else name] = value
    glm.load_state_dict(renamed)
    return glm


@torch.no_grad()
@pytest.mark.parametrize("frames", [200, 203, 57])  # even, odd, and not a multiple of the merge
def test_equals_transformers_glm_encoder(model: ArkasrForConditionalGeneration, mel: torch.Tensor, frames: int) -> None:
    mel = mel[:, :, :frames]
    encoder = model.audio_encoder
    ours = encoder.layer_norm(encoder.whisper(mel, None)[0])
    assert _difference(ours, _as_glm(model)(mel).last_hidden_state) <= TOLERANCE


def test_rotation_is_of_neighbours_in_the_first_half() -> None:
    cos, sin = rope_tables(5, 8, torch.device("cpu"), torch.float32)
    x = torch.randn(5, 1, 8, generator=torch.Generator().manual_seed(0))
    y, _ = rotary(x, x, cos, sin)
    torch.testing.assert_close(y[..., 4:], x[..., 4:], rtol=0, atol=0)
    for t in range(5):
        for pair, speed in enumerate((1.0, 0.01)):  # 10000^(0/4), 10000^(-2/4)
            turned = torch.view_as_complex(x[t, 0, 2 * pair : 2 * pair + 2].contiguous()) * torch.exp(torch.tensor(1j * t * speed))
            torch.testing.assert_close(torch.view_as_complex(y[t, 0, 2 * pair : 2 * pair + 2].contiguous()), turned, rtol=1e-6, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_clip_does_not_depend_on_its_batch(mel: torch.Tensor, attention: str) -> None:
    model = perturb(tiny_model(0))
    model.set_attn_implementation(attention)
    assert model.audio_encoder.whisper.layers[0].self_attn.config._attn_implementation == attention
    lens = torch.tensor([203, 118, 60, 5])  # the longest; S not a multiple of 4; even; under one merged frame
    mel = mel.clone()
    for row, length in enumerate(lens):
        mel[row, :, length:] = float("nan") if row == 2 else 7.0  # what lies in the padding must not matter
    together, counts = model.get_audio_features(mel, lens)
    assert counts.tolist() == [25, 14, 7, 1]
    for row, length in enumerate(lens):
        alone, count = model.get_audio_features(mel[row : row + 1, :, :length], lens[row : row + 1])
        plain, plain_count = model.get_audio_features(mel[row : row + 1, :, :length])
        assert int(count) == int(plain_count) == int(counts[row]) == alone.shape[1]
        assert _difference(together[row, : counts[row]], alone[0]) <= TOLERANCE
        assert _difference(alone, plain) <= TOLERANCE
        assert not together[row, counts[row] :].any()


@torch.no_grad()
def test_unmasked_encoding_attends_to_padding(model: ArkasrForConditionalGeneration, mel: torch.Tensor) -> None:
    unmasked = perturb(tiny_model(0, masked_encoding=False))
    lens = torch.tensor([203, 118, 60, 5])
    theirs, counts = unmasked.get_audio_features(mel, lens)
    ours, same_counts = model.get_audio_features(mel, lens)
    assert counts.tolist() == same_counts.tolist()
    assert _difference(theirs[0], ours[0]) <= TOLERANCE  # the longest row has no padding
    assert _difference(theirs[1, : counts[1]], ours[1, : counts[1]]) > 1e-2
    alone, _ = unmasked.get_audio_features(mel[1:2, :, :118], lens[1:2])
    masked_alone, _ = model.get_audio_features(mel[1:2, :, :118], lens[1:2])
    assert _difference(alone, masked_alone) <= TOLERANCE


@pytest.mark.parametrize(("frames", "count"), [(3000, 375), (1205, 150), (400, 50), (8, 1), (7, 1), (1, 1), (15, 2), (14, 1)])
def test_token_count_law(model: ArkasrForConditionalGeneration, frames: int, count: int) -> None:
    assert int(audio_token_count(torch.tensor([frames]), 4)) == count
    if frames < 1000:
        with torch.no_grad():
            embeddings, counts = model.get_audio_features(torch.randn(1, 128, frames))
        assert embeddings.shape[1] == int(counts) == count


def test_fp16_layers_are_clamped() -> None:
    layer = EncoderLayer(tiny_config()).half().eval()
    with torch.no_grad():
        layer.fc2.weight.zero_()
        layer.fc2.bias.fill_(50_000.0)
        layer.self_attn.out_proj.bias.fill_(40_000.0)
        cos, sin = rope_tables(4, 16, torch.device("cpu"), torch.float16)
        clamped = layer(torch.randn(1, 4, 32).half(), cos, sin, None)
        layer.float()
        free = layer(torch.randn(1, 4, 32), cos.float(), sin.float(), None)
    assert clamped.isfinite().all()
    assert float(clamped.max()) == float(torch.tensor(FP16_LIMIT).half())
    assert float(free.max()) > 80_000.0


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("seed", range(4))
def test_packed_clips_equal_masked_ones_and_each_alone(attention: str, seed: int) -> None:
    """Values and gradients, over random lengths and the shortest ones."""
    model = perturb(tiny_model(0))
    model.set_attn_implementation(attention)
    generator = torch.Generator().manual_seed(seed)
    frames = [*torch.randint(1, 300, (4 + seed,), generator=generator).tolist(), *([1, 8, 5, 2] if seed % 2 else [])]
    mel = torch.randn(len(frames), 128, max(frames), generator=generator)
    weight = torch.randn(len(frames), audio_token_count(max(frames)), model.config.hidden_size, generator=generator)
    for row, length in enumerate(frames):
        mel[row, :, length:] = float("nan")

    def encoded(**known: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        model.zero_grad()
        embeddings, counts = model.get_audio_features(mel, torch.tensor(frames), **known)
        assert counts.tolist() == [audio_token_count(n) for n in frames]
        (embeddings * weight).sum().backward()
        return embeddings.detach(), {name: p.grad.clone() for name, p in model.audio_encoder.named_parameters()}

    packed, gradients = encoded(frames=frames)
    masked, reference = encoded()
    assert packed.shape == masked.shape
    assert _difference(packed, masked) <= TOLERANCE
    for name, gradient in reference.items():
        assert float((gradients[name] - gradient).norm()) <= 1e-5 * float(gradient.norm()), name
    with torch.no_grad():
        for row, length in enumerate(frames):
            (alone,), _ = model.get_audio_features(mel[row : row + 1, :, :length])
            assert _difference(packed[row, : len(alone)], alone) <= TOLERANCE
            assert not packed[row, len(alone) :].any()


def test_no_layer_runs_over_padding(model: ArkasrForConditionalGeneration, mel: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    for module in (*model.audio_encoder.whisper.layers, model.audio_encoder.adapting):
        module.register_forward_pre_hook(lambda _, given: seen.append(tuple(given[0].shape)))
    frames = [203, 118, 60, 5]
    with torch.no_grad():
        model.get_audio_features(mel, torch.tensor(frames), frames=frames)
    layers, (adapter,) = seen[:-1], seen[-1:]
    assert set(layers) == {(102 + 59 + 30 + 3, 32)}
    assert adapter == (25 + 14 + 7 + 1, 4 * 32)


def test_on_a_gpu_all_clips_are_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is handed over, with a stand-in for the call and tensors that say that they are on a GPU."""
    given: list[Any] = []
    monkeypatch.setattr(packing, "varlen_attn", lambda *a, **b: (given.append((a, b)), a[0])[1])
    clips = packing.Packing([3, 1, 5], torch.device("cpu"))
    q = torch.randn(9, 2, 8).bfloat16()
    monkeypatch.setattr(packing, "on_gpu", lambda _: True)
    assert clips.attend(q, q, q, scale=0.5) is q
    ((_, _, _, begin, end, most, longest), options) = given[0]
    assert begin.tolist() == end.tolist() == [0, 3, 4, 9]
    assert begin.dtype == torch.int32
    assert (most, longest, options) == (5, 5, {"scale": 0.5, "window_size": (-1, -1)})
    for other in (q.float(), q[..., :4]):
        clips.attend(other, other, other)
    assert len(given) == 1, "varlen attention is of half precision, and of heads of a multiple of 8"


@pytest.mark.parametrize("known", [None, (203, 60)], ids=["masked", "packed"])
def test_gradient_checkpointing_gives_the_same_gradients(mel: torch.Tensor, known: tuple[int, ...] | None) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model(0).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        embeddings, _ = model.get_audio_features(mel[:2], torch.tensor([203, 60]), frames=known)
        embeddings.square().mean().backward()
        gradients.append({name: p.grad for name, p in model.audio_encoder.named_parameters()})
    assert all(g is not None and g.any() for g in gradients[0].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=0, atol=0)
