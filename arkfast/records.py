"""The records that flow along the line: audio → batch → rollout → teacher scores → loss.

Each record says its shapes, dtypes and units. Shape letters:
B utterances in a batch, T log-mel frames, P prompt ids, L target ids, R = B · rollouts per prompt, N = Σ rollout lengths,
Ks / Kt the student's / teacher's top-k.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias, TypeVar, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    import torch


R = TypeVar("R", bound="_OnDevice")


class InputError(ValueError):
    """Something that a user gave is wrong. The message names it, says what is wrong with it and what to do; commands print no traceback."""


JsonObject: TypeAlias = dict[str, Any]
"""An object of a JSON file as ``json.loads`` gives it. What a field holds is not known before somebody has looked."""
JsonRow: TypeAlias = Mapping[str, Any]
"""The same, where it is only read."""
OnTruncated: TypeAlias = Literal["fail", "warn"]
"""What becomes of an Ogg file that ends on a page's boundary without the mark of its end: it is refused, or read with a warning."""


class TokenizerLike(Protocol):
    """What is asked of a Transformers tokenizer."""

    unk_token_id: int | None
    pad_token_id: int | None
    added_tokens_decoder: Mapping[int, Any]

    def __len__(self) -> int: ...

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str: ...

    def convert_tokens_to_ids(self, tokens: str) -> int: ...

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str | None]: ...


class VocabularyConfig(Protocol):
    """What a model's configuration says of its ids."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def eos_token_id(self) -> int | list[int] | None: ...


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """One stretch of speech and what is known about it."""

    id: str
    """Stable name, unique within its manifest; sampling noise and outputs are keyed by it."""
    audio: str | np.ndarray | None
    """Path of the recording, a member of a tar shard (``shard.tar::clip.flac@offset+size``), or 16 kHz mono samples as float32; None where
    the task hears nothing."""
    begin: float | None = None
    """Start of the segment within the recording in seconds; None is the recording's start."""
    end: float | None = None
    """End of the segment in seconds; None is the recording's end."""
    channel: tuple[int, ...] | None = None
    """Channels of the recording, from 0, whose average is heard; () is the average of all, and so is None, where nothing was said."""
    audio_track: int | None = None
    """Audio track of a container such as mp4, from 0; None is the first."""
    on_truncated: OnTruncated = "warn"
    """What becomes of a recording that may be truncated, where nobody can be sure."""
    text: str | None = None
    """Reference transcript, where one is known."""
    language: str | None = None
    """Language of the speech as the data gives it. It is never guessed from a transcript."""
    task: str = "asr"
    """Which task the row belongs to."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Every other field of the input row, passed through to outputs."""
    where: str = ""
    """Where the row stands, as ``file:line``. Error messages begin with it."""

    @property
    def key(self) -> int:
        """A 63-bit integer that stands for ``id`` on the device, the same in every process."""
        return int.from_bytes(hashlib.blake2b(self.id.encode(), digest_size=8).digest(), "little") >> 1

    @property
    def name(self) -> str:
        """How an error message calls this utterance."""
        return self.where or self.id


