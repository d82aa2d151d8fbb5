"""One way to write a file: whole or not at all, whatever happens in between; fsynced; nothing of an unfinished write left behind."""

from __future__ import annotations

import ast
import errno
import os
import re
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from arkfast import files
from arkfast.records import InputError

ROOT = Path(__file__).resolve().parents[1]

# The ways to write. Each takes a folder and a word, and writes files or folders of that folder that hold the word.


def write_text(root: Path, word: str) -> None:
    files.write_text(root / "page.html", word)


def write_by_another(root: Path, word: str) -> None:
    with files.new_file(root / "plot.png") as temporary:
        temporary.write_bytes(word.encode())


def write_files(root: Path, word: str) -> None:
    with files.new_files([root / "a" / "one", root / "b" / "two", root / "a" / "three"]) as temporaries:
        for temporary in temporaries:
            temporary.write_text(word)


def write_rows(root: Path, word: str) -> None:
    with files.jsonl_files([root / "clean.jsonl", root / "rejects.jsonl"]) as write:
        write(1, {"word": word})
        write(0, {"word": word})


def fill(folder: Path, word: str) -> None:
    (folder / "model").write_text(word)
    (folder / "optimizer").mkdir()
    (folder / "optimizer" / "shard").write_text(word)


def write_folder(root: Path, word: str) -> None:
    files.replace_folder(root / "best", lambda folder: fill(folder, word))


WRITERS = [write_text, write_by_another, write_files, write_rows, write_folder]
Writer = Callable[[Path, str], None]
every_writer = pytest.mark.parametrize("write", WRITERS)


@pytest.mark.parametrize(
    ("write", "points"),
    [
        (write_text, ["begin page.html", "write .page.html.new", "fsync .page.html.new", "commit page.html", "fsync ROOT"]),
        (write_by_another, ["begin plot.png", "fsync .plot.png.new", "commit plot.png", "fsync ROOT"]),
        (
            write_files,
            [
                *("begin one", "begin two", "begin three", "fsync .one.new", "fsync .two.new", "fsync .three.new"),
                *("commit one", "commit two", "commit three", "fsync a", "fsync b"),
            ],
        ),
        (
            write_rows,
            [
                *("begin clean.jsonl", "begin rejects.jsonl", "write .rejects.jsonl.new", "write .clean.jsonl.new"),
                *("fsync .clean.jsonl.new", "fsync .rejects.jsonl.new", "commit clean.jsonl", "commit rejects.jsonl", "fsync ROOT"),
            ],
        ),
        (write_folder, ["begin best", "fsync model", "fsync shard", "fsync optimizer", "fsync .best.new", "commit best", "fsync ROOT"]),
    ],
)
def test_the_points_of_a_write(tmp_path, disk, monkeypatch, write, points):
    monkeypatch.setattr(files, "_THREADS", 1)  # so that the files of a folder come in order
    write(tmp_path, "old")
    disk.fill(None)
    write(tmp_path, "new")
    seen = [f"{point} {name}".replace(tmp_path.name, "ROOT") for point, name in disk.points]
    assert seen == points


@every_writer
@pytest.mark.parametrize("before", ["old", None])
def test_a_full_disk_at_any_point_changes_nothing(tmp_path, disk, snapshot, write, before):
    if before is not None:
        write(tmp_path, before)
    else:  # folders that are made on the way stay
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
    was = snapshot(tmp_path)

    def attempt():
        try:
            write(tmp_path, "new")
        except InputError as error:
            errors.append(str(error))

    errors: list[str] = []
    points = 0
    for after in disk.at_every_point(attempt):
        assert snapshot(tmp_path) == was, f"after {after} points: {disk.points}"
        points += 1
    assert points == len(errors) >= 4
    said = re.compile(r"/.*: cannot be written \(No space left on device\); make room or give another path, and run again")
    assert all(said.fullmatch(error) for error in errors), errors
    assert {content for name, content in snapshot(tmp_path).items() if content and b"old" in content} == set(), "then there was room"
    assert not list(tmp_path.rglob(".*"))


