"""A model family in one file: a plain Llama that reads a text and answers with another. It hears nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from arkfast.models.arkasr.new import build_tokenizer
from arkfast.models.causal import CausalSpeechModel
from arkfast.models.cost import DecoderCost
from arkfast.models.family import ShardUnits
from arkfast.models.weights import fitting_shell
from arkfast.records import AllowedTokens, InputError, TokenizerLike, Utterance

END = "<|im_end|>"


class ToyTextConfig(LlamaConfig):
    model_type = "toytext"


class ToyText(CausalSpeechModel, LlamaForCausalLM):
    config_class = ToyTextConfig


@dataclass(frozen=True)
class TextPrompt:
    """``<|user|>`` the row's text ``<|assistant|>``."""

    tokenizer: TokenizerLike

    def ids(self, mel_frames: int, utterance: Utterance) -> list[int]:
        assert mel_frames == 0, "nothing is heard"
        return self.tokenizer.encode(f"<|user|>{utterance.text}<|assistant|>", add_special_tokens=False)


class ToyTextInterface:
    n_mels = None

    def __init__(self, tokenizer: TokenizerLike, model: ToyText) -> None:
        self.tokenizer, self._config = tokenizer, model.config
        self.end_id = tokenizer.convert_tokens_to_ids(END)

    def prompt(self, task: str) -> TextPrompt:
        if task != "reverse":
            raise InputError(f"task {task!r}: a toy text model reverses words and does nothing else; give task reverse")
        return TextPrompt(self.tokenizer)

    def allowed(self, task: str) -> AllowedTokens:
        return AllowedTokens.asr(self.tokenizer, self._config)


@dataclass(frozen=True)
class Files:
    """A tokenizer is all that a checkpoint holds beside the model."""

    tokenizer: Any

    def save_pretrained(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)


class ToyTextFamily:
    parts = {"decoder": ("model.layers.", "model.norm."), "embeddings": ("model.embed_tokens.", "lm_head.")}  # noqa: RUF012

    def load(self, folder: Path, *, dtype: Any, attn_implementation: str, device: Any = None) -> ToyText:
        config = fitting_shell(folder, ToyTextConfig.from_pretrained(folder), self._empty).config
        model = ToyText.from_pretrained(folder, config=config, dtype=dtype, attn_implementation=attn_implementation, local_files_only=True)
        return model.to(device or "cpu").eval()

    def shell(self, folder: Path, *, attn_implementation: str) -> ToyText:
        return fitting_shell(folder, ToyTextConfig.from_pretrained(folder), lambda config: self._empty(config, attn_implementation))

    @staticmethod
    def _empty(config: ToyTextConfig, attention: str | None = None) -> ToyText:
        with torch.device("meta"):
            return ToyText._from_config(config, attn_implementation=attention).eval()

    def fill_buffers(self, model: ToyText, device: torch.device) -> None:
        model.model.rotary_emb = type(model.model.rotary_emb)(model.config).to(device)

    def tokenizer(self, folder: Path) -> TokenizerLike:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)

    def processor(self, folder: Path) -> Files:
        return Files(self.tokenizer(folder))

    def interface(self, tokenizer: TokenizerLike, model: ToyText, *, where: str) -> ToyTextInterface:
        return ToyTextInterface(tokenizer, model)

    def shard_units(self, model: ToyText) -> ShardUnits:
        layers = tuple(model.model.layers)
        return ShardUnits(encoder=(), layers=layers, recomputed=layers)

    def cost(self, model: ToyText) -> DecoderCost:
        return DecoderCost(model)


family = ToyTextFamily()


def new_checkpoint(folder: Path, texts: tuple[str, ...], *, seed: int) -> Path:
    """A tiny random model with its tokenizer."""
    tokenizer = build_tokenizer(texts, vocab_size=400)
    end, pad = (tokenizer.convert_tokens_to_ids(token) for token in (END, "<|endoftext|>"))
    config = ToyTextConfig(
        vocab_size=len(tokenizer), hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=512, initializer_range=0.25, tie_word_embeddings=True, eos_token_id=end, pad_token_id=pad, bos_token_id=pad,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        ToyText(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
