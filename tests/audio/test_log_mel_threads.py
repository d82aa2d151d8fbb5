"""LogMel with its own threads: the same bits, errors found, several callers at once, and children made by fork."""

import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from arkfast.audio import LogMel
from arkfast.records import InputError


@pytest.fixture(scope="module")
def clips():
    rng = np.random.default_rng(0)
    return [(0.1 * rng.standard_normal(n)).astype(np.float32) for n in (1, 16000, 4321, 400, 8000, 15999, 24000, 160, 5000, 12345, 7, 9999)]


@pytest.mark.parametrize("threads", [1, 2, 3, 20])
@pytest.mark.parametrize("pad", ["single", "hf_batch"])
def test_threads_change_no_bit(clips, threads, pad):
    alone, frames = LogMel()(clips, pad=pad)
    together = LogMel(threads=threads)
    for _ in range(3):
        shared, same_frames = together(clips, pad=pad)
        np.testing.assert_array_equal(shared, alone)
        assert frames.tolist() == same_frames.tolist()
    halves, _ = together(clips, pad=pad, dtype="bfloat16")
    assert torch.equal(halves, LogMel()(clips, pad=pad, dtype="bfloat16")[0])


def test_one_clip_and_many_calls(clips):
    log_mel = LogMel(threads=3)
    expected = LogMel()([clips[1]])[0]
    for _ in range(200):
        np.testing.assert_array_equal(log_mel([clips[1]])[0], expected)


def test_bad_samples_are_named(clips):
    log_mel = LogMel(threads=3)
    for at, item in ((0, 1), (23999, 6), (4, 10)):
        bad = [clip.copy() for clip in clips]
        bad[item][at] = np.inf
        bad[11][5] = np.nan  # a later one must not hide the first
        with pytest.raises(InputError, match=f"waveform {item}: sample {at} "):
            log_mel(bad)
    np.testing.assert_array_equal(log_mel(clips)[0], LogMel()(clips)[0])


def test_callers_share_the_threads(clips):
    log_mel, expected, failures = LogMel(threads=3), LogMel()(clips)[0], []

    def call():
        for _ in range(10):
            if not np.array_equal(log_mel(clips)[0], expected):
                failures.append(1)

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert failures == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
def test_a_forked_child_works_alone_and_ends():
    """The child has the object but not the threads: it must neither wait for them nor hang when it lets go of the object."""
    code = """if True:
        import os, signal, warnings
        import numpy as np
        from arkfast.audio import LogMel
        warnings.simplefilter("ignore")
        clips = [np.full(8000, 0.1 * i, np.float32) for i in range(1, 7)]
        log_mel = LogMel(threads=4)
        expected = log_mel(clips)[0]
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            same = np.array_equal(log_mel(clips)[0], expected)
            del log_mel
            os._exit(0 if same else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), np.array_equal(log_mel(clips)[0], expected))
    """
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert run.stdout.split() == ["0", "True"], run.stderr
