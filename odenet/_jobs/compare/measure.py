"""Running the cells of a comparison, one row each."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any

import numpy as np

from odenet._backend import registry as _registry
from odenet._backend.interface import Backend, Evaluation, Measurement
from odenet._errors import UnsupportedError, in_words
from odenet._gradients.names import Backprop
from odenet._gradients.record import Cost
from odenet._jobs.cells.grid import Cell, GridPlan
from odenet._jobs.cells.results import NOT_OFFERED, OK, not_run
from odenet._jobs.compare.results import MeasuredGradient as Row
from odenet._jobs.data.digits import batch
from odenet._nets.spec import NetSpec
from odenet._report.difference import cosine_distance, flat, largest, relative
from odenet._solvers.family import DelegatedSolver
from odenet._solvers.names import AnySolver


def measure(plan: GridPlan, cells: Iterable[Cell], data: tuple[np.ndarray, np.ndarray] | None = None) -> Iterator[Row]:
    """One row for each of these cells, as soon as it is done.

    Args:
        plan: what they belong to.
        cells: which of its cells.
        data: inputs (images, *shape) and labels (images,); None for the plan's digits.

    A cell that cannot be run still has its row, whose status says why: `not offered` (the backend has no such pair, or
    no networks), `not available` (its framework is not installed), or the error; the other cells go on.

    Raises:
        FileError: the digits cannot be loaded.
        InputError: a batch larger than the data.
    """
    inputs, labels = data if data is not None else batch(plan.batch, plan.seed)
    references = _References(plan, inputs, labels)
    waiting = list(cells)
    with ThreadPoolExecutor(ABREAST) as pool:
        for first in range(0, len(waiting), ABREAST):
            started = [pool.submit(_evaluated, plan, cell, references) for cell in waiting[first : first + ABREAST]]
            wait(started)  # nothing else runs while a cell is timed
            for done in started:
                yield _timed(plan, done.result(), references)


ABREAST = 2  # cells that are compiled and evaluated at once; they are timed one after the other


@dataclass(frozen=True)
class _Evaluated:
    """A cell's row as far as its evaluation goes, and the network to be timed if that went well."""

    cell: Cell
    row: Row
    model: Any
    seconds: float


class _References:
    """The exact float64 evaluation of each solver and depth, made when it is first needed."""

    def __init__(self, plan: GridPlan, inputs: np.ndarray, labels: np.ndarray) -> None:
        self.plan, self.inputs, self.labels = plan, inputs, labels
        self.evaluations: dict[tuple[str, int], Evaluation] = {}
        self.alone = Lock()

    def of(self, cell: Cell) -> Evaluation:
        with self.alone:
            return self._of(cell)

    def _of(self, cell: Cell) -> Evaluation:
        place = cell.solver.label, cell.depth
        if place not in self.evaluations:
            self.evaluations[place] = self._exact(cell)
        return self.evaluations[place]

    def _exact(self, cell: Cell) -> Evaluation:
        """By the first backend that can: that one cannot must not take the others' results away."""
        spec = self.plan.spec(cell.solver, cell.depth)
        weights = spec.init(self.plan.seed, self.plan.start)
        troubles = []
        for name in self.plan.references(cell.solver):
            try:
                return exact(name, spec, weights, cell.solver, self.plan.device, self.inputs, self.labels)
            except Exception as error:  # a backend of somebody else's may fail in any way
                troubles.append(f" ({name}: {error})")
        raise UnsupportedError(
            f"no backend of this comparison can give the exact gradient of {cell.solver.label}{''.join(troubles)}",
            "a backend that is installed, has networks and offers it with backprop, among those of --backend",
        )


def exact(
    backend: str,
    spec: NetSpec,
    weights: dict[str, np.ndarray],
    solver: AnySolver,
    device: str,
    inputs: np.ndarray,
    labels: np.ndarray,
) -> Evaluation:
    """Loss, outputs and gradients by backprop in float64: what others are compared with."""
    loaded = _registry.backend(backend)
    with loaded.prepare("float64", device):
        model = loaded.build(spec, weights, solver=solver, gradient=Backprop(), dtype="float64", device=device)
        return loaded.evaluate(model, inputs, labels)


def _blank(plan: GridPlan, cell: Cell) -> Row:
    return Row(
        backend=cell.backend,
        device=plan.device,
        dtype=plan.dtype,
        solver=cell.solver.label,
        gradient=cell.gradient.label,
        depth=cell.depth,
        along=plan.spec(cell.solver, cell.depth).along,
    )


