"""Hugging Face's speech-recognition pipeline: every kind of audio, any length, and other models untouched."""

from __future__ import annotations

import http.server
import io
import json
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from transformers import (
    AutomaticSpeechRecognitionPipeline,
    AutoProcessor,
    GenerationConfig,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    pipeline,
)

from arkfast import audio
from arkfast.data.transcript import clean_transcript
from arkfast.models import ArkasrProcessor, load_model
from arkfast.models.arkasr.pipeline import ArkasrPipeline, split_at_quiet
from arkfast.records import AllowedTokens, InputError
from arkfast.testing import synthetic_speech, tiny_checkpoint, write_wav


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("pipeline") / "tiny", seed=1)


@pytest.fixture(scope="module")
def wavs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("wavs")
    return [write_wav(folder / f"{i}.wav", synthetic_speech(seconds, i)) for i, seconds in enumerate((2.31, 0.83))]


@pytest.fixture(scope="module")
def processor(checkpoint: Path) -> ArkasrProcessor:
    return AutoProcessor.from_pretrained(checkpoint)


def test_pipeline_takes_every_kind_of_audio(checkpoint: Path, wavs: list[Path]) -> None:
    recogniser = pipeline("automatic-speech-recognition", model=str(checkpoint), trust_remote_code=True)
    assert type(recogniser) is ArkasrPipeline
    samples = audio.load(wavs[0])
    alone = recogniser(str(wavs[0]), max_new_tokens=12)["text"]
    inputs = [
        str(wavs[0]),
        wavs[0].read_bytes(),
        samples,
        {"array": samples, "sampling_rate": 16000},
        {"raw": samples, "sampling_rate": 16000},
    ]
    for batch_size in (1, 2):
        texts = [row["text"] for row in recogniser([*inputs, str(wavs[1])], max_new_tokens=12, batch_size=batch_size)]
        assert texts[:-1] == [alone] * len(inputs)
        assert texts[-1] != alone
    with pytest.raises(InputError, match="sampling_rate"):
        recogniser({"array": samples})


@pytest.fixture(scope="module")
def recogniser(checkpoint: Path) -> ArkasrPipeline:
    return pipeline("automatic-speech-recognition", model=str(checkpoint), max_new_tokens=4)


class AudioSamples(types.SimpleNamespace):
    """As torchcodec has it."""


class AudioDecoder:
    """As torchcodec has it, of which the stock pipeline asks this much."""

    def __init__(self, samples: np.ndarray, rate: int) -> None:
        self.samples, self.rate = samples, rate

    def get_all_samples(self) -> AudioSamples:
        return AudioSamples(data=torch.from_numpy(np.atleast_2d(self.samples)), sample_rate=self.rate, pts_seconds=0.0)


SAMPLES = synthetic_speech(1.0, 3)
STEREO = np.stack([SAMPLES, SAMPLES])
AS_ARRAYS = {
    "[n]": SAMPLES,
    "[1, n]": SAMPLES[None],
    "[n, 1]": SAMPLES[:, None],
    "[2, n]": STEREO,
    "not contiguous": np.repeat(SAMPLES, 2)[::2],
    "float64": SAMPLES.astype(np.float64),
    "tensor": torch.from_numpy(SAMPLES),
    "tensor with a gradient": torch.from_numpy(SAMPLES).requires_grad_(),
    "tensor [1, n]": torch.from_numpy(SAMPLES)[None],
    "tensor of float64": torch.from_numpy(SAMPLES).double(),
}


def heard(recogniser: ArkasrPipeline, given: object) -> np.ndarray:
    """What the pipeline makes of an input before the model hears it."""
    return np.concatenate([item["clip"] for item in recogniser.preprocess(given)])


