"""The evaluation's page: figures that stand in the summary, everything escaped, nothing fetched, bounded in size."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from evaluation_pages import ROWS, TODAY, Page, page, scored

from arkfast.evaluate import score_rows
from arkfast.evaluate.command import main
from arkfast.evaluate.page.clips import MOST_PLACES, player
from arkfast.evaluate.page.document import headline
from arkfast.evaluate.page.facts import FAILURES, WORST, clip_seconds, gather
from arkfast.evaluate.page.paths import address, from_page, title, without_folders
from arkfast.evaluate.summary import summarise


def test_page_says_what_the_summary_says() -> None:
    summary, rows = scored(ROWS, input="/data/secret/all.jsonl", model_path="/models/private/ARK", rtfx=3120.4, rtfx_end_to_end=2210.0)
    source = page(summary, rows)
    text = Page(source).text
    clean, net = summary["groups"]
    assert (clean["rate"], net["rate"]) == (3 / 11, 5 / 8)  # by hand: too, seven, nine; 田, 很, 谢谢, 了
    assert f"{100 * clean['rate']:.2f} %WER" in text.replace(" WER", "WER")
    for said in (
        "7 of 9",
        "f.wav: no such file",
        "1 of 1 silences",
        "without a reference",
        "cut short",
        "3,120×",
        "by processing time, which leaves out the decoding of files and workers' log-mel; 2,210× end to end",
    ):
        assert said in text
    assert f"counted as deletions: {100 * summary['rate_with_failures']:.2f} %" in text
    assert text.index("7 of 9") < text.index("Error rates")  # what was left out stands first
    assert "ARK on all.jsonl" in text
    assert "secret" not in source
    assert "private" not in source
    assert f"model ARK · data all.jsonl · {TODAY}" in text
    assert f"<title>ARK on all.jsonl, {TODAY}: arkfast evaluation</title>" in source
    labels = [label for label in Page(source).values("aria-label") if "WER" in label or "CER" in label]
    assert labels[0].startswith(f"clean en: WER 27.27 %, 95 % interval {100 * clean['rate_low']:.2f} to {100 * clean['rate_high']:.2f} %")
    assert labels[1].endswith(f"; {100 * net['rate_with_failures']:.2f} % when failed rows count as deletions")
    assert "basic, version" in text


def test_both_ways_of_being_cut_short_are_counted_and_named() -> None:
    summary, rows = scored([row | ({"finish_reason": "repetition"} if row["id"] == "b" else {}) for row in ROWS])
    assert summary["truncated"] == 2
    source = page(summary, rows)
    assert "cut short2at the token limit or in a loop" in Page(source).text
    headers = re.findall(r"<article[^>]*><header><h3>(\w)</h3>(.*?)</header>", source)
    assert sorted(name for name, figures in headers if "<span>cut short</span>" in figures) == ["b", "i"]
    assert len(headers) > 2


def test_headline_follows_the_groups() -> None:
    summary, _ = scored(ROWS)
    assert headline(summary, summary["groups"]) == "2 test sets, from WER 27.27 % (clean en) to CER 62.50 % (net zh)"
    one = summary["groups"][:1]
    interval = f"{100 * one[0]['rate_low']:.2f} to {100 * one[0]['rate_high']:.2f}"
    assert headline(summary, one) == f"WER 27.27 % (95 % interval {interval} %)"
    assert headline(summary, [{"rate": None}]).startswith("No error rate")
    clean, net = ({**group, "rate": 1.5} for group in summary["groups"])
    assert headline(summary, [clean, clean | {"preset": "other"}]) == "2 test sets, each with WER 150.00 %"
    assert headline(summary, [clean, net]) == "2 test sets, each with WER or CER 150.00 %"
    assert headline(summary, [clean, net | {"rate": None}]) == "2 test sets, 1 of them with WER 150.00 %"


def test_page_fetches_nothing_and_runs_nothing(tmp_path: Path) -> None:
    for row in ROWS:
        (tmp_path / f"{row['id']}.wav").touch()
    source = page(*scored(ROWS), tmp_path)
    parsed = Page(source)
    assert not {"script", "link", "iframe", "object", "img", "form", "base"} & set(parsed.tags)
    assert "http://" not in source
    assert "https://" not in source
    assert "url(" not in source
    assert not [name for _, name, _ in parsed.attributes if name.startswith("on")]
    assert any("default-src 'none'" in value for value in parsed.values("content"))
    assert {tag for tag, name, _ in parsed.attributes if name in ("src", "href")} == {"audio"}
    assert {value for tag, name, value in parsed.attributes if tag == "audio" and name == "preload"} == {"metadata"}, (
        "or it shows a length of 0:00"
    )


def test_page_escapes_whatever_comes_from_rows_and_paths() -> None:
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>&\"'"
    row = {"id": evil, "preset": evil, "language": evil, "text": f"a {evil}", "pred_text": f"b {evil} c", "audio": f"x/{evil}.wav"}
    failed = {"id": evil, "preset": evil, "language": evil, "text": evil, "pred_text": None, "status": "error", "error": evil}
    scores, rows = score_rows([row, failed], normalizer="none")
    summary = summarise(scores, input=f"/x{evil.replace('/', '')}", comparison=COMPARISON | {"other": evil.replace("/", "")})
    source = page(summary, rows)
    parsed = Page(source)
    assert not {"script", "img"} & set(parsed.tags)
    assert not [name for _, name, _ in parsed.attributes if name.startswith("on")]
    assert parsed.values("lang") == ["en"]  # the page's own; that of the row is no language
    assert evil in parsed.text


COMPARISON = {
    "other": "/home/someone/old_result.jsonl", "metric": "wer", "rows": 4600, "left_out": 12, "rate_of_other": 0.08,
    "rates": [0.0755, 0.0795], "difference": -0.004, "low": -0.007, "high": -0.001, "p_value": 0.0123,
    "groups": [{"preset": "clean", "language": "en", "rates": [0.061, 0.06],
                "difference": 0.001, "low": -0.001, "high": 0.003, "p_value": 0.4}],
}  # fmt: skip


def test_comparison_and_gate_are_shown_as_they_were_decided() -> None:
    entry = {
        "preset": None, "language": None, "metric": "wer", "rate": 0.052, "baseline_rate": 0.05, "difference": 0.002, "low": None,
        "high": None, "p_value": None, "difference_with_failures": 0.004, "passed": False,
    }  # fmt: skip
    gate = {"baseline": "/x/old.json", "paired": False, "pairing": "", "max_regression_points": 0.1, "passed": False, "entries": [entry]}
    summary, rows = scored(ROWS, comparison=COMPARISON, gate=gate)
    text = Page(page(summary, rows)).text
    assert "Against old_result.jsonl, on the 4,600 rows that both have scored; 12 were left out." in text
    assert "-0.40" in text
    assert "-0.70 to -0.10" in text
    assert "0.0123" in text
    assert "Against the baseline old.json, by the rates alone, not row by row; at most +0.1 percentage points are allowed." in text
    assert "+0.40 if failures count" in text
    assert "/home" not in text
    assert hero_of(text).startswith(
        "Worse than allowed: all rows by more than 0.1 percentage points against old.json. 5.20 % against 5.00 %"
    )
    passed = Page(page(summary | {"gate": gate | {"passed": True, "entries": [entry | {"passed": True}]}, "comparison": None}, rows)).text
    assert hero_of(passed).startswith("Passed: nothing is worse than old.json by more than 0.1 percentage points. 5.20 % against 5.00 %")
    assert "worse than allowed" not in passed.lower()


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-0.007, -0.001, "Fewer errors than old_result.jsonl."),
        (0.001, 0.007, "More errors than old_result.jsonl."),
        (-0.001, 0.007, "This test does not tell the system and old_result.jsonl apart."),
    ],
)
def test_a_comparison_puts_its_verdict_and_both_rates_first(low: float, high: float, verdict: str) -> None:
    summary, rows = scored(ROWS, comparison=COMPARISON | {"low": low, "high": high})
    hero = hero_of(Page(page(summary, rows)).text)
    assert hero.startswith(f"{verdict} 7.55 % against 7.95 % WER, -0.40 points, 95 % interval {100 * low:+.2f} to {100 * high:+.2f}")
    assert hero.endswith("on 4,600 rows that both have scored")


def hero_of(text: str) -> str:
    """The page's one figure and what is said of it."""
    text = text[text.rindex(TODAY) + len(TODAY) :]
    return " ".join(text[: text.index("2 test sets, from")].split())


