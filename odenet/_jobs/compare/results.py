"""The results of a comparison: a row for each cell (`odenet._jobs.cells.results`), and the curves that they form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from odenet._jobs.cells.grid import GridPlan, Key
from odenet._jobs.cells.results import CellResults, CellRow
from odenet._report.fit import ROUNDING, Fit, fit
from odenet._report.rows import column, columns


@dataclass(frozen=True)
class MeasuredGradient(CellRow):
    """What one cell gave; the fields are the columns of results.csv. None stands where nothing was measured."""

    backend: str = column("framework that ran the cell", "")
    device: str = column("device it ran on", "")
    dtype: str = column("number type of the cell; the reference is float64 always", "")
    solver: str = column("one step of the solver is one layer of the network", "")
    gradient: str = column("gradient method, spelled as --gradient takes it", "")
    depth: int = column("number of steps N", 0)
    along: str = column("weights along depth: piecewise = N layers (ResNet), linear = N+1 nodes (HeunNet)", "")
    status: str = column("ok; not offered or not available; or the error that the cell ended with", "")
    loss: float | None = column("mean cross-entropy over the batch")
    forward_difference: float | None = column("outputs against the reference: max |difference| / max |reference|")
    gradient_error: float | None = column(
        "whole gradient g against the reference r (exact backprop, float64, same depth): ||g - r|| / ||r||"
    )
    cosine_distance: float | None = column("1 - cos of the angle between g and r, computed without cancellation")
    certificate: float | None = column(
        "known without a reference: reconstruction residual, largest |y[n+1] - z - D(z)| / |y[n+1]| over the steps; of "
        "the continuous adjoint the relative error of the gradient of two steps"
    )
    forward_seconds: float | None = column("median seconds of the loss alone, compiled and warm")
    backward_seconds: float | None = column(
        "step_seconds - forward_seconds, as it comes: two medians, so noise can make it small or negative"
    )
    step_seconds: float | None = column("median seconds of loss and gradient, compiled and warm")
    compile_seconds: float | None = column(
        "seconds of compiling both, beside another cell that compiles; of a program that an earlier job compiled and "
        "kept (ODENET_CACHE) those that it took then; 0 where nothing is compiled"
    )
    peak_bytes: int | None = column("most bytes alive at once for loss and gradient, beyond weights and batch")
    gradient_bytes: int | None = column("bytes of the gradient itself, as large as the weights; part of peak_bytes")
    peak_bytes_method: str | None = column("how the backend counted them: compare within a backend only")
    f_forward: int | None = column("field evaluations of the forward pass, counted")
    f_forward_expected: int | None = column("the same by the cost model of the gradient method")
    f_backward: int | None = column("further field evaluations of the backward pass, counted")
    f_backward_expected: int | None = column("the same by the cost model")
    vjp: int | None = column("vector-Jacobian products of the field, counted")
    vjp_expected: int | None = column("the same by the cost model")
    counts_match: bool | None = column("whether all three counts are those of the cost model")
    cell_seconds: float | None = column("seconds that the whole cell took: build, evaluate, compile, repeats")

    @property
    def key(self) -> Key:
        """The cell that the row belongs to."""
        return self.backend, self.solver, self.gradient, self.depth


COLUMNS: dict[str, str] = columns(MeasuredGradient)
"""Each column and what it means."""


@dataclass(frozen=True)
class Comparison(CellResults[GridPlan, MeasuredGradient]):
    """What is done of a comparison.

    Args:
        plan, machine, rows, seconds: see `CellResults`.
    """

    form: ClassVar = "odenet compare 1"
    command: ClassVar = "odenet compare"
    plan_kind: ClassVar = GridPlan
    row_kind: ClassVar = MeasuredGradient
    compared: ClassVar = "times and memory"


@dataclass(frozen=True)
class Curve:
    """One solver, gradient method and backend over all depths measured.

    Args:
        solver, gradient, backend: names, the gradient as a flag spells it.
        rows: by depth, those that were measured.
        fit: of the gradient error; None where it is rounding, or too few depths were measured.
        exact: whether the gradient error is rounding at every depth.
    """

    solver: str
    gradient: str
    backend: str
    rows: Mapping[int, MeasuredGradient]
    fit: Fit | None
    exact: bool

    @property
    def first(self) -> MeasuredGradient:
        """The row of the smallest depth."""
        return self.rows[min(self.rows)]

    @property
    def last(self) -> MeasuredGradient:
        """The row of the largest depth."""
        return self.rows[max(self.rows)]

    @property
    def memory_growth(self) -> float | None:
        """Peak bytes at the largest depth over those at the smallest; None with less than two depths."""
        first, last = self.first.peak_bytes, self.last.peak_bytes
        return last / first if first and last and len(self.rows) > 1 else None

    @property
    def order(self) -> str:
        """The fitted order for a table."""
        return "exact" if self.exact else str(self.fit) if self.fit else "–"


def curves(rows: Iterable[MeasuredGradient]) -> list[Curve]:
    """Every curve with at least one measured depth, by solver, then gradient, then backend, as first met."""
    groups: dict[tuple[str, str, str], dict[int, MeasuredGradient]] = {}
    for row in rows:
        if row.ok:
            groups.setdefault((row.solver, row.gradient, row.backend), {})[row.depth] = row
    places = [list(dict.fromkeys(key[i] for key in groups)) for i in range(3)]
    ordered = sorted(groups, key=lambda key: tuple(place.index(name) for place, name in zip(places, key, strict=True)))
    return [_curve(*key, dict(sorted(groups[key].items()))) for key in ordered]


def _curve(solver: str, gradient: str, backend: str, rows: dict[int, MeasuredGradient]) -> Curve:
    rounding = ROUNDING[next(iter(rows.values())).dtype]
    errors = {depth: row.gradient_error for depth, row in rows.items() if row.gradient_error is not None}
    fitted = fit(list(errors), errors.values(), rounding)
    exact = bool(errors) and all(error <= rounding for error in errors.values())
    return Curve(solver, gradient, backend, rows, fitted, exact)