@pytest.mark.parametrize("kind", AS_ARRAYS)
def test_samples_in_memory(recogniser: ArkasrPipeline, kind: str) -> None:
    given = AS_ARRAYS[kind]
    for way in (given, {"array": given, "sampling_rate": 16000}, {"raw": given, "sampling_rate": 16000.0}):
        np.testing.assert_array_equal(heard(recogniser, way), SAMPLES)


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "int16", "numpy float16", "list of floats"])
def test_samples_of_coarser_types(recogniser: ArkasrPipeline, kind: str) -> None:
    given, exact = {
        "bfloat16": (torch.from_numpy(SAMPLES).bfloat16(), torch.from_numpy(SAMPLES).bfloat16().float().numpy()),
        "float16": (torch.from_numpy(SAMPLES).half().requires_grad_(), SAMPLES.astype(np.float16).astype(np.float32)),
        "int16": ((SAMPLES * 32767).astype(np.int16), (SAMPLES * 32767).astype(np.int16) / np.float32(32768)),
        "numpy float16": (SAMPLES.astype(np.float16), SAMPLES.astype(np.float16).astype(np.float32)),
        "list of floats": (SAMPLES.tolist(), SAMPLES),
    }[kind]
    for way in (given, {"array": given, "sampling_rate": 16000}):
        np.testing.assert_array_equal(heard(recogniser, way), exact)


def test_torchcodec_decoders_and_their_samples(recogniser: ArkasrPipeline) -> None:
    for samples in (SAMPLES, SAMPLES[None], STEREO):
        decoder = AudioDecoder(samples, 16000)
        for given in (decoder, decoder.get_all_samples()):
            np.testing.assert_array_equal(heard(recogniser, given), SAMPLES)
    other = heard(recogniser, {"array": SAMPLES, "sampling_rate": 8000})
    assert len(other) == 2 * len(SAMPLES)
    np.testing.assert_array_equal(heard(recogniser, AudioDecoder(SAMPLES, 8000)), other, err_msg="it tells its own rate")


def test_files_by_path_bytes_and_open_file(recogniser: ArkasrPipeline, wavs: list[Path]) -> None:
    wav = wavs[0]
    content, expected = wav.read_bytes(), audio.load(wav)
    with wav.open("rb") as opened:
        for given in (str(wav), wav, content, bytearray(content), memoryview(content), io.BytesIO(content), opened, {"path": wav}):
            np.testing.assert_array_equal(heard(recogniser, given), expected)


def test_inputs_of_all_kinds_in_lists_tuples_and_generators(recogniser: ArkasrPipeline, wavs: list[Path]) -> None:
    samples = audio.load(wavs[0])
    ways = [
        wavs[0],
        io.BytesIO(wavs[0].read_bytes()),
        AudioDecoder(samples, 16000),
        torch.from_numpy(samples).requires_grad_(),
        samples[None],
    ]
    expected = recogniser(str(wavs[0]))
    assert recogniser(tuple(ways), batch_size=2) == [expected] * len(ways), "a tuple is a list"
    assert list(recogniser(path for path in (wavs[0], str(wavs[0])))) == [expected] * 2
    assert recogniser([]) == recogniser(()) == []


