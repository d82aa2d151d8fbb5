"""The quickstart's report: the table at any moment, sentences that follow the figures, a page that needs nothing else."""

from __future__ import annotations

import base64
import datetime
import re
import struct
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from arkfast.quickstart.page import LIMITS
from arkfast.quickstart.report import (
    ARM_LABELS,
    ArmRow,
    Difference,
    Rate,
    Report,
    Transcription,
    compared,
    draw_picture,
    headline_of,
    render_page,
    render_table,
    write_report,
)
from arkfast.records import InputError

BASE = ArmRow(
    arm="base",
    state="done",
    steps=1500,
    seconds=88.4,
    dev=Rate(value=0.239, low=0.22, high=0.26),
    test=Rate(value=0.3, low=0.28, high=0.32),
)
SFT = ArmRow(
    arm="sft",
    state="done",
    steps=800,
    seconds=45,
    dev=Rate(value=0.2, low=0.18, high=0.22),
    test=Rate(value=0.28, low=0.26, high=0.3),
    curve=((0, 0.239), (400, 0.21), (800, 0.2)),
)
PSEUDO = ArmRow(
    arm="pseudo",
    state="done",
    steps=800,
    seconds=61,
    dev=Rate(value=0.07, low=0.06, high=0.08),
    test=Rate(value=0.131, low=0.12, high=0.14),
    curve=((0, 0.239), (800, 0.07)),
)
OPD = ArmRow(
    arm="opd",
    state="done",
    steps=800,
    seconds=82,
    support=10.26,
    dev=Rate(value=0.065, low=0.055, high=0.075),
    test=Rate(value=0.13, low=0.12, high=0.14),
    curve=((0, 0.239), (400, 0.1), (800, 0.065)),
)
CLIP = Transcription(
    id="test-7",
    reference="one nine nine four",
    before="one nine five four two",
    after="one nine nine four",
    seconds=1.5,
    mel=np.add.outer(np.arange(40.0), np.sin(np.arange(150.0))),
    note="en-us+f3, babble at 9 dB",
)
REPORT = Report(
    rows=(
        BASE,
        SFT,
        PSEUDO,
        OPD,
        ArmRow(arm="td_opd", state="running", steps=120, total_steps=800, stage_begins=(400,)),
        ArmRow(arm="teacher"),
    ),
    clips=(CLIP,),
    recipe={"seed": 0, "learning rate": 1e-3},
    commands=("bash scripts/quickstart.sh", "arkfast transcribe --input a.jsonl --output b.jsonl"),
    environment={"torch": "2.13.0"},
    student="a small student",
    data="digits",
    day=datetime.date(2026, 3, 7),
)


class _Page(HTMLParser):
    """Checks that tags nest, and keeps the text, the tags and every attribute."""

    _VOID = frozenset({"meta", "img", "br", "hr", "link", "input", "path", "circle"})

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in self._VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self._VOID:  # an element of a drawing that is closed where it is opened
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_table_shows_finished_running_and_pending_arms() -> None:
    lines = render_table([REPORT.rows[3], REPORT.rows[0], *REPORT.rows[4:]]).split("\n")
    assert len({len(line) for line in lines}) == 1
    assert [line[: len("teacher data, then OPD")].strip() for line in lines[2:]] == [
        "base student",
        "OPD",
        "teacher data, then OPD",
        "teacher",
    ]
    assert lines[2].split()[2:] == ["30.0", "[28.0,", "32.0]", "23.9", "[22.0,", "26.0]", "–", "1,500", "88"]
    assert lines[3].split()[1:] == ["13.0", "[12.0,", "14.0]", "6.5", "[", "5.5,", "7.5]", "10.3", "800", "82"]
    assert lines[4].split()[4:] == ["…", "…", "…", "120/800", "…"]
    assert lines[5].split()[1:] == ["…"] * 5


def test_table_of_nothing_has_its_header() -> None:
    assert render_table([]).startswith("arm  WER test %")


