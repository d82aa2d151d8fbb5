"""Times of words beside transcripts, as their rows have them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from arkfast.align import Aligned, Aligner, Word, find_head, load_head
from arkfast.align.head import SETTINGS, TRAIN, WEIGHTS
from arkfast.data.transcript import clean_transcript
from arkfast.files.json_input import parse_json_object
from arkfast.infer.result import DETECTED
from arkfast.infer.stream import DeviceLost, Outcome
from arkfast.models.contents import contents_of_model
from arkfast.models.family import SpeechModel
from arkfast.records import InputError, JsonObject


class WordTimes:
    """Adds times of words to what a decoder gives back.

    Args:
        model: has been loaded, on its device.
        checkpoint: its folder.
        folder: of the head or the aligner, as ``head_folder`` finds it.
        characters: add the times of each word's letters and numbers too.

    Raises:
        InputError: the head cannot be read, or it is another model's; the aligner cannot be loaded, hears other features, or is asked for
            times of characters.
    """

    def __init__(self, model: SpeechModel, *, checkpoint: Path, folder: Path, characters: bool) -> None:
        self._characters, self._device = characters, model.lm_head.weight.device
        self._align = _head(model, checkpoint, folder) if find_head(folder) is not None else _aligner(model, folder, characters)
        self._kept: dict[int, tuple[np.ndarray, str | None]] = {}

    def keep(self, ticket: int, features: np.ndarray, language: str | None = None) -> None:
        """Keep what was heard, and in which language as far as that is known, until its transcript is there."""
        self._kept[ticket] = features, language

    def forget(self, ticket: int) -> None:
        """Let go of what was heard: its transcript will not come."""
        self._kept.pop(ticket, None)

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()

    def add(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """The same outcomes, those with a transcript with their words or with the reason why they have no times.

        Raises:
            DeviceLost: the device failed in a way that ends the process's use of it.
            InputError: the device has no memory for this beside what is decoded.
        """
        kept = [self._kept.pop(outcome.ticket) for outcome in outcomes]
        some = [i for i, outcome in enumerate(outcomes) if outcome.text is not None]
        texts = [clean_transcript(outcomes[i].text or "") for i in some]
        languages = [kept[i][1] or (outcomes[i].scores or {}).get(DETECTED) for i in some]
        found = dict(zip(some, self._timed([kept[i][0] for i in some], texts, languages), strict=True))
        added = []
        for i, outcome in enumerate(outcomes):
            words = found.get(i)
            if isinstance(words, str):
                outcome = outcome._replace(words_error=words)
            elif words is not None:
                outcome = outcome._replace(words=[self._row(word) for word in words])
            added.append(outcome)
        return added

    def _timed(self, features: Sequence[np.ndarray], texts: Sequence[str], languages: Sequence[str | None]) -> list[Aligned]:
        try:
            return self._align(features, texts, languages)
        except torch.AcceleratorError as error:  # after a CUDA fault every later call fails too
            raise DeviceLost(f"the device {self._device} failed and cannot go on in this process; run again ({error})") from error
        except torch.OutOfMemoryError as error:
            raise InputError(f"the device {self._device} has no memory for times of words; give a smaller batch_size ({error})") from error

    def _row(self, word: Word) -> JsonObject:
        row: JsonObject = {"word": word.text, "start": word.start, "end": word.end}
        if self._characters:
            row["characters"] = [{"character": c.text, "start": c.start, "end": c.end} for c in word.characters]
        return row


Align = Callable[[Sequence[np.ndarray], Sequence[str], Sequence[str | None]], list[Aligned]]
"""Features, transcripts and languages of clips → their words."""


def _head(model: SpeechModel, checkpoint: Path, folder: Path) -> Align:
    device = model.lm_head.weight.device
    aligner = Aligner(model, load_head(folder, checkpoint=checkpoint, hidden_size=model.config.hidden_size, device=device))
    return lambda features, texts, _: aligner(features, texts)


def _aligner(model: SpeechModel, folder: Path, characters: bool) -> Align:
    from arkfast.align.qwen3 import Qwen3Aligner
    from arkfast.models.qwen3_asr.aligning import load_aligner

    if characters:
        raise InputError(f"--timestamps character: {folder} gives times of words alone; give --timestamps word, or {TRAIN}")
    aligner, heard = load_aligner(folder, dtype=model.dtype, device=model.lm_head.weight.device), model.audio_input
    if heard is None or aligner.audio_input.n_mels != heard.n_mels:
        raise InputError(f"--aligner {folder}: hears features of {aligner.audio_input.n_mels} mel filters, the model others; {TRAIN}")
    return Qwen3Aligner(aligner)


def head_folder(checkpoint: Path, aligner: Path | None) -> Path:
    """The folder of the head that is asked for, or of Qwen3's forced aligner, which may come from the Hugging Face Hub.

    Raises:
        InputError: there is none, or it cannot be fetched.
    """
    if aligner is None:
        if find_head(checkpoint) is not None:
            return checkpoint
        raise InputError(
            f"--timestamps: {checkpoint} has no {WEIGHTS} beside its weights; {TRAIN} and give its --output_dir as --aligner, or give "
            "Qwen3's forced aligner there"
        )
    from arkfast.models.hub import checkpoint_folder
    from arkfast.models.qwen3_asr.aligning import is_aligner

    folder = checkpoint_folder(aligner, flag="--aligner")
    if find_head(folder) is not None:
        return folder
    kind = _kind(folder)
    if kind is None:
        raise InputError(f"--aligner {folder}: no {WEIGHTS} there; {TRAIN} and give its --output_dir")
    if not is_aligner(folder):
        raise InputError(f"--aligner {folder}: is a checkpoint ({kind}), neither a CTC head nor Qwen3's forced aligner; {TRAIN}")
    return folder


def weights_of_head(folder: Path) -> str:
    """A digest of the files of a head or an aligner, by which a transcription knows it."""
    found = hashlib.blake2b(digest_size=16)
    if find_head(folder) is None:
        found.update(repr(sorted(contents_of_model(folder).items())).encode())
    else:
        for name in (WEIGHTS, SETTINGS):
            found.update((folder / name).read_bytes())
    return found.hexdigest()


def _kind(folder: Path) -> str | None:
    """The kind of model in a folder; None where there is none."""
    try:
        return str(parse_json_object((folder / "config.json").read_bytes()).get("model_type"))
    except (OSError, ValueError):
        return None
