"""Loading a Qwen3-ASR checkpoint, in Transformers' layout or in the one in which the model was first published, so that nothing is missing.

The first layout (a model within ``thinker``) is renamed while it is read; nothing is written, and no code of a repository is run.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import safe_open
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    Qwen3ASRConfig,
    Qwen3ASRForConditionalGeneration,
    Qwen3ASRModel,
    Qwen3Config,
)
from transformers.models.qwen3_asr.configuration_qwen3_asr import Qwen3ASREncoderConfig

from arkfast.audio.reference import HOP_LENGTH, SAMPLING_RATE, WINDOW_LENGTH
from arkfast.files.json_input import parse_json_object
from arkfast.models.family import read_config
from arkfast.models.qwen3_asr.modeling import LEAST_SAMPLES, Qwen3AsrModel, encoder_config
from arkfast.models.weights import fitting_shell, tied_names, weight_files
from arkfast.records import InputError, TokenizerLike

KIND = "qwen3_asr"

_LAYOUT = (
    (re.compile(r"^thinker\.audio_tower\.proj1\."), "model.multi_modal_projector.linear_1."),
    (re.compile(r"^thinker\.audio_tower\.proj2\."), "model.multi_modal_projector.linear_2."),
    (re.compile(r"^thinker\.audio_tower\."), "model.audio_tower."),
    (re.compile(r"^thinker\.model\."), "model.language_model."),
    (re.compile(r"^thinker\.lm_head\."), "lm_head."),
)


def transformers_name(name: str) -> str:
    """A tensor's name in Transformers' layout, whichever layout it is from."""
    for pattern, replacement in _LAYOUT:
        name, count = pattern.subn(replacement, name)
        if count:
            break
    return name


def load_config(folder: Path) -> Qwen3ASRConfig:
    """The configuration of a checkpoint folder of either layout.

    Raises:
        InputError: the folder or its ``config.json`` is missing or unreadable, or belongs to another kind of model.
    """
    fields, file = read_config(folder), folder / "config.json"
    if fields.get("model_type") != KIND:
        raise InputError(f"{file}: model_type is {fields.get('model_type')!r}, expected {KIND!r}; give a Qwen3-ASR checkpoint")
    try:
        config = _converted(fields["thinker_config"]) if "thinker_config" in fields else Qwen3ASRConfig(**fields)
    except (TypeError, ValueError, KeyError, AttributeError, StrictDataclassError) as error:
        raise InputError(f"{file}: cannot be read as a Qwen3-ASR configuration ({error}); copy the checkpoint again") from error
    tower = config.audio_config
    if not isinstance(tower, Qwen3ASREncoderConfig):
        raise InputError(f"{file}: audio_config describes another encoder ({type(tower).__name__}); give a Qwen3-ASR checkpoint")
    if tower.n_window_infer % (2 * tower.n_window):
        raise InputError(f"{file}: n_window_infer must be a multiple of 2 · n_window; copy the checkpoint again")
    return config


def _converted(thinker: dict[str, Any]) -> Qwen3ASRConfig:
    """The configuration of the first layout: what lay within it, without the rotary fields of several axes, which are equal in speech."""
    audio = {field.name: thinker["audio_config"][field.name] for field in dataclasses.fields(Qwen3ASREncoderConfig)
             if field.name in thinker["audio_config"] and field.name not in _BOOKKEEPING}  # fmt: skip
    given = thinker["text_config"]
    text = {field.name: given[field.name] for field in dataclasses.fields(Qwen3Config)
            if field.name in given and field.name not in (*_BOOKKEEPING, "rope_parameters", "layer_types")}  # fmt: skip
    theta = given.get("rope_theta") or (given.get("rope_parameters") or {}).get("rope_theta")
    if theta is None:
        raise ValueError("text_config has no rope_theta")
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": theta}
    tied = given.get("tie_word_embeddings", thinker.get("tie_word_embeddings", True))
    return Qwen3ASRConfig(
        audio_config={"model_type": "qwen3_asr_encoder", **audio},
        text_config={"model_type": "qwen3", **text, "tie_word_embeddings": tied},
        audio_token_id=thinker["audio_token_id"],
        tie_word_embeddings=tied,
    )


_BOOKKEEPING = ("transformers_version", "architectures", "output_hidden_states", "return_dict", "dtype", "chunk_size_feed_forward",
                "is_encoder_decoder", "id2label", "label2id", "problem_type")  # fmt: skip
"""Fields that every configuration of Transformers has and that no model is made of."""


def load_model(
    folder: Path, *, dtype: torch.dtype, attn_implementation: str, device: torch.device, full_attention: bool = False
) -> Qwen3AsrModel:
    """The checkpoint's model in evaluation mode.

    Args:
        folder: of the checkpoint.
        dtype: of the weights.
        attn_implementation: the decoder's attention.
        device: where it goes.
        full_attention: see ``Qwen3AsrModel``.

    Raises:
        InputError: the folder, its configuration or its weights cannot be read, its features are others than ``LogMel`` makes, or tensors
            are missing, unexpected or wrongly shaped (the first of each are listed).
    """

    def build(config: Qwen3ASRConfig) -> Qwen3ASRForConditionalGeneration:
        with torch.device("meta"):
            return Qwen3ASRForConditionalGeneration._from_config(config, attn_implementation=attn_implementation)

    config = load_config(folder)
    least = least_samples(folder, encoder_config(config).num_mel_bins)
    shell = fitting_shell(folder, config, build, renamed=transformers_name)
    fill(shell, folder, renamed=transformers_name, dtype=dtype, device=device)
    return Qwen3AsrModel(shell, full_attention=full_attention, least_samples=least)


def fill(shell: PreTrainedModel, folder: Path, *, renamed: Callable[[str], str], dtype: torch.dtype, device: torch.device) -> None:
    """Give a model on the meta device, whose tensors are those of the files, its weights, and what no checkpoint stores.

    Args:
        shell: a Qwen3-ASR model of Transformers, whichever head it has.
        folder: of the checkpoint.
        renamed: a stored name → the model's.
        dtype, device: of the weights.
    """
    weights: dict[str, torch.Tensor] = {}
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as tensors:
            weights |= {renamed(name): tensors.get_tensor(name).to(device, dtype) for name in tensors.keys()}  # noqa: SIM118
    tied = tied_names(shell)
    for name in tied - set(weights):
        weights[name] = next(weights[other] for other in tied if other in weights)
    shell.load_state_dict(weights, strict=True, assign=True)
    shell.tie_weights()
    inner = shell.model
    assert isinstance(inner, Qwen3ASRModel)
    tower, decoder = inner.audio_tower, inner.language_model
    positions = tower.positional_embedding
    tower.positional_embedding = type(positions)(positions.length, positions.channels, positions.max_timescale)
    decoder.rotary_emb = type(decoder.rotary_emb)(decoder.config)
    absent = [name for name, tensor in (*shell.named_parameters(), *shell.named_buffers()) if tensor.is_meta]
    assert not absent, f"tensors that nothing fills: {absent}"
    PreTrainedModel.to(shell, device)  # called on the class: its wrapper hides from a type checker that it is a method
    shell.eval()


def load_tokenizer(folder: Path) -> TokenizerLike:
    """The checkpoint's tokenizer.

    Raises:
        InputError: it cannot be loaded, or the configuration cannot be read.
    """
    config = load_config(folder)
    try:
        # The annotations of Transformers admit lists where it gives one.
        loaded: Any = AutoTokenizer.from_pretrained(folder, config=config, local_files_only=True)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{folder}: its tokenizer cannot be loaded ({reason}); give a complete checkpoint") from error
    tokenizer: TokenizerLike = loaded
    return tokenizer


def least_samples(folder: Path, n_mels: int) -> int:
    """Samples that a clip has at least, after a check that the checkpoint's features are those that ``LogMel`` makes.

    Args:
        folder: of the checkpoint; without settings of features those of the model's library hold.
        n_mels: mel filters that the encoder takes.

    Raises:
        InputError: a file cannot be read, or asks for other features.
    """
    found: dict[str, Any] = {}
    for name in ("processor_config.json", "preprocessor_config.json"):
        file = folder / name
        if file.is_file():
            try:
                fields = parse_json_object(file.read_bytes())
            except (OSError, ValueError) as error:
                raise InputError(f"{file}: cannot be read as JSON ({error}); copy the checkpoint again") from error
            found |= fields.get("feature_extractor", fields)
    expected = {"feature_size": n_mels, "sampling_rate": SAMPLING_RATE, "hop_length": HOP_LENGTH, "n_fft": WINDOW_LENGTH, "dither": 0.0}
    for name, value in expected.items():
        if found.get(name, value) != value:
            raise InputError(f"{folder}: its features have {name} = {found[name]}, expected {value}; give an official checkpoint")
    return max(int(found.get("min_length", LEAST_SAMPLES)), WINDOW_LENGTH)
