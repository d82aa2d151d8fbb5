"""Times of words beside transcripts, as their rows have them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from arkfast.align import Aligner, Word, find_head, load_head
from arkfast.align.head import SETTINGS, TRAIN, WEIGHTS
from arkfast.data.transcript import clean_transcript
from arkfast.files.json_input import parse_json_object
from arkfast.infer.stream import Outcome
from arkfast.models.family import SpeechModel
from arkfast.records import InputError, JsonObject


class WordTimes:
    """Adds times of words to what a decoder gives back.

    Args:
        model: has been loaded, on its device.
        checkpoint: its folder.
        folder: of the head, as ``head_folder`` finds it.
        characters: add the times of each word's letters and numbers too.

    Raises:
        InputError: the head cannot be read, or it is another model's.
    """

    def __init__(self, model: SpeechModel, *, checkpoint: Path, folder: Path, characters: bool) -> None:
        device = model.lm_head.weight.device
        head = load_head(folder, checkpoint=checkpoint, hidden_size=model.config.hidden_size, device=device)
        self._aligner, self._characters = Aligner(model, head), characters
        self._features: dict[int, np.ndarray] = {}

    def keep(self, ticket: int, features: np.ndarray) -> None:
        """Keep what was heard until its transcript is there."""
        self._features[ticket] = features

    def forget(self, ticket: int) -> None:
        """Let go of what was heard: its transcript will not come."""
        self._features.pop(ticket, None)

    def clear(self) -> None:
        """Forget everything."""
        self._features.clear()

    def add(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """The same outcomes, those with a transcript with their words or with the reason why they have no times."""
        features = [self._features.pop(outcome.ticket) for outcome in outcomes]
        some = [i for i, outcome in enumerate(outcomes) if outcome.text is not None]
        texts = [clean_transcript(outcomes[i].text or "") for i in some]
        found = dict(zip(some, self._aligner([features[i] for i in some], texts), strict=True))
        added = []
        for i, outcome in enumerate(outcomes):
            words = found.get(i)
            if isinstance(words, str):
                outcome = outcome._replace(words_error=words)
            elif words is not None:
                outcome = outcome._replace(words=[self._row(word) for word in words])
            added.append(outcome)
        return added

    def _row(self, word: Word) -> JsonObject:
        row: JsonObject = {"word": word.text, "start": word.start, "end": word.end}
        if self._characters:
            row["characters"] = [{"character": c.text, "start": c.start, "end": c.end} for c in word.characters]
        return row


def head_folder(checkpoint: Path, aligner: Path | None) -> Path:
    """The folder of the head that is asked for.

    Raises:
        InputError: there is none.
    """
    folder = checkpoint if aligner is None else aligner
    if find_head(folder) is not None:
        return folder
    if aligner is None:
        raise InputError(f"--timestamps: {checkpoint} has no {WEIGHTS} beside its weights; {TRAIN} and give its --output_dir as --aligner")
    kind = _kind(folder)
    if kind is not None:
        raise InputError(f"--aligner {folder}: is a checkpoint ({kind}) and no CTC head; other aligners are not run here; {TRAIN}")
    raise InputError(f"--aligner {folder}: no {WEIGHTS} there; {TRAIN} and give its --output_dir")


def weights_of_head(folder: Path) -> str:
    """A digest of a head's files, by which a transcription knows it."""
    found = hashlib.blake2b(digest_size=16)
    for name in (WEIGHTS, SETTINGS):
        found.update((folder / name).read_bytes())
    return found.hexdigest()


def _kind(folder: Path) -> str | None:
    """The kind of model in a folder; None where there is none."""
    try:
        return str(parse_json_object((folder / "config.json").read_bytes()).get("model_type"))
    except (OSError, ValueError):
        return None
