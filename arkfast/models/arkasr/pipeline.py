"""Hugging Face's speech-recognition pipeline for ARK-ASR; every other model takes the stock pipeline's path.

Knows what the pipeline may be given, how long audio is split, and the pipeline's three stages; decoding is ``generate()``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from transformers import AutomaticSpeechRecognitionPipeline

from arkfast.data.transcript import clean_transcript
from arkfast.models.arkasr.audio_input import SAMPLING_RATE, read_audio, seconds
from arkfast.models.arkasr.config import ArkasrConfig
from arkfast.models.arkasr.processing import ArkasrProcessor
from arkfast.records import AllowedTokens, InputError

MAX_CHUNK_SECONDS = 30.0  # the training distribution's longest clip
SEARCH_SECONDS = 5.0  # a cut may come so much earlier, where it is quieter
QUIET_WINDOW = SAMPLING_RATE // 10  # samples: a pause between words


class ArkasrPipeline(AutomaticSpeechRecognitionPipeline):
    """``pipeline("automatic-speech-recognition", model=path)``: greedy unless told otherwise, text ids only, any length of audio.

    Takes a path, the bytes of an audio file, a 16 kHz mono array, a mapping with ``array`` (or ``raw``) and ``sampling_rate``, or a list
    of these; returns ``{"text": …}`` for each. Audio over ``chunk_length_s`` (30) is cut at quiet moments and the texts are joined.
    """

    def __init__(self, model: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(model, *args, **kwargs)
        self._ark: ArkasrProcessor | None = None
        if isinstance(model.config, ArkasrConfig):
            self.type = "seq2seq"
            # With batch_size above 1 the stock collation refuses sides that differ, though our processor does its own padding.
            assert self.feature_extractor is not None, "Transformers loads it for speech recognition"
            assert self.tokenizer is not None, "Transformers loads it for speech recognition"
            self.feature_extractor = copy.copy(self.feature_extractor)
            self.feature_extractor.padding_side = self.tokenizer.padding_side
            self._ark = ArkasrProcessor(self.feature_extractor, self.tokenizer, merge_factor=model.config.merge_factor)
            self._blocked = AllowedTokens.asr(self._ark.tokenizer, model.config).blocked(model.config.vocab_size).tolist()

    def _sanitize_parameters(self, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self.model.config, ArkasrConfig):
            kwargs.setdefault("ignore_warning", True)  # it says that chunks are experimental, of the stock class's overlapping ones
        return super()._sanitize_parameters(*args, **kwargs)

    # The names of the first arguments are the stock class's, which are not those of its own base.
    def preprocess(  # type: ignore[override]
        self, inputs: Any, chunk_length_s: float = 0, stride_length_s: Any = None, **kwargs: Any
    ) -> Iterator[dict[str, Any]]:
        """The clips of one input, each within ``chunk_length_s``; ``stride_length_s`` has no meaning here: the cuts do not overlap."""
        if self._ark is None:
            yield from super().preprocess(inputs, chunk_length_s=chunk_length_s, stride_length_s=stride_length_s, **kwargs)
            return
        samples = _samples(inputs)
        chunks = split_at_quiet(samples, min(float(chunk_length_s or MAX_CHUNK_SECONDS), MAX_CHUNK_SECONDS))
        for i, chunk in enumerate(chunks):
            yield {"is_last": i == len(chunks) - 1, "clip": chunk}

    def _forward(  # type: ignore[override]
        self, model_inputs: dict[str, Any], return_timestamps: Any = False, return_language: Any = None, **generate_kwargs: Any
    ) -> Any:
        if self._ark is None:
            return super()._forward(model_inputs, return_timestamps=return_timestamps, return_language=return_language, **generate_kwargs)
        clips = model_inputs["clip"]
        inputs = self._ark(audio=clips).to(self.device)
        settings = {"do_sample": False, "num_beams": 1, "max_new_tokens": 256, "suppress_tokens": self._blocked, **generate_kwargs}
        model: Any = self.model  # typed without its generate()
        tokens = model.generate(**inputs, **settings)
        return {"is_last": model_inputs["is_last"], "tokens": tokens[:, inputs["input_ids"].shape[1] :]}

    def postprocess(self, model_outputs: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The transcript of one input, its chunks joined by a blank."""
        if self._ark is None:
            return super().postprocess(model_outputs, *args, **kwargs)
        texts = [clean_transcript(self._ark.tokenizer.decode(output["tokens"][0], skip_special_tokens=True)) for output in model_outputs]
        return {"text": " ".join(text for text in texts if text)}


def split_at_quiet(samples: np.ndarray, longest: float) -> list[np.ndarray]:
    """Cut samples [n] at 16 kHz into consecutive pieces of at most ``longest`` seconds, each at the quietest moment before its limit."""
    limit, pieces = round(longest * SAMPLING_RATE), []
    search = min(round(SEARCH_SECONDS * SAMPLING_RATE), limit // 2)
    while len(samples) > limit:
        energy = np.concatenate([[0.0], np.cumsum(np.square(samples[limit - search : limit], dtype=np.float64))])
        window = min(QUIET_WINDOW, search // 2)
        cut = limit - search + int(np.argmin(energy[window:] - energy[:-window])) + window // 2
        pieces.append(samples[:cut])
        samples = samples[cut:]
    return [*pieces, samples]


def _samples(inputs: Any) -> np.ndarray:
    if not isinstance(inputs, Mapping):
        return read_audio(inputs)
    given = [inputs[key] for key in ("array", "raw", "path") if inputs.get(key) is not None]
    if not given:
        raise InputError(
            f"pipeline: audio given as a mapping needs 'array' (or 'raw') and 'sampling_rate', or 'path'; got {sorted(inputs)}"
        )
    if not isinstance(given[0], str) and "sampling_rate" not in inputs:
        raise InputError("pipeline: audio given as an array needs its 'sampling_rate'")
    begin, end = (seconds(inputs.get(key), "pipeline") for key in ("begin_time", "end_time"))
    return read_audio(given[0], sampling_rate=int(inputs.get("sampling_rate", SAMPLING_RATE)), begin=begin, end=end)
