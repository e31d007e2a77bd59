"""The verbs of the SciPy backend: `solve` alone, a loop over a SciPy solver's steps, with its dense output."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
from scipy import integrate, optimize

from odenet import Backend, Depth, DtypeError, Problem, Result, Solution, SolveError, Span, Stats, UnsupportedError
from odenet.kit import tree_flatten, tree_leaves
from odenet_scipy import backend

SOLVERS: dict[str, Any] = {
    "bosh3": integrate.RK23,
    "dopri5": integrate.RK45,
    "dop853": integrate.DOP853,
    "radau": integrate.Radau,
    "bdf": integrate.BDF,
    "lsoda": integrate.LSODA,
}
Vector = Callable[[float, np.ndarray], np.ndarray]


@dataclass
class Path:
    """What a solve has done so far.

    Args:
        ends: times that steps ended at, the first being t0.
        pieces: dense output of each step.
        y: the state at the last of these times, as a vector.
        evaluations: of the field.
        event_t: where an event ended it.
        result: how it ended.
    """

    ends: list[float]
    y: np.ndarray
    pieces: list[Callable[[float], np.ndarray]] = field(default_factory=list)
    evaluations: int = 0
    event_t: float | None = None
    result: Result = Result.SUCCESS

    def at(self, t: float) -> np.ndarray:
        """The state at a time; NaN where the solve did not come."""
        first, last = self.ends[0], self.ends[-1]
        if not self.pieces:
            return self.y
        if (t - last) * (last - first) > 1e-12 * abs(last - first) * max(abs(t), abs(last)):
            return np.full_like(self.y, np.nan)
        sign = 1 if last >= first else -1
        place = int(np.searchsorted([sign * end for end in self.ends[1:]], sign * t))
        return self.pieces[min(place, len(self.pieces) - 1)](t)


def solve_span(ivp: Problem, span: Span) -> Solution:
    """The solution of an adaptive problem on NumPy arrays.

    Raises:
        UnsupportedError: what SciPy has not.
        SolveError: the solve could not go on.
    """
    _require(span)
    leaves, unflatten = tree_flatten(ivp.y0)
    arrays = [np.asarray(leaf, dtype=float if type(leaf) is int else None) for leaf in leaves]
    kind = np.result_type(*arrays)
    if not np.issubdtype(kind, np.inexact):
        raise DtypeError(f"y0 of {kind}", "float32, float64, complex64, complex128")
    if np.issubdtype(kind, np.complexfloating) and ivp.solver.name in ("lsoda", "radau"):
        raise UnsupportedError(f"a complex state with solver {ivp.solver.name}", "bosh3, dopri5, dop853, bdf")
    t0, t1 = float(span.t0), float(span.t1)

    def tree(vector: np.ndarray) -> Any:
        """The state from a vector, whose leading axes it keeps."""
        cuts = np.cumsum([array.size for array in arrays])[:-1]
        parts = np.split(vector, cuts, axis=-1)
        shaped = (p.reshape((*p.shape[:-1], *a.shape)) for p, a in zip(parts, arrays, strict=True))
        return unflatten(
            [
                p.astype(a.dtype) if np.iscomplexobj(a) else np.real(p).astype(a.dtype)
                for p, a in zip(shaped, arrays, strict=True)
            ]
        )

    read = _reader(ivp.weights, t0, t1)
    path = Path([t0], np.concatenate([array.ravel() for array in arrays]).astype(np.result_type(kind, float)))
    jumps = _jumps(ivp.weights, span, t0, t1)
    for start, end in itertools.pairwise([t0, *jumps, t1]):

        def slope(t: float, y: np.ndarray, middle: float = (start + end) / 2) -> np.ndarray:
            path.evaluations += 1
            k = ivp.field(t, tree(y), *read(t, middle))
            return np.concatenate([np.ravel(leaf) for leaf in tree_leaves(k)])

        _walk(path, slope, ivp, span, end, tree)
        if path.result is not Result.SUCCESS:
            break
    if path.result not in (Result.SUCCESS, Result.EVENT) and span.control.throw:
        raise SolveError(f"the solve ended at t={path.ends[-1]}: {path.result.value}")
    ts = [t1] if span.ts is None else path.ends if span.every else [float(t) for t in span.ts]
    if path.event_t is not None:
        ts = [*(t for t in ts if (t - path.event_t) * (t1 - t0) < 0), path.event_t]
    ys = tree(np.stack([path.at(t) for t in ts]))
    stats = Stats("scipy", ivp.solver.label, ivp.gradient.label, len(path.pieces), path.evaluations)
    dense = None
    if span.dense:
        dense = lambda t: tree(np.stack([path.at(s) for s in np.ravel(t)]).reshape(*np.shape(t), -1))  # noqa: E731
    return Solution(np.asarray(ts), ys, stats, list(Result).index(path.result), path.event_t, dense)


def _walk(path: Path, slope: Vector, ivp: Problem, span: Span, end: float, tree: Callable[..., Any]) -> None:
    """Solve on to `end`, or to an event before it."""
    control, event, start = span.control, span.event, path.ends[-1]
    if start == end:
        return
    rtol, atol = (_tolerance(value, ivp.y0) for value in (control.rtol, control.atol))
    options: dict[str, Any] = {"first_step": control.first_step and min(control.first_step, abs(end - start))}
    if control.min_step is not None:
        options["min_step"] = control.min_step
    if control.max_step is not None:
        options["max_step"] = control.max_step
    solver = SOLVERS[ivp.solver.name](slope, start, path.y, end, rtol=rtol, atol=atol, **options)
    while solver.status == "running":
        if len(path.pieces) >= control.max_steps:
            path.result = Result.MAX_STEPS
            return
        solver.step()
        if solver.status == "failed":
            path.result = Result.STEP_TOO_SMALL
            return
        piece = solver.dense_output()
        path.pieces.append(piece)
        path.ends.append(float(solver.t))
        path.y = np.asarray(solver.y)
        if not np.isfinite(path.y).all():
            path.result = Result.NONFINITE
            return
        if event is not None:
            last, now = path.ends[-2:]
            event_time = _crossing(lambda t: event.entries(t, tree(piece(t)), np.asarray), last, now, event)  # noqa: B023
            if event_time is not None and math.isnan(event_time):
                path.result = Result.EVENT_NAN
                return
            if event_time is not None:
                path.event_t, path.result = event_time, Result.EVENT
                return


def _crossing(value: Callable[[float], Any], start: float, end: float, event: Any) -> float | None:
    """The first time at which an entry of the condition changes sign; NaN where one is NaN, and it is not known."""

    def at(t: float) -> np.ndarray:
        entries = np.ravel(value(t))
        return entries * 2.0 - 1.0 if entries.dtype == bool else entries.astype(float)

    before, after = at(start), at(end)
    if np.isnan([*before, *after]).any():
        return math.nan
    changed = [i for i in range(len(before)) if before[i] * after[i] <= 0 and before[i] != 0]
    entries = [i for i in changed if event.direction in (0, np.sign(after[i] - before[i]))]
    exact = event.tolerance or 4 * np.finfo(float).eps * max(abs(start), abs(end))
    roots: Any = [optimize.brentq(lambda t, i=i: at(t)[i], start, end, xtol=exact) for i in entries]
    return min(roots, key=lambda t: abs(t - start), default=None)


def _require(span: Span) -> None:
    """Raises UnsupportedError for what SciPy has not."""
    control = span.control
    missing = {
        "norm": control.norm != "rms",
        "per_sample": control.per_sample,
        "pcoeff, icoeff, dcoeff": (control.pcoeff, control.icoeff, control.dcoeff) != (0, 1, 0),
        "safety, factor_min, factor_max": (control.safety or 0.9, control.factor_min, control.factor_max)
        != (0.9, 0.2, 10.0),
    }
    for feature, used in missing.items():
        if used:
            raise UnsupportedError(f"{feature} on backend scipy", "the defaults", "take backend='torch' or 'jax'")


def _tolerance(value: Any, y0: Any) -> Any:
    """A number, or a vector like the state."""
    tolerances = tree_leaves(value)
    if len(tolerances) == 1 and np.ndim(tolerances[0]) == 0:
        return float(tolerances[0])
    leaves = tree_leaves(y0)
    tolerances = tolerances * len(leaves) if len(tolerances) == 1 else tolerances
    return np.concatenate(
        [np.broadcast_to(t, np.shape(leaf)).ravel() for t, leaf in zip(tolerances, leaves, strict=True)]
    )


def _jumps(depth: Depth | None, span: Span, t0: float, t1: float) -> list[float]:
    """Times to start anew at, in order: jumps, forced steps and the ends of piecewise layers."""
    inner = range(1, depth.layers) if depth is not None and depth.kind == "piecewise" else ()
    times = {*span.stops, *(t0 + (t1 - t0) * n / len((*inner, 0)) for n in inner)}
    return sorted((t for t in times if min(t0, t1) < t < max(t0, t1)), reverse=t1 < t0)


def _reader(depth: Depth | None, t0: float, t1: float) -> Callable[[float, float], tuple[Any, ...]]:
    """The weights at a time, as arguments; `middle` says which layer where that is piecewise."""
    if depth is None:
        return lambda t, middle: ()
    count = depth.intervals or 1

    def read(t: float, middle: float) -> tuple[Any, ...]:
        place = ((t if depth.kind == "linear" else middle) - t0) / (t1 - t0) * count
        n = min(max(int(place), 0), count - 1)
        return (depth.between(n, place - n),)

    return read


class ScipyBackend(Backend):
    """odenet's `solve` on SciPy."""

    framework = "scipy"
    dtypes = ("float64", "float32", "complex128", "complex64")

    def solve(self, problem: Problem) -> Solution:
        backend.require(problem.solver, problem.gradient, adaptive=isinstance(problem.grid, Span))
        assert isinstance(problem.grid, Span)
        return solve_span(problem, problem.grid)

    def to_numpy(self, leaf: Any) -> np.ndarray:
        return np.asarray(leaf)

    @contextlib.contextmanager
    def prepare(self, dtype: str, device: str) -> Iterator[None]:
        self.require_place(dtype, device)
        yield

    def devices(self) -> tuple[str, ...]:
        return ("cpu",)

    def value_and_grad(self, loss: Any, problem: Problem) -> NoReturn:
        """Raises UnsupportedError: SciPy has no gradients."""
        raise UnsupportedError("gradients on backend scipy", "solve", "take backend='torch' or 'jax'")
