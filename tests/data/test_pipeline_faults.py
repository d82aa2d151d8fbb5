"""Workers that die or hang cost at most the clip that does it, after a second try; nothing stays behind when the consumer goes."""

import functools
import gc
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from arkfast.audio import LogMel
from arkfast.data.pipeline import FeaturePipeline
from arkfast.data.pool import Pool
from arkfast.data.worker import Features
from arkfast.records import InputError, Utterance

pytestmark = pytest.mark.skipif(os.name != "posix", reason="feature workers need POSIX")

HELPERS = """
import ctypes, os, signal, time
from pathlib import Path

def pid(waveform):
    return os.getpid()

def signals(waveform):
    kinds = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    return os.getpid(), signal.pthread_sigmask(signal.SIG_BLOCK, []), kinds

def unsendable(waveform):
    return lambda: None

def slow_pid(waveform):
    time.sleep(0.05)
    return os.getpid()

def trap(folder, kind, times, which, waveform):
    "Does what ``kind`` says at the clips of length 500 + ``which``, the first ``times`` times, and counts it in ``folder``."
    clip = len(waveform) - 500
    if clip not in which:
        return os.getpid()
    before = len(list(Path(folder).glob(f"{clip}.*")))
    if before >= times:
        return os.getpid()
    (Path(folder) / f"{clip}.{before}").write_text(str(os.getpid()))
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "segfault":
        os.close(2)  # faulthandler's report of it is not this test's output
        ctypes.string_at(0)
    if kind == "exit":
        os._exit(3)
    if kind == "memory":
        raise MemoryError
    if kind == "hang":
        time.sleep(3600)
    if kind == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if kind == "orphan":
        if os.fork() == 0:  # a child that holds the worker's pipes open
            time.sleep(15)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds a module that workers can import, as a user's extractor would be."""
    folder = tmp_path_factory.mktemp("helpers")
    (folder / "pipeline_faults.py").write_text(HELPERS)
    return folder


@pytest.fixture(scope="module")
def faults(folder):
    sys.path.insert(0, str(folder))
    import pipeline_faults

    yield pipeline_faults
    sys.path.remove(str(folder))
    del sys.modules["pipeline_faults"]


def clips(count):
    return [Utterance(id=str(i), audio=np.full(500 + i, 0.1, dtype=np.float32)) for i in range(count)]


def pipeline(prepare, **options):
    return FeaturePipeline(LogMel(8), **{"workers": 2, "prefetch": 4, "prepare": prepare, "on_bad_audio": "skip:1", **options})


def alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def gone(processes, seconds=60.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(map(alive, processes)):
        time.sleep(0.02)
    return not any(map(alive, processes))


def descriptors():
    """What this process has open: pipes, files, and the workers' memory, which only its descriptors keep."""
    found = []
    for path in Path("/proc/self/fd").glob("*"):
        with suppress(FileNotFoundError):  # the descriptor that lists them
            found.append((int(path.name), os.readlink(path)))
    return sorted(found)


DEATHS = {
    "kill": r"died \(SIGKILL",
    "segfault": r"died \(SIGSEGV\)",
    "exit": r"died \(exit status 3\)",
    "memory": r"died \(out of memory\)",
    "hang": r"took over 1 s",
    "stop": r"took over 1 s",
}


def limit(kind):
    """A limit as short as a busy machine bears, where one is to be reached."""
    return {"timeout": 1.0} if kind in ("hang", "stop") else {}


@pytest.mark.parametrize("kind", ["kill", "memory", "stop"])
def test_a_clip_that_ends_its_worker_once_is_delivered(faults, tmp_path, kind):
    trap = functools.partial(faults.trap, tmp_path, kind, 1, {3, 11})
    found = list(pipeline(trap, **limit(kind)).features(clips(24)))
    assert [item.utterance.id for item in found] == [str(i) for i in range(24)]
    reference = LogMel(8)
    for item in found:
        assert np.array_equal(item.features, reference([item.utterance.audio])[0][0])
    dead = {int(path.read_text()) for path in tmp_path.iterdir()}
    assert len(dead) == 2
    assert dead.isdisjoint(item.prepared for item in found[12:])
    assert gone(dead)


@pytest.mark.parametrize(("kind", "reason"), DEATHS.items())
def test_a_clip_that_ends_its_worker_twice_is_reported(faults, tmp_path, kind, reason):
    trap = functools.partial(faults.trap, tmp_path, kind, 99, {0, 6} if kind in ("hang", "stop") else {0, 5, 6})
    found = list(pipeline(trap, **limit(kind)).features(clips(16)))
    assert [item.utterance.id for item in found] == [str(i) for i in range(16)]
    bad = {i: str(item.features) for i, item in enumerate(found) if isinstance(item.features, InputError)}
    assert list(bad) == sorted(trap.args[3]), "their neighbours, which the same workers were to do, are unharmed"
    for i, message in bad.items():
        assert message.startswith(f"{i}: given up: the worker at it ")
        assert len(list(tmp_path.glob(f"{i}.*"))) == 2, "tried twice, not more"
        assert re.search(rf"{reason}.* and the next {reason}", message), message


def test_the_clip_that_did_it_is_blamed_though_nobody_was_looking(faults, tmp_path):
    """The worker does some clips and dies at one while the consumer is away, who then finds its pipe broken before its replies."""
    trap = functools.partial(faults.trap, tmp_path, "kill", 99, {5})
    found, items = pipeline(trap, workers=1, prefetch=8).features(clips(30)), []
    for item in found:
        items.append(item)
        if len(items) == 1:
            time.sleep(1.0)
    assert [item.utterance.id for item in items if isinstance(item.features, InputError)] == ["5"]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_poison_clip_fails_the_run_in_its_turn(faults, tmp_path):
    found = pipeline(functools.partial(faults.trap, tmp_path, "kill", 99, {4}), on_bad_audio="fail").features(clips(9))
    assert [next(found).utterance.id for _ in range(4)] == ["0", "1", "2", "3"]
    with pytest.raises(InputError, match=r"^4: given up"):
        next(found)


def test_workers_killed_from_outside_cost_nothing(faults):
    """While the consumer is away, and while it waits; whatever they were at is done again."""
    found = pipeline(faults.slow_pid).features(clips(60))
    items = [next(found)]
    for _ in range(2):
        for process in {item.prepared for item in items} - {None}:
            if alive(process):
                os.kill(process, signal.SIGKILL)
        items += [next(found) for _ in range(15)]
    items += list(found)
    assert [item.utterance.id for item in items] == [str(i) for i in range(60)]
    assert all(isinstance(item.features, np.ndarray) for item in items)


def test_a_consumer_that_stays_away_is_not_a_hang(faults):
    """The window was finished long ago; time that nobody waited for is not held against a worker."""
    found = pipeline(faults.pid, timeout=3.0, on_bad_audio="fail").features(clips(24))
    seen = set()
    for i, item in enumerate(found):
        seen.add(item.prepared)
        if i == 2:
            time.sleep(4.5)
    assert len(seen) <= 2, "no worker was replaced"


def test_a_child_that_holds_the_pipe_does_not_hide_a_death(faults, tmp_path):
    started = time.monotonic()
    found = list(pipeline(functools.partial(faults.trap, tmp_path, "orphan", 1, {2})).features(clips(6)))
    assert all(isinstance(item.features, np.ndarray) for item in found)
    assert time.monotonic() - started < 15, "noticed before the child ended"


@pytest.mark.parametrize("how", ["closed", "dropped", "consumer raised", "exhausted", "poison"])
def test_nothing_stays_behind(faults, tmp_path, how):
    gc.collect()
    before = descriptors()
    processes = set()

    def consume(found):
        for i, item in enumerate(found):
            processes.add(item.prepared)
            if how == "consumer raised" and i == 7:
                raise KeyError("the consumer's own fault")
            if how in ("closed", "dropped") and i == 7:
                return

    prepare = functools.partial(faults.trap, tmp_path, "kill", 99, {9}) if how == "poison" else faults.slow_pid
    found = pipeline(prepare, on_bad_audio="fail").features(clips(30))
    if how in ("consumer raised", "poison"):
        with pytest.raises(KeyError if how == "consumer raised" else InputError):
            consume(found)
    else:
        consume(found)
    if how == "closed":
        found.close()
    del found
    gc.collect()
    assert len(processes) == 2 or how == "poison"
    assert gone(processes)
    assert descriptors() == before


CONSUMER = """
import sys
sys.path.insert(0, sys.argv[1])
import functools, os, time
import numpy as np
import pipeline_faults as faults
from arkfast.audio import LogMel
from arkfast.data.pipeline import FeaturePipeline
from arkfast.records import Utterance

prepare = functools.partial(faults.trap, sys.argv[2], sys.argv[3], 99, {6})
clips = (Utterance(id=str(i), audio=np.full(500 + i, 0.1, dtype=np.float32)) for i in range(10**6))
for i, item in enumerate(FeaturePipeline(LogMel(8), workers=2, prefetch=4, prepare=prepare).features(clips)):
    print(item.prepared, flush=True)
    if i == 5:
        time.sleep(0.3 if sys.argv[3] == "hang" else 0)
        print("now", flush=True)
"""


@pytest.mark.parametrize(
    ("kind", "end"),
    [("nothing", signal.SIGKILL), ("nothing", signal.SIGINT), ("nothing", signal.SIGTERM), ("hang", signal.SIGKILL)],
)
def test_workers_end_with_a_consumer_that_is_killed(folder, tmp_path, kind, end):
    """Also one that hangs in a clip, and never looks at its pipe again."""
    command = [sys.executable, "-c", CONSUMER, str(folder), str(tmp_path), kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as consumer:
        assert consumer.stdout is not None
        lines = []
        while not lines or lines[-1] != "now":
            line = consumer.stdout.readline()
            assert line, "the consumer ended early"
            lines.append(line.strip())
        consumer.send_signal(end)
        consumer.stdout.close()
        consumer.wait(timeout=120)
    processes = {int(line) for line in lines if line.isdigit()}
    assert processes
    assert gone(processes)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_the_notice_before_a_kill_are_the_consumers_to_handle(faults, number):
    """Whoever sends them may send them to every process; workers go on until the consumer decides."""
    found = pipeline(faults.slow_pid).features(clips(20))
    first = next(found)
    os.kill(first.prepared, number)
    items = [first, *found]
    assert len({item.prepared for item in items}) == 2
    assert len(items) == 20


def test_a_worker_ignores_them_before_it_has_imported_anything(faults):
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with Pool(Features(LogMel(8), 1.0, faults.signals), 1, 2, 60.0) as pool:
        process = pool._start().process
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(process.pid, number)
        assert os.getsid(process.pid) == process.pid, "a signal to the consumer's group passes it by"
        _, prepared, *_ = pool.take(pool.submit(clips(1)[0]))
    assert prepared == (process.pid, set(), [signal.SIG_IGN] * 2)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
    assert gone({process.pid})


GROUP = """
import os, signal, sys, threading, time
sys.path.insert(0, sys.argv[1])
heard = []
signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
import numpy as np
import pipeline_faults as faults
from arkfast.audio import LogMel
from arkfast.data.pipeline import FeaturePipeline
from arkfast.records import Utterance

clips = [Utterance(id=str(i), audio=np.full(500 + i, 0.1, dtype=np.float32)) for i in range(40)]
workers = []
for i, item in enumerate(FeaturePipeline(LogMel(8), workers=2, prefetch=4, prepare=faults.slow_pid).features(clips)):
    workers.append(item.prepared)
    if i % 10 == 5:
        os.killpg(0, signal.SIGTERM)
print(len(workers), len(set(workers)), len(heard))
"""


def test_a_notice_to_the_process_group_costs_no_clip(folder):
    """As torchrun sends it: the consumer finishes what it has begun, with the workers that it had."""
    command = [sys.executable, "-c", GROUP, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, start_new_session=True)
    assert done.stdout.split() == ["40", "2", "4"], done.stderr


@pytest.mark.parametrize("rule", ["fail", "skip:1"])
def test_a_result_that_cannot_be_sent_is_not_the_clips_fault(faults, rule):
    found = pipeline(faults.unsendable, on_bad_audio=rule).features(clips(3))
    with pytest.raises(TypeError, match=r"^prepare's result cannot be sent from a worker \(.*lambda") as raised:
        list(found)
    assert "in a feature worker, at 0:" in str(raised.value.__cause__)


def test_workers_that_cannot_start_are_an_error_at_once(faults, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match=r"feature workers cannot start: 3 in a row died \(exit status 1\)"):
        list(pipeline(faults.pid).features(clips(3)))
    before = descriptors()
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(FileNotFoundError):
        list(pipeline(faults.pid).features(clips(3)))
    gc.collect()
    assert descriptors() == before