def test_rows_of_datasets(recogniser: ArkasrPipeline, wavs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a row with bytes the path is a name, even where a file of that name lies in the working folder."""
    first, second = wavs[0].read_bytes(), wavs[1].read_bytes()
    monkeypatch.chdir(tmp_path)
    Path("clip.wav").write_bytes(second)
    samples, rate = soundfile.read(io.BytesIO(first), dtype="float32")
    row = {"path": "clip.wav", "array": samples, "sampling_rate": rate}
    for given in ({"bytes": first, "path": "clip.wav"}, {"bytes": first, "path": None}, row):
        np.testing.assert_array_equal(heard(recogniser, given), audio.load(first))
    np.testing.assert_array_equal(heard(recogniser, {"bytes": None, "path": "clip.wav"}), audio.load(second))
    assert set(row) == {"path", "array", "sampling_rate"}, "the caller's row stays as it is"
    with pytest.raises(InputError, match=r"^pipeline: clip\.wav: not audio"):
        recogniser({"bytes": b"no audio at all", "path": "clip.wav"})


def test_a_mappings_other_fields_come_back_as_the_stock_pipeline_gives_them(recogniser: ArkasrPipeline) -> None:
    row = {"raw": SAMPLES, "sampling_rate": 16000, "partial": True, "id": "a"}
    one, other = recogniser([row, {**row, "id": "b"}], batch_size=2)
    assert one == {"text": one["text"], "partial": [True], "id": ["a"]}
    assert other == {**one, "id": ["b"]}


def test_channels_and_segments_of_a_mapping(recogniser: ArkasrPipeline, tmp_path: Path) -> None:
    call = np.stack([SAMPLES, synthetic_speech(1.0, 9)])
    path = tmp_path / "call.wav"
    soundfile.write(path, call.T, 16000, subtype="FLOAT")
    for given in ({"array": call, "sampling_rate": 16000}, {"path": path}, {"bytes": path.read_bytes()}):
        for channel in (0, 1):
            np.testing.assert_array_equal(heard(recogniser, {**given, "channel": channel}), call[channel])
            cut = heard(recogniser, {**given, "channel": channel, "begin_time": 0.25, "end_time": 0.75})
            np.testing.assert_array_equal(cut, call[channel, 4000:12000])
        np.testing.assert_allclose(heard(recogniser, {**given, "channel": "average"}), call.mean(axis=0), atol=1e-7)
        with pytest.raises(InputError, match="there is no channel 2: the recording has 2 channels"):
            recogniser({**given, "channel": 2})


def test_what_is_doubtful_stands_beside_the_text(recogniser: ArkasrPipeline) -> None:
    silent = np.zeros(16000, dtype=np.float32)
    found = recogniser([silent, SAMPLES, SAMPLES[:800]], batch_size=3)
    assert [row.get("warnings") for row in found] == [
        ["digital silence: every sample is 0"],
        None,
        ["a clip of 0.050 s is too short for a word"],
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"array": SAMPLES}, "needs its 'sampling_rate'"),
        ({"array": SAMPLES, "sampling_rate": None}, "needs its 'sampling_rate'"),
        ({"array": SAMPLES, "sampling_rate": 0}, "a sampling rate of 0 Hz"),
        ({"array": SAMPLES, "sampling_rate": -16000}, "a sampling rate of -16000 Hz"),
        ({"array": SAMPLES, "sampling_rate": float("nan")}, "must be a whole number of Hz"),
        ({"array": SAMPLES, "sampling_rate": "16k"}, "must be a whole number of Hz"),
        ({"array": SAMPLES, "sampling_rate": True}, "must be a whole number of Hz"),
        ({"array": SAMPLES, "sampling_rate": 16000, "stride": (100, 100)}, "'stride' is for CTC models"),
        ({"array": SAMPLES, "sampling_rate": 16000, "channel": "left"}, "'channel': expected a channel's number"),
        ({"path": "a.wav", "audio_track": "x"}, "'audio_track' must be an audio track's number"),
        ({"audio": {"array": SAMPLES}, "text": "x"}, "pass the column itself"),
        ({"bytes": None, "path": None}, "needs 'array'"),
        ({}, "needs 'array'"),
        (SAMPLES[:0], "expected a path, bytes"),
        (np.stack([SAMPLES] * 2, axis=1), r"shape \[16000, 2\]; transpose"),
        (np.zeros((2, 3, 800)), r"shape \[2, 3, 800\]"),
        ((SAMPLES * 32767).astype(np.int32), "samples must be floats in -1..1 or int16, got int32"),
        (torch.zeros(800, dtype=torch.int64), "samples must be floats in -1..1 or int16, got int64"),
        (np.float32(32768) * SAMPLES, "integers stored as floats"),
        (torch.from_numpy(np.float32(32768) * SAMPLES), "integers stored as floats"),
        (np.stack([SAMPLES, -SAMPLES]), "the channels cancel one another"),
        (np.full(800, np.nan, dtype=np.float32), "only finite samples"),
        (3, "expected a path, bytes"),
        (None, "expected a path, bytes"),
        ([0.1, 0.2], "expected a path, bytes"),
        (io.StringIO("text"), "open it in binary mode"),
        (io.BytesIO(), "no bytes where it stands"),
        (b"", "the file is empty"),
        (Path("/nonexistent.wav"), "no such file"),
        ("", "no such file"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_inputs_that_are_none_are_one_sentence(recogniser: ArkasrPipeline, given: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        recogniser(given)


@pytest.mark.parametrize("chunk", [-1, float("nan"), float("inf"), float("-inf"), 1e-9, 0.5, "10", True, [10]])
def test_chunk_lengths_that_are_none(recogniser: ArkasrPipeline, chunk: object) -> None:
    with pytest.raises(InputError, match="chunk_length_s must be 1 to 30 seconds, or 0 for the longest"):
        recogniser(SAMPLES, chunk_length_s=chunk)
    with pytest.raises(InputError, match="chunk_length_s must be 1 to 30 seconds"):
        split_at_quiet(SAMPLES, chunk)  # type: ignore[arg-type]


def test_chunk_lengths_that_are_some(recogniser: ArkasrPipeline) -> None:
    expected = recogniser(SAMPLES)
    for chunk in (None, 0, np.float32(1.5)):
        assert recogniser(SAMPLES, chunk_length_s=chunk) == expected
    with pytest.warns(UserWarning, match="chunk_length_s 60: the model hears 30 s at once"):
        assert recogniser(SAMPLES, chunk_length_s=60) == expected
    with pytest.warns(UserWarning, match="stride_length_s has no effect"):
        assert recogniser(SAMPLES, chunk_length_s=10, stride_length_s=(4, 2)) == expected


@pytest.mark.parametrize("name", ["return_timestamps", "return_language", "decoder_kwargs", "num_return_sequences"])
def test_arguments_for_other_models_are_refused_by_name(recogniser: ArkasrPipeline, name: str) -> None:
    value = {"return_timestamps": "word", "return_language": True, "decoder_kwargs": {"beam_width": 5}, "num_return_sequences": 2}[name]
    with pytest.raises(InputError, match=name):
        recogniser(SAMPLES, **{name: value})
    if name != "num_return_sequences":
        assert recogniser(SAMPLES, **{name: False}) == recogniser(SAMPLES, **{name: None}) == recogniser(SAMPLES)


def test_arguments_of_generate(recogniser: ArkasrPipeline, processor: ArkasrProcessor, checkpoint: Path) -> None:
    inputs = processor(audio=SAMPLES)
    blocked = AllowedTokens.asr(processor.tokenizer, recogniser.model.config).blocked(recogniser.model.config.vocab_size).tolist()
    tokens = recogniser.model.generate(**inputs, do_sample=False, max_new_tokens=3, suppress_tokens=blocked)[
        0, inputs["input_ids"].shape[1] :
    ]
    short = {"text": clean_transcript(processor.tokenizer.decode(tokens, skip_special_tokens=True))}
    assert short != recogniser(SAMPLES)
    for given in (
        {"max_new_tokens": 3},
        {"generate_kwargs": {"max_new_tokens": 3}},
        {"max_new_tokens": 3, "return_dict_in_generate": True},
    ):
        assert recogniser(SAMPLES, **given) == short
    plain = pipeline("automatic-speech-recognition", model=str(checkpoint))
    assert recogniser(SAMPLES) == plain(SAMPLES, max_new_tokens=4), "what the pipeline was made with holds for every call"
    end = recogniser.model.generation_config.eos_token_id
    whole = GenerationConfig(max_new_tokens=3, do_sample=False, eos_token_id=end, pad_token_id=0)
    assert plain(SAMPLES, generation_config=whole) == short, "none of the pipeline's own settings is put over it"
    first = int(tokens[0])
    other = recogniser.forward({"clip": SAMPLES, "is_last": True, "warnings": [], "others": {}}, max_new_tokens=3, suppress_tokens=[first])
    assert first not in other["tokens"], "what is given is suppressed besides"
    assert not set(other["tokens"][0].tolist()) & set(blocked)


@pytest.fixture
def address(wavs: list[Path]) -> Iterator[str]:
    """Where a server gives the first recording."""
    content = wavs[0].read_bytes()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/clip.wav" else 404)
            self.end_headers()
            if self.path == "/clip.wav":
                self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/clip.wav"
        server.shutdown()


def test_addresses(recogniser: ArkasrPipeline, wavs: list[Path], address: str) -> None:
    np.testing.assert_array_equal(heard(recogniser, address), audio.load(wavs[0]))
    with pytest.raises(InputError, match=r"^pipeline: http.*/other: cannot be downloaded \(HTTP Error 404"):
        recogniser(address.replace("clip.wav", "other"))
    with pytest.raises(InputError, match=r"^pipeline: http://\[: cannot be downloaded"):
        recogniser("http://[")


def test_no_decoder_needs_to_be_installed() -> None:
    assert "torchcodec" not in sys.modules


def test_pipeline_equals_generation_over_the_allowed_ids(checkpoint: Path, processor: ArkasrProcessor, wavs: list[Path]) -> None:
    model = load_model(checkpoint)
    inputs = processor(audio=[audio.load(wavs[0])])
    allowed = AllowedTokens.asr(processor.tokenizer, model.config)
    tokens = model.generate(**inputs, do_sample=False, max_new_tokens=12, suppress_tokens=allowed.blocked(model.config.vocab_size).tolist())
    new = tokens[0, inputs["input_ids"].shape[1] :].tolist()
    assert all(token in allowed for token in new)
    expected = clean_transcript(processor.tokenizer.decode(new, skip_special_tokens=True))
    recogniser = pipeline(
        "automatic-speech-recognition", model=model, tokenizer=processor.tokenizer, feature_extractor=processor.feature_extractor
    )
    assert recogniser(str(wavs[0]), max_new_tokens=12)["text"] == expected


def test_pipeline_splits_long_audio_and_joins_the_texts(checkpoint: Path) -> None:
    recogniser = pipeline("automatic-speech-recognition", model=str(checkpoint))
    samples = synthetic_speech(4.0, 7)
    pieces = split_at_quiet(samples, 1.5)
    parts = [recogniser(piece, max_new_tokens=6)["text"] for piece in pieces]
    assert recogniser(samples, chunk_length_s=1.5, max_new_tokens=6)["text"] == " ".join(part for part in parts if part)


def test_cuts_fall_into_pauses_and_lose_nothing() -> None:
    speech = [synthetic_speech(3.0, seed) + np.float32(0.01) for seed in range(5)]
    pause = np.zeros(6400, dtype=np.float32)
    samples = np.concatenate([part for piece in speech for part in (piece, pause)])
    pieces = split_at_quiet(samples, 5.0)
    np.testing.assert_array_equal(np.concatenate(pieces), samples)
    assert all(len(piece) <= 80000 for piece in pieces)
    for piece in pieces[:-1]:
        assert not piece[-800:].any()  # the cut stands in the middle of silence
    assert [len(piece) for piece in split_at_quiet(samples[:80000], 5.0)] == [80000]


def test_other_models_take_the_stock_pipeline(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", "A", "B"])}))
    config = Wav2Vec2Config(
        vocab_size=7,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(16,) * 7,
        num_conv_pos_embeddings=8,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Wav2Vec2ForCTC(config).eval()
    recogniser = pipeline(
        "automatic-speech-recognition",
        model=model,
        tokenizer=Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json")),
        feature_extractor=Wav2Vec2FeatureExtractor(),
    )
    stock = AutomaticSpeechRecognitionPipeline(model=model, tokenizer=recogniser.tokenizer, feature_extractor=recogniser.feature_extractor)
    samples = synthetic_speech(0.5)
    assert recogniser.type == "ctc"
    assert recogniser(samples.copy()) == stock(samples.copy())


def test_recordings_go_through(checkpoint: Path, recordings: list[Path]) -> None:
    recogniser = pipeline("automatic-speech-recognition", model=str(checkpoint))
    for file in recordings[:4]:
        assert recogniser(str(file), max_new_tokens=8)["text"]
