"""What an evaluation leaves behind: ``summary.json`` and scored rows. This page is their contract.

Rates are fractions (0.05 is 5 %); what does not exist is null, never 0.

``summary.json`` is one object::

    schema              1
    input, output       the paths that were read and written (output is null where no rows were written to a file)
    repeats             rows of the input that repeat an earlier one in every field and were left out (--allow_repeats)
    transcripts_sha256, output_sha256
                        of the file whose transcripts were scored (the input, or what the model wrote; null where it is no regular file,
                        and in files of earlier versions) and of the written rows, so that a later comparison knows them again
    model_path          the checkpoint, null where the transcripts were given
    model_commit        the commit of the repository that the checkpoint came from; null where it was a folder, or none
    normalizer          {"name": "basic", "version": "1", "sha256": "…", "options": ["tags", "fillers: uh um"]}; options say what
                        was taken out of the texts before, and are missing in files of earlier versions
    confidence          0.95
    resamples, seed     of the bootstrap
    group_by            field whose values are resampled together (session, speaker), or null for utterances
    …                   every field of a group (below) for all rows together, with preset and language null
    groups              [group, …]: one for each (preset, language), in the order in which they first appear
    audio_seconds, processing_seconds, wall_seconds, rtfx, rtfx_end_to_end
                        null where no model was run. audio_seconds: of the clips that have a transcript; processing_seconds: of the
                        main process in log-mel, encoding, decoding and text (what workers did meanwhile is left out); wall_seconds: from
                        the first row read to the last one written, without the loading of the model. rtfx is audio_seconds /
                        processing_seconds, rtfx_end_to_end is audio_seconds / wall_seconds
    comparison          null, or what --compare found (``compare.Comparison.to_dict``)
    gate                null, or what --baseline found (``gate.Verdict.to_dict``)

A group::

    preset, language    text or null
    unit                "word", "char" or "mixed"; "joint" for all rows together when groups differ (each row in its own unit)
    unit_rule           why, as a sentence: "language zh", "--unit", "no language given: script of the references"
    metric              the headline's name: "wer", "cer", "mer" or "joint", after unit
    rate, rate_low, rate_high
                        the headline and its 95 % bootstrap interval
    rate_with_failures  the headline if every failed row were an empty transcript
    wer, cer, mer       the three rates (Korean has both CER and WER; where words are not separated by spaces, wer is mer)
    substitutions, deletions, insertions, hits, reference_units
                        in unit, over the scored rows
    utterances          all rows = scored + failed + without_reference
    scored, failed, without_reference
    coverage            scored / utterances
    truncated           scored rows whose transcript was cut short: at its token limit, or because it repeated itself
    empty_references    scored rows whose reference has no unit (silence)
    hallucinated        those of them in which the transcript has units
    insertions_on_empty_references
                        the units written there; the rates count them too
    counts              [[errors, reference units, how often], …]: what the bootstrap draws from

A scored row is the input's row, in the input's order, plus::

    preset, language    text or null: the row's own, else what --preset (or the input's name) and --language say
    outcome             "scored", "failed" (no transcript) or "no_reference"
    ref_text            the reference as given, or null
    ref_text_clean, pred_text_clean
                        after normalisation, null where there is none
    wer_errors, ref_words, cer_errors, ref_chars, mer_errors, ref_mixed
                        errors and reference units as integers; errors are null in rows that are not scored
    unit                the row's own unit: "word", "char" or "mixed"
    errors, substitutions, deletions, insertions, hits, ref_units
                        in unit; null in rows that are not scored (ref_units is there wherever there is a reference)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from arkfast.evaluate.scores import Scores
from arkfast.files.inputs import open_bytes
from arkfast.files.json_input import parse_json
from arkfast.metrics import CONFIDENCE, RESAMPLES, label
from arkfast.records import InputError, JsonObject, JsonRow

SCHEMA = 1
SEED = 0


def summarise(scores: Scores, **more: object) -> JsonObject:
    """The object of ``summary.json``; ``more`` are the fields that scores do not know, those of a run among them."""
    known = {
        "schema": SCHEMA,
        "input": None,
        "output": None,
        "transcripts_sha256": None,
        "output_sha256": None,
        "repeats": 0,
        "model_path": None,
        "model_commit": None,
        "normalizer": scores.normalizer.identity(),
        "confidence": CONFIDENCE,
        "resamples": RESAMPLES,
        "seed": SEED,
        "group_by": None,
        **scores.to_dict(),
        "groups": [group.to_dict() for group in scores.groups],
        "audio_seconds": None,
        "processing_seconds": None,
        "wall_seconds": None,
        "rtfx": None,
        "rtfx_end_to_end": None,
        "comparison": None,
        "gate": None,
    }
    assert set(more) <= set(known), f"fields outside the contract: {set(more) - set(known)}"
    return {**known, **more}


def read_summary(path: Path) -> JsonObject:
    """A ``summary.json`` as it was written.

    Raises:
        InputError: it cannot be read, or is no summary of this schema.
    """
    try:
        with open_bytes(path, "summary of an earlier evaluation") as file:
            value = parse_json(file.read())
    except InputError:
        raise
    except OSError as error:  # a folder
        raise InputError(f"{path}: cannot be read ({error.strerror}); give the path of a summary of an earlier evaluation") from error
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error}); give the summary of an earlier evaluation") from error
    if not isinstance(value, dict) or value.get("schema") != SCHEMA or not isinstance(value.get("groups"), list):
        raise InputError(f"{path}: is no summary of schema {SCHEMA}; write one with arkfast evaluate --summary")
    return value


def markdown(summaries: Sequence[JsonRow]) -> str:
    """One Markdown table of the groups of one or several summaries, and below it the normalisers they were made with.

    Rates are percentages; a dash stands where there is none. RTFx is that of the run that a group was part of.
    """
    head = "| preset | language | rate | 95 % interval | WER | CER | MER | sub | del | ins | units | rows | coverage | with failures | "
    lines = [head + "on empty references | RTFx |", "|---|---|" + "---:|" * 14]
    for summary in summaries:
        for group in summary["groups"]:
            name = "J/WER" if group["metric"] == "joint" else group["metric"].upper()
            cells = [
                group["preset"] or "–",
                group["language"] or "–",
                f"{name} {percent(group['rate'])}",
                f"{percent(group['rate_low'])} – {percent(group['rate_high'])}",
                *(percent(group[key]) for key in ("wer", "cer", "mer")),
                *(str(group[key]) for key in ("substitutions", "deletions", "insertions", "reference_units", "utterances")),
                f"{group['scored']}/{group['utterances']}",
                percent(group["rate_with_failures"]),
                f"{group['insertions_on_empty_references']} in {group['hallucinated']} of {group['empty_references']}",
                "–" if summary["rtfx"] is None else f"{summary['rtfx']:.1f}",
            ]
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    normalizers = "; ".join(sorted({"`" + label(summary["normalizer"]).replace(" ", "` ", 1) for summary in summaries}))
    notes = f"Normaliser: {normalizers}. Rates in %; intervals by bootstrap."
    if any(summary["rtfx"] is not None for summary in summaries):
        notes += " RTFx by processing time, which leaves out the decoding of files and workers' log-mel."
    return "\n".join([*lines, "", notes, ""])


def percent(value: float | None) -> str:
    """A fraction as a percentage without its sign; a dash for None."""
    return "–" if value is None else f"{100 * value:.2f}"
