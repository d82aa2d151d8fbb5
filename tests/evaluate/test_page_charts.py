"""The charts of the evaluation's page: dots and their counts, axes, colours and bars."""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np
import pytest
from evaluation_pages import ROWS, Page, page, scored

from arkfast.evaluate import score_rows
from arkfast.evaluate.page.charts import MOST_POINTS, bars, bins, edges, lengths, scatter, tones_of
from arkfast.evaluate.page.facts import Point


def test_axes_have_units_and_a_key_names_what_has_no_language() -> None:
    summary, rows = scored([row | {"language": None, "duration": 2.0} for row in ROWS if row["preset"] == "clean"])
    source = page(summary, rows)
    assert "length in seconds</text>" in source
    assert "errors, % of the clip" in source
    assert 'class="keys"' not in source, "one colour needs no key"
    two = page(*scored([row | ({"language": None} if row["id"] == "a" else {}) for row in ROWS]))
    assert "no language given" in two
    assert ">–<" not in two[two.index('class="keys"') : two.index('class="scatter"')]


def points(count: int, seed: int = 0, language: str = "en") -> list[Point]:
    generator = np.random.default_rng(seed)
    units = generator.integers(1, 30, size=count)
    return [Point(float(n) / 3, int(n), int(generator.binomial(n, 0.1)), language, f"clip {i}") for i, n in enumerate(units)]


def test_few_clips_are_dots_of_their_own_and_many_are_counted() -> None:
    few = scatter(points(50))
    assert few.count("of ") >= 50
    assert len(re.findall(r'class="dot ', few)) == 50
    many = scatter(points(20_000))
    assert 'class="dot ' not in many
    assert sum(int(n.replace(",", "")) for n in re.findall(r"<title>([\d,]+) clips</title>", many)) == 20_000
    assert len(many) < 400_000
    assert MOST_POINTS < 20_000


def test_lines_pool_errors_over_units_and_part_no_length() -> None:
    sample = points(1000)
    found = bins(lengths(sample))
    assert sum(place.clips for place in found) == 1000
    assert all(a.high < b.low for a, b in itertools.pairwise(found))
    inside = [p for p in sample if found[0].low <= p.seconds <= found[0].high]
    assert found[0].rate == sum(p.errors for p in inside) / sum(p.units for p in inside)
    assert bins(lengths(points(1)))[0].clips == 1


def test_length_is_in_units_where_rows_tell_no_seconds() -> None:
    sample = [Point(None, n, 0, "en", "x") for n in range(1, 20)]
    assert [x for x, _ in lengths(sample)] == list(range(1, 20))
    assert "length in units of the reference" in scatter(sample)


def test_one_wild_clip_does_not_flatten_the_others() -> None:
    sample = [*points(300), Point(2.0, 1, 500, "en", "wild"), Point(900.0, 10, 0, "en", "endless")]
    top, right = edges(sample)
    assert top < 1.2
    assert right < 12
    summary, rows = scored(ROWS)
    assert "stand at the top edge" in Page(page(summary, [*rows, *crowd(300), wild()])).text


def wild() -> dict[str, Any]:
    return score_rows([{"id": "wild", "language": "en", "text": "a", "pred_text": "b " * 99}])[1][0]


def crowd(count: int) -> list[dict[str, Any]]:
    return score_rows([{"id": str(i), "language": "en", "text": "a b c", "pred_text": "a b c"} for i in range(count)])[1]


def test_each_frequent_language_has_a_colour_and_rare_ones_share_one() -> None:
    sample = [point for i, name in enumerate("abcdefgh") for point in points(50 - i, language=name)]
    assert tones_of(sample) == {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5, "f": 6, "g": 6, "h": 6}
    assert tones_of(sample[:50]) == {"a": 1}
    assert max(tones_of([p for p in sample if p.language in "abcdef"]).values()) == 6


def test_bars_are_as_long_as_their_rates() -> None:
    group = {"preset": "x", "language": "en", "metric": "wer", "rate": 0.1, "rate_low": 0.08, "rate_high": 0.2, "failed": 0}
    drawn = bars([group, group | {"rate": 0.05, "rate_low": None, "rate_high": None}, group | {"rate": None, "rate_high": None}])
    widths = [float(value) for value in re.findall(r'width="([\d.]+)%"', drawn)]
    assert widths[0] == pytest.approx(2 * widths[1], rel=1e-3)
    assert len(widths) == 2
    assert drawn.count('role="img"') == 3
    assert "–" in drawn
    assert bars([group | {"rate": 0.0, "rate_low": 0.0, "rate_high": 0.0}]).count("<rect") == 1
