"""``--on_bad_audio``: how many clips that cannot be used a run puts up with."""

from __future__ import annotations

from contextlib import suppress

VERDICT_ROWS = 1000  # of a stream of unknown length, judged as if this many had been seen: one early bad row is no verdict


class BadAudioLimit:
    """A rule, ``fail`` or ``skip:<max ratio>``, applied to counts.

    Where ``rows`` is known the limit is ``ratio · rows · (epochs begun)``: a set within the limit passes in any order, one over it fails
    within an epoch. Else it is ``ratio · max(seen, 1000)``. ``skip:1`` puts up with any number, ``fail`` with none.

    Args:
        rule: ``fail``, or ``skip:`` and a share in [0, 1].
        rows: how many rows an epoch has, where that is known.

    Raises:
        ValueError: a rule of neither form.
    """

    def __init__(self, rule: str, *, rows: int | None = None) -> None:
        self.rule, self._rows = rule, rows
        self._ratio = None if rule == "fail" else _ratio(rule)

    @property
    def skips(self) -> bool:
        """Whether a bad clip may be passed over."""
        return self._ratio is not None

    def passed(self, bad: int, seen: int) -> bool:
        """Whether ``bad`` of the ``seen`` clips that were met since the run began are more than the rule allows."""
        # Bad rows may all stand at an epoch's start, so an epoch that has begun counts whole.
        judged = max(seen, VERDICT_ROWS) if self._rows is None else self._rows * -(-seen // self._rows)
        return bad > (self._ratio or 0.0) * judged


def _ratio(rule: str) -> float:
    word, _, number = rule.partition(":")
    with suppress(ValueError):
        if word == "skip" and 0 <= float(number) <= 1:
            return float(number)
    raise ValueError(f"on_bad_audio: expected fail or skip:<max ratio> such as skip:0.01, got '{rule}'")
