"""A task in one file: a row's words, in reverse order. Nothing is heard."""

from __future__ import annotations

from collections.abc import Sequence

from arkfast.data.tasks import Errors
from arkfast.records import InputError, Interface, Utterance


class Reverse:
    hears = False
    rate = "places"

    def seconds(self, utterance: Utterance) -> float:
        return 0.1 * len(utterance.text or "")

    def check_reference(self, utterance: Utterance) -> None:
        if not utterance.text:
            raise InputError(f"{utterance.name}: no text to reverse")

    def check_target(self, utterance: Utterance) -> None:
        self.check_reference(utterance)

    def targets(self, utterance: Utterance, interface: Interface) -> list[int]:
        self.check_reference(utterance)
        return [*interface.tokenizer.encode(self._reversed(utterance), add_special_tokens=False), interface.end_id]

    def answer(self, ids: Sequence[int], interface: Interface) -> str:
        return interface.tokenizer.decode(ids, skip_special_tokens=True)

    def errors(self, utterances: Sequence[Utterance], answers: Sequence[str]) -> Errors:
        """Places at which another word stands."""
        wanted = [self._reversed(row).split() for row in utterances]
        wrong = sum(a != b for want, got in zip(wanted, answers, strict=True) for a, b in zip(want, [*got.split(), *want], strict=False))
        return Errors(wrong, sum(map(len, wanted)))

    @staticmethod
    def _reversed(utterance: Utterance) -> str:
        return " ".join(reversed((utterance.text or "").split()))


task = Reverse()
