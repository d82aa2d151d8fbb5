"""What a model family is: all that the engine, the losses, the trainer and the commands ask of one kind of model.

A family lives in ``arkfast/models/<model_type>/family.py`` as the object ``family`` and is found by the ``model_type`` of a checkpoint's
``config.json``; nothing else has to be edited for it. One that is decoded and not trained lives in ``decodable.py`` there as the object
``decodable``. Shape letters: B rows, P prompt ids, T mel frames, N audio embeddings, H decoder width, V vocabulary.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from arkfast.audio.reference import WINDOW_LENGTH
from arkfast.files.json_input import parse_json, parse_json_object
from arkfast.records import Batch, InputError, Interface, Prompt, TokenizerLike, Utterance

Audio = tuple[Tensor, Tensor]
"""Audio embeddings [B, N, H] and how many of each row count [B] int64."""
Out = TypeVar("Out")
Head = Callable[[Tensor, Tensor], Out]
"""Called with (hidden [N, H], head weight [V, H])."""


@dataclass(frozen=True, kw_only=True)
class AudioInput:
    """What a model hears."""

    n_mels: int
    """Mel filters of its features."""
    placeholder_id: int
    """The prompt's id that one audio embedding replaces."""
    token_count: Callable[[int], int]
    """Mel frames of a clip → its audio embeddings: the family's token-count law."""
    least_samples: int = WINDOW_LENGTH
    """Samples at 16 kHz that a clip has at least; a shorter one is padded with zeros, and their frames count."""


class SpeechModel(Protocol):
    """A model that reads a prompt, with or without audio, and produces ids. Every one is an ``nn.Module``.

    ``model``, ``lm_head`` and ``config`` are as in Transformers' causal language models, whose decoder (Llama, Qwen2 or Qwen3) the
    engine runs layer by layer. The configuration's fields are those of the decoder.
    """

    generation_config: Any

    def __init__(self, config: Any) -> None:
        """A model of random weights, as its configuration describes it."""
        ...

    @property
    def config(self) -> Any:
        """The decoder's configuration, at least."""
        ...

    @property
    def model(self) -> Any:
        """The decoder: a ``LlamaModel``, ``Qwen2Model`` or ``Qwen3Model``."""
        ...

    @property
    def lm_head(self) -> nn.Linear:
        """Hidden states → scores of ids."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        ...

    @property
    def audio_input(self) -> AudioInput | None:
        """What it hears; None: nothing."""
        ...

    def get_audio_features(self, audios: Tensor, audio_lens: Tensor | None = None, *, frames: Sequence[int] | None = None) -> Audio:
        """Decoder embeddings of clips [B, n_mels, T] of ``audio_lens`` [B] frames (None: every frame counts), each independent of the
        others. ``frames`` are the same lengths where the host knows them, so that padding need not be computed."""
        ...

    def encode_prompt(self, input_ids: Tensor, *, audio_embeds: Audio | None = None) -> Tensor:
        """Token embeddings [B, P, H] of ``input_ids`` [B, P] with each row's placeholders replaced, in order, by its audio embeddings."""
        ...

    def get_input_embeddings(self) -> nn.Module:
        """The token table: ids → embeddings."""
        ...

    def __call__(self, *, inputs_embeds: Tensor, select: Tensor | None = None, head: Head[Out], **options: object) -> Out:
        """The decoder over embeddings [B, P, H], then ``head`` on the hidden states at ``select`` [N] of B·P (None: all), within the
        forward; what ``head`` returns. Options are those of the decoder's forward."""
        ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]: ...

    def modules(self) -> Iterator[nn.Module]: ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state_dict: Mapping[str, Tensor], *, strict: bool, assign: bool) -> object: ...

    def requires_grad_(self, requires_grad: bool = True) -> object: ...

    def float(self) -> object: ...

    @property
    def to(self) -> Callable[..., object]: ...  # Transformers wraps it in a way that hides from a type checker that it is a method

    def eval(self) -> object: ...

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, object]) -> None: ...

    def tie_weights(self) -> None: ...

    def save_pretrained(self, folder: Path, /) -> object: ...


class Processor(Protocol):
    """The files of a checkpoint that are not weights: tokenizer, feature settings, prompt template."""

    @property
    def tokenizer(self) -> TokenizerLike: ...

    def save_pretrained(self, folder: Path, /) -> object:
        """Write them."""
        ...


