"""The continuous adjoint: solve `a' = -(df/dy)^T a` backward in time, together with y and the weights' quadrature.

Pontryagin 1962; Chen et al. 2018, appendix B.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from odenet import ContinuousAdjoint, Problem, Span, Stats
from odenet.kit import Alarm, AnySolver, add, alarm, combine, hermite, increment, positions
from odenet_jax.field.state import Leaves
from odenet_jax.gradients.accepted_steps import BackwardPass
from odenet_jax.gradients.adaptive_costate import AdaptiveCostate
from odenet_jax.gradients.adjoint import (
    Adjoint,
    OutputCotangents,
    SavedStates,
    Sums,
    collect,
    descend,
    none_unread,
    vjp,
)
from odenet_jax.gradients.certificate import Sketch, certify, worse
from odenet_jax.gradients.first_step import FirstStep
from odenet_jax.steps.fixed import Run, Solve, read

Between = Callable[[float, Leaves], Leaves]
"""y at a position of the step, given the slope at its end."""


class Costate(Adjoint):
    """The augmented system (y, a), backward from t1, by a solver and a step count of its own."""

    def __init__(self, method: ContinuousAdjoint, solver: AnySolver, stats: Stats, alarm: Alarm | None) -> None:
        super().__init__(stats, alarm)
        self.method = method
        self.solver = solver

    def sketch(self, y0: Leaves) -> Sketch | None:
        return None if self.method.interpolate else Sketch(y0)

    def keeps(self, run: Run) -> Sequence[int]:
        return range(run.grid.steps) if self.method.interpolate else ()

    def back(
        self, run: Run, saved: SavedStates, gradients: OutputCotangents, sums: Sums
    ) -> tuple[Leaves, Sums, Array, Any]:
        assert saved.end is not None
        solver, steps = self.method.backward(self.solver, run.grid.steps)
        backward = dataclasses.replace(run, solver=solver, grid=dataclasses.replace(run.grid, steps=steps))
        meeting = OutputCotangents(run.grid, gradients.gradients, steps)

        first = FirstStep(run, self.method)

        def step(n: Any, carry: Any) -> Any:
            y, a, sums, changes = carry
            here, start, between = backward.at(n), None, None
            if self.method.interpolate:
                start = read(saved.states, n)
                between = self.between(here, n, start, y)
            d, by_reads = self.step(here, n, y, a, between)
            before, change, sums = add(y, d[: len(y)]), d[len(y) :], collect(here, n, sums, by_reads)
            if changes is not None:
                changes = jax.tree.map(jnp.add, changes, (change, by_reads))
            # from a state that was kept y goes on, and not from what was integrated back, whose error grows on the way
            y = start or meeting.known(n, saved.ys, before)
            return y, meeting.join(n, add(a, change)), sums, changes

        (y,) = saved.end
        # the last steps apart, so that no other one carries what is compared
        y, a, sums, _ = descend(step, steps, steps - first.back, (y, meeting.end(), sums, None))
        arrived = a
        y, a, sums, changes = descend(step, first.back, first.back, (y, a, sums, first.none(y)))
        error = first.certificate(y, arrived, changes) if first.steps else jnp.zeros((), run.layout.time)
        worst = error, jnp.int32(0)
        if saved.sketch is not None:
            worst = worse(worst, first.drift(saved.sketch, y, saved.end[0], arrived), -1)
        residual, n = worst
        return a, sums, residual, (run.grid.steps, (none_unread(run, residual), n))

    def settled(self, gradients: Any, trouble: Any) -> Any:
        steps, worst = trouble
        return certify(self.stats, self.alarm, steps, worst, gradients, "first step")

    def between(self, run: Run, n: Any, start: Leaves, end: Leaves) -> Between:
        """y within step n of the forward solve: the kept states, and the cubic Hermite interpolant between them."""
        h = run.grid.h
        first = run.slope(n, 0.0, start, rank=0) if self.method.between(self.solver) else None

        def at(position: float, last: Leaves) -> Leaves:
            if first is None or position in (0.0, 1.0):
                return start if position == 0.0 else end
            return combine(*zip(hermite(position, h), (start, end, first, last), strict=True))

        return at

    @staticmethod
    def step(run: Run, n: Any, y: Leaves, a: Leaves, between: Between | None) -> tuple[Leaves, Any]:
        """How y and a change from the end of step n to its start, and the gradients of what it reads.

        The quadrature touches only the layers that step n reads.
        """
        tableau, size, count = run.solver.increments, run.grid.h, len(y)
        places = positions(tableau, reverse=True)
        ends: list[Leaves] = []  # the slope at the end of the step, which the first stage evaluates
        quadrature: list[Any] = []

        def stage(i: int, both: Leaves) -> Leaves:
            here = both[:count] if between is None or i == 0 else between(places[i], ends[0])
            slope, pull = vjp(run, lambda run, y: run.slope(n, places[i], y, reverse=True, rank=i), here)
            part, *integral = pull(both[count:])
            if tableau.b[i]:
                quadrature.append(jax.tree.map(lambda leaf: size * tableau.b[i] * leaf, integral))
            ends.append(slope)
            return (*slope, *(-p for p in part))

        d = increment(tableau, stage, (*y, *a), -size)
        return d, jax.tree.map(lambda *terms: sum(terms), *quadrature)


def fixed(problem: Problem, stats: Stats) -> Solve:
    """A solve in equal steps whose gradient is by the continuous adjoint."""
    assert isinstance(problem.gradient, ContinuousAdjoint)
    return Costate(problem.gradient, problem.solver, stats, alarm(problem.field)).solve


def adaptive(problem: Problem, stats: Stats) -> BackwardPass:
    """The backward pass of the continuous adjoint over accepted steps."""
    assert isinstance(problem.gradient, ContinuousAdjoint)
    assert isinstance(problem.grid, Span)
    return AdaptiveCostate(problem.gradient, problem.solver, problem.grid.control, stats, alarm(problem.field))
