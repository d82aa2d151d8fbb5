"""Decoding: equal to Transformers' generate, independent of the batch, and what it keeps beside the tokens."""

import pytest
import torch
from engine_batches import ALLOWED, FRAMES, alone, distinct, generated, make_batch, rows

from arkfast.engine import Engine, Sampling
from arkfast.models.arkasr.prompt import audio_token_count
from arkfast.records import AllowedTokens
from arkfast.testing import tiny_model


@pytest.fixture(scope="module")
def model():
    return tiny_model(seed=1)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_greedy_equals_generate(attention):
    model = tiny_model(seed=1)
    model.set_attn_implementation(attention)
    batch = make_batch()
    assert [int((ids == 90).sum()) for ids in batch.input_ids] == [audio_token_count(n) for n in FRAMES]
    got = Engine(model, allowed=ALLOWED, logprobs=True).rollout(batch, max_new_tokens=20)
    want, logprobs = generated(model, batch, 20)
    assert rows(got) == want
    torch.testing.assert_close(got.logprob, torch.cat(logprobs), atol=5e-5, rtol=0)
    assert distinct(want) >= 10, "too few distinct tokens for the comparison to mean anything"


@pytest.mark.parametrize("masked", [True, False], ids=["masked", "unmasked"])
@pytest.mark.parametrize("penalty", [1.0, 1.3])
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 8))])
def test_greedy_equals_generate_over_lengths_slots_and_orders(seed, penalty, masked):
    """Random clips through 1 to 5 slots, so that slots are refilled, and in another order."""
    generator = torch.Generator().manual_seed(seed)
    model = tiny_model(seed=10 + seed)
    allowed = ALLOWED if masked else AllowedTokens(ranges=((0, 95), (96, 97)), stop_ids=(95,))
    frames = torch.randint(2, 160, (9,), generator=generator).tolist()
    limits = torch.randint(1, 28, (9,), generator=generator).tolist()
    batch = make_batch(frames)
    want = [generated(model, alone(batch, i), limits[i], allowed=allowed, penalty=penalty)[0][0] for i in range(9)]
    assert distinct(want) >= 10
    for slots in (None, 1, 3, 5):
        engine = Engine(model, allowed=allowed, slots=slots, look_every=1 + seed % 4)
        assert rows(engine.rollout(batch, max_new_tokens=limits, repetition_penalty=penalty)) == want
    order = torch.randperm(9, generator=generator).tolist()
    shuffled = engine.rollout(alone(batch, order), max_new_tokens=[limits[i] for i in order], repetition_penalty=penalty)
    assert rows(shuffled) == [want[i] for i in order]


def test_a_penalty_changes_the_transcripts(model):
    plain = rows(Engine(model, allowed=ALLOWED).rollout(make_batch(), max_new_tokens=20))
    assert rows(Engine(model, allowed=ALLOWED).rollout(make_batch(), max_new_tokens=20, repetition_penalty=1.3)) != plain


def test_a_row_does_not_depend_on_its_batch(model):
    engine = Engine(model, allowed=ALLOWED, topk=4, logprobs=True)
    batch = make_batch()
    together = engine.rollout(batch, max_new_tokens=16)
    starts = torch.cat([torch.zeros(1, dtype=torch.long), together.lens.cumsum(0)])
    for i in range(len(FRAMES)):
        one = engine.rollout(alone(batch, i), max_new_tokens=16)
        assert rows(one)[0] == rows(together)[i]
        assert torch.equal(one.topk_ids, together.topk_ids[starts[i] : starts[i + 1]])
        torch.testing.assert_close(one.logprob, together.logprob[starts[i] : starts[i + 1]], atol=5e-5, rtol=0)


