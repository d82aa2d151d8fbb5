"""From what a model wrote to a transcript.

Markers that may stand around a transcript are taken off; inside it nothing changes but blanks.
"""

from __future__ import annotations

import re

TURN_MARKERS = ("<|user|>", "<|assistant|>", "<|im_end|>")
TEXT_MARKER = "<|text|>"
CONTROL_TOKEN = re.compile(r"<\|[^|<>]*\|>")
LEADING_PUNCTUATION = re.compile(r"^[\s.,;:!?-]+(?=\s|$)")


def clean_transcript(raw: str) -> str:
    """Take the transcript out of decoded model output.

    The text ends at the first turn marker and begins after ``<|text|>`` where that stands; other control tokens ``<|…|>`` are dropped
    and runs of blanks become one. A run of punctuation at the start goes only when a blank (or nothing) follows it, so that ". so" becomes
    "so" while ".NET" and "-5" stay.

    Args:
        raw: what the tokenizer decoded, special tokens included or not.

    Returns:
        The transcript; empty when the model wrote none.
    """
    text = raw
    for marker in TURN_MARKERS:
        text = text.split(marker, 1)[0]
    text = text.rsplit(TEXT_MARKER, 1)[-1]
    text = " ".join(CONTROL_TOKEN.sub("", text).split())
    return LEADING_PUNCTUATION.sub("", text).strip()
