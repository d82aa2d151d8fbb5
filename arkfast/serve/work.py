"""One request's recording, from the spool to its text: heard, decoded clip by clip, joined."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from arkfast.data.transcript import clean_transcript
from arkfast.infer.long.texts import glue, is_begun
from arkfast.infer.result import CUT_SHORT, later
from arkfast.records import JsonObject, JsonRow
from arkfast.serve.child import Done
from arkfast.serve.engines import Engines, Forgotten
from arkfast.serve.errors import ApiError
from arkfast.serve.fields import Asked
from arkfast.serve.hearing import Clip, Heard, Hearing
from arkfast.serve.lru import Lru
from arkfast.serve.word_confidence import with_confidence

NOTHING_HEARD = "Nothing was heard in the recording, so nothing was transcribed."
NO_PROMPT = "The field prompt has no effect: the model takes none."
NO_LANGUAGE = "The field language has no effect on the transcript: the model is told none."
MOST_KNOWN = 20_000
"""Clips of recordings whose times are kept, each of some hundred bytes."""


class Said(NamedTuple):
    """What is said in a clip."""

    begin: float
    """Seconds from the recording's start."""
    end: float
    text: str
    """Without special tokens, cleaned."""
    finish_reason: str
    tokens: tuple[int, ...]
    """The ids that wrote it."""
    scores: JsonRow
    """``Result.scores``."""
    words: list[JsonObject]
    """Its words with their times in the recording, and how sure the model was of them; none where they have no times."""


@dataclass
class Transcript:
    """What is known of a recording; complete when all its clips were taken."""

    heard: Heard
    recording: Path
    """Its file."""
    folder: Path
    """For files of features."""
    name: str | None
    """Of the recording and the part of it that is asked for, by which what is heard is kept; None: nothing is."""
    said: list[Said] = field(default_factory=list)
    text: str = ""
    """Of the clips that were taken."""
    shown: str = ""
    """What was given of it, and of the clip behind it as far as that was certain."""
    prompt_tokens: int = 0
    warnings: list[str] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        """Whether all clips were taken."""
        return len(self.said) == len(self.heard.clips)

    def grow(self, part: str) -> str:
        """What the next clip's beginning adds to what was shown."""
        return self._show(self._with(part)) if is_begun(part) else ""

    def take(self, clip: Clip, done: Done) -> str:
        """Take the next clip's transcript; what it adds to what was shown.

        Raises:
            ApiError: 500, it takes back what was shown, as a model may that writes control tokens as text.
        """
        text, reason, scores = clean_transcript(done.text or ""), done.finish_reason or "stop", done.scores or {}
        self.text = self._with(text)
        if not self.text.startswith(self.shown):
            raise ApiError(500, "The model took back a part of its transcript. Ask without stream.", code="transcript_changed")
        self.prompt_tokens += done.prompt_tokens
        words = with_confidence(later(done.words or (), clip.begin, end=clip.end), scores.get("word_confidence", ()))
        self.said.append(Said(clip.begin, clip.end, text, reason, done.tokens, scores, words))
        self._warn(clip, done, text)
        return self._show(self.text)

    def _with(self, part: str) -> str:
        return self.text + (glue(self.text, part) if self.text and part else "") + part

    def _show(self, text: str) -> str:
        delta = text[len(self.shown) :]
        self.shown += delta
        return delta

    def _warn(self, clip: Clip, done: Done, text: str) -> None:
        place = f"from {clip.begin:.2f} to {clip.end:.2f} s"
        if done.finish_reason in CUT_SHORT:
            what = "its token limit" if done.finish_reason == "length" else "a phrase that repeats itself"
            self.warnings.append(f"The transcript {place} was cut at {what}.")
        if done.scores and done.scores.get("no_speech"):
            what = "; what the transcript has of it may be invented" if text else ", so nothing of it is transcribed"
            self.warnings.append(f"No speech was heard {place}{what}.")
        if done.words_error:
            self.warnings.append(f"Words {place} have no times: {done.words_error}.")
        self.warnings += [_sentence(warning) for warning in done.warnings if _sentence(warning) not in self.warnings]


class _Clip:
    """A clip that is being decoded, and what is certain of its transcript. Parts that nobody takes come together in one text, so that a
    client who reads slowly costs no memory and holds nobody up."""

    def __init__(self) -> None:
        self.text, self.news = "", asyncio.Event()

    def grow(self, part: str) -> None:
        self.text += part
        self.news.set()

    def end(self, _: object) -> None:
        self.news.set()


