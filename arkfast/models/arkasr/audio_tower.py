"""The audio encoder of ARK-ASR: Whisper's convolutions and layers with rotary positions, a norm, and the adapter to the decoder's width.

Log-mel goes in and decoder embeddings come out, and a clip's embeddings do not depend on the clips beside it. Where the host knows the
clips' lengths, the layers run over clips laid end to end (``Packing``); the masked form beside it is the reference and serves those who
know the lengths on the device alone. Parameter names are those of the official checkpoints. Shape letters: B clips, T mel frames,
S = (T + 1) // 2 encoder frames, P frames of all clips, D encoder width, N = max(S // merge_factor, 1) embeddings, H decoder width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from arkfast.kernels import rotary
from arkfast.models.arkasr.config import ArkasrConfig
from arkfast.models.arkasr.prompt import audio_token_count, encoder_frames
from arkfast.models.compiled import call
from arkfast.models.packing import Packing

ROPE_BASE = 10_000.0
Clips: TypeAlias = Tensor | Packing | None
"""Which positions are whose: packed clips, a mask of padded ones, or None where every frame counts."""
FP16_LIMIT = 65_504.0 - 1_000.0  # the largest fp16 number less the original's margin


def rope_tables(frames: int, head_dim: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(cos, sin) [S, head_dim // 4]: angle ``t · 10000^(−2i/r)`` over the first ``r = head_dim // 2`` dimensions, in float32, then cast."""
    rotated = head_dim // 2
    frequency = 1.0 / ROPE_BASE ** (torch.arange(0, rotated, 2, device=device, dtype=torch.float32) / rotated)
    angle = torch.outer(torch.arange(frames, device=device, dtype=torch.float32), frequency)
    return angle.cos().to(dtype), angle.sin().to(dtype)


