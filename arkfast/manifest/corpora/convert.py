"""A corpus' rows checked against their recordings and written: one manifest for each split, one file of rejects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from arkfast.data.ids import SeenIds
from arkfast.data.manifest import repeated_id
from arkfast.data.rows import RowError
from arkfast.files import jsonl_files
from arkfast.manifest.check import CheckOptions, Finding, check_rows
from arkfast.manifest.corpora.corpus import Corpus, Split, SplitRow
from arkfast.manifest.durations import DurationCache
from arkfast.manifest.scan import clean_row, reject_row
from arkfast.manifest.summary import Summary
from arkfast.records import InputError


@dataclass
class Outcome:
    """What was written."""

    rejects: Path
    """Where the bad rows stand."""
    paths: dict[str, Path]
    """Each split's manifest."""
    splits: dict[str, Summary] = field(default_factory=dict)
    """Each split's counts, in the corpus' order."""
    published: dict[str, int | None] = field(default_factory=dict)
    """Each split's utterances as published."""

    @property
    def rejected(self) -> int:
        """Bad rows of all splits."""
        return sum(summary.rejected for summary in self.splits.values())

    def short(self) -> list[str]:
        """A sentence for each split that has not as many good rows as were published."""
        return [
            f"{self.paths[name]}: {summary.rows:,} rows, while the split was published with {count:,}: is its folder whole?"
            for name, summary in self.splits.items()
            if (count := self.published[name]) is not None and summary.rows != count
        ]

    def table(self) -> str:
        """The counts as a user reads them."""
        rows = [("split", "rows", "hours", "rejected", "manifest")]
        for name, summary in self.splits.items():
            hours = f"{summary.seconds / 3600:.2f}"
            rows.append((name, f"{summary.rows:,}", hours, f"{summary.rejected:,}", str(self.paths[name])))
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        aligned = [[f"{row[0]:<{widths[0]}}", *(f"{row[i]:>{widths[i]}}" for i in (1, 2, 3)), row[4]] for row in rows]
        lines = ["  ".join(cells) for cells in aligned]
        kinds = sum((summary.rejects for summary in self.splits.values()), Counter())
        if kinds:
            lines += ["", f"rejected → {self.rejects}", *(f"  {kind:<22} {count:>10,}" for kind, count in kinds.most_common())]
        return "\n".join(lines)


def convert(
    corpus: Corpus,
    output: Path,
    *,
    rejects: Path | None = None,
    cache: Path | None = None,
    options: CheckOptions,
    progress: Callable[[Finding], None] | None = None,
) -> Outcome:
    """Write a manifest for each of the corpus' splits into the folder ``output``, and the bad rows with their reasons beside them.

    All files appear together when the last row is done, and replace files of those names only then. Rows are as ``arkfast manifest scan``
    writes them, with absolute paths.

    Args:
        corpus: what to write.
        output: folder for the manifests, made when it is not there.
        rejects: JSONL file for the bad rows; ``<corpus>.rejects.jsonl`` in ``output`` by default.
        cache: file that keeps the recordings' lengths for the next time; None keeps none.
        options: what makes a row bad.
        progress: called with each row's finding, in order.

    Raises:
        InputError: the corpus has no rows at all, a file of it cannot be read, or an output cannot be written.
    """
    paths = {split.name: output / split.file for split in corpus.splits}
    outcome = Outcome(rejects or output / f"{corpus.name}.rejects.jsonl", paths)
    for split in corpus.splits:
        outcome.splits[split.name], outcome.published[split.name] = Summary(), split.published
    if outcome.rejects.resolve() in {path.resolve() for path in paths.values()}:
        raise InputError(f"--rejects {outcome.rejects}: is a manifest too; give another path")
    number = {split.name: place for place, split in enumerate(corpus.splits)}
    with jsonl_files([*paths.values(), outcome.rejects]) as write, DurationCache(cache) as lengths:
        for finding in _findings(corpus, options, lengths):
            assert isinstance(finding.row, SplitRow)
            summary = outcome.splits[finding.row.split]
            if finding.error is None:
                assert finding.row.utterance is not None
                summary.add(finding, finding.row.utterance)
                write(number[finding.row.split], clean_row(finding, same_folder=False))
            else:
                summary.rejects[finding.error.kind] += 1
                reject = reject_row(finding.row, finding.error) | {"split": finding.row.split}
                write(len(paths), reject if finding.row.number else reject | {"line": None})
            if progress:
                progress(finding)
        if not any(summary.rows or summary.rejected for summary in outcome.splits.values()):
            raise InputError(f"{corpus.root}: holds no utterance of {_named(corpus.splits)}; is the corpus unpacked whole?")
    return outcome


def _findings(corpus: Corpus, options: CheckOptions, lengths: DurationCache) -> Iterator[Finding]:
    """``check_rows`` with ids that repeat within a split: the first row with one stays."""
    ids = {split.name: SeenIds() for split in corpus.splits}
    try:
        for finding in check_rows(corpus.rows(), options, lengths):
            row, utterance = finding.row, finding.row.utterance
            assert isinstance(row, SplitRow)
            if finding.error is None and utterance is not None and (first := ids[row.split].first(utterance.id, utterance.where)):
                yield Finding(row, error=RowError(repeated_id(utterance, first), "repeated id"))
            else:
                yield finding
    finally:
        for seen in ids.values():
            seen.close()


def _named(splits: tuple[Split, ...]) -> str:
    return ", ".join(split.name for split in splits)
