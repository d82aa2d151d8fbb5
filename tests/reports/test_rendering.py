"""Templates escape whatever they are given, forget no field, fetch nothing, and know the reader's dark mode."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import jinja2
import pytest

import arkfast.reports
from arkfast.metrics import Pair
from arkfast.reports import Cell, Column, Row, Table, duration, interval, percent, points, render, runs, times

TEMPLATES = Path(arkfast.reports.__file__).parent / "templates"
EVIL = "</title></style><script>alert(1)</script><img src=x onerror=alert(2)>&\"'"


class Tags(HTMLParser):
    """Tags and attributes of a page."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs


def proof(evil: str, **changes: object) -> str:
    """The smallest page, with ``evil`` wherever text goes."""
    table = Table(label=evil, columns=[Column(name=evil)], rows=[Row(cells=[Cell(text=evil, note=evil)])], scrolls=True)
    hero = {"figure": evil, "unit": evil, "what": evil, "tone": ""}
    fields: dict[str, object] = {"about": [evil], "hero": hero, "comparisons": table, "parts_of": table, "settings": [(evil, evil)]}
    return render("proof.html", title=evil, drawings={"charts": "<svg></svg>"}, **{**fields, **changes})


def test_hostile_text_is_text() -> None:
    found = Tags(proof(EVIL))
    assert not {"script", "img"} & found.tags
    assert "svg" in found.tags, "drawings are trusted, and nothing else"
    assert not [name for name, _ in found.attributes if name.startswith("on")]


def test_a_field_that_is_missing_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError, match="settings"):
        render("proof.html", title="t", drawings={"charts": ""}, about=[], hero={"figure": "", "unit": "", "what": "", "tone": ""},
               comparisons=Table(label="", columns=[], rows=[]), parts_of=Table(label="", columns=[], rows=[]))  # fmt: skip


def test_a_page_may_load_nothing_from_elsewhere_and_run_nothing() -> None:
    found = Tags(proof("x"))
    (policy,) = (value for name, value in found.attributes if name == "content" and value and "-src" in value)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src 'self' file: data:"
    for path in TEMPLATES.iterdir():
        source = path.read_text(encoding="utf-8")
        for outside in ("http:", "https:", "url(", "@import", "<script", "<link", "<iframe", "javascript:"):
            assert outside not in source, f"{path.name} names {outside}"
        assert not re.search(r"\son\w+=", source), path.name


def test_templates_trust_nothing_that_they_are_given() -> None:
    """``safe`` stands behind literals of a template alone."""
    for path in TEMPLATES.iterdir():
        for trusted in re.findall(r"(\S+)\s*\|\s*safe", path.read_text(encoding="utf-8")):
            assert re.fullmatch(r"class=[a-z]+'", trusted), f"{path.name}: {trusted}"
        assert "autoescape" not in path.read_text(encoding="utf-8")


def test_every_colour_of_the_light_scheme_has_one_in_the_dark() -> None:
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    light, dark = style.split("@media (prefers-color-scheme: dark)", 1)
    names = set(re.findall(r"(--[\w-]+):", light[light.index(":root") :]))
    assert names <= set(re.findall(r"(--[\w-]+):", dark[: dark.index("\n*")]))
    assert len(names) >= 10
    rest = dark[dark.index("\n*") :]
    assert not re.findall(r"#[0-9a-fA-F]{3,8}\b|rgba?\(", rest), "a colour that knows no dark mode"


def test_a_table_becomes_cards_or_scrolls_with_a_word_that_it_does() -> None:
    def page(scrolls: bool) -> str:
        table = Table(label="l", columns=[Column(name="arm"), Column(name="rate", is_number=True)],
                      rows=[Row(cells=[Cell(text="a"), Cell(text="1 %", note="0 to 2 %")])], scrolls=scrolls)  # fmt: skip
        return proof("x", comparisons=table, parts_of=table)

    cards, scrolls = page(False), page(True)
    assert '<td role="cell" data-label="rate" class=number><span>1 % <small>0 to 2 %</small></span></td>' in cards
    assert 'class="table stacks"' in cards
    assert "Scroll the table sideways" not in cards
    assert "Scroll the table sideways" in scrolls
    assert 'tabindex="0" role="region" aria-label="l"' in scrolls


@pytest.mark.parametrize(
    ("found", "shown"),
    [
        (percent(0.0471), "4.71 %"),
        (percent(None), "–"),
        (percent(0.261, 1), "26.1 %"),
        (interval(0.04, 0.0512), "4.00 to 5.12 %"),
        (interval(None, 0.1), "–"),
        (points(-0.004), "-0.40"),
        (points(-0.007, 0.001), "-0.70 to +0.10"),
        (duration(12.34), "12.3 s"),
        (duration(1800), "30.0 min"),
        (duration(9000), "2.5 h"),
        (times(18.383), "18.4×"),
        (times(3120.4), "3,120×"),
        (times(0.8), "0.80×"),
    ],
)
def test_figures_have_a_unit_and_one_precision(found: str, shown: str) -> None:
    assert found == shown


def test_runs_join_what_belongs_together_and_part_words() -> None:
    pairs = [Pair("a", "a"), Pair("b", "b"), Pair("c", "x"), Pair("d", "y"), Pair("e", None), Pair("f", None), Pair(None, "g")]
    assert [(run.kind, run.said, run.heard, run.is_parted) for run in runs(pairs, "word")] == [
        ("right", "a b", "a b", False),
        ("wrong", "c", "x", True),
        ("wrong", "d", "y", True),
        ("left out", "e f", "", True),
        ("added", "", "g", True),
    ]
    assert [run.heard for run in runs([Pair("四", "四"), Pair("五", "五"), Pair("six", "six"), Pair("a", "a")], "mixed")] == ["四五six a"]
    assert [run.said for run in runs([Pair(letter, letter) for letter in "abc"], "char")] == ["abc"]
    assert runs([], "word") == []