@every_writer
def test_folders_that_are_missing_are_made_and_fsynced(tmp_path, disk, write):
    write(tmp_path / "deep" / "down", "new")
    assert disk.points.count(("fsync", tmp_path.name)) == disk.points.count(("fsync", "deep")) == 1
    assert list((tmp_path / "deep" / "down").rglob(".*")) == []


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt(), OSError("no number"), PermissionError(errno.EACCES, "no")])
def test_an_error_of_the_block_is_raised_as_it_is_and_changes_nothing(tmp_path, snapshot, error):
    for write in WRITERS:
        write(tmp_path, "old")
    was = snapshot(tmp_path)

    def fail_files():
        with files.new_files([tmp_path / "a" / "one", tmp_path / "b" / "two"]) as temporaries:
            temporaries[0].write_text("new")
            raise error

    def fail_rows():
        with files.jsonl_files([tmp_path / "clean.jsonl", tmp_path / "rejects.jsonl"]) as write:
            write(0, {"word": "new"})
            raise error

    def fail_folder():
        with files.NewFolder(tmp_path / "best") as folder:
            fill(folder, "new")
            raise error

    for fail in (fail_files, fail_rows, fail_folder):
        with pytest.raises(type(error)) as caught:
            fail()
        assert caught.value is error
        assert snapshot(tmp_path) == was


# Kills. The child ends at once, in the place of a call of the operating system, as a kill between two of them would end it.


def killed(write: Writer, root: Path, after: int) -> bool:
    """Write "new" in a process that dies instead of its call number ``after``, counted from 0; False where it came to its end."""
    child = os.fork()
    if child:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, 9)
        return code == 9
    calls = 0

    def dying(call: Callable[..., object]) -> Callable[..., object]:
        def instead(*arguments: object, **options: object) -> object:
            nonlocal calls
            calls += 1
            if calls > after:
                os._exit(9)
            return call(*arguments, **options)

        return instead

    try:
        for name in ("replace", "link", "fsync", "unlink", "mkdir"):
            setattr(os, name, dying(getattr(os, name)))
        write(root, "new")
    finally:
        os._exit(0)


@every_writer
def test_a_kill_loses_nothing_and_the_next_writer_clears_up(tmp_path, snapshot, write):
    after, aside = 0, False
    while True:
        root = tmp_path / str(after)
        write(root, "old")
        was = snapshot(root)
        new = {name: content and content.replace(b"old", b"new") for name, content in was.items()}
        if not killed(write, root, after):
            assert snapshot(root) == new
            break
        left = snapshot(root)
        visible = {name: content for name, content in left.items() if not any(part.startswith(".") for part in Path(name).parts)}
        missing = was.keys() - visible.keys()
        assert not missing or (write is write_folder and ".best.old" in left), "a folder alone is moved aside for a moment"
        assert all(content in (was[name], new[name]) for name, content in visible.items()), "whole, old or new"
        aside = aside or bool(missing)
        fail_once(write, root)
        assert snapshot(root) == (was if missing else visible), "put back where it was away, and nothing beside it"
        write(root, "new")
        assert snapshot(root) == new
        after += 1
    assert after >= 4
    assert aside == (write is write_folder), "one kill came between the two renames"


def fail_once(write: Writer, root: Path) -> None:
    """A write that begins, fails, and must leave what it found."""

    def full(_path: Path, point: str) -> None:
        if point == "fsync":
            raise OSError(errno.ENOSPC, "No space left on device")

    files.fault = full
    try:
        with pytest.raises(InputError):
            write(root, "never")
    finally:
        files.fault = None


