"""The pipeline gives what a plain loop gives, to the bit and in order, whatever its workers do in which order; bad clips are never lost."""

import functools
import itertools
import pickle
import sys

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from arkfast.audio import LogMel
from arkfast.data import extract
from arkfast.data.pipeline import BadAudioPolicy, FeatureItem, FeaturePipeline
from arkfast.data.worker import Features, dump, load
from arkfast.records import InputError, Utterance

HELPERS = """
import os, sys, threading, time
import numpy as np

def late(waveform):
    "Takes a time that differs from clip to clip and from process to process."
    time.sleep((os.getpid() * 31 + len(waveform) * 17) % 23 / 1000)
    return os.getpid()

def state(waveform):
    return {"torch": "torch" in sys.modules, "main": "__mp_main__" in sys.modules, "cpu": time.process_time()}

def statistics(waveform):
    return {"mean": waveform.mean(dtype=np.float64), "spectrum": np.abs(np.fft.rfft(waveform[:512])), "n": len(waveform)}

def huge(waveform):
    return np.arange(1_000_000) * len(waveform)

def wrong(waveform):
    raise TypeError(f"cannot use {len(waveform)} samples")

class Odd(Exception):
    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")

def odd(waveform):
    raise Odd(1, 2)

def missing(waveform):
    import a_package_that_nobody_has
"""


@pytest.fixture(scope="module")
def helpers(tmp_path_factory):
    """A module that workers can import, as a user's extractor would be."""
    folder = tmp_path_factory.mktemp("helpers")
    (folder / "pipeline_helpers.py").write_text(HELPERS)
    sys.path.insert(0, str(folder))
    import pipeline_helpers

    yield pipeline_helpers
    sys.path.remove(str(folder))
    del sys.modules["pipeline_helpers"]