def test_half_measured_arm_shows_what_it_has() -> None:
    row = ArmRow(arm="opd", state="running", total_steps=800, dev=Rate(value=0.1, low=0.09, high=0.11))
    assert render_table([row]).split("\n")[2].split() == ["OPD", "…", "10.0", "[", "9.0,", "11.0]", "…", "0/800", "…"]


def test_impossible_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="0 ≤ low ≤ value ≤ high"):
        Rate(value=0.5, low=0.6, high=0.7)
    with pytest.raises(ValueError, match="no arm is called 'magic'"):
        ArmRow(arm="magic")


def test_the_headline_is_the_held_out_test_set_and_names_the_tie() -> None:
    assert headline_of(REPORT) == (
        "On-policy distillation lowered the word error rate on the held-out test set from 30.0 % to 13.0 % in 800 steps; pseudo-labels "
        "of the same teacher give 13.1 %, which this run does not tell apart from it; further training on the student's own labels gives "
        "28.0 %."
    )
    worse = replace(OPD, test=Rate(value=0.4, low=0.35, high=0.5), steps=None)
    assert (
        headline_of(Report(rows=(BASE, worse)))
        == "On-policy distillation raised the word error rate on the held-out test set from 30.0 % to 40.0 %."
    )
    assert "against which OPD makes more errors" in headline_of(Report(rows=(BASE, worse, PSEUDO)))
    poor = replace(PSEUDO, test=BASE.test)
    assert "pseudo-labels of the same teacher give 30.0 %, against which OPD makes fewer errors." in headline_of(
        Report(rows=(BASE, OPD, poor))
    )
    assert "left the word error rate on the held-out test set at 30.0 %" in headline_of(Report(rows=(BASE, replace(OPD, test=BASE.test))))
    assert "not been measured" in headline_of(Report(rows=(BASE, ArmRow(arm="opd"))))
    assert "not been measured" in headline_of(Report(rows=(BASE, replace(OPD, test=None)))), "the dev set makes no headline"


def test_verdicts_claim_no_more_than_the_intervals() -> None:
    found = compared(REPORT, "opd", "sft", "dev")
    assert found is not None
    assert (found.ours, found.theirs, found.interval, found.verdict) == (0.065, 0.2, "95 % intervals do not overlap", "fewer errors")
    turned, tie = compared(REPORT, "sft", "opd", "dev"), compared(REPORT, "opd", "pseudo", "dev")
    assert turned is not None
    assert turned.verdict == "more errors"
    assert tie is not None
    assert (tie.interval, tie.verdict) == ("95 % intervals overlap", "not told apart")
    assert compared(REPORT, "opd", "td_opd", "dev") is None
    assert compared(REPORT, "opd", "teacher", "test") is None

    def paired(low: float, high: float) -> tuple[str, str]:
        difference = Difference(first="opd", second="pseudo", split="dev", value=-0.005, low=low, high=high)
        found = compared(replace(REPORT, differences=(difference,)), "opd", "pseudo", "dev")
        assert found is not None
        return found.interval, found.verdict

    assert paired(-0.008, -0.002) == ("-0.5 points, -0.8 to -0.2 with pairs", "fewer errors")
    assert paired(-0.012, 0.002)[1] == "not told apart"
    cells = re.findall(r'data-label="(?:held-out test|dev) set"><span[^>]*>([^<]*) <', render_page(REPORT))
    assert cells == ["fewer errors"] * 4 + ["not told apart"] * 2


