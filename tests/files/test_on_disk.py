"""What is fsynced and when, where links lead, what several processes do at once, and files that grow."""

from __future__ import annotations

import errno
import os
import time
from contextlib import nullcontext

import pytest
from file_writers import (
    WRITERS,
    Calls,
    every_writer,
    fill,
    inode,
    room_for,
    write_by_another,
    write_files,
    write_folder,
    write_rows,
    write_text,
)

from arkfast import files
from arkfast.records import InputError


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


# Several processes.


def test_the_second_writer_of_a_file_of_rows_is_refused_at_once(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("old")
    with files.jsonl_files([path]) as write:
        write(0, {"writer": 1})
        with pytest.raises(InputError, match=rf"rows\.jsonl: is being written by another run, process {os.getpid()} on "):
            files.jsonl_files([tmp_path / "other.jsonl", path]).__enter__()
        write(0, {"writer": 1})
    assert path.read_text() == '{"writer": 1}\n' * 2
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_the_second_that_fills_a_folder_is_refused_at_once(tmp_path):
    def second(_folder):
        with pytest.raises(InputError, match=rf"best: is being written by another run, process {os.getpid()} on "):
            files.replace_folder(tmp_path / "best", lambda folder: fill(folder, "second"))

    def first(folder):
        fill(folder, "first")
        second(folder)

    files.replace_folder(tmp_path / "best", first)
    assert (tmp_path / "best" / "model").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_of_two_writers_that_no_lock_kept_apart_none_takes_the_others_rows_for_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "lock_output", lambda path: nullcontext())
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
