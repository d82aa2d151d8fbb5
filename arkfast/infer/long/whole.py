"""Long recordings among others: their clips travel with all other clips, and one result comes out for each row."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace

from arkfast.data.transcript import clean_transcript
from arkfast.infer.confidence import joined_scores
from arkfast.infer.long.split import Known, Splitter
from arkfast.infer.long.texts import join_texts
from arkfast.infer.result import CUT_SHORT, FinishReason, Result, later
from arkfast.infer.stream import Gate, Outcome
from arkfast.records import InputError, JsonObject, Utterance

MOST_WARNINGS = 20  # of the clips of one recording
NOTHING_HEARD = "nothing in the recording is above −80 dB of full scale, so nothing was transcribed"
NO_SPEECH = "no speech was found in the recording, so nothing was transcribed"

Transcribe = Callable[[Iterable["Utterance | Result"]], Generator[Result, None, None]]
"""One result for each item, in order; results pass through."""
Unheard = Callable[[Utterance], Outcome]
"""What is said of a recording in which nothing is heard; its finish reason, scores and words count."""


def transcribe_long(
    items: Iterable[Utterance | Result],
    *,
    transcribe: Transcribe,
    splitter: Splitter,
    unheard: Unheard | None = None,
    gate: Gate | None = None,
) -> Generator[Result, None, None]:
    """One result for each item, in order; those of long recordings have ``segments``.

    A recording is read as fast as ``transcribe`` takes its clips. Where one clip has no transcript, or the recording cannot be read any
    further, its row has failed and the segments say what is known.

    Args:
        items: utterances, and results that are already known, which pass through in their places.
        transcribe: transcribes clips.
        splitter: cuts long recordings.
        unheard: what is said of a long recording in which nothing is heard, beside its empty text; None: nothing.
        gate: is told while the next clip belongs to the same recording as the last one.
    """
    rows: deque[_Row] = deque()
    with closing(transcribe(_clips(items, rows, splitter, unheard, gate or Gate(None)))) as results:
        for result in results:
            while rows[0].done:
                yield rows.popleft().result()
            rows[0].take(result)
            while rows and rows[0].done:
                yield rows.popleft().result()
        while rows:
            yield rows.popleft().result()


def _clips(
    items: Iterable[Utterance | Result], rows: deque[_Row], splitter: Splitter, unheard: Unheard | None, gate: Gate
) -> Iterator[Utterance | Result]:
    """What is to be transcribed; each item's row is in ``rows`` before its first clip is given.

    A row's last clip is given when it is known to be the last, so that its result can come before the next item is asked for.
    """
    for item in items:
        if isinstance(item, Result) or not splitter.is_long(item):
            rows.append(_Row(None, splitter.vad))
            yield item
            continue
        row = _Row(item, splitter.vad, unheard)
        rows.append(row)
        last: Utterance | None = None
        try:
            for piece in splitter.pieces(item, tell=row.known):
                row.times.append((piece.begin, piece.end))
                if last is not None:
                    gate.inside = True
                    yield last
                last = piece.utterance
        except InputError as error:
            row.error = str(error)
        gate.inside, row.handed_out = False, True
        if last is not None:
            yield last
        else:
            rows[-1] = _Row(None, splitter.vad)
            yield row.result()


class _Row:
    """A row whose clips are under way.

    Args:
        utterance: the long recording; None for a row that is one clip.
        vad: what cut it.
        unheard: see ``transcribe_long``.
    """

    def __init__(self, utterance: Utterance | None, vad: str, unheard: Unheard | None = None) -> None:
        self._utterance, self._vad, self._unheard = utterance, vad, unheard
        self.times: list[tuple[float, float]] = []
        self.known: list[Known] = []
        self.error: str | None = None
        self.handed_out = utterance is None
        self._results: list[Result] = []

    @property
    def done(self) -> bool:
        """Whether every clip has its result."""
        return self.handed_out and len(self._results) == (len(self.times) if self._utterance else 1)

    def take(self, result: Result) -> None:
        """The next clip's result. Its utterance, which may hold samples, is let go."""
        self._results.append(result if self._utterance is None else replace(result, utterance=self._utterance))

    def result(self) -> Result:
        """The row's result."""
        if self._utterance is None:
            return self._results[0]
        utterance, results = self._utterance, self._results
        error = self.error or next(
            (_failed(utterance, times, result) for times, result in zip(self.times, results, strict=True) if result.failed), None
        )
        known = self.known[0] if self.known else Known((), {})
        warnings = dict.fromkeys([*known.warnings, *(warning for result in results for warning in result.warnings)])
        if not results and error is None:
            return self._of_nothing(utterance, known)
        reasons = [result.finish_reason for result in results]
        text = join_texts(clean_transcript(result.text_raw or "") for result in results)
        ended: FinishReason = "no_speech" if reasons and set(reasons) == {"no_speech"} else "stop"
        return Result(
            utterance=utterance,
            text_raw=None if error else text,
            finish_reason=None if error else next((reason for reason in reasons if reason in CUT_SHORT), ended),
            error=error,
            seconds=sum(result.seconds for result in results),
            warnings=tuple(warnings)[:MOST_WARNINGS],
            used=known.used or next((result.used for result in results if result.used), {}),
            scores=joined_scores(((result.seconds, result.scores) for result in results), text=text),
            vad=self._vad,
            segments=[_segment(times, result) for times, result in zip(self.times, results, strict=True)],
            words=_words(self.times, results),
            words_error="; ".join(
                f"from {times[0]:.2f} to {times[1]:.2f} s: {result.words_error}"
                for times, result in zip(self.times, results, strict=True)
                if result.words_error is not None
            )
            or None,
        )

    def _of_nothing(self, utterance: Utterance, known: Known) -> Result:
        """The result of a recording without a clip."""
        said = self._unheard(utterance) if self._unheard else None
        return Result(
            utterance=utterance,
            text_raw="",
            finish_reason=said.finish_reason if said else "stop",
            warnings=tuple([*known.warnings, NO_SPEECH if self._vad == "silero" else NOTHING_HEARD][:MOST_WARNINGS]),
            used=known.used,
            scores=(said.scores if said else None) or {},
            vad=self._vad,
            words=said.words if said else None,
        )


def _segment(times: tuple[float, float], result: Result) -> JsonObject:
    segment: JsonObject = {"start": times[0], "end": times[1], "text": None, "finish_reason": result.finish_reason}
    if result.text_raw is None:
        return segment | {"error": result.error}
    return segment | {"text": clean_transcript(result.text_raw)} | dict(result.scores)


def _words(times: Sequence[tuple[float, float]], results: Sequence[Result]) -> list[JsonObject] | None:
    """The words of all clips in the recording's seconds; None where no clip has any."""
    if all(result.words is None for result in results):
        return None
    return [word for (begin, end), result in zip(times, results, strict=True) for word in later(result.words or (), begin, end=end)]


def _failed(utterance: Utterance, times: tuple[float, float], result: Result) -> str:
    reason = (result.error or "").removeprefix(f"{utterance.name}: ")
    return f"{utterance.name}: the stretch from {times[0]:.2f} to {times[1]:.2f} s has no transcript: {reason}"
