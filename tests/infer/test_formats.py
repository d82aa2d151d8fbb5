"""Formats for each recording, what captions hold, which names files get, and what a user may give and ask for on the command line."""

import importlib.util
import io
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from arkfast.data import Fields
from arkfast.infer.command import main
from arkfast.infer.formats import FORMS, CaptionLimits, Recording, file_names, recordings_of, save, written
from arkfast.infer.formats.captions import Segment, captions, width, wrapped
from arkfast.infer.inputs import input_rows
from arkfast.records import InputError
from arkfast.testing import synthetic_speech, tiny_checkpoint, write_wav

LIMITS = CaptionLimits()
TEXT = "Fish & chips <b>are</b> what --> we had, and 今天天气很好，我们一起去公园散步吧。 " * 3


def recording(*parts: tuple[float, float, str]) -> Recording:
    return Recording("a/talk.mp3", parts=[(Segment(*part), {"finish_reason": "stop", "row": "talk"}) for part in parts])


TALK = recording((0.5, 29.98, TEXT), (30.01, 31.0, ""), (31.5, 59.999, "Short."), (3600.25, 7325.5, TEXT))

# A strict reader of SRT and WebVTT, where no third-party one is installed. It follows the formats' grammar line by line.


def strict_cues(text: str, mark: str, *, numbered: bool) -> list[tuple[float, float, str]]:
    clock = rf"(\d{{2,}}):([0-5]\d):([0-5]\d){re.escape(mark)}(\d{{3}})"
    assert not text or text.endswith("\n")
    assert not text.endswith("\n\n")
    found = []
    for number, block in enumerate(text.rstrip("\n").split("\n\n") if text else [], start=1):
        lines = block.split("\n")
        if numbered:
            assert lines.pop(0) == str(number)
        times = re.fullmatch(rf"{clock} --> {clock}", lines[0])
        assert times, lines[0]
        a, b = (int(h) * 3600 + int(m) * 60 + int(s) + int(ms) / 1000 for h, m, s, ms in (times.groups()[:4], times.groups()[4:]))
        assert lines[1:]
        assert all(line.strip() and "-->" not in line for line in lines[1:])
        found.append((a, b, "\n".join(lines[1:])))
    return found


def seconds(clock: str) -> float:
    hours, minutes, rest = clock.split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(rest)


def cues_of_srt(text: str) -> list[tuple[float, float, str]]:
    if importlib.util.find_spec("srt"):
        import srt

        return [(c.start.total_seconds(), c.end.total_seconds(), c.content) for c in srt.parse(text)]
    return strict_cues(text, ",", numbered=True)


def cues_of_vtt(text: str) -> list[tuple[float, float, str]]:
    if importlib.util.find_spec("webvtt"):
        import webvtt

        # Its own seconds are whole ones.
        return [(seconds(c.start), seconds(c.end), c.raw_text) for c in webvtt.from_buffer(io.StringIO(text))]
    head, _, rest = text.partition("\n\n")
    assert head in ("WEBVTT", "WEBVTT\n")
    assert not re.search(r"&(?!amp;|lt;|gt;)|<", rest)
    return strict_cues(rest, ".", numbered=False)


def plain(text: str) -> str:
    for mark, sign in (("&lt;", "<"), ("&gt;", ">"), ("&amp;", "&")):
        text = text.replace(mark, sign)
    return "".join(text.split())


@pytest.mark.parametrize("limits", [LIMITS, CaptionLimits(max_line_width=20, max_line_count=1), CaptionLimits(max_line_width=0)])
def test_captions_hold_every_word_within_their_limits_and_times_ascend(limits: CaptionLimits) -> None:
    said = "".join("".join(segment.text.split()) for segment in TALK.segments)
    for form, read in (("srt", cues_of_srt), ("vtt", cues_of_vtt)):
        cues = read(written(TALK, form, limits))  # type: ignore[arg-type]
        assert plain("".join(text for _, _, text in cues)) == (said.replace("-->", "→") if form == "srt" else said)
        assert all(begin < end for begin, end, _ in cues)
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(cues))
        assert (cues[0][0], cues[-1][1]) == (0.5, 7325.5)
        for _, _, text in cues:
            lines = text.split("\n")
            assert not limits.max_line_width or all(width(plain_line(line)) <= limits.max_line_width for line in lines)
            assert not limits.max_line_count or len(lines) <= limits.max_line_count


def plain_line(line: str) -> str:
    return line.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


