"""Speech models of random weights and clips of random features, at a shape's sizes, and what their passes cost at least.

One model is kept at a time, since the shapes of one model follow each other.
"""

from __future__ import annotations

import functools

import torch
from shapes import DECODERS, MODELS, encoder_frames, prompt_length

from arkfast.data import pad_right
from arkfast.models.arkasr.config import ArkasrConfig
from arkfast.models.arkasr.modeling import ArkasrForConditionalGeneration
from arkfast.models.arkasr.prompt import Prompt
from arkfast.records import AllowedTokens, Batch
from harness.common import normal

N_MELS = 128
GAIN = 1.25
"""Root of a decoder's width times the standard deviation of weights: at less, a random model says one token over and over, and any two
answers agree; at more, it makes ever more of every rounding."""
CONV_KERNEL = 3


def data_type(device: torch.device) -> torch.dtype:
    """What models are in: float32 on a CPU, where an answer is compared token by token."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def itemsize(H: int) -> int:
    """Bytes of a number of the model: those that a CPU can run are there in float32."""
    return 2 if H >= 896 else 4


def allowed(H: int) -> AllowedTokens:
    """The text, and the end as the official vocabulary places it after two more."""
    text = MODELS[H].text
    return AllowedTokens(ranges=((0, text),), stop_ids=(text + 2,))


def prompt(H: int) -> Prompt:
    """A prompt as long as the official one."""
    text = MODELS[H].text
    return Prompt(prefix=(text + 3, text + 4), audio_id=text + 20, suffix=(text + 5, *range(7), text + 6))


@functools.lru_cache(maxsize=1)
def model(H: int, device: torch.device) -> ArkasrForConditionalGeneration:
    """The model of a decoder of width ``H``, made on the device. Its end token scores 0, so that it never wins unasked."""
    heads, groups, _, inner = DECODERS[H]
    sizes = MODELS[H]
    config = ArkasrConfig(
        vocab_size=sizes.V, hidden_size=H, intermediate_size=inner, num_hidden_layers=sizes.layers, num_attention_heads=heads,
        num_key_value_heads=groups, max_position_embeddings=4_096, audio_token_id=sizes.text + 20, initializer_range=GAIN / H**0.5,
        eos_token_id=sizes.text + 2, pad_token_id=sizes.text, bos_token_id=sizes.text,
        whisper_config={
            "d_model": sizes.width, "encoder_layers": sizes.encoder_layers, "encoder_attention_heads": sizes.encoder_heads,
            "encoder_ffn_dim": sizes.encoder_inner,
        },
    )  # fmt: skip
    before = torch.get_default_dtype()
    torch.set_default_dtype(data_type(device))
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.device(device):
            torch.manual_seed(0)
            made = ArkasrForConditionalGeneration(config).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)
    made.lm_head.weight[sizes.text + 2] = 0
    return made


def clips(H: int, seconds: list[float], device: torch.device, seed: int) -> Batch:
    """Clips of such lengths with random features, on the device."""
    frames = [round(100 * one) for one in seconds]
    mel = torch.zeros(len(frames), N_MELS, max(frames), device=device)
    for i, n in enumerate(frames):
        mel[i, :, :n] = normal(N_MELS, n, device=device, seed=seed + i, dtype=torch.float32)
    return batch(mel, frames, [prompt(H).ids(n) for n in frames])


def batch(mel: torch.Tensor, frames: list[int], prompts: list[list[int]]) -> Batch:
    """Features [B, 128, T] of clips of so many frames, with their prompts, on the features' device."""
    device = mel.device
    ids, lens = pad_right(prompts)
    return Batch(
        ids=tuple(f"clip {i}" for i in range(len(frames))), keys=torch.arange(len(frames), device=device), mel=mel,
        mel_lens=torch.tensor(frames, device=device), mel_frames=tuple(frames), input_ids=ids.to(device), prompt_lens=lens.to(device),
        prompt_sizes=tuple(lens.tolist()), seconds=sum(frames) / 100,
    )  # fmt: skip


def mels(batch: Batch) -> list[torch.Tensor]:
    """Each clip's features without padding."""
    return [mel[:, :n] for mel, n in zip(batch.mel, batch.mel_lens.tolist(), strict=True)]


def left_padded(batch: Batch, pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, mask) [B, P] of the prompts as ``generate`` takes them."""
    width = batch.input_ids.shape[1]
    place = torch.arange(width, device=batch.input_ids.device) - (width - batch.prompt_lens)[:, None]
    inside = place >= 0
    return torch.where(inside, batch.input_ids.gather(1, place.clamp_min(0)), pad), inside.long()


def wider(dtype: torch.dtype) -> torch.dtype:
    """The type that an answer in ``dtype`` is compared with."""
    return torch.float64 if dtype == torch.float32 else torch.float32


# -- what a pass costs: multiplications and additions of its products and of attention, and the numbers that it cannot help but read --


def layer_weights(H: int) -> int:
    """Parameters of one of the decoder's layers: projections with the biases of queries, keys and values, feed-forward, two norms."""
    heads, groups, size, inner = DECODERS[H]
    return 2 * H * heads * size + heads * size + 2 * (H + 1) * groups * size + 3 * H * inner + 2 * H


def scored(H: int) -> int:
    """Ids of the vocabulary that are scored: as few as hold all that may be produced."""
    return allowed(H).width(MODELS[H].V)


def decoder_weights(H: int) -> int:
    """Parameters of its layers, its last norm and the rows of its head that are scored."""
    return MODELS[H].layers * layer_weights(H) + H + scored(H) * H


def position_numbers(H: int) -> int:
    """Numbers that the cache keeps for each position."""
    _, groups, size, _ = DECODERS[H]
    return 2 * MODELS[H].layers * groups * size


def step_flop(H: int, keys: int) -> int:
    """One token of one row that looks at so many keys."""
    heads, _, size, _ = DECODERS[H]
    return 2 * decoder_weights(H) + 4 * MODELS[H].layers * heads * size * keys


def prefill_flop(H: int, seconds: float) -> int:
    """A clip's prompt: attention is causal, and one position goes to the head."""
    heads, _, size, _ = DECODERS[H]
    length, sizes = prompt_length(seconds), MODELS[H]
    return 2 * length * sizes.layers * layer_weights(H) + 2 * sizes.layers * heads * size * length**2 + 2 * scored(H) * H


def encoder_weights(H: int) -> int:
    """Parameters of the encoder and the adapter's products, biases and norms left out."""
    sizes = MODELS[H]
    width, layer = sizes.width, 4 * sizes.width**2 + 2 * sizes.width * sizes.encoder_inner
    convolutions, adapter = CONV_KERNEL * width * (N_MELS + width), 4 * width * 2 * H + 2 * H * H
    return sizes.encoder_layers * layer + convolutions + adapter


def encoder_flop(H: int, seconds: float) -> int:
    """A clip through the convolutions, the layers and the adapter."""
    sizes, frames = MODELS[H], encoder_frames(seconds)
    width = sizes.width
    layer = 2 * frames * (4 * width**2 + 2 * width * sizes.encoder_inner) + 4 * frames**2 * width
    convolutions = 2 * CONV_KERNEL * width * (2 * frames * N_MELS + frames * width)
    adapter = 2 * (frames // 4) * (4 * width * 2 * H + 2 * H * H)
    return sizes.encoder_layers * layer + convolutions + adapter
