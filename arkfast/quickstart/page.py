"""The report as one HTML page that needs nothing else: styles inside, picture embedded, no script, no link outward.

Knows how to say what the figures say; every figure in a sentence is computed from the report, and everything that comes from outside is
escaped.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape
from typing import Literal

from arkfast.metrics import align
from arkfast.quickstart.results import ARM_LABELS, TABLE_HEADER, ArmRow, Report, Transcription, table_cells

_SETS: dict[Literal["dev", "test"], str] = {"dev": "dev set", "test": "held-out test set"}

_STYLE = """
body { font: 16px/1.55 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; line-height: 1.35; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
img { max-width: 100%; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: .35rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
tr.opd td { font-weight: bold; background: #eef5fb; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; } dt { font-weight: bold; } dd { margin: 0; }
.wrong { color: #b84a00; font-weight: bold; background: none; text-decoration: underline; } del.wrong { text-decoration: line-through; }
pre { background: #f5f5f5; padding: .8rem; overflow-x: auto; } .faint { color: #666; }
"""


def render_page(report: Report, picture: bytes) -> str:
    """The whole page.

    Args:
        report: what to say.
        picture: a PNG file's bytes.
    """
    headline = headline_of(report)
    image = base64.b64encode(picture).decode("ascii")
    sections = [
        f"<h1>{escape(headline)}</h1>",
        f'<div class="wide">{_table(report)}</div>',
        '<p class="faint">WER: word error rate, lower is better; in brackets its 95&nbsp;% bootstrap interval over utterances. Support: '
        "mean number of ids on which teacher and student are compared at a position. Steps and seconds are those of the arm itself.</p>",
        f'<p><img alt="Learning curves on the dev set; a test clip with its transcripts" src="data:image/png;base64,{image}"></p>',
    ]
    if report.clips:
        sections += ["<h2>Test clips, before and after</h2>", *map(_clip, report.clips)]
        sections.append(
            '<p class="faint"><span class="wrong">underlined</span>: wrong or added word; <del class="wrong">struck</del>: left out.</p>'
        )
    sections += [
        "<h2>What this shows, and what it does not</h2>",
        "<ul>",
        *(f"<li>{escape(line)}</li>" for line in findings(report)),
        "</ul>",
    ]
    if report.commands:
        sections += ["<h2>Commands</h2>", f"<pre>{escape(chr(10).join(report.commands))}</pre>"]
    for title, mapping in (("Recipe", report.recipe), ("Machine and versions", report.environment)):
        if mapping:
            sections += [f"<h2>{title}</h2>", _settings(mapping)]
    body = "\n".join(sections)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>arkfast quickstart report</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def headline_of(report: Report) -> str:
    """What OPD did to the dev word error rate, in one sentence, from the rows alone."""
    base, opd, sft = (report.row(arm) for arm in ("base", "opd", "sft"))
    if base is None or opd is None or base.dev is None or opd.dev is None:
        return "On-policy distillation has not been measured yet."
    before, after = base.dev.value, opd.dev.value
    if before == after:
        change = f"left the word error rate at {_percent(after)}"
    else:
        change = f"{'lowered' if after < before else 'raised'} the word error rate from {_percent(before)} to {_percent(after)}"
    sentence = f"On-policy distillation {change} on the {_SETS['dev']}{f' in {opd.steps:,} steps' if opd.steps else ''}"
    if sft is not None and sft.dev is not None:
        steps = f", {sft.steps:,} steps," if sft.steps else ""
        sentence += f"; further training on the student's own labels{steps} gave {_percent(sft.dev.value)}"
    return sentence + "."


def findings(report: Report) -> list[str]:
    """Sentences on what the run shows: OPD against each other arm as the intervals allow, then the limits of such a run."""
    comparisons = [verdict(report, "opd", other, split) for other in ("base", "sft", "pseudo", "td_opd") for split in _SETS]
    return [
        *(sentence for sentence in comparisons if sentence),
        "More SFT sees only the student's few labels, while OPD and the pseudo-labels also hear the unlabelled pool: a gain over more SFT "
        "is the worth of the pool and the teacher together, and not of OPD alone.",
        "The intervals say how far other utterances of the same kind could move a figure. They do not say how far another random seed, "
        "teacher or student could: this is one run.",
        "Synthetic voices saying digits are far easier than speech. The page shows that the machinery works from end to end, and not how "
        "accurate a model would be on recordings.",
        "The test set has texts, voices and noises that training never heard; the dev set shares its voices and noises with training.",
    ]


def verdict(report: Report, first: str, second: str, split: Literal["dev", "test"]) -> str:
    """How two arms compare on a set, no stronger than the intervals allow; empty where either is not measured.

    A paired interval of the difference decides where the report has one. Otherwise two intervals that overlap leave it open, although a
    paired comparison might have settled it.
    """
    rows = report.row(first), report.row(second)
    ours, theirs = (None if row is None else row.dev if split == "dev" else row.test for row in rows)
    if ours is None or theirs is None:
        return ""
    figures = f"{_name(first)} against {_name(second)} on the {_SETS[split]}: {_percent(ours.value)} and {_percent(theirs.value)}"
    paired = next((d for d in report.differences if (d.first, d.second, d.split) == (first, second, split)), None)
    if paired is not None:
        low, high = paired.low, paired.high
        interval = f"paired difference {100 * paired.value:+.1f} points, 95 % interval {100 * low:+.1f} to {100 * high:+.1f}"
    else:
        low, high = ours.low - theirs.high, ours.high - theirs.low
        interval = "95 % intervals overlap" if low <= 0 <= high else "95 % intervals do not overlap"
    if high < 0:
        return f"{figures} ({interval}): {_name(first)} makes fewer errors."
    if low > 0:
        return f"{figures} ({interval}): {_name(first)} makes more errors."
    return f"{figures} ({interval}): this run does not tell them apart."


def _name(arm: str) -> str:
    return {"base": "the base student"}.get(arm, ARM_LABELS[arm])


def _percent(rate: float) -> str:
    return f"{100 * rate:.1f} %"


def _table(report: Report) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in TABLE_HEADER)
    order = list(ARM_LABELS)
    rows = "\n".join(_table_row(row) for row in sorted(report.rows, key=lambda row: order.index(row.arm)))
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>"


def _table_row(row: ArmRow) -> str:
    return f'<tr class="{row.arm}">' + "".join(f"<td>{escape(cell)}</td>" for cell in table_cells(row)) + "</tr>"


def _clip(clip: Transcription) -> str:
    note = f", {clip.note}" if clip.note else ""
    return (
        f'<h3>{escape(clip.id)} <span class="faint">{clip.seconds:.1f} s{escape(note)}</span></h3>\n<dl>\n'
        f"<dt>said</dt><dd>{escape(clip.reference)}</dd>\n"
        f"<dt>base student</dt><dd>{_marked(clip.reference, clip.before)}</dd>\n"
        f"<dt>after OPD</dt><dd>{_marked(clip.reference, clip.after)}</dd>\n</dl>"
    )


def _marked(reference: str, hypothesis: str) -> str:
    """The hypothesis with its wrong words marked and the left-out ones struck in their places."""
    words = []
    for word in align(reference.split(), hypothesis.split()):
        if word.hypothesis is None:
            words.append(f'<del class="wrong">{escape(word.reference or "")}</del>')
        else:
            words.append(escape(word.hypothesis) if word.right else f'<mark class="wrong">{escape(word.hypothesis)}</mark>')
    return " ".join(words)


def _settings(mapping: Mapping[str, object]) -> str:
    return "<dl>\n" + "\n".join(f"<dt>{escape(str(name))}</dt><dd>{escape(str(value))}</dd>" for name, value in mapping.items()) + "\n</dl>"