@pytest.mark.parametrize(
    ("text", "most", "lines"),
    [
        ("one two three", 7, ["one two", "three"]),
        ("supercalifragilistic", 8, ["supercal", "ifragili", "stic"]),
        ("今天天气很好", 6, ["今天天", "气很好"]),
        ("今天好，走吧", 6, ["今天", "好，走", "吧"]),
        ("她说（是）的", 6, ["她说", "（是）", "的"]),
        ("안녕하세요 여러분", 10, ["안녕하세요", "여러분"]),
        ("用Python写", 8, ["用Python", "写"]),
        ("  ", 10, []),
        ("as it is", 0, ["as it is"]),
    ],
)
def test_lines_break_where_the_script_allows(text: str, most: int, lines: list[str]) -> None:
    assert wrapped(text, most) == lines


def test_many_captions_in_a_moment_still_ascend() -> None:
    found = list(captions([Segment(0, 0.002, "a b c d"), Segment(0.002, 1, "e")], max_line_width=1, max_line_count=1))
    assert [caption.lines for caption in found] == [("a",), ("b",), ("c",), ("d",), ("e",)]
    assert all(a.start < a.end <= b.start < b.end for a, b in itertools.pairwise(found))


def test_json_is_openais_and_tsv_is_whispers() -> None:
    two = recording((0.0, 1.5, "今天"), (1.5, 2.25, "很好\tnow"))
    assert json.loads(written(two, "json", LIMITS)) == {"text": "今天很好 now"}
    whole = json.loads(written(two, "verbose_json", LIMITS))
    assert {name: whole[name] for name in ("task", "language", "duration", "text")} == {
        "task": "transcribe", "language": None, "duration": 2.25, "text": "今天很好 now",
    }  # fmt: skip
    assert [(s["id"], s["start"], s["end"]) for s in whole["segments"]] == [(0, 0.0, 1.5), (1, 1.5, 2.25)]
    assert written(two, "tsv", LIMITS) == "start\tend\ttext\n0\t1500\t今天\n1500\t2250\t很好 now\n"
    assert written(two, "txt", LIMITS) == "今天很好 now\n"


def test_a_recording_in_which_nothing_is_said_has_files_that_parse() -> None:
    silent = recording((0.0, 3.0, ""))
    assert cues_of_srt(written(silent, "srt", LIMITS)) == []
    assert written(silent, "vtt", LIMITS) == "WEBVTT\n"
    assert [written(silent, form, LIMITS)[:1] for form in ("json", "txt", "tsv")] == ["{", "\n", "s"]  # type: ignore[arg-type]


# Names


def test_names_are_safe_and_no_two_recordings_share_one() -> None:
    given = [
        "a/talk.mp3",
        "b/talk.mp3",
        "c/TALK.wav",
        "plain.wav",
        "con.wav",
        "s.tar::k.flac@1+2",
        "...",
        "x" * 300,
        'a:"b"?.wav',
        "é" * 150,
    ]
    names = file_names(given)
    assert len({name.casefold() for name in names}) == len(given)
    assert (names[3], names[4], names[5]) == ("plain", "_con", "k")
    assert names[0].startswith("talk-")
    assert all(len(name.encode()) <= 140 and not re.search(r'[<>:"/\\|?*\x00-\x1f]|^\.|^$', name) for name in names)
    assert file_names(given[::-1]) == names[::-1], "a name does not depend on the order"


def row(audio: str, **values: Any) -> dict[str, Any]:
    base = {"audio": audio, "id": audio, "status": "ok", "begin_time": -1, "end_time": -1, "language": "en", "finish_reason": "stop"}
    return base | {"pred_text": "words", "audio_seconds": 2.5} | values


def test_rows_of_one_recording_become_one_and_a_failed_row_keeps_its_file_away(tmp_path: Path) -> None:
    rows = [
        row("a.wav", begin_time=5.0, end_time=7.0, pred_text="second"),
        row("b.wav", status="error", pred_text=None),
        row("a.wav", begin_time=0.0, end_time=2.0, pred_text="first"),
        row("b.wav"),
        row("c.wav"),
    ]
    first, _, third = recordings_of(rows)
    assert (first.text, first.segments[0]) == ("first second", Segment(0.0, 2.0, "first"))
    assert third.segments == [Segment(0.0, 2.5, "words")]
    assert save(recordings_of(rows), tmp_path / "out", ["jsonl", "txt", "srt"], LIMITS) == (2, ["b.wav"])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.srt", "a.txt", "c.srt", "c.txt"]


# What may be given


