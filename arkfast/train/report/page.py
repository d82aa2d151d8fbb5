"""What stands on the page of a run: what came of it, curves, where the time went, the transcripts that changed, settings.

A chart whose figures the run did not log is left out; every figure on the page is computed from the records.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from arkfast.metrics import Pair, align, normalize, tokenize
from arkfast.plots import Series, line_chart, number, share_bar
from arkfast.records import JsonObject, JsonRow
from arkfast.reports import Run, dated, duration, render, runs
from arkfast.train.config import TrainConfig
from arkfast.train.logging.phase_table import STEP, parts_of, phase_named
from arkfast.train.report.run_records import RunRecords

# (title, note, whether the axis starts at 0, (log name, key) of each line).
_CHARTS: tuple[tuple[str, str, bool, tuple[tuple[str, str], ...]], ...] = (
    ("Loss", "", True, (("loss", "loss"),)),
    ("Divergence from the teacher", "τ² times --divergence a position, on --support", True, (("opd_loss", "divergence"),)),
    ("Cross-entropy", "nats a token", True, (("asr_loss", "cross-entropy"), ("ctc_loss", "CTC"))),
    ("Learning rate", "", True, (("lr", "learning rate"),)),
    ("Gradient norm", "before clipping", True, (("grad_norm", "gradient norm"),)),
    ("Support and overlap", "ids a position", True, (("opd_valid_topk_mean", "support"), ("opd_overlap_mean", "in both top-k"))),
    ("Rollout length", "tokens", True, (("generated_tokens_mean", "tokens"),)),
    ("Rollouts", "share", True, (("generated_stopped", "stopped by themselves"), ("generated_nonempty", "not empty"))),
    ("Step time", "seconds", True, tuple((timed.logged, timed.label) for timed in (STEP, phase_named("data_wait")))),
    ("Speed", "seconds of audio a second", True, (("audio_seconds_per_second", "audio"),)),
    ("MFU", "share of the device's peak", True, (("mfu", "MFU"),)),
)
_PHASES = parts_of(STEP.name)
_MOST_SAMPLES = 12


@dataclass(frozen=True, kw_only=True)
class ShownClip:
    """A clip of the evaluation set with what was heard at the first and at the last evaluation."""

    name: str
    figures: str
    """How many errors it had and has."""
    said: str
    transcripts: Sequence[tuple[str, Sequence[Run]]]
    """(which step, the transcript beside the reference)."""
    change: int
    """Errors at the last evaluation minus errors at the first."""


def page(run: RunRecords) -> str:
    """The whole page."""
    model, data = (PurePath(str(run.config[key])).name if run.config.get(key) else "" for key in ("student_model", "train_data"))
    day = dated(run.day) if run.day else ""
    clips = _samples(run)
    shown = clips[:_MOST_SAMPLES]
    return render(
        "training.html",
        title=f"{run.name}: arkfast training report",
        drawings={"charts": "".join(_charts(run)), "shares": _shares(run)},
        name=run.name,
        about=[f"model {model}" if model else "", f"data {data}" if data else "", f"last step logged {day}" if day else ""],
        hero=_hero(run),
        lead=headline(run),
        tiles=_tiles(run),
        warnings=_warnings(run),
        clips=shown,
        clips_note=_clips_note(clips, shown),
        chosen=_chosen(run.config),
        settings=[(str(name), str(value)) for name, value in run.config.items()],
    )


def _rates(run: RunRecords) -> list[tuple[int, float]]:
    return [(record["step"], record["eval_wer"]) for record in run.evaluations if _is_number(record["eval_wer"])]


def _hero(run: RunRecords) -> dict[str, str]:
    """The page's one figure: the error rate before and after, else how far the run is."""
    rates = _rates(run)
    if not rates:
        done, planned = run.steps[-1]["step"] if run.steps else 0, run.config.get("max_steps") or 0
        return {"figure": f"{done:,} steps", "unit": f"of {planned:,}" if planned else "", "what": "WER was not measured.", "tone": ""}
    (first_step, first), (last_step, last) = rates[0], rates[-1]
    if len(rates) == 1:
        return {"figure": f"{last:.2f} %", "unit": "WER", "what": f"on the evaluation set at step {last_step:,}", "tone": ""}
    what = f"on the evaluation set, step {first_step:,} to step {last_step:,}"
    tone = "pass" if last < first else "bad" if last > first else ""
    return {"figure": f"{first:.2f} % → {last:.2f} %", "unit": "WER", "what": what, "tone": tone}


