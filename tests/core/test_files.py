"""A file is written whole or not at all."""

from __future__ import annotations

import os
import stat
import threading

import numpy as np
import pytest

import odenet
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


def test_what_is_no_plain_file_is_written_to_and_never_replaced(tmp_path):
    """A pipe, a link, a dangling link, and a device node where this process may make one."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    texts = []
    reader = threading.Thread(target=lambda: texts.append(pipe.read_text()))
    reader.start()
    write_text(pipe, "through")
    reader.join(10)
    assert texts == ["through"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    for name, exists in (("there", True), ("dangling", False)):
        target, link = tmp_path / f"{name}.txt", tmp_path / name
        if exists:
            target.write_text("old")
        link.symlink_to(target)
        assert write_text(link, "new") == link
        assert link.is_symlink()
        assert target.read_text() == "new"
    weights, link = tmp_path / "w.npz", tmp_path / "link.npz"
    link.symlink_to(weights)
    odenet.save_weights(link, {"w": np.ones(2)})
    assert link.is_symlink()
    assert odenet.load_weights(weights)["w"].tolist() == [1.0, 1.0]


def test_a_device_is_written_to_and_stays_one(tmp_path):
    node = tmp_path / "null"
    try:
        os.mknod(node, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        node.write_text("")
    except OSError:
        pytest.skip("this process may make no device, or open none here")
    write_text(node, "nothing is kept")
    assert stat.S_ISCHR(node.stat().st_mode)
