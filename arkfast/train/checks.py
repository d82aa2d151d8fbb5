"""Whether the parts of a checkpoint belong together: prompt, tokenizer, and the ids that its model has.

What a family says of its prompt is compared with what the checkpoint's files say, without running a model. ``arkfast verify`` shows these
checks one by one, and every run makes them before its first step.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from arkfast.models.family import AudioInput, named_ends
from arkfast.records import InputError, Interface, Utterance

TEMPLATE = "chat_template.jinja"
FRAMES = 64
"""Mel frames of the clip for which prompts are compared."""


class Check(NamedTuple):
    """One thing that was looked at."""

    name: str
    failed: bool
    text: str
    """What was found; where it failed, the cause and what to do."""


def ran(name: str, work: Callable[[], str]) -> Check:
    """The outcome of ``work``, which says what it found or raises ``InputError`` with the cause."""
    try:
        return Check(name, False, work())
    except InputError as error:
        return Check(name, True, " ".join(str(error).split()))


def interface_checks(interface: Interface, task: str, audio: AudioInput | None, vocab_size: int, folder: Path, flag: str) -> list[Check]:
    """All checks of a checkpoint whose tokenizer and configuration are loaded.

    Args:
        interface: its family's.
        task: what it is to do.
        audio: what it hears; None: nothing.
        vocab_size: rows of its token table.
        folder: its files.
        flag: the option that named it.
    """
    where = f"{flag} {folder}"
    return [
        ran("prompt ids", lambda: _prompt_ids(interface, task, audio, vocab_size, where)),
        ran("prompt template", lambda: _template(interface, task, audio, folder, where)),
        ran("end token", lambda: _end_token(interface, task, folder, where)),
        ran("vocabulary", lambda: _vocabulary(interface, task, vocab_size, where)),
    ]


def prompt_of(interface: Interface, task: str, audio: AudioInput | None) -> list[int]:
    """The ids of a prompt without its row, the audio's placeholders as one."""
    frames = 0 if audio is None else FRAMES
    ids = interface.prompt(task).ids(frames, Utterance(id="check", audio=None, text=""))
    return [token for i, token in enumerate(ids) if audio is None or token != audio.placeholder_id or ids[i - 1 : i] != [token]]


def _prompt_ids(interface: Interface, task: str, audio: AudioInput | None, vocab_size: int, where: str) -> str:
    ids = prompt_of(interface, task, audio)
    wrong = [token for token in ids if not 0 <= token < vocab_size]
    if wrong:
        raise InputError(f"{where}: wrong prompt: id {wrong[0]} is none of the model's {vocab_size}; its tokenizer is another model's")
    if audio is not None:
        whole = interface.prompt(task).ids(FRAMES, Utterance(id="check", audio=None, text=""))
        found, expected = whole.count(audio.placeholder_id), audio.token_count(FRAMES)
        if found != expected:
            raise InputError(f"{where}: wrong prompt: {found} placeholders for a clip that has {expected} audio embeddings")
    return " ".join(map(str, ids))


def _template(interface: Interface, task: str, audio: AudioInput | None, folder: Path, where: str) -> str:
    """The special tokens of the checkpoint's own template are those of the prompt that is trained and decoded with, in their order.

    Those around the audio may be missing: a processor may put them in. Blanks and words are not compared, nor is a template that makes
    nothing of a turn with audio.
    """
    file = folder / TEMPLATE
    if audio is None or not file.is_file():
        return "no audio prompt to compare" if audio is None else f"the checkpoint has no {TEMPLATE} to compare with"
    from transformers.utils.chat_template_utils import render_jinja_template

    ours, tokenizer = prompt_of(interface, task, audio), interface.tokenizer
    special = tokenizer.added_tokens_decoder
    instruction = tokenizer.decode([token for token in ours if token not in special], skip_special_tokens=False)
    turns = [{"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": instruction}]}]
    try:
        template = file.read_text(encoding="utf-8")
        rendered = render_jinja_template(conversations=[turns], chat_template=template, add_generation_prompt=True)[0]
    except Exception as error:  # a template is a program from elsewhere, which may raise anything
        return f"not compared: {TEMPLATE} makes nothing of a turn with audio ({' '.join(str(error).split())})"
    expected = iter(token for token in ours if token in special)
    theirs = [token for token in tokenizer.encode(rendered[0], add_special_tokens=False) if token in special]
    if not all(token in expected for token in theirs):
        raise InputError(
            f"{where}: wrong prompt: its {TEMPLATE} makes {rendered[0]!r}, but training and decoding give the model "
            f"{tokenizer.decode(ours, skip_special_tokens=False)!r}; give the checkpoint's own template and tokenizer"
        )
    return repr(rendered[0])


def _end_token(interface: Interface, task: str, folder: Path, where: str) -> str:
    stops = interface.allowed(task).stop_ids
    if interface.end_id not in stops:
        raise InputError(
            f"{where}: swapped tokenizer: its end token is id {interface.end_id}, but the model's configuration ends answers with "
            f"{', '.join(map(str, stops))}; give the tokenizer that the model was trained with"
        )
    generated = named_ends(folder).get("generation_config.json", (interface.end_id,))
    if interface.end_id not in generated:
        raise InputError(
            f"{where}: its generation_config.json ends answers with id {', '.join(map(str, generated))}, its config.json and tokenizer "
            f"with {interface.end_id}; correct eos_token_id in the one that is wrong"
        )
    return f"id {interface.end_id} {interface.tokenizer.convert_ids_to_tokens([interface.end_id])[0]!r}"


def _vocabulary(interface: Interface, task: str, vocab_size: int, where: str) -> str:
    size, added = len(interface.tokenizer), interface.tokenizer.added_tokens_decoder
    # Added tokens past the head are none that an answer or a prompt may hold; text that the model cannot write is another model's.
    if size - vocab_size > sum(token >= vocab_size for token in added):
        raise InputError(
            f"{where}: swapped tokenizer: it has {size} tokens, the model {vocab_size} ids; give the tokenizer that the model was "
            "trained with"
        )
    return f"{size} tokens of {vocab_size} ids, {interface.allowed(task).count} allowed in answers"
