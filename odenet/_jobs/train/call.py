"""`odenet.train`: a run of `odenet train` as a function that takes datasets and optimisers as objects, too."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from odenet._backend.imported import Imported
from odenet._check import instance, path, yes_or_no
from odenet._errors import InputError
from odenet._jobs.data.own import set_of
from odenet._jobs.data.sets import image_set
from odenet._jobs.train.checkpoint import Epoch, Outcome, TrainingRun
from odenet._jobs.train.job import WEIGHTS, run
from odenet._jobs.train.plan import TrainingPlan
from odenet._literals import BackendName, GradientName, SolverName
from odenet._nets.spec import Block, NetSpec, Norm, Start
from odenet._nets.weights import load_weights
from odenet._report.rows import dataframe
from odenet._report.terminal import console

if TYPE_CHECKING:
    import numpy as np

_PLAIN = (bool, int, float, str, tuple, list, type(None))  # what is written out is the same in another process


@dataclass(frozen=True)
class TrainingResults:
    """A finished run.

    Args:
        plan: its options.
        rows: one an epoch, as in log.csv.
        test: what the test images say, once, of the weights of the best epoch.
        network: what was trained: `odenet.backend(name).build(network, weights)` makes it again.
        weights: those of the best epoch, by name.
        folder: where the run is.

    Raises:
        InputError: one of them is of another type.
    """

    plan: TrainingPlan
    rows: tuple[Epoch, ...]
    test: Outcome
    network: NetSpec
    weights: dict[str, np.ndarray]
    folder: Path

    def __post_init__(self) -> None:
        for name, kind, allowed in (
            ("plan", TrainingPlan, "the plan of a run"),
            ("rows", tuple, "a tuple of epochs"),
            ("test", Outcome, "the outcome of a run"),
            ("network", NetSpec, "a NetSpec"),
            ("weights", dict, "a dictionary of arrays"),
            ("folder", Path, "a pathlib.Path"),
        ):
            instance(name, getattr(self, name), kind, allowed)
        for row in self.rows:
            instance("row", row, Epoch, "an epoch, as in the rows of a run")

    def __repr__(self) -> str:
        test = self.test
        return (
            f"TrainingResults(test accuracy {100 * test.accuracy:.1f} % of {test.images} images, loss {test.loss:.4f}, "
            f"epoch {test.epoch} of {len(self.rows)}, in {self.folder})"
        )

    def to_dataframe(self) -> Any:
        """Every epoch as a pandas DataFrame, whose columns are those of log.csv.

        Raises:
            InputError: pandas is not installed.
        """
        return dataframe(self.rows)

    def plot(self) -> Any:
        """Loss, accuracy and certificate over the epochs, as a figure of matplotlib."""
        from odenet._jobs.train.curve import curve

        return curve(TrainingRun(self.plan, {}, {}, self.rows, self.test))


def train(
    data: Any = "digits",
    *,
    data_dir: str | Path | None = None,
    size: int | None = None,
    net: Block = "conv",
    depth: int = 8,
    width: int = 16,
    norm: Norm = "group",
    activation: Literal["relu", "tanh"] = "relu",
    along: Literal["auto", "piecewise", "linear", "shared"] = "auto",
    before: Iterable[int] = (),
    after: Iterable[int] = (),
    activated: bool = False,
    grid: int = 1,
    scaled: bool = True,
    start: Start = "smooth",
    backend: BackendName = "torch",
    solver: SolverName = "euler",
    gradient: GradientName = "backprop",
    device: str = "cpu",
    dtype: Literal["float32", "float64"] = "float32",
    epochs: int = 30,
    batch: int = 32,
    lr: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    schedule: Literal["step", "cosine", "constant"] = "step",
    optimizer: str | Callable[..., Any] = "sgd",
    seed: int = 0,
    augment: bool = True,
    validation: float = 0.1,
    limit_train: int | None = None,
    out: str | Path = "results/train",
    resume: bool = False,
    quiet: bool = False,
) -> TrainingResults:
    """Train a network on images with any solver and gradient method, as `odenet train` does.

    After each epoch the run is on disk; killed at any moment it loses no more than the epoch it was in. The best epoch
    is chosen by validation images that are set aside; the test images are looked at once, at the end.

    Args:
        data: "digits" (embedded), "cifar10" or "folder" (files in `data_dir`), an import path `module:name`, or an
            object: a dataset of pairs (image, label), a DataLoader of one, a pair of arrays, images (number, height,
            width) or (number, channels, height, width) with labels (number,), or a mapping with "train" and "test" of
            these. Without a "test" a fifth, drawn once, is for the test. An object is read once into memory.
        data_dir, size: of "cifar10" and "folder".
        net, depth, width, norm, activation, along, before, after, activated, grid, scaled, start: of the network, see
            `NetSpec`; along "auto" takes "piecewise" for euler and "linear" for other solvers; scaled takes steps of
            1/depth, and else of 1.
        backend, solver, gradient, device, dtype: how it is solved and differentiated.
        epochs, batch, lr, momentum, weight_decay, schedule: of gradient descent.
        optimizer: "sgd", an import path `module:name,key=value`, a class of `torch.optim` or a function of optax, with
            its options by `functools.partial`, or a transformation of optax. It has a rate of its own, and lr,
            momentum and weight_decay are left alone.
        seed: of weights, split, order and augmentation.
        augment: whether training images are moved and, where that changes nothing, mirrored at random.
        validation: part of the training images that chooses the best epoch.
        limit_train: use this many training images, validation included.
        out: folder of the run.
        resume: whether to go on with the run in `out`; the results are bitwise those of an uninterrupted one.
        quiet: whether to print nothing; else progress goes to stderr.

    Raises:
        FileError: images or a checkpoint cannot be read, `out` cannot be written to, is in use by another process,
            holds a run that was not to be resumed, or none that was.
        InputError, UnknownNameError: an option that cannot be used, or the run in `out` has other settings or images.
        UnsupportedError: the backend does not train, or does not offer the solver with the gradient method.
        GradientError: the loss is no finite number any more.
        KeyboardInterrupt: by Ctrl-C; `resume=True` goes on after the last whole epoch.
    """
    arguments = dict(locals())  # every option of the plan is an argument of the same name
    for name, value in (("resume", resume), ("quiet", quiet)):
        yes_or_no(name, value)
    folder = path("out", out)
    named = data if isinstance(data, str) else _name(type(data))
    chosen = None if isinstance(optimizer, str) else _imported(optimizer)
    own = {
        "data": named,
        "data_dir": None if data_dir is None else str(path("data_dir", data_dir)),
        "optimizer": optimizer if chosen is None else chosen.text,
    }
    plan = TrainingPlan(**{field.name: arguments[field.name] for field in dataclasses.fields(TrainingPlan)} | own)
    if not isinstance(data, str) and (data_dir is not None or size is not None):
        raise InputError("a directory or a size for data that is an object", "neither", "leave them out")
    images = image_set(plan.data, plan.data_dir, plan.size) if isinstance(data, str) else set_of(data, named)
    finished = run(plan, folder, resume, console(stderr=True, quiet=quiet), images, chosen)
    assert finished.test is not None  # a run that returns is whole
    weights = load_weights(folder / WEIGHTS)
    return TrainingResults(plan, finished.rows, finished.test, plan.spec(images), weights, folder)


def _imported(optimizer: Callable[..., Any]) -> Imported:
    """An optimiser that is given as an object, in the place of an import path."""
    options: dict[str, Any] = {}
    while isinstance(optimizer, functools.partial):
        if optimizer.args:
            raise InputError(
                f"an optimizer with {len(optimizer.args)} options by position",
                "options by name",
                "as in partial(torch.optim.AdamW, lr=1e-3)",
            )
        options = {**optimizer.keywords, **options}
        optimizer = optimizer.func
    if not callable(optimizer) and not hasattr(optimizer, "update"):
        raise InputError(
            f"an optimizer of type {type(optimizer).__name__}",
            "a class of torch.optim, a transformation of optax or what makes one, or a name",
            "options are given by functools.partial(torch.optim.AdamW, lr=1e-3)",
        )
    values = {key: repr(value) if isinstance(value, _PLAIN) else _name(value) for key, value in options.items()}
    text = ",".join([_name(optimizer), *(f"{key}={value}" for key, value in values.items())])
    return Imported(text, optimizer, options, "optimiser")


def _name(thing: Any) -> str:
    """The import path of a class or function, or of an object's class: what a run that is resumed is told apart by."""
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{named.__module__}:{named.__qualname__}"
