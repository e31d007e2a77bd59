"""Gradient descent on images, as `train` and `reproduce` share it: batches in an order and with an augmentation that
the seed alone decides, passes over them, and the rate of descent over a run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from odenet._backend.trainer import Trainer
from odenet._errors import InputError
from odenet._jobs.data.images import Images
from odenet._names import choice

_SPLIT, _ORDER, _CHANGE = 1, 2, 3  # streams of random numbers of one seed


@dataclass(frozen=True)
class Split:
    """Training images in two parts: one to learn from, one to choose the best epoch by.

    Args:
        train, validation: without an image in common.
    """

    train: Images
    validation: Images


def split(images: Images, part: float, limit: int | None, seed: int) -> Split:
    """Divide training images at random.

    Args:
        images: all of them.
        part: of them for validation, above 0 and below 1.
        limit: divide this many, drawn at random, instead of all.
        seed: of the draw.

    Raises:
        InputError: a part or limit that leaves nothing on one side.
    """
    if limit is not None and not 2 <= limit <= len(images):
        raise InputError(f"a limit of {limit} training images", f"2 to {len(images)}")
    order = np.random.default_rng((seed, _SPLIT)).permutation(len(images))[:limit]
    count = round(part * len(order))
    if not 0 < count < len(order):
        raise InputError(f"{part} of {len(order)} images for validation", "a part that leaves images on both sides")
    return Split(images.take(order[count:]), images.take(order[:count]))


@dataclass(frozen=True)
class Batches:
    """Images as batches of numbers with mean 0 and deviation 1 in each channel.

    Args:
        images: what to take them from.
        size: images in a batch.
        mean, deviation: of each channel, of the images that are learnt from.
        dtype: "float32" or "float64" of a batch.
        seed: of order and changes.
        augment: whether images of `shuffled` are changed at random.
        mirrored: whether they may be mirrored, too.
    """

    images: Images
    size: int
    mean: np.ndarray
    deviation: np.ndarray
    dtype: str
    seed: int
    augment: bool = False
    mirrored: bool = False

    @property
    def steps(self) -> int:
        """Batches in an epoch: whole ones only, so that all have one size."""
        return len(self.images) // self.size

    def shuffled(self, epoch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The batches of an epoch, in a new order each; images that fill no batch have their turn another time.

        Returns:
            inputs (size, *shape) and labels (size,), `steps` times.
        """
        order = np.random.default_rng((self.seed, _ORDER, epoch)).permutation(len(self.images))
        for step in range(self.steps):
            chosen = order[step * self.size : (step + 1) * self.size]
            pixels = self.images.read(chosen)
            if self.augment:
                pixels = augmented(pixels, np.random.default_rng((self.seed, _CHANGE, epoch, step)), self.mirrored)
            yield self.numbers(pixels), self.images.labels[chosen]

    def plain(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All images once, in their order and unchanged; the last batch is filled up with the first image.

        Returns:
            inputs (size, *shape) and the labels of those that count, (size,) or fewer in the last batch.
        """
        for start in range(0, len(self.images), self.size):
            chosen = np.arange(start, start + self.size)
            filled = np.where(chosen < len(self.images), chosen, 0)
            yield self.numbers(self.images.read(filled)), self.images.labels[start : start + self.size]

    def numbers(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels normalised in float64 and then rounded to the number type, the same for every backend."""
        centred = pixels.astype(np.float64) - self.mean[:, None, None]
        return (centred / self.deviation[:, None, None]).astype(self.dtype)


def padding(height: int) -> int:
    """Pixels that a crop may move by: 4 of 32, as He et al. 2016 do for CIFAR-10, and as much of other sizes."""
    return height // 8


def cropped(pixels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Each image surrounded by black and cut to its size again at a random place.

    Shapes: uint8 (batch, channels, height, width) in and out.
    """
    count, _, height, width = pixels.shape
    down, right = padding(height), padding(width)
    places = generator.integers(0, (2 * down + 1, 2 * right + 1), size=(count, 2))
    around = np.pad(pixels, ((0, 0), (0, 0), (down, down), (right, right)))
    windows = sliding_window_view(around, (height, width), axis=(2, 3))
    return windows[np.arange(count), :, places[:, 0], places[:, 1]]


def flipped(pixels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Each image mirrored left to right with probability one half; shapes as `cropped`."""
    chosen = generator.integers(0, 2, size=len(pixels)).astype(bool)
    return np.where(chosen[:, None, None, None], pixels[..., ::-1], pixels)


def augmented(pixels: np.ndarray, generator: np.random.Generator, mirrored: bool) -> np.ndarray:
    """`cropped` and, where a mirror image shows the same, `flipped`."""
    moved = cropped(pixels, generator)
    return flipped(moved, generator) if mirrored else moved


@dataclass(frozen=True)
class TrainingPass:
    """What an epoch's steps came to; it ends early with the first loss that is no finite number.

    Args:
        steps: how many were taken.
        loss: mean cross-entropy of their batches, each before its update; that of the last step if it is not finite.
        accuracy: part of the images classified right then.
        certificate: the largest reconstruction residual, where the gradient method has one.
    """

    steps: int
    loss: float
    accuracy: float
    certificate: float | None

    @property
    def finished(self) -> bool:
        """Whether the loss was a finite number to the end."""
        return math.isfinite(self.loss)


def training_pass(
    trainer: Trainer,
    batches: Batches,
    epoch: int,
    lr: float,
    after_step: Callable[[int, float, float], None] = lambda steps, loss, accuracy: None,
) -> TrainingPass:
    """Take a step of gradient descent on each batch of an epoch.

    Args:
        trainer: holds the network.
        batches: of the training images.
        epoch: its number, from 1; it says in which order the images come.
        lr: the rate.
        after_step: told after each step how many there were, and the mean loss and accuracy so far.
    """
    loss, correct, images, residuals = 0.0, 0, 0, []
    steps = 0
    trainer.begin_pass()
    for inputs, labels in batches.shuffled(epoch):
        step = trainer.step(inputs, labels, lr)
        steps += 1
        if not math.isfinite(step.loss):
            return TrainingPass(steps, step.loss, 0.0, None)
        loss, correct, images = loss + step.loss, correct + step.correct, images + len(labels)
        if step.certificate is not None:
            residuals.append(step.certificate)
        after_step(steps, loss / steps, correct / images)
    return TrainingPass(steps, loss / steps, correct / images, max(residuals, default=None))


def evaluate(trainer: Trainer, batches: Batches) -> tuple[float, float]:
    """Mean cross-entropy, and the part of the images that is classified right, with the weights as they are.

    Losses are taken and added in float64 on the host, in the same way for every backend.
    """
    loss, correct, count = 0.0, 0, 0
    for inputs, labels in batches.plain():
        outputs = trainer.predict(inputs)[: len(labels)].astype(np.float64)
        loss += float(cross_entropy(outputs, labels).sum())
        correct += int((outputs.argmax(1) == labels).sum())
        count += len(labels)
    return loss / count, correct / count


def cross_entropy(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """`log(sum(exp(outputs))) - outputs[label]` of each row.

    Shapes: outputs (batch, classes), labels (batch,), result (batch,).
    """
    top = outputs.max(1)
    return top + np.log(np.exp(outputs - top[:, None]).sum(1)) - outputs[np.arange(len(labels)), labels]


SCHEDULES = ("step", "cosine", "constant")


def rate(schedule: str, lr: float, epoch: int, epochs: int) -> float:
    """The rate of a whole epoch.

    - "step": a tenth after each third of the run, as in the code of Sander, Ablin and Peyre 2022 for CIFAR-10 (90
      epochs from 0.1).
    - "cosine": `lr (1 + cos(pi n / epochs)) / 2` in epoch n of 0, 1, ... (Loshchilov and Hutter 2017, no restarts).
    - "constant": lr.

    Args:
        schedule: one of these.
        lr: at the beginning.
        epoch: from 1 to epochs.
        epochs: in the run.

    Raises:
        UnknownNameError: no such schedule.
    """
    kind = choice("schedule", schedule, SCHEDULES)
    done = epoch - 1
    if kind == "step":
        return lr * (1.0, 0.1, 0.01)[3 * done // epochs]
    if kind == "cosine":
        return 0.5 * lr * (1 + math.cos(math.pi * done / epochs))
    return lr