class ShardUnits(NamedTuple):
    """The parts of a model that FSDP2 gathers and frees one by one; what is in none of them belongs to the root."""

    encoder: tuple[nn.Module, ...]
    """What runs before the decoder, inner parts first, in the order in which they run; empty where nothing does."""
    layers: tuple[nn.Module, ...]
    """The decoder's layers, in the order in which they run."""
    recomputed: tuple[nn.Module, ...]
    """The layers that activation checkpointing recomputes: Transformers' ``GradientCheckpointingLayer``s."""


class Cost(Protocol):
    """Arithmetic of a model."""

    def forward(self, batch: Batch, answers: float, *, rollouts: int = 1, head: bool) -> float:
        """Operations of one pass over a batch's audio, its prompts and ``answers`` produced tokens in all, two for each multiply-add.

        Args:
            batch: what is read; it must still lie in main memory.
            answers: tokens of all rollouts together.
            rollouts: of each prompt.
            head: the teacher's pass: each answer token meets the whole head, and a prompt is read once for all its rollouts. Else the
                student's, which reads it with each of them.
        """
        ...


M = TypeVar("M")


class Decodable(Protocol[M]):
    """One kind of model, ``M``, as transcription, evaluation and the service need it; it is handed none but those that it made."""

    def load(self, folder: Path, *, dtype: str | torch.dtype, attn_implementation: str, device: str | torch.device | None = None) -> M:
        """The checkpoint's model, whole, in evaluation mode.

        Args:
            folder: of the checkpoint.
            dtype: of the weights; ``auto`` is that of the checkpoint.
            attn_implementation: the decoder's attention.
            device: where it goes; None: the CPU.

        Raises:
            InputError: the checkpoint cannot be read, or its tensors are not exactly the model's.
        """
        ...

    def tokenizer(self, folder: Path) -> TokenizerLike:
        """The tokenizer of a folder, which may hold nothing else.

        Raises:
            InputError: it cannot be loaded.
        """
        ...

    def interface(self, tokenizer: TokenizerLike, model: M, *, where: str) -> Interface:
        """How tasks reach the model.

        Args:
            tokenizer: the model's.
            model: whole, sharded or without weights.
            where: what an error calls the tokenizer's folder.

        Raises:
            InputError: the tokenizer is another model's.
        """
        ...


class Family(Decodable[M], Protocol[M]):
    """One kind of model, ``M``, that can be trained too."""

    parts: Mapping[str, tuple[str, ...]]
    """What ``--freeze`` can name, each with the beginnings of its parameters' names."""

    def shell(self, folder: Path, *, attn_implementation: str) -> M:
        """The same model without weights, on the meta device; the files' tensors have been compared with it as ``load`` does."""
        ...

    def fill_buffers(self, model: M, device: torch.device) -> None:
        """Compute on the device what of a shell no checkpoint stores, such as rotary tables."""
        ...

    def processor(self, folder: Path) -> Processor:
        """All that an exported checkpoint holds beside the model.

        Raises:
            InputError: it cannot be loaded.
        """
        ...

    def shard_units(self, model: M) -> ShardUnits:
        """The parts to shard one by one."""
        ...

    def cost(self, model: M) -> Cost:
        """The model's arithmetic; it may be whole or sharded."""
        ...


AnyFamily: TypeAlias = Family[Any]
"""A family that was found by name."""


def families() -> list[str]:
    """The model types that there are families of."""
    return [kind for kind in _kinds() if _module(kind, "family")]


def _kinds() -> list[str]:
    return sorted(module.name for module in iter_modules(sys.modules[__package__].__path__) if module.ispkg)


def _module(kind: str, *names: str) -> str | None:
    """The first of these modules that a kind of model has, by its whole name; None where it has none."""
    for name in names:
        try:
            if find_spec(f"arkfast.models.{kind}.{name}") is not None:
                return f"arkfast.models.{kind}.{name}"
        except ModuleNotFoundError:
            pass
    return None


def find_family(folder: str | Path) -> AnyFamily:
    """The family of a checkpoint folder, by its ``config.json``.

    Raises:
        InputError: there is no such folder or file, it is not JSON, or it names a kind of model that there is no family of.
    """
    family: AnyFamily = import_module(_named(Path(folder), "family")).family
    return family