def test_a_recording_elsewhere_is_one_however_often_its_address_was_signed(tmp_path: Path) -> None:
    rows = [
        row(f"https://h/talk.mp3?id=7&sig={begin}", pred_text=f"at {begin}", begin_time=float(begin), end_time=begin + 5.0)
        for begin in (5, 0)
    ]
    other = row("https://h/talk.mp3?id=8&sig=0", pred_text="another")
    done, left_out = save(recordings_of([*rows, other]), tmp_path, ["txt"], LIMITS)
    assert (done, left_out) == (2, [])
    assert sorted(path.read_text(encoding="utf-8") for path in tmp_path.iterdir()) == ["another\n", "at 0 at 5\n"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("a/talk.wav", "b/talk.wav", "b/deep/other.wav", "b/.hidden/no.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_wav(tmp_path / name, synthetic_speech(0.5, seed=len(name)))
    (tmp_path / "b" / "notes.txt").write_text("no recording")
    (tmp_path / "m.jsonl").write_text('{"audio": "a/talk.wav", "id": "mine"}\n')
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("given", "ids"),
    [
        (["a/talk.wav"], ["talk.wav"]),
        (["b"], ["other.wav", "talk.wav"]),
        (["*/talk.wav"], ["a/talk.wav", "b/talk.wav"]),
        (["a/talk.wav", "m.jsonl", "b/deep"], ["talk.wav", "mine", "other.wav"]),
        (["{a,b}/talk.wav"], ["a/talk.wav", "b/talk.wav"]),
        (["**/other.wav"], ["other.wav"]),
    ],
)
def test_folders_patterns_and_several_inputs(folder: Path, given: list[str], ids: list[str]) -> None:
    rows = list(input_rows([Path(name) for name in given], fields=Fields()))
    assert [row.utterance.id for row in rows if row.utterance] == ids


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("empty", "empty: is a folder without recordings"),
        ("*.mp3", r"\*\.mp3: no file matches"),
        ("gone.mp3", "gone.mp3: no such file"),
        ("gone.jsonl", "gone.jsonl: cannot be read"),
        ("https://h/{3..1}.wav?sig=s3cr3t", r"^https://h/\{3\.\.1\}\.wav\?…: the braces count down from 3 to 1; write"),
    ],
)
def test_what_is_not_there_is_named(folder: Path, given: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        list(input_rows(Path(given), fields=Fields()))


# The command


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("model"))


def run(model: Path | str, *words: str) -> int:
    return main([*words, "--model_path", str(model), "--max_new_tokens", "8", "--device", "cpu"])


def test_the_text_of_a_single_recording_is_printed_and_nothing_else(folder: Path, model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(model, "a/talk.wav", "--output", "rows.jsonl") == 0
    text = json.loads(Path("rows.jsonl").read_text())["pred_text"]
    capfd.readouterr()
    before = sorted(folder.rglob("*"))
    assert run(model, "a/talk.wav") == 0
    assert capfd.readouterr().out == f"{text}\n"
    assert run(model, "a/talk.wav", "--output_format", "vtt") == 0
    assert cues_of_vtt(capfd.readouterr().out)[0][0] == 0
    assert sorted(folder.rglob("*")) == before
    assert run(model, "a/talk.wav", "--output_format", "srt", "--output", "talk.srt") == 0
    assert plain(cues_of_srt(Path("talk.srt").read_text())[0][2]) in plain(text).replace("-->", "→")


def test_a_folder_becomes_a_file_for_each_recording_beside_all_rows(folder: Path, model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(model, "a", "b/deep/other.wav", "--output_dir", "out", "--output_format", "txt,srt", "--quiet") == 0
    assert sorted(path.name for path in Path("out").iterdir() if not path.name.startswith(".")) == [
        "other.srt", "other.txt", "talk.srt", "talk.txt", "transcripts.jsonl", "transcripts.jsonl.run.json",
    ]  # fmt: skip
    rows = [json.loads(line) for line in Path("out/transcripts.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["talk.wav", "other.wav"]
    assert Path("out/other.txt").read_text() == f"{rows[1]['pred_text']}\n"
    assert json.loads(Path("out/transcripts.jsonl.run.json").read_text())["flags"]["more_inputs"] == ["b/deep/other.wav"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["gone.mp3"], "gone.mp3: no such file"),
        (["m.jsonl"], "required: --output, a JSONL file, or --output_dir for a file for each recording"),
        (["m.jsonl", "--output", "o", "--output_format", "srt"], "--output_format srt needs --output_dir"),
        (["a/talk.wav", "--output_format", "srt,txt"], "several formats need --output_dir"),
        (["b", "--output", "-", "--output_dir", "out"], "--output - cannot go with --output_dir"),
        (["b", "--output_dir", "out", "--max_line_width", "-1"], "--max_line_width and --max_line_count must be at least 0"),
        (["a/talk.wav", "--output", "a/talk.wav"], "a/talk.wav: is the input too"),
    ],
)
def test_flags_that_do_not_go_together_are_named_before_anything_is_loaded(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert run("/nowhere", *words) == 2
    assert said in capsys.readouterr().err
    assert not Path("out").exists()


def test_every_format_but_the_rows_has_its_writer() -> None:
    from typing import get_args

    from arkfast.infer.formats import Form

    assert set(FORMS) == set(get_args(Form)) - {"jsonl"}
