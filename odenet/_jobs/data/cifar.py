"""CIFAR-10 in its official layout on disk: `DIR/cifar-10-batches-py/{data_batch_1..5,test_batch,batches.meta}`.

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009;
https://www.cs.toronto.edu/~kriz/cifar.html ("CIFAR-10 python version"). Nothing is downloaded.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from odenet._errors import FileError
from odenet._jobs.data.images import Images, ImageSet, in_memory
from odenet._jobs.data.plain_pickle import read

FOLDER = "cifar-10-batches-py"
SHAPE = (3, 32, 32)
_TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
_META = "batches.meta"
_LAYOUT = f"DIR/{FOLDER}/ with {_TRAIN[0]} to {_TRAIN[-1]}, test_batch and {_META}"
_OFFICIAL = {  # MD5 of the files as published
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
PUBLISHED = "CIFAR-10 (Krizhevsky, 2009), the published files"
COPY = (
    "a copy in the layout of CIFAR-10 (Krizhevsky, 2009) that is not the published files, such as one made from JPEGs: "
    "its accuracies are those on this copy"
)


def cifar10(directory: str | Path) -> ImageSet:
    """CIFAR-10: 50 000 images to train on and 10 000 for the test, of ten classes.

    The files are pickles. They are read by a reader that can make nothing but the layout's data (`plain_pickle`). Files
    other than the published ones, told by their checksums, are read just as well, and `origin` says that they are a
    copy. All batches must hold as many images as batches.meta says.

    Args:
        directory: that holds cifar-10-batches-py, or that folder itself.

    Raises:
        FileError: a file is missing, damaged, hostile, or does not hold what the layout says.
    """
    folder = Path(directory)
    if folder.name != FOLDER:
        folder = folder / FOLDER
    if missing := [name for name in (*_TRAIN, "test_batch", _META) if not (folder / name).is_file()]:
        raise FileError(
            f"{folder} has no {', '.join(missing)}",
            _LAYOUT,
            "unpack https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz there, and give DIR",
        )
    classes, count = _meta(folder / _META)
    batches = [_batch(folder / name, len(classes), count) for name in _TRAIN]
    pixels, labels = (np.concatenate(part) for part in zip(*batches, strict=True))
    published = all(_md5(folder / name) == expected for name, expected in _OFFICIAL.items())
    return ImageSet(
        "cifar10",
        PUBLISHED if published else COPY,
        classes,
        _images(pixels, labels),
        _images(*_batch(folder / "test_batch", len(classes), count)),
        mirrored=True,
    )


def _images(pixels: np.ndarray, labels: np.ndarray) -> Images:
    return in_memory(pixels.reshape(-1, *SHAPE), labels)


def _meta(path: Path) -> tuple[tuple[str, ...], int]:
    """Names of the classes, and images in a batch."""
    content = read(path)
    names, count, size = (content.get(key) for key in ("label_names", "num_cases_per_batch", "num_vis"))
    if not isinstance(names, list) or not 0 < len(names) <= 1000 or not all(_is_name(name) for name in names):
        raise _wrong(path, "label_names", "a list of names")
    if not isinstance(count, int) or not _is_whole(count) or count < 1:
        raise _wrong(path, "num_cases_per_batch", "a whole number, at least 1")
    if size != np.prod(SHAPE):
        raise _wrong(path, "num_vis", str(np.prod(SHAPE)))
    return tuple(names), count


def _batch(path: Path, classes: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    content = read(path)
    pixels, labels = content.get("data"), content.get("labels")
    if not isinstance(pixels, np.ndarray) or pixels.shape != (count, np.prod(SHAPE)):
        raise _wrong(path, "data", f"bytes of shape ({count}, {np.prod(SHAPE)}), as {_META} says")
    if not isinstance(labels, list) or len(labels) != count:
        raise _wrong(path, "labels", f"a list of {count}")
    if not all(_is_whole(label) and 0 <= label < classes for label in labels):
        raise _wrong(path, "labels", f"whole numbers from 0 to {classes - 1}")
    return pixels, np.array(labels, np.int64)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 100 and value.isprintable()


def _wrong(path: Path, key: str, allowed: str) -> FileError:
    return FileError(f"{key!r} of {path} is not what the layout says", allowed, "fetch CIFAR-10 again")


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
