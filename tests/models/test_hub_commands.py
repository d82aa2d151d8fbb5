"""Commands that are given a repository's name in place of a folder, in processes of their own, against a stand-in for the Hub."""

import json
import subprocess
import sys
from collections import Counter

import pytest
import torch.distributed as dist
from hub_repositories import MARK, NEEDLESS, make_models

from arkfast.data import read_manifest
from arkfast.infer import Transcriber
from arkfast.records import Utterance
from arkfast.testing import synthetic_speech, write_wav


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


def run(hub, home, mark, *words, python=("-m", "arkfast.cli"), **variables):
    """A command in a process of its own; what the repositories hold as code must not have run in it."""
    environment = hub.environment(home, **{MARK: str(mark)}, **variables)
    done = subprocess.run([sys.executable, *python, *map(str, words)], env=environment, capture_output=True, text=True, timeout=300)
    assert not mark.exists(), done.stderr
    assert not any(seen.path.endswith(".py") for seen in hub.seen), "code of a repository was asked for"
    return done


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A manifest of three clips."""
    root = tmp_path_factory.mktemp("corpus")
    rows = []
    for i in range(3):
        write_wav(root / f"{i}.wav", synthetic_speech(0.4 + 0.2 * i, seed=i))
        rows.append(json.dumps({"audio": f"{i}.wav", "text": "one two", "id": str(i), "language": "en"}) + "\n")
    (root / "test.jsonl").write_text("".join(rows))
    return root


def ranks(hub, home, mark, *words, code=0):
    """A command in two processes as torchrun starts them; returns what each said. They meet in a store that this process holds."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True", "WORLD_SIZE": "2"}
    command, processes = [sys.executable, "-m", "arkfast.cli", *map(str, words)], []
    for rank in ("0", "1"):
        environment = hub.environment(home, **meeting, **{MARK: str(mark), "RANK": rank, "LOCAL_RANK": rank})
        processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True))
    try:
        said = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [code, code], "\n".join(said)
    assert not mark.exists()
    return said


def transcripts(path):
    return [json.loads(line)["pred_text"] for line in path.read_text().splitlines()]


def transcribed(folder, utterances):
    return [row["pred_text"] for row in Transcriber(folder, device="cpu", max_new_tokens=12)(utterances)]


def test_transcribe_and_evaluate_take_a_repository(hub, models, corpus, home, tmp_path):
    hub.push("org/door", models / "one", more=NEEDLESS)
    commit = hub.push("org/door", models / "two", revision="v2", more=NEEDLESS)
    expected = transcribed(models / "two", read_manifest(corpus / "test.jsonl"))
    flags = ["--input", corpus / "test.jsonl", "--model_path", "org/door", "--revision", "v2", "--max_new_tokens", "12", "--device", "cpu"]
    mark = tmp_path / "mark"
    done = run(hub, home, mark, "transcribe", *flags, "--output", tmp_path / "a.jsonl", "--processor_path", "org/door")
    assert done.returncode == 0, done.stderr
    assert transcripts(tmp_path / "a.jsonl") == expected
    flags += ["--output", tmp_path / "b.jsonl", "--summary", tmp_path / "summary.json"]
    done = run(hub, home, mark, "evaluate", *flags, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert transcripts(tmp_path / "b.jsonl") == expected
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["model_path"], summary["model_commit"]) == ("org/door", commit)
    assert set(Counter(hub.fetched("org/door")).values()) == {1}
    done = run(hub, home, mark, "transcribe", *flags[:3], "org/absent", *flags[6:10], "--output", tmp_path / "c.jsonl")
    assert done.returncode == 2
    assert "no repository 127.0.0.1/org/absent" in done.stderr
    assert "Traceback" not in done.stderr


