"""Reversible solvers: undo each step, and take the VJPs where undoing it evaluates f anyway.

The solvers, and how they are undone, are `odenet._solvers.reversible`; here is only what evaluates f and takes its VJP.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from odenet import Problem, ReversibleSolver, Stats
from odenet.kit import Alarm, alarm
from odenet_jax.field.state import Leaves
from odenet_jax.gradients.adjoint import (
    Adjoint,
    OutputCotangents,
    SavedStates,
    Sums,
    collect,
    descend,
    none_unread,
    vjp,
    zeros,
)
from odenet_jax.gradients.certificate import Sketch, certify, relative, sized
from odenet_jax.steps.fixed import Carried, Run, Solve, read
from odenet_jax.steps.whole_numbers import of_samples, packed, unpacked, whole


@dataclass(frozen=True)
class _SideInformation:
    """The side information of each step, in bytes (`odenet_jax.steps.fixed.LoopObserver`).

    Args:
        run: what is solved.
        solver: by which.
    """

    run: Run
    solver: ReversibleSolver
    from_end: ClassVar[bool] = True

    def start(self, y0: Leaves) -> None:
        """Nothing is carried from step to step."""
        return

    def step(self, along: None, before: Carried, after: Carried) -> tuple[None, Leaves]:
        """The side information of a step, packed into bytes."""
        return None, tuple(packed(leaf, self.solver.side_bits) for leaf in self.solver.side(self.run, before))


class Retrace(Adjoint):
    """The backward pass by a reversible solver, from the pair that it carries at t1.

    Args:
        solver: the reversible solver.
        stats: of the solve.
        alarm: see `certify`.
    """

    def __init__(self, solver: ReversibleSolver, stats: Stats, alarm: Alarm | None = None) -> None:
        super().__init__(stats, alarm)
        self.solver = solver

    def sketch(self, y0: Leaves) -> Sketch | None:
        """States that are rounded to a grid begin elsewhere."""
        return None if self.solver.rounds else Sketch(y0)

    def beside(self, run: Run) -> _SideInformation | None:
        return _SideInformation(run, self.solver) if self.solver.side_bits else None

    def back(
        self, run: Run, saved: SavedStates, gradients: OutputCotangents, sums: Sums
    ) -> tuple[Leaves, Sums, Array, Any]:
        solver, h, steps, bits = self.solver, run.grid.h, run.grid.steps, self.solver.side_bits
        assert saved.end is not None
        pair, _, sides = saved.end if bits else (saved.end, None, ())
        at_end = (*pair[0],)

        def step(n: Any, carry: Any) -> Any:
            pair, g, sums = carry
            pull = StepVJPs(run.at(n))
            if bits:
                side = zip(read(sides, n), pair[0], strict=True)
                pair = (*pair, tuple(unpacked(numbers, bits, leaf) for numbers, leaf in side))
            with jax.numpy_dtype_promotion("standard"):
                pair, g = solver.back(pull, n, h, steps, pair, g)
            return pair, (gradients.join(n, g[0]), *g[1:]), pull.collect(n, sums)

        end = gradients.end()
        carry = (pair, solver.cotangents(end, zeros(end)), sums)
        pair, g, sums = descend(step, steps, steps, carry)
        pull = StepVJPs(run.at(jnp.int32(0)))
        y, defect, gradient = solver.origin(pull, h, pair, g)
        residual = relative(defect, sized(y, at_end))
        if saved.sketch is not None:
            residual = jnp.maximum(residual, saved.sketch.error(y, at_end))
        residual = residual.astype(run.layout.time)
        sums = pull.collect(jnp.int32(0), sums)
        return gradient, sums, residual, (steps, (none_unread(run, residual), jnp.int32(-1)))

    def settled(self, gradients: Any, trouble: Any) -> Any:
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
        """f at a position of step n, and the VJP of it by the state."""
        return self._pull(y, cotangent, lambda run, y: run.slope(n, position, y))

    def increment(self, n: Any, y: Leaves, cotangent: Leaves, *, reverse: bool = False) -> tuple[Leaves, Leaves]:
        """The base solver's increment of step n, forward or reversed, and the VJP of it by the state."""
        return self._pull(y, cotangent, lambda run, y: run.increment(n, y, reverse=reverse))

    def rounded(self, y: Leaves, shift: float = 0.0) -> Leaves:
        """The whole numbers next to y + shift; they have no derivative."""
        return tuple(whole(leaf, shift) for leaf in y)

    def of_samples(self, number: Callable[[Any], Any], y: Leaves) -> Leaves:
        """For each leaf the numbers of its samples."""
        return tuple(of_samples(number, leaf) for leaf in y)

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
    """A solve in equal steps whose gradient is by the reversible solver."""
    assert isinstance(problem.solver, ReversibleSolver)
    return Retrace(problem.solver, stats, alarm(problem.field)).solve
