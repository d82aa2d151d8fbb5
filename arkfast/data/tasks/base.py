"""What a task is to the trainer and the commands: how an utterance becomes a prompt and targets, and how answers are judged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from arkfast.records import Interface, Utterance


class Errors(NamedTuple):
    """What is wrong with some answers, to be added up over batches and ranks."""

    errors: int
    units: int
    """Of the references: words, where words are compared. The rate is errors / units."""


class Task(Protocol):
    """One kind of work that a model can do. It knows no model family: it asks the ``Interface`` that it is handed for ids."""

    hears: bool
    """Whether an utterance's audio is read."""
    rate: str
    """What a dev set measures, a share of errors; it is logged as ``eval_<rate>``, in percent."""

    def seconds(self, utterance: Utterance) -> float:
        """How long an utterance is taken to be when batches are planned.

        Raises:
            InputError: its recording's header cannot be read.
        """
        ...

    def check_reference(self, utterance: Utterance) -> None:
        """Raise ``InputError``, which names the row, where an answer to it could not be judged."""
        ...

    def check_target(self, utterance: Utterance) -> None:
        """Raise ``InputError``, which names the row, where there is nothing in it to learn from; no model is needed to tell."""
        ...

    def targets(self, utterance: Utterance, interface: Interface) -> list[int]:
        """The ids of the reference, the end token last.

        Raises:
            InputError: the row has no usable reference.
        """
        ...

    def answer(self, ids: Sequence[int], interface: Interface) -> str:
        """What a model wrote, as it is logged and judged; ``ids`` without padding, the end token included where there is one."""
        ...

    def errors(self, utterances: Sequence[Utterance], answers: Sequence[str]) -> Errors:
        """Judge answers against the rows' references."""
        ...