def test_presets_run_the_same_commit(hub, models, corpus, home, tmp_path):
    first = hub.push("org/presets", models / "one", more=NEEDLESS)
    hub.push("org/tokens", models / "one", revision="t", more=NEEDLESS)
    for name in ("a", "b"):
        (corpus / f"test_{name}.jsonl").write_text((corpus / "test.jsonl").read_text())
    settings = {"MODEL_PATH": "org/presets", "EVAL_DATA_DIR": str(corpus), "OUTPUT_DIR": str(tmp_path / "out"), "PRESETS": "a b",
                "GPUS": "cpu", "MAX_NEW_TOKENS": "8", "PROCESSOR_PATH": "org/tokens@t"}  # fmt: skip
    # When the first job asks for the model, its branch has moved on.
    hub.afterwards["org/presets"] = lambda: hub.push("org/presets", models / "two", more=NEEDLESS)
    done = run(hub, home, tmp_path / "mark", "--revision", "main", python=("-m", "arkfast.evaluate.presets"), **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    summaries = [json.loads((tmp_path / "out" / f"test_{name}_arkasr_summary.json").read_text()) for name in ("a", "b")]
    assert [summary["model_commit"] for summary in summaries] == [first, first]
    assert hub.revisions["org/presets"]["main"] != first
    assert set(hub.fetched("org/tokens")) == {path.name for path in (models / "one").iterdir()} - {"model.safetensors"}
    before = len(hub.seen)
    done = run(hub, home, tmp_path / "mark", python=("-m", "arkfast.evaluate.presets"), **{**settings, "MODEL_PATH": "no/way/model"})
    assert done.returncode == 2
    assert "nothing was started" in done.stderr
    assert "MODEL_PATH no/way/model: no such folder" in done.stderr
    assert len(hub.seen) == before


def test_a_run_of_two_ranks_fetches_once_and_its_resume_keeps_the_commits(hub, models, corpus, home, tmp_path):
    student = hub.push("org/student", models / "one", more=NEEDLESS)
    teacher = hub.push("org/teacher", models / "two", revision="v1", more=NEEDLESS)
    hub.faults["org/student/model.safetensors"] = ["slow"]
    flags = ["--student_model", "org/student", "--teacher_model", "org/teacher", "--teacher_revision", "v1", "--lora_rank", 2,
             "--output_dir", tmp_path / "run", "--train_data", corpus / "test.jsonl", "--micro_batches_per_step", 2, "--gates", "off",
             "--learning_rate", 1e-3, "--asr_opd_max_new_tokens", 8, "--dataloader_num_workers", 0, "--device", "cpu"]  # fmt: skip
    mark, fresh = tmp_path / "mark", tmp_path / "home"
    said, _ = ranks(hub, fresh, mark, "train", *flags, "--max_steps", 1)
    assert {n for name in ("org/student", "org/teacher") for n in Counter(hub.fetched(name)).values()} == {1}
    assert f"--student_model org/student@{student}" in said
    commits = {"student_model": student, "teacher_model": teacher}
    claim = json.loads((tmp_path / "run" / "run.json").read_text())
    assert claim["commits"] == commits
    assert (claim["identity"]["student_model"], claim["identity"]["teacher_revision"]) == ("org/student", "v1")

    moved = [hub.push("org/student", models / "two"), hub.push("org/teacher", models / "one", revision="v1")]
    done = run(hub, fresh, mark, "train", *flags, "--max_steps", 2, "--resume_from_checkpoint", "auto")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "run.json").read_text())["commits"] == commits
    state = json.loads((tmp_path / "run" / "checkpoints" / "global_step_2" / "trainer_state.json").read_text())
    assert (state["step"], state["commits"]) == (2, commits)
    assert not [path for commit in moved for path in fresh.rglob(commit)]

    done = run(hub, fresh, mark, "export", "--checkpoint", tmp_path / "run", "--output", tmp_path / "model", "--dtype", "float32",
               "--weights", "master", HF_HUB_OFFLINE="1")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_what_one_rank_cannot_fetch_ends_all_with_one_message(hub, models, corpus, tmp_path):
    hub.push("org/failing", models / "one")
    hub.faults["org/failing/model.safetensors"] = [500] * 3
    flags = ["--stage", "sft", "--student_model", "org/failing", "--train_data", corpus / "test.jsonl", "--output_dir", tmp_path / "run"]
    said = ranks(hub, tmp_path / "home", tmp_path / "mark", "train", *flags, "--device", "cpu", code=2)
    assert "--student_model org/failing@" in said[0]
    assert "127.0.0.1 answered with HTTP status 500" in said[0]
    assert "error" not in said[1]
    assert not (tmp_path / "run").exists()


CARD = """
import sys
import torch
import arkfast.models
from transformers import AutoModelForCausalLM, AutoProcessor, AutoTokenizer, pipeline

name, revision, audio = sys.argv[1:]
processor = AutoProcessor.from_pretrained(name, revision=revision, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=True)
options = {"torch_dtype": torch.float32, "attn_implementation": "sdpa"}
model = AutoModelForCausalLM.from_pretrained(name, revision=revision, trust_remote_code=True, **options).to("cpu")
content = [{"type": "audio", "path": audio}, {"type": "text", "text": "Please transcribe this audio."}]
conversation = [{"role": "user", "content": content}]
more = {"sampling_rate": 16000, "audio_padding": "longest", "text_kwargs": {"padding": "longest"}, "audio_max_length": 480000}
for kwargs in ({}, more):
    inputs = processor.apply_chat_template(conversation, add_generation_prompt=True, return_tensors="pt", **kwargs).to("cpu")
    inputs["audios"] = inputs["audios"].to(model.dtype)
    added = {i for token, i in tokenizer.get_added_vocab().items() if token.startswith("<") and token.endswith(">")}
    banned = [[i] for i in sorted(added | set(tokenizer.all_special_ids)) if i != tokenizer.eos_token_id]
    outputs = model.generate(**inputs, do_sample=False, max_new_tokens=12, pad_token_id=tokenizer.pad_token_id,
                             eos_token_id=tokenizer.eos_token_id, bad_words_ids=banned)
    print(repr(tokenizer.batch_decode(outputs[:, inputs.input_ids.shape[1]:], skip_special_tokens=True)[0]))
recognise = pipeline("automatic-speech-recognition", model=name, revision=revision, trust_remote_code=True)
print(repr(recognise(audio, generate_kwargs={"max_new_tokens": 12})["text"]))
"""


def test_the_model_cards_commands_run(hub, models, corpus, home, tmp_path):
    """As both cards have them, with a repository's name; they are Transformers' own calls, and may ask for more files than ours."""
    hub.push("org/card", models / "one", more=NEEDLESS)
    hub.push("org/card", models / "two", revision="v2", more=NEEDLESS)
    audio = corpus / "2.wav"
    (expected,) = transcribed(models / "two", [Utterance(id="2", audio=str(audio))])
    done = run(hub, home, tmp_path / "mark", "org/card", "v2", audio, python=("-c", CARD))
    assert done.returncode == 0, done.stderr
    assert [eval(line) for line in done.stdout.splitlines()] == [expected] * 3
