"""Images in folders, one a class."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from odenet import FileError, InputError
from odenet._jobs.data import image_set
from odenet._jobs.data.folder import image_folder

COLOURS = {"blue": (10, 20, 230), "green": (10, 220, 30), "red": (240, 30, 20)}


def paint(path, colour, size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def root(tmp_path):
    for part, count in (("train", 3), ("val", 2)):
        for name, colour in COLOURS.items():
            for i in range(count):
                paint(tmp_path / part / name / f"{i}.{('png', 'jpg', 'JPEG')[i]}", colour)
    return tmp_path


def test_every_image_is_read_with_the_label_of_its_folder(root):
    found = image_set("folder", root, 16)
    assert found.classes == ("blue", "green", "red")
    assert (len(found.train), len(found.test)) == (9, 6)
    for images in (found.train, found.test):
        pixels = images.read(np.arange(len(images)))
        assert pixels.shape == (len(images), 3, 16, 16)
        assert pixels.dtype == np.uint8
        for image, label in zip(pixels, images.labels, strict=True):
            colour = COLOURS[found.classes[label]]
            assert np.abs(image.mean((1, 2)) - colour).max() < 3  # JPEG changes a little


def test_images_are_read_in_the_order_asked_for(root):
    images = image_folder(root, 8).train
    both = images.read(np.array([8, 0]))
    assert (both[0] == images.read(np.array([8]))[0]).all()
    assert both[0, 0].mean() > 200 > both[1, 0].mean()  # red, then blue


@pytest.mark.parametrize("turned", [False, True])
def test_the_middle_is_cut_out_without_distortion(root, turned):
    """A white square in the middle of a long image stays a square, of the same part of the shorter side."""
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[10:30, 30:50] = 255
    pixels[:, :15] = 128  # at the ends, outside of the middle
    pixels = pixels.transpose(1, 0, 2) if turned else pixels
    Image.fromarray(pixels).save(root / "val" / "blue" / "0.png")
    seen = image_folder(root, 20).test.read(np.array([0]))[0, 0].astype(int)
    assert (seen[6:14, 6:14] == 255).all()
    assert (seen[:4] == 0).all()
    assert (seen[:, :4] == 0).all()


def test_grey_and_transparent_and_small_images_are_red_green_blue_of_the_size(root):
    Image.new("L", (5, 9), 77).save(root / "val" / "blue" / "0.png")
    Image.new("RGBA", (9, 5), (1, 2, 3, 255)).save(root / "val" / "blue" / "1.png")
    (root / "val" / "blue" / "1.jpg").unlink()
    found = image_folder(root, 12).test.read(np.array([0, 1]))
    assert (found[0] == 77).all()
    assert [int(found[1, channel].mean()) for channel in range(3)] == [1, 2, 3]


def test_what_is_no_image_is_refused_when_it_is_read(root):
    bad = root / "train" / "green" / "1.jpg"
    bad.write_bytes(bad.read_bytes()[:150])
    (root / "train" / "green" / "0.png").write_bytes(b"GIF89a nothing")
    images = image_folder(root, 8).train
    assert len(images) == 9
    images.read(np.array([0]))
    for index, name in ((3, r"0\.png"), (4, r"1\.jpg")):
        with pytest.raises(FileError, match=f"{name} cannot be read as an image"):
            images.read(np.array([index]))


def test_hidden_files_and_other_files_are_passed_over(root):
    (root / "train" / ".cache").mkdir()
    (root / "train" / "README").write_text("no class")
    (root / "train" / "red" / ".0.png").write_bytes(b"")
    (root / "train" / "red" / "list.txt").write_bytes(b"")
    assert len(image_folder(root, 8).train) == 9


def test_a_layout_that_is_not_there_is_said(root, tmp_path):
    paint(root / "val" / "yellow" / "0.png", (250, 250, 0))
    with pytest.raises(FileError, match="has the classes yellow"):
        image_folder(root)
    (root / "train" / "yellow").mkdir()
    with pytest.raises(FileError, match="has no images of yellow"):
        image_folder(root)
    with pytest.raises(FileError, match="train cannot be read"):
        image_folder(tmp_path / "nowhere")
    (tmp_path / "empty" / "train").mkdir(parents=True)
    with pytest.raises(FileError, match="has no folders in it"):
        image_folder(tmp_path / "empty")
    with pytest.raises(InputError, match="size=0"):
        image_folder(root, 0)
