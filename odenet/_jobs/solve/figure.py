"""The figure of `odenet solve --plot`: error against steps, and the solution of the finest run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from odenet import _tree
from odenet._errors import FileError
from odenet._jobs.solve.convergence import EqualStepSolve, fitted_order, floor, series
from odenet._test_problems.reference import TestProblem

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes

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
