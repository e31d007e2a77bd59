"""The continuous adjoint: solve `a' = -(df/dy)^T a` backward in time, together with y and the weights' quadrature.

Pontryagin 1962; Chen et al. 2018, appendix B.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from odenet import ContinuousAdjoint, Solver
from odenet._step import add, increment, positions
from odenet_jax._field import Slot, Weights
from odenet_jax._fixed import Run
from odenet_jax._state import Leaves
from odenet_jax.gradients._adjoint import Adjoint, Carry, collect, differentiable


class Costate(Adjoint):
    """The augmented system (y, a), backward from t1, by a solver and a step count of its own."""

    def __init__(self, method: ContinuousAdjoint, solver: Solver) -> None:
        self.method = method
        self.solver = solver

    def backward(self, run: Run) -> Run:
        """See `Adjoint.backward`."""
        solver, steps = self.method.backward(self.solver, run.grid.steps)
        return dataclasses.replace(run, tableau=solver.tableau, grid=dataclasses.replace(run.grid, steps=steps))

    def step(self, run: Run, n: Any, carry: Carry, slot: Slot | None, shared: Weights, closed: Any) -> Carry:
        """See `Adjoint.step`. The quadrature touches only the layers that step n reads."""
        y, a, sums, residual = carry
        tableau, size, count = run.tableau, run.grid.h, len(y)
        places = positions(tableau, reverse=True)
        weights, read = differentiable(slot, shared)
        quadrature: list[Any] = []

        def stage(i: int, both: Leaves) -> Leaves:
            def slope(y: Leaves, w: Any, closed: Any) -> Leaves:
                return run.slope(n, places[i], y, *read(w), closed)

            k, pull = jax.vjp(slope, both[:count], weights, closed)
            part, *found = pull(both[count:])
            if tableau.b[i]:
                quadrature.append(jax.tree.map(lambda leaf: size * tableau.b[i] * leaf, found))
            return (*k, *(-p for p in part))

        both = add((*y, *a), increment(tableau, stage, (*y, *a), -size))
        found, of_closed = jax.tree.map(lambda *each: sum(each), *quadrature)
        sums = collect(run, n, sums, found, of_closed)
        return both[:count], both[count:], sums, residual
