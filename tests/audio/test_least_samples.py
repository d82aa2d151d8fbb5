"""Clips that are padded to a length that a model asks for."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from arkfast.audio import LogMel
from arkfast.data.worker import Features
from arkfast.records import Utterance
from arkfast.testing import synthetic_speech

LEAST = 8000


def test_a_short_clip_has_the_features_of_the_padded_one() -> None:
    padding = LogMel(128, least_samples=LEAST)
    short, long = synthetic_speech(0.3, seed=0), synthetic_speech(0.7, seed=1)
    found, frames = padding([short, long])
    for i, clip in enumerate((np.pad(short, (0, LEAST - len(short))), long)):
        want, count = LogMel(128)([clip])
        assert frames[i] == count[0]
        assert np.array_equal(np.asarray(found)[i, :, : frames[i]], np.asarray(want)[0])


def test_it_goes_with_the_extractor_into_workers() -> None:
    padding = LogMel(80, threads=2, least_samples=LEAST)
    assert pickle.loads(pickle.dumps(padding)).least_samples == LEAST
    clip = Utterance(id="a", audio=synthetic_speech(0.3, seed=0))
    here = Features(padding, 30.0, None)
    there = pickle.loads(pickle.dumps(here))
    assert np.array_equal(here(clip)[0], there(clip)[0])
    assert here(clip)[0].shape == (80, LEAST // 160)
    samples = pickle.loads(pickle.dumps(Features(padding, 30.0, None, samples=True)))(clip)[0]
    assert np.array_equal(samples, np.asarray(clip.audio)[None])


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="least_samples must be at least 400, got 399"):
        LogMel(80, least_samples=399)
    with pytest.raises(ValueError, match="a stream pads no clip"):
        LogMel(80, least_samples=LEAST).stream()
