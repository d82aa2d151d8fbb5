"""Times of words by Qwen3's forced aligner: a model of its own, which hears the clip again and knows eleven languages."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.functional import one_hot
from transformers.models.qwen3_asr.processing_qwen3_asr import FORCED_ALIGNER_LANGUAGES

from arkfast.align.aligner import MOST_TOGETHER, Aligned, Word
from arkfast.align.head import FRAMES_PER_SECOND
from arkfast.data.collate import pad_right
from arkfast.models.qwen3_asr.languages import spoken

if TYPE_CHECKING:
    from arkfast.models.qwen3_asr.aligning import Qwen3AlignerModel


class Qwen3Aligner:
    """Finds when the words of transcripts were said. A clip's times do not depend on the clips beside it but for rounding.

    Words are those that the aligner was trained with: what stands between blanks, without punctuation, and each Han character alone; in
    Japanese and Korean those of the packages that Transformers asks for.

    Args:
        model: has been loaded, on its device.
    """

    def __init__(self, model: Qwen3AlignerModel) -> None:
        self._model = model

    @torch.no_grad()
    def __call__(self, features: Sequence[np.ndarray], texts: Sequence[str], languages: Sequence[str | None]) -> list[Aligned]:
        """The words of each transcript, in order, without times of their characters; words are in Unicode's form NFC.

        Args:
            features: float32 [n_mels, T] of each clip.
            texts: what was said in each.
            languages: in which it was said, as a code or a name; where it is not known, the script of the text decides.
        """
        found: dict[int, Aligned] = {}
        split: dict[int, list[str]] = {}
        for i, (text, language) in enumerate(zip(texts, languages, strict=True)):
            words = self._split(unicodedata.normalize("NFC", text), language)
            if isinstance(words, str):
                found[i] = words
            elif words:
                split[i] = words
            else:
                found[i] = []
        order = sorted(split, key=lambda i: features[i].shape[1])
        for at in range(0, len(order), MOST_TOGETHER):
            some = order[at : at + MOST_TOGETHER]
            found |= zip(some, self._together([features[i] for i in some], [split[i] for i in some]), strict=True)
        return [found[i] for i in range(len(texts))]

    def _split(self, text: str, language: str | None) -> list[str] | str:
        """The words of a text, or why they cannot be told."""
        name, unsupported = spoken(language, text)
        if unsupported or (name is not None and name not in FORCED_ALIGNER_LANGUAGES):
            return f"the aligner does not know {name or language}; it knows {', '.join(sorted(FORCED_ALIGNER_LANGUAGES))}"
        try:
            words: list[str] = self._model.processor.split_words_for_alignment(text, name)
        except ImportError as error:  # Transformers names the package and how to install it
            return " ".join(str(error).split())
        return words

    def _together(self, features: list[np.ndarray], words: list[list[str]]) -> list[Aligned]:
        model, device = self._model, self._model.get_input_embeddings().weight.device
        frames = [feature.shape[1] for feature in features]
        mel = torch.zeros(len(features), features[0].shape[0], max(frames))
        for row, feature in zip(mel, features, strict=True):
            row[:, : feature.shape[1]] = torch.from_numpy(feature)
        audio = model.get_audio_features(mel.to(device), torch.tensor(frames, device=device), frames=frames)
        ids, _ = pad_right([model.prompt(count, own) for count, own in zip(frames, words, strict=True)])
        bins = model.times(ids.to(device), audio).cpu().split([2 * len(own) for own in words])
        return [self._words(*clip) for clip in zip(bins, words, frames, strict=True)]

    def _words(self, bins: torch.Tensor, words: list[str], frames: int) -> list[Word]:
        """The words of a clip whose marks were given these times; Transformers' processor puts times that are out of order right."""
        marks = torch.full((1, len(bins)), self._model.mark_id)
        (items,) = self._model.processor.decode_forced_alignment(
            one_hot(bins)[None], marks, [words], timestamp_token_id=self._model.mark_id
        )
        end = frames / FRAMES_PER_SECOND
        return [Word(item["text"], min(item["start_time"], end), min(item["end_time"], end), ()) for item in items]
