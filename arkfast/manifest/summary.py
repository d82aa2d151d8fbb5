"""What a manifest holds, in numbers and as text: rows, hours, languages, lengths, faults."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, field

from arkfast.manifest.check import Finding
from arkfast.metrics import canonical, is_known, near
from arkfast.records import Utterance

EDGES = (1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 30.0, 60.0)  # seconds; the last row of the histogram is what is longer
_BAR = 40  # characters of the longest bar
_MOST_LANGUAGES = 1000  # counted by name; a data set with more has no language there but something else
_SHOWN_LANGUAGES = 12
_OTHERS = "(others)"


@dataclass
class Summary:
    """Counts over the rows of a manifest."""

    rows: int = 0
    """Good rows."""
    seconds: float = 0.0
    """Seconds of audio in the good rows' segments."""
    without_text: int = 0
    """Good rows without a transcript."""
    corrected: int = 0
    """Good rows whose ``duration`` was not what the recording's header says."""
    doubtful: int = 0
    """Good rows with a warning."""
    languages: Counter[str] = field(default_factory=Counter)
    """Good rows of each language; ``-`` where none is given."""
    lengths: list[int] = field(default_factory=lambda: [0] * (len(EDGES) + 1))
    """Good rows between the edges."""
    rejects: Counter[str] = field(default_factory=Counter)
    """Bad rows of each kind of fault."""

    @property
    def rejected(self) -> int:
        """Bad rows."""
        return self.rejects.total()

    def add(self, finding: Finding, utterance: Utterance) -> None:
        """Count a good row."""
        self.rows += 1
        self.seconds += finding.clip_seconds
        self.without_text += not (utterance.text or "").strip()
        self.corrected += _differs(utterance.extra.get("duration"), finding.seconds)
        self.doubtful += bool(finding.warnings)
        language = utterance.language or "-"
        if language not in self.languages and len(self.languages) >= _MOST_LANGUAGES:
            language = _OTHERS
        self.languages[language] += 1
        self.lengths[bisect_right(EDGES, finding.clip_seconds)] += 1

    def table(self) -> str:
        """The summary as a user reads it."""
        lines = [f"rows        {self.rows:,} good, {self.rejected:,} rejected", f"audio       {_duration(self.seconds)}"]
        if self.rows:
            common = self.languages.most_common(_SHOWN_LANGUAGES)
            others = self.rows - sum(count for _, count in common)
            shown = [f"{language} {count:,}" for language, count in common] + ([f"others {others:,}"] if others else [])
            lines.append(f"languages   {', '.join(shown)}")
            if unknown := self._unknown_languages():
                lines.append(f"not known   {unknown}; the script of the texts decides how such rows are scored and what a teacher is told")
        if self.without_text:
            lines.append(f"no text     {self.without_text:,}")
        if self.corrected:
            lines.append(f"corrected   {self.corrected:,} rows gave a duration that is not the recording's")
        if self.doubtful:
            lines.append(f"doubtful    {self.doubtful:,} rows have warnings")
        if self.rows:
            lines += ["", "length", *self._histogram()]
        if self.rejects:
            lines += ["", "rejected", *(f"  {kind:<22} {count:>10,}" for kind, count in self.rejects.most_common())]
        return "\n".join(lines)

    def _unknown_languages(self) -> str:
        """Names that the table of languages lacks, each with its rows and with what was perhaps meant."""
        codes = {name: canonical(name) for name in self.languages if name not in ("-", _OTHERS)}
        unknown = [name for name, code in codes.items() if code is not None and not is_known(code)]
        said = []
        for name in unknown[:_SHOWN_LANGUAGES]:
            meant = f", perhaps {' or '.join(near(name))}" if near(name) else ""
            said.append(f"{name} ({self.languages[name]:,} rows{meant})")
        return ", ".join(said + ([f"{len(unknown) - len(said)} more"] if len(unknown) > len(said) else []))

    def _histogram(self) -> list[str]:
        low = [0.0, *EDGES]
        names = [f"{a:g} to {b:g} s" for a, b in zip(low, EDGES, strict=False)] + [f"{EDGES[-1]:g} s and more"]
        most = max(self.lengths)
        return [
            f"  {name:<22} {count:>10,}  {'█' * max(1, round(_BAR * count / most))}"
            for name, count in zip(names, self.lengths, strict=True)
            if count
        ]


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:,.2f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.1f} s"


def _differs(given: object, seconds: float) -> bool:
    """Whether a row's own ``duration`` is off by more than writers round."""
    return isinstance(given, (int, float)) and not isinstance(given, bool) and abs(given - seconds) > 0.1
