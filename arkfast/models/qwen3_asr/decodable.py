"""Qwen3-ASR as a model that is decoded: what transcription, evaluation and the service ask of it. It is not trained here.

The prompt is told the language of an utterance where that is known. Otherwise the model writes ``language English<asr_text>`` before its
transcript, which is taken apart by ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from arkfast.models.qwen3_asr.languages import spoken
from arkfast.models.qwen3_asr.load import load_config, load_model, load_tokenizer
from arkfast.models.qwen3_asr.modeling import Qwen3AsrModel
from arkfast.models.qwen3_asr.prompt import END_OF_TEXT, LANGUAGES, Prompts
from arkfast.records import AllowedTokens, Heard, InputError, TokenizerLike, Utterance

NAMES = "language "
"""What stands before the name of the language that the model heard."""
NO_LANGUAGE = "None"
"""What the model writes in its place where nothing is said."""


class Qwen3AsrPrompt:
    """See ``Prompt``.

    Args:
        prompts: in the model's vocabulary.
        model: says how many placeholders a clip takes.
    """

    def __init__(self, prompts: Prompts, model: Qwen3AsrModel) -> None:
        self._prompts, self._token_count = prompts, model.audio_input.token_count

    def ids(self, mel_frames: int, utterance: Utterance, /) -> list[int]:
        """See ``Prompt.ids``. The reference has no part in it."""
        told = self._prompts.last[spoken(utterance.language, None).name]
        return [*self._prompts.first, *[self._prompts.audio_id] * self._token_count(mel_frames), *told]


class _Ids:
    """How many ids there are, and which end an answer."""

    def __init__(self, vocab_size: int, ends: list[int]) -> None:
        self.vocab_size, self.eos_token_id = vocab_size, ends


class Qwen3AsrInterface:
    """See ``Interface`` and ``NamesLanguages``: transcription is the one task.

    Args:
        tokenizer: the model's.
        model: its configuration alone is read.
        where: what an error calls the tokenizer's folder.

    Raises:
        InputError: the tokenizer is another model's.
    """

    languages: tuple[str, ...] = LANGUAGES

    def __init__(self, tokenizer: TokenizerLike, model: Qwen3AsrModel, *, where: str) -> None:
        self.tokenizer, rows = tokenizer, int(model.config.vocab_size)
        prompts = Prompts(tokenizer, where=where, device=torch.device("cpu"))
        placeholder = model.audio_input.placeholder_id
        if prompts.audio_id != placeholder or len(tokenizer) > rows:
            raise InputError(
                f"{where}: its tokenizer is another model's: the audio token is {prompts.audio_id} there, and {placeholder} of {rows} in "
                "the model; give the tokenizer that the model was trained with"
            )
        self._prompt, self._transcript_id, self.end_id = Qwen3AsrPrompt(prompts, model), prompts.transcript_id, prompts.end_id
        # Official files name the end of a text beside the end of a turn.
        text = AllowedTokens.asr(tokenizer, _Ids(rows, [self.end_id, tokenizer.convert_tokens_to_ids(END_OF_TEXT)]))
        marker = (self._transcript_id, self._transcript_id + 1)
        self._allowed = AllowedTokens(ranges=tuple(sorted((*text.ranges, marker))), stop_ids=text.stop_ids)
        self.n_mels: int | None = model.audio_input.n_mels

    def prompt(self, task: str) -> Qwen3AsrPrompt:
        """See ``Interface.prompt``."""
        self._check(task)
        return self._prompt

    def allowed(self, task: str) -> AllowedTokens:
        """See ``Interface.allowed``: text, and the mark between the language and the transcript."""
        self._check(task)
        return self._allowed

    def told(self, language: str | None) -> str | None:
        """See ``NamesLanguages.told``."""
        return spoken(language, None).name

    def heard(self, answer: Sequence[int]) -> Heard:
        """See ``NamesLanguages.heard``. An answer that does not begin with a language and the mark is a transcript as a whole."""
        if self._transcript_id not in answer:
            return Heard(None, 0)
        mark = list(answer).index(self._transcript_id)
        before = self.tokenizer.decode(answer[:mark], skip_special_tokens=True).strip()
        name = before.removeprefix(NAMES).strip()
        if not before.startswith(NAMES) or not name:
            return Heard(None, 0)
        return Heard(None if name == NO_LANGUAGE else name, mark + 1)

    @staticmethod
    def _check(task: str) -> None:
        if task != "asr":
            raise InputError(f"task {task!r}: a Qwen3-ASR model transcribes and does nothing else; give task asr")


class Qwen3AsrDecodable:
    """See ``Decodable``."""

    def load(
        self, folder: Path, *, dtype: str | torch.dtype, attn_implementation: str, device: str | torch.device | None = None
    ) -> Qwen3AsrModel:
        """See ``Decodable.load``. Both layouts of a checkpoint are read."""
        if dtype == "auto":
            said = load_config(folder).dtype
            dtype = said if isinstance(said, torch.dtype) else torch.float32
        elif isinstance(dtype, str):
            dtype = getattr(torch, dtype)
        assert isinstance(dtype, torch.dtype)
        return load_model(folder, dtype=dtype, attn_implementation=attn_implementation, device=torch.device(device or "cpu"))

    def tokenizer(self, folder: Path) -> TokenizerLike:
        """See ``Decodable.tokenizer``."""
        return load_tokenizer(folder)

    def interface(self, tokenizer: TokenizerLike, model: Qwen3AsrModel, *, where: str) -> Qwen3AsrInterface:
        """See ``Decodable.interface``."""
        return Qwen3AsrInterface(tokenizer, model, where=where)


decodable = Qwen3AsrDecodable()
