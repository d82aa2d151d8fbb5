"""The model: decoder against Transformers', audio in prompts, generation alone and in batches, the head inside forward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from arkfast.models import ArkasrForConditionalGeneration
from arkfast.models.arkasr.prompt import audio_token_count
from arkfast.testing import perturb, tiny_model

AUDIO, END, PAD = 90, 95, 96  # tiny_config's ids
TOLERANCE = 1e-5  # of the values' own size


def _close(ours: Tensor, theirs: Tensor) -> bool:
    return float((ours - theirs).abs().max() / theirs.abs().max()) <= TOLERANCE


@pytest.fixture(scope="module")
def model() -> ArkasrForConditionalGeneration:
    return perturb(tiny_model(3))


def _prompts(lens: list[int], *, left: bool = True) -> tuple[Tensor, Tensor]:
    """Prompts of clips with ``lens`` mel frames, padded: ids and mask."""
    rows = [[1, 2, *[AUDIO] * audio_token_count(frames), 3, 4, 5] for frames in lens]
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), PAD)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        inside = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, inside], mask[i, inside] = torch.tensor(row), 1
    return ids, mask


def _clips(lens: list[int], seed: int = 0) -> Tensor:
    mel = torch.randn(len(lens), 128, max(lens), generator=torch.Generator().manual_seed(seed))
    for i, frames in enumerate(lens):
        mel[i, :, frames:] = 0
    return mel


@torch.no_grad()
def test_decoder_equals_transformers_qwen2(model: ArkasrForConditionalGeneration) -> None:
    fields = {k: v for k, v in model.config.to_dict().items() if k not in ("model_type", "whisper_config", "architectures", "rope_theta")}
    qwen = Qwen2ForCausalLM(Qwen2Config(**fields)).eval()
    own = {name: value for name, value in model.state_dict().items() if not name.startswith("audio_encoder.")}
    qwen.load_state_dict(own)
    ids = torch.randint(0, 90, (3, 17), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :6] = 0
    ours, theirs = model(input_ids=ids, attention_mask=mask).logits, qwen(input_ids=ids, attention_mask=mask).logits
    assert _close(ours[mask.bool()], theirs[mask.bool()])
    last = model(input_ids=ids, attention_mask=mask, logits_to_keep=2).logits
    picked = model(input_ids=ids, attention_mask=mask, logits_to_keep=torch.tensor([15, 16])).logits
    assert _close(last, ours[:, -2:])
    assert _close(picked, ours[:, -2:])


@torch.no_grad()
def test_placeholders_become_the_clips_embeddings(model: ArkasrForConditionalGeneration) -> None:
    lens = [90, 37]
    ids, _ = _prompts(lens)
    mel, frames = _clips(lens), torch.tensor(lens)
    audio, counts = model.get_audio_features(mel, frames)
    merged = model.encode_prompt(ids, mel, frames)
    for row in range(2):
        torch.testing.assert_close(merged[row, ids[row] == AUDIO], audio[row, : counts[row]], rtol=0, atol=0)
        text = ids[row] != AUDIO
        torch.testing.assert_close(merged[row, text], model.model.embed_tokens(ids[row, text]), rtol=0, atol=0)
    torch.testing.assert_close(model.encode_prompt(ids, audio_embeds=(audio, counts)), merged, rtol=0, atol=0)


@torch.no_grad()
def test_every_way_of_giving_audio_is_the_same_pass(model: ArkasrForConditionalGeneration) -> None:
    lens = [90, 37]
    ids, mask = _prompts(lens)
    mel, frames = _clips(lens), torch.tensor(lens)
    logits = model(input_ids=ids, attention_mask=mask, audios=mel, audio_lens=frames).logits
    embeds = model.get_audio_features(mel, frames)
    for given in ({"input_ids": ids, "audio_embeds": embeds}, {"inputs_embeds": model.encode_prompt(ids, mel, frames)}):
        torch.testing.assert_close(model(attention_mask=mask, **given).logits, logits, rtol=0, atol=0)
    assert not _close(model(input_ids=ids, attention_mask=mask).logits, logits)


@torch.no_grad()
def test_padding_side_does_not_move_a_row(model: ArkasrForConditionalGeneration) -> None:
    lens = [90, 37]
    mel, frames = _clips(lens), torch.tensor(lens)
    logits = []
    for left in (True, False):
        ids, mask = _prompts(lens, left=left)
        logits.append(model(input_ids=ids, attention_mask=mask, audios=mel, audio_lens=frames).logits[mask.bool()])
    assert _close(logits[0], logits[1])


@torch.no_grad()
def test_greedy_tokens_do_not_depend_on_the_batch() -> None:
    lens = [203, 61, 12, 150, 98]
    mel, frames = _clips(lens, seed=5), torch.tensor(lens)
    ids, mask = _prompts(lens)
    settings = {"do_sample": False, "max_new_tokens": 16, "suppress_tokens": [AUDIO]}
    seen: set[int] = set()
    for seed in range(3):
        model = perturb(tiny_model(seed))
        together = model.generate(input_ids=ids, attention_mask=mask, audios=mel, audio_lens=frames, **settings)[:, ids.shape[1] :]
        for row, length in enumerate(lens):
            own = mask[row].bool()
            alone = model.generate(
                input_ids=ids[row : row + 1, own],
                attention_mask=mask[row : row + 1, own],
                audios=mel[row : row + 1, :, :length],
                audio_lens=frames[row : row + 1],
                **settings,
            )[0, int(own.sum()) :]
            expected = together[row, : len(alone)]
            assert alone.tolist() == expected.tolist()
            assert (together[row, len(alone) :] == PAD).all()
            seen |= set(alone.tolist())
    assert len(seen) >= 10


@torch.no_grad()
def test_generation_equals_repeated_full_passes(model: ArkasrForConditionalGeneration) -> None:
    lens = [77]
    mel, frames = _clips(lens, seed=2), torch.tensor(lens)
    ids, mask = _prompts(lens)
    generated = model.generate(
        input_ids=ids, attention_mask=mask, audios=mel, audio_lens=frames, do_sample=False, max_new_tokens=12, suppress_tokens=[AUDIO, END]
    )
    tokens = ids
    for _ in range(12):
        logits = model(input_ids=tokens, audios=mel, audio_lens=frames).logits[:, -1]
        logits[:, [AUDIO, END]] = -torch.inf
        tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], dim=1)
    assert generated.tolist() == tokens.tolist()
    assert len(set(tokens[0, ids.shape[1] :].tolist())) >= 5


def test_audio_is_encoded_once_in_generation(model: ArkasrForConditionalGeneration, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    forward = model.audio_encoder.forward
    monkeypatch.setattr(model.audio_encoder, "forward", lambda *a, **k: calls.append(1) or forward(*a, **k))
    ids, mask = _prompts([40])
    model.generate(input_ids=ids, attention_mask=mask, audios=_clips([40]), do_sample=False, max_new_tokens=5, suppress_tokens=[END])
    assert len(calls) == 1


def test_head_in_forward_equals_the_logits_path() -> None:
    lens = [60, 33]
    ids, mask = _prompts(lens)
    mel, frames = _clips(lens), torch.tensor(lens)
    select = torch.tensor([3, ids.shape[1] + 7, 5, 5])  # rows of both prompts, out of order and repeated
    gradients = []
    for path in ("head", "logits"):
        model = tiny_model(1).train()
        if path == "head":
            rows = model(
                input_ids=ids,
                attention_mask=mask,
                audios=mel,
                audio_lens=frames,
                select=select,
                head=lambda hidden, weight: hidden @ weight.T,
            )
            everything = model(input_ids=ids, attention_mask=mask, audios=mel, audio_lens=frames, head=lambda hidden, weight: hidden.shape)
            assert everything == (ids.numel(), 48)
        else:
            logits = model(input_ids=ids, attention_mask=mask, audios=mel, audio_lens=frames).logits
            rows = logits.flatten(0, 1)[select]
        rows.logsumexp(-1).sum().backward()
        gradients.append((rows.detach(), {name: p.grad for name, p in model.named_parameters()}))
    (head_rows, head_gradients), (rows, expected) = gradients
    assert _close(head_rows, rows)
    for name, gradient in expected.items():
        assert gradient.any(), name
        assert _close(head_gradients[name], gradient), name


def test_labels_give_the_causal_cross_entropy(model: ArkasrForConditionalGeneration) -> None:
    ids = torch.randint(0, 90, (2, 9), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, :4] = -100
    with torch.no_grad():
        out = model(input_ids=ids, labels=labels)
        expected = torch.nn.functional.cross_entropy(out.logits[:, 3:-1].flatten(0, 1), ids[:, 4:].flatten())
        summed = model(input_ids=ids, labels=labels, num_items_in_batch=1).loss
    torch.testing.assert_close(out.loss, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(summed, expected * 10, rtol=1e-6, atol=1e-6)  # 2 rows of 5 counted labels


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_takes_float32_features(dtype: torch.dtype) -> None:
    lens = [60, 33]
    ids, mask = _prompts(lens)
    mel, frames = _clips(lens), torch.tensor(lens)
    logits = perturb(tiny_model(3)).to(dtype)(input_ids=ids, attention_mask=mask, audios=mel, audio_lens=frames).logits
    exact = perturb(tiny_model(3))(input_ids=ids, attention_mask=mask, audios=mel, audio_lens=frames).logits
    assert logits.dtype == dtype
    similarity = torch.nn.functional.cosine_similarity(logits[mask.bool()].float(), exact[mask.bool()], dim=-1)
    assert float(similarity.min()) > 0.99  # bf16 gives 0.9994; after another clip, 0.07 to 0.78
