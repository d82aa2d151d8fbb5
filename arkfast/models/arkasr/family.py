"""ARK-ASR as a model family."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import AutoTokenizer, GenerationConfig

from arkfast.models.arkasr.cost import ArkasrCost
from arkfast.models.arkasr.load import load_model, load_shell
from arkfast.models.arkasr.modeling import ArkasrForConditionalGeneration
from arkfast.models.arkasr.processing import ArkasrProcessor
from arkfast.models.arkasr.prompt import END_OF_TURN, Prompt
from arkfast.models.family import ShardUnits
from arkfast.records import AllowedTokens, InputError, TokenizerLike


class ArkasrInterface:
    """See ``Interface``: transcription is the one task.

    Args:
        tokenizer: the model's.
        model: its configuration alone is read.
        where: what an error calls the tokenizer's folder.

    Raises:
        InputError: the tokenizer is another model's.
    """

    def __init__(self, tokenizer: TokenizerLike, model: ArkasrForConditionalGeneration, *, where: str) -> None:
        self.tokenizer, config = tokenizer, model.config
        try:
            self._prompt = Prompt.asr(tokenizer, merge_factor=config.merge_factor)
        except ValueError as error:
            raise InputError(f"{where}: its tokenizer cannot be loaded ({error}); give a complete checkpoint") from error
        if self._prompt.audio_id != config.audio_token_id or max(*self._prompt.prefix, *self._prompt.suffix) >= config.vocab_size:
            raise InputError(
                f"{where}: its tokenizer is another model's: the audio token is {self._prompt.audio_id} there, and {config.audio_token_id} "
                f"of {config.vocab_size} in the model; give the tokenizer that the model was trained with"
            )
        self._allowed = AllowedTokens.asr(tokenizer, config)
        self.end_id = tokenizer.convert_tokens_to_ids(END_OF_TURN)
        self.n_mels: int | None = config.whisper.num_mel_bins

    def prompt(self, task: str) -> Prompt:
        """See ``Interface.prompt``."""
        self._check(task)
        return self._prompt

    def allowed(self, task: str) -> AllowedTokens:
        """See ``Interface.allowed``."""
        self._check(task)
        return self._allowed

    @staticmethod
    def _check(task: str) -> None:
        if task != "asr":
            raise InputError(f"task {task!r}: an ARK-ASR model transcribes and does nothing else; give task asr")


class ArkasrFamily:
    """See ``Family``."""

    parts: ClassVar[dict[str, tuple[str, ...]]] = {
        "audio_encoder": ("audio_encoder.whisper.", "audio_encoder.layer_norm."),
        "adapter": ("audio_encoder.adapting.",),
        "decoder": ("model.layers.", "model.norm."),
        "embeddings": ("model.embed_tokens.", "lm_head."),
    }
    """The head belongs to the embeddings, with which it is usually one tensor."""

    def load(
        self, folder: Path, *, dtype: str | torch.dtype, attn_implementation: str, device: str | torch.device | None = None
    ) -> ArkasrForConditionalGeneration:
        """See ``Family.load``. The family has no dropout, so that a model in training mode computes the same."""
        return load_model(folder, dtype=dtype, attn_implementation=attn_implementation, device=device)

    def shell(self, folder: Path, *, attn_implementation: str) -> ArkasrForConditionalGeneration:
        """See ``Family.shell``."""
        model = load_shell(folder, attn_implementation=attn_implementation)
        if (folder / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
        return model

    def fill_buffers(self, model: ArkasrForConditionalGeneration, device: torch.device) -> None:
        """See ``Family.fill_buffers``: the decoder's rotary table."""
        decoder = model.model
        decoder.rotary_emb = type(decoder.rotary_emb)(model.config).to(device)

    def tokenizer(self, folder: Path) -> TokenizerLike:
        """See ``Family.tokenizer``."""
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; give the one that holds the tokenizer")
        try:
            loaded: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)  # its annotations admit lists where it gives one
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{folder}: its tokenizer cannot be loaded ({reason}); give a complete checkpoint") from error
        tokenizer: TokenizerLike = loaded
        return tokenizer

    def processor(self, folder: Path) -> ArkasrProcessor:
        """See ``Family.processor``."""
        try:
            return ArkasrProcessor.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{folder}: its tokenizer or processor cannot be loaded ({reason}); give a complete checkpoint") from error

    def interface(self, tokenizer: TokenizerLike, model: ArkasrForConditionalGeneration, *, where: str) -> ArkasrInterface:
        """See ``Family.interface``."""
        return ArkasrInterface(tokenizer, model, where=where)

    def shard_units(self, model: ArkasrForConditionalGeneration) -> ShardUnits:
        """See ``Family.shard_units``: each layer, the adapter, the rest of the encoder."""
        encoder = model.audio_encoder
        layers = tuple(model.model.layers)
        return ShardUnits(
            encoder=(*encoder.whisper.layers, encoder.adapting, encoder),
            layers=layers,
            recomputed=(*encoder.whisper.layers, *layers),
        )

    def cost(self, model: ArkasrForConditionalGeneration) -> ArkasrCost:
        """See ``Family.cost``."""
        return ArkasrCost(model)


family = ArkasrFamily()
