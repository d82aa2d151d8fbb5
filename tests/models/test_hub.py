"""Checkpoints by name against a stand-in for the Hub: which files of which commit come, how often, and what is said when they do not.

What is asked runs in processes of its own, since the variables of Hugging Face's tools are read when they are imported.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hub_repositories import NEEDLESS, make_models
from huggingface_hub import constants

from arkfast.models import hub as module
from arkfast.models.hub import checkpoint_folder, commit_of, pinned
from arkfast.records import InputError


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return make_models(tmp_path_factory.mktemp("models"))


# The module alone: with the rest of its package each process would take seconds to start.
DRIVER = """
import importlib.util, json, sys, warnings
from arkfast.records import InputError
spec = importlib.util.spec_from_file_location("hub", sys.argv[1])
hub = sys.modules["hub"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(hub)
for line in sys.stdin:
    call = json.loads(line)
    work = getattr(hub, call.pop("do", "checkpoint_folder"))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            answer = {"folder": str(work(call.pop("name"), flag="--model_path", **call))}
        except InputError as error:
            answer = {"error": str(error)}
    print(json.dumps(answer | {"warnings": [str(w.message) for w in said if w.category is RuntimeWarning]}), flush=True)
"""


class Asker:
    """A process that looks names up, one after the other."""

    def __init__(self, environment, log):
        self.log = log
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-c", DRIVER, module.__file__],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, env=environment, text=True,
            )  # fmt: skip

    def begin(self, name, **call):
        self._process.stdin.write(json.dumps({"name": name, **call}) + "\n")
        self._process.stdin.flush()

    def answer(self):
        line = self._process.stdout.readline()
        assert line, self.log.read_text()
        return json.loads(line)

    def __call__(self, name, **call):
        self.begin(name, **call)
        return self.answer()

    def close(self):
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def start(hub, home, tmp_path_factory):
    """``start(**variables)`` starts an ``Asker``, on the shared cache unless HF_HOME says otherwise."""
    askers = []

    def begin(**variables):
        log = tmp_path_factory.mktemp("asker") / "log"
        asker = Asker(hub.environment(home, **variables), log)
        askers.append(asker)
        return asker

    yield begin
    for asker in askers:
        asker.close()


@pytest.fixture(scope="module")
def ask(start):
    return start()


@pytest.fixture(scope="module")
def offline(start):
    return start(HF_HUB_OFFLINE="1")


def same(folder, model):
    """Whether a folder holds all that a local checkpoint holds, byte for byte."""
    names = {path.name for path in model.iterdir()}
    assert {path.name for path in folder.iterdir()} == names
    return all((folder / name).read_bytes() == (model / name).read_bytes() for name in names)


def test_the_revision_that_is_asked_for_comes(hub, models, ask):
    main = hub.push("org/asr", models / "one", more=NEEDLESS)
    other = hub.push("org/asr", models / "two", revision="refs/pr/1", more=NEEDLESS)
    weights = [(models / name / "model.safetensors").read_bytes() for name in ("one", "two")]
    assert weights[0] != weights[1]
    for name, revision, commit, model in [
        ("org/asr", None, main, "one"),
        ("org/asr", "main", main, "one"),
        ("org/asr", "refs/pr/1", other, "two"),
        ("org/asr@refs/pr/1", None, other, "two"),
        (f"org/asr@{other}", None, other, "two"),
        ("org/asr@main", "main", main, "one"),
    ]:
        folder = Path(ask(name, revision=revision)["folder"])
        assert commit_of(folder) == commit
        assert same(folder, models / model)
    assert ask("org/asr", revision="refs/pr/1", do="pinned")["folder"] == f"org/asr@{other}"


def test_only_the_files_that_are_needed_come_each_once(hub, models, ask):
    hub.push("org/frugal", models / "one", more=NEEDLESS)
    assert "folder" in ask("org/frugal")
    assert Counter(hub.fetched("org/frugal")) == dict.fromkeys((path.name for path in (models / "one").iterdir()), 1)
    assert [seen for name in NEEDLESS for seen in hub.asked(f"org/frugal/{name}")] == []
    before = len(hub.fetched("org/frugal"))
    assert "folder" in ask("org/frugal")
    assert len(hub.fetched("org/frugal")) == before


def test_a_processor_comes_without_weights(hub, models, ask):
    hub.push("org/processor", models / "one", more=NEEDLESS)
    folder = Path(ask("org/processor", contents="processor")["folder"])
    assert {path.name for path in folder.iterdir()} == {path.name for path in (models / "one").iterdir()} - {"model.safetensors"}
    hub.push("org/pin", models / "one")
    assert "folder" in ask("org/pin", do="pinned")
    assert set(hub.fetched("org/pin")) == {"config.json", "generation_config.json"}


def test_shards_are_those_of_the_index(hub, models, ask):
    hub.push("org/sharded", models / "sharded", more=NEEDLESS | {"model-00009-of-00009.safetensors": b"of another time"})
    assert same(Path(ask("org/sharded")["folder"]), models / "sharded")
    assert not hub.asked("model-00009")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("modeling_arkasr.py", "which is no safetensors file beside it"),
        ("../modeling_arkasr.safetensors", "which is no safetensors file beside it"),
        ("onnx/model.safetensors", "which is no safetensors file beside it"),
        ("model-00007-of-00007.safetensors", "has no model-00007-of-00007.safetensors, which its model.safetensors.index.json names"),
        (7, "is no index of shards"),
    ],
)
def test_an_index_may_name_shards_alone(hub, models, ask, name, message):
    repository = f"org/index-{abs(hash(name))}"
    index = json.dumps({"metadata": {}, "weight_map": {"model.norm.weight": name}}).encode()
    hub.push(repository, models / "sharded", more=NEEDLESS | {"model.safetensors.index.json": index, "onnx/model.safetensors": b"x"})
    answer = ask(repository)
    assert message in answer["error"]
    assert not any(file.endswith((".py", ".safetensors")) for file in hub.fetched(repository))


@pytest.mark.parametrize(
    ("absent", "message"), [("config.json", "has no config.json"), ("model.safetensors", "has no model.safetensors; weights as pickles")]
)
def test_what_is_no_checkpoint_is_told_before_anything_comes(hub, models, ask, absent, message):
    repository = f"org/without-{absent}"
    commit = hub.push(repository, models / "one", more=NEEDLESS)
    del hub.files[commit][absent]
    assert message in ask(repository)["error"]
    assert hub.fetched(repository) == []


def test_processes_that_ask_at_once_fetch_each_file_once(hub, models, start, tmp_path):
    hub.push("org/ranks", models / "one", more=NEEDLESS)
    hub.faults["org/ranks/model.safetensors"] = ["slow"]
    hub.faults["org/ranks/tokenizer.json"] = ["slow"]
    both = [start(HF_HOME=str(tmp_path)) for _ in range(2)]
    for process in both:
        process("org/nothing")  # both are ready now
    for process in both:
        process.begin("org/ranks")
    folders = {process.answer()["folder"] for process in both}
    assert len(folders) == 1
    assert same(Path(folders.pop()), models / "one")
    assert set(Counter(hub.fetched("org/ranks")).values()) == {1}


def test_all_files_are_of_one_commit_though_the_revision_moves_on(hub, models, ask):
    first = hub.push("org/moving", models / "one")
    hub.afterwards["org/moving"] = lambda: hub.push("org/moving", models / "two")
    folder = Path(ask("org/moving")["folder"])
    assert hub.revisions["org/moving"]["main"] != first
    assert commit_of(folder) == first
    assert same(folder, models / "one")


def test_a_broken_download_is_resumed(hub, models, ask):
    weights = os.urandom(25 << 20)  # the Hub's library keeps what has come in pieces of 10 MiB
    hub.push("org/cut", models / "one", more={"model.safetensors": weights})
    hub.faults["org/cut/model.safetensors"] = ["cut"]
    assert (Path(ask("org/cut")["folder"]) / "model.safetensors").read_bytes() == weights
    assert [seen.range for seen in hub.asked("org/cut/model.safetensors") if seen.method == "GET" and seen.status in (200, 206)] == [
        None,
        f"bytes={10 << 20}-",
    ]


def test_a_download_is_begun_again_where_it_cannot_be_resumed(hub, models, ask):
    hub.push("org/reset", models / "one")
    hub.faults["org/reset/model.safetensors"] = ["reset", 503]
    assert same(Path(ask("org/reset")["folder"]), models / "one")


def test_half_a_checkpoint_is_never_there(hub, models, ask, offline):
    hub.push("org/half", models / "sharded")
    shard = sorted(path.name for path in (models / "sharded").glob("*.safetensors"))[1]
    hub.faults[f"org/half/{shard}"] = [500, 502, 500]
    answer = ask("org/half")
    assert "answered with HTTP status 500" in answer["error"]
    assert f"only a part of it (no {shard})" in answer["error"]
    assert "HF_HUB_OFFLINE is set, and the cache" in (told := offline("org/half")["error"])
    assert f"only a part of it (no {shard})" in told
    assert same(Path(ask("org/half")["folder"]), models / "sharded")
    assert set(Counter(hub.fetched("org/half")).values()) == {1, 4}


def test_a_filled_cache_serves_without_a_network(hub, models, ask, offline, start):
    commit = hub.push("org/kept", models / "one", more=NEEDLESS)
    there = ask("org/kept")["folder"]
    assert offline("org/kept") == {"folder": there, "warnings": []}
    assert offline("org/kept", revision=commit)["folder"] == there
    assert offline("org/kept", do="pinned")["folder"] == f"org/kept@{commit}"
    answer = start(HF_ENDPOINT="http://127.0.0.1:9")("org/kept")  # the discard port: nothing listens there
    assert answer["folder"] == there
    assert len(answer["warnings"]) == 1
    assert "127.0.0.1 could not be reached" in answer["warnings"][0]
    assert f"commit {commit} is used, which the cache has" in answer["warnings"][0]


def test_what_to_do_without_a_network_is_said(hub, home, offline, start):
    for asker, reason in ((offline, "HF_HUB_OFFLINE is set"), (start(HF_ENDPOINT="http://127.0.0.1:9"), "127.0.0.1 could not be reached")):
        said = asker("org/never", revision="v1")["error"]
        assert said.startswith("--model_path org/never: no such folder here; taken for the repository org/never at 'v1'")
        assert reason in said
        assert f"the cache {home / 'hub'} has no such repository at that revision" in said
        assert "Give the folder of a checkpoint, set HF_HOME to a cache that holds it, or unset HF_HUB_OFFLINE" in said
        assert "\n" not in said


def test_what_the_hub_does_not_have_is_one_line(hub, models, ask):
    hub.push("org/there", models / "one")
    said = ask("org/missing")["error"]
    assert said.startswith("--model_path org/missing: no such folder here, and no repository 127.0.0.1/org/missing; check the spelling")
    unknown = ask("org/there", revision="v9")["error"]
    assert unknown.startswith("--model_path org/there: org/there has no revision 'v9' on 127.0.0.1")
    assert "\n" not in said + unknown


def test_a_gated_repository_wants_the_token_and_no_message_holds_one(hub, models, ask, start, tmp_path):
    hub.push("org/gated", models / "one")
    hub.gated.add("org/gated")
    wrong = start(HF_TOKEN="hf_wrong", HF_HOME=str(tmp_path / "wrong"))
    right = start(HF_TOKEN=hub.token, HF_HOME=str(tmp_path / "right"))
    answers = [asker("org/gated") for asker in (ask, wrong)]
    for answer in answers:
        assert "its owners grant access on request; ask for it at 127.0.0.1/org/gated, then set HF_TOKEN" in answer["error"]
        assert "\n" not in answer["error"]
    assert same(Path(right("org/gated")["folder"]), models / "one")
    said = json.dumps(answers) + wrong.log.read_text() + right.log.read_text()
    assert "hf_" not in said
    assert "Signature" not in said


@pytest.mark.parametrize(
    "name",
    ["model", "/nowhere/model", "org/name/more", "../org", "org/na me", "org/a--b", "https://huggingface.co/org/name", "~/m"],
)
def test_what_is_neither_a_folder_nor_an_id_is_told_so(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        InputError, match=r"^--teacher_model .*: no such folder, and no name of a repository of the Hugging Face Hub"
    ) as error:
        checkpoint_folder(name, flag="--teacher_model")
    assert name in str(error.value)


def test_a_folder_wins_over_an_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="taken for the repository org/name at 'main'"):
        checkpoint_folder("org/name", flag="--model_path")
    Path("org/name").mkdir(parents=True)
    assert checkpoint_folder("org/name", flag="--model_path") == Path("org/name")
    assert pinned(Path("org/name"), flag="--model_path") == Path("org/name")
    assert commit_of(Path("org/name")) is None
    for name, revision in (("org/name", "v1"), ("org/name@v1", None)):
        with pytest.raises(InputError, match="is a folder here, which has no revision 'v1'"):
            checkpoint_folder(name, revision=revision, flag="--model_path")
    Path("org/name@v1").mkdir()
    assert checkpoint_folder("org/name@v1", flag="--model_path") == Path("org/name@v1")
    Path("org/file").touch()
    with pytest.raises(InputError, match="--model_path org/file: is a file"):
        checkpoint_folder("org/file", flag="--model_path")
    with pytest.raises(InputError, match="names the revision 'v1', and another flag asks for 'v2'"):
        checkpoint_folder("org/other@v1", revision="v2", flag="--model_path")
