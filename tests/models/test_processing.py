"""The processor, the model cards' calls and the pipeline, from files on disk to text."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from transformers import AutoModelForCausalLM, AutoProcessor, AutoTokenizer, Qwen2Tokenizer

from arkfast import audio
from arkfast.models import ArkasrForConditionalGeneration, ArkasrProcessor
from arkfast.models.arkasr.audio_input import read_input
from arkfast.models.arkasr.prompt import INSTRUCTION, Prompt
from arkfast.records import InputError
from arkfast.testing import synthetic_speech, tiny_checkpoint, write_wav

SECONDS = (2.31, 0.83, 0.02)  # the last is under one window and is padded to it


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("processing") / "tiny", seed=1)


@pytest.fixture(scope="module")
def wavs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("wavs")
    return [write_wav(folder / f"{i}.wav", synthetic_speech(seconds, i)) for i, seconds in enumerate(SECONDS)]


@pytest.fixture(scope="module")
def processor(checkpoint: Path) -> ArkasrProcessor:
    return AutoProcessor.from_pretrained(checkpoint, trust_remote_code=True, fix_mistral_regex=True)


def _conversation(**part: object) -> list[dict]:
    return [{"role": "user", "content": [{"type": "audio", **part}, {"type": "text", "text": INSTRUCTION}]}]


def _card_generate(checkpoint: Path, conversation: list, *, every_added_token: bool, **template: object) -> tuple[list[str], torch.Tensor]:
    """The published snippet, in its own order and words."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=True)
    card_processor = AutoProcessor.from_pretrained(checkpoint, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint, trust_remote_code=True, torch_dtype=torch.float32, attn_implementation="sdpa"
    ).to("cpu")
    assert type(model) is ArkasrForConditionalGeneration
    inputs = card_processor.apply_chat_template(conversation, add_generation_prompt=True, return_tensors="pt", **template).to("cpu")
    inputs["audios"] = inputs["audios"].to(model.dtype)
    banned = {i for i in tokenizer.all_special_ids if i != tokenizer.eos_token_id}
    if every_added_token:
        banned |= {
            i for i, token in tokenizer.added_tokens_decoder.items() if token.content.startswith("<") and i != tokenizer.eos_token_id
        }
    with torch.no_grad():
        outputs = model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=24,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bad_words_ids=[[i] for i in sorted(banned)],
        )
    new = outputs[:, inputs.input_ids.shape[1] :]
    return tokenizer.batch_decode(new, skip_special_tokens=True), new


def test_the_small_cards_call(checkpoint: Path, wavs: list[Path]) -> None:
    texts, tokens = _card_generate(checkpoint, _conversation(path=str(wavs[0])), every_added_token=False)
    assert len(texts) == 1
    assert len(set(tokens[0].tolist())) >= 10


def test_the_large_cards_call_on_a_batch_gives_each_clips_own_text(checkpoint: Path, wavs: list[Path]) -> None:
    template = {"sampling_rate": 16000, "audio_padding": "longest", "text_kwargs": {"padding": "longest"}, "audio_max_length": 480000}
    conversations = [_conversation(path=str(wav)) for wav in wavs]
    together, _ = _card_generate(checkpoint, conversations, every_added_token=True, **template)
    alone = [_card_generate(checkpoint, conversation, every_added_token=True, **template)[0][0] for conversation in conversations]
    assert together == alone
    assert len(set(alone)) == 3


def test_inputs_are_the_prompt_and_each_clips_own_features(processor: ArkasrProcessor, wavs: list[Path]) -> None:
    inputs = processor.apply_chat_template([_conversation(path=str(wav)) for wav in wavs], add_generation_prompt=True)
    prompt = Prompt.asr(processor.tokenizer)
    assert set(inputs) == {"input_ids", "attention_mask", "audios", "audio_lens"}
    assert inputs["audios"].dtype == torch.float32
    for row, wav in enumerate(wavs):
        features, frames = audio.LogMel()([audio.load(wav)])
        own = inputs["attention_mask"][row].bool()
        assert own[own.long().argmax() :].all()  # padded on the left
        assert inputs["input_ids"][row, own].tolist() == prompt.ids(int(frames[0]))
        assert int(inputs["audio_lens"][row]) == int(frames[0])
        np.testing.assert_array_equal(inputs["audios"][row, :, : int(frames[0])].numpy(), features[0])
    assert inputs["audio_lens"].tolist() == [231, 83, 2]