def test_sweep_clears_away_what_kills_left_and_puts_back_what_was_aside(tmp_path, snapshot):
    for name, word in ((".best.new", "half"), (".last.old", "old"), (".ema.old", "old"), ("ema", "new"), (".mine.new", "mine")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model").write_text(word)
    (tmp_path / ".state.json.new").write_text("half")
    (tmp_path / ".other.txt").write_text("x")
    files.sweep(tmp_path, re.compile(r"best|last|ema|state\.json"))
    assert {name: content for name, content in snapshot(tmp_path).items() if content} == {
        ".mine.new/model": b"mine", ".other.txt": b"x", "ema/model": b"new", "last/model": b"old",
    }  # fmt: skip
    assert files.leftovers(tmp_path / "run.json") == {tmp_path / ".run.json.new", tmp_path / ".run.json.old"}


# On disk.


class Calls:
    """The calls that matter, in order: which file or folder was fsynced, what got a new name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[tuple[str, int | str]] = []
        fsync, replace = os.fsync, os.replace

        def seen_fsync(descriptor: int) -> None:
            fsync(descriptor)
            self.made.append(("fsync", os.fstat(descriptor).st_ino))

        def seen_replace(source: Path, target: Path) -> None:
            replace(source, target)
            self.made.append(("replace", target.name))

        monkeypatch.setattr(os, "fsync", seen_fsync)
        monkeypatch.setattr(os, "replace", seen_replace)

    def before(self, name: str) -> set[int | str]:
        """What was fsynced before ``name`` was given."""
        return {what for call, what in self.made[: self.made.index(("replace", name))] if call == "fsync"}

    def after(self, name: str) -> set[int | str]:
        """What was fsynced after ``name`` was given."""
        return {what for call, what in self.made[self.made.index(("replace", name)) :] if call == "fsync"}


def inode(path: Path) -> int:
    return path.stat().st_ino


@every_writer
def test_every_file_is_fsynced_before_it_has_its_name_and_the_folder_afterwards(tmp_path, monkeypatch, write):
    write(tmp_path, "old")
    calls = Calls(monkeypatch)
    write(tmp_path, "new")
    named = {what for call, what in calls.made if call == "replace" and not str(what).startswith(".")}
    assert len(named) == {write_files: 3, write_rows: 2}.get(write, 1)
    for path in tmp_path.rglob("*"):
        if path.name in named:
            inside = {inode(inner) for inner in (path, *path.rglob("*"))}
            assert inside <= calls.before(path.name)
            assert inode(path.parent) in calls.after(path.name)


def test_many_files_of_a_folder_are_all_fsynced(tmp_path, monkeypatch):
    calls = Calls(monkeypatch)
    with files.NewFolder(tmp_path / "corpus") as folder:
        (folder / "audio" / "train").mkdir(parents=True)
        for number in range(100):
            (folder / "audio" / "train" / f"{number}.wav").write_bytes(b"x")
    assert {inode(path) for path in (tmp_path / "corpus").rglob("*")} <= calls.before("corpus")


def test_a_folder_that_the_system_does_not_open_is_left_out(tmp_path, monkeypatch):
    opened = os.open

    def refusing(path, flags, *rest, **options):
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(path, flags, *rest, **options)

    calls = Calls(monkeypatch)
    monkeypatch.setattr(os, "open", refusing)
    for write in WRITERS:
        write(tmp_path, "new")
    assert inode(tmp_path / "page.html") in calls.before("page.html"), "files are fsynced all the same"


@pytest.mark.parametrize(("number", "raised"), [(errno.EINVAL, False), (errno.ENOTSUP, False), (errno.EIO, True)])
def test_a_file_system_that_fsyncs_no_folders_is_taken_as_it_is(tmp_path, monkeypatch, number, raised):
    fsync = os.fsync

    def failing(descriptor: int) -> None:
        if os.path.samestat(os.fstat(descriptor), tmp_path.stat()):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    files.write_text(tmp_path / "page.html", "old")
    monkeypatch.setattr(os, "fsync", failing)
    if raised:
        with pytest.raises(InputError, match="Input/output error"):
            files.write_text(tmp_path / "page.html", "new")
    else:
        files.write_text(tmp_path / "page.html", "new")
    assert (tmp_path / "page.html").read_text() == ("old" if raised else "new")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_without_hard_links_files_are_replaced_all_the_same(tmp_path, monkeypatch, disk):
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    write_rows(tmp_path, "old")
    write_rows(tmp_path, "new")
    assert {path.read_text() for path in tmp_path.iterdir()} == {'{"word": "new"}\n'}
    disk.fill(7)  # the first file has its name, the second has not
    with pytest.raises(InputError, match="No space left"):
        write_rows(tmp_path, "newer")
    assert [path.read_text() for path in sorted(tmp_path.iterdir())] == ['{"word": "newer"}\n', '{"word": "new"}\n'], "each is whole"


# Links, and paths that cannot be written.


@pytest.mark.parametrize("write", [write_text, write_by_another, write_rows])
def test_a_link_stays_and_its_target_is_written(tmp_path, write):
    write(tmp_path, "old")
    (tmp_path / "elsewhere").mkdir()
    written = [path for path in tmp_path.iterdir() if path.is_file()]
    for path in written:
        path.rename(tmp_path / "elsewhere" / path.name)
        path.symlink_to(tmp_path / "elsewhere" / path.name)
    write(tmp_path, "new")
    assert written
    for path in written:
        assert path.is_symlink()
        assert "new" in (tmp_path / "elsewhere" / path.name).read_text()
    assert len(list((tmp_path / "elsewhere").iterdir())) == len(written)


def test_a_link_to_nothing_yet_is_written_where_it_points(tmp_path):
    (tmp_path / "page.html").symlink_to(tmp_path / "site" / "index.html")
    write_text(tmp_path, "new")
    assert (tmp_path / "page.html").is_symlink()
    assert (tmp_path / "site" / "index.html").read_text() == "new"


def test_a_link_to_a_folder_is_replaced_and_the_folder_stays(tmp_path, snapshot):
    fill_in = tmp_path / "elsewhere"
    fill_in.mkdir()
    fill(fill_in, "theirs")
    (tmp_path / "best").symlink_to(fill_in)
    write_folder(tmp_path, "new")
    assert not (tmp_path / "best").is_symlink()
    assert (tmp_path / "best" / "model").read_text() == "new"
    assert (fill_in / "model").read_text() == "theirs"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "elsewhere"]


def test_paths_that_cannot_be_written_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(InputError, match=rf"^{tmp_path}: is a folder; give the path of a file to write"):
        files.write_text(tmp_path, "x")
    for path in (tmp_path / "file" / "page.html", tmp_path / "loop", tmp_path / ("n" * 255)):
        with pytest.raises(InputError, match=rf"^{path}: cannot be written \(.*\); give a path in a folder that you may write to"):
            files.write_text(path, "x")
    with pytest.raises(InputError, match=r"file/best: cannot be written"):
        files.NewFolder(tmp_path / "file" / "best")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "loop"]


def test_a_file_is_no_folder_and_stays(tmp_path, snapshot):
    (tmp_path / "best").write_text("a file")
    with pytest.raises(InputError, match="best: cannot be written"):
        write_folder(tmp_path, "new")
    assert snapshot(tmp_path) == {"best": b"a file"}


def test_texts_keep_their_line_ends_and_lone_surrogates_become_escapes(tmp_path):
    files.write_text(tmp_path / "page", "naïve 你好\r\n\ud800\u2028\n")
    assert (tmp_path / "page").read_bytes() == "naïve 你好\r\n\\ud800\u2028\n".encode()
    assert files.json_line({"text": "你好"}) == '{"text": "你好"}\n'.encode()
    assert files.json_line({"text": "你好\udfff"}) == b'{"text": "\\u4f60\\u597d\\udfff"}\n'


# A disk that is really full, for libraries that write by themselves.


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file of this process grows beyond ``size`` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def by_python(folder: Path) -> None:
    (folder / "model").write_bytes(bytes(100_000))


def by_rust(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(100_000)}, folder / "model")


@pytest.mark.parametrize("write", [by_python, by_rust])
def test_a_library_that_meets_a_full_disk_is_one_error_that_names_the_folder(tmp_path, snapshot, write):
    write_folder(tmp_path, "old")
    was = snapshot(tmp_path)
    with room_for(10_000), pytest.raises(InputError, match=r"/best: cannot be written \(File too large\); make room or give another path"):
        files.replace_folder(tmp_path / "best", write)
    assert snapshot(tmp_path) == was


def test_rows_that_meet_a_full_disk_are_one_error(tmp_path, snapshot):
    write_rows(tmp_path, "old")
    was = snapshot(tmp_path)

    def overflow():
        with files.jsonl_files([tmp_path / "clean.jsonl", tmp_path / "rejects.jsonl"]) as write:
            for _ in range(100):
                write(0, {"text": "x" * 3000})

    with room_for(100_000), pytest.raises(InputError, match=r"/clean\.jsonl.*: cannot be written \(File too large\); make room"):
        overflow()
    assert snapshot(tmp_path) == was


# Several processes.


def test_of_two_writers_of_one_file_none_takes_the_others_rows_for_its_own(tmp_path):
    path, said = tmp_path / "rows.jsonl", r"rows\.jsonl: cannot be written \(another process writes it too\); let one end before another"
    path.write_text("old")
    first, second = files.jsonl_files([path]), files.jsonl_files([path])
    first.__enter__()(0, {"writer": 1})
    second.__enter__()(0, {"writer": 2})
    for began in (first, second):
        with pytest.raises(InputError, match=said):
            began.__exit__(None, None, None)
    assert path.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_of_several_that_make_one_folder_the_first_stays(tmp_path, snapshot):
    target = tmp_path / "corpus"
    target.mkdir()  # an empty folder is room for it
    first, second = files.NewFolder(target, shared=True), files.NewFolder(target, shared=True)
    assert first.path != second.path
    fill(first.path, "first")
    fill(second.path, "second")
    first.commit()
    with pytest.raises(InputError, match="corpus: cannot be written"):
        second.commit()
    assert (target / "model").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


def test_a_shared_folder_that_nobody_touched_for_an_hour_is_cleared_away(tmp_path):
    young, old = (files.NewFolder(tmp_path / "corpus", shared=True).path for _ in range(2))
    fill(young, "theirs")
    fill(old, "killed")
    for path in (old, *old.rglob("*")):
        os.utime(path, (time.time() - 7200,) * 2)
    os.utime(young, (time.time() - 7200,) * 2)  # what is in it is young
    with files.NewFolder(tmp_path / "corpus", shared=True) as folder:
        fill(folder, "new")
    assert sorted(tmp_path.iterdir()) == sorted([young, tmp_path / "corpus"])


def test_a_shared_folder_survives_a_full_disk_at_any_point(tmp_path, disk, snapshot):
    was = snapshot(tmp_path)

    def attempt():
        try:
            with files.NewFolder(tmp_path / "corpus", shared=True) as folder:
                fill(folder, "new")
        except InputError as error:
            errors.append(str(error))

    errors: list[str] = []
    for after in disk.at_every_point(attempt):
        assert snapshot(tmp_path) == was, after
    assert len(errors) >= 4
    assert all("corpus: cannot be written (No space left on device)" in error for error in errors), errors
    assert (tmp_path / "corpus" / "model").read_text() == "new"


# Files that grow.


def test_lines_are_added_and_a_line_that_fails_leaves_no_part_of_it(tmp_path, disk, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"one\n")
    lines = files.LineFile(path, fresh=False)
    lines.add(b"two\n")
    assert path.read_bytes() == b"one\ntwo\n", "handed over at once"
    with room_for(10), pytest.raises(OSError, match="File too large"):
        lines.add(b"three\n")
    assert path.read_bytes() == b"one\ntwo\n"
    disk.fill()
    with pytest.raises(OSError, match="No space left"):
        lines.add(b"three\n")
    disk.fill(None)
    lines.add(b"four\n")
    calls = Calls(monkeypatch)
    lines.sync()
    lines.close()
    assert path.read_bytes() == b"one\ntwo\nfour\n"
    assert calls.made == [("fsync", inode(path))]


def test_the_name_of_a_new_file_of_lines_is_on_disk_with_the_first_lines(tmp_path, monkeypatch):
    lines = files.LineFile(tmp_path / "rows", fresh=True)
    calls = Calls(monkeypatch)
    for _ in range(2):
        lines.add(b"one\n")
        lines.sync()
    lines.close()
    own = ("fsync", inode(tmp_path / "rows"))
    assert calls.made == [own, ("fsync", inode(tmp_path)), own]


def test_a_file_is_moved_in_place_of_another(tmp_path, monkeypatch, disk):
    (tmp_path / "log").write_text("new")
    (tmp_path / "log.old").write_text("old")
    disk.fill()
    with pytest.raises(InputError, match=r"log\.old: cannot be written \(No space left"):
        files.move(tmp_path / "log", tmp_path / "log.old")
    disk.fill(None)
    calls = Calls(monkeypatch)
    files.move(tmp_path / "log", tmp_path / "log.old")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"log.old": "new"}
    assert calls.after("log.old") == {inode(tmp_path)}


# Nobody else renames or fsyncs, and whoever opens a file to write has a reason.

RENAMES = {"replace", "rename", "renames", "fsync", "fdatasync", "move"}
OPENS = {"write_text", "write_bytes", "NamedTemporaryFile", "mkstemp", "mkdtemp", "TemporaryDirectory"}
REASONS = {
    "arkfast/evaluate/presets.py": "what a job says goes to its log as it says it",
    "arkfast/quickstart/run.py": "what a training says goes to its log as it says it",
    "arkfast/quickstart/clips.py": "recordings, into a NewFolder",
    "arkfast/quickstart/corpus.py": "manifests, into a NewFolder",
    "arkfast/quickstart/report.py": "into new_files",
    "arkfast/train/checkpoints/run_folder.py": "best.json and a new checkpoint's state, into a NewFolder",
    "arkfast/train/checkpoints/tensors.py": "the seal, into a NewFolder",
}
"""Modules that open files to write, and why that is right."""


def of_modules(tree: ast.AST) -> dict[str, str]:
    """Names of a module that stand for os, shutil or functions of theirs, with what they stand for."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name: alias.name for alias in node.names if alias.name in ("os", "shutil")}
        elif isinstance(node, ast.ImportFrom) and node.module in ("os", "shutil"):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def renaming(source: str) -> list[int]:
    """Lines of calls that rename or fsync: those of os and shutil, ``path.rename(…)``, and ``path.replace(…)``, with its one argument."""
    tree = ast.parse(source)
    known, lines = of_modules(tree), []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        call = node.func
        if isinstance(call, ast.Name):
            found = known.get(call.id, "").partition(".")[2] in RENAMES
        elif isinstance(call, ast.Attribute) and isinstance(call.value, ast.Name) and known.get(call.value.id) in ("os", "shutil"):
            found = call.attr in RENAMES
        else:
            one = len(node.args) == 1 and not node.keywords
            found = isinstance(call, ast.Attribute) and (call.attr == "rename" or (call.attr == "replace" and one))
        if found:
            lines.append(node.lineno)
    return lines


def opening(source: str) -> list[int]:
    """Lines of calls that open a file to write it, or make a temporary."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        modes = [*node.args, *(keyword.value for keyword in node.keywords if keyword.arg == "mode")]
        words = {mode.value for mode in modes if isinstance(mode, ast.Constant) and isinstance(mode.value, str)}
        writes = name in ("open", "FileIO") and any(re.fullmatch(r"[rwax][bt+]*", word) and set(word) & set("wax+") for word in words)
        # ``write_text(…)`` without a dot is that of ``files``.
        if writes or (name in OPENS and (isinstance(node.func, ast.Attribute) or not name.startswith("write_"))):
            lines.append(node.lineno)
    return lines


def others(*folders: str) -> dict[str, str]:
    """The sources of every module of these folders but ``files``."""
    paths = sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in paths if path != ROOT / "arkfast" / "files.py"}


def test_no_other_module_renames_or_fsyncs():
    sources = others("arkfast", "kernels", "benchmarks", "scripts")
    assert len(sources) > 200
    assert {name: lines for name, source in sources.items() if (lines := renaming(source))} == {}


def test_every_other_module_that_opens_a_file_to_write_has_its_reason():
    assert {name for name, source in others("arkfast", "kernels").items() if opening(source)} == set(REASONS)


@pytest.mark.parametrize(
    "source",
    [
        "import os\nos.replace(a, b)",
        "import os as system\nsystem.rename(a, b)",
        "def f():\n    import os\n    os.fsync(file.fileno())",
        "from os import fsync\nfsync(3)",
        "from os import replace as put\nput(a, b)",
        "import shutil\nshutil.move(a, b)",
        "path.rename(other)",
        "folder.with_name('x').replace(path)",
    ],
)
def test_the_guard_sees_a_rename(source):
    assert renaming(source)


@pytest.mark.parametrize(
    "source",
    [
        "text.replace('a', 'b')",
        "import dataclasses\ndataclasses.replace(config, seed=1)",
        "from dataclasses import replace\nreplace(config, seed=1)",
        "import os\nos.path.exists(a)",
        "from arkfast.files import move\nmove(a, b)",
    ],
)
def test_the_guard_sees_no_rename_where_there_is_none(source):
    assert not renaming(source)


@pytest.mark.parametrize(
    "source",
    ["path.open('w')", "open(path, 'ab')", "open(path, mode='x')", "path.write_text('')", "wave.open(p, 'wb')", "tempfile.mkdtemp()"],
)
def test_the_guard_sees_what_is_opened_to_write(source):
    assert opening(source)


@pytest.mark.parametrize("source", ["path.open()", "path.open('rb')", "open(path, 'r')", "path.read_text()", "write_text(path, '')"])
def test_the_guard_sees_that_reading_is_not_writing(source):
    assert not opening(source)
