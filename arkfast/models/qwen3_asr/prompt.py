"""The Qwen3-ASR prompt as ids, made on the device: placeholders are counted there, so that nothing waits for their number.

Layout: the processor of Qwen3-ASR, with an empty system turn. A turn of the assistant is begun with the language, after which the
transcript alone is left to be written. Shape letters: B rows, P prompt ids.
"""

from __future__ import annotations

import torch

from arkfast.models.qwen3_asr.languages import NAMES
from arkfast.records import InputError, TokenizerLike

START, END, END_OF_TEXT = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
BEGIN_OF_AUDIO, AUDIO, END_OF_AUDIO, TRANSCRIPT = "<|audio_start|>", "<|audio_pad|>", "<|audio_end|>", "<asr_text>"
BEFORE = f"{START}system\n{END}\n{START}user\n{BEGIN_OF_AUDIO}"
AFTER = f"{END_OF_AUDIO}{END}\n{START}assistant\n"
LANGUAGES = tuple(NAMES.values())


def language_prefix(name: str) -> str:
    """What the assistant's turn is begun with."""
    return f"language {name}{TRANSCRIPT}"


class Prompts:
    """Prompts in one vocabulary.

    Args:
        tokenizer: the model's.
        where: what an error calls its folder.
        device: where prompts are made.

    Raises:
        InputError: the tokenizer lacks one of the prompt's tokens.
    """

    def __init__(self, tokenizer: TokenizerLike, *, where: str, device: torch.device) -> None:
        special = {token: tokenizer.convert_tokens_to_ids(token) for token in (START, END, BEGIN_OF_AUDIO, AUDIO, END_OF_AUDIO, TRANSCRIPT)}
        missing = [token for token, id_ in special.items() if id_ is None or id_ == tokenizer.unk_token_id]
        if missing:
            raise InputError(f"{where}: its tokenizer has no {', '.join(missing)}: it is not Qwen3-ASR's; give a complete checkpoint")
        self.audio_id, self.end_id, self.transcript_id = special[AUDIO], special[END], special[TRANSCRIPT]
        encode = lambda text: tokenizer.encode(text, add_special_tokens=False)  # noqa: E731
        tails = [encode(AFTER + language_prefix(name)) for name in LANGUAGES] + [encode(AFTER)]
        before, after = encode(BEFORE), tails[-1]
        self.first: tuple[int, ...] = tuple(before)
        """The ids before the placeholders."""
        self.last: dict[str | None, tuple[int, ...]] = dict(zip((*LANGUAGES, None), map(tuple, tails), strict=True))
        """Those after them, by the language that is told; None: no language is."""
        for text, ids in ((BEFORE, before), (AFTER + language_prefix(LANGUAGES[0]), tails[0])):
            apart = [token for token, id_ in special.items() if text.count(token) != ids.count(id_)]
            if apart or tokenizer.decode(ids, skip_special_tokens=False) != text:
                raise InputError(
                    f"{where}: its tokenizer makes {tokenizer.decode(ids, skip_special_tokens=False)!r} of the prompt {text!r}"
                    f"{f', where {apart[0]} is no token of its own' if apart else ''}; it is not Qwen3-ASR's, give a complete checkpoint"
                )
        self.before, self.untold = len(before), len(LANGUAGES)
        """Ids before the placeholders, and the row of the table below that tells no language."""
        self._width = max(len(tail) for tail in tails)
        padded = [tail + [0] * (self._width - len(tail)) for tail in tails]
        self._before = torch.tensor(before, device=device)
        self._tails, self._tail_lens = torch.tensor(padded, device=device), torch.tensor([len(tail) for tail in tails], device=device)
        self.after = len(after)
        """Ids after the placeholders where no language is told."""
        self.candidates, self.candidate_lens = self._tails[:-1, self.after :], self._tail_lens[:-1] - self.after
        """[languages, S] int64 what telling each language adds to a prompt, padded with zeros, and [languages] how many ids that is."""
        self.candidate_total = sum(len(tail) - self.after for tail in tails[:-1])

    def __call__(self, counts: torch.Tensor, longest: int, told: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Right-padded prompts.

        Args:
            counts: [B] int64 audio embeddings of each row.
            longest: the most that any has; more is allowed.
            told: [B] int64 indexes into ``LANGUAGES``; ``untold`` tells none.

        Returns:
            ids [B, P] int64 and lengths [B] int64.
        """
        column = torch.arange(self.before + longest + self._width, device=counts.device)
        place = column - self.before - counts[:, None]
        tail = self._tails[told].gather(1, place.clamp(0, self._width - 1))
        ids = torch.where(place < 0, self.audio_id, tail)
        ids[:, : self.before] = self._before
        return ids, self.before + counts + self._tail_lens[told]
