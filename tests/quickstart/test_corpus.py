"""The quickstart's corpus: honest splits, the same bytes again, nothing half built."""

from __future__ import annotations

import hashlib
import json
import os
import time
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arkfast.quickstart import clips, corpus, noises
from arkfast.quickstart.corpus import SPLITS, Corpus, CorpusRecipe, build_corpus
from arkfast.records import InputError

pytest.importorskip("espeakng_loader", reason="the corpus is spoken by the package espeakng-loader")

SMALL = CorpusRecipe(train=13, labels=5, pool=7, dev=6, test=16, seed=3)


def _quiet(_line: str) -> None:
    """A log that keeps nothing."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return build_corpus(tmp_path_factory.mktemp("corpus") / "small", SMALL, log=_quiet)


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _bytes(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def _samples(path: Path) -> np.ndarray:
    with wave.open(os.fspath(path)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 16000)
        return np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")


def test_manifests_describe_their_recordings(built: Corpus) -> None:
    assert not built.reused
    sizes = {"train": 13, "labels": 5, "pool": 7, "dev": 6, "test": 16}
    assert built.clips == sizes
    assert [len(_rows(getattr(built, name))) for name in sizes] == list(sizes.values())
    for name in sizes:
        rows = _rows(getattr(built, name))
        assert len({row["id"] for row in rows}) == len(rows)
        for row in rows:
            assert (row["language"], row["task"], row["begin_time"], row["end_time"]) == ("en", "asr", -1, -1)
            words = row["text"].split()
            assert SMALL.digits[0] <= len(words) <= SMALL.digits[1]
            assert set(words) <= set(clips.DIGITS)
            samples = _samples(built.root / row["audio"])
            assert len(samples) / 16000 == row["duration"]
            # Speech is set to 0.05 ± 6 dB and noise adds to it; at the lowest ratio of 5 dB that is at most a factor of 1.15.
            level = np.sqrt(np.mean((samples / 2**15) ** 2))
            assert 0.05 * 10 ** (-6 / 20) * 0.95 < level < 0.05 * 10 ** (6 / 20) * 1.2
        assert built.seconds[name] == pytest.approx(sum(row["duration"] for row in rows), abs=1e-3)


def test_labels_are_the_first_rows_of_train(built: Corpus) -> None:
    assert _rows(built.labels) == _rows(built.train)[:5]


def test_test_set_has_its_own_voices_and_noises_and_dev_those_of_training(built: Corpus) -> None:
    for split in SPLITS:
        rows = _rows(getattr(built, split))
        variants = {row["voice"].split("+")[1] for row in rows}
        kinds = {row["noise"] for row in rows}
        own, other = (SMALL.test_variants, SMALL.train_variants) if split == "test" else (SMALL.train_variants, SMALL.test_variants)
        assert variants <= set(own)
        assert not variants & set(other)
        assert kinds <= ({"babble", "hum"} if split == "test" else {"white", "pink", "brown"})
        assert all(5 <= row["snr_db"] <= 25 for row in rows)
    assert {row["noise"] for row in _rows(built.test)} == {"babble", "hum"}


def test_default_recipe_holds_out_the_test_voices_and_noises() -> None:
    recipe = CorpusRecipe()
    assert not set(recipe.train_variants) & set(recipe.test_variants)
    assert not set(recipe.train_noises) & set(recipe.test_noises)
    assert len(recipe.train_variants) == len(set(recipe.train_variants)) == 59


# Two digits make a hundred texts, so 500 draws a split would share many if splits were not kept apart.
@pytest.mark.parametrize(
    "recipe", [CorpusRecipe(), CorpusRecipe.long(), CorpusRecipe(train=500, pool=500, dev=500, test=500, digits=(2, 2))]
)
def test_no_text_stands_in_two_splits(recipe: CorpusRecipe) -> None:
    texts = {split: clips.draw_texts(recipe, split) for split in SPLITS}
    for split in SPLITS:
        assert len(texts[split]) == getattr(recipe, split)
        assert {len(text.split()) for text in texts[split]} == set(range(recipe.digits[0], recipe.digits[1] + 1))
        for other in SPLITS:
            assert split == other or not set(texts[split]) & set(texts[other])


def test_texts_of_a_split_do_not_depend_on_the_sizes_of_others() -> None:
    few = CorpusRecipe(train=10, labels=1, pool=1, dev=5, test=5)
    assert clips.draw_texts(few, "dev") == clips.draw_texts(CorpusRecipe(), "dev")[:5]


def test_share_of_nine_is_as_asked() -> None:
    words = " ".join(clips.draw_texts(CorpusRecipe.long(), "train")).split()
    # About 50,000 words: the standard deviation of the share is 0.002.
    assert abs(words.count("nine") / len(words) - 0.3) < 0.01
    assert abs(words.count("four") / len(words) - 0.7 / 9) < 0.01


def test_texts_too_short_to_keep_splits_apart_are_refused() -> None:
    refused = 0
    for seed in range(12):
        recipe = CorpusRecipe(train=4, labels=1, pool=4, dev=4, test=4, digits=(1, 1), seed=seed)
        try:
            owned = [set(clips.draw_texts(recipe, split)) for split in SPLITS]
        except InputError as error:
            refused += "no string of 1 digits is left for" in str(error)
        else:
            assert len(set.union(*owned)) == sum(map(len, owned))
    assert 0 < refused < 12  # ten texts, an eighth of them for dev: some seeds leave it none


def test_same_recipe_gives_the_same_bytes_in_fresh_processes(built: Corpus, tmp_path: Path) -> None:
    # Spawned workers share neither a cache nor espeak-ng's state with this process, and there are four shards for the two of them.
    again = build_corpus(tmp_path / "again", SMALL, log=_quiet, workers=2)
    assert _bytes(again.root) == _bytes(built.root)


def test_another_seed_gives_other_texts_and_sounds(built: Corpus, tmp_path: Path) -> None:
    other = build_corpus(tmp_path / "other", CorpusRecipe(train=3, labels=1, pool=1, dev=1, test=1, seed=4), log=_quiet)
    assert [row["text"] for row in _rows(other.train)] != [row["text"] for row in _rows(built.train)[:3]]


def test_finished_corpus_is_found_and_not_built_again(built: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "write_shard", None)  # building would fail
    lines: list[str] = []
    found = build_corpus(built.root, CorpusRecipe(train=13, labels=5, pool=7, dev=6, test=16, seed=3), log=lines.append)
    assert found.reused
    assert (found.clips, found.seconds) == (built.clips, built.seconds)
    assert lines == [f"corpus: 42 clips found in {built.root}"]


def test_corpus_of_another_recipe_is_refused_and_kept(built: Corpus) -> None:
    before = hashlib.sha256(repr(_bytes(built.root)).encode()).digest()
    with pytest.raises(InputError, match=r"another recipe \(seed 3 there, 9 here\)"):
        build_corpus(built.root, CorpusRecipe(train=13, labels=5, pool=7, dev=6, test=16, seed=9), log=_quiet)
    assert hashlib.sha256(repr(_bytes(built.root)).encode()).digest() == before


def test_folder_with_other_files_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="holds other files"):
        build_corpus(tmp_path, SMALL, log=_quiet)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(InputError, match="holds other files"):
        build_corpus(tmp_path / "thesis.txt", SMALL, log=_quiet)


def test_damaged_corpus_is_refused(tmp_path: Path) -> None:
    recipe = CorpusRecipe(train=2, labels=1, pool=1, dev=1, test=1)
    (tmp_path / "empty").mkdir()  # an empty folder is room for a corpus
    root = build_corpus(tmp_path / "empty", recipe, log=_quiet).root
    recording = root / "audio" / "pool" / "pool-000000.wav"
    content = recording.read_bytes()
    recording.unlink()
    with pytest.raises(InputError, match=r"holds 0 recordings of 1; remove .* to build it again"):
        build_corpus(root, recipe, log=_quiet)
    recording.write_bytes(content)
    with (root / "dev.jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(InputError, match=r"dev\.jsonl: missing or changed"):
        build_corpus(root, recipe, log=_quiet)
    (root / "corpus.json").write_text("{")
    with pytest.raises(InputError, match="not a corpus description"):
        build_corpus(root, recipe, log=_quiet)


def test_interrupted_build_leaves_nothing_that_looks_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed, running = tmp_path / ".c.killed.new", tmp_path / ".c.running.new"
    killed.mkdir()
    running.mkdir()
    os.utime(killed, (time.time() - 7200,) * 2)

    def fail(_folder: Path, _recipe: CorpusRecipe, split: str, _start: int, texts: list[str]) -> list[dict[str, Any]]:
        if split == "dev":
            raise KeyboardInterrupt
        return [{"duration": 1.0}] * len(texts)

    monkeypatch.setattr(corpus, "write_shard", fail)
    with pytest.raises(KeyboardInterrupt):
        build_corpus(tmp_path / "c", SMALL, log=_quiet)
    # What was killed two hours ago is cleared away; what another process may be building is not.
    assert [path.name for path in tmp_path.iterdir()] == [".c.running.new"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"test_variants": ("m6", "Alex")}, "test_variants must be new to the model, but train_variants holds Alex too"),
        ({"test_noises": ("hum", "pink")}, "test_noises must be new to the model, but train_noises holds pink too"),
        ({"test_noises": ("rain",)}, "no noise is called rain; there are white"),
        ({"labels": 5000}, "labels is 5000, but they are taken from the 4000 clips of train"),
        ({"dev": 0}, "dev is 0; give at least one clip"),
        ({"digits": (6, 2)}, r"digits is \(6, 2\); give two ascending values"),
        ({"rates": (10, 200)}, r"rates is \(10, 200\)"),
        ({"nine_share": 1.5}, "nine_share is 1.5; give a probability"),
        ({"train_accents": ()}, "train_accents is empty"),
    ],
)
def test_recipe_that_contradicts_itself_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        CorpusRecipe(**fields)


def test_voice_that_does_not_exist_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no variant 'mario'; near names: Mario"):
        build_corpus(tmp_path / "deep" / "c", CorpusRecipe(train_variants=("mario",)), log=_quiet)
    assert not list(tmp_path.iterdir())


def test_noise_is_mixed_at_the_asked_ratio() -> None:
    generator = np.random.default_rng(0)
    speech, noise = (generator.standard_normal(16000).astype(np.float32) for _ in range(2))
    clean = clips._mix(speech, np.full_like(speech, 1e-3), 0.05, 200.0).astype(float)
    noisy = clips._mix(speech, noise, 0.05, 12.0).astype(float)
    # Rounding to int16 adds noise of 0.29 steps to each, far below the 400 steps of the noise that is measured.
    assert 10 * np.log10(np.mean(clean**2) / np.mean((noisy - clean) ** 2)) == pytest.approx(12.0, abs=0.01)
    assert np.sqrt(np.mean(clean**2)) / 2**15 == pytest.approx(0.05, rel=1e-3)
    assert clips._mix(100 * speech, noise, 10.0, 0.0).min() == -(2**15)  # clipped, not wrapped


def test_noises_have_the_spectra_they_are_named_for() -> None:
    power = {}
    for kind in noises.KINDS:
        samples = noises.bed(kind, "7 test")
        assert samples.dtype == np.float32
        assert np.mean(samples.astype(float) ** 2) == pytest.approx(1.0, abs=1e-4)
        assert np.array_equal(samples, noises.bed(kind, "7 test"))
        assert not np.array_equal(samples, noises.bed(kind, "7 train"))
        power[kind] = np.abs(np.fft.rfft(samples.astype(float))) ** 2
    hertz = np.fft.rfftfreq(60 * 16000, 1 / 16000)

    def band_db(kind: str, low: float) -> float:
        """Mean power density of an octave from ``low`` Hz, in dB; over 13,000 bins or more its deviation is 0.04 dB."""
        return float(10 * np.log10(power[kind][(hertz >= low) & (hertz < 2 * low)].mean()))

    for kind, slope in (("white", 0.0), ("pink", 1.0), ("brown", 2.0)):
        # Power ∝ f^−slope, averaged over octaves four octaves apart: 10·log10(16)·slope dB.
        assert band_db(kind, 220) - band_db(kind, 220 * 16) == pytest.approx(10 * np.log10(16) * slope, abs=0.3)
    harmonics = np.isin(np.arange(len(hertz)), 60 * 50 * np.arange(1, 21))
    assert power["hum"][harmonics].sum() / power["hum"].sum() == pytest.approx(0.5, abs=0.03)
    assert power["babble"][(hertz > 100) & (hertz < 4000)].sum() / power["babble"].sum() > 0.8


def test_splits_take_their_noise_from_different_recordings() -> None:
    assert not np.array_equal(clips._bed("white", 0, "train"), clips._bed("white", 0, "dev"))
