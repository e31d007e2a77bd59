"""CIFAR-10 on disk: the official layout is read, and a file that is anything else is refused before it can do harm."""

from __future__ import annotations

import builtins
import os
import pickle
import struct
from typing import ClassVar

import numpy as np
import pytest

from odenet import FileError, InputError
from odenet._jobs.data import image_set
from odenet._jobs.data.cifar import COPY, FOLDER, PUBLISHED, cifar10
from odenet._jobs.data.images import moments
from odenet._jobs.data.plain_pickle import read

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
COUNT = 12  # images in a batch of these tests
NAMES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


class Python2(pickle._Pickler):
    """Writes bytes as Python 2's strings, as the published files have them."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_string(self, value):
        short = len(value) < 256
        head = (
            pickle.SHORT_BINSTRING + bytes([len(value)]) if short else pickle.BINSTRING + struct.pack("<i", len(value))
        )
        self.write(head + value)
        self.memoize(value)

    dispatch[bytes] = save_string


def python_2(path, content):
    with open(path, "wb") as file:
        Python2(file, protocol=2).dump(content)


def python_3(path, content):
    """What somebody has who loaded the files in Python 3 and saved them again; bytes are made by _codecs.encode."""
    path.write_bytes(pickle.dumps(content, protocol=2))


def python_3_now(path, content):
    path.write_bytes(pickle.dumps(content, protocol=4))


def batch(seed, count=COUNT, **changed):
    rng = np.random.default_rng(seed)
    labels = [int(label) for label in rng.integers(0, 10, count)]
    plain = {b"batch_label": b"a batch", b"labels": labels, b"data": rng.integers(0, 256, (count, 3072), np.uint8)}
    return plain | {key.encode(): value for key, value in changed.items()}


def meta(**changed):
    names = [name.encode() for name in CLASSES]
    plain = {b"num_cases_per_batch": COUNT, b"label_names": names, b"num_vis": 3072}
    return plain | {key.encode(): value for key, value in changed.items()}


def write_layout(root, write=python_2):
    folder = root / FOLDER
    folder.mkdir(parents=True)
    for seed, name in enumerate(NAMES):
        write(folder / name, batch(seed))
    write(folder / "batches.meta", meta())
    return folder


@pytest.fixture
def layout(tmp_path):
    return write_layout(tmp_path)


@pytest.mark.parametrize("write", [python_2, python_3, python_3_now])
def test_the_layout_is_read_whatever_python_wrote_it(tmp_path, write):
    write_layout(tmp_path, write)
    found = cifar10(tmp_path)
    assert (len(found.train), len(found.test)) == (5 * COUNT, COUNT)
    assert found.classes == tuple(CLASSES)
    for index in (0, 2 * COUNT + 3):
        expected = batch(index // COUNT)
        pixels = found.train.read(np.array([index]))[0]
        assert (pixels.reshape(-1) == expected[b"data"][index % COUNT]).all()  # red plane, green, blue, row by row
        assert found.train.labels[index] == expected[b"labels"][index % COUNT]
    assert (found.test.labels == batch(5)[b"labels"]).all()


def test_the_folder_itself_is_taken_too_and_an_array_in_fortran_order(layout):
    python_2(layout / "test_batch", batch(5, data=np.asfortranarray(batch(5)[b"data"])))
    pixels = cifar10(layout).test.read(np.arange(COUNT))
    assert (pixels.reshape(COUNT, -1) == batch(5)[b"data"]).all()


def test_a_copy_is_called_a_copy_and_only_published_files_are_not(layout, monkeypatch):
    assert cifar10(layout).origin == COPY
    assert "copy" in COPY
    from odenet._jobs.data import cifar

    monkeypatch.setattr(cifar, "_OFFICIAL", {name: cifar._md5(layout / name) for name in NAMES})
    assert cifar10(layout).origin == PUBLISHED
    python_2(layout / "data_batch_3", batch(77))
    assert cifar10(layout).origin == COPY


def test_moments_are_those_of_numpy(layout):
    found = cifar10(layout)
    pixels = found.train.read(np.arange(5 * COUNT)).astype(float)
    mean, deviation = moments(found.train)
    assert np.allclose(mean, pixels.mean((0, 2, 3)), rtol=1e-13)
    assert np.allclose(deviation, pixels.std((0, 2, 3)), rtol=1e-12)


class Calls:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def opcodes(*parts):
    """A pickle by hand, whose result is a dict as far as the reader gets there."""
    return b"\x80\x02" + b"".join(parts) + b"."


MARKER = "marker-of-a-hostile-pickle"
HOSTILE = {
    "os.system": pickle.dumps(Calls(os.system, f"touch {MARKER}"), 2),
    "builtins.eval": pickle.dumps({"data": Calls(builtins.eval, f"open({MARKER!r}, 'w')")}, 4),
    "builtins.getattr": b"\x80\x04cbuiltins\ngetattr\n.",
    "numpy.load": b"\x80\x02cnumpy\nload\n(U\x01xtR.",
    "numpy.dtype of objects": b"\x80\x02cnumpy\ndtype\n(U\x02O8K\x00K\x01tR.",
    "other codec": b"\x80\x02c_codecs\nencode\n(X\x01\x00\x00\x00aX\x03\x00\x00\x00zlbtR.",
    "array of another type": b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n(cnumpy\ndtype\n(K\x00tU\x01btR.",
    "array without content": opcodes(
        b"}U\x04data", b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR", b"s"
    ),
    "changing a stand-in": opcodes(b"cnumpy.core.multiarray\n_reconstruct\n}U\x04makeU\x01xsb"),
    "changing a stand-in by slots": opcodes(b"cnumpy\ndtype\n(N}U\x04makeU\x01xstb"),
    "calling the named type": opcodes(b"cnumpy\nndarray\n(tR"),
    "instance of a class": b"\x80\x02(ios\nsystem\n.",
    "object of a class": b"\x80\x02cnumpy\ndtype\n)\x81.",
    "extension registry": b"\x80\x02\x82\x01.",
    "another file": b"\x80\x02Pelsewhere\n.",
    "a memo of 34 GB": b"\x80\x02}r\xff\xff\xff\xff.",
    "a text memo index": b"\x80\x02}p4000000000\n.",
    "a list": b"\x80\x02].",
    "a key that is no name": opcodes(b"}K\x01K\x01s"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_and_nothing_in_it_is_called(layout, name, monkeypatch):
    monkeypatch.chdir(layout)
    (layout / "data_batch_2").write_bytes(HOSTILE[name])
    with pytest.raises(FileError, match=r"data_batch_2 was refused: .*do not trust this file"):
        cifar10(layout)
    assert not (layout / MARKER).exists()


@pytest.mark.parametrize("name", ["os.system", "builtins.eval"])
def test_the_hostile_files_do_harm_where_pickle_reads_them(name, tmp_path, monkeypatch):
    """Else the test above shows nothing."""
    monkeypatch.chdir(tmp_path)
    found = pickle.loads(HOSTILE[name])
    if name == "builtins.eval":
        found["data"].close()
    assert (tmp_path / MARKER).exists()


def test_a_name_that_was_to_be_changed_still_means_what_it_did(layout):
    for name in ("changing a stand-in", "changing a stand-in by slots"):
        (layout / "data_batch_2").write_bytes(HOSTILE[name])
        with pytest.raises(FileError):
            cifar10(layout)
    python_2(layout / "data_batch_2", batch(1))
    assert len(cifar10(layout).train) == 5 * COUNT


@pytest.mark.parametrize("kept", [0, 1, 2, 50, 5000, -1])
def test_a_file_that_is_cut_short_is_damaged(layout, kept):
    path = layout / "data_batch_4"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(FileError, match="data_batch_4 is damaged"):
        cifar10(layout)


def test_a_file_larger_than_any_real_one_is_refused_before_it_is_read(layout, monkeypatch):
    from odenet._jobs.data import plain_pickle

    monkeypatch.setattr(plain_pickle, "LARGEST", 1000)
    with pytest.raises(FileError, match="more than 1000 bytes"):
        read(layout / "data_batch_1")


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("data_batch_1", batch(0, data=np.zeros((COUNT, 3071), np.uint8)), "'data' of .*data_batch_1"),
        ("data_batch_1", batch(0, COUNT + 1), "'data' of .*data_batch_1"),
        ("data_batch_1", batch(0, data=b"bytes"), "'data' of .*data_batch_1"),
        ("test_batch", batch(0, labels=[0] * (COUNT - 1)), "'labels' of .*test_batch"),
        ("test_batch", batch(0, labels=[0] * (COUNT - 1) + [10]), r"'labels' of .*whole numbers from 0 to 9"),
        ("test_batch", batch(0, labels=[0] * (COUNT - 1) + [-1]), "'labels' of .*test_batch"),
        ("test_batch", batch(0, labels=[True] * COUNT), "'labels' of .*test_batch"),
        ("test_batch", batch(0, labels=[b"0"] * COUNT), "'labels' of .*test_batch"),
        ("test_batch", {b"data": batch(0)[b"data"]}, "'labels' of .*test_batch"),
        ("batches.meta", meta(label_names=[]), "'label_names' of"),
        ("batches.meta", meta(label_names=[1, 2]), "'label_names' of"),
        ("batches.meta", meta(label_names=[b"\x1b[2J"]), "'label_names' of"),  # would clear a terminal
        ("batches.meta", meta(num_cases_per_batch=-1), "'num_cases_per_batch' of"),
        ("batches.meta", meta(num_vis=3), "'num_vis' of"),
    ],
)
def test_what_the_layout_does_not_say_is_refused_by_name(layout, file, content, said):
    python_2(layout / file, content)
    with pytest.raises(FileError, match=said):
        cifar10(layout)


def test_an_array_whose_shape_does_not_fit_its_bytes_is_refused(layout):
    path = layout / "data_batch_1"
    path.write_bytes(path.read_bytes().replace(b"K\x0cM\x00\x0c\x86", b"M\xff\xffM\x00\x0c\x86"))
    with pytest.raises(FileError, match=r"shape \(65535, 3072\) has 36864 bytes"):
        cifar10(layout)


def test_missing_batches_are_named(layout, tmp_path):
    (layout / "data_batch_3").unlink()
    (layout / "batches.meta").unlink()
    with pytest.raises(FileError, match=r"has no data_batch_3, batches\.meta"):
        cifar10(tmp_path)
    with pytest.raises(FileError, match="has no data_batch_1"):
        cifar10(tmp_path / "nowhere")


def test_image_sets_by_name(layout, tmp_path):
    assert image_set("cifar10", tmp_path).name == "cifar10"
    with pytest.raises(InputError, match="cifar10 without a directory"):
        image_set("cifar10")
    with pytest.raises(InputError, match=r"the directory .* for digits"):
        image_set("digits", tmp_path)
    with pytest.raises(InputError, match="size of 8 for the images of cifar10"):
        image_set("cifar10", tmp_path, 8)
    with pytest.raises(InputError, match=r"no image set called 'cifar-10'.*cifar10"):
        image_set("cifar-10", tmp_path)


def test_the_digits_of_the_test_are_never_trained_on_and_always_the_same():
    found = image_set("digits")
    assert (len(found.train), len(found.test), found.mirrored) == (1437, 360, False)
    train, test = (images.read(np.arange(len(images))) for images in (found.train, found.test))
    assert train.max() == 16
    assert not {image.tobytes() for image in train} & {image.tobytes() for image in test}
    again = image_set("digits").test
    assert (again.read(np.arange(360)) == test).all()
    assert (np.bincount(found.test.labels) > 20).all()