def _evaluated(plan: GridPlan, cell: Cell, references: _References) -> _Evaluated:
    start = time.perf_counter()
    row, model = _blank(plan, cell), None
    entry = _registry.entry(cell.backend)
    if not entry.networks:
        row = replace(row, status=f"{NOT_OFFERED} by {cell.backend}: it solves, and has no networks")
    elif why := not_run(entry, cell.solver, cell.gradient):
        row = replace(row, status=why)
    else:
        try:
            row, model = _evaluate(plan, cell, row, references)
        except Exception as error:  # a backend of somebody else's may fail in any way
            row = replace(row, status=in_words(error))
    return _Evaluated(cell, row, model, time.perf_counter() - start)


def _evaluate(plan: GridPlan, cell: Cell, row: Row, references: _References) -> tuple[Row, Any]:
    reference = references.of(cell)
    spec = plan.spec(cell.solver, cell.depth)
    backend: Backend = _registry.backend(cell.backend)
    with backend.prepare(plan.dtype, plan.device):
        model = backend.build(
            spec,
            spec.init(plan.seed, plan.start),
            solver=cell.solver,
            gradient=cell.gradient,
            dtype=plan.dtype,
            device=plan.device,
        )
        evaluation = backend.evaluate(model, references.inputs, references.labels)
    return _compared(row, evaluation, reference), model


def _timed(plan: GridPlan, done: _Evaluated, references: _References) -> Row:
    start, row, cell = time.perf_counter(), done.row, done.cell
    if done.model is not None:
        backend = _registry.backend(cell.backend)
        gc.collect()  # now, rather than while the clock runs
        try:
            with backend.prepare(plan.dtype, plan.device):
                measured = backend.measure(done.model, references.inputs, references.labels, plan.repeats)
            row = _with_costs(row, measured, plan.spec(cell.solver, cell.depth), _expected(cell))
        except Exception as error:  # as above
            row = replace(row, status=in_words(error))
    return replace(row, cell_seconds=done.seconds + time.perf_counter() - start)


def _compared(row: Row, evaluation: Evaluation, reference: Evaluation) -> Row:
    gradient, exact_gradient = flat(evaluation.gradients), flat(reference.gradients)
    bad = [
        quantity
        for quantity, values in (
            ("the loss", evaluation.loss),
            ("outputs", evaluation.outputs),
            ("the gradient", gradient),
        )
        if not np.isfinite(values).all()
    ]
    cosine = cosine_distance(gradient, exact_gradient)
    return replace(
        row,
        status=f"not finite: {', '.join(bad)}; take more steps, or smaller weights" if bad else OK,
        loss=float(evaluation.loss),
        forward_difference=largest(np.asarray(evaluation.outputs, np.float64), reference.outputs),
        gradient_error=relative(gradient, exact_gradient),
        cosine_distance=None if math.isnan(cosine) else cosine,
        certificate=evaluation.certificate,
    )


def _of_model(counts: tuple[int, int, int], expected: Cost) -> bool:
    forward, backward, vjp = counts
    beyond = backward - expected.f_backward
    return (forward, vjp) == (expected.f_forward, expected.vjp) and beyond in (0, expected.look)


def _expected(cell: Cell) -> Cost | None:
    """By the cost model; None where nobody knows how often a step evaluates f."""
    return None if isinstance(cell.solver, DelegatedSolver) else cell.gradient.cost(cell.solver, cell.depth)


def _with_costs(row: Row, measured: Measurement, spec: NetSpec, expected: Cost | None) -> Row:
    counts = measured.f_forward, measured.f_backward, measured.vjp
    return replace(
        row,
        forward_seconds=measured.forward_seconds,
        backward_seconds=measured.step_seconds - measured.forward_seconds,
        step_seconds=measured.step_seconds,
        compile_seconds=measured.compile_seconds,
        peak_bytes=measured.peak_bytes,
        gradient_bytes=sum(math.prod(shape) for shape in spec.shapes().values()) * np.dtype(row.dtype).itemsize,
        peak_bytes_method=measured.peak_bytes_method,
        f_forward=measured.f_forward,
        f_forward_expected=expected and expected.f_forward,
        f_backward=measured.f_backward,
        f_backward_expected=expected and expected.f_backward,
        vjp=measured.vjp,
        vjp_expected=expected and expected.vjp,
        counts_match=expected and _of_model(counts, expected),
    )
