"""Hotwords: bonuses of phrases in the engine, against their definition on strings of ids."""

import random

import pytest
import torch
from engine_batches import ALLOWED, make_batch, requests
from torch.utils._python_dispatch import TorchDispatchMode

from arkfast.engine import Engine, Phrases, Sampling
from arkfast.engine.phrases import PhraseSets
from arkfast.engine.rows import Choosing, Mode, Rows
from arkfast.kernels import topk_lse
from arkfast.records import InputError
from arkfast.testing import tiny_model

IDS = 7


def bonus_of(ids: list[int], phrases: dict[tuple[int, ...], float]) -> float:
    """What ids have been given in all: every whole phrase its weight an id, but for the ids that a shorter phrase at its begin has been
    given already, and what has begun at the end its share."""
    weights: dict[tuple[int, ...], float] = {}
    for phrase, weight in phrases.items():
        for n in range(1, len(phrase) + 1):
            weights[phrase[:n]] = max(weight, weights.get(phrase[:n], 0.0))

    def worth(begin: tuple[int, ...]) -> float:
        known = max((n for n in range(1, len(begin)) if begin[:n] in phrases), default=0)
        return sum(weights[begin[:n]] for n in range(known + 1, len(begin) + 1))

    total = 0.0
    for end in range(1, len(ids) + 1):
        total += sum(worth(p) for p in phrases if tuple(ids[:end][-len(p) :]) == p)
    begun = next((tuple(ids[i:]) for i in range(len(ids)) if tuple(ids[i:]) in weights), ())
    return total + (worth(begun) if begun and begun not in phrases else 0.0)


@pytest.mark.parametrize("seed", range(30))
def test_bonuses_are_those_of_the_definition(seed: int) -> None:
    rng = random.Random(seed)
    sets = [
        {tuple(rng.randrange(3) for _ in range(rng.randint(1, 5))): rng.choice([0.5, 1.0, 2.25]) for _ in range(rng.randint(1, 6))}
        for _ in range(2)
    ]
    automata = [Phrases(phrases.items()) for phrases in sets]
    held = PhraseSets(torch.device("cpu"))
    assert held.hold(automata, [])
    tables = held.tables
    assert tables is not None
    states = torch.tensor([held.place(automata[0]), 0, held.place(automata[1])])
    rows: list[list[int]] = [[], [], []]
    owners = [sets[0], {}, sets[1]]
    scores = torch.randn(3, IDS, generator=torch.Generator().manual_seed(seed))
    given_at_all = False
    for _ in range(25):
        given = tables.add(scores, states) - scores
        want = [[bonus_of([*row, i], own) - bonus_of(row, own) for i in range(IDS)] for row, own in zip(rows, owners, strict=True)]
        torch.testing.assert_close(given, torch.tensor(want), atol=1e-5, rtol=0)
        tokens = [rng.randrange(4) for _ in rows]
        states = tables.next(states, torch.tensor(tokens))
        for row, token in zip(rows, tokens, strict=True):
            row.append(token)
        given_at_all |= bool(given.any())
    assert given_at_all


def test_rows_without_phrases_keep_their_scores_bit_for_bit() -> None:
    held = PhraseSets(torch.device("cpu"))
    phrases = Phrases([((0, 1), 3.0)])
    held.hold([phrases], [])
    assert held.tables is not None
    scores = torch.randn(2, IDS).bfloat16()
    scores[0, 3] = float("-inf")
    found = held.tables.add(scores, torch.tensor([0, held.place(phrases)]))
    assert torch.equal(found[0], scores[0].float())
    assert found[1, 0] == scores[1, 0].float() + 3.0


@pytest.fixture(scope="module")
def model():
    return tiny_model(seed=1)


def decoded(model, phrases, sampling=None, *, slots=8, **options):
    """Each clip's end, with its own phrases."""
    engine = Engine(model, allowed=ALLOWED, slots=slots, max_len=128, max_new_tokens=20, logprobs=True, **options)
    batch, ids, found = make_batch(), [], {}
    for i, own in enumerate(phrases):
        ids.append(engine.submit(requests(batch, 20, phrases=own, sampling=sampling or Sampling())[i]))
    while engine.pending:
        found |= {finished.id: finished for finished in engine.step()}
    return [found[i] for i in ids]


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0, seed=5), Sampling(repetition_penalty=1.3)])
def test_a_phrase_changes_its_own_row_alone(model, sampling) -> None:
    without = decoded(model, [None] * 5, sampling)
    wanted = (11, 12, 13)
    assert tuple(without[2].tokens[:3]) != wanted
    phrases = Phrases([(wanted, 1000.0)])
    for slots in (1, 8):
        found = decoded(model, [None, None, phrases, None, None], sampling, slots=slots)
        assert tuple(found[2].tokens[:3]) == wanted
        for i in (0, 1, 3, 4):
            assert found[i].tokens == without[i].tokens
    # the log-probabilities are the model's, which thinks little of the phrase
    assert all(value <= 0 for value in found[2].logprobs)
    assert sampling.draws or found[2].logprobs[0] < without[2].logprobs[0]


def test_a_bonus_of_a_begun_phrase_is_taken_back(model) -> None:
    """The model's first choice, boosted as the begin of a phrase that it does not go on with, leaves the rest as it was in the end."""
    plain = decoded(model, [None] * 5)
    ids = plain[0].tokens
    follow = next(i for i in range(90) if i not in ids)
    found = decoded(model, [Phrases([((ids[0], follow), 1e-3)]), *[None] * 4])
    assert found[0].tokens == ids


