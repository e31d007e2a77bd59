"""Reversible solvers: undo each step, and take the VJPs where undoing it evaluates f anyway.

The solvers, and how they are undone, are `odenet._solvers.reversible`; here is only what evaluates f and takes its VJP.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from odenet import Problem, ReversibleSolver, Stats
from odenet.kit import Leaves as AnyLeaves
from odenet.kit import add
from odenet_torch.field.state import Leaves
from odenet_torch.gradients.adjoint import Adjoint, SavedStates, mark, read, standing, vjp, zeros
from odenet_torch.gradients.certificate import StepErrors, certify, relative
from odenet_torch.gradients.stages import Steps
from odenet_torch.gradients.sums import Sums
from odenet_torch.steps.fixed import Run, Solve


class Retrace(Adjoint):
    """The way back by a reversible solver, from the pair that it carries at t1."""

    def keeps(self, run: Run) -> Iterable[int]:
        """See `Adjoint.keeps`."""
        return ()

    def back(self, run: Run, saved: SavedStates, gradients: dict[int, AnyLeaves], sums: Sums) -> Steps:
        """See `Adjoint.back`."""
        solver, h, steps, pair = run.solver, run.grid.size(0), run.grid.steps, saved.pair
        assert isinstance(solver, ReversibleSolver)
        zero = zeros(pair[0])
        pull = StepVJPs(run, sums)
        g = solver.cotangents(gradients.get(steps, zero), zero)
        for n in reversed(range(steps)):
            pair, g = solver.back(pull, n, h, steps, pair, g)
            if n in gradients:
                g = (add(g[0], gradients[n]), *g[1:])
            yield n
        y, defect, gradient = solver.origin(pull, h, pair, g)
        errors = StepErrors(run)
        errors.add(relative(defect, y), -1)
        certify(self.stats, self.alarm, errors)
        return gradient


@dataclass(frozen=True)
class StepVJPs:
    """Evaluations with their VJPs (`odenet._solvers.reversible.Back`)."""

    run: Run
    sums: Sums

    def slope(self, n: int, position: float, y: Leaves, cotangent: AnyLeaves) -> tuple[Leaves, Leaves]:
        """See `Back`."""
        return self._pull(n, y, cotangent, functools.partial(self.run.slope, n, position))

    def increment(self, n: int, y: Leaves, cotangent: AnyLeaves, *, reverse: bool = False) -> tuple[Leaves, Leaves]:
        """See `Back`."""
        return self._pull(n, y, cotangent, functools.partial(self.run.increment, n, reverse=reverse))

    def _pull(self, n: int, y: Leaves, cotangent: AnyLeaves, evaluate: Callable[..., Leaves]) -> tuple[Leaves, Leaves]:
        since = mark(self.run)
        at, explicit, stand = standing(self.run, n, y)
        with torch.enable_grad():
            value = evaluate(at, stand=stand)
        part, weights, by_weights = vjp(read(self.run, n), n, value, at, explicit, stand, cotangent, since)
        self.sums.add(weights, by_weights)
        return tuple(leaf.detach() for leaf in value), part


def fixed(problem: Problem, stats: Stats) -> Solve:
    """See `odenet_torch.gradients.solve`."""
    return Retrace(stats).solve