class Work:
    """Transcribes recordings.

    Args:
        engines: what decodes.
        hearing: what makes features.
        knows: whether the engine keeps what it heard.
        streams: whether a clip's transcript may be shown before it is complete.
    """

    def __init__(self, engines: Engines, hearing: Hearing, *, knows: bool, streams: bool) -> None:
        self._engines, self._hearing, self._knows, self._streams = engines, hearing, knows, streams
        self._known: Lru[Heard] = Lru(MOST_KNOWN, lambda heard: 1 + len(heard.clips))

    async def begin(self, owner: str, recording: Path, folder: Path, asked: Asked) -> Transcript:
        """Hear a recording, unless the same owner sent it before.

        Args:
            owner: whose recording it is. Nobody finds out, by the time that it takes, what others have sent.
            recording: its file.
            folder: for features; nobody else uses it.
            asked: the request's fields.

        Raises:
            ApiError: as ``Hearing``.
        """
        name = await asyncio.to_thread(_name, owner, recording, asked) if self._knows else None
        heard = None if name is None or asked.words else self._known.find(name)  # words are aligned by features
        if heard is None:
            heard = await self._hear(recording, folder, asked, name)
        warnings = [_sentence(warning) for warning in heard.warnings]
        if not heard.clips:
            warnings.append(NOTHING_HEARD)
        if asked.prompt.strip():
            warnings.append(NO_PROMPT)
        facts = self._engines.facts
        if asked.language is not None and facts is not None and not facts.told:
            warnings.append(NO_LANGUAGE)
        return Transcript(heard, recording, folder, name, warnings=warnings)

    async def _hear(self, recording: Path, folder: Path, asked: Asked, name: str | None) -> Heard:
        heard = await self._hearing(recording, folder, begin=asked.begin, end=asked.end)
        if name is not None:
            self._known.keep(name, heard.without_features())
        return heard

    @asynccontextmanager
    async def decoding(self, owner: str, transcript: Transcript, asked: Asked) -> AsyncIterator[AsyncIterator[str]]:
        """A block that gives what the clips' transcripts add to the text, in order; joined, they are ``transcript.text``. Where the request
        asks for a stream, they come as soon as they are certain. Whatever ends the block frees the slots.

        The iterator raises ``ApiError`` as ``Engines.decode``, ``Hearing`` and ``Transcript.take`` do.
        """
        again = asyncio.Lock()

        async def features(number: int) -> Path | None:
            """Of a clip, when the engine has forgotten what it heard. The first that asks hears the whole recording."""
            async with again:
                if transcript.heard.clips[number].features is None:
                    transcript.heard = await self._hear(transcript.recording, transcript.folder, asked, transcript.name)
            return transcript.heard.clips[number].features

        async def decode(number: int, clip: Clip, grow: Callable[[str], None] | None) -> Done:
            try:
                return await self._decode(owner, transcript, clip, clip.features, asked, grow)
            except Forgotten:
                return await self._decode(owner, transcript, clip, await features(number), asked, grow)

        clips, running = transcript.heard.clips, [_Clip() for _ in transcript.heard.clips]
        growing = asked.stream and self._streams
        tasks = [
            asyncio.ensure_future(decode(number, clip, own.grow if growing else None))
            for number, (clip, own) in enumerate(zip(clips, running, strict=True))
        ]
        for own, task in zip(running, tasks, strict=True):
            task.add_done_callback(own.end)

        async def deltas() -> AsyncIterator[str]:
            for clip, own, task in zip(clips, running, tasks, strict=True):
                while not task.done():
                    await own.news.wait()
                    own.news.clear()
                    if not task.done() and (delta := transcript.grow(own.text)):
                        yield delta
                if delta := transcript.take(clip, await task):
                    yield delta

        try:
            yield deltas()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _decode(
        self, owner: str, transcript: Transcript, clip: Clip, features: Path | None, asked: Asked, grow: Callable[[str], None] | None
    ) -> Done:
        return await self._engines.decode(
            owner,
            key=f"{clip.begin:.6g}",  # the same recording is drawn the same way, whoever sends it
            features=features,
            name=None if transcript.name is None else f"{transcript.name}@{clip.begin:.6g}-{clip.end:.6g}",
            language=asked.language,
            max_new_tokens=asked.max_new_tokens,
            sampling=asked.sampling() | {"seed": asked.seed},
            hotwords=asked.hotwords,
            words=asked.words,
            grown=grow,
        )


def _name(owner: str, recording: Path, asked: Asked) -> str:
    """What tells a part of a recording from all others: its owner, its bytes, the suffix that says how they are coded, and the times."""
    digest = hashlib.blake2b()
    with recording.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    digest.update(f"{recording.suffix}\0{asked.begin}\0{asked.end}\0{owner}".encode())
    return digest.hexdigest()


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."
