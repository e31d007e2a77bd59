"""Runs of one problem at several step counts, the orders of convergence that they show, and the figure of `--plot`:
error against steps, and the solution of the finest run.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from odenet import _tree
from odenet._errors import FileError
from odenet._report.rows import column
from odenet._test_problems.reference import Reference, TestProblem

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes


_ROUNDING = {"float32": 2.0**-23, "float64": 2.0**-52}
_COARSE = 0.5  # relative error above which nothing of the solution was found


@dataclass(frozen=True)
class EqualStepSolve:
    """One solve of a test problem in equal steps; the fields are the columns of a results file."""

    problem: str = column("test problem, as `odenet list problems` names it", "")
    backend: str = column("backend that solved it", "")
    solver: str = column("solver by name", "")
    order: int = column("order that the solver promises", 0)
    dtype: str = column("number type of the state; the reference is float64 always", "")
    device: str = column("device it ran on", "")
    steps: int = column("equal steps from t0 to t1", 0)
    f_evaluations: int = column("field evaluations", 0)
    relative_error: float = column("at t1: largest |y - reference| / largest |reference|; nan: not finite", 0.0)
    seconds: float = column("wall time of this one solve, compilation included", 0.0)
    result: str = column("success, or what went wrong", "")


def floor(run: EqualStepSolve, uncertainty: float) -> float:
    """Relative error under which rounding, or the reference's own uncertainty, is what one sees.

    Rounding is counted as one unit in the last place a step, all with the same sign.
    """
    return max(_ROUNDING[run.dtype] * max(run.steps, 16), 10 * uncertainty)


def observed_order(coarse: EqualStepSolve, fine: EqualStepSolve) -> float | None:
    """`log(error ratio) / log(step ratio)` of two runs; None where an error is zero or not finite."""
    errors = coarse.relative_error, fine.relative_error
    if coarse.steps == fine.steps or not all(math.isfinite(error) and error > 0 for error in errors):
        return None
    return math.log(errors[0] / errors[1]) / math.log(fine.steps / coarse.steps)


def fitted_order(runs: Sequence[EqualStepSolve], uncertainty: float = 0.0) -> float | None:
    """The slope of log(error) against log(1 / steps) by least squares.

    Runs outside `floor < error < 1/2` are left out: they show rounding, or nothing. None with fewer than two runs left.
    """
    used = [run for run in runs if floor(run, uncertainty) < run.relative_error < _COARSE]
    xs = [-math.log(run.steps) for run in used]
    ys = [math.log(run.relative_error) for run in used]
    if len(set(xs)) < 2:
        return None
    return statistics.linear_regression(xs, ys).slope


def series(runs: Sequence[EqualStepSolve]) -> dict[tuple[str, str], list[EqualStepSolve]]:
    """The runs of each backend and solver, from few steps to many."""
    groups: dict[tuple[str, str], list[EqualStepSolve]] = {(run.backend, run.solver): [] for run in runs}
    for run in sorted(runs, key=lambda run: run.steps):
        groups[run.backend, run.solver].append(run)
    return groups


def as_json(problem: TestProblem, runs: Sequence[EqualStepSolve], truth: Reference) -> str:
    """The runs, the fitted orders and what they are relative to; null where an error is not finite."""

    def plain(run: EqualStepSolve) -> dict[str, Any]:
        error = run.relative_error if math.isfinite(run.relative_error) else None
        return {**dataclasses.asdict(run), "relative_error": error}

    whole = {
        "problem": problem.name,
        "t0": problem.t0,
        "t1": problem.t1,
        "reference": truth.method,
        "reference_uncertainty": truth.uncertainty,
        "orders": [
            {"backend": backend, "solver": solver, "fitted_order": fitted_order(group, truth.uncertainty)}
            for (backend, solver), group in series(runs).items()
        ],
        "runs": [plain(run) for run in runs],
    }
    return json.dumps(whole, indent=2, allow_nan=False) + "\n"


_MARKERS = "os^Dv<>Pp*"
_LARGEST = 100.0  # a run that grew to 1e100 shall not flatten the others


def figure_format(path: Path) -> str:
    """The format that a path's suffix names.

    Raises:
        FileError: none that Matplotlib writes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    formats = FigureCanvasAgg.get_supported_filetypes()
    suffix = path.suffix.removeprefix(".").lower()
    if suffix not in formats:
        ending = f"ends in .{suffix}" if suffix else "has no suffix"
        raise FileError(f"the figure {path} {ending}", ", ".join(f".{name}" for name in sorted(formats)))
    return suffix