def test_clips_that_changed_are_listed_with_both_transcripts() -> None:
    other = [row | {"pred_text": heard} if (heard := THEN.get(str(row["id"]))) else row for row in ROWS]
    (summary, rows), (_, others) = scored(ROWS, comparison=COMPARISON), scored(other)
    facts = gather(summary, rows, others)
    assert [(change.row["id"], change.difference) for change in facts.gained] == [("b", 1)]
    assert [(change.row["id"], change.difference) for change in facts.lost] == [("d", -2), ("a", -1)]
    assert facts.changed == {"more": 1, "fewer": 2, "equal": 4, "mended": 1, "broken": 1}
    source = page(summary, rows, others=others)
    assert (
        "Right now and wrong there: 1; wrong now and right there: 1. With fewer errors: 2; with more: 1; with as many: 4."
        in Page(source).text
    )
    section = source[source.index("Clips that changed against old_result.jsonl") : source.index("<h2>Error rates")]
    assert re.findall(r"<h3>(\w)</h3><span>[^<]*</span><span>([^<]*)</span>", section) == [
        ("b", "1 error, was 0, in 2 words"), ("d", "0 errors, was 2, in 2 words"), ("a", "1 error, was 2, in 4 words"),
    ]  # fmt: skip
    assert re.findall(r"<dt>([^<]*)</dt>", section) == ["old_result.jsonl", "this"] * 3
    assert "<del>red blue</del>" in section
    assert "Clips that changed" not in page(summary, rows)


