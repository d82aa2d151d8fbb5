"""What a row says about its transcript: which text is the reference, which the hypothesis, and when there is none.

Rows of open-audio-opd are read too. A field of the wrong kind is an error that names the row; it is not taken for a missing value.
"""

from __future__ import annotations

from dataclasses import dataclass

from arkfast.metrics import canonical
from arkfast.records import InputError, JsonRow


@dataclass(frozen=True, kw_only=True)
class Fields:
    """Where rows keep what is scored, and what holds for rows that do not say."""

    text: str = "text"
    """Field of the reference; where a row lacks it, ``ref_text`` is read."""
    prediction: str = "pred_text"
    """Field of the transcript."""
    language: str | None = None
    """Language of rows that carry none."""
    preset: str | None = None
    """Preset of rows that carry none."""
    group_by: str | None = None
    """Field whose equal values are resampled together."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """A row as scoring sees it."""

    reference: str | None
    """None where nothing can be compared with."""
    hypothesis: str | None
    """None where the row failed, whatever else stands in it; an empty transcript is "" and no failure."""
    language: str | None
    """As the data says it."""
    preset: str | None
    """The set that the row belongs to."""
    cluster: str | int | None
    """The value of ``Fields.group_by``; None in a failed row, which is not resampled."""

    @property
    def outcome(self) -> str:
        """``scored``, ``failed`` or ``no_reference``."""
        if self.hypothesis is None:
            return "failed"
        return "no_reference" if self.reference is None else "scored"

    @property
    def group(self) -> tuple[str | None, str | None]:
        """(preset, ISO code of the language)."""
        return self.preset, canonical(self.language)


def read_item(row: JsonRow, name: str, fields: Fields) -> Item:
    """What a row says.

    Args:
        row: its fields.
        name: what errors call it, as ``file:line``.
        fields: where it keeps what is scored.

    Raises:
        InputError: a field is not text, or a row with a transcript lacks the field to resample by.
    """
    reference = _text(row, fields.text if fields.text in row else "ref_text", name)
    language, preset = _text(row, "language", name), _text(row, "preset", name)
    hypothesis = _hypothesis(row, fields.prediction, name)
    cluster = None
    if fields.group_by is not None and hypothesis is not None:
        cluster = row.get(fields.group_by)
        if not isinstance(cluster, (str, int)):
            raise InputError(
                f"{name}: field '{fields.group_by}', by which --group_by resamples, must be text or an integer, got {cluster!r}"
            )
    return Item(
        reference=reference,
        hypothesis=hypothesis,
        language=language if canonical(language) is not None else fields.language,
        preset=preset if preset is not None else fields.preset,
        cluster=cluster,
    )


def _hypothesis(row: JsonRow, field: str, name: str) -> str | None:
    if row.get("status") == "error":
        return None
    prediction = _text(row, field, name)
    # open-audio-opd writes a batch that failed as empty transcripts beside their error
    return None if prediction == "" and row.get("error") else prediction


def _text(row: JsonRow, field: str, name: str) -> str | None:
    value = row.get(field)
    if value is not None and not isinstance(value, str):
        raise InputError(f"{name}: field '{field}' must be text, got {type(value).__name__}")
    return value
