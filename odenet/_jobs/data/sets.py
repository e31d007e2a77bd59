"""What can be trained on: image sets, by name, and the text that Python ships."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from odenet._backend.imported import is_path
from odenet._errors import InputError
from odenet._jobs.data.images import ImageSet
from odenet._names import choice

NAMES = ("digits", "cifar10", "folder")


def image_set(name: str, directory: str | Path | None = None, size: int | None = None) -> ImageSet:
    """An image set.

    Args:
        name: "digits" (embedded), "cifar10" (the official layout in `directory`) or "folder" (one folder a class in
            `directory`), or the import path of a user's own, see `own_set`.
        directory: where the files are; none for digits.
        size: height and width that the images of a folder are brought to, by default 32; the others have theirs.

    Raises:
        InputError: an unknown name, a directory or a size where there can be none, or no directory where there must be.
        FileError: files that are missing, damaged or hostile.
    """
    if is_path(name):
        if directory is not None or size is not None:
            raise InputError(
                f"a directory or a size for {name}", "neither", "give them as options: module:name,key=value"
            )
        from odenet._jobs.data.own import own_set

        return own_set(name)
    kind = choice("image set", name, NAMES)
    if kind != "folder" and size is not None:
        raise InputError(f"a size of {size} for the images of {kind}", "none: they have their own size")
    if kind == "digits":
        if directory is not None:
            raise InputError(f"the directory {directory} for digits", "none: the digits are embedded")
        from odenet._jobs.data.digits import digit_set

        return digit_set()
    if directory is None:
        raise InputError(f"{kind} without a directory", "where the files are", "give --data-dir DIR")
    if kind == "cifar10":
        from odenet._jobs.data.cifar import cifar10

        return cifar10(directory)
    from odenet._jobs.data.folder import image_folder

    return image_folder(directory, 32 if size is None else size)


CHARACTERS = "abcdefghijklmnopqrstuvwxyz .,;:()[]{}'\"*=_-+<>/\\0123456789\n"
"""The distinct characters of the text, which are the topics of Python's language reference; capitals are converted to
small letters, and all others to spaces."""


@cache
def _codes() -> np.ndarray:
    from pydoc_data.topics import topics

    text = "\n".join(topics[name] for name in sorted(topics)).lower()
    places = {character: place for place, character in enumerate(CHARACTERS)}
    return np.array([places.get(character, places[" "]) for character in text])


def lines(part: str, batch: int, length: int, seed: int) -> np.ndarray:
    """Random pieces of the text, as places in CHARACTERS, shape (batch, length).

    Args:
        part: "train" is the first nine tenths of the text, "test" the last.
        batch, length: how many pieces, and of how many characters.
        seed: of which.
    """
    codes = _codes()
    border = len(codes) * 9 // 10
    some = codes[:border] if part == "train" else codes[border:]
    starts = np.random.default_rng([seed, part == "test"]).integers(len(some) - length, size=batch)
    return some[starts[:, None] + np.arange(length)]
