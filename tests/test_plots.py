"""Charts as text: round ticks, every figure where it belongs, nothing of the outside unescaped, nothing from the network."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from arkfast.plots import Series, line_chart, number, share_bar, tick_labels, ticks


def figure(source: str) -> ElementTree.Element:
    return ElementTree.fromstring(source)


def lines(source: str) -> list[list[tuple[str, float, float]]]:
    """The drawn lines as (M or L, x, y) triples."""
    paths = [p.get("d") for p in figure(source).iter("path") if p.get("fill") == "none"]
    return [[(m[1], float(m[2]), float(m[3])) for m in re.finditer(r"([ML])(\S+?) ([\d.]+)", d)] for d in paths if d]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 10, [0, 2, 4, 6, 8, 10]), (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (3, 97, [20, 40, 60, 80]), (-5, 5, [-4, -2, 0, 2, 4])],
)
def test_ticks_are_round_and_within(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize("span", [1e-7, 3e-4, 0.7, 13, 9.99e5])
def test_ticks_of_any_span_are_few_and_enough(span):
    found = ticks(0.3, 0.3 + span)
    assert 2 <= len(found) <= 6
    assert all(0.3 - 1e-12 <= tick <= 0.3 + span + 1e-12 for tick in found)


def test_numbers_are_short():
    assert [number(x) for x in (0, 1e-6, 0.0123, 0.5, 6.6, 12.0, 18.383, 123.456, 999.7, 12345, -3.5)] == [
        "0", "1e-06", "0.0123", "0.5", "6.6", "12", "18.4", "123", "1,000", "12,345", "-3.5",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("marks", "labels"),
    [
        ([0, 5, 10], ["0", "5", "10"]),
        ([0.0, 0.5, 1.0], ["0.0", "0.5", "1.0"]),
        ([100.2, 100.4, 100.6], ["100.2", "100.4", "100.6"]),
        ([0, 2000, 4000], ["0", "2,000", "4,000"]),
        ([-0.0, 0.02], ["0.00", "0.02"]),
        ([0, 2e-6, 4e-6], ["0", "2e-06", "4e-06"]),
        ([7], ["7"]),
    ],
)
def test_the_labels_of_an_axis_have_one_precision_and_differ(marks, labels):
    assert tick_labels(marks) == labels


def test_a_line_goes_through_its_points_in_proportion():
    (drawn,) = lines(line_chart([Series(label="loss", x=[0, 50, 100], y=[4.0, 1.0, 2.0])], title="Loss", zero=True))
    assert [letter for letter, _, _ in drawn] == ["M", "L", "L"]
    (_, x0, y0), (_, x1, y1), (_, x2, y2) = drawn
    assert x1 - x0 == pytest.approx(x2 - x1)
    assert (y1 - y0) / (y2 - y0) == pytest.approx(3 / 2, rel=1e-3), "y grows downwards, in proportion to the value"


def test_gaps_break_the_line():
    source = line_chart([Series(label="a", x=[1, 2, 3, 4, 5], y=[1.0, 2.0, None, math.nan, 3.0])], title="t")
    assert [letter for letter, _, _ in lines(source)[0]] == ["M", "L", "M"]
    assert source.count("<circle") == 1, "a point with no neighbour is drawn as a dot"


def test_many_points_become_means_with_their_range():
    values = [float(i % 2) for i in range(10_000)]
    source = line_chart([Series(label="loss", x=range(10_000), y=values)], title="Loss")
    (drawn,) = lines(source)
    assert 100 <= len(drawn) <= 120
    assert max(y for _, _, y in drawn) - min(y for _, _, y in drawn) < 2, "each column's mean is one half"
    titles = [t.text for t in figure(source).iter("title")]
    assert titles[60].endswith("(0 to 1)")
    assert len(source) < 40_000


def test_the_words_of_a_chart_are_its_figures():
    source = line_chart([Series(label="WER", x=[0, 800], y=[23.9, 6.6], dots=True), Series(label="CER", x=[0], y=[5.0])], title="Dev")
    said = next(svg.get("aria-label") for svg in figure(source).iter("svg") if svg.get("role") == "img")
    assert said.startswith("Dev. WER: 23.9 at step 0, 6.6 at step 800; between 6.6 and 23.9. CER: 5 at step 0")
    assert [t.text for t in figure(source).iter("title")] == ["step 0: WER 23.9, CER 5", "step 800: WER 6.6"]


@pytest.mark.parametrize("values", [[2.0, 2.0], [0.0, 0.0], [-1.0, -1.0]])
def test_a_constant_has_a_scale(values):
    (drawn,) = lines(line_chart([Series(label="c", x=[1, 2], y=values)], title="c"))
    assert all(math.isfinite(y) for _, _, y in drawn)


def test_nothing_to_draw_is_said():
    with pytest.raises(ValueError, match="chart 'Empty': no finite value"):
        line_chart([Series(label="a", x=[1], y=[None])], title="Empty")
    with pytest.raises(ValueError, match="2 x and 1 y"):
        Series(label="a", x=[1, 2], y=[1.0])
    with pytest.raises(ValueError, match="sum must be above 0"):
        share_bar([("a", 0.0)], title="Shares")


def test_shares_are_of_the_whole():
    source = share_bar([("rollout", 3.0), ("teacher", 1.0)], title="Step", unit="s")
    widths = [float(r.get("width")) for r in figure(source).iter("rect")]
    assert widths[0] == pytest.approx(3 * widths[1])
    assert sum(widths) == pytest.approx(420, abs=0.1)
    assert "75.0 %" in source
    assert "25.0 %" in source
    assert "3.0 s" in source
    assert "<div></div>" not in source


def test_every_line_after_the_first_is_dashed_in_its_own_way():
    series = [Series(label=str(i), x=[0, 1], y=[1.0, 1.0], tone=i + 1) for i in range(3)]
    source = line_chart(series, title="t")
    drawn = [path.get("stroke-dasharray") for path in figure(source).iter("path") if path.get("fill") == "none"]
    assert drawn[0] is None
    assert len(set(drawn)) == 3
    keys = [path.get("stroke-dasharray") for path in figure(source).iter("path") if path.get("d") == "M0 4H26"]
    assert keys == drawn


def test_all_text_is_escaped_and_nothing_is_fetched():
    evil = "</title><script>alert(1)</script>&\"'"
    source = line_chart([Series(label=evil, x=[1], y=[1.0]), Series(label=evil, x=[1], y=[2.0])], title=evil, note=evil, x_label=evil)
    source += share_bar([(evil, 1.0)], title=evil, note=evil, unit=evil)
    assert "<script" not in source
    assert "http:" not in source
    assert "https:" not in source
    assert "url(" not in source
