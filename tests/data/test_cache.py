"""The feature cache gives what extraction gives, once, and no more than its budget."""

import numpy as np

from arkfast.data import FeatureCache
from arkfast.records import Utterance


def test_second_time_from_memory_up_to_the_budget():
    calls = []

    def extract(utterance):
        calls.append(utterance.id)
        return np.full((1, 128, 1024), float(utterance.id), dtype=np.float32)[0]  # half a MiB, a view as LogMel's batches give

    cache = FeatureCache(extract, 1)
    rows = [Utterance(id=str(i), audio="a.wav") for i in range(3)]
    for _ in range(2):
        assert [float(cache(row)[0, 0]) for row in rows] == [0.0, 1.0, 2.0]
    assert calls == ["0", "1", "2", "2"], "two fit, the third is extracted again"
    assert cache(rows[0]).base is None, "a kept array holds no batch alive"
    calls.clear()
    nothing = FeatureCache(extract, 0)
    assert nothing(rows[0]).shape == nothing(rows[0]).shape == (128, 1024)
    assert calls == ["0", "0"]