def find_decodable(folder: str | Path) -> Decodable[SpeechModel]:
    """What decodes with a checkpoint folder: the family of its model, or what there is of one that is not trained.

    Raises:
        InputError: as ``find_family``.
    """
    module = import_module(_named(Path(folder), "family", "decodable"))
    found: Decodable[SpeechModel] = module.family if module.__name__.endswith(".family") else module.decodable
    return found


def _named(folder: Path, *names: str) -> str:
    """The module of these names that belongs to a checkpoint's kind of model."""
    kind = read_config(folder).get("model_type")
    # The name comes out of a file from elsewhere: nothing but a module of this package is ever imported by it.
    module = _module(kind, *names) if isinstance(kind, str) and re.fullmatch(r"[a-z0-9_]+", kind) else None
    if module is None:
        known = [name for name in _kinds() if _module(name, *names)]
        raise InputError(
            f"{folder / 'config.json'}: model_type is {kind!r}, expected {' or '.join(map(repr, known))}; give a checkpoint of such a model"
        )
    return module


def read_config(folder: Path) -> dict[str, Any]:
    """The fields of a checkpoint's ``config.json``.

    Raises:
        InputError: the folder or the file is missing, or it is no JSON object.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such checkpoint folder; give the local folder that holds config.json and model.safetensors")
    file = folder / "config.json"
    try:
        fields = parse_json(file.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{folder}: no config.json; this is not a checkpoint folder") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read as JSON ({error}); copy the checkpoint again") from error
    return fields if isinstance(fields, dict) else {}


def check_head(model: SpeechModel, *, where: str) -> None:
    """Raise ``InputError`` for a head with a bias, which losses and teachers would leave out: they read its weight alone."""
    if model.lm_head.bias is not None:
        raise InputError(f"{where}: its head has a bias, which the losses would leave out; give a model whose lm_head is a weight alone")


def check_positions(model: SpeechModel, prompt: Prompt, *, frames: int, new_tokens: int, asked: str, languages: Sequence[str] = ()) -> int:
    """Positions that the longest prompt and the longest answer take together.

    Args:
        model: whole or without weights.
        prompt: the task's.
        frames: mel frames of the longest clip.
        new_tokens: ids of the longest answer.
        asked: the options that say both, for the error.
        languages: that a prompt may be told, where it may.

    Raises:
        InputError: they are more than the model has.
    """
    # of whom nothing is known but the length of the clip, and perhaps the language
    nobodies = [Utterance(id="", audio=None, text="", language=language) for language in (None, *languages)]
    if model.audio_input is None:
        longest = max(len(prompt.ids(0, nobody)) for nobody in nobodies)
    else:
        count = model.audio_input.token_count
        longest = max(len(prompt.ids(1, nobody)) for nobody in nobodies) - count(1) + count(frames)
    positions, most = longest + new_tokens, int(model.config.max_position_embeddings)
    if positions > most:
        raise InputError(f"{asked} take {positions} positions, the model has {most}; give less of one of them")
    return positions


def named_ends(folder: Path) -> dict[str, tuple[int, ...]]:
    """The ids that end answers by a checkpoint's files: file → its ``eos_token_id``, for those of ``generation_config.json`` and
    ``config.json`` that name any.

    Raises:
        InputError: a file cannot be read, or names no ids.
    """
    found: dict[str, tuple[int, ...]] = {}
    for name in ("generation_config.json", "config.json"):
        file = folder / name
        if not file.is_file():
            continue
        try:
            fields = parse_json_object(file.read_bytes())
            eos = fields.get("eos_token_id")
            ids = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
            wrong = [i for i in ids if not isinstance(i, int) or isinstance(i, bool) or i < 0]
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise InputError(f"{file}: its end token cannot be read ({error}); copy the checkpoint again") from error
        if wrong:
            raise InputError(f"{file}: eos_token_id holds {wrong[0]!r}, which is no id; give the id of the end token, or a list of ids")
        if ids:
            found[name] = tuple(ids)
    return found


def load_model(
    path: str | Path,
    *,
    dtype: str | torch.dtype = "auto",
    attn_implementation: str = "sdpa",
    device: str | torch.device | None = None,
) -> SpeechModel:
    """Load a checkpoint folder of any family, in evaluation mode, or say what is wrong with it. See ``Family.load``."""
    return find_family(path).load(Path(path), dtype=dtype, attn_implementation=attn_implementation, device=device)
