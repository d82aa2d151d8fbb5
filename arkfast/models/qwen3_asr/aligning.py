"""Qwen3's forced aligner: Qwen3-ASR with a head that tells, at marks behind each word of a text, when the word begins and ends.

Layout of its prompt and of its checkpoints: the aligner's processor in Transformers, and the layout in which it was first published.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, Qwen3ASRFeatureExtractor, Qwen3ASRForTokenClassification, Qwen3ASRProcessor

from arkfast.files.json_input import parse_json_object
from arkfast.models.family import Audio, read_config
from arkfast.models.qwen3_asr.load import KIND, fill, least_samples, load_config, transformers_name
from arkfast.models.qwen3_asr.modeling import Listener, encoder_config
from arkfast.models.qwen3_asr.prompt import AUDIO, BEGIN_OF_AUDIO, END_OF_AUDIO
from arkfast.models.weights import fitting_shell
from arkfast.records import InputError

MARK = "<timestamp>"
"""Stands twice behind each word: where its begin is told, and where its end is."""
MILLISECONDS = 80.0
"""Between two times that it tells, where its files do not say."""
_HEAD = "thinker.lm_head."
_NAMED = {"audio_token": AUDIO, "audio_bos_token": BEGIN_OF_AUDIO, "audio_eos_token": END_OF_AUDIO}


class Qwen3AlignerModel(Listener):
    """The aligner's model.

    Args:
        whole: Transformers' model.
        processor: Transformers' processor of it, which splits texts and repairs times.
    """

    whole: Qwen3ASRForTokenClassification

    def __init__(self, whole: Qwen3ASRForTokenClassification, processor: Qwen3ASRProcessor) -> None:
        super().__init__(whole)
        self.processor = processor
        tokenizer: Any = processor.tokenizer
        begin, end, self.mark_id = (tokenizer.convert_tokens_to_ids(token) for token in (BEGIN_OF_AUDIO, END_OF_AUDIO, MARK))
        self._begin, self._end = begin, end

    def prompt(self, frames: int, words: list[str]) -> list[int]:
        """The ids of a clip of so many mel frames and of its words, with two marks behind each."""
        heard = self.audio_input
        tokenizer: Any = self.processor.tokenizer
        ids = [self._begin, *[heard.placeholder_id] * heard.token_count(frames), self._end]
        for word in words:
            ids += [*tokenizer.encode(word, add_special_tokens=False), self.mark_id, self.mark_id]
        return ids

    @torch.no_grad()
    def times(self, ids: Tensor, audio: Audio) -> Tensor:
        """The number of the likeliest time at every mark, in the order of rows.

        Args:
            ids: [B, P] int64 prompts, padded on the right with any id but a mark's.
            audio: what ``get_audio_features`` gave for their clips.

        Returns:
            [marks] int64.
        """
        hidden = self.model(
            inputs_embeds=self.encode_prompt(ids, audio_embeds=audio),
            attention_mask={"full_attention": None},  # causal, and padding stands to the right of all that counts
            position_ids=torch.arange(ids.shape[1], device=ids.device)[None],
            use_cache=False,
        ).last_hidden_state
        best: Tensor = self.whole.score(hidden[ids == self.mark_id]).argmax(-1)
        return best


def is_aligner(folder: Path) -> bool:
    """Whether a folder holds a checkpoint of the aligner, by its ``config.json``.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    fields = read_config(folder)
    named = any("TokenClassification" in str(name) for name in fields.get("architectures") or ())
    return fields.get("model_type") == KIND and (named or "classify_num" in fields.get("thinker_config", {}))


def load_aligner(folder: Path, *, dtype: torch.dtype, device: torch.device) -> Qwen3AlignerModel:
    """The aligner of a checkpoint folder of either layout.

    Raises:
        InputError: a file cannot be read, or is another model's.
    """
    config, fields = load_config(folder), read_config(folder)
    least_samples(folder, encoder_config(config).num_mel_bins)  # that its features are ours; it pads no clip
    if "thinker_config" in fields:
        config.num_labels = int(fields["thinker_config"]["classify_num"])

    def build(config: Any) -> Qwen3ASRForTokenClassification:
        with torch.device("meta"):
            return Qwen3ASRForTokenClassification._from_config(config, attn_implementation="sdpa")

    shell = fitting_shell(folder, config, build, renamed=_name)
    fill(shell, folder, renamed=_name, dtype=dtype, device=device)
    return Qwen3AlignerModel(shell, _processor(folder, float(_milliseconds(folder, fields))))


def _name(name: str) -> str:
    """A tensor's name in Transformers' layout."""
    return f"score.{name.removeprefix(_HEAD)}" if name.startswith(_HEAD) else transformers_name(name)


def _processor(folder: Path, milliseconds: float) -> Qwen3ASRProcessor:
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(
            folder, config=load_config(folder), local_files_only=True, extra_special_tokens=_NAMED
        )
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{folder}: its tokenizer cannot be loaded ({reason}); give a complete checkpoint") from error
    lacking = [token for token in (*_NAMED.values(), MARK) if tokenizer.convert_tokens_to_ids(token) in (None, tokenizer.unk_token_id)]
    if lacking:
        raise InputError(f"{folder}: its tokenizer has no {', '.join(lacking)}: it is not the aligner's; give a complete checkpoint")
    return Qwen3ASRProcessor(Qwen3ASRFeatureExtractor(), tokenizer, timestamp_segment_time=milliseconds)


def _milliseconds(folder: Path, fields: dict[str, Any]) -> float:
    file = folder / "processor_config.json"
    given = fields
    if file.is_file():
        try:
            given = fields | parse_json_object(file.read_bytes())
        except (OSError, ValueError) as error:
            raise InputError(f"{file}: cannot be read as JSON ({error}); copy the checkpoint again") from error
    value = given.get("timestamp_segment_time", MILLISECONDS)
    if not isinstance(value, (int, float)) or not value > 0:
        raise InputError(f"{folder}: timestamp_segment_time must be milliseconds above 0, got {value!r}; copy the checkpoint again")
    return float(value)
