"""Training networks on images for the reproductions, with the batches and schedules of `odenet train`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from odenet._backend import registry as _registry
from odenet._backend.trainer import Trainer
from odenet._errors import InputError
from odenet._gradients.certified import quiet
from odenet._gradients.names import Gradient
from odenet._jobs.data.cifar import FOLDER
from odenet._jobs.data.images import Images, ImageSet, moments
from odenet._jobs.data.sets import image_set
from odenet._jobs.descent import Batches, TrainingPass, evaluate, rate, training_pass
from odenet._jobs.reproduce.network import built
from odenet._jobs.reproduce.reproduction import CurveCell, Settings
from odenet._nets.spec import Block, NetSpec, Norm


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Args:
        images: of the training set, the first of a fixed random order; None for all.
        test: of the test set, its first ones; None for all.
        epochs, batch, lr, schedule: of gradient descent with momentum 0.9, see `descent.training_pass`.
        weight_decay: of all weights that learn.
        augment: whether training images are moved and mirrored at random.
    """

    images: int | None
    test: int | None
    epochs: int
    batch: int
    lr: float
    schedule: str = "cosine"
    weight_decay: float = 5e-4
    augment: bool = True

    def __str__(self) -> str:
        """In a few words, for a report."""
        some = "all" if self.images is None else self.images
        tested = "all" if self.test is None else self.test
        return (
            f"{some} training and {tested} test images, {self.epochs} epochs, batches of {self.batch}, "
            f"rate {self.lr:g} ({self.schedule})"
        )


@dataclass(frozen=True)
class Trained:
    """A network after training.

    Args:
        trainer: holds its weights.
        epochs: what was seen on the way; it ends early where the loss is no finite number any more.
        error: part of the test images that is classified wrong in the end; all but one in as many as there are
            classes, which is what guessing has, where training broke down.
    """

    trainer: Trainer
    epochs: tuple[TrainingPass, ...]
    error: float

    @property
    def finished(self) -> bool:
        """Whether the loss was a finite number to the end."""
        return self.epochs[-1].finished

    @property
    def certificate(self) -> float | None:
        """The largest of all epochs, where the gradient method has one."""
        return max((epoch.certificate for epoch in self.epochs if epoch.certificate is not None), default=None)

    @property
    def weights(self) -> dict[str, np.ndarray]:
        """The weights of the trained network by name."""
        return self.trainer.read()


def chosen(choices: Settings) -> ImageSet:
    """The images that a user chose; those of a folder have 224 pixels each way at the paper's scale, else 32."""
    return images(*_source(choices))


@lru_cache(maxsize=1)
def images(data: str | None, size: int = 32) -> ImageSet:
    """The embedded digits, or those in a directory: CIFAR-10's layout or an image folder.

    Args:
        data: the directory; None for digits.
        size: height and width of the images of a folder.

    Raises:
        FileError: neither is there, or it is damaged.
    """
    if data is None:
        return image_set("digits")
    if (Path(data) / FOLDER).is_dir() or Path(data).name == FOLDER:
        return image_set("cifar10", data)
    return image_set("folder", data, size)


def guessing(choices: Settings) -> float:
    """The error of guessing, where all classes are as large."""
    return 1 - 1 / len(chosen(choices).classes)


def network(choices: Settings, block: Block, depth: int, width: int, **options: Any) -> NetSpec:
    """A network for the images that a user chose; `options` are further ones of `NetSpec`."""
    data = chosen(choices)
    return NetSpec(block, depth, width=width, inputs=data.train.shape, classes=len(data.classes), **options)


def small_network(
    choices: Settings, depth: int, along: Literal["piecewise", "linear", "shared"], norm: Norm = "group"
) -> NetSpec:
    """The authors' for CIFAR-10, which has norm="batch"; half as wide in a quick run."""
    return network(choices, "conv", depth, choices.sized(8, 16, 16), along=along, activated=True, grid=2, norm=norm)


def train(
    cell: CurveCell,
    choices: Settings,
    spec: NetSpec,
    recipe: Recipe,
    *,
    solver: str,
    gradient: Gradient,
    weights: Mapping[str, np.ndarray],
    rates: Mapping[str, float] | None = None,
    dtype: str = "float32",
) -> Trained:
    """Train the network of a cell.

    Args:
        cell: for the backend and the seed of batches: they are the same for every solver, gradient method and depth.
        choices: for images and device.
        spec, solver, gradient, weights, dtype: of the network.
        recipe: how.
        rates: see `Backend.trainer`.

    Raises:
        InputError: fewer images than a batch has.
    """
    every = chosen(choices)
    learnt, mean, deviation = _learnt(*_source(choices), recipe.images)
    if len(learnt) < recipe.batch:
        raise InputError(f"batches of {recipe.batch} from {len(learnt)} training images", "at least that many images")
    backend = _registry.backend(cell.backend)
    with backend.prepare(dtype, choices.device):
        model = built(cell.backend, choices.device, spec, weights, solver, gradient, dtype)
    trainer = backend.trainer(model, momentum=0.9, weight_decay=recipe.weight_decay, rates=rates)
    batches, test = (
        Batches(part, recipe.batch, mean, deviation, dtype, cell.seed, recipe.augment, every.mirrored)
        for part in (learnt, _some(every.test, recipe.test, shuffled=False))
    )
    with quiet():  # certificates are in what it returns
        epochs = tuple(_epochs(trainer, batches, recipe))
    done = Trained(trainer, epochs, guessing(choices))
    return replace(done, error=1 - evaluate(trainer, test)[1]) if done.finished else done


def sample(choices: Settings, recipe: Recipe, seed: int, count: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """A batch to take gradients of: the first training images, as they are, in float64."""
    learnt, mean, deviation = _learnt(*_source(choices), recipe.images)
    batches = Batches(learnt, min(count, len(learnt)), mean, deviation, "float64", seed)
    return next(iter(batches.plain()))


def _epochs(trainer: Trainer, batches: Batches, recipe: Recipe) -> Iterator[TrainingPass]:
    for epoch in range(1, recipe.epochs + 1):
        done = training_pass(trainer, batches, epoch, rate(recipe.schedule, recipe.lr, epoch, recipe.epochs))
        if not done.finished:
            yield replace(done, loss=math.nan)
            return
        yield done


def _source(choices: Settings) -> tuple[str | None, int]:
    return choices.data, choices.sized(32, 32, 224)


@lru_cache(maxsize=1)
def _learnt(data: str | None, size: int, count: int | None) -> tuple[Images, np.ndarray, np.ndarray]:
    """The images that are learnt from, with mean and deviation of each channel, for which all of them are read."""
    some = _some(images(data, size).train, count, shuffled=True)
    return some, *moments(some)


def _some(images: Images, count: int | None, shuffled: bool) -> Images:
    if count is None or count >= len(images):
        return images
    order = np.random.default_rng(0).permutation(len(images)) if shuffled else np.arange(len(images))
    return images.take(order[:count])
