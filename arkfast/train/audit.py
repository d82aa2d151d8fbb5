"""What is wrong with the samples that a run is about to learn from.

It looks at batches as they reach the step and at the rows that they are made of, without a model. ``preflight`` judges what is found.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from arkfast.data.tasks import Task
from arkfast.models.family import AudioInput
from arkfast.records import Batch, InputError, Interface, TokenizerLike, Utterance

SAMPLED = 1000
"""Rows whose references are measured, spread evenly over the manifest."""


@dataclass(kw_only=True)
class Audit:
    """Counts over samples, and the ids of those that are at fault."""

    rows: int = 0
    texts: int = 0
    """Rows that have a text."""
    silent: list[str] = field(default_factory=list)
    """Rows whose features are one constant: digital silence."""
    misplaced: list[str] = field(default_factory=list)
    """Rows with another number of placeholders in their prompt than audio embeddings."""
    out_of_range: list[str] = field(default_factory=list)
    """Rows with ids in their prompt that the model does not have."""
    unwritable: list[str] = field(default_factory=list)
    """Rows whose text does not come back from the tokenizer."""

    def add(self, batch: Batch, audio: AudioInput | None, tokenizer: TokenizerLike, vocab_size: int) -> None:
        """Look at a batch, which must lie in main memory."""
        self.rows += batch.size
        for i, name in enumerate(batch.ids):
            ids = batch.input_ids[i, : int(batch.prompt_lens[i])]
            if bool(((ids < 0) | (ids >= vocab_size)).any()):
                self.out_of_range.append(name)
            if audio is not None and batch.mel is not None and batch.mel_lens is not None:
                frames = int(batch.mel_lens[i])
                mel = batch.mel[i, :, :frames]
                if frames and bool(mel.amax() == mel.amin()):
                    self.silent.append(name)
                if int((ids == audio.placeholder_id).sum()) != audio.token_count(frames):
                    self.misplaced.append(name)
        for name, text in zip(batch.ids, batch.texts, strict=False):
            if text is not None and text.strip():
                self.texts += 1
                if not comes_back(tokenizer, text):
                    self.unwritable.append(name)

    @classmethod
    def of_all(cls, audits: Sequence[Audit]) -> Audit:
        """The audits of several ranks, added up."""
        whole = cls()
        for one in audits:
            whole.rows, whole.texts = whole.rows + one.rows, whole.texts + one.texts
            for name in ("silent", "misplaced", "out_of_range", "unwritable"):
                getattr(whole, name).extend(getattr(one, name))
        return whole


def comes_back(tokenizer: TokenizerLike, text: str) -> bool:
    """Whether a text comes back from the tokenizer as it was, apart from blanks, case and Unicode form."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
        return False
    return _plain(tokenizer.decode(ids, skip_special_tokens=False)) == _plain(text)


def _plain(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def reference_lens(rows: Sequence[Utterance], task: Task, interface: Interface, *, most: int = SAMPLED) -> list[int]:
    """Ids of the references, the end token included, of up to ``most`` rows that have one, spread evenly over ``rows``."""
    lens = []
    for i in range(min(most, len(rows))):
        row = rows[i * len(rows) // min(most, len(rows))]
        try:
            lens.append(len(task.targets(row, interface)))
        except InputError:
            continue  # a row without a reference, which on-policy distillation does not need
    return lens


def with_references(batch: Batch, rows: Sequence[Utterance], task: Task, interface: Interface) -> Batch | None:
    """A batch with its rows' references as targets; None where a row has none."""
    try:
        targets = [task.targets(row, interface) for row in rows]
    except InputError:
        return None
    lens = torch.tensor([len(ids) for ids in targets])
    padded = torch.zeros(len(targets), int(lens.max()), dtype=torch.int64)
    for i, ids in enumerate(targets):
        padded[i, : len(ids)] = torch.tensor(ids)
    return replace(batch, target_ids=padded, target_lens=lens, target_sizes=tuple(map(len, targets)))