def draw(
    file: BinaryIO,
    kind: str,
    problem: TestProblem,
    runs: Sequence[EqualStepSolve],
    uncertainty: float,
    finest: tuple[EqualStepSolve, Sequence[float], Any] | None,
    truth: tuple[Sequence[float], Any],
) -> None:
    """Write the figure.

    Args:
        file: opened for bytes.
        kind: a format, see `figure_format`.
        problem: what was solved.
        runs: all of them.
        uncertainty: of the reference, relative.
        finest: the run to be drawn, its T times and its states, leaves (T, ...); None where no run ended well.
        truth: times and states of the reference, the same way.
    """
    from odenet._report.figures import canvas

    figure = canvas(11, 4.5)
    left, right = figure.subplots(1, 2)
    _errors(left, runs, uncertainty)
    _solution(right, problem, finest, truth)
    figure.suptitle(f"{problem.name}: {problem.summary}")
    figure.savefig(file, format=kind, dpi=150)


def _errors(axes: Axes, runs: Sequence[EqualStepSolve], uncertainty: float) -> None:
    for index, ((backend, solver), group) in enumerate(series(runs).items()):
        shown = [run for run in group if 0 < run.relative_error < float("inf")]
        order = fitted_order(group, uncertainty)
        slope = "" if order is None else f", order {order:.2f}"
        axes.plot(
            [run.steps for run in shown],
            [run.relative_error for run in shown],
            marker=_MARKERS[index % len(_MARKERS)],
            fillstyle="none",
            label=f"{backend} {solver}{slope}",
        )
    least = {run.steps: floor(run, uncertainty) for run in sorted(runs, key=lambda run: run.steps)}
    axes.plot(list(least), list(least.values()), ":", color="grey", linewidth=1, label="rounding, reference")
    axes.set_xscale("log", base=2)
    axes.set(yscale="log", xlabel="steps", ylabel="relative error at t1 (max norm)")
    axes.set_xticks(list(least), [str(steps) for steps in least])
    if axes.get_ylim()[1] > _LARGEST:
        smallest = min([*least.values(), *(run.relative_error for run in runs if run.relative_error > 0)])
        axes.set_ylim(smallest / 10, _LARGEST)
    axes.grid(which="major", alpha=0.3)
    axes.legend(fontsize="small")


def _solution(
    axes: Axes,
    problem: TestProblem,
    finest: tuple[EqualStepSolve, Sequence[float], Any] | None,
    truth: tuple[Sequence[float], Any],
) -> None:
    drawn: list[tuple[str | None, Sequence[float], Mapping[str, np.ndarray], dict[str, Any]]] = []
    drawn.append(("reference", truth[0], components(truth[1]), {"color": "0.75", "linewidth": 4}))
    if finest is not None:
        run, ts, ys = finest
        axes.set_title(f"{run.backend} {run.solver}, {run.steps} steps", fontsize="medium")
        drawn.append((None, ts, components(ys), {"linewidth": 1.2}))
    for label, ts, parts, style in drawn:
        names = list(parts)
        if problem.orbit:
            axes.plot(parts[names[0]], parts[names[1]], label=label or "run", **style)
            axes.set(xlabel=names[0], ylabel=names[1])
            continue
        for index, name in enumerate(names):
            text = name if label is None else label if index == 0 else None
            axes.plot(ts, parts[name], label=text, **style)
        axes.set(xlabel="t", ylabel="state")
    axes.legend(fontsize="small")


def components(states: Any) -> dict[str, np.ndarray]:
    """Each real number of a state over time by name, such as `prey`, `y[0]` or `Re y`.

    Args:
        states: a tree with leaves (T, ...).
    """
    import numpy as np

    parts: dict[str, np.ndarray] = {}
    for path, leaf in _tree.paths(states):
        name = "y" if path == "(leaf)" else f"y{path}" if path.startswith("[") else path
        flat = np.reshape(leaf, (len(leaf), -1))
        for index in range(flat.shape[1]):
            entry = name if flat.shape[1] == 1 else f"{name}[{index}]"
            if np.iscomplexobj(flat):
                parts[f"Re {entry}"], parts[f"Im {entry}"] = np.real(flat[:, index]), np.imag(flat[:, index])
            else:
                parts[entry] = flat[:, index]
    return parts