def speech(seconds, rate=16000, seed=0):
    return (0.1 * np.random.default_rng(seed).standard_normal(round(seconds * rate))).astype(np.float32)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Utterances of every kind that the line takes, bad ones among them."""
    root = tmp_path_factory.mktemp("corpus")
    found = []
    for i in range(6):
        soundfile.write(root / f"{i}.wav", speech(0.3 + 0.37 * i, seed=i), 16000)
        found.append(Utterance(id=f"wav{i}", audio=str(root / f"{i}.wav"), text="words", extra={"any": object()}))
    soundfile.write(root / "stereo.flac", np.stack([speech(2, 44100, 7), speech(2, 44100, 8)], 1), 44100)
    soundfile.write(root / "a.mp3", speech(1.5, 48000, 9), 48000)
    found += [
        Utterance(id="flac", audio=str(root / "stereo.flac")),
        Utterance(id="segment", audio=str(root / "stereo.flac"), begin=0.5, end=1.25),
        Utterance(id="mp3", audio=str(root / "a.mp3"), where="list.jsonl:9"),
        Utterance(id="absent", audio=str(root / "absent.wav"), where="list.jsonl:10"),
        Utterance(id="second channel", audio=str(root / "stereo.flac"), channel=(1,)),
        Utterance(id="silent", audio=np.zeros(1000, dtype=np.float32)),
        Utterance(id="array", audio=speech(0.7, seed=10)),
        Utterance(id="cut array", audio=speech(3, seed=11), begin=1.0, end=1.5),
        Utterance(id="int16", audio=(speech(0.5, seed=12) * 32767).astype(np.int16)),
        Utterance(id="strided", audio=speech(2, seed=13)[::2]),
        Utterance(id="nan", audio=np.full(5000, np.nan, dtype=np.float32)),
        Utterance(id="empty", audio=np.empty(0, dtype=np.float32)),
        Utterance(id="too long", audio=speech(9, seed=14)),
        Utterance(id="far too long", audio=np.zeros(200 * 16000, dtype=np.float32)),  # more than a slot
    ]
    return found


DOUBTS = {"silent": ("digital silence: every sample is 0", "a clip of 0.062 s is too short for a word")}
USED = {
    "flac": {"channel": "average", "channels": 2},
    "segment": {"channel": "average", "channels": 2},
    "second channel": {"channel": 1, "channels": 2},
}


def bits(prepared):
    return prepared and {name: np.asarray(value).tobytes() for name, value in prepared.items()}


def clips(count, bad=()):
    """Short clips that tell themselves apart by length; a bad one holds NaN."""
    return [Utterance(id=str(i), audio=np.full(500 + i, np.nan if i in bad else 0.1, dtype=np.float32)) for i in range(count)]


def pipeline(workers=2, **options):
    return FeaturePipeline(**{"log_mel": LogMel(8), "workers": workers, "prefetch": 4, "max_seconds": 2.0, **options})


@pytest.mark.parametrize("workers", [1, 3])
def test_same_as_a_plain_loop_to_the_bit(corpus, workers, helpers):
    log_mel = LogMel()
    options = {"log_mel": log_mel, "max_seconds": 5.0, "on_bad_audio": "skip:1"}
    for prepare in (None, helpers.statistics):
        found = list(pipeline(workers, prepare=prepare, **options).features(corpus))
        assert [item.utterance for item in found] == corpus
        assert all(a.utterance is b for a, b in zip(found, corpus, strict=True)), "the row itself, with its text and extra fields"
        failed = []
        for item in found:
            try:
                expected = extract(item.utterance, log_mel, max_seconds=5.0)
            except InputError as error:
                failed.append(item.utterance.id)
                expected = str(error)
            if isinstance(expected, str):
                assert isinstance(item.features, InputError)
                assert str(item.features) == expected
                assert item.utterance.name in expected
                continue
            assert item.warnings == DOUBTS.get(item.utterance.id, ())
            assert item.used == USED.get(item.utterance.id, {})
            assert item.features.dtype == np.float32
            assert item.features.shape == expected.shape
            assert item.features.tobytes() == expected.tobytes()
            item.features[:] = 0  # the consumer's own memory: written here, it must not appear anywhere else
        assert failed == ["absent", "nan", "empty", "too long", "far too long"]
        here = list(pipeline(0, prepare=prepare, **options).features(corpus))
        for a, b in zip(found, here, strict=True):
            assert bits(a.prepared) == bits(b.prepared)
            assert (a.prepared is None) == (prepare is None or isinstance(a.features, InputError))


def test_the_second_extractor_sees_the_waveform_that_the_first_saw(corpus, helpers):
    (item,) = pipeline(1, log_mel=LogMel(), prepare=helpers.statistics).features([corpus[7]])
    assert item.prepared["n"] == 12000, "0.75 s, cut and resampled"
    assert item.features.shape == (128, 75)


def test_workers_have_the_consumers_instruction_set_and_no_threads():
    log_mel = LogMel(8, threads=3)
    if log_mel.backend == "c++":
        from arkfast._C import instruction_sets

        log_mel = LogMel(8, threads=3, instruction_set=instruction_sets()[0])
    there = pickle.loads(pickle.dumps(Features(log_mel, 2.0, None))).log_mel
    assert (there.n_mels, there.threads, there.instruction_set) == (8, 0, log_mel.instruction_set)
    utterances = clips(20)
    for item in pipeline(2, log_mel=log_mel).features(utterances):
        assert item.features.tobytes() == extract(item.utterance, log_mel).tobytes()


def test_order_does_not_depend_on_timing(helpers):
    utterances = clips(120, bad={7, 30})
    found = list(pipeline(4, prefetch=6, prepare=helpers.late, on_bad_audio="skip:1").features(utterances))
    assert [item.utterance.id for item in found] == [u.id for u in utterances]
    assert len({item.prepared for item in found} - {None}) == 4, "four processes took part"
    for item, u in zip(found, utterances, strict=True):
        assert isinstance(item.features, InputError) == (u.id in ("7", "30"))


def test_items_are_read_no_further_than_the_window():
    read = itertools.count()
    last = 0

    def source():
        nonlocal last
        for u in clips(60):
            last = next(read)
            yield u

    for i, _ in enumerate(pipeline(2, prefetch=3).features(source())):
        assert last <= i + 2 * 3
    assert last == 59


def test_known_items_pass_in_their_places_and_start_no_worker(monkeypatch):
    known = [FeatureItem(u, np.full((8, 3), 1.5, dtype=np.float32), "kept") for u in clips(30)]
    with monkeypatch.context() as patched:
        patched.setattr(sys, "executable", "/nowhere/python")
        assert list(pipeline().features(known)) == known
    mixed = [item if i % 3 else item.utterance for i, item in enumerate(known)]
    for i, item in enumerate(pipeline().features(mixed)):
        assert item.utterance.id == str(i)
        assert (item is known[i]) == bool(i % 3)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_the_source_comes_after_the_items_before(workers):
    def source():
        yield from clips(3)
        raise OSError("the manifest's disk is gone")

    found = pipeline(workers).features(source())
    assert [next(found).utterance.id for _ in range(3)] == ["0", "1", "2"]
    with pytest.raises(OSError, match="disk is gone"):
        next(found)


@pytest.mark.parametrize("workers", [0, 2])
def test_fail_raises_in_the_items_turn(workers):
    found = pipeline(workers).features(clips(9, bad={4, 6}))
    assert [next(found).utterance.id for _ in range(4)] == ["0", "1", "2", "3"]
    with pytest.raises(InputError, match=r"^4: waveform 0: sample 0"):
        next(found)
    with pytest.raises(StopIteration):
        next(found)


@pytest.mark.parametrize("workers", [0, 2])
def test_with_one_in_twenty_bad_all_good_ones_come_and_the_bad_ones_are_listed(workers, tmp_path):
    random = np.random.default_rng(0)
    bad = set(random.choice(200, 10, replace=False).tolist())
    damage = itertools.cycle([b"", b"no audio at all", None])
    utterances = []
    for i in range(200):
        path = tmp_path / f"{i}.wav"
        if i not in bad:
            soundfile.write(path, speech(0.05 + i / 1000, seed=i), 16000)
        elif (content := next(damage)) is not None:
            path.write_bytes(content)
        utterances.append(Utterance(id=str(i), audio=str(path)))
    listed = []
    policy = BadAudioPolicy("skip:0.05", rows=200, on_skip=lambda u, error: listed.append((u.id, str(error))))
    found = list(pipeline(workers, on_bad_audio=policy).features(utterances))
    good = [item.utterance.id for item in found if not isinstance(item.features, InputError)]
    assert good == [str(i) for i in range(200) if i not in bad]
    assert [name for name, _ in listed] == [str(i) for i in sorted(bad)]
    assert all(f"{name}.wav: " in message for name, message in listed)
    assert (policy.seen, policy.skipped) == (200, 10)


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_bad_ones_end_the_run_at_the_same_row_whatever_the_timing(workers):
    """Of 40 rows 5 % are 2, so the third bad one is the last."""
    found, seen = pipeline(workers, on_bad_audio=BadAudioPolicy("skip:0.05", rows=40)).features(clips(40, bad={3, 5, 20, 21})), []
    with pytest.raises(InputError, match=r"3 of 21 clips so far are bad, over the limit of skip:0.05; the last: 20: "):
        seen.extend(item.utterance.id for item in found)
    assert seen == [str(i) for i in range(20)]


def verdict(bad_at, ratio, rows=None):
    """The row of 3000 at which a policy gives up."""
    policy = BadAudioPolicy(f"skip:{ratio}", rows=rows)
    for i in range(3000):
        try:
            policy.judge(FeatureItem(None, InputError("bad") if i in bad_at else np.zeros(1)))
        except InputError:
            return i
    return None


def test_the_verdict_is_about_the_whole_set_where_its_size_is_known():
    assert verdict({0, 1, 100, 101, 200}, 0.02, rows=100) is None, "two of a hundred in each epoch, wherever they stand"
    assert verdict({0, 1, 100, 101, 199}, 0.02, rows=100) == 199
    assert verdict(set(range(0, 3000, 100)), 0.01, rows=1500) is None
    assert verdict({0}, 0.001, rows=500) == 0


def test_the_verdict_on_a_stream_waits_for_enough_rows():
    assert verdict({0}, 0.001) is None, "one bad row at the very start is one of a thousand"
    assert verdict({0, 1}, 0.001) == 1
    assert verdict({0, 2000}, 0.001) is None
    assert verdict(range(3000), 1) is None
    assert verdict({5}, 0) == 5


@pytest.mark.parametrize("rule", ["", "skip", "skip:", "skip:2", "skip:-0.1", "skip:nan", "Fail", "drop:0.1"])
def test_rules_of_no_known_form_are_named(rule):
    with pytest.raises(ValueError, match=r"expected fail or skip:<max ratio> such as skip:0.01, got"):
        BadAudioPolicy(rule)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_extractors_own_fault_is_not_the_clips(workers, helpers):
    """It stops the run even where bad clips are skipped, and says where it happened."""
    for prepare, kind, message in (
        (helpers.wrong, TypeError, "cannot use 500 samples"),
        (helpers.missing, ModuleNotFoundError, "a_package_that_nobody_has"),
        (helpers.odd, RuntimeError if workers else helpers.Odd, "1 and 2"),
    ):
        with pytest.raises(kind, match=message) as raised:
            list(pipeline(workers, prepare=prepare, on_bad_audio="skip:1").features(clips(3)))
        if workers:
            assert f"in {prepare.__name__}" in str(raised.value.__cause__), "the worker's traceback"
        if kind is ModuleNotFoundError:
            assert raised.value.name == "a_package_that_nobody_has"


def test_extractors_that_cannot_travel_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"prepare cannot be sent to workers .*; give a function of a module"):
        pipeline(prepare=lambda waveform: None)
    (tmp_path / "here_only.py").write_text("def f(waveform): return 1\n")
    with monkeypatch.context() as patched:
        patched.syspath_prepend(tmp_path)
        import here_only
    with pytest.raises(RuntimeError, match=r"(?s)cannot load its extractors; define them in a module.*here_only"):
        list(pipeline(prepare=here_only.f).features(clips(3)))


def test_workers_start_light(helpers):
    """Torch and the caller's main module stay out. CPU time, since a busy machine stretches any other."""
    for item in pipeline(2, prepare=helpers.state).features(clips(4)):
        assert not item.prepared["torch"]
        assert not item.prepared["main"]
        assert item.prepared["cpu"] < 1.0