THEN = {"a": "one too four", "b": "five six", "d": " "}
"""Transcripts of another system by their ids."""


def test_a_rate_alone_is_the_hero_and_has_no_chart() -> None:
    summary, rows = scored([row for row in ROWS if row["preset"] == "clean"])
    source = page(summary, rows)
    text = " ".join(Page(source).text.split())
    assert f"{TODAY} 27.27 % WER 95 % interval" in text
    assert 'class="bars"' not in source
    assert "none" in text[text.index("failed") :][:20]
    assert 'class="bars"' in page(*scored(ROWS))


def test_confusions_are_counted_over_all_scored_rows() -> None:
    summary, rows = scored([*ROWS, *({**ROWS[0], "id": f"again {i}"} for i in range(3))])
    facts = gather(summary, iter(rows))
    assert facts.substitutions == {("two", "too"): 4, ("天", "田"): 1}
    assert facts.deletions == {"nine": 1, "很": 1}
    assert facts.insertions == {"seven": 1, "谢": 2, "了": 1}
    text = Page(page(summary, rows)).text
    assert "two→too4" in text
    assert "5 in all, 2 different" in text
    assert "谢2" in text


def test_worst_clips_have_more_errors_than_their_set_leads_to_expect() -> None:
    rows = [{"id": f"good {i}", "language": "en", "text": "a b c d e", "pred_text": "a b c d e"} for i in range(100)]
    rows += [{"id": "long", "language": "en", "text": " ".join("abcdefghij" * 30), "pred_text": " ".join("abcdefghij" * 29)}]
    rows += [{"id": "wrong", "language": "en", "text": "one two three", "pred_text": " ".join("xyz" * 4)}]
    rows += [{"id": f"slip {i}", "language": "en", "text": "one two", "pred_text": "one too"} for i in range(WORST)]
    summary, out = scored(rows)
    worst = gather(summary, out).worst
    assert len(worst) == WORST
    assert worst[0].row["id"] == "wrong"  # 12 errors in 3 words; the long clip's 10 in 300 words are no surprise
    assert [clip.excess for clip in worst] == sorted((clip.excess for clip in worst), reverse=True)
    assert "good 0" not in {clip.row["id"] for clip in worst}
    assert [clip.row["id"] for clip in worst[1:4]] == ["slip 0", "slip 1", "slip 2"]  # equals stay in the rows' order


def diff_of(source: str, name: str) -> str:
    article = next(part for part in source.split("<article")[1:] if f"<h3>{name}</h3>" in part)
    found = re.search(r'<p class="diff"[^>]*>(.*?)</p>', article)
    assert found is not None
    return found[1]


