"""Largest relative error of a state recovered on the way back, over all steps, against the forward pass.

Tanh network of width 16, batch 8, weights smooth in depth (tests/conformance/cases.py), torch. float32: state and
blocks. bfloat16 blocks: the state is carried in float32, as every gradient method here does; bfloat16 throughout: the
same recursion with the state itself in bfloat16, which no method of this library does.

The reversible wrapper is that of McCallum and Foster around Euler, with its coupling; 1-1/N is this library's default.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import odenet
from odenet import Depth, DiscreteAdjoint, ReversibleSolver, Stats
from odenet._files import write_atomically
from odenet._problem.grid import grid
from odenet._solvers.step import subtract
from odenet_torch.field.field import FunctionField
from odenet_torch.field.state import Layout, Leaves, layout
from odenet_torch.gradients.discrete_adjoint import Reversal
from odenet_torch.steps.fixed import Run, loop

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "conformance"))
from cases import smooth_network

TITLE = "Recovered states in single and half precision"
DEPTHS = tuple(2**k for k in range(4, 13))
CURVES: dict[str, tuple[str, str | DiscreteAdjoint, str]] = {
    "paper (reversed step)": ("euler", DiscreteAdjoint(correct=False), "float32"),
    "corrected": ("euler", DiscreteAdjoint(), "float32"),
    "corrected, iterations=2": ("euler", DiscreteAdjoint(iterations=2), "float32"),
    "reversible Heun": ("reversible-heun", "reversible", "float32"),
    "ALF (MALI)": ("alf", "reversible", "float32"),
    "reversible:euler, coupling 0.99": ("reversible:euler:coupling=0.99", "reversible", "float32"),
    "reversible:euler, coupling 0.999": ("reversible:euler:coupling=0.999", "reversible", "float32"),
    "reversible:euler, coupling 1-1/N": ("reversible:euler", "reversible", "float32"),
    "corrected, bfloat16 blocks": ("euler", DiscreteAdjoint(), "bfloat16 blocks"),
    "paper, bfloat16 blocks": ("euler", DiscreteAdjoint(correct=False), "bfloat16 blocks"),
    "paper, bfloat16 throughout": ("euler", DiscreteAdjoint(correct=False), "bfloat16 state"),
}


def rows() -> Iterator[dict[str, Any]]:
    """One row a method, with a column a depth; a figure beside the table."""
    found = []
    for name, (solver, method, precision) in CURVES.items():
        errors = [error(solver, method, precision, n) for n in DEPTHS]
        found.append({"way back": name} | {f"N={n}": e for n, e in zip(DEPTHS, errors, strict=True)})
        yield found[-1]
    draw(found)


def error(solver: str, method: str | DiscreteAdjoint, precision: str, steps: int) -> float:
    """The largest `|recovered - y[n]| / |y[n]|`."""
    run, y0 = network(solver, precision, steps)
    states, pair = loop(run, y0, range(steps + 1))
    worst = 0.0
    for n, y in recovered(run, method, states, pair):
        apart = sum(float(((a - b).double() ** 2).sum()) for a, b in zip(y, states[n], strict=True))
        size = sum(float((b.double() ** 2).sum()) for b in states[n])
        worst = max(worst, math.sqrt(apart / size) if math.isfinite(apart) else math.inf)
    return worst


def network(solver: str, precision: str, steps: int) -> tuple[Run, Leaves]:
    """The network, ready to run."""
    kind = torch.float32 if precision == "float32" else torch.bfloat16
    weights, y0 = smooth_network(steps, steps)
    tree = {name: torch.tensor(w, dtype=kind) for name, w in weights.items()}
    found, leaves = layout(torch.tensor(y0, dtype=kind))
    if precision == "bfloat16 state":
        found = Layout(found.unflatten, found.single, found.given, found.given, found.time, found.device)
        leaves = tuple(leaf.to(kind) for leaf in leaves)
    field = FunctionField(lambda t, y, w: torch.tanh(y @ w["a"].T + w["b"]), Depth(tree, "piecewise"))
    return Run(field, found, grid(0.0, 1.0, steps), odenet.solver(solver)), leaves


def recovered(
    run: Run, method: str | DiscreteAdjoint, states: dict[int, Leaves], pair: tuple[Leaves, ...]
) -> Iterator[tuple[int, Leaves]]:
    """The states as the way back finds them, the last but one first."""
    steps, solver = run.grid.steps, run.solver
    if isinstance(method, DiscreteAdjoint):
        way, y = Reversal(method, Stats("torch", solver.label, method.label, steps, 0)), states[steps]
        for n in reversed(range(steps)):
            z = way.predict(run, n, y, [])
            y = subtract(y, run.increment(n, z)) if method.correct else z
            yield n, y
        return
    assert isinstance(solver, ReversibleSolver)
    zero = tuple(torch.zeros_like(leaf) for leaf in pair[0])
    g = solver.cotangents(zero, zero)
    blind = Blind(run, zero)
    for n in reversed(range(steps)):
        pair, g = solver.back(blind, n, run.grid.h, steps, pair, g)
        if solver.name != "reversible-heun":
            yield n, pair[0]
        elif n:  # it carries y + h/2 f(z)
            slope = run.slope(n - 1, 1.0, pair[1])
            yield n, tuple(leaf - run.grid.h / 2 * k for leaf, k in zip(pair[0], slope, strict=True))


class Blind:
    """Evaluations without their VJPs."""

    def __init__(self, run: Run, zero: Leaves) -> None:
        self.run, self.zero = run, zero

    def slope(self, n: int, position: float, y: Leaves, cotangent: Leaves) -> tuple[Leaves, Leaves]:
        """See `odenet._solvers.reversible.Back`."""
        return self.run.slope(n, position, y), self.zero

    def increment(self, n: int, y: Leaves, cotangent: Leaves, *, reverse: bool = False) -> tuple[Leaves, Leaves]:
        """See `odenet._solvers.reversible.Back`."""
        return self.run.increment(n, y, reverse=reverse), self.zero


def draw(found: list[dict[str, Any]]) -> None:
    """Two panels: single precision and bfloat16."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    keep: Callable[[str], bool] = lambda name: "bfloat16" in name  # noqa: E731
    for half, axes in enumerate(panels):
        for row in found:
            name = row["way back"]
            if keep(name) == bool(half):
                axes.loglog(DEPTHS, [min(row[f"N={n}"], 1e2) for n in DEPTHS], marker="o", markersize=3, label=name)
        axes.set(xlabel="steps N", title="bfloat16 blocks" if half else "float32", ylim=(1e-8, 1e2))
        axes.set_xscale("log", base=2)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    panels[0].set_ylabel("largest relative error of a recovered state")
    for folder in (Path(__file__).parent / "results", Path(__file__).parents[1] / "docs" / "images"):
        write_atomically(folder / "recovery.png", lambda file: figure.savefig(file, format="png", dpi=110))
