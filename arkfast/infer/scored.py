"""What is said of each transcript beside its text, as the flags ask for it: confidence, and whether there was any speech."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from arkfast.data.transcript import clean_transcript
from arkfast.infer.confidence import clip_scores, compression_ratio
from arkfast.infer.result import FinishReason
from arkfast.infer.speech import NO_SPEECH, THRESHOLD, NoSpeech, no_speech_prob, silence_in
from arkfast.infer.stream import Outcome
from arkfast.records import InputError, TokenizerLike

if TYPE_CHECKING:
    from arkfast.engine import Finished

NO_TICKET = 0
"""Of an outcome that nobody submitted."""


class Scored:
    """Adds ``Outcome.scores``.

    Args:
        tokenizer: of the transcripts' ids.
        confidence: whether ``clip_scores`` are wanted.
        no_speech: what becomes of transcripts of clips without speech.
        calibrated: see ``clip_scores``.

    Raises:
        InputError: no such choice.
    """

    def __init__(
        self, tokenizer: TokenizerLike, *, confidence: bool, no_speech: NoSpeech, calibrated: Callable[[float], float] | None
    ) -> None:
        if no_speech not in NO_SPEECH:
            raise InputError(f"no_speech must be one of {', '.join(NO_SPEECH)}, got {no_speech!r}")
        if calibrated is not None and not confidence:
            raise InputError("--calibration has no effect without --confidence; give both")
        self._tokenizer, self.confidence, self._no_speech, self._calibrated = tokenizer, confidence, no_speech, calibrated

    @property
    def judges(self) -> bool:
        """Whether it is judged whether there was speech."""
        return self._no_speech != "keep"

    def front(self, features: NDArray[np.float32] | None) -> float | None:
        """What the features [n_mels, T] say; None where nothing is judged."""
        return silence_in(features) if self.judges and features is not None else None

    def outcome(self, outcome: Outcome, done: Finished, front: float | None) -> Outcome:
        """The outcome of a clip with its scores; without speech, and where that is asked for, without its text.

        Args:
            outcome: of a clip that has a transcript.
            done: what the engine says of it.
            front: of ``front`` for its features.
        """
        assert outcome.text is not None
        found = {}
        if self.confidence:
            assert done.logprobs is not None
            found = clip_scores(done.tokens, done.logprobs, text=outcome.text, tokenizer=self._tokenizer, calibrated=self._calibrated)
        if front is None:
            return outcome._replace(scores=found) if found else outcome
        known = found or {"compression_ratio": compression_ratio(clean_transcript(outcome.text))}
        ended = None if done.silent is None else float(np.exp(min(done.silent, 0.0)))
        probability = no_speech_prob(front, ended_at_once=ended, scores=known)
        if probability < THRESHOLD:
            return outcome._replace(scores=found | {"no_speech_prob": round(probability, 4)}) if found else outcome
        found = found | {"no_speech": True, "no_speech_prob": round(probability, 4)}
        if self._no_speech == "skip":
            return outcome._replace(
                text="", tokens=(), finish_reason="no_speech", scores={**found, "word_confidence": []} if self.confidence else found
            )
        return outcome._replace(scores=found)

    def unheard(self) -> Outcome:
        """The outcome of a clip in which nothing is heard, so that nothing has to be decoded."""
        found = {}
        if self.confidence:
            found = clip_scores([], [], text="", tokenizer=self._tokenizer, calibrated=self._calibrated)
        if self.judges:
            found = found | {"no_speech": True, "no_speech_prob": 1.0}
        reason: FinishReason = "no_speech" if self._no_speech == "skip" else "stop"
        return Outcome(NO_TICKET, "", reason, None, scores=found)
