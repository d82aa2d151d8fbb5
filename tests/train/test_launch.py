"""The launcher over ssh, with a stand-in for ssh that runs here: what reaches a host, what stops whom, and what is refused beforehand."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = ROOT / "scripts" / "launch_hostfile.sh"
WAIT = "trap 'echo saved; exit 0' TERM; echo training; while :; do sleep 0.05; done\n"


def test_every_host_trains_with_one_rendezvous_and_a_log_of_its_own(cluster) -> None:
    cluster.does("alpha", "echo alpha trains")
    cluster.does("beta", "echo beta trains; echo and warns >&2")
    done = cluster.launch(RUN_ID="night 1", MASTER_PORT="29777", MAX_RESTARTS="2")
    assert done.returncode == 0, done.stderr
    options = {}
    for host in ("alpha", "beta"):
        words = cluster.arguments(host)
        assert words[:2] == ["-m", "torch.distributed.run"]
        options[host] = dict(word.split("=", 1) for word in words[2 : words.index("scripts/train.py")])
    own = {"alpha": ("alpha", "is_host=1"), "beta": ("beta", "is_host=0")}
    for host, (address, rendezvous) in own.items():
        assert options[host].pop("--local_addr") == address
        assert options[host].pop("--rdzv_conf") == rendezvous
    assert options["alpha"] == options["beta"] == {
        "--nnodes": "2", "--nproc_per_node": "2", "--max_restarts": "2", "--rdzv_backend": "c10d", "--rdzv_id": "night 1",
        "--rdzv_endpoint": "alpha:29777",
    }  # fmt: skip
    assert (cluster.run_dir / "node_0_alpha.out").read_text() == "alpha trains\n"
    assert (cluster.run_dir / "node_1_beta.out").read_text() == "beta trains\nand warns\n"
    log = (cluster.run_dir / "launch.log").read_text()
    assert log == done.stdout
    assert log.rstrip().endswith("finished with status 0")
    assert cluster.flags("beta")["--output_dir"] == f"{cluster.run_dir}/train"
    assert cluster.flags("beta")["--resume_from_checkpoint"] == "auto", "processes that are started anew go on where the others were"


def test_the_hostfile_may_hold_comments_blank_lines_and_windows_line_ends(cluster) -> None:
    cluster.hostfile("# cluster\n\nalpha slots=4  # the first\r\n   \nroot@beta-2.lan\n#gamma slots=8")
    done = cluster.launch()
    assert done.returncode == 0, done.stderr
    assert cluster.started() == {"alpha", "root@beta-2.lan"}
    assert "--nproc_per_node=4" in cluster.arguments("alpha")
    assert "--nproc_per_node=8" in cluster.arguments("root@beta-2.lan"), "eight is the default"
    assert "--local_addr=beta-2.lan" in cluster.arguments("root@beta-2.lan")
    assert (cluster.run_dir / "node_1_root_beta-2_lan.out").exists()
    cluster.launch(NPROC_PER_NODE="3")
    assert "--nproc_per_node=3" in cluster.arguments("alpha"), "the variable wins over the file"


AWKWARD = ["two words", "it's", '{"a": ["b c", "$HOME `x` \\\\ \\""]}', "new\nline", "*", "", "--not-a-flag;rm", "ünï", "!!"]


def test_words_reach_the_trainer_as_they_are(cluster) -> None:
    words = [word for i, value in enumerate(AWKWARD) for word in (f"--flag{i}", value)]
    done = cluster.launch(*words, STUDENT_MODEL="/models/it's my student", EVAL_DATA='/data/"dev" $set.jsonl')
    assert done.returncode == 0, done.stderr
    for host in ("alpha", "beta"):
        flags = cluster.flags(host)
        assert [flags[f"--flag{i}"] for i in range(len(AWKWARD))] == AWKWARD
        assert flags["--student_model"] == "/models/it's my student"
        assert flags["--eval_data"] == '/data/"dev" $set.jsonl'


def test_settings_go_to_their_flags_and_what_is_not_set_is_the_trainers(cluster) -> None:
    done = cluster.launch("--learning_rate", "3e-5", OPD_TOP_K="16", SHUFFLE_TRAIN="False", NCCL_SOCKET_IFNAME="eth0",
                        WANDB_MODE="offline", SECRET="x", FORWARD="WANDB_MODE NOT_SET")  # fmt: skip
    assert done.returncode == 0, done.stderr
    flags = cluster.flags("beta")
    assert flags == {
        "--student_model": "/models/student", "--teacher_model": "/models/teacher", "--train_data": "/data/train.jsonl",
        "--output_dir": f"{cluster.run_dir}/train", "--per_device_train_batch_size": "40", "--shuffle_train": "False",
        "--learning_rate": "3e-5", "--lr_scheduler_type": "cosine", "--warmup_steps": "1000", "--opd_top_k": "16",
        "--asr_opd_max_new_tokens": "64", "--save_freq": "1000",
    }  # fmt: skip
    words = cluster.arguments("beta")
    assert words.count("--learning_rate") == 2, "the launcher's default stands first, and the argument wins"
    environment = cluster.environment("beta")
    assert environment["NCCL_SOCKET_IFNAME"] == "eth0"
    assert environment["NCCL_DEBUG"] == "WARN"
    assert environment["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
    assert environment["WANDB_MODE"] == "offline"
    assert environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == "5"
    assert not {"SECRET", "NOT_SET", "NCCL_SHM_DISABLE", "CUDA_VISIBLE_DEVICES", "HF_HOME"} & set(environment)


def test_every_variable_of_the_original_is_read(cluster) -> None:
    listed = json.loads((Path(__file__).parent / "original_interface.json").read_text())
    flags = {name: entry["flag"] for name, entry in listed["variables"].items() if "flag" in entry}
    forwarded = [name for name, entry in listed["variables"].items() if "forwarded" in entry]
    done = cluster.launch(**{name: f"value of {name}" for name in (*flags, *forwarded)})
    assert done.returncode == 0, done.stderr
    given, environment = cluster.flags("beta"), cluster.environment("beta")
    for name, flag in flags.items():
        assert given[flag] == f"value of {name}"
    for name in forwarded:
        assert environment[name] == f"value of {name}"
    source = LAUNCHER.read_text(encoding="utf-8")
    for name in set(listed["variables"]) - set(flags) - set(forwarded):
        assert re.search(rf"\$\{{{name}\b|\${name}\b", source), f"{name} is not read"


def test_the_page_lists_what_the_launcher_reads() -> None:
    source, page = LAUNCHER.read_text(encoding="utf-8"), (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    read = set(re.findall(r"\b[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+\b|\b(?:ROOT|PY|HOSTFILE|NNODES|FORWARD)\b", source))
    own = {"BASH_SOURCE", "PYTHONUNBUFFERED", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"}
    assert len(read - own) > 60
    assert [name for name in sorted(read - own) if not re.search(rf"`{name}`", page)] == []


def test_an_unreachable_host_keeps_all_from_starting(cluster) -> None:
    (cluster.folder / "unreachable_beta").touch()
    done = cluster.launch()
    assert done.returncode == 2
    assert "host beta: ssh cannot reach it (ssh: connect to host beta port 22: No route to host)" in done.stdout
    assert "1 of 2 hosts cannot take part; nothing was started" in done.stderr
    assert cluster.started() == set()


def test_hosts_that_differ_or_lack_something_are_all_named(cluster) -> None:
    cluster.hostfile("alpha\nbeta\ngamma\ndelta\n")
    (cluster.folder / "check_beta").write_text("echo code=2 python=3\n")
    (cluster.folder / "check_gamma").write_text("echo 'on_host: error: 4 GPUs are here, 8 are asked for' >&2; exit 1\n")
    done = cluster.launch()
    assert done.returncode == 2
    assert "host beta: has code=2 python=3, but alpha has code=1 python=3; bring both to one checkout" in done.stdout
    assert "host gamma: cannot take part (exit 1): on_host: error: 4 GPUs are here, 8 are asked for" in done.stdout
    assert "host delta" not in done.stdout
    assert "2 of 4 hosts" in done.stderr
    assert cluster.started() == set()


def test_a_checkout_that_is_not_there_is_named(cluster) -> None:
    done = cluster.launch(ROOT="/no/such/checkout")
    assert done.returncode == 2
    assert "/no/such/checkout" in next(line for line in done.stdout.splitlines() if "cannot take part" in line)


def test_a_reason_that_several_hosts_have_is_said_once(cluster) -> None:
    cluster.hostfile("alpha\nbeta\ngamma\n")
    for host in ("alpha", "gamma"):
        (cluster.folder / f"check_{host}").write_text("echo 'on_host: error: --train_data: /data/a.jsonl: cannot be read' >&2; exit 1\n")
    (cluster.folder / "check_beta").write_text("echo 'on_host: error: 4 GPUs are here, 8 are asked for' >&2; exit 1\n")
    done = cluster.launch()
    assert done.returncode == 2
    assert "host alpha, host gamma: cannot take part (exit 1): on_host: error: --train_data: /data/a.jsonl: cannot be read" in done.stdout
    assert "host beta: cannot take part (exit 1): on_host: error: 4 GPUs are here" in done.stdout
    assert done.stdout.count("/data/a.jsonl") == 1
    assert "3 of 3 hosts" in done.stderr


TORCHRUN_LAST = (
    """W1129 00:26:21.2 11662 torch/distributed/elastic/agent/api.py:1028] Sending process 11669 closing signal SIGTERM
