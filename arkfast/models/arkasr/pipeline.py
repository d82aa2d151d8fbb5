"""Hugging Face's speech-recognition pipeline for ARK-ASR; every other model takes the stock pipeline's path.

What the pipeline may be given, how long audio is split, and the pipeline's three stages; decoding is ``generate()``.
"""

from __future__ import annotations

import copy
import math
import numbers
import urllib.request
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from transformers import AutomaticSpeechRecognitionPipeline

from arkfast.audio import Loaded
from arkfast.audio.limits import MAX_BYTES
from arkfast.data.transcript import clean_transcript
from arkfast.models.arkasr.audio_input import KEYS, SAMPLING_RATE, SETTINGS, read_input, read_mapping
from arkfast.models.arkasr.config import ArkasrConfig
from arkfast.models.arkasr.processing import ArkasrProcessor
from arkfast.records import AllowedTokens, InputError

MAX_CHUNK_SECONDS = 30.0  # the training distribution's longest clip
MIN_CHUNK_SECONDS = 1.0  # below it words are cut wherever the cut falls
SEARCH_SECONDS = 5.0  # a cut may come so much earlier, where it is quieter
QUIET_WINDOW = SAMPLING_RATE // 10  # samples: a pause between words
DOWNLOAD_SECONDS = 60.0  # that a server may keep silent

_ADDRESSES = ("http://", "https://")


