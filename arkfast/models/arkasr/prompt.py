"""The ARK-ASR prompt as ids, and how many audio placeholders a clip takes.

Ids are built directly: tokenising a string of hundreds of placeholders costs milliseconds a clip and gives the same ids. Layout and
token-count law: the ARK-ASR processor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch

from arkfast.records import TokenizerLike, Utterance

INSTRUCTION = "Please transcribe this audio."
USER, BEGIN_OF_AUDIO, AUDIO, END_OF_AUDIO, ASSISTANT = "<|user|>", "<|begin_of_audio|>", "<|audio|>", "<|end_of_audio|>", "<|assistant|>"
END_OF_TURN = "<|im_end|>"

MERGE_FACTOR = 4  # four encoder frames become one decoder embedding: 12.5 a second

Count = TypeVar("Count", int, torch.Tensor)


def encoder_frames(mel_frames: Count) -> Count:
    """What the encoder's second convolution, of stride 2, leaves of 100 mel frames a second."""
    return (mel_frames + 1) // 2


def audio_token_count(mel_frames: Count, merge_factor: int = MERGE_FACTOR) -> Count:
    """Decoder embeddings of a clip: ``max(((frames + 1) // 2) // merge_factor, 1)``; 3000 frames (30 s) give 375.

    Args:
        mel_frames: a number, or a tensor of any shape of int64 numbers.
        merge_factor: encoder frames in one embedding.
    """
    count = encoder_frames(mel_frames) // merge_factor
    return count.clamp(min=1) if isinstance(count, torch.Tensor) else max(count, 1)


@dataclass(frozen=True)
class Prompt:
    """``<|user|><|begin_of_audio|>`` audio … ``<|end_of_audio|>`` instruction ``<|assistant|>``, in one vocabulary."""

    prefix: tuple[int, ...]
    """Ids before the audio placeholders."""
    audio_id: int
    """The placeholder that one encoder output replaces."""
    suffix: tuple[int, ...]
    """Ids after the audio placeholders, up to where the transcript begins."""
    merge_factor: int = MERGE_FACTOR
    """Encoder frames in one placeholder."""

    @classmethod
    def asr(cls, tokenizer: TokenizerLike, *, instruction: str = INSTRUCTION, merge_factor: int = MERGE_FACTOR) -> Prompt:
        """The transcription prompt in ``tokenizer``'s ids.

        Raises:
            ValueError: the tokenizer lacks one of the prompt's special tokens; the message lists them.
        """
        special = {token: tokenizer.convert_tokens_to_ids(token) for token in (USER, BEGIN_OF_AUDIO, AUDIO, END_OF_AUDIO, ASSISTANT)}
        missing = [token for token, id_ in special.items() if id_ is None or id_ == tokenizer.unk_token_id]
        if missing:
            raise ValueError(f"the tokenizer has no {', '.join(missing)}: not an ARK-ASR tokenizer; give a folder that holds one")
        text = tokenizer.encode(instruction, add_special_tokens=False)
        return cls(
            prefix=(special[USER], special[BEGIN_OF_AUDIO]),
            audio_id=special[AUDIO],
            suffix=(special[END_OF_AUDIO], *text, special[ASSISTANT]),
            merge_factor=merge_factor,
        )

    def ids(self, mel_frames: int, utterance: Utterance | None = None) -> list[int]:
        """The prompt of a clip of ``mel_frames`` log-mel frames; it says nothing of the utterance."""
        return [*self.prefix, *[self.audio_id] * audio_token_count(mel_frames, self.merge_factor), *self.suffix]
