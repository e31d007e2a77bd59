"""`odenet.compare`: the main job as a function, and its results as an object that shows itself."""

from __future__ import annotations

import functools
import io
import warnings
from collections.abc import Iterable
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from odenet._check import several
from odenet._errors import FileError, InputError
from odenet._gradients.names import gradient
from odenet._gradients.record import Gradient
from odenet._jobs.cells.executor import pool
from odenet._jobs.cells.grid import GridPlan
from odenet._jobs.cells.spread import Spread
from odenet._jobs.compare.findings import verdict
from odenet._jobs.compare.measure import measure
from odenet._jobs.compare.results import COLUMNS, Comparison
from odenet._literals import BackendName, GradientName, SolverName
from odenet._names import lookup
from odenet._nets.spec import NetSpec, Start
from odenet._report.machine import joined, machine
from odenet._report.rows import dataframe
from odenet._solvers.names import AnySolver, solver

_DIGITS = {"inputs": (1, 8, 8), "classes": 10}
_WIDE = 200


class ComparisonResults(Comparison):
    """A finished comparison: `rows`, and four ways to look at them. `print(results)` gives the tables.

    `results.write(folder)` keeps them, and `odenet.read_results(folder)` reads them again.
    """

    def __str__(self) -> str:
        from rich.console import Console

        from odenet._jobs.compare.page import tables

        page = io.StringIO()
        screen = Console(file=page, highlight=False, width=_WIDE)
        for part in (*tables(self.rows, screen), verdict(self)):
            screen.print(part, markup=False)
        return page.getvalue()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """The verdict and the table, for a notebook."""
        from odenet._jobs.compare.page import notebook

        return notebook(self)

    @property
    def verdict(self) -> str:
        """What to take on this network, in a sentence for each solver."""
        return verdict(self)

    def to_dataframe(self) -> Any:
        """Every row as a pandas DataFrame, whose columns are those of results.csv.

        Raises:
            InputError: pandas is not installed.
        """
        return dataframe(self.rows, list(COLUMNS))

    def plot(self, name: str = "overview") -> Any:
        """A figure of matplotlib: "overview", "gradient_error", "memory" or "time".

        Raises:
            UnknownNameError: another name.
        """
        from odenet._jobs.compare.figures import figures

        return lookup("figure", name, figures(self.rows))


def compare(
    network: NetSpec | None = None,
    batch: tuple[Any, Any] | None = None,
    *,
    solvers: SolverName | AnySolver | Iterable[SolverName | AnySolver] = ("euler", "heun"),
    gradients: GradientName | Gradient | Iterable[GradientName | Gradient] | None = None,
    depths: int | Iterable[int] = (4, 16, 64),
    backends: BackendName | Iterable[BackendName] = ("torch", "jax"),
    dtype: Literal["float32", "float64"] = "float64",
    device: str = "cpu",
    seed: int = 0,
    start: Start = "smooth",
    repeats: int = 3,
    executor: str | Executor | None = None,
) -> ComparisonResults:
    """Compare solvers, gradient methods and backends on one network, as `odenet compare` does.

    Every cell is compared with exact backprop in float64 on the same weights at the same depth; its times, peak memory
    and counts of evaluations are measured. For a model of your own see `odenet.check_gradients`.

    Args:
        network: its `depth` and `along` are replaced by those of each cell (piecewise weights for euler, linear ones
            for other solvers). None takes the tanh mlp of 16 features that `odenet compare` takes.
        batch: inputs (images, *network.inputs) and class numbers (images,), as arrays; without classes the states
            aimed at. None takes 100 handwritten digits.
        solvers, gradients, depths, backends: one or several. Gradients by default: backprop, the discrete adjoint with
            and without correction, the continuous adjoint.
        dtype: of the cells.
        device: as the backends name it.
        seed, start: of the weights, see `NetSpec.init`.
        repeats: how often each cell is timed; the median counts.
        executor: who measures: "processes", "processes:4", "dask", "dask:tcp://HOST:PORT", "ray", "ray:auto",
            "submitit:slurm,NAME=VALUE", or an executor of `concurrent.futures`; None for this process. Cells of a
            worker that is lost are done again. Times of cells that run beside each other disturb each other.

    Returns:
        rows in the order of the grid. A cell that could not be run has a row whose `status` says why.

    Raises:
        InputError: arguments that cannot be used. BackendUnavailableError: none of the backends is installed.
    """
    if network is not None and not isinstance(network, NetSpec):
        raise InputError(
            f"a network of type {type(network).__name__}",
            "a NetSpec, which every backend can build, or None",
            "for a model of your own take odenet.check_gradients(model, batch)",
        )
    spec = network if network is not None else NetSpec("mlp", activation="tanh")
    data = None if batch is None else _checked(batch, spec)
    if data is None and (spec.inputs, spec.classes) != (_DIGITS["inputs"], _DIGITS["classes"]):
        raise InputError(
            f"no batch for a network with inputs={spec.inputs} and classes={spec.classes}",
            "batch=(inputs, labels); the digits fit inputs=(1, 8, 8) and classes=10",
        )
    options: dict[str, Any] = {}
    if gradients is not None:
        options["gradients"] = tuple(map(gradient, several("gradients", gradients, Gradient)))
    plan = GridPlan(
        backends=tuple(several("backends", backends)),
        solvers=tuple(map(solver, several("solvers", solvers, AnySolver))),
        depths=tuple(several("depths", depths, int)),
        dtype=dtype,
        device=device,
        seed=seed,
        start=start,
        repeats=repeats,
        batch=100 if data is None else len(data[0]),
        network=spec,
        **options,
    )
    plan.require_a_backend()
    if executor is None:
        plan.require_a_device()
    results = ComparisonResults(plan, machine(plan.backends))
    if executor is None:
        for _, grown in results.growing(measure(plan, plan.cells(), data)):
            results = grown
        return results
    lost: list[str] = []
    workers = pool(executor)
    try:
        spread = Spread(
            workers,
            functools.partial(measure, data=data),
            plan,
            functools.partial(machine, plan.backends),
            lambda unit, error: lost.append(f"{', '.join(map(str, unit))} ({error})"),
        )
        for _, grown in results.growing(spread.results(plan.units(plan.cells()))):
            results = grown
    finally:
        workers.close()
    if lost:
        text = f"cells that took their worker with them each time are not in the results: {'; '.join(lost)}"
        warnings.warn(text, RuntimeWarning, stacklevel=2)
    return replace(results, machine=joined([results.machine, *spread.machines]))


def read_results(folder: str | Path) -> ComparisonResults:
    """The results that `odenet compare --out FOLDER`, or `write`, left.

    Args:
        folder: of results.json.

    Raises:
        InputError: no path. FileError: there is no results.json, its checksum is not that of its content (those of the
            first versions have none, and are read as they are), or no comparison in it.
    """
    results = ComparisonResults.read(folder)
    if results is None:
        raise FileError(f"no results.json in {folder}", "a folder that odenet compare wrote")
    return results


def _checked(batch: Any, spec: NetSpec) -> tuple[np.ndarray, np.ndarray]:
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise InputError(f"a batch of type {type(batch).__name__}", "(inputs, labels)")
    inputs, labels = (np.asarray(part) for part in batch)
    if spec.classes is not None and labels.dtype.kind not in "iu":
        raise InputError(f"labels of {labels.dtype}", f"whole numbers from 0 to {spec.classes - 1}")
    spec.check_batch(inputs, labels)
    return inputs.astype(np.float64), labels.astype(np.int64 if spec.classes is not None else np.float64)
