"""One request's recording, from the spool to its text: heard, decoded clip by clip, joined."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from arkfast.data.transcript import clean_transcript
from arkfast.infer.long.texts import glue
from arkfast.infer.result import CUT_SHORT
from arkfast.serve.child import Done
from arkfast.serve.engines import Engines
from arkfast.serve.fields import Asked
from arkfast.serve.hearing import Clip, Heard, Hearing

NOTHING_HEARD = "Nothing was heard in the recording, so nothing was transcribed."
NO_PROMPT = "The field prompt has no effect: the model takes none."


class Said(NamedTuple):
    """What is said in a clip."""

    begin: float
    """Seconds from the recording's start."""
    end: float
    text: str
    """Without special tokens, cleaned."""
    finish_reason: str
    delta: str
    """What it adds to the text so far, the blank before it included."""


@dataclass
class Transcript:
    """What is known of a recording; complete when all its clips were taken."""

    heard: Heard
    said: list[Said] = field(default_factory=list)
    text: str = ""
    prompt_tokens: int = 0
    warnings: list[str] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        """Whether all clips were taken."""
        return len(self.said) == len(self.heard.clips)

    def take(self, clip: Clip, done: Done) -> Said:
        """The next clip's text."""
        text, reason = clean_transcript(done.text or ""), done.finish_reason or "stop"
        delta = (glue(self.text, text) if self.text and text else "") + text
        self.text += delta
        self.prompt_tokens += done.prompt_tokens
        said = Said(clip.begin, clip.end, text, reason, delta)
        self.said.append(said)
        if reason in CUT_SHORT:
            what = "its token limit" if reason == "length" else "a phrase that repeats itself"
            self.warnings.append(f"The transcript from {clip.begin:.2f} to {clip.end:.2f} s was cut at {what}.")
        return said


class Work:
    """Transcribes recordings.

    Args:
        engines: what decodes.
        hearing: what makes features.
    """

    def __init__(self, engines: Engines, hearing: Hearing) -> None:
        self._engines, self._hearing = engines, hearing

    async def begin(self, recording: Path, folder: Path, asked: Asked) -> Transcript:
        """Hear a recording.

        Args:
            recording: its file.
            folder: for features; nobody else uses it.
            asked: the request's fields.

        Raises:
            ApiError: as ``Hearing``.
        """
        heard = await self._hearing(recording, folder, begin=asked.begin, end=asked.end)
        warnings = [_sentence(warning) for warning in heard.warnings]
        if not heard.clips:
            warnings.append(NOTHING_HEARD)
        if asked.prompt.strip():
            warnings.append(NO_PROMPT)
        return Transcript(heard, warnings=warnings)

    @asynccontextmanager
    async def decoding(self, owner: str, transcript: Transcript, asked: Asked) -> AsyncIterator[AsyncIterator[Said]]:
        """A block that gives the clips' texts in order, as ``transcript.take`` makes them. Whatever ends it frees the slots.

        The iterator raises ``ApiError`` as ``Engines.decode`` does.
        """
        tasks = [asyncio.ensure_future(self._decode(owner, clip, asked)) for clip in transcript.heard.clips]

        async def texts() -> AsyncIterator[Said]:
            for clip, task in zip(transcript.heard.clips, tasks, strict=True):
                yield transcript.take(clip, await task)

        try:
            yield texts()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _decode(self, owner: str, clip: Clip, asked: Asked) -> Done:
        return await self._engines.decode(
            owner,
            key=f"{clip.begin:.6g}",  # the same recording is drawn the same way, whoever sends it
            features=clip.features,
            language=asked.language,
            max_new_tokens=asked.max_new_tokens,
            sampling=asked.sampling() | {"seed": asked.seed},
        )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."
