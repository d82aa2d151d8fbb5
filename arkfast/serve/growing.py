"""A transcript while it is being written: how much of it cannot change any more."""

from __future__ import annotations

import re
from collections.abc import Sequence

from arkfast.data.transcript import clean_transcript
from arkfast.records import TokenizerLike

UNFINISHED = "\ufffd"
"""What decoders write for bytes that are no character, and so for the first ones of a character whose others are to come."""
MOST_UNFINISHED = 3
"""Bytes that may be there of a character in UTF-8 which is not whole."""
_OPEN = re.compile(r"<(?:\|[^|<>]*\|?)?\Z")  # may become a control token, which is dropped


def settled(raw: str) -> str:
    """What ``clean_transcript`` makes of every text that begins with ``raw``, as far as that is certain: its beginning.

    A model that writes ``<|text|>`` takes back all that it wrote before; nothing is certain under that rule, so it is left out here, and
    whoever showed the beginning must compare it with the whole.
    """
    return clean_transcript(_OPEN.sub("", raw))


class Growing:
    """A transcript that grows id by id.

    Args:
        tokenizer: of its ids.
    """

    def __init__(self, tokenizer: TokenizerLike) -> None:
        self._tokenizer = tokenizer
        self._raw = ""  # of the ids before ``_read``
        self._from = self._read = 0
        self.text = ""
        """What is certain so far."""

    def add(self, tokens: Sequence[int]) -> str:
        """What has become certain.

        Args:
            tokens: all ids so far. Fewer than before say nothing new.
        """
        if len(tokens) <= self._read:
            return ""
        # The ids before the new ones are decoded with them, since some tokenizers write a piece at the start of a text otherwise.
        before, now = (self._tokenizer.decode(tokens[self._from : end], skip_special_tokens=True) for end in (self._read, len(tokens)))
        raw = self._raw + now[len(before) :]
        if not now.endswith(UNFINISHED):
            self._raw, self._from, self._read = raw, self._read, len(tokens)
        whole = raw.rstrip(UNFINISHED)
        text = settled(raw[: max(len(whole), len(raw) - MOST_UNFINISHED)])
        if not text.startswith(self.text):
            return ""
        new, self.text = text[len(self.text) :], text
        return new