def test_a_path_an_array_and_a_segment_are_the_same_clip(processor: ArkasrProcessor, wavs: list[Path]) -> None:
    whole = audio.load(wavs[0])
    segment = {"begin_time": 0.5, "end_time": 1.25}
    ways = [
        _conversation(path=str(wavs[0]), **segment),
        _conversation(audio=wavs[0], **segment),
        _conversation(array=whole, **segment),
        _conversation(array=whole[8000:20000], begin_time=-1, end_time=-1),
        _conversation(array=torch.from_numpy(whole[8000:20000])),
    ]
    inputs = processor.apply_chat_template(ways, add_generation_prompt=True)
    for row in range(1, len(ways)):
        assert torch.equal(inputs["audios"][row], inputs["audios"][0])
        assert torch.equal(inputs["input_ids"][row], inputs["input_ids"][0])
    assert inputs["audio_lens"].tolist() == [75] * len(ways)


@pytest.mark.parametrize("rate", [8000, 16000])
def test_a_segment_of_an_array_is_that_of_a_file(tmp_path: Path, rate: int) -> None:
    """One rule says which segments there are, how far an end may pass the recording's, and which samples they mean."""
    path = write_wav(tmp_path / "a.wav", synthetic_speech(1.1, 3)[: rate + 5], rate)
    samples, _ = soundfile.read(path, dtype="int16")
    whole = len(samples) / rate
    heard = read_input(samples, sampling_rate=rate, begin=0.5, end=whole + 0.03).samples
    assert np.array_equal(heard, read_input(samples, sampling_rate=rate, begin=0.5).samples)
    drawn, outcomes = random.Random(rate), []
    ends = [None, -1, 0.0, whole, *(whole + past for past in (0.03, 0.0499, 0.051, 1.0))]
    for _ in range(200):
        begin = drawn.choice([None, -1, 0.0, 0.5, whole, whole + 0.01, drawn.uniform(0, 1.1)])
        end = drawn.choice([*ends, 0.5, drawn.uniform(0, 1.1)])
        try:
            expected = audio.load(path, begin=begin, end=end)
        except InputError as error:
            with pytest.raises(InputError) as raised:
                read_input(samples, sampling_rate=rate, begin=begin, end=end)
            reason = str(error).removeprefix(f"{path}: ")
            assert str(raised.value).endswith(reason)
            outcomes.append(False)
        else:
            assert np.array_equal(read_input(samples, sampling_rate=rate, begin=begin, end=end).samples, expected)
            outcomes.append(True)
    assert 40 < sum(outcomes) < 160, "segments of both kinds"


def test_arrays_at_another_rate_are_resampled_as_files_are(processor: ArkasrProcessor, tmp_path: Path) -> None:
    samples = synthetic_speech(0.5, 3)  # played at 8 kHz it lasts a second
    path = write_wav(tmp_path / "8k.wav", samples, 8000)
    quantised, _ = soundfile.read(path, dtype="int16")
    np.testing.assert_array_equal(read_input(quantised, sampling_rate=8000).samples, audio.load(path))
    inputs = processor.apply_chat_template(_conversation(array=samples), sampling_rate=8000)
    assert inputs["audio_lens"].tolist() == [100]


def test_template_text_and_roles(processor: ArkasrProcessor, wavs: list[Path]) -> None:
    conversation = _conversation(path=str(wavs[0]))
    text = processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
    assert text == f"<|user|><|begin_of_audio|><|audio|><|end_of_audio|>{INSTRUCTION}<|assistant|>"
    trained = processor.apply_chat_template([*conversation, {"role": "assistant", "content": "one two"}], tokenize=False)
    assert trained == text + "one two<|im_end|>"
    assert processor.chat_template == (Path(processor.tokenizer.name_or_path) / "chat_template.jinja").read_text()


def test_direct_call_uses_the_transcription_prompt(processor: ArkasrProcessor) -> None:
    clips = [synthetic_speech(1.0), synthetic_speech(0.5)]
    inputs = processor(audio=clips)
    assert inputs["input_ids"][0].tolist() == Prompt.asr(processor.tokenizer).ids(100)
    right = processor(audio=clips, padding_side="right")
    assert right["attention_mask"].flip(1).tolist() == inputs["attention_mask"].tolist()
    padded = processor(audio=clips, audio_padding="max_length")
    assert padded["audios"].shape[-1] == 3000
    assert padded["audio_lens"].tolist() == [100, 50]