def test_what_is_kept(model):
    rollout = Engine(model, allowed=ALLOWED, topk=4, logprobs=True, slots=2).rollout(make_batch(), max_new_tokens=12)
    assert rollout.total == int(rollout.lens.sum())
    assert rollout.topk_ids.shape == (rollout.total, 4)
    assert rollout.topk_ids.dtype == torch.int32
    row, place = rollout.packed_index()
    assert torch.equal(rollout.topk_ids[:, 0].long(), rollout.tokens[row, place]), "greedy takes the best id"
    assert (rollout.logprob <= 0).all()
    for tokens, n, stopped in zip(rollout.tokens, rollout.lens, rollout.stopped, strict=True):
        assert stopped == (tokens[n - 1] == 95)
        assert 95 not in tokens[: n - 1]
        assert all(int(t) in ALLOWED for t in tokens[:n])
        assert (tokens[n:] == 0).all()
    assert (rollout.lens[~rollout.stopped] == 12).all()


def test_logprob_is_that_of_the_allowed_distribution(model):
    batch = make_batch([40])
    rollout = Engine(model, allowed=ALLOWED, logprobs=True).rollout(batch, max_new_tokens=6)
    ids = torch.cat([batch.input_ids, rollout.tokens], 1)
    logits = model(input_ids=ids, audios=batch.mel, audio_lens=batch.mel_lens, attention_mask=torch.ones_like(ids)).logits[0].double()
    logits[:, [i for i in range(97) if i not in ALLOWED]] = float("-inf")
    start = int(batch.prompt_lens[0]) - 1
    want = logits.log_softmax(-1)[start : start + len(rollout.tokens[0])].gather(1, rollout.tokens[0][:, None])[:, 0]
    torch.testing.assert_close(rollout.logprob.double(), want[: int(rollout.lens[0])], atol=5e-5, rtol=0)


@pytest.mark.parametrize("restricted", [{}, {"top_k": 7}, {"top_p": 0.8}, {"top_k": 20, "top_p": 0.9}], ids=str)
def test_sampling_is_keyed_by_utterance_rollout_and_seed(model, restricted):
    """The same ids alone, together, in another order, through two slots and with fewer rollouts beside."""
    engine, two = Engine(model, allowed=ALLOWED), Engine(model, allowed=ALLOWED, slots=2)
    options = {"max_new_tokens": 10, "temperature": 1.0, **restricted}
    batch = make_batch()
    together = engine.rollout(batch, n=3, seed=5, **options)
    assert together.owner.tolist() == [i for i in range(5) for _ in range(3)]
    assert rows(two.rollout(batch, n=3, seed=5, **options)) == rows(together)
    for i in range(5):
        one = engine.rollout(alone(batch, i), n=3, seed=5, **options)
        assert rows(one) == rows(together)[3 * i : 3 * i + 3]
        fewer = engine.rollout(alone(batch, i), n=1, seed=5, **options)
        assert rows(fewer)[0] == rows(together)[3 * i]
    assert rows(engine.rollout(alone(batch, [4, 0]), n=3, seed=5, **options)) == rows(together)[12:] + rows(together)[:3]
    assert rows(engine.rollout(batch, n=3, seed=6, **options)) != rows(together)
    assert len({tuple(row) for row in rows(together)}) > 10


def test_shared_prompts_equal_separate_ones(model):
    """Rollouts that share an encoding and a prefill, with those of copies of the utterance that do not."""
    batch = make_batch()
    engine = Engine(model, allowed=ALLOWED, topk=4)
    shared = engine.rollout(batch, n=4, max_new_tokens=14)
    copies = alone(batch, [i for i in range(5) for _ in range(4)])
    separate = engine.rollout(copies, max_new_tokens=14)
    assert rows(shared) == rows(separate)
    assert torch.equal(shared.topk_ids, separate.topk_ids)
    given = engine.rollout(batch, n=4, max_new_tokens=14, audio=model.get_audio_features(batch.mel, batch.mel_lens))
    assert rows(given) == rows(shared)