def headline(run: RunRecords) -> str:
    """What came of the run, in a sentence or two, from its records alone."""
    stage = {"opd": "On-policy distillation", "td": "Training on teacher data", "sft": "Supervised fine-tuning"}.get(
        str(run.config.get("stage")), "Training"
    )
    if not run.steps:
        return f"{stage} has not taken a step yet."
    done, planned = run.steps[-1]["step"], run.config.get("max_steps") or 0
    sentence = f"{stage}: {done:,}{f' of {planned:,}' if planned else ''} steps"
    rates = _rates(run)
    if not rates:
        return f"{sentence}; WER was not measured."
    (first_step, first), (last_step, last) = rates[0], rates[-1]
    best_step, best = min(rates, key=lambda rate: rate[1])
    if len(rates) == 1:
        return f"{sentence}; WER on the evaluation set is {last:.2f} % at step {last_step:,}."
    verb = "fell" if last < first else "rose" if last > first else "stayed"
    change = f"from {first:.2f} % at step {first_step:,} to {last:.2f} % at step {last_step:,}" if last != first else f"at {last:.2f} %"
    return f"{sentence}; WER on the evaluation set {verb} {change}, lowest {best:.2f} % at step {best_step:,}."


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _values(records: Iterable[JsonObject], name: str) -> list[float]:
    return [float(record[name]) for record in records if _is_number(record.get(name))]


