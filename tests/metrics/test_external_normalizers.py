"""Normalisers of other people's making: a process that may misbehave in every way, and a checkout that may lack anything."""

import sys
from pathlib import Path

import pytest

from arkfast.metrics import get_normalizer
from arkfast.metrics.normalizers.external import load_external
from arkfast.records import InputError

GOOD = """
import sys
__version__ = "1.4"
def text_normalize(text):
    print("a stray line on standard output")
    sys.stderr.write("a complaint\\n")
    return text.replace("#", " two ").upper()
"""


def module(folder: Path, source: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "text_process.py").write_text(source, encoding="utf-8")
    return folder


def test_texts_go_through_the_other_process_in_order(tmp_path: Path) -> None:
    normalizer = get_normalizer("external", python=sys.executable, workdir=module(tmp_path, GOOD))
    texts = [f"Ünï {i}#, x\n" for i in range(700)] + ["", "  "]  # more than are sent ahead
    try:
        assert normalizer.apply(texts, ["en"] * 702) == [f"ünï {i} two x" for i in range(700)] + ["", ""]
        assert normalizer.apply(["#。"], ["zh"]) == ["two"]
    finally:
        normalizer.close()
    assert (normalizer.name, normalizer.version, len(normalizer.sha256)) == ("external", "1.4", 64)


def test_the_hash_follows_the_modules_source(tmp_path: Path) -> None:
    hashes = []
    for source in (GOOD, GOOD, GOOD + "# changed"):
        normalizer = load_external(sys.executable, module(tmp_path, source))
        normalizer.close()
        hashes.append(normalizer.sha256)
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def text_normalize(text):\n    raise KeyError('no rule')", "text_normalize failed with KeyError.*on 'one'"),
        ("def text_normalize(text):\n    return 3", "expected text_normalize to give text, got 3 for 'one'"),
        ("import os\ndef text_normalize(text):\n    os.write(2, b'core dump')\n    os._exit(9)", "ended before its last reply.*core dump"),
        ("import time\ndef text_normalize(text):\n    time.sleep(60)", "no reply within 1 s"),
        ("raise RuntimeError('no grammar')", "ended before its last reply.*no grammar"),
        ("x = 1", "ended before its last reply.*text_normalize"),
    ],
)  # fmt: skip
def test_a_process_that_fails_is_told_with_its_own_words(tmp_path: Path, source: str, message: str) -> None:
    stall = 1 if "sleep" in source else 60
    with pytest.raises(InputError, match=rf"(?s)--text_normalize_python .*{message}"):
        load_external(sys.executable, module(tmp_path, source), stall_seconds=stall).apply(["one", "two"], [None, None])


@pytest.mark.parametrize(
    ("replies", "message"),
    [
        ([{"i": 1, "text": "x"}], "expected the reply to text 0, got"),
        ([{"i": 0, "text": "x"}, {"i": 0, "text": "x"}], "expected the reply to text 1, got"),
        ([{"i": 0, "text": "x"}, {"i": 1, "text": "x"}, {"i": 7, "text": "x"}], "more replies than texts|expected the reply to text 2"),
        (["not json"], "a line that is no reply"),
        ([], "ended before its last reply"),
    ],
)
def test_replies_that_do_not_match_the_texts_are_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replies: list[object], message: str
) -> None:
    """A stand-in for the worker that answers as told, whatever it is asked."""
    worker = "import json, sys\nsay = lambda m: print(m if isinstance(m, str) else json.dumps(m), flush=True)\n"
    worker += "say({'version': '1', 'sha256': 'x'})\nsys.stdin.readline()\nsys.stdin.readline()\n"
    worker += f"for m in {replies!r}: say(m)\n" + ("sys.stdin.read()\n" if len(replies) == 3 else "")
    monkeypatch.setattr(Path, "read_text", lambda self, **kwargs: worker)
    normalizer = load_external(sys.executable, stall_seconds=20)
    try:
        with pytest.raises(InputError, match=message):
            # twice, because a reply too many may arrive after the texts' own
            list(map(normalizer.apply, [["one", "two"]] * 2, [[None, None]] * 2))
    finally:
        normalizer.close()


def test_a_python_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no-python: cannot be started in .*text_normalize_workdir"):
        get_normalizer("external", python=str(tmp_path / "no-python"))


def checkout(folder: Path, init: str, data_utils: str | None = None) -> Path:
    package = folder / "normalizer"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(init)
    (package / "rules.py").write_text(
        "class EnglishTextNormalizer:\n    def __call__(self, s):\n        return s.lower().replace('mr', 'mister')\n"
    )
    if data_utils is not None:
        (package / "data_utils.py").write_text(data_utils)
    return folder


def test_the_leaderboards_rules_come_from_the_checkout_and_leave_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "normalizer", sys)  # a module that has the name already
    multilingual = "from normalizer import EnglishTextNormalizer\ndef ml_normalizer(text, lang):\n    return f'{lang}:{text}'\n"
    path = checkout(tmp_path / "leaderboard", "from .rules import EnglishTextNormalizer\n", multilingual)
    before = list(sys.path)
    normalizer = get_normalizer("leaderboard", leaderboard_path=path)
    assert normalizer.apply(["Mr X", "Mr X", "Herr X"], ["en-US", None, "German"]) == ["mister x", "mister x", "de:Herr X"]
    assert (normalizer.name, len(normalizer.sha256)) == ("leaderboard", 64)
    assert sys.modules["normalizer"] is sys
    assert "normalizer.rules" not in sys.modules
    assert sys.path == before


def test_a_checkout_that_lacks_something_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no normalizer/__init__.py"):
        get_normalizer("leaderboard", leaderboard_path=tmp_path)
    missing = checkout(tmp_path / "missing", "import no_such_package_at_all\n")
    with pytest.raises(InputError, match=r"normalizer cannot be imported.*no_such_package_at_all"):
        get_normalizer("leaderboard", leaderboard_path=missing)
    old = checkout(tmp_path / "old", "")
    with pytest.raises(InputError, match="has no EnglishTextNormalizer"):
        get_normalizer("leaderboard", leaderboard_path=old)
    english = get_normalizer("leaderboard", leaderboard_path=checkout(tmp_path / "english", "from .rules import EnglishTextNormalizer\n"))
    with pytest.raises(InputError, match=r"normalizer.data_utils cannot be imported"):
        english.apply(["Herr X"], ["de"])