def test_token_counts_and_loading_as_the_original_trainer_calls_them(processor: ArkasrProcessor, wavs: list[Path]) -> None:
    assert [processor.calculate_audio_token_count(frames) for frames in (3000, 1205, 400, 3)] == [375, 150, 50, 1]
    clips = [processor._load_audio_file(str(wav), sampling_rate=16000, offset=0.0, duration=None) for wav in wavs]
    counts = processor._calculate_audio_token_counts_per_sample(
        audios_raw=clips, sampling_rate=16000, audio_max_length=480000, audio_pad_to_multiple_of=None
    )
    inputs = processor(audio=clips)
    audio_id = processor.tokenizer.convert_tokens_to_ids(processor.audio_token)
    assert counts == (inputs["input_ids"] == audio_id).sum(1).tolist()
    part = processor._load_audio_file(wavs[0], sampling_rate=16000, offset=0.5, duration=0.75)
    np.testing.assert_array_equal(part, clips[0][8000:20000])
    tokens = [
        processor.user_token,
        processor.bos_audio_token,
        processor.eos_audio_token,
        processor.assistant_token,
        processor.assistant_end_token,
    ]
    assert all(token in processor.tokenizer.get_vocab() for token in tokens)


def test_processor_files_round_trip(processor: ArkasrProcessor, checkpoint: Path, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    names = ("processor_config.json", "preprocessor_config.json", "chat_template.jinja", "tokenizer.json")
    for name in names:
        assert (tmp_path / name).read_bytes() == (checkpoint / name).read_bytes(), name
    assert json.loads((tmp_path / "processor_config.json").read_text()) == {
        "audio_dtype": "float32",
        "audio_token": "<|audio|>",
        "feature_extractor_config": {},
        "merge_factor": 4,
        "processor_class": "ArkasrProcessor",
        "tokenizer_config": {},
    }
    again = ArkasrProcessor.from_pretrained(tmp_path)
    clip = synthetic_speech(1.0)
    assert torch.equal(again(audio=[clip])["input_ids"], processor(audio=[clip])["input_ids"])


def test_long_audio_is_refused_or_cut_aloud(processor: ArkasrProcessor) -> None:
    long = np.zeros(31 * 16000, dtype=np.float32)
    with pytest.raises(InputError, match=r"clip 0 lasts 31\.00 s, and the model hears 30 s at once; give begin_time and end_time "):
        processor(audio=[long])
    with pytest.raises(InputError, match=r"or audio_max_length=480000 to leave the rest unheard") as caught:
        processor.apply_chat_template(_conversation(array=long), return_tensors="pt")
    assert "max_samples" not in str(caught.value), "a parameter of the features' own function, which nobody has called here"
    part = _conversation(array=long)
    part[0]["content"][0] |= {"begin_time": 1.0, "end_time": 31.0}
    assert processor.apply_chat_template(part, return_tensors="pt")["audio_lens"].tolist() == [3000]
    with pytest.warns(UserWarning, match=r"clip 0: its last 1\.00 s"):
        inputs = processor(audio=[long], audio_max_length=480000)
    assert inputs["audio_lens"].tolist() == [3000]


@pytest.mark.parametrize(
    ("conversation", "message"),
    [
        ([], "conversation 0: expected a non-empty list"),
        ([[{"role": "user"}]], "needs 'role' and 'content'"),
        ([{"role": "tool", "content": "x"}], "role must be"),
        ([{"role": "user", "content": "hello"}], "0 audio parts"),
        (_conversation(), "one of 'path' and 'array'"),
        (_conversation(path="/nonexistent.wav"), "conversation 0: /nonexistent.wav"),
        (_conversation(path="https://example.com/a.wav"), "download it"),
        (_conversation(array=np.zeros((100, 2), dtype=np.float32)), "mix channels down"),
        (_conversation(array=np.full(500, 3e4, dtype=np.float32)), "integers stored as floats"),
        (_conversation(array=np.zeros(0, dtype=np.float32)), "one-dimensional array"),
        (_conversation(array=np.zeros(100, dtype=np.int64)), "floats in -1..1 or int16"),
        (_conversation(array=np.full(500, np.nan, dtype=np.float32)), "nan"),
        (_conversation(array=np.zeros(16000, dtype=np.float32), begin_time=0.5, end_time=0.25), "segment 0.5 to 0.25 s"),
        (_conversation(array=np.zeros(16000, dtype=np.float32), begin_time="soon"), "number of seconds"),
        (
            [
                {
                    "role": "user",
                    "content": [{"type": "audio", "array": np.zeros(800, dtype=np.float32)}, {"type": "text", "text": "<|audio|>"}],
                }
            ],
            "exactly one",
        ),
    ],
)
def test_bad_conversations_are_named(processor: ArkasrProcessor, conversation: list, message: str) -> None:
    with pytest.raises(InputError, match=message):
        processor.apply_chat_template(conversation, add_generation_prompt=True)


def test_clips_are_judged_by_their_levels(processor: ArkasrProcessor) -> None:
    speech, silent = synthetic_speech(1.0), np.zeros(16000, dtype=np.float32)
    with pytest.warns(UserWarning, match="^clip 1: digital silence: every sample is 0$"):
        processor(audio=[speech, silent])
    with pytest.warns(UserWarning, match="^conversation 0: digital silence"):
        processor.apply_chat_template(_conversation(array=silent), add_generation_prompt=True)
    with pytest.raises(InputError, match=r"^ArkasrProcessor: clip 0: samples reach .* integers stored as floats"):
        processor(audio=32768 * speech)


def test_clips_in_every_form(processor: ArkasrProcessor) -> None:
    speech = synthetic_speech(1.0)
    expected = processor(audio=[speech])["audios"]
    tensor = torch.from_numpy(speech)
    for given in (speech, tensor, tensor.requires_grad_(), speech.tolist(), [speech[None]], (tensor,), [tensor.double()]):
        assert torch.equal(processor(audio=given)["audios"], expected)
    for part in ({"audio": {"array": speech, "sampling_rate": 16000}}, {"array": speech[None]}, {"array": np.stack([speech, speech])}):
        inputs = processor.apply_chat_template(_conversation(**part), add_generation_prompt=True)
        assert torch.equal(inputs["audios"], expected)
    both = np.stack([0 * speech, speech])
    inputs = processor.apply_chat_template(_conversation(array=both, channel=1), add_generation_prompt=True)
    assert torch.equal(inputs["audios"], expected)


def test_unsupported_options_are_refused(processor: ArkasrProcessor) -> None:
    clip = synthetic_speech(0.5)
    for options in ({"return_tensors": "np"}, {"sampling_rate": 8000}, {"padding_side": "up"}, {"audio_padding": "some"}):
        with pytest.raises(ValueError, match=next(iter(options))):
            processor(audio=[clip], **options)
    with pytest.raises(InputError, match="2 texts for 1 clips"):
        processor(text=["a", "b"], audio=[clip])
    with pytest.raises(InputError, match="may be channels or clips"):
        processor(audio=np.stack([clip, clip]))
    with pytest.raises(InputError, match="no audio"):
        processor(text="a")


def test_our_classes_win_over_a_checkpoints_own_code(checkpoint: Path, tmp_path: Path) -> None:
    """The official files name code in ``auto_map``; the files themselves are not needed and not run."""
    official = tmp_path / "official"
    shutil.copytree(checkpoint, official)
    auto_map = {
        "AutoConfig": "configuration_arkasr.ArkasrConfig",
        "AutoModelForCausalLM": "modeling_arkasr.ArkasrForConditionalGeneration",
        "AutoProcessor": "processing_arkasr.ArkasrProcessor",
    }
    for name in ("config.json", "processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        fields = json.loads((official / name).read_text())
        (official / name).write_text(json.dumps({**fields, "auto_map": auto_map, "processor_class": "ArkasrProcessor"}))
    for trust in (True, False):
        assert type(AutoProcessor.from_pretrained(official, trust_remote_code=trust)) is ArkasrProcessor
        assert type(AutoTokenizer.from_pretrained(official, trust_remote_code=trust)) is Qwen2Tokenizer
        assert type(AutoModelForCausalLM.from_pretrained(official, trust_remote_code=trust)) is ArkasrForConditionalGeneration
