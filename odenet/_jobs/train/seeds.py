"""One training for several seeds: a run for each, in a folder of its own, and a table of what came of them.

Over 250 lines: plan, cell, row, results and table of one kind of job, each of which is short.
"""

from __future__ import annotations

import dataclasses
import shutil
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from rich.console import Console

from odenet._errors import FileError, OdenetError
from odenet._jobs.cells.plan import CellPlan
from odenet._jobs.cells.results import CSV, JSON, OK, CellResults, CellRow
from odenet._jobs.cells.resume import changes, reading
from odenet._jobs.cells.run import CellJob, JobOptions, complete, keep_earlier
from odenet._jobs.train.checkpoint import RUN, read
from odenet._jobs.train.plan import TrainingPlan
from odenet._jobs.train.progress import percent
from odenet._report.machine import machine
from odenet._report.rows import column
from odenet._report.terminal import table


@dataclass(frozen=True)
class SeedCell:
    """The training run of one seed."""

    seed: int

    @property
    def key(self) -> int:
        """The seed, by which a row on disk is recognised."""
        return self.seed

    def __str__(self) -> str:
        return f"seed {self.seed}"


@dataclass(frozen=True)
class SeedPlan(CellPlan):
    """All options of a training, and its seeds.

    Args:
        training: the options; its own seed does not count.
        seeds: of the runs.
        out: absolute path of the folder in which each has its own.
    """

    grid: ClassVar = ("seeds",)
    records: ClassVar = {}

    training: TrainingPlan
    seeds: tuple[int, ...]
    out: str
    backends: tuple[str, ...] = ()
    dtype: Literal["float32", "float64"] = "float32"
    device: str = "cpu"

    def __post_init__(self) -> None:
        object.__setattr__(self, "backends", (self.training.backend,))
        object.__setattr__(self, "dtype", self.training.dtype)
        object.__setattr__(self, "device", self.training.device)
        self.check("training over seeds")

    def cells(self) -> tuple[SeedCell, ...]:
        """The cells of the job, one a seed."""
        return tuple(map(SeedCell, self.seeds))

    def in_order(self) -> Self:
        """The same plan with its seeds in ascending order."""
        return replace(self, seeds=tuple(sorted(self.seeds)))

    def changed_from(self, old: Self) -> list[str]:
        """Other options, in words; the files may have been moved."""
        return changes(*({**vars(plan.training), "seed": None, "data_dir": None} for plan in (old, self)))

    def to_json(self) -> dict[str, Any]:
        """The plan as a dictionary of plain data, for JSON."""
        return super().to_json() | {"training": self.training.to_json()}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Self:
        """The plan that `to_json` wrote."""
        with reading("the plan in these results", "a plan that odenet wrote"):
            return super().from_json({**plain, "training": TrainingPlan.from_json(plain["training"])})


@dataclass(frozen=True)
class TrainedSeed(CellRow):
    """What a run came to; the fields are the columns of results.csv."""

    seed: int = column("of weights, split, order and augmentation", 0)
    status: str = column("ok; or the error that the run ended with", "")
    epochs: int = column("that were trained", 0)
    best_epoch: int = column("the one whose weights are kept, by the validation images", 0)
    validation_accuracy: float | None = column("part of the validation images that its weights classify right")
    test_accuracy: float | None = column("part of the test images that they classify right, looked at once")
    test_loss: float | None = column("mean cross-entropy over the test images")
    certificate: float | None = column("largest reconstruction residual of all epochs; none where there is none")
    seconds: float | None = column("that the run took here")

    @property
    def key(self) -> int:
        """The cell that the row belongs to."""
        return self.seed


@dataclass(frozen=True)
class TrainedSeeds(CellResults[SeedPlan, TrainedSeed]):
    """The runs of a training over seeds.

    Args:
        plan, machine, rows, seconds, shard: see `CellResults`.
    """

    form: ClassVar = "odenet train seeds 1"
    command: ClassVar = "odenet train --seeds"
    plan_kind: ClassVar = SeedPlan
    row_kind: ClassVar = TrainedSeed
    compared: ClassVar = "times"


def folder(out: str | Path, seed: int) -> Path:
    """The folder of the run of a seed."""
    return Path(out) / f"seed-{seed}"