def test_what_does_not_fit_a_slot_takes_the_pipe(helpers):
    for i, item in enumerate(pipeline(2, max_seconds=0.5, prepare=helpers.huge).features(clips(20))):
        assert np.array_equal(item.prepared, np.arange(1_000_000) * (500 + i))


def test_settings_out_of_range_are_named():
    for options, message in (
        ({"workers": -1}, "workers must be at least 0, got -1"),
        ({"prefetch": 0}, "prefetch must be at least 1, got 0"),
        ({"max_seconds": 0.0}, "max_seconds must be above 0"),
        ({"timeout": float("nan")}, "timeout must be above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            pipeline(**options)


ARRAYS = st.builds(
    lambda kind, shape, fortran: np.asarray(np.arange(int(np.prod(shape))).reshape(shape), dtype=kind, order="F" if fortran else "C"),
    st.sampled_from(["f4", "f8", "i2", "u1", "?"]),
    st.lists(st.integers(0, 7), min_size=0, max_size=3),
    st.booleans(),
)


@settings(max_examples=100, deadline=None)
@given(value=st.lists(ARRAYS | st.text() | st.none() | st.floats(allow_nan=False), max_size=5), room=st.integers(0, 4000))
def test_values_survive_shared_memory(value, room):
    memory = bytearray(b"\xaa" * room)
    overflow = dump(value, memoryview(memory))
    if overflow:
        assert bytes(memory) == b"\xaa" * room, "nothing is written where the whole does not fit"
    found = load(memoryview(overflow or memory))
    memory[:] = bytes(room)
    assert len(found) == len(value)
    for a, b in zip(found, value, strict=True):
        if isinstance(b, np.ndarray):
            assert a.dtype == b.dtype
            assert a.shape == b.shape
            assert np.array_equal(a, b)
            assert a.flags.writeable
        else:
            assert a == b


def test_helpers_are_used_through_partial(helpers):
    """A configured extractor, which is what a teacher's is, travels too."""
    (item,) = pipeline(1, prepare=functools.partial(helpers.statistics)).features(clips(1))
    assert item.prepared["n"] == 500


@pytest.mark.parametrize("workers", [0, 2])
def test_an_isolated_fault_is_a_bad_clip_and_a_missing_package_is_not(workers, helpers):
    found = list(pipeline(workers, prepare=helpers.wrong, on_bad_audio="skip:1", isolate=True).features(clips(3)))
    assert ["TypeError: cannot use" in str(item.features) for item in found] == [True] * 3
    with pytest.raises(ModuleNotFoundError, match="a_package_that_nobody_has"):
        list(pipeline(workers, prepare=helpers.missing, on_bad_audio="skip:1", isolate=True).features(clips(3)))
