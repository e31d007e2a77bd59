"""Reversible solvers: undo each step, and take the VJPs where undoing it evaluates f anyway.

The solvers, and how they are undone, are `odenet._solvers.reversible`; here is only what evaluates f and takes its VJP.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from odenet import Problem, ReversibleSolver, Stats
from odenet.kit import alarm
from odenet_jax.field.state import Leaves
from odenet_jax.gradients.adjoint import Adjoint, OutputCotangents, SavedStates, Sums, collect, descend, vjp, zeros
from odenet_jax.gradients.certificate import certify, relative
from odenet_jax.steps.fixed import Run, Solve


class Retrace(Adjoint):
    """The way back by a reversible solver, from the pair that it carries at t1."""

    def back(
        self, run: Run, saved: SavedStates, gradients: OutputCotangents, sums: Sums
    ) -> tuple[Leaves, Sums, Array, Any]:
        """See `Adjoint.back`."""
        solver, h, steps = run.solver, run.grid.h, run.grid.steps
        assert isinstance(solver, ReversibleSolver)
        assert saved.end is not None

        def step(n: Any, carry: Any) -> Any:
            pair, g, sums = carry
            pull = StepVJPs(run.at(n))
            pair, g = solver.back(pull, n, h, steps, pair, g)
            return pair, (gradients.join(n, g[0]), *g[1:]), pull.collect(n, sums)

        end = gradients.end()
        carry = (saved.end, solver.cotangents(end, zeros(end)), sums)
        pair, g, sums = descend(step, steps, steps, carry)
        pull = StepVJPs(run.at(jnp.int32(0)))
        y, defect, gradient = solver.origin(pull, h, pair, g)
        residual = relative(defect, y).astype(run.layout.time)
        sums = pull.collect(jnp.int32(0), sums)
        return gradient, sums, residual, (steps, (residual, jnp.int32(-1)))

    def settled(self, gradients: Any, trouble: Any) -> Any:
        """See `Adjoint.settled`."""
        steps, worst = trouble
        return certify(self.stats, self.alarm, steps, worst, gradients)


@dataclass(frozen=True)
class StepVJPs:
    """Evaluations in one step with their VJPs (`odenet._solvers.reversible.Back`).

    Args:
        run: at that step.
        gradients: gradients of what the step reads, one for each evaluation.
    """

    run: Run
    gradients: list[Any] = field(default_factory=list)

    def slope(self, n: Any, position: float, y: Leaves, cotangent: Leaves) -> tuple[Leaves, Leaves]:
        """See `Back`."""
        return self._pull(y, cotangent, lambda run, y: run.slope(n, position, y))

    def increment(self, n: Any, y: Leaves, cotangent: Leaves, *, reverse: bool = False) -> tuple[Leaves, Leaves]:
        """See `Back`."""
        return self._pull(y, cotangent, lambda run, y: run.increment(n, y, reverse=reverse))

    def collect(self, n: Any, sums: Sums) -> Sums:
        """The sums with what was found added."""
        return (
            collect(self.run, n, sums, jax.tree.map(lambda *terms: sum(terms), *self.gradients))
            if self.gradients
            else sums
        )

    def _pull(self, y: Leaves, cotangent: Leaves, evaluate: Callable[[Run, Leaves], Leaves]) -> tuple[Leaves, Leaves]:
        value, pull = vjp(self.run, evaluate, y)
        part, *by_reads = pull(cotangent)
        self.gradients.append(by_reads)
        return value, part


def fixed(problem: Problem, stats: Stats) -> Solve:
    """See `odenet_jax.gradients.solve`."""
    return Retrace(stats, alarm(problem.field)).solve