@dataclass(frozen=True, kw_only=True)
class AllowedTokens:
    """Which ids a task may produce and which of them end it. Every token mask is made from this.

    Ids are ranges so that a vocabulary of 164k costs nothing to describe. Acoustic tokens are as good as text tokens here.
    """

    ranges: tuple[tuple[int, int], ...]
    """Half-open id ranges [start, stop), ascending and disjoint, that may be produced."""
    stop_ids: tuple[int, ...]
    """Ids that end a sequence. They are allowed in addition to ``ranges``."""
    period: tuple[tuple[int, int], ...] | None = None
    """Half-open id ranges that the positions of an answer take in turn, as when several codebooks are flattened into disjoint ranges:
    position t may have the ids of ``period[t % len(period)]`` alone. Stop ids are allowed where a turn begins, t % len(period) == 0, and
    nowhere else, so that no answer ends within one. Every range lies inside ``ranges`` and holds no stop id. With None every position may
    have every id."""

    def __post_init__(self) -> None:
        if not self.stop_ids:
            raise ValueError("AllowedTokens: at least one stop id is needed, because no sequence could end without one")
        previous = 0
        for start, stop in self.ranges:
            if not previous <= start < stop:
                raise ValueError(f"AllowedTokens: ranges must be ascending, disjoint and non-empty, got {self.ranges}")
            previous = stop
        if self.period is None:
            return
        if not self.period:
            raise ValueError("AllowedTokens: period must have at least one range, or be None where every position may have every id")
        for start, stop in self.period:
            inside = sum(max(0, min(stop, b) - max(start, a)) for a, b in self.ranges)
            if not start < stop or inside < stop - start:
                raise ValueError(f"AllowedTokens: period's range [{start}, {stop}) must be non-empty and lie inside ranges, {self.ranges}")
            for token in self.stop_ids:
                if start <= token < stop:
                    raise ValueError(f"AllowedTokens: period's range [{start}, {stop}) must not hold the stop id {token}")

    @classmethod
    def asr(cls, tokenizer: TokenizerLike, config: VocabularyConfig) -> AllowedTokens:
        """Text tokens and the end token: the base vocabulary (all ids minus added tokens) plus ``config``'s eos.

        On both official checkpoints this is [0, 151643) and 151645.

        Args:
            tokenizer: a Transformers tokenizer; its added tokens are the ones left out.
            config: a model configuration; ``eos_token_id`` (int or list) gives the stop ids, ``vocab_size`` the upper bound.
        """
        eos = config.eos_token_id
        if eos is None:
            raise InputError("AllowedTokens.asr: the configuration names no eos_token_id; give one whose generation ends with a token")
        stop_ids = tuple(sorted({int(i) for i in ([eos] if isinstance(eos, int) else eos)}))
        added = {int(i) for i in tokenizer.added_tokens_decoder} | set(stop_ids)
        ranges, start = [], 0
        last = min(int(config.vocab_size), len(tokenizer))
        for blocked in [*sorted(i for i in added if i < last), last]:
            if start < blocked:
                ranges.append((start, blocked))
            start = blocked + 1
        return cls(ranges=tuple(ranges), stop_ids=stop_ids)

    @property
    def count(self) -> int:
        """How many ids are allowed."""
        return sum(stop - start for start, stop in self.ranges) + sum(not self._in_ranges(i) for i in self.stop_ids)

    def _in_ranges(self, token: int) -> bool:
        return any(start <= token < stop for start, stop in self.ranges)

    def __contains__(self, token: int) -> bool:
        return token in self.stop_ids or self._in_ranges(token)

    def width(self, vocab_size: int) -> int:
        """How many leading ids of a vocabulary hold every allowed one. It is a multiple of 64, or ``vocab_size`` where that is less.

        What is scored beyond them is blocked in any case: 151,680 of the 163,958 ids of an official checkpoint are enough, and rows of a
        multiple of 64 are read and written in whole vectors.
        """
        last = max([stop - 1 for _, stop in self.ranges] + [i for i in self.stop_ids if i < vocab_size], default=vocab_size - 1)
        return min(vocab_size, (last // 64 + 1) * 64)

    def mask(self, vocab_size: int, device: torch.device | str | None = None) -> torch.Tensor:
        """Boolean [vocab_size] tensor, True where an id may be produced."""
        import torch

        allowed = torch.zeros(vocab_size, dtype=torch.bool, device=device)
        for start, stop in self.ranges:
            allowed[start:stop] = True
        for token in self.stop_ids:
            if token < vocab_size:
                allowed[token] = True
        return allowed

    def blocked(self, vocab_size: int, device: torch.device | str | None = None) -> torch.Tensor:
        """The ids below ``vocab_size`` that may not be produced, int32 ascending. The kernels take them as ``blocked``."""
        import torch

        return (~self.mask(vocab_size)).nonzero().flatten().to(torch.int32).to(device)

    def turns(self, device: torch.device | str | None = None) -> torch.Tensor | None:
        """What each position of a turn may have, as [len(period), R, 2] int32 id ranges of which (0, 0) is empty; None without a period.

        The first range of a position is its own, the others are the stop ids, of which consecutive ones share a range.
        """
        import torch

        if self.period is None:
            return None
        stops: list[tuple[int, int]] = []
        for token in sorted(set(self.stop_ids)):
            if stops and stops[-1][1] == token:
                stops[-1] = (stops[-1][0], token + 1)
            else:
                stops.append((token, token + 1))
        none = [(0, 0)] * len(stops)
        table = [[own, *(stops if t == 0 else none)] for t, own in enumerate(self.period)]
        return torch.tensor(table, dtype=torch.int32).to(device, non_blocking=True)

    def row_ranges(self, positions: torch.Tensor) -> torch.Tensor | None:
        """The id ranges of positions in their answers. The kernels take them as ``ranges`` beside ``blocked``.

        Args:
            positions: [N] int64, from 0.

        Returns:
            [N, R, 2] int32 on the positions' device; None without a period, where ``blocked`` says everything.
        """
        turns = self.turns(positions.device)
        return None if turns is None else turns[positions % len(turns)]


class Prompt(Protocol):
    """How an utterance becomes the ids that a model reads before it answers."""

    def ids(self, mel_frames: int, utterance: Utterance, /) -> list[int]:
        """The prompt of one utterance.

        Args:
            mel_frames: how many frames its audio has, for which placeholders are left; 0 where the task hears nothing.
            utterance: the utterance, since a prompt may hold its text or its language.
        """
        ...


class Interface(Protocol):
    """What goes into a checkpoint's model and what may come out of it, in ids. A task asks a model family for nothing else."""

    tokenizer: TokenizerLike
    end_id: int
    """The id that ends a target."""
    n_mels: int | None
    """Mel filters of the features that the model hears; None where it hears nothing."""

    def prompt(self, task: str) -> Prompt:
        """How an utterance of ``task`` becomes ids.

        Raises:
            InputError: the model family has no such task.
        """
        ...

    def allowed(self, task: str) -> AllowedTokens:
        """Which ids an answer to ``task`` may hold, and which end it.

        Raises:
            InputError: the model family has no such task.
        """
        ...


class Heard(NamedTuple):
    """What a model wrote before its transcript."""

    language: str | None
    """The language that it heard, by the model's name for it; None where it named none."""
    begin: int
    """How many of its ids stand before the transcript."""


@runtime_checkable
class NamesLanguages(Protocol):
    """An ``Interface`` whose prompts are told the language of an utterance, and whose model names it itself where they are not."""

    languages: tuple[str, ...]
    """Those that a prompt can be told, by the model's names."""

    def told(self, language: str | None) -> str | None:
        """What a prompt is told of an utterance with this ``Utterance.language``; None: nothing."""
        ...

    def heard(self, answer: Sequence[int]) -> Heard:
        """What the model wrote before its transcript where it was told nothing, of an answer without its end token."""
        ...


@dataclass(frozen=True, kw_only=True)
class _OnDevice:
    """Moves records of tensors to a device."""

    def to(self: R, device: torch.device | str, non_blocking: bool = True) -> R:
        """The same record with every tensor on ``device``."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pinned(self: R) -> R:
        """The same record with every tensor in pinned memory, from which a copy to a GPU does not hold up the host."""
        return self._each(lambda tensor: tensor.pin_memory())

    def _each(self: R, change: Callable[[torch.Tensor], torch.Tensor]) -> R:
        """The same record with ``change`` of every tensor."""
        import torch

        def changed(value: object) -> object:
            if isinstance(value, torch.Tensor):
                return change(value)
            if isinstance(value, _OnDevice):
                return value._each(change)
            if isinstance(value, Mapping):
                return {name: changed(part) for name, part in value.items()}
            return value

        return dataclasses.replace(self, **{f.name: changed(getattr(self, f.name)) for f in dataclasses.fields(self)})


@dataclass(frozen=True, kw_only=True)
class Padded(_OnDevice):
    """B arrays of one kind, all with the same number of axes, in one tensor."""

    values: torch.Tensor
    """[B, …]: each array lies in the lower corner of its row, with zeros past it."""
    shapes: torch.Tensor
    """[B, axes] int64 the arrays' own shapes."""
    sizes: tuple[tuple[int, ...], ...]
    """The same shapes, which the host can read without waiting for the device."""


@dataclass(frozen=True, kw_only=True)
class Batch(_OnDevice):
    """B utterances, ready for a model. Prompts are padded on the right, and positions count from 0 in every row."""

    ids: tuple[str, ...]
    """The utterances' ids, in row order."""
    keys: torch.Tensor
    """[B] int64: ``Utterance.key`` of each row, from which sampling noise is drawn."""
    mel: torch.Tensor | None
    """[B, n_mels, T] float32 log-mel. Columns past a row's length hold padding and are never read. None where the task hears nothing."""
    mel_lens: torch.Tensor | None
    """[B] int64 frames of each row; None where ``mel`` is None."""
    mel_frames: tuple[int, ...] | None = None
    """The same numbers, which the host can read without waiting for the device; None where they are not known."""
    input_ids: torch.Tensor
    """[B, P] int64 prompt ids with one audio placeholder per encoder output, right-padded."""
    prompt_lens: torch.Tensor
    """[B] int64 prompt lengths."""
    prompt_sizes: tuple[int, ...] | None = None
    """The same numbers, which the host can read without waiting for the device; None where they are not known."""
    target_ids: torch.Tensor | None = None
    """[B, L] int64 transcript ids with the end token, right-padded; None when the rows carry no text."""
    target_lens: torch.Tensor | None = None
    """[B] int64 transcript lengths, the end token included."""
    target_sizes: tuple[int, ...] | None = None
    """The same numbers, as ``prompt_sizes``."""
    languages: tuple[str | None, ...] = ()
    """Each row's language as the data gives it."""
    texts: tuple[str | None, ...] = ()
    """Each row's reference transcript."""
    seconds: float = 0.0
    """Audio seconds in the batch."""
    teacher_inputs: Mapping[str, Padded] = field(default_factory=dict)
    """What a teacher's ``prepare`` made of the rows' waveforms, by name."""

    @property
    def size(self) -> int:
        """How many utterances there are."""
        return len(self.ids)


@dataclass(frozen=True, kw_only=True)
class Rollout(_OnDevice):
    """What the student produced for a batch. These are the ids themselves; their text is never read back into ids."""

    tokens: torch.Tensor
    """[R, L] int64, the end token included where the row stopped; right-padded with 0."""
    lens: torch.Tensor
    """[R] int64 tokens of each row, the end token included."""
    stopped: torch.Tensor
    """[R] bool: False where the row was cut at the length limit. Such a row has no end target."""
    owner: torch.Tensor
    """[R] int64 row of the batch that the rollout belongs to."""
    failed: torch.Tensor | None = None
    """[R] bool: True where the model gave a score that is not a number, so that the row's tokens mean nothing. None where nothing was
    decoded."""
    topk_ids: torch.Tensor | None = None
    """[N, Ks] int32 the student's top-k ids at each produced position, rows in order (−1 empty); None when none were asked for."""
    logprob: torch.Tensor | None = None
    """[N] float32 log-probability of each produced token under the student's allowed distribution at temperature 1."""
    total: int | None = None
    """N where the host knows it, so that whatever needs N does not wait for the device."""
    sizes: tuple[tuple[int, int], ...] | None = None
    """(row of the batch, tokens) of each row where the host knows them, as ``total``."""
    languages: tuple[str, ...] = ()
    """As ``TeacherScores.languages``, where a teacher produced it."""

    def packed_index(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(row [N], position [N]) int64 of the produced tokens in packed order, rows ascending."""
        import torch

        device = self.lens.device
        rows = torch.arange(len(self.lens), device=device)
        row = torch.repeat_interleave(rows, self.lens, output_size=self.total)
        starts = self.lens.cumsum(0) - self.lens
        return row, torch.arange(len(row), device=device) - starts[row]


@dataclass(frozen=True, kw_only=True)
class TeacherScores(_OnDevice):
    """The teacher's view of exactly the tokens that the student produced, packed over N positions, in student ids."""

    ids: torch.Tensor
    """[N, Kt] int32 the teacher's top-k ids (−1 empty)."""
    scores: torch.Tensor
    """[N, Kt] float32 its logits at ``ids``, −inf where empty."""
    student_scores: torch.Tensor
    """[N, Ks] float32 its logits at ``Rollout.topk_ids``; −inf where it cannot see an id."""
    valid: torch.Tensor
    """[N] bool: False where the teacher could not score the position."""
    lse: torch.Tensor | None = None
    """[N] float32 log-sum-exp of its logits, divided by the loss's temperature, over the allowed ids; None when it was not asked for."""
    states: torch.Tensor | None = None
    """[N, Ht] its hidden states that predict the produced tokens, for a loss over all ids; None when they were not asked for."""
    head: torch.Tensor | None = None
    """[Vt, Ht] the head that makes its logits of them; its leading rows are the student's ids."""
    sampled_scores: torch.Tensor | None = None
    """[N] float32 its logits at the tokens that were produced, which lie outside the student's top-k at times; None when they were not
    asked for."""
    languages: tuple[str, ...] = ()
    """What the teacher was told of each utterance's language, or what became of it, by the names of ``distill.languages``; empty for a
    teacher that is told none."""
    by_reference: tuple[int, ...] = ()
    """Rows of the batch that the teacher cannot score and whose references the student learns instead; the batch carries them."""
