"""What jobs are given by people and machines that mean no good, or end at a bad time: refused by name, nothing lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass
from types import SimpleNamespace

import click
import numpy as np
import pytest
from PIL import Image

from odenet import FileError
from odenet._jobs import cli
from odenet._jobs.cells import resume
from odenet._jobs.data.folder import image_folder
from odenet._jobs.train.checkpoint import alone
from odenet._nets import weights
from odenet._report.rows import as_csv, column


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_job_that_a_signal_interrupts_can_tidy_up_and_its_status_names_the_signal(name, monkeypatch, capsys):
    """The command line alone; below, a job in a process of its own."""
    number, tidied = getattr(signal, name), []

    @click.command("list")
    def command():
        try:
            signal.raise_signal(number)
            time.sleep(10)
        except KeyboardInterrupt:
            tidied.append(name)

    monkeypatch.setitem(sys.modules, "job_of_this_test", SimpleNamespace(command=command))
    monkeypatch.setitem(cli.COMMANDS, "list", "job_of_this_test")
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP)}
    try:
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        with pytest.raises(SystemExit) as raised:
            cli.main(["list"])
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert tidied == [name]
    assert raised.value.code == 128 + number
    assert f"ended by {name}" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_ends_a_job_as_ctrl_c_does_and_it_says_how_to_go_on(name, tmp_path):
    out = tmp_path / "run"
    job = subprocess.Popen(
        [sys.executable, "-m", "odenet", "compare", "--out", str(out), "--backend", "torch", "--depth", "4,8,4096"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        for _ in range(600):
            if (out / "results.json").exists() or job.poll() is not None:
                break
            time.sleep(0.1)
        job.send_signal(getattr(signal, name))
        said, _ = job.communicate(timeout=120)
    finally:
        job.kill()
    assert job.returncode == 128 + getattr(signal, name), said
    assert "interrupted" in said
    assert "--resume" in said
    assert f"ended by {name}" in said
    assert (out / "results.json").exists()
    assert "Traceback" not in said


@pytest.mark.parametrize("change", ["moved", "deleted", "replaced", "linked"])
def test_a_run_whose_folder_was_changed_writes_nothing_more(change, tmp_path):
    folder, other = tmp_path / "run", tmp_path / "other"
    folder.mkdir()
    with alone(folder) as require_same:
        require_same()
        folder.rename(other) if change != "deleted" else folder.rmdir()
        if change == "replaced":
            folder.mkdir()
        if change == "linked":
            other.rename(tmp_path / "third")
            other.mkdir()
            folder.symlink_to(other)
        with pytest.raises(FileError, match="deleted, moved or replaced") as raised:
            require_same()
    assert "--resume" in str(raised.value)


def images(root):
    for part in ("train", "val"):
        (root / part / "one").mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(root / part / "one" / "0.png")
    return root


@pytest.mark.parametrize("what", ["train/one/1.png", "train/two", "val"])
def test_links_that_lead_out_of_an_image_tree_are_refused(what, tmp_path):
    root, outside = images(tmp_path / "root"), images(tmp_path / "outside")
    link = root / what
    if what == "val":
        link.rename(root / "old")
    link.symlink_to(outside / {"val": "val", "train/two": "train/one"}.get(what, "train/one/0.png"))
    with pytest.raises(FileError, match="leads out of"):
        image_folder(root, 8)
    link.unlink()
    link.symlink_to(root / {"val": "old", "train/two": "train/one"}.get(what, "train/one/0.png"))
    assert len(image_folder(root, 8).test) == 1  # links within it stay allowed


def test_an_image_that_unpacks_to_gigabytes_is_refused_before_it_is_unpacked(tmp_path):
    root = images(tmp_path)
    Image.new("1", (9000, 9000)).save(root / "train" / "one" / "1.png")
    assert (root / "train" / "one" / "1.png").stat().st_size < 100_000
    with pytest.raises(FileError, match="9000 x 9000 pixels"):
        image_folder(root, 8).train.read(np.arange(2))


@pytest.mark.parametrize("kind", ["huge", "pipe", "folder", "deep", "number", "nan"])
def test_results_that_cannot_be_results_are_refused(kind, tmp_path):
    path = tmp_path / "results.json"
    if kind == "huge":
        with path.open("wb") as file:
            file.truncate(2**30 + 1)  # sparse
    elif kind == "pipe":
        os.mkfifo(path)  # reading it would wait for ever
    elif kind == "folder":
        path.mkdir()
    else:
        path.write_text({"deep": "[" * 100_000, "number": "1" * 5000, "nan": '{"format": NaN}'}[kind])
    with pytest.raises(FileError, match=r"results\.json") as raised:
        resume.read(path, "form", "odenet compare", dict)
    assert resume.START_ANEW in str(raised.value)


@dataclass(frozen=True)
class Named:
    """A row whose text is somebody else's."""

    name: str = column("a name")
    value: float = column("a number", 0.0)


@pytest.mark.parametrize("text", ["=CMD|' /C calc'!A0", "+1", "-1+cmd", "@SUM(A1)", "\t=1", "\r=1"])
def test_text_is_no_formula_in_a_spreadsheet(text):
    line = as_csv(Named, [Named(text, -1.5)]).partition("\n")[2]
    assert line.lstrip('"').startswith("'")
    assert line.rstrip().endswith("-1.5")  # numbers stay numbers


@pytest.mark.parametrize("kind", ["deflated", "claimed", "pickle", "endless name"])
def test_weights_that_unpack_to_more_than_they_hold_are_refused(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "_LARGEST", 2**20)
    path = tmp_path / "weights.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        header = b"\x93NUMPY\x01\x00v\x00"
        if kind == "pickle":
            np.save(tmp_path / "object.npy", np.array([{}], object), allow_pickle=True)
            archive.write(tmp_path / "object.npy", "w.npy")
        elif kind == "claimed":
            text = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }"
            archive.writestr("w.npy", header + text.ljust(117) + b"\n" + bytes(8))
        elif kind == "endless name":
            archive.writestr("w" * 60_000 + ".npy", b"no array")
        else:
            text = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1250000,), }"
            archive.writestr("w.npy", header + text.ljust(117) + b"\n" + bytes(10_000_000))
    assert path.stat().st_size < 200_000
    with pytest.raises(FileError, match=r"weights\.npz"):
        weights.load_weights(path)