def train_seeds(training: TrainingPlan, seeds: Sequence[int], options: JobOptions) -> int:
    """Train once for each seed, and show a table of all.

    Args:
        training: all options but the seed.
        seeds: one run each, in `out`/seed-N.
        options: of the job; the workers of an executor write into `out`, so they share its file system.

    Returns, raises: as `odenet._jobs.cells.run.complete`; FileError if runs are there that were not to be resumed.
    """
    out, resume = options.out, options.resume
    plan = SeedPlan(training, tuple(seeds), str(out.absolute()))
    begun = [cell.seed for cell in plan.cells() if (folder(out, cell.seed) / RUN).exists()]
    if begun and not resume:
        raise FileError(
            f"{out} holds runs of the seeds {', '.join(map(str, begun))} already",
            "a folder without them",
            "give --resume to go on with them, or choose another --out",
        )
    if not resume or (begun and not (out / JSON).exists()):  # from now on there is something to resume
        keep_earlier(options.messages, out)
        TrainedSeeds(plan, machine(plan.backends), shard=options.shard).write(out)
    return complete(JOB, plan, replace(options, resume=True))


def measure(plan: SeedPlan, cells: Sequence[SeedCell]) -> Iterator[TrainedSeed]:
    """Train the runs of some seeds, or go on with them where they were begun."""
    from odenet._jobs.train.job import train

    for cell in cells:
        began, out = time.perf_counter(), folder(plan.out, cell.seed)
        row = TrainedSeed(seed=cell.seed)
        try:
            options = dataclasses.replace(plan.training, seed=cell.seed)
            if train(options, out, (out / RUN).exists(), Console(quiet=True)):
                raise KeyboardInterrupt
        except OdenetError as error:
            yield replace(row, status=str(error), seconds=time.perf_counter() - began)
            continue
        run = read(out)
        assert run is not None
        assert run.test is not None, "a run that ended is whole on disk"
        residuals = [epoch.certificate for epoch in run.rows if epoch.certificate is not None]
        yield replace(
            row,
            status=OK,
            epochs=run.epoch,
            best_epoch=run.test.epoch,
            validation_accuracy=run.rows[run.test.epoch - 1].validation_accuracy,
            test_accuracy=run.test.accuracy,
            test_loss=run.test.loss,
            certificate=max(residuals, default=None),
            seconds=time.perf_counter() - began,
        )


def show(results: TrainedSeeds, screen: Console) -> None:
    """A row a seed, and mean and deviation over them."""
    cells = [
        (
            str(row.seed),
            "" if row.test_accuracy is None else percent(row.test_accuracy),
            "" if row.test_loss is None else f"{row.test_loss:.4f}",
            str(row.best_epoch or ""),
            row.status,
        )
        for row in results.rows
    ]
    accuracies = [row.test_accuracy for row in results.rows if row.test_accuracy is not None]
    caption = ""
    if len(accuracies) > 1:
        spread = 100 * statistics.stdev(accuracies)
        caption = f"test accuracy {percent(statistics.mean(accuracies))}, standard deviation {spread:.1f} points"
    screen.print(table("Training over seeds", (">seed", ">test accuracy", ">loss", ">epoch", "status"), cells, caption))


def write(results: TrainedSeeds, out: Path) -> list[Path]:
    """results.csv and results.json, which are there already."""
    return [out / CSV, out / JSON]


def carry(whole: TrainedSeeds, parts: Mapping[Path, TrainedSeeds], out: Path) -> TrainedSeeds:
    """Copy the runs of the parts into the folder of the whole.

    Raises:
        FileError: a run cannot be copied.
    """
    for source, part in parts.items():
        for row in part.rows:
            run = folder(source, row.seed)
            target = folder(out, row.seed)
            if not run.is_dir() or row not in whole.rows or target.resolve() == run.resolve():
                continue
            try:
                shutil.copytree(run, target, dirs_exist_ok=True)
            except (OSError, shutil.Error) as error:
                raise FileError(
                    f"{run} cannot be copied to {target} ({error})", "folders you may read and write"
                ) from error
    return replace(whole, plan=replace(whole.plan, out=str(out.absolute())))


def _in_words(row: TrainedSeed) -> str:
    return row.status if row.test_accuracy is None else f"test accuracy {percent(row.test_accuracy)}"


JOB = CellJob(TrainedSeeds, measure, _in_words, show, write, carry)
