"""The batched alignment against all paths, one by one."""

import itertools
import math

import numpy as np
import pytest
import torch

from arkfast.align import forced_alignment


def collapsed(path: tuple[int, ...]) -> list[int]:
    return [unit for unit, _ in itertools.groupby(path) if unit != 0]


def best_path(scores: np.ndarray, units: list[int]) -> tuple[float, tuple[int, ...] | None]:
    """The best labelling of every step by definition: of all V^T, those that collapse into the units."""
    best: tuple[float, tuple[int, ...] | None] = (-math.inf, None)
    for path in itertools.product(sorted({0, *units}), repeat=len(scores)):
        if collapsed(path) == units:
            best = max(best, (float(sum(scores[t, unit] for t, unit in enumerate(path))), path), key=lambda pair: pair[0])
    return best


def stretches(path: tuple[int, ...]) -> list[tuple[int, int]]:
    found, at = [], 0
    for unit, run in itertools.groupby(path):
        length = len(list(run))
        if unit != 0:
            found.append((at, at + length - 1))
        at += length
    return found


@pytest.mark.parametrize("seed", range(6))
def test_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = 12
    steps = rng.integers(1, 8, rows)
    units = [rng.integers(1, 4, rng.integers(0, 5)).tolist() for _ in range(rows)]
    scores = rng.normal(size=(rows, 8, 4)).astype(np.float32)
    padded = torch.zeros(rows, max(1, *map(len, units)), dtype=torch.int64)
    for row, ids in zip(padded, units, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    found = forced_alignment(torch.from_numpy(scores), torch.from_numpy(steps), padded, torch.tensor([len(ids) for ids in units]))
    some_impossible = 0
    for i, ids in enumerate(units):
        _, path = best_path(scores[i, : steps[i]], ids)
        assert bool(found.possible[i]) == (path is not None), (i, ids, steps[i])
        if path is None:
            some_impossible += 1
            continue
        assert list(zip(found.first[i, : len(ids)].tolist(), found.last[i, : len(ids)].tolist(), strict=True)) == stretches(path)
    assert 0 < some_impossible < rows


def test_equal_units_need_a_step_between() -> None:
    scores, steps = torch.zeros(3, 3, 3), torch.tensor([2, 3, 2])
    units = torch.tensor([[1, 1], [1, 1], [1, 2]])
    found = forced_alignment(scores, steps, units, torch.tensor([2, 2, 2]))
    assert found.possible.tolist() == [False, True, True]
    assert (found.first[1].tolist(), found.last[1].tolist()) == ([0, 2], [0, 2])


def test_a_row_does_not_depend_on_those_beside_it() -> None:
    torch.manual_seed(0)
    scores = torch.randn(2, 30, 6).log_softmax(-1)
    units = torch.randint(1, 6, (2, 9))
    both = forced_alignment(scores, torch.tensor([30, 17]), units, torch.tensor([9, 4]))
    alone = forced_alignment(scores[1:, :17], torch.tensor([17]), units[1:, :4], torch.tensor([4]))
    assert both.possible.all()
    assert torch.equal(both.first[1, :4], alone.first[0])
    assert torch.equal(both.last[1, :4], alone.last[0])
