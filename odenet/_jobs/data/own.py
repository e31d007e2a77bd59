"""Images of the user's own, by import path or as an object: a dataset, a DataLoader, or a pair of arrays."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import numpy as np

from odenet._backend.imported import imported
from odenet._errors import InputError, NonFiniteError
from odenet._jobs.data.images import Images, ImageSet

_SPLIT = 20180  # of the images that are set aside for the test: drawn once, whatever the seed of a run
_TEST = 0.2  # part of them, as of the digits
_LARGEST = 1e30  # of a pixel, whose square is a number, too
_TWICE = 4  # items that are read twice
_PLAIN = {"sampler": ("SequentialSampler", "RandomSampler"), "batch_sampler": ("BatchSampler",)}
_FORM = "a dataset of pairs (image, label), a DataLoader of one, a pair (images, labels) of arrays, or what returns one"


def own_set(text: str) -> ImageSet:
    """The images that an import path leads to, read once into memory.

    A mapping with "train" and "test" has a part for each; of anything else a fifth, drawn once, is for the test.

    Args:
        text: `module:name`, then options of the call, if it is called.

    Raises:
        InputError: it cannot be imported, or is no set of images with labels.
        NonFiniteError: a pixel is NaN or infinite.
    """
    choice = imported(text, "image set")
    data = choice.object
    if choice.options or isinstance(data, type) or not _is_data(data):
        if not callable(data):
            raise InputError(f"{text} is a {type(data).__name__}", _FORM)
        data = choice()
    return set_of(data, text)


def set_of(data: Any, text: str) -> ImageSet:
    """The images of a dataset, a DataLoader or a pair of arrays, read once into memory.

    A mapping with "train" and "test" has a part for each; of anything else a fifth, drawn once, is for the test.

    Args:
        data: the object.
        text: what messages call it.

    Raises:
        InputError: it is no set of images with labels.
        NonFiniteError: a pixel is NaN or infinite.
    """
    parts = dict(data) if isinstance(data, Mapping) else {"": data}
    if set(parts) not in ({""}, {"train", "test"}):
        raise InputError(f"{text} is a mapping with {', '.join(map(repr, parts)) or 'nothing'}", "'train' and 'test'")
    read = {name: _images(part, f"{text} ({name})" if name else text) for name, part in parts.items()}
    if "" in read:
        whole = read[""]
        test = round(_TEST * len(whole))
        if not 0 < test < len(whole):
            raise InputError(f"{text} with {len(whole)} images", "at least 3, of which a fifth is for the test")
        order = np.random.default_rng(_SPLIT).permutation(len(whole))
        read = {"train": whole.take(order[test:]), "test": whole.take(order[:test])}
        origin = f"{len(whole)} images of {text}, a fifth of them for the test"
    else:
        origin = f"{len(read['train'])} and {len(read['test'])} images of {text}"
    classes = _classes(next(iter(parts.values())), max(int(images.labels.max()) for images in read.values()), text)
    return ImageSet(text, origin, classes, read["train"], read["test"], mirrored=False)


def _is_data(value: Any) -> bool:
    return isinstance(value, Mapping) or hasattr(value, "dataset") or hasattr(value, "__getitem__")


def _images(data: Any, text: str) -> Images:
    data = _dataset(data, text)
    if isinstance(data, tuple) and len(data) == 2:
        pixels, labels = _array(data[0], text), _array(data[1], text)
        if pixels.ndim == 3:
            pixels = pixels[:, None]
        if pixels.ndim != 4 or labels.shape != pixels.shape[:1] or labels.dtype.kind not in "iu":
            raise InputError(
                f"images {pixels.shape} with labels {labels.shape} of {labels.dtype} in {text}",
                "images (number, height, width) or (number, channels, height, width), and whole numbers (number,)",
            )
        if pixels.shape[0]:
            _image(pixels[0], text, "0")
    else:
        pixels, labels = _read_items(data, text)
    if len(labels) == 0:
        raise InputError(f"{text} without images", "at least one")
    if not np.isfinite(pixels).all():
        raise NonFiniteError(f"images of {text} with NaN or infinity", "finite numbers")
    if np.abs(pixels.astype(np.float64)).max() > _LARGEST:
        raise InputError(f"images of {text} with numbers above {_LARGEST:g}", f"numbers up to {_LARGEST:g}")
    if pixels.dtype.kind in "ui" and pixels.dtype != np.uint8:
        pixels = pixels.astype(np.float64)  # whole numbers are added up in 64 bits, which large squares overflow
    if labels.min() < 0:
        raise InputError(f"labels of {text} down to {labels.min()}", "whole numbers from 0")
    channels, height, width = pixels.shape[1:]
    return Images(lambda indices: pixels[indices], labels.astype(np.int64), (channels, height, width))


def _dataset(data: Any, text: str) -> Any:
    """The dataset of a DataLoader: batches, their order and the part for validation are those of the run."""
    if not hasattr(data, "dataset") or not hasattr(data, "batch_size"):
        return data
    for name, plain in _PLAIN.items():
        if type(getattr(data, name, None)).__name__ not in (*plain, "NoneType"):
            raise InputError(
                f"{text} is a DataLoader with a {name} of its own",
                "one that reads all items, in order or shuffled, since --batch and --seed make the batches",
                "give its dataset",
            )
    if getattr(getattr(data, "collate_fn", None), "__name__", "default_collate") != "default_collate":
        raise InputError(
            f"{text} is a DataLoader with a collate_fn of its own",
            "one without, since --batch makes the batches",
            "give its dataset",
        )
    return data.dataset


def _read_items(dataset: Any, text: str) -> tuple[np.ndarray, np.ndarray]:
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise InputError(f"{text} is a {type(dataset).__name__}", _FORM, "give a dataset with __len__ and __getitem__")
    count = len(dataset)
    labels = np.zeros(count, np.int64)
    pixels = np.zeros(0)
    for index in range(count):
        image, labels[index] = _item(dataset, index, text)
        if index == 0:
            try:
                pixels = np.zeros((count, *image.shape), image.dtype)
            except MemoryError as error:
                raise InputError(
                    f"{count} images {image.shape} of {text}, which memory cannot hold",
                    "fewer or smaller ones, or files in folders",
                    "take --data folder",
                ) from error
        if image.shape != pixels.shape[1:] or image.dtype != pixels.dtype:
            raise InputError(
                f"item {index} of {text} has the shape {image.shape} and numbers of {image.dtype}",
                f"{pixels.shape[1:]} of {pixels.dtype}, as item 0 has",
            )
        pixels[index] = image
    for index in range(min(_TWICE, count)):
        image, label = _item(dataset, index, text)
        if label != labels[index] or image.tobytes() != pixels[index].tobytes():
            raise InputError(
                f"item {index} of {text} is another when it is read again",
                "items that are always the same, since a repeated run must give the same numbers",
                "leave random transforms out of the dataset: --augment changes images at random",
            )
    return pixels, labels


def _item(dataset: Any, index: int, text: str) -> tuple[np.ndarray, int]:
    try:
        item = dataset[index]
    except Exception as error:  # code of somebody else's, which may fail in any way
        raise InputError(
            f"item {index} of {text} cannot be read ({type(error).__name__}: {error})", "an image and its label"
        ) from error
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise InputError(f"item {index} of {text} is a {type(item).__name__}", "a pair (image, label)")
    image = _array(item[0], text)
    if hasattr(item[0], "getbands") and image.ndim == 3:  # an image of PIL has its channels last
        image = image.transpose(2, 0, 1)
    try:
        label = operator.index(item[1].item() if hasattr(item[1], "item") else item[1])
    except Exception as error:
        raise InputError(f"the label of item {index} of {text} is {item[1]!r}", "a whole number from 0") from error
    if not 0 <= label < 2**31:
        raise InputError(f"the label of item {index} of {text} is {label}", "a whole number from 0")
    return _image(image[None] if image.ndim == 2 else image, text, str(index)), label


def _image(image: np.ndarray, text: str, index: str) -> np.ndarray:
    if image.ndim != 3 or 0 in image.shape or image.dtype.kind not in "uif":
        raise InputError(
            f"image {index} of {text} has the shape {image.shape} and numbers of {image.dtype}",
            "(height, width) or (channels, height, width), of whole or real numbers",
        )
    if image.shape[2] in (1, 3, 4) and image.shape[0] > 4:
        raise InputError(
            f"image {index} of {text} has the shape {image.shape}, with its channels last, as it seems",
            "(channels, height, width)",
            "transpose it: image.transpose(2, 0, 1)",
        )
    return image


def _array(value: Any, text: str) -> np.ndarray:
    try:
        return np.asarray(value)
    except Exception as error:  # tensors on other devices, ragged lists
        raise InputError(
            f"{text} has a {type(value).__name__} that is no array ({error})", "arrays of NumPy, or what becomes one"
        ) from error


def _classes(data: Any, largest: int, text: str) -> tuple[str, ...]:
    """Names of the classes: the dataset's, or numbers up to the largest label."""
    names = getattr(getattr(data, "dataset", data), "classes", None)
    if names is None:
        return tuple(str(number) for number in range(largest + 1))
    if not isinstance(names, tuple | list) or len(names) <= largest:
        raise InputError(
            f"{text} with the label {largest} and the classes {names!r}", f"at least {largest + 1} names of classes"
        )
    return tuple(str(name) for name in names)
