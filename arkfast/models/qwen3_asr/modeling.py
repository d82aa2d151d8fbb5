"""Transformers' Qwen3-ASR as a ``SpeechModel``: its encoder over a whole batch at once, its decoder and head as they are.

Transformers runs the encoder's attention window by window in Python and waits for the device to learn where windows end. Here each window
is a row of one masked attention call, since windows begin at fixed places, and windows past a clip's end are left out. Shape letters: B
rows, T mel frames, C chunks of a clip, N audio embeddings, H decoder width, V vocabulary, P prompt ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Qwen3ASRConfig, Qwen3ASRForConditionalGeneration
from transformers.models.qwen3_asr.configuration_qwen3_asr import Qwen3ASREncoderConfig

from arkfast.models.causal import through_head
from arkfast.models.family import Audio, AudioInput, Head

Count = TypeVar("Count", int, Tensor)

CONVOLVED = 512
"""Chunks of a second that the convolutions take at once: they hold some 6 MB each in float32."""


def halved_thrice(frames: Count) -> Count:
    """What three convolutions of stride 2 leave of a chunk's frames; nothing of nothing."""
    for _ in range(3):
        frames = (frames + 1) // 2
    return frames


def token_count(frames: Count, chunk: int = 100) -> Count:
    """Audio embeddings of a clip: 13 for each second, and what the convolutions leave of the rest.

    Args:
        frames: mel frames.
        chunk: of them that the convolutions see at once.
    """
    return (frames // chunk) * halved_thrice(chunk) + halved_thrice(frames % chunk)


def encoder_config(config: Qwen3ASRConfig) -> Qwen3ASREncoderConfig:
    """The encoder's configuration."""
    tower = config.audio_config
    assert isinstance(tower, Qwen3ASREncoderConfig), f"audio_config is a {type(tower).__name__}"
    return tower


class Qwen3AsrModel(nn.Module):
    """See ``SpeechModel``.

    Args:
        whole: Transformers' model.
        full_attention: let each encoder position attend to its whole clip, as the model's first implementation did without flash
            attention, instead of its window of 8 s.
    """

    def __init__(self, whole: Qwen3ASRForConditionalGeneration, *, full_attention: bool = False) -> None:
        super().__init__()
        self.whole, self.full_attention = whole, full_attention
        tower = encoder_config(whole.config)
        self.chunk, self.window = 2 * tower.n_window, tower.n_window_infer // (2 * tower.n_window)
        """Mel frames of a chunk, and chunks of a window."""
        self.generation_config: Any = whole.generation_config

    @property
    def config(self) -> Any:
        """The decoder's."""
        return self.whole.config.get_text_config()

    @property
    def model(self) -> Any:
        """The decoder, a ``Qwen3Model``."""
        return self.whole.model.language_model

    @property
    def lm_head(self) -> nn.Linear:
        """See ``SpeechModel.lm_head``."""
        head: nn.Linear = self.whole.lm_head
        return head

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.lm_head.weight.dtype

    @property
    def audio_input(self) -> AudioInput:
        """What the model hears."""
        config = self.whole.config
        return AudioInput(
            n_mels=encoder_config(config).num_mel_bins,
            placeholder_id=config.audio_token_id,
            token_count=lambda frames: token_count(frames, self.chunk),
        )

    def get_input_embeddings(self) -> nn.Embedding:
        """See ``SpeechModel.get_input_embeddings``."""
        table: nn.Embedding = self.model.embed_tokens
        return table

    def get_audio_features(self, audios: Tensor, audio_lens: Tensor | None = None, *, frames: Sequence[int] | None = None) -> Audio:
        """See ``SpeechModel.get_audio_features``. A clip's embeddings do not depend on its batch mates: what is padding is zeroed, as the
        convolutions see it, and never attended to.

        Args:
            audios: [B, mel bins, T].
            audio_lens: [B] frames of each clip on the device; None: all of them.
            frames: the same where the host knows them; padding beyond a clip's last window is then not computed. None: it is.
        """
        tower, device = self.whole.model.audio_tower, audios.device
        rows, _, longest = audios.shape
        lens = torch.full((rows,), longest, device=device) if audio_lens is None else audio_lens
        inside = torch.arange(longest, device=device) < lens[:, None]
        chunks = -(-longest // self.chunk)
        mel = F.pad((audios * inside[:, None]).to(self.dtype), (0, chunks * self.chunk - longest))
        span = chunks if self.full_attention else min(self.window, chunks)
        place = _Windows([longest] * rows if frames is None else frames, chunk=self.chunk, span=span, device=device)
        mel = mel.unflatten(2, (chunks, -1)).transpose(1, 2)[place.row_of_chunk, place.chunk]
        hidden = torch.cat([_convolved(tower, part) for part in mel.split(CONVOLVED)])
        each = hidden.shape[1]  # embeddings of a chunk; all chunks before a clip's last are full, so that its own come first

        windows = len(place.row)
        hidden = (
            hidden.new_zeros(windows * span, *hidden.shape[1:]).index_copy(0, place.slot_of_chunk, hidden).view(windows, span * each, -1)
        )
        counts = token_count(lens, self.chunk)
        left = counts[place.row] - place.window * (span * each)  # embeddings of the clip from the window's first on
        seen = (torch.arange(span * each, device=device) < left[:, None]).view(windows, 1, 1, -1)
        seen = seen | ~seen.any(-1, keepdim=True)  # a window of padding alone sees itself; nobody reads it
        for layer in tower.layers:
            hidden = _layer(layer, hidden, seen)
        found = self.whole.model.multi_modal_projector(tower.ln_post(hidden))
        most = -(-chunks // span)
        embeddings = found.new_zeros(rows * most, *found.shape[1:]).index_copy(0, place.row * most + place.window, found)
        return embeddings.view(rows, most * span * each, -1)[:, : token_count(longest, self.chunk)], counts

    def encode_prompt(self, input_ids: Tensor, *, audio_embeds: Audio | None = None) -> Tensor:
        """See ``SpeechModel.encode_prompt``."""
        from arkfast.kernels import audio_embed_merge

        table = self.get_input_embeddings()
        if audio_embeds is None:
            embeddings: Tensor = table(input_ids)
            return embeddings
        return audio_embed_merge(input_ids, table.weight, *audio_embeds, self.whole.config.audio_token_id)

    def forward(self, *, inputs_embeds: Tensor, select: Tensor | None = None, head: Head, **options: Any) -> Any:
        """See ``SpeechModel.__call__``."""
        hidden = self.model(inputs_embeds=inputs_embeds, **options).last_hidden_state
        return through_head(hidden, self.lm_head.weight, head, select)

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any]) -> None:
        """See ``SpeechModel``."""
        self.whole.gradient_checkpointing_enable(gradient_checkpointing_kwargs)

    def tie_weights(self) -> None:
        """See ``SpeechModel``."""
        self.whole.tie_weights()

    def save_pretrained(self, folder: Path, /) -> Any:
        """Write the model in Transformers' layout."""
        return self.whole.save_pretrained(folder)


class _Windows:
    """Where chunks and windows of a batch's clips lie, each an index tensor on the device; clips of nothing have one window.

    Args:
        frames: of each clip.
        chunk: frames of a chunk.
        span: chunks of a window.
    """

    def __init__(self, frames: Sequence[int], *, chunk: int, span: int, device: torch.device) -> None:
        chunks = np.array([max(1, -(-n // chunk)) for n in frames])
        windows = -(-chunks // span)
        row_of_chunk, own = _counted_off(chunks)
        row, window = _counted_off(windows)
        slot = (np.cumsum(windows) - windows)[row_of_chunk] * span + own
        self.row_of_chunk, self.chunk, self.slot_of_chunk, self.row, self.window = (
            torch.from_numpy(index).to(device, non_blocking=True) for index in (row_of_chunk, own, slot, row, window)
        )


def _counted_off(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(row, place in the row) of each of ``counts`` things of every row, rows ascending."""
    row = np.repeat(np.arange(len(counts)), counts)
    return row, np.arange(len(row)) - (np.cumsum(counts) - counts)[row]


def _convolved(tower: Any, chunks: Tensor) -> Tensor:
    """[n, mel bins, frames] → [n, embeddings of a chunk, encoder width], positions added."""
    hidden = chunks[:, None]
    for convolution in (tower.conv2d1, tower.conv2d2, tower.conv2d3):
        hidden = F.gelu(convolution(hidden))
    hidden = tower.conv_out(hidden.permute(0, 3, 1, 2).flatten(2))
    positions = tower.positional_embedding.positional_embedding[: hidden.shape[1]].to(hidden.dtype)
    placed: Tensor = hidden + positions
    return placed


def _layer(layer: Any, hidden: Tensor, seen: Tensor) -> Tensor:
    """One encoder layer over windows [W, positions, width]; ``seen`` [W, 1, 1, positions] says which are attended to."""
    attention, normed = layer.self_attn, layer.self_attn_layer_norm(hidden)
    query, key, value = (
        projection(normed).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=attention.scaling)
    hidden = hidden + attention.out_proj(attended.transpose(1, 2).flatten(2))
    added: Tensor = hidden + layer.fc2(layer.activation_fn(layer.fc1(layer.final_layer_norm(hidden))))
    return added