def test_page_is_well_formed_complete_and_self_contained() -> None:
    picture, wav = b"\x89PNG not read by the page", b"RIFF neither"
    report = replace(REPORT, clips=(replace(CLIP, wav=wav),))
    source = render_page(report, {"test-7": picture})
    page = _Page(source)
    text = " ".join(page.text.split())
    assert page.text.count(headline_of(REPORT)) == 1
    assert "a small student · digits · 7 March 2026 30.0 % → 13.0 % WER on the held-out test set" in text
    assert "http://" not in source
    assert "https://" not in source
    assert "url(" not in source
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert [value for name, value in page.attributes if name in ("src", "href")] == [
        "data:image/png;base64," + base64.b64encode(picture).decode(),
        "data:audio/wav;base64," + base64.b64encode(wav).decode(),
    ]
    for expected in (*ARM_LABELS.values(), "120/800", "learning rate", "0.001", "2.13.0", *REPORT.commands, *LIMITS, CLIP.note):
        assert expected in page.text
    assert "goes over to its next stage at step 400" in page.text
    assert '<span class="place"><del>nine</del><ins>five</ins></span> four <ins>two</ins>' in source
    curves = next(part for part in source.split("<figure>") if "<figcaption>Word error rate on the dev set" in part)
    assert re.findall(r"</svg>([^<]*)</span>", curves[: curves.index("</div>")]) == ["OPD", "more SFT", "pseudo-labels", "base student"]


def test_page_escapes_what_comes_from_outside() -> None:
    evil = "<script>alert(1)</script>&\"'"
    report = replace(
        REPORT,
        clips=(Transcription(id=evil, reference=evil, before=evil + " x", after="", seconds=1.0, note=evil),),
        recipe={evil: evil},
        commands=(evil,),
        environment={evil: evil},
    )
    source = render_page(report)
    assert "<script" not in source
    assert _Page(source).text.count(evil) == 10  # id, note, said, heard, left out, command, two settings of two sides each


def test_picture_is_a_real_image(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the picture is drawn by matplotlib")
    from matplotlib.image import imread

    path = draw_picture(REPORT, tmp_path / "p.png")
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    assert 1500 <= width <= 2400
    assert 600 <= height <= 1200
    pixels = imread(path)[..., :3]
    left, right = pixels[:, : width // 2], pixels[:, width // 2 :]
    for half in (left, right):
        assert 0.02 < (half.min(axis=2) < 0.9).mean() < 0.6  # drawn on, and not black

    def has(part: np.ndarray, colour: str) -> bool:
        wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        return bool((np.abs(part - wanted).max(axis=2) < 0.01).sum() > 50)

    assert has(left, "#0072B2")  # OPD's curve
    assert has(left, "#E69F00")  # more SFT's
    assert has(right, "#D55E00")  # wrong words
    clean = replace(REPORT, clips=(replace(CLIP, before=CLIP.reference),))
    drawn = imread(draw_picture(clean, tmp_path / "clean.png"))[..., :3]
    assert not has(drawn[height // 2 :, width // 2 :], "#D55E00")


@pytest.mark.parametrize(
    "report",
    [
        Report(rows=()),
        Report(rows=tuple(ArmRow(arm=arm) for arm in ARM_LABELS)),
        Report(rows=(BASE,), clips=(replace(CLIP, mel=None),)),
        Report(rows=(replace(BASE, dev=Rate(value=0.0, low=0.0, high=0.0)),)),
        replace(REPORT, clips=(replace(CLIP, before="", after="nine " * 200),)),
    ],
    ids=["nothing", "all pending", "clip without mel", "no error at all", "empty and endless transcripts"],
)
def test_report_can_be_written_at_any_moment(report: Report, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the picture is drawn by matplotlib")
    page = write_report(tmp_path / "new" / "report", report)
    assert page == tmp_path / "new" / "report" / "report.html"
    assert sorted(path.name for path in page.parent.iterdir()) == ["picture.png", "report.html", "table.txt"]
    assert (page.parent / "table.txt").read_text(encoding="utf-8") == render_table(report.rows) + "\n"
    sources = [value for name, value in _Page(page.read_text(encoding="utf-8")).attributes if name == "src"]
    assert len(sources) == sum(clip.mel is not None for clip in report.clips)
    assert all(base64.b64decode(source.split(",")[1]).startswith(b"\x89PNG") for source in sources)
    assert write_report(page.parent, REPORT) == page  # again, in place
    assert headline_of(REPORT).split(";")[0] in page.read_text(encoding="utf-8")


def test_missing_matplotlib_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match=r"pip install -e '\.\[quickstart\]'"):
        write_report(tmp_path, REPORT)
    assert list(tmp_path.iterdir()) == []
