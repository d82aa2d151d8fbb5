"""From utterances to tensors: prompt layout, token counts, targets, and errors that name the row."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from transformers import AutoTokenizer

import arkfast.models  # noqa: F401  (registers the tokenizer's model type)
from arkfast.audio import LogMel
from arkfast.data import collate, extract, read_manifest
from arkfast.data.collate import read_clip
from arkfast.data.tasks import find_task
from arkfast.models.arkasr.prompt import Prompt, audio_token_count
from arkfast.records import InputError, Utterance
from arkfast.testing import synthetic_speech, tiny_checkpoint, write_wav


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return AutoTokenizer.from_pretrained(tiny_checkpoint(tmp_path_factory.mktemp("tiny")))


def interface(tokenizer):
    """What the transcription task asks of a model."""
    return SimpleNamespace(tokenizer=tokenizer, end_id=tokenizer.convert_tokens_to_ids("<|im_end|>"))


def test_token_count_law():
    assert [audio_token_count(n) for n in (3000, 1205, 400, 1, 7, 8, 15)] == [375, 150, 50, 1, 1, 1, 2]


def test_prompt_equals_the_tokenised_string(tokenizer):
    prompt = Prompt.asr(tokenizer)
    text = "<|user|><|begin_of_audio|>" + "<|audio|>" * 50 + "<|end_of_audio|>Please transcribe this audio.<|assistant|>"
    assert prompt.ids(400) == tokenizer.encode(text, add_special_tokens=False)


def test_prompt_needs_an_ark_tokenizer():
    class Foreign:
        unk_token_id = 0

        def convert_tokens_to_ids(self, token):
            return 5 if token == "<|user|>" else 0

    with pytest.raises(ValueError, match=r"has no <\|begin_of_audio\|>, <\|audio\|>"):
        Prompt.asr(Foreign())


def test_batch(tokenizer):
    prompt, log_mel = Prompt.asr(tokenizer), LogMel()
    rows = [Utterance(id=f"u{i}", audio=synthetic_speech(s, seed=i), text=t) for i, (s, t) in enumerate([(1.0, "one two"), (0.5, "three")])]
    features = [extract(row, log_mel) for row in rows]
    batch = collate(rows, features, prompt, [find_task("asr").targets(row, interface(tokenizer)) for row in rows])
    assert batch.mel.shape == (2, 128, 100)
    assert batch.mel_lens.tolist() == [100, 50]
    assert torch.equal(batch.mel[1, :, :50], torch.from_numpy(features[1]))
    assert batch.input_ids[1, : batch.prompt_lens[1]].tolist() == prompt.ids(50)
    assert (batch.input_ids == prompt.audio_id).sum(1).tolist() == [12, 6]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert batch.target_ids[0, : batch.target_lens[0]].tolist() == [*tokenizer.encode("one two", add_special_tokens=False), end]
    assert batch.seconds == pytest.approx(1.5)
    assert collate(rows, features, prompt).target_ids is None


def test_features_do_not_depend_on_the_batch(tokenizer):
    log_mel = LogMel()
    row = Utterance(id="u", audio=synthetic_speech(0.73, seed=3))
    alone = extract(row, log_mel)
    batch = collate(
        [Utterance(id="v", audio=synthetic_speech(2.0, seed=4)), row],
        [extract(Utterance(id="v", audio=synthetic_speech(2.0, seed=4)), log_mel), alone],
        Prompt.asr(tokenizer),
    )
    assert torch.equal(batch.mel[1, :, : batch.mel_lens[1]], torch.from_numpy(alone))


def test_supervision_needs_text(tokenizer):
    for text in (None, "  "):
        with pytest.raises(InputError, match=r"m.jsonl:3: no text"):
            find_task("asr").targets(Utterance(id="u", audio="a.wav", text=text, where="m.jsonl:3"), interface(tokenizer))


def test_bad_audio_names_manifest_line_and_file(tmp_path):
    write_wav(tmp_path / "good.wav", synthetic_speech(1.0, seed=0))
    nan = synthetic_speech(1.0, seed=0)
    nan[100] = np.nan
    import soundfile

    soundfile.write(tmp_path / "nan.wav", nan, 16000, subtype="FLOAT")
    (tmp_path / "text.wav").write_text("not audio")
    (tmp_path / "zero.wav").write_bytes(b"")
    write_wav(tmp_path / "long.wav", np.zeros(16000 * 31, dtype=np.float32))
    cases = [
        ({"audio": "absent.wav"}, "absent.wav"),
        ({"audio": "nan.wav"}, "nan.wav"),
        ({"audio": "text.wav"}, "text.wav"),
        ({"audio": "zero.wav"}, "zero.wav"),
        ({"audio": "good.wav", "begin_time": 0.5, "end_time": 4.0}, "good.wav"),
        ({"audio": "good.wav", "begin_time": 3.0}, "good.wav"),
        ({"audio": "long.wav"}, "long.wav"),
    ]
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row, _ in cases))
    for number, (utterance, (_, name)) in enumerate(zip(read_manifest(manifest), cases, strict=True), 1):
        with pytest.raises(InputError) as raised:
            extract(utterance, LogMel())
        assert str(raised.value).startswith(f"{manifest}:{number}: "), raised.value
        assert name in str(raised.value)


SEGMENTS = [(1.001, 1.501), (None, 1.0), (1.5, None), (0.00004, 0.5), (1.9, 2.04), (1.9, 9.0), (2.0, None), (5.0, 6.0), (1.0, 1.00001)]


@pytest.mark.parametrize(("begin", "end"), SEGMENTS)
def test_samples_in_memory_are_cut_as_a_file_of_theirs_is(tmp_path, begin, end):
    import soundfile

    samples, log_mel = synthetic_speech(2.0, seed=5), LogMel(8)
    path = tmp_path / "clip.wav"
    soundfile.write(path, samples, 16000, subtype="FLOAT")
    found = []
    for audio in (samples, str(path)):
        try:
            found.append(extract(Utterance(id="u", audio=audio, begin=begin, end=end), log_mel))
        except InputError as error:
            found.append(str(error).replace(str(path), "u"))
    memory, file = found
    assert memory == file if isinstance(file, str) else np.array_equal(memory, file)


@pytest.mark.parametrize("audio", [np.float32(3), np.zeros((2, 800), dtype=np.float32)])
def test_what_is_no_row_of_samples_is_a_bad_clip(audio):
    with pytest.raises(InputError, match=r"^u: expected samples in one dimension, got shape \["):
        extract(Utterance(id="u", audio=audio), LogMel(8))
    with pytest.raises(InputError, match=r"^u: no audio; the task needs a recording"):
        extract(Utterance(id="u", audio=None), LogMel(8))


@pytest.mark.parametrize("seconds", [2.01, 4.06, 8.19])
def test_a_clip_of_exactly_the_limit_is_allowed(tmp_path, seconds):
    """In floating point 2.01 · 16000 is a hair under 32160."""
    samples, log_mel = np.full(round(seconds * 16000), 0.1, dtype=np.float32), LogMel(8)
    write_wav(tmp_path / "clip.wav", samples)
    for audio, longer in ((samples, np.append(samples, samples[:1])), (str(tmp_path / "clip.wav"), None)):
        assert extract(Utterance(id="u", audio=audio), log_mel, max_seconds=seconds).shape == (8, round(seconds * 100))
        if longer is not None:
            with pytest.raises(InputError, match=rf"^u: .* s of audio, over the limit of {seconds:g} s: split it"):
                extract(Utterance(id="u", audio=longer), log_mel, max_seconds=seconds)


def test_a_clip_is_heard_as_its_row_says(tmp_path):
    left, right = synthetic_speech(1.0, seed=1), synthetic_speech(1.0, seed=2)
    path = str(tmp_path / "call.wav")
    soundfile.write(path, np.stack([left, right], axis=1), 16000, subtype="FLOAT")
    for channel, expected in (((0,), left), ((1,), right), (None, (left + right) / 2), ((), (left + right) / 2)):
        clip = read_clip(Utterance(id="u", audio=path, channel=channel))
        np.testing.assert_allclose(clip.samples, expected, atol=1e-7)
        assert clip.used == {"channel": channel[0] if channel else "average", "channels": 2}
    with pytest.raises(InputError, match=r"^m\.jsonl:3: .*call\.wav: there is no channel 2: the recording has 2 channels"):
        read_clip(Utterance(id="u", audio=path, channel=(2,), where="m.jsonl:3"))
    with pytest.raises(InputError, match=r"^u: there is no channel 1: the recording has one channel"):
        read_clip(Utterance(id="u", audio=left, channel=(1,)))
    with pytest.raises(InputError, match=r"^u: there is no audio track 1"):
        read_clip(Utterance(id="u", audio=left, audio_track=1))


@pytest.mark.parametrize("kind", ["float32", "float64", "float16", "int16", "bfloat16", "with a gradient", "list"])
def test_samples_in_memory_are_judged_as_files_are(kind):
    samples = synthetic_speech(0.5, seed=1)
    given = {
        "int16": lambda x: (x * 32767).astype(np.int16),
        "bfloat16": lambda x: torch.from_numpy(x).bfloat16(),
        "with a gradient": lambda x: torch.from_numpy(x).requires_grad_(),
        "list": lambda x: x.tolist(),
    }.get(kind, lambda x: x.astype(kind))
    assert read_clip(Utterance(id="u", audio=given(samples))).warnings == ()
    assert read_clip(Utterance(id="u", audio=given(samples[2000:2800]))).warnings == ("a clip of 0.050 s is too short for a word",)
    assert read_clip(Utterance(id="u", audio=given(0 * samples))).warnings == ("digital silence: every sample is 0",)
    if kind != "int16":
        with pytest.raises(InputError, match=r"^m:1: samples reach .* integers stored as floats"):
            read_clip(Utterance(id="u", audio=given(np.float32(32768) * samples), where="m:1"))
