"""Scored rows, the page that is made of them, and a reader of it, for the tests of the evaluation's page."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from arkfast.evaluate import score_rows
from arkfast.evaluate.page import page as whole_page
from arkfast.evaluate.summary import summarise

ROWS: list[dict[str, Any]] = [
    {"id": "a", "preset": "clean", "language": "en", "text": "one two three four", "pred_text": "one too three four", "audio": "a.wav"},
    {"id": "b", "preset": "clean", "language": "en", "text": "five six", "pred_text": "five six seven", "audio": "b.wav", "duration": 2.5},
    {"id": "c", "preset": "clean", "language": "en", "text": "eight nine ten", "pred_text": "eight ten", "audio": "c.wav"},
    {"id": "d", "preset": "clean", "language": "en", "text": "red blue", "pred_text": "red blue", "audio": "d.wav"},
    {"id": "e", "preset": "net", "language": "zh", "text": "今天天气很好", "pred_text": "今天田气好", "audio": "e.wav"},
    {"id": "f", "preset": "net", "language": "zh", "text": "你好", "pred_text": None, "status": "error", "error": "f.wav: no such file"},
    {"id": "g", "preset": "net", "language": "zh", "text": "", "pred_text": "谢谢", "audio": "g.wav"},
    {"id": "h", "preset": "net", "language": "zh", "pred_text": "谢谢", "audio": "h.wav"},
    {"id": "i", "preset": "net", "language": "zh", "text": "再见", "pred_text": "再见了", "finish_reason": "length", "audio": "i.wav"},
]


def scored(rows: list[dict[str, Any]], **more: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    scores, out = score_rows(rows)
    return summarise(scores, **more), out


def page(
    summary: Mapping[str, Any],
    rows: Iterable[Mapping[str, Any]],
    folder: Path = Path("nowhere"),
    others: Iterable[Mapping[str, Any]] | None = None,
) -> str:
    return whole_page(summary, rows, folder, others=others, day=datetime.date(2026, 3, 7))


TODAY = "7 March 2026"


class Page(HTMLParser):
    """Checks that tags nest, and keeps the text, the tags and every attribute."""

    VOID = frozenset({"meta", "br", "hr", "link", "input"})

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def values(self, name: str) -> list[str]:
        return [value for _, attribute, value in self.attributes if attribute == name]
