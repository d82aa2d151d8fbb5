"""The page of a run: a sentence on what came of it, curves, where the time went, transcripts, settings.

Knows the log's names and how to say what they say. A chart whose figures the run did not log is left out; every figure on the page is
computed from the records.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from html import escape

from arkfast.metrics import align, normalize, tokenize
from arkfast.plots import Series, line_chart, number, page, share_bar
from arkfast.records import JsonObject
from arkfast.train.config import TrainConfig
from arkfast.train.logging.phase_table import STEP, parts_of, phase_named
from arkfast.train.report.run_records import RunRecords

_STYLE = """
.lead { font-size: 1.0625rem; max-width: 60rem; margin: .4rem 0 1.2rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 9.5rem), 1fr)); gap: .8rem; margin: 0; }
.tiles div { background: var(--card); border: 1px solid var(--grid); border-radius: .6rem; padding: .6rem .8rem; }
.tiles dt { font-size: .8125rem; color: var(--faint); } .tiles dd { margin: 0; font-size: 1.3rem; font-weight: 600; }
.sample { background: var(--card); border: 1px solid var(--grid); border-radius: .6rem; padding: .8rem; }
.sample h3 { font-size: .875rem; color: var(--faint); margin: 0 0 .4rem; overflow-wrap: anywhere; }
.sample dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; margin: 0; } .sample dt { color: var(--faint); }
.sample dd { margin: 0; overflow-wrap: anywhere; }
mark { background: none; color: var(--bad); font-weight: 600; text-decoration: underline; } del { color: var(--bad); }
details { margin-top: .8rem; } summary { cursor: pointer; width: fit-content; } td code { overflow-wrap: anywhere; }
"""

# (title, note, whether the axis starts at 0, (log name, key) of each line).
_CHARTS: tuple[tuple[str, str, bool, tuple[tuple[str, str], ...]], ...] = (
    ("Loss", "", True, (("loss", "loss"),)),
    ("KL to the teacher", "τ²·KL(p‖q) a position, on the union", True, (("opd_loss", "KL"),)),
    ("Cross-entropy", "a token", True, (("asr_loss", "cross-entropy"), ("ctc_loss", "CTC"))),
    ("Learning rate", "", True, (("lr", "learning rate"),)),
    ("Gradient norm", "before clipping", True, (("grad_norm", "gradient norm"),)),
    ("Union and overlap", "ids a position", True, (("opd_valid_topk_mean", "union"), ("opd_overlap_mean", "in both top-k"))),
    ("Rollout length", "tokens", True, (("generated_tokens_mean", "tokens"),)),
    ("Rollouts", "share", True, (("generated_stopped", "stopped by themselves"), ("generated_nonempty", "not empty"))),
    ("Step time", "seconds", True, tuple((timed.logged, timed.label) for timed in (STEP, phase_named("data_wait")))),
    ("Speed", "audio seconds a second", True, (("audio_seconds_per_second", "audio"),)),
    ("MFU", "share of the device's peak", True, (("mfu", "MFU"),)),
)
_PHASES = parts_of(STEP.name)
_MOST_SAMPLES = 12


def render(run: RunRecords) -> str:
    """The whole page."""
    sections = [f"<h1>{escape(run.name)}</h1>", f'<p class="lead">{escape(headline(run))}</p>', _tiles(run), *_warnings(run)]
    charts = _charts(run)
    if charts:
        sections += ["<h2>Curves</h2>", f'<div class="charts">{"".join(charts)}</div>']
        sections.append('<p class="faint">A pale band is the range of the steps that share a point. Values show on hovering.</p>')
    shares = _shares(run)
    if shares:
        sections += ["<h2>Where a step's time goes</h2>", f'<div class="charts">{shares}</div>']
    sections += ["<h2>Transcripts before and after</h2>", *_samples(run)]
    sections += ["<h2>Settings</h2>", _settings(run.config)]
    return page(f"{run.name}: arkfast training report", "<main>\n" + "\n".join(sections) + "\n</main>", style=_STYLE)


def headline(run: RunRecords) -> str:
    """What came of the run, in a sentence or two, from its records alone."""
    stage = {"opd": "On-policy distillation", "td": "Training on teacher data", "sft": "Supervised fine-tuning"}.get(
        str(run.config.get("stage")), "Training"
    )
    if not run.steps:
        return f"{stage} has not taken a step yet."
    done, planned = run.steps[-1]["step"], run.config.get("max_steps") or 0
    sentence = f"{stage}: {done:,}{f' of {planned:,}' if planned else ''} steps"
    rates = [(record["step"], record["eval_wer"]) for record in run.evaluations if _is_number(record["eval_wer"])]
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


def _tiles(run: RunRecords) -> str:
    seconds = sum(_values(run.steps, STEP.logged))
    heard = [record for record in run.steps if "audio_seconds" in record]  # several ranks measure only some steps in full
    audio, meanwhile = sum(_values(heard, "audio_seconds")), sum(_values(heard, STEP.logged))
    tiles = [("steps", f"{run.steps[-1]['step']:,}" if run.steps else "0")]
    if run.steps and _is_number(run.steps[-1].get("epoch")):
        tiles.append(("epochs", f"{run.steps[-1]['epoch']:.2f}"))
    if seconds:
        tiles.append(("time in steps", _duration(seconds)))
    if audio and len(heard) == len(run.steps):
        tiles.append(("audio", _duration(audio)))
    if audio and meanwhile:
        tiles.append(("audio seconds a second", number(audio / meanwhile)))
    losses = _values(run.steps, "loss")
    if losses:
        recent = losses[-max(1, len(losses) // 20) :]
        tiles.append(("loss, last steps", number(sum(recent) / len(recent))))
    return '<dl class="tiles">' + "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in tiles) + "</dl>"


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _warnings(run: RunRecords) -> list[str]:
    """What a reader must not overlook."""
    said = []
    skipped = [record["step"] for record in run.steps if record.get("skipped")]
    if skipped:
        said.append(f"{len(skipped)} steps were skipped because loss or gradient was not finite, first at step {skipped[0]:,}")
    bad = [clip for record in run.steps for clip in record.get("bad_audio", ())]
    if bad:
        said.append(f"{len(bad)} clips could not be read and were passed over, the first: {bad[0]}")
    cut = run.evaluations[-1].get("eval_cut") if run.evaluations else 0
    if cut:
        said.append(f"{cut} transcripts of the last evaluation were cut at the length limit")
    return [f'<p class="bad">{escape(sentence)}.</p>' for sentence in said]


def _charts(run: RunRecords) -> list[str]:
    charts = []
    if any(_is_number(record["eval_wer"]) for record in run.evaluations):
        charts.append(line_chart([_series(run.evaluations, "eval_wer", "WER", 2, dots=True)], title="WER", note="% of words", zero=True))
    for title, note, zero, names in _CHARTS:
        lines = [
            _series([record for record in run.steps if name in record], name, key, tone)
            for tone, (name, key) in enumerate(names, 1)
            if _values(run.steps, name)
        ]
        if not lines or (title != "Loss" and len(lines) == 1 and _is_the_loss(run.steps, names[0][0])):
            continue
        if title == "Loss":
            note = {"opd": "τ²·KL(p‖q) a position, on the union", "td": "cross-entropy a token"}.get(str(run.config.get("stage")), "")
        charts.append(line_chart(lines, title=title, note=note, zero=zero))
    return charts


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
    note = "seconds in all; of each phase that of its slowest rank"
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
    return share_bar(totals, title="Share of the step", note=note) + line_chart(
        over_time, title="Longest phases", note="seconds a step", zero=True
    )


def _samples(run: RunRecords) -> list[str]:
    """The same clips at the first and the last evaluation."""
    by_id: dict[str, list[JsonObject]] = {}
    for sample in run.samples:
        by_id.setdefault(str(sample.get("id", "")), []).append(sample)
    if not by_id:
        return ['<p class="faint">The run logged no transcripts; evaluations log a few.</p>']
    shown = [_sample(name, samples) for name, samples in list(by_id.items())[:_MOST_SAMPLES]]
    key = '<p class="faint"><mark>underlined</mark>: wrong or added; <del>struck</del>: left out. Texts as they are scored, normalised.</p>'
    return [f'<div class="charts">{"".join(shown)}</div>', key]


def _sample(name: str, samples: list[JsonObject]) -> str:
    first, last = min(samples, key=lambda s: s["step"]), max(samples, key=lambda s: s["step"])
    reference, language = str(last.get("text") or ""), last.get("language")
    rows = [f"<dt>said</dt><dd>{escape(normalize(reference, language=language))}</dd>"]
    for sample in (first, last) if last["step"] > first["step"] else (last,):
        rows.append(f"<dt>step {sample['step']:,}</dt><dd>{marked(reference, str(sample.get('pred_text') or ''), language)}</dd>")
    return f'<div class="sample"><h3>{escape(name)}</h3><dl>{"".join(rows)}</dl></div>'


def marked(reference: str, hypothesis: str, language: str | None = None) -> str:
    """A transcript as markup, its wrong and added words marked and those it lacks struck in their places: one mark for each error.

    Both texts are normalised as they are scored and aligned as errors are counted. Where a script has no spaces between words, its
    characters are aligned instead.
    """
    said, heard = (tokenize(normalize(text, language=language), "mixed") for text in (reference, hypothesis))
    parts: list[str] = []
    for pair in align(said, heard):
        if pair.hypothesis is None:
            parts.append(f"<del>{escape(pair.reference or '')}</del>")
        else:
            parts.append(escape(pair.hypothesis) if pair.right else f"<mark>{escape(pair.hypothesis)}</mark>")
    return " ".join(parts) or '<span class="faint">nothing</span>'


def _settings(config: JsonObject) -> str:
    """What was set, then everything."""
    defaults = {field.name: _plain(field.default) for field in dataclasses.fields(TrainConfig) if field.default is not dataclasses.MISSING}
    chosen = {name: value for name, value in config.items() if name not in defaults or value != defaults[name]}
    everything = f"<details><summary>All {len(config)} settings</summary>{_table(config)}</details>"
    return f"{_table(chosen)}{everything}"


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _table(config: JsonObject) -> str:
    rows = "".join(f"<tr><td>{escape(str(name))}</td><td><code>{escape(str(value))}</code></td></tr>" for name, value in config.items())
    return f'<div class="wide"><table>{rows}</table></div>'
