"""Transcription: audio in, its words out."""

from __future__ import annotations

from collections.abc import Sequence

from arkfast.data.loader import row_seconds
from arkfast.data.tasks.base import Errors
from arkfast.data.transcript import clean_transcript
from arkfast.metrics import Unit, canonical, count_errors, normalize, unit_of_texts
from arkfast.records import InputError, Interface, Utterance


class Asr:
    """See ``Task``."""

    hears = True
    rate = "wer"

    def seconds(self, utterance: Utterance) -> float:
        """See ``Task.seconds``: the segment's, the row's ``duration``, or what the recording's header says."""
        return row_seconds(utterance)

    def check_reference(self, utterance: Utterance) -> None:
        """See ``Task.check_reference``."""
        if utterance.text is None:
            raise InputError(f"{utterance.name}: no text; WER needs a reference in every row of --eval_data")

    def check_target(self, utterance: Utterance) -> None:
        """See ``Task.check_target``: a transcript."""
        if utterance.text is None or not utterance.text.strip():
            raise InputError(f"{utterance.name}: no text; supervised training needs a transcript in every row")

    def targets(self, utterance: Utterance, interface: Interface) -> list[int]:
        """See ``Task.targets``: the transcript's ids."""
        self.check_target(utterance)
        return [*interface.tokenizer.encode(utterance.text or "", add_special_tokens=False), interface.end_id]

    def answer(self, ids: Sequence[int], interface: Interface) -> str:
        """See ``Task.answer``: the transcript."""
        return clean_transcript(interface.tokenizer.decode(ids, skip_special_tokens=False))

    def errors(self, utterances: Sequence[Utterance], answers: Sequence[str]) -> Errors:
        """See ``Task.errors``: word errors, by each row's language as ``arkfast evaluate`` counts them, so that both say the same. In
        languages without spaces between words, a character of their scripts is a word."""
        references = [normalize(row.text or "", language=row.language) for row in utterances]
        heard = [normalize(text, language=row.language) for row, text in zip(utterances, answers, strict=True)]
        places: dict[str | None, list[int]] = {}
        for i, row in enumerate(utterances):
            places.setdefault(canonical(row.language), []).append(i)
        errors = units = 0
        for language, of in places.items():
            convention, _ = unit_of_texts(language, [references[i] for i in of])
            unit: Unit = "word" if convention == "word" else "mixed"
            counts = count_errors([references[i] for i in of], [heard[i] for i in of], unit=unit)
            errors, units = errors + int(counts.errors.sum()), units + int(counts.reference.sum())
        return Errors(errors, units)


task = Asr()