def _tiles(run: RunRecords) -> list[dict[str, object]]:
    seconds = sum(_values(run.steps, STEP.logged))
    heard = [record for record in run.steps if "audio_seconds" in record]  # several ranks measure only some steps in full
    audio, meanwhile = sum(_values(heard, "audio_seconds")), sum(_values(heard, STEP.logged))
    tiles = [("steps", f"{run.steps[-1]['step']:,}" if run.steps else "0")]
    if run.steps and _is_number(run.steps[-1].get("epoch")):
        tiles.append(("epochs", f"{run.steps[-1]['epoch']:.2f}"))
    if seconds:
        tiles.append(("time in steps", duration(seconds)))
    if audio and len(heard) == len(run.steps):
        tiles.append(("audio", duration(audio)))
    if audio and meanwhile:
        tiles.append(("audio a second of training", f"{number(audio / meanwhile)} s"))
    losses = _values(run.steps, "loss")
    if losses:
        recent = losses[-max(1, len(losses) // 20) :]
        tiles.append(("loss, last steps", number(sum(recent) / len(recent))))
    return [{"name": name, "value": value, "note": "", "alert": False} for name, value in tiles]


def _warnings(run: RunRecords) -> list[str]:
    """What a reader must not overlook."""
    said = []
    skipped = [record["step"] for record in run.steps if record.get("skipped")]
    if skipped:
        steps = "1 step was" if len(skipped) == 1 else f"{len(skipped):,} steps were"
        said.append(f"{steps} skipped because loss or gradient was not finite, first at step {skipped[0]:,}")
    bad = [clip for record in run.steps for clip in record.get("bad_audio", ())]
    if bad:
        clips = "1 clip" if len(bad) == 1 else f"{len(bad):,} clips"
        said.append(f"{clips} could not be read and {'was' if len(bad) == 1 else 'were'} passed over, the first: {bad[0]}")
    cut = run.evaluations[-1].get("eval_cut") if run.evaluations else 0
    if cut:
        said.append(f"{cut:,} {'transcript' if cut == 1 else 'transcripts'} of the last evaluation ended at the length limit")
    return [f"{sentence}." for sentence in said]


def _charts(run: RunRecords) -> list[str]:
    charts = []
    if any(_is_number(record["eval_wer"]) for record in run.evaluations):
        rates = _series(run.evaluations, "eval_wer", "WER", 2, dots=True)
        charts.append(line_chart([rates], title="WER", note="% of the reference", zero=True))
    for title, note, zero, names in _CHARTS:
        lines = [
            _series([record for record in run.steps if name in record], name, key, tone)
            for tone, (name, key) in enumerate(names, 1)
            if _values(run.steps, name)
        ]
        if not lines or (title != "Loss" and len(lines) == 1 and _is_the_loss(run.steps, names[0][0])):
            continue
        if names[0][0] == "opd_loss" and _objective(run.config) != "divergence":
            continue  # no divergence, and the loss is drawn above
        if title == "Loss":
            note = _of_loss(run.config)
        charts.append(line_chart(lines, title=title, note=note, zero=zero))
    return charts


def _objective(config: JsonRow) -> str:
    return str(config.get("opd_objective", "divergence"))


def _of_loss(config: JsonRow) -> str:
    """What the loss is, as the flags chose it."""
    if config.get("stage") == "td":
        return "cross-entropy a token"
    if config.get("stage") != "opd":
        return ""
    if (objective := _objective(config)) != "divergence":
        return f"−advantage · log q a position, --opd_objective {objective}"
    chosen = config.get("divergence", "forward_kl"), config.get("support", "union"), config.get("tail_bucket", False)
    if chosen == ("forward_kl", "union", False):
        return "τ²·KL(p‖q) a position, on the union"
    return f"τ² times --divergence {chosen[0]} a position, on --support {chosen[1]}{' with a tail' if chosen[2] else ''}"


def _is_the_loss(steps: Sequence[JsonObject], name: str) -> bool:
    """Whether a part of the loss is all of it, so that one chart says both."""
    return all(math.isclose(a, b, rel_tol=1e-4) for a, b in zip(_values(steps, name), _values(steps, "loss"), strict=False))


def _series(records: Sequence[JsonObject], name: str, label: str, tone: int, *, dots: bool = False) -> Series:
    values = [float(record[name]) if _is_number(record.get(name)) else None for record in records]
    return Series(label=label, x=[record["step"] for record in records], y=values, tone=tone, dots=dots)


def _shares(run: RunRecords) -> str:
    """The phases' shares of the time of the steps that measured them; what no phase holds is the rest."""
    steps = [record for record in run.steps if any(timed.logged in record for timed in _PHASES)]
    totals = [(timed.label, sum(_values(steps, timed.logged))) for timed in _PHASES if _values(steps, timed.logged)]
    whole, named = sum(_values(steps, STEP.logged)), sum(seconds for _, seconds in totals)
    if not named > 0:
        return ""
    note = "time in all; of each phase that of its slowest rank"
    if whole > named:
        totals.append(("the rest", whole - named))
    elif named > 1.02 * whole:
        note += f"; phases overlap, their sum is {named / whole:.2f} times the steps' time"
    by_tone: dict[int, Series] = {}  # the bar's colours; of two phases that share one, the longer
    for i, (label, _) in sorted(enumerate(totals), key=lambda item: -item[1][1]):
        name = next((timed.logged for timed in _PHASES if timed.label == label), None)
        if name is not None and len(by_tone) < 5:
            by_tone.setdefault(i % 6 + 1, _series(steps, name, label, i % 6 + 1))
    over_time = [by_tone[tone] for tone in sorted(by_tone)]
    return share_bar(totals, title="Share of the step", note=note, unit="s") + line_chart(
        over_time, title="Longest phases", note="seconds a step", zero=True
    )


def _samples(run: RunRecords) -> list[ShownClip]:
    """The logged clips at the first and the last evaluation, those whose errors changed most first."""
    by_id: dict[str, list[JsonObject]] = {}
    for sample in run.samples:
        by_id.setdefault(str(sample.get("id", "")), []).append(sample)
    return sorted((_sample(name, samples) for name, samples in by_id.items()), key=lambda clip: -abs(clip.change))


def _sample(name: str, samples: list[JsonObject]) -> ShownClip:
    first, last = min(samples, key=lambda s: s["step"]), max(samples, key=lambda s: s["step"])
    reference, language = str(last.get("text") or ""), last.get("language")
    transcripts, errors = [], []
    for sample in (first, last) if last["step"] > first["step"] else (last,):
        pairs = aligned(reference, str(sample.get("pred_text") or ""), language)
        transcripts.append((f"step {sample['step']:,}", runs(pairs, "mixed")))
        errors.append(sum(not pair.right for pair in pairs))
    counted = [f"{count:,} {'error' if count == 1 else 'errors'}" for count in errors]
    return ShownClip(
        name=name,
        figures=" → ".join(counted),
        said=normalize(reference, language=language),
        transcripts=transcripts,
        change=errors[-1] - errors[0],
    )


def _clips_note(clips: Sequence[ShownClip], shown: Sequence[ShownClip]) -> str:
    if not clips:
        return "The run logged no transcripts; evaluations log a few."
    changed = sum(clip.change != 0 for clip in clips)
    note = f"{len(shown):,} of the {len(clips):,} clips whose transcripts were logged" if len(clips) > len(shown) else (
        f"The {len(clips):,} clips whose transcripts were logged"
    )  # fmt: skip
    return f"{note}, those that changed most first; {changed:,} changed. Texts as they are scored, normalised."


def aligned(reference: str, hypothesis: str, language: str | None = None) -> list[Pair]:
    """A transcript beside its reference, both normalised as they are scored, aligned as errors are counted.

    Where a script has no spaces between words, its characters are aligned instead.
    """
    said, heard = (tokenize(normalize(text, language=language), "mixed") for text in (reference, hypothesis))
    return align(said, heard)


def _chosen(config: JsonObject) -> list[tuple[str, str]]:
    """What differs from the defaults."""
    defaults = {field.name: _plain(field.default) for field in dataclasses.fields(TrainConfig) if field.default is not dataclasses.MISSING}
    return [(name, str(value)) for name, value in config.items() if name not in defaults or value != defaults[name]]


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
