"""A small CTC head on a model's audio embeddings, and its file beside a checkpoint.

An embedding of ARK-ASR stands for 80 ms, in which up to two characters may be said, while CTC gives each step one unit and needs another
between equal ones. So the head makes ``upsample`` steps of each embedding, by a transposed projection, and mixes neighbouring ones.

CTC's scores are near blank at most steps and peak somewhere within a character, which places words badly. Scores are therefore divided by
a power of each unit's share of all steps, its prior, in training and in alignment (Huang et al., "Less Peaky and More Accurate CTC Forced
Alignment by Label Priors", 2024).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor, nn

from arkfast.align.units import Units
from arkfast.files import json_text, new_files
from arkfast.files.json_input import parse_json_object
from arkfast.models.contents import contents_of_model
from arkfast.records import InputError

WEIGHTS = "ctc_head.safetensors"
SETTINGS = "ctc_head.json"
VERSION = 1
FRAMES_PER_SECOND = 100  # of the features
PRIOR_WEIGHT = 0.3
"""The power of the priors."""
TRAIN = "train one with arkfast train --stage ctc_head"


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """What a head is."""

    hidden_size: int
    """Width of the model's audio embeddings."""
    width: int = 192
    """Of the head."""
    upsample: int = 4
    """Steps of an embedding."""
    kernel: int = 9
    """Steps that are mixed; odd."""
    frames_per_embedding: int
    """Mel frames, of 10 ms each, of an embedding."""
    units: tuple[str, ...]
    """The characters that have a unit of their own."""
    weights: str
    """The digest of the weights of the model that it was trained on."""

    @property
    def seconds_per_step(self) -> float:
        """How long a step is."""
        return self.frames_per_embedding / FRAMES_PER_SECOND / self.upsample


class CtcHead(nn.Module):
    """Audio embeddings → scores of characters; runs in float32. A clip's scores do not depend on the clips beside it.

    Args:
        config: its sizes and units.
    """

    log_prior: Tensor

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.config, self.units = config, Units(config.units)
        self.norm = nn.LayerNorm(config.hidden_size)
        self.expand = nn.Linear(config.hidden_size, config.upsample * config.width)
        self.mix = nn.Conv1d(config.width, config.width, config.kernel, padding=config.kernel // 2)
        self.classify = nn.Linear(config.width, len(self.units))
        self.register_buffer("log_prior", torch.full((len(self.units),), -math.log(len(self.units))))

    def forward(self, embeddings: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of units.

        Args:
            embeddings: [B, N, H] of any float type.
            counts: [B] int64 embeddings of each clip.

        Returns:
            Log-probabilities [B, N · upsample, V] float32, and steps [B] int64 of each clip; those behind them hold nothing of meaning.
        """
        batch, most, _ = embeddings.shape
        inner = self.expand(self.norm(embeddings.float())).view(batch, most * self.config.upsample, self.config.width)
        steps = counts.to(torch.int64) * self.config.upsample
        inside = torch.arange(inner.shape[1], device=inner.device) < steps[:, None]
        inner = torch.nn.functional.gelu(inner) * inside[..., None]
        mixed = torch.nn.functional.gelu(self.mix(inner.transpose(1, 2)).transpose(1, 2))
        return self.classify(inner + mixed).log_softmax(-1), steps

    def scores(self, log_probabilities: Tensor) -> Tensor:
        """What alignment and training compare: log-probabilities less ``PRIOR_WEIGHT`` times the logarithm of the priors."""
        return log_probabilities - PRIOR_WEIGHT * self.log_prior


def find_head(folder: Path) -> Path | None:
    """The folder, where it holds a head."""
    return folder if (folder / WEIGHTS).is_file() else None


def weights_digest(checkpoint: Path) -> str:
    """What a head knows its model by: a digest of a checkpoint's weights, whatever their files are called."""
    return contents_of_model(checkpoint).get("weights", "")


def save_head(head: CtcHead, folder: Path) -> None:
    """Write a head into a folder, both files or none.

    Raises:
        InputError: they cannot be written.
    """
    from safetensors.torch import save_file

    with new_files([folder / WEIGHTS, folder / SETTINGS]) as (weights, settings):
        save_file({name: tensor.contiguous().cpu() for name, tensor in head.state_dict().items()}, weights)
        settings.write_bytes((json_text({"arkfast_ctc_head": VERSION, **asdict(head.config)}) + "\n").encode())


def load_head(folder: Path, *, checkpoint: Path, hidden_size: int, device: torch.device, flag: str = "--aligner") -> CtcHead:
    """The head in a folder, in evaluation mode.

    Args:
        folder: holds it.
        checkpoint: the model's folder, whose weights must be those that the head was trained on.
        hidden_size: width of the model's embeddings.
        device: where it goes.
        flag: what an error calls the folder.

    Raises:
        InputError: there is none, it cannot be read, its tensors are not those that its settings describe, or it is another model's.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if find_head(folder) is None:
        raise InputError(f"{flag} {folder}: no {WEIGHTS} there; {TRAIN} and give its --output_dir")
    config = _config(folder / SETTINGS)
    try:
        tensors = load_file(folder / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"{folder / WEIGHTS}: cannot be read ({error}); copy the head again or {TRAIN}") from error
    if config.weights != weights_digest(checkpoint):
        raise InputError(
            f"{flag} {folder}: its head was trained on a model of other weights than {checkpoint}, whose embeddings mean something else; "
            f"{TRAIN} on this one"
        )
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in CtcHead(config).state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    wrong = [name for name in sorted(shapes.keys() | found.keys()) if shapes.get(name) != found.get(name)]
    if wrong:
        name = wrong[0]
        raise InputError(
            f"{folder / WEIGHTS}: tensor {name} has shape {found.get(name, 'none')} where {SETTINGS} asks for {shapes.get(name, 'none')}; "
            f"copy both files again or {TRAIN}"
        )
    if config.hidden_size != hidden_size:
        raise InputError(f"{folder}: its head reads embeddings of width {config.hidden_size}, the model's have {hidden_size}")
    head = CtcHead(config)
    head.load_state_dict(tensors)
    return head.to(device).eval()


def _config(file: Path) -> HeadConfig:
    """The settings, whose types are checked: they decide how much memory is asked for."""
    try:
        given = parse_json_object(file.read_bytes())
        version = given.pop("arkfast_ctc_head", None)
        if version != VERSION:
            raise ValueError(f"format {version!r}, expected {VERSION}")
        names = {f.name for f in fields(HeadConfig)}
        if given.keys() != names:
            raise ValueError(f"its fields are {', '.join(sorted(given))}, expected {', '.join(sorted(names))}")
        units, weights = given.pop("units"), given.pop("weights")
        if not isinstance(units, list) or not all(isinstance(unit, str) for unit in units) or not isinstance(weights, str):
            raise ValueError("units must be a list of characters and weights a digest")
        for name, value in given.items():
            if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= 1 << 16:
                raise ValueError(f"{name} must be a whole number above 0, got {value!r}")
        return HeadConfig(units=tuple(units), weights=weights, **given)
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read as the settings of a CTC head ({error}); copy it again or {TRAIN}") from error
