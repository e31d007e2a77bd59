"""A run on disk. Killed at any moment, it is that of the last whole epoch.

    run.json             plan, images, rows and which files belong to it: what counts
    state-0007.npz       weights and momentum after epoch 7: of the last epoch, and of the best
    log.csv, events.*    what run.json says, for people and for TensorBoard

All are written beside their place and renamed. A state is whole before run.json names it, and a state that run.json no
longer names is deleted after that. No file is a pickle.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from odenet._errors import WriteError
from odenet._files import write_text
from odenet._jobs.cells import resume as _resume
from odenet._jobs.train.plan import TrainingPlan
from odenet._nets.weights import load_weights, save_weights
from odenet._report.rows import as_csv, column, from_json, plain, to_json

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Epoch:
    """What an epoch came to; each field is a column, with its meaning in the metadata."""

    epoch: int = column("number of the epoch, from 1", 0)
    lr: float = column("rate of gradient descent; factor of the rate of an optimizer of the framework's", 0.0)
    train_loss: float = column("mean cross-entropy over the steps of the epoch, each before its update", 0.0)
    train_accuracy: float = column("part of the (augmented) training images that were classified right", 0.0)
    validation_loss: float = column("mean cross-entropy over the validation images, after the epoch", 0.0)
    validation_accuracy: float = column("part of the validation images classified right, after the epoch", 0.0)
    certificate: float | None = column("largest reconstruction residual of a step; none where there is none")
    peak_bytes: int | None = column("most bytes alive at once in a step, beyond weights and batch")
    seconds: float = column("seconds of the epoch", 0.0)
    finished: float = column("when it ended, seconds since 1970", 0.0)

    @property
    def merit(self) -> tuple[float, float]:
        """What the best epoch has most of: validation accuracy and, of equal ones, the smaller loss."""
        return self.validation_accuracy, -self.validation_loss


def best(rows: tuple[Epoch, ...]) -> int:
    """The epoch whose weights are kept: the first of the best on the validation images. The test set has no say."""
    return max(rows, key=lambda row: (row.merit, -row.epoch)).epoch


FORMAT = "odenet train 1"
RUN, LOG = "run.json", "log.csv"


@dataclass(frozen=True)
class Outcome:
    """What the test images say, once, of the weights of the best epoch.

    Args:
        epoch: the best, by the validation images.
        loss, accuracy: mean cross-entropy, and the part that was classified right.
        images: how many there are.
    """

    epoch: int
    loss: float
    accuracy: float
    images: int


@dataclass(frozen=True)
class TrainingRun:
    """A run as far as it is.

    Args:
        plan: its options.
        images: what it learns from, as plain data that would differ for other images.
        machine: where it began, as `odenet._report.machine.machine` tells it.
        rows: one an epoch.
        test: at the end.
    """

    plan: TrainingPlan
    images: Mapping[str, Any]
    machine: Mapping[str, str]
    rows: tuple[Epoch, ...] = ()
    test: Outcome | None = None

    @property
    def epoch(self) -> int:
        """The last whole epoch; 0 before there is one."""
        return len(self.rows)

    @property
    def best(self) -> int:
        """The best epoch by the validation images; 0 before there is one."""
        return best(self.rows) if self.rows else 0

    def saved(self, folder: Path, row: Epoch, state: Mapping[str, np.ndarray]) -> TrainingRun:
        """This run with one more epoch, on disk.

        Raises:
            FileError: the folder cannot be written to.
        """
        grown = replace(self, rows=(*self.rows, row))
        save_weights(folder / state_name(row.epoch), state)
        grown.write(folder)
        return grown

    def write(self, folder: Path) -> None:
        """run.json and log.csv; then files that are no longer needed are deleted."""
        whole = {
            "plan": self.plan.to_json(),
            "images": dict(self.images),
            "machine": dict(self.machine),
            "epoch": self.epoch,
            "best_epoch": self.best,
            "test": None if self.test is None else plain(vars(self.test)),
            "rows": [to_json(row) for row in self.rows],
        }
        _resume.write(folder / RUN, FORMAT, whole)
        write_text(folder / LOG, as_csv(Epoch, self.rows))
        self.sweep(folder)

    def state(self, folder: Path, epoch: int) -> dict[str, np.ndarray]:
        """Weights and momentum after an epoch, the last or the best.

        Raises:
            FileError: the file is missing or damaged.
        """
        return load_weights(folder / state_name(epoch))

    def sweep(self, folder: Path) -> None:
        """Delete states of other epochs, and what a process that was killed left half written."""
        names = {state_name(self.epoch), state_name(self.best)}
        for path in folder.glob("state-*.npz"):
            if path.name not in names:
                path.unlink(missing_ok=True)
        for name in ("state-*.npz", RUN, LOG, "events.*", "curve.*", "weights.npz", ".writable"):
            for path in folder.glob(f".{name}.*"):
                path.unlink(missing_ok=True)


def state_name(epoch: int) -> str:
    """The file of the weights and momentum after an epoch."""
    return f"state-{epoch:04d}.npz"


def read(folder: Path) -> TrainingRun | None:
    """The run in a folder; None where there is none.

    Raises:
        FileError: a run.json that this version of odenet did not write.
    """
    return _resume.read(folder / RUN, FORMAT, "odenet train", _built, "choose another --out")


def _built(whole: Mapping[str, Any]) -> TrainingRun:
    rows = tuple(from_json(Epoch, row) for row in whole["rows"])
    if [row.epoch for row in rows] != list(range(1, len(rows) + 1)):
        raise ValueError("its epochs are not 1, 2, 3, ...")
    test = None
    if whole["test"] is not None:
        test = Outcome(**whole["test"] | {"loss": float(whole["test"]["loss"])})  # "nan" as text
    return TrainingRun(TrainingPlan.from_json(whole["plan"]), whole["images"], whole["machine"], rows, test)


try:
    import fcntl
except ImportError:  # Windows, which has no locks on folders
    fcntl = None


@contextmanager
def alone(folder: Path) -> Iterator[Callable[[], None]]:
    """Hold the folder until the end, however that comes: the system lets go of it when a process is killed.

    A lock is one on the folder, not on its name: where the folder was deleted or moved, another run may stand under
    the name. What is yielded is called before each write, and raises WriteError then.

    Raises:
        WriteError: another process holds it.
    """
    begun = os.stat(folder)

    def require_same() -> None:
        try:
            same = os.path.samestat(begun, os.stat(folder))
        except OSError:
            same = False
        if not same:
            raise WriteError(
                f"the folder {folder} of this run was deleted, moved or replaced while it was training, "
                "and nothing more is written there",
                "a folder that stays where it is until the run ends",
                "where it was moved, go on with --resume --out and its new name; else begin anew",
            )

    if fcntl is None:
        yield require_same
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise WriteError(
                f"another process is training in {folder}", "one at a time", "wait for it, or choose another --out"
            ) from error
        except OSError:
            pass  # a file system without locks
        yield require_same
    finally:
        os.close(handle)
