"""The continuous adjoint: solve `a' = -(df/dy)^T a` backward in time, together with y and the weights' quadrature.

Pontryagin 1962; Chen et al. 2018, appendix B.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import torch

from odenet import ContinuousAdjoint, Stats
from odenet._solver import AnySolver
from odenet._step import Leaves as AnyLeaves
from odenet._step import add, combine, increment, positions
from odenet_torch._field import now
from odenet_torch._fixed import Run
from odenet_torch._state import Leaves
from odenet_torch.gradients._adjoint import Adjoint, Kept, Sums, standing, vjp, zeros

Between = Callable[[float, Leaves], Leaves]
"""y at a position of the step, given the slope at its end."""


class Costate(Adjoint):
    """The augmented system (y, a), backward from t1, by a solver and a step count of its own."""

    def __init__(self, method: ContinuousAdjoint, solver: AnySolver, stats: Stats) -> None:
        super().__init__(stats)
        self.method = method
        self.solver = solver

    def keeps(self, run: Run) -> Iterable[int]:
        """See `Adjoint.keeps`."""
        return range(run.grid.steps + 1) if self.method.interpolate else (*run.grid.kept, run.grid.steps)

    def back(self, run: Run, kept: Kept, gradients: dict[int, AnyLeaves], sums: Sums) -> Leaves:
        """See `Adjoint.back`."""
        solver, steps = self.method.backward(self.solver, run.grid.steps)
        backward = dataclasses.replace(run, solver=solver, grid=dataclasses.replace(run.grid, steps=steps))
        forward = run.grid.steps
        meets = {n * steps // forward: n for n in (*kept.states, *gradients)}
        y = kept.states[forward]
        a: AnyLeaves = gradients.get(forward) or zeros(y)
        for n in reversed(range(steps)):
            between = self.between(backward, n, kept.states) if self.method.interpolate else None
            y, a = self.step(backward, n, y, a, sums, between)
            if n in meets:
                y = kept.states.get(meets[n], y)
                a = add(a, gradients[meets[n]]) if meets[n] in gradients else a
        return a

    def between(self, run: Run, n: int, states: dict[int, Leaves]) -> Between:
        """y within step n of the forward solve: the kept states, and the cubic Hermite interpolant between them."""
        start, end, h = states[n], states[n + 1], run.grid.h
        first = run.slope(n, 0.0, start, rank=0) if self.method.between(self.solver) else None

        def at(position: float, last: Leaves) -> Leaves:
            p = position
            if first is None or p in (0.0, 1.0):
                return start if p == 0.0 else end
            rise = (1 + 2 * p) * (1 - p) ** 2, p * p * (3 - 2 * p)
            bend = h * p * (1 - p) ** 2, h * p * p * (p - 1)
            return combine((rise[0], start), (rise[1], end), (bend[0], first), (bend[1], last))

        return at

    @staticmethod
    def step(
        run: Run, n: int, y: Leaves, a: AnyLeaves, sums: Sums, between: Between | None
    ) -> tuple[Leaves, AnyLeaves]:
        """From the end of step n to its start. The quadrature touches only the layers that step n reads."""
        tableau, size, count = run.solver.tableau, run.grid.h, len(y)
        places = positions(tableau, reverse=True)
        ends: list[Leaves] = []  # the slope at the end of the step, which the first stage evaluates

        def stage(i: int, both: AnyLeaves) -> AnyLeaves:
            since = now()
            here = both[:count] if between is None or i == 0 else between(places[i], ends[0])
            at, explicit, stand = standing(run, n, here)
            with torch.enable_grad():
                slope = run.slope(n, places[i], at, stand, reverse=True, rank=i)
            part, weights, found = vjp(run, n, slope, at, explicit, stand, both[count:], since)
            if tableau.b[i]:
                sums.add(weights, found, factor=size * tableau.b[i])
            ends.append(tuple(k.detach() for k in slope))
            return (*ends[-1], *(-p for p in part))

        both = add((*y, *a), increment(tableau, stage, (*y, *a), -size))
        return both[:count], both[count:]
