"""The flags of open-audio-opd's trainer that ask here for nothing: taken off the command line, and said.

Every other flag of the original is a field of ``TrainConfig``. Most of these had no effect there either. A value other than the original's
default is answered with a sentence, so that nobody believes that it was obeyed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from arkfast.records import InputError

WITHOUT_EFFECT: dict[str, str] = {
    "qwen3_asr_code_path": "Qwen3-ASR runs on Transformers' own implementation; no code is read from a folder",
    "teacher_vllm_gpu_memory_utilization": "no teacher runs in vLLM yet",
    "hf_cache_dir": "the manifest is read in place; no data set is built or cached",
    "dataloader_persistent_workers": "worker processes live as long as the run",
    "dataloader_multiprocessing_context": "worker processes are started as fresh interpreters, on every system alike",
    "opd_loss_weight": "the distillation loss stands alone, with weight 1",
    "opd_eos_loss_weight": "the end token is a candidate like any other at every position",
    "opd_append_teacher_eos_for_stopped_rollouts": "the position that predicts the end token is trained whenever the rollout stopped",
    "asr_terminal_loss_weight": "there is no separate term for the end token",
    "opd_student_score_mode": "the student's scores come from one forward over its own rollout; both modes are that",
    "debug_generation_steps": "rollouts are summed up in every step's record",
    "debug_opd_steps": "times and counts stand in every step's record",
    "asr_block_token_id_from": "what a transcript may hold follows from the tokenizer",
}
"""Flag → why it has nothing to do here."""

_DEFAULTS: dict[str, str | float | bool] = {
    "qwen3_asr_code_path": "",
    "teacher_vllm_gpu_memory_utilization": 0.3,
    "hf_cache_dir": ".cache/hf_datasets",
    "dataloader_persistent_workers": False,
    "dataloader_multiprocessing_context": "",
    "opd_loss_weight": 1.0,
    "opd_eos_loss_weight": 0.0,
    "opd_append_teacher_eos_for_stopped_rollouts": False,
    "asr_terminal_loss_weight": 0.0,
    "opd_student_score_mode": "teacher_forcing",
    "debug_generation_steps": 0.0,
    "debug_opd_steps": 0.0,
    "asr_block_token_id_from": 151670.0,
}
"""The original's defaults: a launcher that passes every flag is told nothing about them."""


def _is_default(name: str, value: str) -> bool:
    """Whether a value is the original's default, however it is written."""
    default = _DEFAULTS[name]
    if isinstance(default, bool):
        return value.strip().lower() in ("0", "false", "no", "off")  # none of them is on
    if isinstance(default, float):
        try:
            return float(value) == default
        except ValueError:
            return False
    return value == default or (name == "hf_cache_dir" and value == os.environ.get("HF_DATASETS_CACHE"))


def without_original_flags(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The command line without the flags that have nothing to do here.

    Args:
        argv: flags as ``--flag_name value``, ``--flag-name value`` or ``--flag_name=value``.

    Returns:
        (what is left, one sentence for each such flag whose value was not the original's default).

    Raises:
        InputError: such a flag without a value, or ``--sampling_rate`` other than 16000.
    """
    rest: list[str] = []
    notes: list[str] = []
    words = iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        name = name[2:].replace("-", "_") if name.startswith("--") else ""
        if name != "sampling_rate" and name not in WITHOUT_EFFECT:
            rest.append(word)
            continue
        if not equals:
            given = next(words, None)
            if given is None:
                raise InputError(f"--{name}: needs a value")
            value = given
        if name == "sampling_rate" and value != "16000":
            raise InputError(f"--sampling_rate {value}: the models hear 16000 Hz, and files of any other rate are resampled; leave it out")
        if name in WITHOUT_EFFECT and not _is_default(name, value):
            notes.append(f"--{name} {value}: has no effect: {WITHOUT_EFFECT[name]}")
    return rest, notes