def test_a_row_whose_scores_are_not_numbers_is_marked_and_harms_no_other(model):
    """Nor does it harm the row that takes its slot."""
    batch = make_batch()
    for slots in (None, 2):
        engine = Engine(model, allowed=ALLOWED, topk=4, slots=slots)
        clean = engine.rollout(batch, max_new_tokens=10)
        assert not clean.failed.any()
        broken = make_batch()
        broken.mel[1, :, : FRAMES[1]] = float("nan")
        rollout = engine.rollout(broken, max_new_tokens=10)
        assert rollout.failed.tolist() == [False, True, False, False, False]
        assert [row for i, row in enumerate(rows(rollout)) if i != 1] == [row for i, row in enumerate(rows(clean)) if i != 1]
        assert rows(engine.rollout(batch, max_new_tokens=10)) == rows(clean)


def test_a_trained_model_needs_no_new_engine():
    model = tiny_model(seed=1)
    engine, batch = Engine(model, allowed=ALLOWED), make_batch()
    before = rows(engine.rollout(batch, max_new_tokens=8))
    with torch.no_grad():
        model.load_state_dict(tiny_model(seed=2).state_dict())
    after = rows(engine.rollout(batch, max_new_tokens=8))
    assert after == generated(model, batch, 8)[0]
    assert after != before


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", 1e39),
        ("temperature", 1e-50),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", 1e-50),
        ("top_k", -1),
        ("top_k", 1 << 63),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", 1e39),
        ("repetition_penalty", 1e-50),
        ("seed", 1 << 63),
        ("seed", -(1 << 63) - 1),
    ],
)
def test_sampling_out_of_range(field, value):
    with pytest.raises(ValueError, match=field):
        Sampling(**{field: value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"max_new_tokens": -1}, "max_new_tokens must be at least 1, got -1"),
        ({"max_new_tokens": [3, 4]}, "max_new_tokens has 2 limits for 5 utterances"),
        ({"max_new_tokens": [4] * 7}, "max_new_tokens has 7 limits for 5 utterances"),
        ({"max_new_tokens": [4, 0, 4, 4, 4]}, "max_new_tokens must be at least 1, got 0"),
        ({"max_new_tokens": 4, "n": 0}, "n must be at least 1, got 0"),
        ({"max_new_tokens": 4, "temperature": 1.0, "seed": 1 << 64}, "seed is out of range"),
    ],
)
def test_a_rollout_that_is_refused_leaves_the_engine_as_it_was(model, options, message):
    engine = Engine(model, allowed=ALLOWED)
    want = rows(engine.rollout(make_batch(), max_new_tokens=3))
    slots = engine._slots
    with pytest.raises(ValueError, match=message):
        engine.rollout(make_batch(), **options)
    assert engine.pending == 0
    assert engine._slots is slots
    assert rows(engine.rollout(make_batch(), max_new_tokens=torch.tensor([3] * 5).numpy())) == want


def test_a_rollout_that_finds_no_memory_leaves_nothing_behind(model, monkeypatch):
    from arkfast.engine import engine as module

    def full(*_, **__):
        raise torch.OutOfMemoryError("no room")

    engine = Engine(model, allowed=ALLOWED)
    with monkeypatch.context() as patched:
        patched.setattr(module, "Slots", full)
        with pytest.raises(torch.OutOfMemoryError):
            engine.rollout(make_batch(), max_new_tokens=4)
    assert engine.pending == 0
    assert engine.rollout(alone(make_batch(), 0), max_new_tokens=4).lens.tolist() == [4]


@pytest.mark.parametrize(
    "option", [{"slots": 0}, {"max_len": 0}, {"max_new_tokens": 0}, {"topk": -1}, {"look_every": 0}, {"look_every": -1}]
)
def test_an_engine_out_of_range(model, option):
    (name,) = option
    with pytest.raises(ValueError, match=f"Engine: {name} must be at least"):
        Engine(model, allowed=ALLOWED, **option)


def test_a_decoder_that_is_not_qwen2_is_refused():
    model = tiny_model()
    model.model.layers[1].mlp = torch.nn.Identity()
    with pytest.raises(ValueError, match="layer 1 of the decoder has a Identity in place of a Qwen2MLP"):
        Engine(model, allowed=ALLOWED)
    with pytest.raises(ValueError, match="silu"):
        Engine(tiny_model(hidden_act="gelu"), allowed=ALLOWED)
