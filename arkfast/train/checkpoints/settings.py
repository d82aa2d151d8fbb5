"""What of a run's settings moves its numbers without making it another run: a resume may change that, and says that it did."""

from __future__ import annotations

from pathlib import Path

from arkfast.records import JsonRow

SCHEDULE = ("max_steps", "total_epochs", "learning_rate", "lr_scheduler_type", "wsd_decay_share", "warmup_steps", "min_lr_ratio",
            "weight_decay", "adam_beta1", "adam_beta2", "grad_clip", "ema_decay")  # fmt: skip
OBJECTIVE = ("opd_top_k", "opd_temperature", "divergence", "jsd_beta", "support", "tail_bucket", "opd_objective", "control_variate",
             "empty_rollout", "loop_guard", "length_guard", "end_weight", "position_decay", "asr_opd_max_new_tokens",
             "rollouts_per_prompt", "rollout_temperature", "rollout_top_p", "rollout_top_k", "ctc_weight", "teacher_backend",
             "teacher_prompt", "teacher_full_attention", "unsupported_language", "model_dtype", "student_attn_implementation",
             "teacher_attn_implementation", "deterministic")  # fmt: skip
DATA = ("eval_data", "channel", "audio_track", "on_truncated", "on_bad_audio", "max_audio_seconds")
NOTED = (*SCHEDULE, *OBJECTIVE, *DATA)
"""What is said. The rest is a part of what a run is (``IDENTITY``), or says where, how fast and how closely watched it runs."""


def changed(before: JsonRow, now: JsonRow) -> str | None:
    """One sentence on the settings that a resume changes; None where it changes none.

    Args:
        before: the settings with which the checkpoint was trained; one that is not there is not compared.
        now: those of this launch.
    """
    shown = [
        f"--{name} {_said(now[name])} (before: {_said(before[name])})"
        for name in NOTED
        if name in before and name in now and before[name] != now[name] and not _same_file(before[name], now[name])
    ]
    return f"the run goes on with other settings than before: {', '.join(shown)}" if shown else None


def _said(value: object) -> str:
    return "none" if value in (None, "") else str(value)


def _same_file(a: object, b: object) -> bool:
    return isinstance(a, str) and isinstance(b, str) and Path(a).exists() and Path(a).resolve() == Path(b).resolve()