E1129 00:26:21.3 11662 torch/distributed/elastic/multiprocessing/api.py:1002] failed (exitcode: 1) of binary: python
Traceback (most recent call last):
"""
    + "  File torch/distributed/run.py, in main\n" * 30
    + "torch.distributed.elastic.multiprocessing.errors.ChildFailedError:\n"
)


def test_the_last_lines_show_the_cause_and_not_torchruns_traceback(cluster) -> None:
    (cluster.folder / "log").write_text("step 3 of 9\narkfast train: error: the teacher is deaf\n" + TORCHRUN_LAST)
    cluster.does("beta", f"cat '{cluster.folder / 'log'}'; exit 1")
    cluster.does("alpha", WAIT)
    done = cluster.launch()
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("step 3 of 9\narkfast train: error: the teacher is deaf")
    assert "Traceback" not in done.stderr
    assert "Traceback" in (cluster.run_dir / "node_1_beta.out").read_text(), "the whole log is kept"


def test_one_failing_host_stops_the_others(cluster) -> None:
    cluster.hostfile("alpha\nbeta\ngamma\n")
    cluster.does("alpha", WAIT)
    cluster.does("beta", f"while [ ! -s '{cluster.run_dir}/node_0_alpha.out' ]; do sleep 0.05; done; echo out of memory; exit 3")
    cluster.does("gamma", "exit 0")
    done = cluster.launch()
    assert done.returncode == 1
    assert "host beta: ended with 3" in done.stdout
    assert "host beta failed; stopping all hosts" in done.stdout
    assert "out of memory" in done.stderr, "the failed host's last lines are shown"
    assert (cluster.run_dir / "node_0_alpha.out").read_text().startswith("training\n")
    assert "saved\n" in (cluster.run_dir / "node_0_alpha.out").read_text(), "it was asked to stop, not killed"
    assert cluster.ended("alpha")


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130), pytest.param("SIGHUP", 129, marks=pytest.mark.slow)])
def test_a_signal_stops_all_hosts_and_waits_for_them(cluster, name: str, code: int) -> None:
    for host in ("alpha", "beta"):
        cluster.does(host, "trap 'sleep 0.3; echo saved; exit 0' TERM; echo training; while :; do sleep 0.05; done")
    process = cluster.start()
    cluster.wait_for("alpha", "beta")
    process.send_signal(getattr(signal, name))
    out, _ = process.communicate(timeout=120)
    assert process.returncode == code
    assert "stopping all hosts" in out
    for i, host in enumerate(("alpha", "beta")):
        assert "saved" in (cluster.run_dir / f"node_{i}_{host}.out").read_text(), "the launcher waited for the last checkpoint"
        assert cluster.ended(host)


def test_hosts_stop_when_the_launcher_is_killed(cluster) -> None:
    cluster.does("alpha", WAIT)
    cluster.does("beta", WAIT)
    process = cluster.start()
    cluster.wait_for("alpha", "beta")
    process.kill()
    process.wait()
    assert cluster.ended("alpha")
    assert cluster.ended("beta")


def test_what_does_not_stop_is_killed_with_its_children(cluster) -> None:
    """A command that ignores the signal, and a child in a session of its own, as torchrun's workers are."""
    child = cluster.folder / "child.pid"
    inner = f"setsid sh -c {shlex.quote(f'echo $$ >{shlex.quote(str(child))}; exec sleep 300')} & trap '' TERM; sleep 300 & wait"
    command = [sys.executable, ROOT / "scripts" / "on_host.py", "run", "--grace", "0.3", "--", "bash", "-c", inner]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (child.exists() and child.read_text().strip()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.stdin.close()
    assert process.wait(120) == 128 + signal.SIGKILL
    (cluster.folder / "child.pid").rename(cluster.folder / "orphan.pid")
    assert cluster.ended("orphan")


@pytest.mark.slow
def test_the_check_reads_the_code_the_port_and_the_flags(cluster) -> None:
    from arkfast.testing import tiny_checkpoint

    (cluster.folder / "check_for_real").touch()
    cluster.hostfile("alpha slots=1\n")
    tiny_checkpoint(cluster.folder / "student", seed=1)
    (cluster.folder / "train.jsonl").write_text("{}\n")
    there = {"STUDENT_MODEL": str(cluster.folder / "student"), "TEACHER_MODEL": str(cluster.folder / "student"),
             "TRAIN_DATA": str(cluster.folder / "train.jsonl")}  # fmt: skip
    done = cluster.launch("--device", "cpu", QWEN3_ASR_CODE_PATH="/code", **there)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "checked: code=" in done.stdout
    cluster.hostfile("alpha slots=1\nbeta slots=1\n")
    absent = cluster.launch("--device", "cpu", **{**there, "TRAIN_DATA": "/data/absent.jsonl"})
    assert absent.returncode == 2
    assert "host alpha, host beta: cannot take part (exit 1): on_host: error: --train_data: /data/absent.jsonl: cannot be" in absent.stdout
    cluster.hostfile("alpha slots=1\n")
    wrong = cluster.launch("--device", "cpu", "--learning_rat", "1")
    assert wrong.returncode == 2
    assert "unknown flag --learning_rat; did you mean learning_rate" in wrong.stdout
    rate = cluster.launch("--device", "cpu", "--sampling_rate", "8000")
    assert "on_host: error: --sampling_rate 8000: the models hear 16000 Hz" in rate.stdout
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        busy = cluster.launch("--device=cpu", MASTER_PORT=str(port))
    assert busy.returncode == 2
    assert f"port {port} is taken here; set MASTER_PORT" in busy.stdout


def test_the_codes_fingerprint_covers_kernels_and_is_the_same_for_links_and_folders(tmp_path) -> None:
    checkout, installed = tmp_path / "checkout", tmp_path / "installed"
    for folder in (checkout / "kernels" / "common", checkout / "arkfast" / "kernels", installed / "arkfast" / "kernels" / "common"):
        folder.mkdir(parents=True)
    (checkout / "arkfast" / "kernels" / "common").symlink_to("../../kernels/common")
    for root in (checkout, installed):
        (root / "arkfast" / "__init__.py").write_text("")
        (root / "arkfast" / "kernels" / "common" / "__init__.py").write_text("x = 1\n")

    def fingerprint(root: Path) -> str:
        code = f"import sys; sys.path[:0] = ['{root}', '{ROOT}/scripts']; import on_host; print(on_host.fingerprint())"
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    before = fingerprint(checkout)
    assert fingerprint(installed) == before
    (checkout / "kernels" / "common" / "__init__.py").write_text("x = 2\n")
    assert fingerprint(checkout) != before


def test_a_torchrun_that_keeps_its_own_grace_is_named_once(cluster) -> None:
    torch = cluster.folder / "old" / "torch"
    (torch / "distributed" / "launcher").mkdir(parents=True)
    (torch / "__init__.py").touch()
    launcher = torch / "distributed" / "launcher" / "api.py"
    launcher.write_text("timeout = 30\n")
    script = (
        f"import sys; sys.path[:0] = ['{ROOT}/scripts', '{torch.parent}']; import on_host; on_host.checked = lambda **_: 'code=1'; "
        "sys.exit(on_host.main(sys.argv[1:]))"
    )
    for host in ("alpha", "beta"):
        (cluster.folder / f"check_{host}").write_text(f'shift; exec {shlex.join([sys.executable, "-c", script])} "$@"\n')
    said = "kills what torchrun started 30 s after SIGTERM, whatever STOP_GRACE is (90 s here)"
    done = cluster.launch(STOP_GRACE="90")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(said) == 1
    assert said not in cluster.launch(STOP_GRACE="30").stdout
    launcher.write_text('os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "30")\n')
    assert said not in cluster.launch(STOP_GRACE="90").stdout


@pytest.mark.parametrize(
    ("variables", "hostfile", "message"),
    [
        ({"HOSTFILE": "unset"}, "alpha\n", "set HOSTFILE to a file"),
        ({"STUDENT_MODEL": "unset"}, "alpha\n", "set STUDENT_MODEL"),
        ({"TRAIN_DATA": "unset"}, "alpha\n", "set TRAIN_DATA"),
        ({"HOSTFILE": "/absent"}, "alpha\n", "HOSTFILE /absent: cannot be read"),
        ({}, "# nobody\n\n", "names no host"),
        ({}, "alpha\nbeta gpus=8\n", ":2: 'gpus=8' is not understood"),
        ({}, "alpha slots=none\n", ":1: slots 'none' is not a number above 0"),
        ({}, "alpha\nbeta\nalpha\n", ":3: 'alpha' stands there twice"),
        ({"NNODES": "3"}, "alpha\nbeta\n", "NNODES is 3, but"),
        ({"RUN_DIR": "/tmp/x", "OUTPUT_DIR": "/tmp/x/"}, "alpha\n", "OUTPUT_DIR is RUN_DIR"),
    ],
)
def test_wrong_settings_are_named_before_any_host_is_asked(cluster, variables: dict[str, str], hostfile: str, message: str) -> None:
    cluster.hostfile(hostfile)
    done = cluster.launch(**variables)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (cluster.folder / "calls").exists()


def test_the_originals_paths_lead_here(cluster) -> None:
    shim = ROOT / "scripts" / "run" / "run_ark_asr_opd_fsdp2_resume_hostfile.sh"
    done = subprocess.run(["bash", shim], capture_output=True, text=True, env={"PATH": os.environ["PATH"]}, cwd=cluster.folder)
    assert done.returncode == 2
    assert "set HOSTFILE to a file" in done.stderr
    trainer = ROOT / "scripts" / "train" / "train_ark_asr_opd_fsdp2_resume.py"
    done = subprocess.run([sys.executable, trainer, "--help"], capture_output=True, text=True, cwd=cluster.folder)
    assert done.returncode == 0
    assert done.stdout.startswith("usage: arkfast train")


def test_the_example_hostfile_is_one(cluster) -> None:
    cluster.hostfile((ROOT / "configs" / "hostfile.example").read_text())
    assert cluster.launch().returncode == 0
    assert cluster.started() == {"node-a", "node-b"}


@pytest.mark.parametrize("code", [1, 0])
def test_the_slurm_example_starts_torchrun_on_every_node_and_goes_back_into_the_queue_unless_it_is_done(cluster, code) -> None:
    stand_ins = {
        "srun": f"printf '%s\\0' \"$@\" >'{cluster.folder}/srun.args'; trap 'exit {code}' TERM; echo training; while :; do sleep 0.1; done",
        "scontrol": f"if [ \"$1\" = show ]; then printf 'node-a\\nnode-b\\n'; else echo \"$*\" >>'{cluster.folder}/scontrol'; fi",
        "scancel": f"echo \"$*\" >>'{cluster.folder}/scancel'; kill -TERM $(cat '{cluster.folder}/srun.pid')",
    }
    for name, text in stand_ins.items():
        path = cluster.folder / "bin" / name
        path.write_text(f"#!/usr/bin/env bash\necho $$ >'{cluster.folder}/{name}.pid'\n{text}\n")
        path.chmod(0o755)
    slurm = {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_JOB_NUM_NODES": "2",
             "SLURM_GPUS_ON_NODE": "4", "PATH": f"{cluster.folder / 'bin'}:{os.environ['PATH']}"}  # fmt: skip
    command = ["bash", ROOT / "scripts" / "slurm_train.sbatch", "--student_model", "/my models/s"]
    process = subprocess.Popen(command, env=slurm, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "training\n"
    process.send_signal(signal.SIGTERM)
    process.wait(120)
    words = (cluster.folder / "srun.args").read_text().split("\0")[:-1]
    assert words[words.index("-m") + 1] == "torch.distributed.run"
    assert {"--nnodes=2", "--nproc_per_node=4", "--rdzv_endpoint=node-a:29503", "--rdzv_id=7"} <= set(words)
    assert words[words.index("scripts/train.py") + 1 :] == ["--resume_from_checkpoint", "auto", "--student_model", "/my models/s"]
    assert (cluster.folder / "scancel").read_text() == "--signal=TERM 7\n"
    assert process.returncode == code
    requeued = cluster.folder / "scontrol"
    assert (requeued.read_text() if requeued.exists() else "") == ("requeue 7\n" if code else "")