def test_diffs_show_both_sides_in_their_places() -> None:
    source = page(*scored(ROWS))
    assert diff_of(source, "a") == 'one <span class="place"><del>two</del><ins>too</ins></span> three four'
    assert diff_of(source, "b") == "five six <ins>seven</ins>"
    assert diff_of(source, "c") == "eight <del>nine</del> ten"
    assert diff_of(source, "e") == '今天<span class="place"><del>天</del><ins>田</ins></span>气<del>很</del>好'
    assert diff_of(source, "g") == "<ins>谢谢</ins>"
    assert 'dir="auto" lang="zh"' in source
    mixed = {"id": "m", "language": "zh-en", "text": "我 用 python 写 code 了", "pred_text": "我 用 py thon 写 code 了"}
    assert diff_of(page(*scored([mixed])), "m") in (
        '我用<span class="place"><del>python</del><ins>py</ins></span> <ins>thon</ins>写code了',
        '我用<ins>py</ins> <span class="place"><del>python</del><ins>thon</ins></span>写code了',
    )


def test_an_endless_transcript_is_cut_with_a_word() -> None:
    row = {"id": "loop", "language": "en", "text": "a", "pred_text": "a " + "b " * 5000}
    source = page(*scored([row]))
    assert f"… and {5001 - MOST_PLACES:,} more" in source
    assert len(source) < 60_000


@pytest.mark.parametrize(
    ("audio", "expected"),
    [
        ("wav/a b.wav", "wav/a%20b.wav"),
        ("../x#1.flac", "../x%231.flac"),
        ("ROOT/ü.wav", "file://ROOT/%C3%BC.wav"),
        ("file://ROOT/%C3%BC.wav", "file://ROOT/%C3%BC.wav"),
        ("javascript:alert(1)", "javascript%3Aalert%281%29"),
        ("caf\udce9.wav", "caf%E9.wav"),
        ("wav", ""),
        ("gone.wav", ""),
        ("ROOT/gone.wav", ""),
        ("https://example.org/a.wav", ""),
        ("shard.tar::a.wav@512+10", ""),
        ("a\0b", ""),
        ("\ud800.wav", ""),
        (None, ""),
        ("", ""),
        (7, ""),
    ],
)
def test_only_local_files_that_are_there_get_a_player(tmp_path: Path, audio: Any, expected: str) -> None:
    folder = tmp_path / "pages"
    (folder / "wav").mkdir(parents=True)
    for path in ("pages/wav/a b.wav", "x#1.flac", "ü.wav", "pages/javascript:alert(1)", "pages/shard.tar", "pages/caf\udce9.wav"):
        (tmp_path / path).touch()
    audio, expected = audio.replace("ROOT", str(tmp_path)) if isinstance(audio, str) else audio, expected.replace("ROOT", str(tmp_path))
    assert address(audio, folder) == expected
    assert player({"audio": audio}, folder) == expected


def test_relative_recordings_start_from_the_manifest_wherever_the_page_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["a/b.wav", "../b.wav", "/x/b.wav", "shard.tar::b.wav", "https://example.org/b.wav", None, ""]
    rows = [{"id": "i", "audio": audio} for audio in given]
    expected = ["../data/a/b.wav", "../b.wav", *given[2:]]
    for start, folder in ((Path("data"), Path("pages")), (tmp_path / "data", Path("pages")), (Path("data"), tmp_path / "pages")):
        assert [row["audio"] for row in from_page(rows, start, folder)] == expected
    assert [row["audio"] for row in from_page(rows[:1], Path("data"), Path("data"))] == ["a/b.wav"]
    assert rows[0] == {"id": "i", "audio": "a/b.wav"}


def test_a_player_starts_where_the_segment_does(tmp_path: Path) -> None:
    (tmp_path / "a.opus").touch()
    assert player({"audio": "a.opus", "begin_time": 1.5, "end_time": 4}, tmp_path) == "a.opus#t=1.5,4"
    assert player({"audio": "a.opus", "begin_time": -1, "end_time": 4.0}, tmp_path) == "a.opus#t=0,4"
    assert player({"audio": "a.opus", "begin_time": -1, "end_time": -1}, tmp_path) == "a.opus"
    source = page(*scored([ROWS[0] | {"audio": "a.opus", "begin_time": 1.5, "end_time": 4}]), tmp_path)
    assert 'src="a.opus#t=1.5,4"' in source
    assert "<span>2.5 s</span>" in source


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/data/private set/x.jsonl:7: /data/private set/a.wav: no such file", "x.jsonl:7: a.wav: no such file"),
        ("in.jsonl:7: '/data/a.wav' and file:///home/me/b.wav", "in.jsonl:7: 'a.wav' and b.wav"),
        ("/data/a.wav and /data/b.wav differ", "a.wav and b.wav differ"),
        ("/data/private/: is a folder (/root)", "private/: is a folder (/root)"),
        ("https://example.org/a/b.wav, and/or/not 1/2/3, wav/a.wav", "https://example.org/a/b.wav, and/or/not 1/2/3, wav/a.wav"),
    ],
)
def test_of_whole_paths_in_texts_the_last_name_is_left(text: str, shown: str) -> None:
    assert without_folders(text) == shown