class EncoderAttention(nn.Module):
    """Bidirectional self-attention with rotary queries and keys; as in Whisper, the key projection has no bias."""

    def __init__(self, config: ArkasrConfig) -> None:
        super().__init__()
        width = config.encoder_width
        self.config = config
        self.heads = config.whisper.encoder_attention_heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [P, D] and the angles of its positions [P, head_dim // 4] → queries, keys and values [P, heads, head_dim]."""
        q, k, v = (project(x).unflatten(-1, (self.heads, -1)) for project in (self.q_proj, self.k_proj, self.v_proj))
        return *rotary(q, k, cos.to(q.dtype), sin.to(q.dtype)), v

    def attend(self, q: Tensor, k: Tensor, v: Tensor, clips: Clips, padded: tuple[int, ...]) -> Tensor:
        """Attend within each clip.

        Args:
            q, k, v: [P, heads, head_dim], of packed clips or of B · S padded positions.
            clips: where packed clips lie; or [B, S] bool, True where a frame may be attended to; None: every frame may be.
            padded: (B, S) of clips that are not packed.

        Returns:
            [P, D] or [B, S, D], before the output's projection.
        """
        # Any other implementation name (flash, the decoding engine's own) concerns the decoder: SDPA takes its fused kernels by itself.
        eager = self.config._attn_implementation == "eager"
        if isinstance(clips, Packing):
            return clips.attend(q, k, v, own=_eager_attention if eager else None).flatten(1)
        q, k, v = (states.unflatten(0, padded).transpose(1, 2) for states in (q, k, v))
        attend = _eager_attention if eager else F.scaled_dot_product_attention
        return attend(q, k, v, None if clips is None else clips[:, None, None]).transpose(1, 2).flatten(2)


def _eager_attention(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if key_mask is not None:
        scores = scores.masked_fill(~key_mask, float("-inf"))
    return scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ v


class EncoderLayer(GradientCheckpointingLayer):
    """One pre-norm layer: ``x += attention(norm(x)); x += fc2(gelu(fc1(norm(x))))``. No dropout: every checkpoint has 0."""

    def __init__(self, config: ArkasrConfig) -> None:
        super().__init__()
        whisper, width = config.whisper, config.encoder_width
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.self_attn = EncoderAttention(config)
        self.final_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, whisper.encoder_ffn_dim)
        self.fc2 = nn.Linear(whisper.encoder_ffn_dim, width)
        self.activation = ACT2FN[whisper.activation_function]

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, clips: Clips) -> Tensor:
        """x [P, D] of packed ``clips``; or [B, S, D], with ``clips`` [B, S] bool, True on a clip's own frames, or None when all are.

        ``cos`` and ``sin`` [P, head_dim // 4] belong to the P or B · S positions. What stands before and behind the attention is
        compiled where that is the choice (``arkfast.models.compiled``); the attention is a fused kernel already.
        """
        q, k, v = call(EncoderLayer.before, self, x.flatten(0, -2), cos, sin)
        mixed = self.self_attn.attend(q, k, v, clips, x.shape[:-1])
        return call(EncoderLayer.behind, self, x, mixed, clips if isinstance(clips, Tensor) else None)

    def before(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [P, D] → the queries, keys and values of its attention."""
        return self.self_attn.project(self.self_attn_layer_norm(x), cos, sin)

    def behind(self, x: Tensor, mixed: Tensor, inside: Tensor | None) -> Tensor:
        """x [P, D] or [B, S, D] and what was attended to, in x's shape → the layer's output, zero where ``inside`` [B, S] bool is False."""
        x = x + self.self_attn.out_proj(mixed)
        x = x + self.fc2(self.activation(self.fc1(self.final_layer_norm(x))))
        if x.dtype == torch.float16:
            x = x.clamp(-FP16_LIMIT, FP16_LIMIT)
        return x if inside is None else _zero_outside(x, inside[..., None])


class WhisperTower(nn.Module):
    """Two convolutions and the layers; no positions are added and no norm follows."""

    def __init__(self, config: ArkasrConfig) -> None:
        super().__init__()
        whisper, width = config.whisper, config.encoder_width
        self.conv1 = nn.Conv1d(whisper.num_mel_bins, width, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(width, width, kernel_size=3, stride=2, padding=1)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(whisper.encoder_layers))
        self.head_dim = width // whisper.encoder_attention_heads

    def forward(self, mel: Tensor, mel_lens: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """mel [B, 128, T] → (frames [B, S, D], frame mask [B, S] bool or None). Each step sees zeros past a clip's end, as alone."""
        x, frame_mask = self._convolved(mel, mel_lens)
        cos, sin = (table.repeat(len(x), 1) for table in rope_tables(x.shape[1], self.head_dim, x.device, x.dtype))
        for layer in self.layers:
            x = layer(x, cos, sin, frame_mask)
        return x, frame_mask

    def packed(self, mel: Tensor, mel_lens: Tensor, clips: Packing) -> Tensor:
        """mel [B, 128, T] → frames [P, D] of ``clips``, whose lengths are ``mel_lens`` on the host, in encoder frames."""
        x, _ = self._convolved(mel, mel_lens)
        cos, sin = (table[clips.place] for table in rope_tables(x.shape[1], self.head_dim, x.device, x.dtype))
        x = clips.pack(x)
        for layer in self.layers:
            x = layer(x, cos, sin, clips)
        return x

    def _convolved(self, mel: Tensor, mel_lens: Tensor | None) -> tuple[Tensor, Tensor | None]:
        mel = mel.to(self.conv1.weight.dtype)
        if mel_lens is None:
            x = F.gelu(self.conv2(F.gelu(self.conv1(mel)))).transpose(1, 2)
            frame_mask = None
        else:
            mel_mask = _inside(mel_lens, mel.shape[-1])[:, None]
            x = F.gelu(self.conv1(_zero_outside(mel, mel_mask)))
            # conv1 leaks one frame past the end and its bias fills the rest; the stride-2 convolution would read both.
            x = F.gelu(self.conv2(_zero_outside(x, mel_mask))).transpose(1, 2)
            # Computed from the lengths, not sliced from the mel mask: a strided mask sends SDPA to its slow kernel.
            frame_mask = _inside(encoder_frames(mel_lens), x.shape[1])
            x = _zero_outside(x, frame_mask[..., None])
        return x, frame_mask


class ArkasrAudioEncoder(nn.Module):
    """Log-mel → decoder embeddings."""

    def __init__(self, config: ArkasrConfig) -> None:
        super().__init__()
        self.merge_factor = config.merge_factor
        merged, hidden = config.merge_factor * config.encoder_width, config.hidden_size
        self.whisper = WhisperTower(config)
        self.layer_norm = nn.LayerNorm(config.encoder_width)
        self.adapting = nn.Sequential(nn.Linear(merged, 2 * hidden), ACT2FN[config.mlp_adapter_act], nn.Linear(2 * hidden, hidden))

    def forward(self, mel: Tensor, mel_lens: Tensor | None = None, *, frames: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """Encode a batch of clips.

        Args:
            mel: [B, 128, T] log-mel; cast to the weights' dtype.
            mel_lens: [B] int frames of each clip (at least 1), or None: every frame counts and nothing is masked.
            frames: the lengths where the host knows them; the clips are then packed.

        Returns:
            embeddings [B, N, H], zero past a clip's count when lengths are given; counts [B] int64.
        """
        if frames is not None:
            return self._packed(mel, torch.tensor(frames).to(mel.device, non_blocking=True) if mel_lens is None else mel_lens, frames)
        x, frame_mask = self.whisper(mel, mel_lens)
        x = self.layer_norm(x)
        if frame_mask is not None:
            x = _zero_outside(x, frame_mask[..., None])
        merge = self.merge_factor
        if x.shape[1] < merge:
            x = F.pad(x, (0, 0, 0, merge - x.shape[1]))
        x = self.adapting(x[:, : x.shape[1] // merge * merge].unflatten(1, (-1, merge)).flatten(2))
        if mel_lens is None:
            return x, torch.full((x.shape[0],), x.shape[1], dtype=torch.int64, device=x.device)
        counts = audio_token_count(mel_lens.to(torch.int64), merge)
        return _zero_outside(x, _inside(counts, x.shape[1])[..., None]), counts

    def _packed(self, mel: Tensor, mel_lens: Tensor, frames: Sequence[int]) -> tuple[Tensor, Tensor]:
        """``forward`` over clips laid end to end: no layer and no adapter sees padding."""
        device, merge = mel.device, self.merge_factor
        clips = Packing([encoder_frames(n) for n in frames], device)
        merged = Packing([audio_token_count(n, merge) for n in frames], device)
        x = self.layer_norm(self.whisper.packed(mel, mel_lens, clips))
        # Embedding n of a clip is of its frames n · merge on; what a clip shorter than that lacks is zero.
        starts, lens = clips.bounds[merged.row], encoder_frames(mel_lens)[merged.row]
        place = merged.place[:, None] * merge + torch.arange(merge, device=device)
        index = torch.where(place < lens[:, None], starts[:, None] + place, len(x))
        x = F.pad(x, (0, 0, 0, 1)).index_select(0, index.flatten()).unflatten(0, (-1, merge)).flatten(1)
        counts = audio_token_count(mel_lens.to(torch.int64), merge)
        return merged.unpack(self.adapting(x), max(merged.lens)), counts


def _inside(lens: Tensor, width: int) -> Tensor:
    """[B, width] bool: True below each length."""
    return torch.arange(width, device=lens.device) < lens[:, None]


def _zero_outside(x: Tensor, mask: Tensor) -> Tensor:
    # where, not a product: what lies in the padding may be anything, NaN included.
    return torch.where(mask, x, torch.zeros((), dtype=x.dtype, device=x.device))