class ArkasrPipeline(AutomaticSpeechRecognitionPipeline):
    """``pipeline("automatic-speech-recognition", model=path)``: greedy unless told otherwise, text ids only, any length of audio.

    Takes a path or an address, the bytes of an audio file or an open file with them, 16 kHz samples as an array or tensor ([n], or
    [channels, n], which are averaged), torchcodec's ``AudioDecoder``, a mapping as ``datasets`` has it (``array`` or ``raw`` with
    ``sampling_rate``; ``bytes``, whose ``path`` is a name then; ``path``), or a list, generator or data set of these. Returns
    ``{"text": …}`` for each, with ``warnings`` where something is doubtful about the audio, and a mapping's other fields, each in a list
    as the stock pipeline has them. Audio over ``chunk_length_s`` (30, at most) is cut at quiet moments and the texts are joined.
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

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The transcript of one input, or of each of several: see the class."""
        if self._ark is not None and isinstance(inputs, (list, tuple)):
            inputs = list(inputs)
            if not inputs:
                return []
        return super().__call__(inputs, *args, **kwargs)

    def _sanitize_parameters(self, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self.model.config, ArkasrConfig):
            kwargs.setdefault("ignore_warning", True)  # it says that chunks are experimental, of the stock class's overlapping ones
            if kwargs.get("chunk_length_s") is not None:
                kwargs["chunk_length_s"] = _chunk_seconds(kwargs["chunk_length_s"])
            if kwargs.get("stride_length_s"):
                warnings.warn("pipeline: stride_length_s has no effect, since chunks are cut at pauses and do not overlap", stacklevel=4)
            if kwargs.get("return_timestamps"):
                raise InputError("pipeline: return_timestamps: ARK-ASR tells no times; leave it out")
            if kwargs.pop("return_language", None):
                raise InputError("pipeline: return_language: ARK-ASR tells no language; leave it out")
            if kwargs.get("decoder_kwargs"):
                raise InputError("pipeline: decoder_kwargs: they are for CTC models with a language model; leave them out")
        return super()._sanitize_parameters(*args, **kwargs)

    # The names of the first arguments are the stock class's, which are not those of its own base.
    def preprocess(  # type: ignore[override]
        self, inputs: Any, chunk_length_s: float = 0, stride_length_s: Any = None, **kwargs: Any
    ) -> Iterator[dict[str, Any]]:
        """The clips of one input, each within ``chunk_length_s``; ``stride_length_s`` has no meaning here: the cuts do not overlap."""
        if self._ark is None:
            yield from super().preprocess(inputs, chunk_length_s=chunk_length_s, stride_length_s=stride_length_s, **kwargs)
            return
        clip = _read(inputs)
        known = {*KEYS, *SETTINGS, "stride"}
        others = {key: value for key, value in inputs.items() if key not in known} if isinstance(inputs, Mapping) else {}
        chunks = split_at_quiet(clip.samples, chunk_length_s or MAX_CHUNK_SECONDS)
        for i, chunk in enumerate(chunks):
            yield {"is_last": i == len(chunks) - 1, "clip": chunk, "warnings": list(clip.warnings), "others": others}

    def _forward(  # type: ignore[override]
        self, model_inputs: dict[str, Any], return_timestamps: Any = False, return_language: Any = None, **generate_kwargs: Any
    ) -> Any:
        if self._ark is None:
            return super()._forward(model_inputs, return_timestamps=return_timestamps, return_language=return_language, **generate_kwargs)
        clips = model_inputs["clip"]
        inputs = self._ark.batch([clips] if isinstance(clips, np.ndarray) else clips).to(self.device)
        if "generation_config" not in generate_kwargs:  # which replaces those that the pipeline was made with, as in the stock class
            generate_kwargs = {**getattr(self, "_generate_kwargs", {}), **generate_kwargs}  # earlier versions keep them elsewhere
        model: Any = self.model  # typed without its generate()
        tokens = model.generate(**inputs, **_settings(generate_kwargs, self._blocked))
        tokens = getattr(tokens, "sequences", tokens)  # with return_dict_in_generate
        kept = {name: model_inputs[name] for name in ("is_last", "warnings", "others")}
        return {**kept, "tokens": tokens[:, inputs["input_ids"].shape[1] :]}

    def postprocess(self, model_outputs: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The transcript of one input, its chunks joined by a blank."""
        if self._ark is None:
            return super().postprocess(model_outputs, *args, **kwargs)
        texts = [clean_transcript(self._ark.tokenizer.decode(output["tokens"][0], skip_special_tokens=True)) for output in model_outputs]
        others = defaultdict(list)
        for output in model_outputs:
            for key, value in output["others"].items():
                others[key].append(value)
        doubts = model_outputs[0]["warnings"]
        return {**others, "text": " ".join(text for text in texts if text), **({"warnings": doubts} if doubts else {})}


def split_at_quiet(samples: np.ndarray, longest: float) -> list[np.ndarray]:
    """Cut samples [n] at 16 kHz into consecutive pieces of at most ``longest`` seconds, each at the quietest moment before its limit.

    Raises:
        InputError: ``longest`` is under a second, over 30, or no number.
    """
    limit, pieces = round(_chunk_seconds(longest) * SAMPLING_RATE), []
    search = min(round(SEARCH_SECONDS * SAMPLING_RATE), limit // 2)
    while len(samples) > limit:
        energy = np.concatenate([[0.0], np.cumsum(np.square(samples[limit - search : limit], dtype=np.float64))])
        window = min(QUIET_WINDOW, search // 2)
        cut = limit - search + int(np.argmin(energy[window:] - energy[:-window])) + window // 2
        pieces.append(samples[:cut])
        samples = samples[cut:]
    return [*pieces, samples]


def _chunk_seconds(given: object) -> float:
    """``chunk_length_s``, where 0 is the longest that the model hears at once."""
    length = float(given) if isinstance(given, numbers.Real) and not isinstance(given, bool) else math.nan
    if length != 0 and not MIN_CHUNK_SECONDS <= length < math.inf:
        raise InputError(
            f"pipeline: chunk_length_s must be {MIN_CHUNK_SECONDS:g} to {MAX_CHUNK_SECONDS:g} seconds, or 0 for the longest, got {given!r}"
        )
    if length > MAX_CHUNK_SECONDS:
        warnings.warn(f"pipeline: chunk_length_s {length:g}: the model hears {MAX_CHUNK_SECONDS:g} s at once, which is used", stacklevel=2)
    return min(length or MAX_CHUNK_SECONDS, MAX_CHUNK_SECONDS)


def _settings(given: Mapping[str, Any], blocked: list[int]) -> dict[str, Any]:
    """Arguments of ``generate()``: what was given over greedy decoding of text ids.

    Raises:
        InputError: several transcripts of one input are asked for.
    """
    if (given.get("num_return_sequences") or 1) != 1:
        raise InputError(f"pipeline: num_return_sequences {given['num_return_sequences']}: it gives one transcript for each input")
    defaults: dict[str, Any] = {"do_sample": False, "num_beams": 1, "max_new_tokens": 256}
    if given.get("generation_config") is not None:  # whoever gives a whole configuration means all of it
        defaults = {}
    elif given.get("max_length") is not None:
        del defaults["max_new_tokens"]
    return {**defaults, **given, "suppress_tokens": sorted({*blocked, *(given.get("suppress_tokens") or ())})}


def _read(inputs: Any) -> Loaded:
    """One input of the pipeline as samples."""
    if isinstance(inputs, Mapping):
        if inputs.get("stride") is not None:
            raise InputError("pipeline: 'stride' is for CTC models, whose chunks overlap; leave it out")
        return read_mapping(inputs, "pipeline")
    if isinstance(inputs, str) and inputs.startswith(_ADDRESSES):
        return read_input(_download(inputs), where=inputs)
    return read_input(inputs, where=None if isinstance(inputs, str) else "pipeline")


def _download(address: str) -> bytes:
    """The bytes behind an address, as the stock pipeline takes one.

    Raises:
        InputError: they cannot be had, or are over 4 GiB.
    """
    try:
        with urllib.request.urlopen(address, timeout=DOWNLOAD_SECONDS) as response:
            content: bytes = response.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # URLError and time-outs are OSErrors; ValueError: an address that is none
        raise InputError(f"pipeline: {address}: cannot be downloaded ({error}); download it and give the file's path") from error
    if len(content) > MAX_BYTES:
        raise InputError(f"pipeline: {address}: over {MAX_BYTES} bytes; download it and give segments of the file")
    return content