def test_no_folder_of_the_machine_stands_on_the_page() -> None:
    error = "/home/secret/in.jsonl:2: /home/secret/b.wav: no such file"
    rows = [
        {"audio": "/home/secret/a.wav", "text": "one", "pred_text": "two"},
        {"audio": "/home/secret/b.wav", "text": "one", "pred_text": None, "status": "error", "error": error},
        {"id": "/home/secret/c", "audio": None, "text": "one", "pred_text": "two"},
    ]
    source = page(*scored(rows))
    assert "secret" not in source
    assert re.findall(r"<h3>([^<]*)</h3><span>", source) == ["a.wav", "c"]
    assert "<b>b.wav</b> in.jsonl:2: b.wav: no such file" in source
    assert title({"audio": "set.tar::x/d.flac"}) == "d.flac"
    assert title({}) == "unnamed clip"


@pytest.mark.parametrize(
    ("row", "seconds"),
    [
        ({"begin_time": 1.0, "end_time": 3.5, "duration": 60}, 2.5),
        ({"begin_time": -1, "end_time": -1, "duration": 60}, 60.0),
        ({"begin_time": 10, "duration": 60}, 50.0),
        ({"begin_time": 10, "duration": 5}, None),
        ({"duration": True}, None),
        ({}, None),
    ],
)
def test_a_clips_length_is_its_segments(row: dict[str, Any], seconds: float | None) -> None:
    assert clip_seconds(row) == seconds


@pytest.mark.parametrize(
    "rows",
    [
        [ROWS[5]],
        [ROWS[7]],
        [ROWS[6]],
        [ROWS[3]],
        [{"text": "a", "pred_text": "b"}],
        [ROWS[5]] * (FAILURES + 20),
    ],
    ids=["only a failure", "no reference", "only silence", "no error", "bare row", "many failures"],
)
def test_a_page_can_be_made_of_anything_that_was_scored(rows: list[dict[str, Any]]) -> None:
    summary, out = scored(rows)
    text = Page(page(summary, out)).text
    assert f"of {len(rows)}" in text
    if len(rows) > FAILURES:
        assert f"The first {FAILURES} of {len(rows)}." in text


def test_the_page_does_not_grow_with_the_rows() -> None:
    rows = [{**ROWS[i % 5], "id": str(i), "duration": 1.0 + i % 40} for i in range(4000)]
    assert len(page(*scored(rows))) < 150_000


@pytest.mark.parametrize("flag", ["--compare", "--baseline"])
def test_the_command_lists_what_changed_against_rows_that_are_at_hand(tmp_path: Path, flag: str) -> None:
    for name, heard in (("then", "one too"), ("now", "one two")):
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(json.dumps({"id": f"{i}", "text": "one two", "pred_text": heard, "language": "en"}) + "\n" for i in range(3))
        )
    then = ["--input", tmp_path / "then.jsonl", "--output", tmp_path / "then.scored.jsonl", "--summary", tmp_path / "then.json"]
    assert main([str(word) for word in then]) == 0
    other = tmp_path / ("then.jsonl" if flag == "--compare" else "then.json")
    assert main([str(word) for word in ("--input", tmp_path / "now.jsonl", flag, other, "--html", tmp_path / "now.html")]) == 0
    text = " ".join(Page((tmp_path / "now.html").read_text(encoding="utf-8")).text.split())
    assert f"Clips that changed against {other.name}" in text
    assert "Right now and wrong there: 3; wrong now and right there: 0." in text
    assert "0.00 % against 50.00 %" in text
