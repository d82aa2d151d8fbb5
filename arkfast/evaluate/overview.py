"""Several evaluations as one: the table and the page over all presets.

Nothing is scored anew: every figure is one that an evaluation has written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from arkfast.evaluate.page import page
from arkfast.evaluate.page.paths import from_page
from arkfast.files import write_text
from arkfast.infer.jsonl import read_rows
from arkfast.records import JsonObject, JsonRow

_COUNTS = (
    "utterances", "scored", "failed", "without_reference", "truncated", "empty_references", "hallucinated",
    "insertions_on_empty_references",
)  # fmt: skip
_SHARED = ("normalizer", "confidence", "resamples", "seed", "group_by", "model_path", "model_commit")


def merge(summaries: Sequence[JsonRow]) -> JsonObject:
    """One summary for a page over several: groups side by side, counts added up.

    There is no rate over all, since test sets of other languages and sizes have none; RTFx is over all seconds, where every summary has it.

    Args:
        summaries: at least one, as ``summary.json`` has them.
    """
    first = summaries[0]
    merged: JsonObject = {name: first.get(name) for name in _SHARED if all(s.get(name) == first.get(name) for s in summaries)}
    merged |= {name: sum(int(s.get(name) or 0) for s in summaries) for name in _COUNTS}
    merged["coverage"] = merged["scored"] / merged["utterances"] if merged["utterances"] else None
    merged["groups"] = [group for s in summaries for group in s["groups"]]
    for name, seconds in (("rtfx", "processing_seconds"), ("rtfx_end_to_end", "wall_seconds")):
        if all(s.get("audio_seconds") and s.get(seconds) for s in summaries):
            merged[name] = sum(s["audio_seconds"] for s in summaries) / sum(s[seconds] for s in summaries)
    return merged


def write_page(path: Path, summaries: Sequence[JsonRow], outputs: Iterable[Path]) -> None:
    """Write the page over several evaluations; it appears when it is complete.

    Args:
        path: the HTML file.
        summaries: of the evaluations.
        outputs: their scored rows, in the same order.

    Raises:
        InputError: rows cannot be read, or the page cannot be written.
    """
    write_text(path, page(merge(summaries), _rows(summaries, outputs, path.parent), path.parent))


def _rows(summaries: Iterable[JsonRow], outputs: Iterable[Path], folder: Path) -> Iterator[JsonRow]:
    for summary, path in zip(summaries, outputs, strict=True):
        yield from from_page(read_rows(path), Path(summary["input"] or path).parent, folder)
