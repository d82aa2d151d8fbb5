"""Transformers' Qwen3-ASR as a ``SpeechModel``: its encoder over a whole batch at once, its decoder and head as they are.

Transformers runs the encoder's attention window by window in Python and waits for the device to learn where windows end. Here the windows
of all clips lie end to end, without padding, in one attention call on a GPU. Shape letters: B rows, T mel frames, C chunks of a clip, N
audio embeddings, P embeddings of all clips, H decoder width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Qwen3ASRConfig, Qwen3ASRForConditionalGeneration, Qwen3ASRForTokenClassification, Qwen3ASRModel
from transformers.models.qwen3_asr.configuration_qwen3_asr import Qwen3ASREncoderConfig

from arkfast.models.causal import through_head
from arkfast.models.family import Audio, AudioInput, Head
from arkfast.models.packing import Packing

Count = TypeVar("Count", int, Tensor)

LEAST_SAMPLES = 8000
"""Shorter clips are padded with zeros to half a second, as the model's own library does."""
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


class Listener(nn.Module):
    """What Qwen3-ASR and its forced aligner share: an encoder, a projector and a decoder.

    Args:
        whole: Transformers' model.
        full_attention: let each encoder position attend to its whole clip, as the model's first implementation did without flash
            attention, instead of its window of 8 s.
        least_samples: see ``AudioInput``.
    """

    def __init__(
        self,
        whole: Qwen3ASRForConditionalGeneration | Qwen3ASRForTokenClassification,
        *,
        full_attention: bool = False,
        least_samples: int = LEAST_SAMPLES,
    ) -> None:
        super().__init__()
        self.whole, self.full_attention, self._least_samples = whole, full_attention, least_samples
        tower = encoder_config(whole.config)
        self.chunk, self.window = 2 * tower.n_window, tower.n_window_infer // (2 * tower.n_window)
        """Mel frames of a chunk, and chunks of a window."""

    @property
    def inner(self) -> Qwen3ASRModel:
        """Transformers' model without its head."""
        inner = self.whole.model
        assert isinstance(inner, Qwen3ASRModel)
        return inner

    @property
    def config(self) -> Any:
        """The decoder's."""
        return self.whole.config.get_text_config()

    @property
    def model(self) -> Any:
        """The decoder, a ``Qwen3Model``."""
        return self.inner.language_model

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.get_input_embeddings().weight.dtype

    @property
    def audio_input(self) -> AudioInput:
        """What the model hears."""
        config = self.whole.config
        return AudioInput(
            n_mels=encoder_config(config).num_mel_bins,
            placeholder_id=config.audio_token_id,
            token_count=lambda frames: token_count(frames, self.chunk),
            least_samples=self._least_samples,
        )

    def get_input_embeddings(self) -> nn.Embedding:
        """See ``SpeechModel.get_input_embeddings``."""
        table: nn.Embedding = self.model.embed_tokens
        return table

    def get_audio_features(self, audios: Tensor, audio_lens: Tensor | None = None, *, frames: Sequence[int] | None = None) -> Audio:
        """See ``SpeechModel.get_audio_features``. A clip's embeddings do not depend on its batch mates: padding is zeroed, as the
        convolutions see it, and no layer runs over it.

        Args:
            audios: [B, mel bins, T].
            audio_lens: [B] frames of each clip; None: all of them.
            frames: the same where the host knows them; None: they are read from ``audio_lens``, which waits for the device.
        """
        tower, device = self.inner.audio_tower, audios.device
        rows, _, longest = audios.shape
        if frames is None:
            frames = [longest] * rows if audio_lens is None else audio_lens.tolist()
        lens = torch.tensor(frames).to(device, non_blocking=True)
        inside = torch.arange(longest, device=device) < lens[:, None]
        width = -(-longest // self.chunk) * self.chunk
        mel = F.pad((audios * inside[:, None]).to(self.dtype), (0, width - longest)).unflatten(2, (-1, self.chunk)).transpose(1, 2)
        chunks = Packing([max(1, -(-n // self.chunk)) for n in frames], device)
        hidden = torch.cat([_convolved(tower, part) for part in chunks.pack(mel).split(CONVOLVED)])

        # All chunks of a clip but its last are full, so that its embeddings stand one behind the other; the rest of the last is padding.
        each = hidden.shape[1]
        clips = Packing([token_count(n, self.chunk) for n in frames], device)
        first = chunks.bounds[clips.row] * each
        hidden = hidden.flatten(0, 1).index_select(0, first + clips.place)
        span = max(clips.lens) if self.full_attention else self.window * each
        windows = Packing([min(span, n - begin) for n in clips.lens for begin in range(0, n, span)], device)
        for layer in tower.layers:
            hidden = _layer(layer, hidden, windows)
        found = self.inner.multi_modal_projector(tower.ln_post(hidden))
        return clips.unpack(found, token_count(longest, self.chunk)), token_count(lens, self.chunk)

    def encode_prompt(self, input_ids: Tensor, *, audio_embeds: Audio | None = None) -> Tensor:
        """See ``SpeechModel.encode_prompt``."""
        from arkfast.kernels import audio_embed_merge

        table = self.get_input_embeddings()
        if audio_embeds is None:
            embeddings: Tensor = table(input_ids)
            return embeddings
        return audio_embed_merge(input_ids, table.weight, *audio_embeds, self.whole.config.audio_token_id)


class Qwen3AsrModel(Listener):
    """See ``SpeechModel``.

    Args:
        whole, full_attention, least_samples: see ``Listener``.
    """

    whole: Qwen3ASRForConditionalGeneration

    def __init__(
        self, whole: Qwen3ASRForConditionalGeneration, *, full_attention: bool = False, least_samples: int = LEAST_SAMPLES
    ) -> None:
        super().__init__(whole, full_attention=full_attention, least_samples=least_samples)
        self.generation_config: Any = whole.generation_config

    @property
    def lm_head(self) -> nn.Linear:
        """See ``SpeechModel.lm_head``."""
        head: nn.Linear = self.whole.lm_head
        return head

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


def _convolved(tower: Any, chunks: Tensor) -> Tensor:
    """[n, mel bins, frames] → [n, embeddings of a chunk, encoder width], positions added."""
    hidden = chunks[:, None]
    for convolution in (tower.conv2d1, tower.conv2d2, tower.conv2d3):
        hidden = F.gelu(convolution(hidden))
    hidden = tower.conv_out(hidden.permute(0, 3, 1, 2).flatten(2))
    positions = tower.positional_embedding.positional_embedding[: hidden.shape[1]].to(hidden.dtype)
    placed: Tensor = hidden + positions
    return placed


def _layer(layer: Any, hidden: Tensor, windows: Packing) -> Tensor:
    """One encoder layer over positions [P, width] of all windows."""
    attention, normed = layer.self_attn, layer.self_attn_layer_norm(hidden)
    query, key, value = (
        projection(normed).unflatten(-1, (attention.num_heads, -1)) for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    attended = windows.attend(query, key, value, scale=attention.scaling)
    hidden = hidden + attention.out_proj(attended.flatten(1))
    added: Tensor = hidden + layer.fc2(layer.activation_fn(layer.fc1(layer.final_layer_norm(hidden))))
    return added
