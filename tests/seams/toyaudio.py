"""A model family in one file: 80 mel bins, ten frames to an embedding, the audio at the end of the prompt, a Qwen3 decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from arkfast.kernels import audio_embed_merge
from arkfast.models.arkasr.new import build_tokenizer
from arkfast.models.causal import CausalSpeechModel
from arkfast.models.cost import DecoderCost
from arkfast.models.family import Audio, AudioInput, ShardUnits
from arkfast.models.weights import fitting_shell
from arkfast.records import AllowedTokens, Batch, TokenizerLike, Utterance

MELS, STACKED = 80, 10
END, HERE = "<|im_end|>", "<|audio|>"


def token_count(frames: int) -> int:
    """Ten frames are an embedding; what is left over goes."""
    return max(frames // STACKED, 1)


class ToyAudioConfig(Qwen3Config):
    model_type = "toyaudio"
    placeholder: int = 0


class ToyAudio(CausalSpeechModel, Qwen3ForCausalLM):
    config_class = ToyAudioConfig

    def __init__(self, config: ToyAudioConfig) -> None:
        super().__init__(config)
        self.stack = nn.Linear(MELS * STACKED, config.hidden_size)
        self.post_init()

    @property
    def audio_input(self) -> AudioInput:
        return AudioInput(n_mels=MELS, placeholder_id=self.config.placeholder, token_count=token_count)

    def get_audio_features(self, audios: Tensor, audio_lens: Tensor | None = None, *, frames: Sequence[int] | None = None) -> Audio:
        rows, _, longest = audios.shape
        if audio_lens is None:
            audio_lens = torch.full((rows,), longest, device=audios.device)
        inside = torch.arange(longest, device=audios.device) < audio_lens[:, None]
        heard = torch.where(inside[:, None], audios, torch.zeros((), device=audios.device)).to(self.stack.weight.dtype)
        count = token_count(longest)
        heard = nn.functional.pad(heard, (0, max(count * STACKED - longest, 0)))[:, :, : count * STACKED]
        embeddings = self.stack(heard.unflatten(2, (count, STACKED)).permute(0, 2, 3, 1).flatten(2))
        return embeddings, (audio_lens // STACKED).clamp(min=1)

    def encode_prompt(self, input_ids: Tensor, *, audio_embeds: Audio | None = None) -> Tensor:
        table = self.model.embed_tokens
        if audio_embeds is None:
            return table(input_ids)
        return audio_embed_merge(input_ids, table.weight, *audio_embeds, self.config.placeholder)


@dataclass(frozen=True)
class AudioPrompt:
    """``<|user|>``, the row's language, ``<|assistant|>``, the audio."""

    tokenizer: TokenizerLike
    placeholder: int

    def ids(self, mel_frames: int, utterance: Utterance) -> list[int]:
        words = self.tokenizer.encode(f"<|user|>{utterance.language or 'any'}<|assistant|>", add_special_tokens=False)
        return [*words, *[self.placeholder] * token_count(mel_frames)]


class ToyAudioInterface:
    n_mels = MELS

    def __init__(self, tokenizer: TokenizerLike, model: ToyAudio) -> None:
        self.tokenizer, self._config = tokenizer, model.config
        self.end_id = tokenizer.convert_tokens_to_ids(END)

    def prompt(self, task: str) -> AudioPrompt:
        return AudioPrompt(self.tokenizer, self._config.placeholder)

    def allowed(self, task: str) -> AllowedTokens:
        return AllowedTokens.asr(self.tokenizer, self._config)


class ToyAudioCost(DecoderCost):
    def encoder(self, batch: Batch) -> float:
        assert batch.mel_lens is not None
        return float((batch.mel_lens // STACKED).sum()) * MELS * STACKED * 48


@dataclass(frozen=True)
class Files:
    """A tokenizer is all that a checkpoint holds beside the model."""

    tokenizer: Any

    def save_pretrained(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)


class ToyAudioFamily:
    parts = {"ear": ("stack.",), "decoder": ("model.layers.", "model.norm.")}  # noqa: RUF012

    def load(self, folder: Path, *, dtype: Any, attn_implementation: str, device: Any = None) -> ToyAudio:
        config = fitting_shell(folder, ToyAudioConfig.from_pretrained(folder), self._empty).config
        model = ToyAudio.from_pretrained(folder, config=config, dtype=dtype, attn_implementation=attn_implementation, local_files_only=True)
        return model.to(device or "cpu").eval()

    def shell(self, folder: Path, *, attn_implementation: str) -> ToyAudio:
        return fitting_shell(folder, ToyAudioConfig.from_pretrained(folder), lambda config: self._empty(config, attn_implementation))

    @staticmethod
    def _empty(config: ToyAudioConfig, attention: str | None = None) -> ToyAudio:
        with torch.device("meta"):
            return ToyAudio._from_config(config, attn_implementation=attention).eval()

    def fill_buffers(self, model: ToyAudio, device: torch.device) -> None:
        model.model.rotary_emb = type(model.model.rotary_emb)(model.config).to(device)

    def tokenizer(self, folder: Path) -> TokenizerLike:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)

    def processor(self, folder: Path) -> Files:
        return Files(self.tokenizer(folder))

    def interface(self, tokenizer: TokenizerLike, model: ToyAudio, *, where: str) -> ToyAudioInterface:
        return ToyAudioInterface(tokenizer, model)

    def shard_units(self, model: ToyAudio) -> ShardUnits:
        layers = tuple(model.model.layers)
        return ShardUnits(encoder=(model.stack,), layers=layers, recomputed=layers)

    def cost(self, model: ToyAudio) -> ToyAudioCost:
        return ToyAudioCost(model)


family = ToyAudioFamily()


def new_checkpoint(folder: Path, texts: tuple[str, ...], *, seed: int) -> Path:
    """A tiny random model with its tokenizer; a head has 16 dimensions, which is not hidden size / heads."""
    tokenizer = build_tokenizer(texts, vocab_size=400)
    end, pad, here = (tokenizer.convert_tokens_to_ids(token) for token in (END, "<|endoftext|>", HERE))
    config = ToyAudioConfig(
        vocab_size=len(tokenizer), hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, max_position_embeddings=512, initializer_range=0.25, tie_word_embeddings=False, eos_token_id=end, pad_token_id=pad,
        bos_token_id=pad, placeholder=here,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        ToyAudio(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
