"""The continuous adjoint: solve `a' = -(df/dy)^T a` backward in time, together with y and the weights' quadrature.

Pontryagin 1962; Chen et al. 2018, appendix B.
"""

from __future__ import annotations

import dataclasses

import torch

from odenet import ContinuousAdjoint, Solver, Stats
from odenet._step import Leaves as AnyLeaves
from odenet._step import add, increment, positions
from odenet_torch._field import now
from odenet_torch._fixed import Run
from odenet_torch._state import Leaves
from odenet_torch.gradients._adjoint import Adjoint, Sums, standing, vjp


class Costate(Adjoint):
    """The augmented system (y, a), backward from t1, by a solver and a step count of its own."""

    def __init__(self, method: ContinuousAdjoint, solver: Solver, stats: Stats) -> None:
        super().__init__(stats)
        self.method = method
        self.solver = solver

    def back(self, run: Run, kept: list[Leaves], last: Leaves, gradients: list[AnyLeaves], sums: Sums) -> Leaves:
        """See `Adjoint.back`."""
        solver, steps = self.method.backward(self.solver, run.grid.steps)
        backward = dataclasses.replace(run, tableau=solver.tableau, grid=dataclasses.replace(run.grid, steps=steps))
        place = {n * steps // run.grid.steps: k for k, n in enumerate(run.grid.kept)}
        y = last
        a = gradients[-1] if steps in place else tuple(torch.zeros_like(leaf) for leaf in y)
        for n in reversed(range(steps)):
            y, a = self.step(backward, n, y, a, sums)
            if n in place:
                y, a = kept[place[n]], add(a, gradients[place[n]])
        return a

    @staticmethod
    def step(run: Run, n: int, y: Leaves, a: AnyLeaves, sums: Sums) -> tuple[Leaves, AnyLeaves]:
        """From the end of step n to its start. The quadrature touches only the layers that step n reads."""
        tableau, size, count = run.tableau, run.grid.h, len(y)
        places = positions(tableau, reverse=True)

        def stage(i: int, both: AnyLeaves) -> AnyLeaves:
            since = now()
            at, explicit, stand = standing(run, n, both[:count])
            with torch.enable_grad():
                slope = run.slope(n, places[i], at, stand)
            part, weights, found = vjp(run, n, slope, at, explicit, stand, both[count:], since)
            if tableau.b[i]:
                sums.add(weights, found, factor=size * tableau.b[i])
            return (*(k.detach() for k in slope), *(-p for p in part))

        both = add((*y, *a), increment(tableau, stage, (*y, *a), -size))
        return both[:count], both[count:]