def test_sets_come_and_go_while_rows_are_decoded(model) -> None:
    """More sets than the tables first had room for; each row keeps its own, in one slot or several."""
    sets = [Phrases([((20 + i, 30 + i, 40 + i), 1000.0), ((60 + i,), 0.5)]) for i in range(5)]
    for slots in (1, 2, 8):
        found = decoded(model, sets, slots=slots, look_every=2)
        assert [tuple(row.tokens[:3]) for row in found] == [(20 + i, 30 + i, 40 + i) for i in range(5)]


def test_the_end_at_once_is_the_models_own(model) -> None:
    found = decoded(model, [None] * 5, silent=True)
    other = decoded(model, [Phrases([((11,), 50.0)])] * 5, silent=True)
    assert [row.silent for row in found] == [row.silent for row in other]
    assert len({row.silent for row in found}) == 5
    for row in found:
        assert row.silent < 0
    assert all(row.silent is None for row in decoded(model, [None] * 5))
    # as the distribution of a request that is made to end at once says it
    ended = decoded(model, [Phrases([((95,), 1000.0)])] * 5, silent=True)
    assert [row.tokens for row in ended] == [[]] * 5
    assert [row.silent for row in ended] == pytest.approx([row.logprobs[0] for row in ended])


@pytest.mark.parametrize("given", [[], [((), 1.0)], [((-1, 2), 1.0)], [((1,), 0.0)], [((1,), float("nan"))]])
def test_phrases_that_are_none_are_refused(given) -> None:
    with pytest.raises(InputError, match="hotwords"):
        Phrases(given)


def test_ids_that_cannot_be_produced_are_refused(model) -> None:
    engine = Engine(model, allowed=ALLOWED, slots=2, max_len=128, max_new_tokens=20)
    with pytest.raises(InputError, match="hotwords hold the id 4000"):
        engine.submit(requests(make_batch(), 5, phrases=Phrases([((4000,), 1.0)]))[0])


@pytest.mark.parametrize("seed", range(20))
def test_the_best_id_with_bonuses_is_found_among_a_few(seed: int) -> None:
    """Against bonuses on all scores, with blocked ids, ranges of ids by position, ties and rows without phrases."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    width = 64
    sets = [
        Phrases([(tuple(rng.randrange(width) for _ in range(rng.randint(1, 3))), rng.choice([0.5, 1.0, 4.0])) for _ in range(12)])
        for _ in range(2)
    ]
    held = PhraseSets(torch.device("cpu"))
    held.hold(sets, [])
    assert held.tables is not None
    choosing = Choosing(
        width=width, blocked=torch.tensor(sorted(rng.sample(range(width), 9)), dtype=torch.int32), stop_ids=torch.tensor([1]), topk=0,
        logprobs=False,
    )  # fmt: skip
    states = torch.tensor([rng.randrange(len(held.tables.root) // 2) for _ in range(40)] + [0, 0])
    differs = 0
    for ranges in (None, torch.tensor([[[0, 20], [50, 64]], [[10, 60], [0, 0]]], dtype=torch.int32).repeat(21, 1, 1)):
        # of few values, so that many are equal
        scores = torch.randint(0, 8, (42, width), generator=generator).float() / 2
        plain = topk_lse(scores, 1, blocked=choosing.blocked, ranges=ranges).ids[:, 0].long()
        found = held.tables.best(scores, plain, states, lambda ids, ranges=ranges: choosing.permits(ids, ranges))
        want = topk_lse(held.tables.add(scores, states), 1, blocked=choosing.blocked, ranges=ranges).ids[:, 0].long()
        assert torch.equal(found, want)
        assert torch.equal(found[-2:], plain[-2:])
        differs += int((found != plain).sum())
    assert differs >= 10, "the bonuses make a difference"


class _Large(TorchDispatchMode):
    """Counts operations that give a tensor of at least so many elements."""

    def __init__(self, least: int) -> None:
        super().__init__()
        self.least, self.count = least, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        self.count += any(
            isinstance(one, torch.Tensor) and one.numel() >= self.least for one in (found if isinstance(found, tuple) else (found,))
        )
        return found


def test_phrases_cost_no_pass_over_the_vocabulary() -> None:
    """A step in which a row has phrases makes as many tensors of rows by vocabulary as one without."""
    rows, width, phrases = 6, 4096, Phrases([((5, 6, 7), 2.0), ((9,), 1.0)])
    held = PhraseSets(torch.device("cpu"))
    held.hold([phrases], [])
    none = torch.empty(0, dtype=torch.int32)
    choosing = Choosing(width=width, blocked=none, stop_ids=torch.tensor([1]), topk=0, logprobs=True)
    counts = []
    for mode in (Mode(False, False, False), Mode(False, False, False, phrases=True)):
        state = Rows.empty(rows, 8, topk=0, logprobs=True, device=torch.device("cpu"))
        state.state.zero_()
        state.limit.fill_(8)
        state.phrase[2] = held.place(phrases)
        with _Large(rows * width) as large:
            state.choose(torch.randn(rows, width), mode, choosing, held.tables)
        counts.append(large.count)
    assert counts[0] == counts[1] > 0
