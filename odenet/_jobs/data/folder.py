"""Images in folders, one folder a class: `ROOT/{train,val}/CLASS/*.{png,jpg,jpeg}`, as ImageNet is kept.

Images are read when they are asked for, so that a set may be larger than memory.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np

from odenet._errors import FileError, InputError, shown
from odenet._jobs.data.images import Images, ImageSet

SUFFIXES = (".png", ".jpg", ".jpeg")
_PIXELS = 2**26  # of an image; unpacked they take three bytes each
_LAYOUT = "ROOT/train/CLASS/ and ROOT/val/CLASS/ with files *.png, *.jpg or *.jpeg"


def image_folder(root: str | Path, size: int = 32) -> ImageSet:
    """Images of any size as `size` x `size` pixels of red, green and blue.

    The shorter side is resized to `size` (bilinear, with antialiasing) and the middle of the longer one is cut out.
    Classes are the names of the folders in train/, in alphabetical order; images are in the order of their names, so
    that neither depends on the file system. `val` is the test set. Hidden files and folders are passed over.

    Args:
        root: that holds train and val.
        size: height and width.

    Raises:
        FileError: folders or images are missing, val has a class that train has not, or Pillow is not installed; and,
            when an image is read, one that is damaged or is no image.
        InputError: a size that is no whole number of at least 1.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise InputError(f"size={shown(size)} of images", "a whole number, at least 1")
    _require_pillow()
    root = Path(root)
    train, test = (_classes(root / part, root) for part in ("train", "val"))
    if strange := sorted(test.keys() - train.keys()):
        raise FileError(f"{root / 'val'} has the classes {', '.join(strange)}", f"those of {root / 'train'}")
    classes = tuple(train)
    return ImageSet(
        "folder",
        f"the images in {root}, each resized and cut to {size}x{size}",
        classes,
        _images(train, classes, size),
        _images(test, classes, size),
        mirrored=True,
    )


def _classes(folder: Path, root: Path) -> dict[str, list[Path]]:
    """The images of each class, by name."""
    try:
        _require_within(folder, root)
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
        by_class = {name: _files(folder / name, root) for name in names}
    except OSError as error:
        raise FileError(f"{folder} cannot be read ({error.strerror or error})", _LAYOUT) from error
    if not by_class:
        raise FileError(f"{folder} has no folders in it", _LAYOUT)
    if empty := [name for name, files in by_class.items() if not files]:
        raise FileError(f"{folder} has no images of {', '.join(empty)}", _LAYOUT)
    return by_class


def _require_within(path: Path, root: Path) -> None:
    """Raises FileError for a link that leads out of the tree: a set from elsewhere could show any file."""
    if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
        raise FileError(
            f"{path} is a link that leads out of {root}", "files and links within it", "copy what it leads to"
        )


def _files(folder: Path, root: Path) -> list[Path]:
    _require_within(folder, root)
    with os.scandir(folder) as entries:
        pictures = [
            entry for entry in entries if entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith(".")
        ]
    for entry in pictures:
        _require_within(folder / entry.name, root)
    return [folder / name for name in sorted(entry.name for entry in pictures if entry.is_file())]


def _images(by_class: dict[str, list[Path]], classes: tuple[str, ...], size: int) -> Images:
    paths = [path for files in by_class.values() for path in files]
    labels = np.repeat([classes.index(name) for name in by_class], [len(files) for files in by_class.values()])

    def read(indices: np.ndarray) -> np.ndarray:
        return np.stack([_pixels(paths[index], size) for index in indices])

    return Images(read, labels.astype(np.int64), (3, size, size))


def _pixels(path: Path, size: int) -> np.ndarray:
    """One image, uint8 (3, size, size)."""
    from PIL import Image

    try:
        # by name of format: a .png that is something else is not handed to whichever decoder takes it
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=("PNG", "JPEG")) as opened:
            if opened.width * opened.height > _PIXELS:
                raise ValueError(f"{opened.width} x {opened.height} pixels, of which at most {_PIXELS} are unpacked")
            image = opened.convert("RGB")
        scale = size / min(image.size)
        width, height = (max(size, round(side * scale)) for side in image.size)
        if width * height > _PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels, too long for {size} x {size}")
        left, top = (width - size) // 2, (height - size) // 2
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(image.crop((left, top, left + size, top + size)), np.uint8).transpose(2, 0, 1)
    except Exception as error:  # each decoder has its own ways to refuse a file
        raise FileError(
            f"{path} cannot be read as an image ({str(error) or type(error).__name__})", "a whole PNG or JPEG file"
        ) from error


def _require_pillow() -> None:
    try:
        import PIL  # noqa: F401
    except ImportError as error:
        raise FileError(
            "images are read with Pillow, which is not installed", "an installed Pillow", "pip install 'odenet[data]'"
        ) from error
