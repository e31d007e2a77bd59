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
from odenet.kit import WHOLE, Alarm, AnySolver, add, alarm, combine, hermite, increment, positions
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
from odenet_jax.gradients.certificate import Sketch, certify, on_top, worse
from odenet_jax.gradients.compared_steps import Changes, ComparedSteps
from odenet_jax.gradients.network_gradient import NetworkGradient
from odenet_jax.steps.fixed import LoopObserver, Run, Solve, read

Between = Callable[[float, Leaves], Leaves]
"""y at a position of the step, given the slope at its end."""


class Costate(Adjoint):
    """The augmented system (y, a), backward from t1, by a solver and a step count of its own."""

    def __init__(self, method: ContinuousAdjoint, solver: AnySolver, stats: Stats, alarm: Alarm | None) -> None:
        super().__init__(stats, alarm)
        self.method = method
        self.solver = solver

    def sketch(self, y0: Leaves) -> Sketch | None:
        return Sketch(y0)

    def keeps(self, run: Run) -> Sequence[int]:
        return range(run.grid.steps) if self.method.interpolate else ()

    def beside(self, run: Run) -> LoopObserver | None:
        return ComparedSteps(run, self.method).observer()

    def back(
        self, run: Run, saved: SavedStates, gradients: OutputCotangents, sums: Sums
    ) -> tuple[Leaves, Sums, Array, Any]:
        assert saved.end is not None
        solver, steps = self.method.backward(self.solver, run.grid.steps)
        backward = dataclasses.replace(run, solver=solver, grid=dataclasses.replace(run.grid, steps=steps))
        meeting = OutputCotangents(run.grid, gradients.gradients, steps)
        compared, furthest, nothing = ComparedSteps(run, self.method), None, sums
        end: Any = saved.end
        if compared.several:
            end, (_, _, place), _ = saved.end
            furthest = place // compared.steps

        def step(n: Any, carry: Any) -> tuple[Any, Changes]:
            y, a, sums = carry
            here, start, between = backward.at(n), None, None
            if self.method.interpolate:
                start = read(saved.states, n)
                between = self.between(here, n, start, y)
            d, by_reads = self.step(here, n, y, a, between)
            before, change, sums = add(y, d[: len(y)]), d[len(y) :], collect(here, n, sums, by_reads)
            # from a state that was kept y goes on, and not from what was integrated back, whose error grows on the way
            y = start or meeting.known(n, saved.ys, before)
            return (y, meeting.join(n, add(a, change)), sums), (change, by_reads)

        def alone(n: Any, carry: Any) -> Any:
            return step(n, carry)[0]

        def segment(k: Any, carry: Any) -> Any:
            carry, seen = carry
            a, count = carry[1], compared.back
            if count == 1:
                carry, changes = step(k, carry)
            else:

                def within(n: Any, both: Any) -> Any:
                    carry, changes = step(n, both[0])
                    return carry, jax.tree.map(jnp.add, both[1], changes)

                carry, changes = descend(within, (k + 1) * count, count, (carry, compared.none(a)))
            return carry, compared.look(k, furthest, seen, carry[0], a, changes)

        (last,) = end
        carry, whole = (last, meeting.end(), sums), run.field.compared_whole(last)
        if compared.steps and not whole:
            segments = steps // compared.back
            (y, a, sums), (worst, size) = descend(segment, segments, segments, (carry, compared.nothing()))
        else:
            y, a, sums = descend(alone, steps, steps, carry)
            worst, size = compared.nothing()[0], compared.size(a)
        if whole:
            beside = NetworkGradient.of_equal_steps(run, self.stats, saved, last, gradients, nothing)
            worst = worse(worst, beside.certificate(a, sums), WHOLE)
        elif saved.sketch is not None and not self.method.interpolate:
            # the steps are compared at states as they were rebuilt: what these are off by is no part of that
            worst = on_top(worst, compared.drift(saved.sketch, y, last, size), -1)
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
