"""A file is written whole or not at all."""

from __future__ import annotations

import os

import pytest

from odenet import FileError
from odenet._files import write_atomically, write_text


@pytest.fixture
def old(tmp_path):
    path = tmp_path / "results.csv"
    path.write_text("old")
    return path


def alone(path):
    """No temporary file was left beside it."""
    return [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_text_is_written_in_utf8_over_what_was_there(old):
    assert write_text(old, "größer\n") == old
    assert old.read_bytes() == "größer\n".encode()
    assert alone(old)


def test_folders_are_made(tmp_path):
    assert write_text(tmp_path / "a" / "b" / "c.txt", "text").read_text() == "text"


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(1)])
def test_a_writer_that_fails_leaves_the_old_file_and_no_other(old, error):
    def write(file):
        file.write(b"half of it")
        raise error

    with pytest.raises(type(error)):
        write_atomically(old, write)
    assert old.read_text() == "old"
    assert alone(old)


def test_a_full_disk_leaves_the_old_file_and_says_so(old):
    def write(file):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    with pytest.raises(FileError, match=r"results\.csv cannot be written \(No space left on device\)"):
        write_atomically(old, write)
    assert old.read_text() == "old"
    assert alone(old)


def test_a_rename_that_fails_leaves_the_old_file(old, monkeypatch):
    def replace(source, target):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(FileError, match="Permission denied"):
        write_text(old, "new")
    assert old.read_text() == "old"
    assert alone(old)


def test_a_reader_during_the_write_sees_the_old_file(old):
    seen = []
    write_atomically(old, lambda file: (file.write(b"new"), file.flush(), seen.append(old.read_text())))
    assert seen == ["old"]
    assert old.read_text() == "new"


@pytest.mark.parametrize("kind", ["a folder of the name", "a file where a folder should be"])
def test_a_path_that_cannot_be_written(tmp_path, kind):
    target = tmp_path / "taken"
    if kind == "a folder of the name":
        target.mkdir()
        (target / "inside").touch()
    else:
        target.touch()
        target = target / "results.csv"
    with pytest.raises(FileError, match="cannot be written"):
        write_text(target, "text")
    assert [entry.name for entry in tmp_path.iterdir()] == ["taken"]
