"""Reversible solvers: undo each step, and take the VJPs where undoing it evaluates f anyway.

The solvers, and how they are undone, are `odenet._solvers.reversible`; here is only what evaluates f and takes its VJP.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from odenet import Problem, ReversibleSolver, Stats
from odenet.kit import Leaves as AnyLeaves
from odenet.kit import add
from odenet_torch.field.state import Leaves
from odenet_torch.field.witness import amplified, sampled_as
from odenet_torch.gradients.adjoint import Adjoint, SavedStates, mark, pulled, read, standing, vjp, zeros
from odenet_torch.gradients.certificate import Sketch, StepErrors, certify, relative, sized
from odenet_torch.gradients.known_ends import add_strayed
from odenet_torch.gradients.stages import Steps
from odenet_torch.gradients.sums import Sums
from odenet_torch.steps.fixed import Run, Solve, loop
from odenet_torch.steps.whole_numbers import of_samples, packed, unpacked, whole


class Retrace(Adjoint):
    """The backward pass by a reversible solver, from the pair that it carries at t1.

    Args:
        solver: the reversible solver.
        stats: of the solve.
    """

    def __init__(self, solver: ReversibleSolver, stats: Stats) -> None:
        super().__init__(stats)
        self.solver = solver
        self.kept: AnyLeaves | None = None

    def sketch(self, y0: Leaves) -> Sketch | None:
        """States that are rounded to a grid begin elsewhere."""
        return None if self.solver.rounds else Sketch(y0)

    back_by = 2
    """A solver of two steps carries the state before the last, and evaluates f for that before it."""

    def keeps(self, run: Run) -> Iterable[int]:
        return ()

    def forth(self, run: Run, y0: Leaves) -> tuple[dict[int, Leaves], tuple[Leaves, ...]]:
        """Behind the pair stands the side information of each step, in bytes."""
        solver, bits, at = self.solver, self.solver.side_bits, self.witness(run)
        sides: list[Leaves] = []

        def on_step(n: int, pair: tuple[AnyLeaves, ...]) -> None:
            if n == at:
                self.kept = solver.kept(pair)[0]
            if bits:
                sides.append(tuple(packed(leaf, bits) for leaf in solver.side(run, pair)))

        states, pair = loop(run, y0, self.keeps(run), on_step)
        return states, (*pair, *sides)

    def witnessed(self, run: Run, states: dict[int, Leaves], y0: Leaves) -> AnyLeaves | None:
        kept, self.kept = self.kept, None
        return kept

    def back(self, run: Run, saved: SavedStates, gradients: dict[int, AnyLeaves], sums: Sums) -> Steps:
        solver, h, steps, pair = self.solver, run.grid.size(0), run.grid.steps, saved.pair
        bits = solver.side_bits
        pair, sides = (pair[:-steps], pair[-steps:]) if bits else (pair, ())
        zero = zeros(pair[0])
        pull = StepVJPs(run, sums)
        g, errors, last = solver.cotangents(gradients.get(steps, zero), zero), StepErrors(run), pair[0]
        for n in reversed(range(steps)):
            if bits:
                pair = (
                    *pair,
                    tuple(unpacked(*numbers) for numbers in zip(sides[n], [bits] * len(zero), zero, strict=True)),
                )
            pair, g = solver.back(pull, n, h, steps, pair, g)
            if n in gradients:
                g = (add(g[0], gradients[n]), *g[1:])
            if n == self.witness(run) and saved.known is not None:
                amplifies = None if bits else functools.partial(self._amplified, pull, saved.pair, n, saved.known)
                add_strayed(errors, n, pair[0], saved.known, last, exact=True, amplifies=amplifies)
            yield n
        y, defect, gradient = solver.origin(pull, h, pair, g)
        errors.add(relative(defect, sized(y, saved.pair[0])), -1)
        if saved.sketch is not None:
            errors.add(saved.sketch.error(y, saved.pair[0]), -1)
        certify(self.stats, self.alarm, errors)
        return gradient

    def _amplified(self, pull: StepVJPs, last: tuple[AnyLeaves, ...], n: int, known: Leaves) -> list[float]:
        """By how much the state before step n may be off, as rebuilt from the pair at t1, by rounding."""
        run, none, count = pull.run, zeros(last[0]), len(last[0])
        values = _StepValues(run, pull.sums)

        def rebuilt(flat: Leaves) -> Leaves:
            pair: Any = tuple([flat[i : i + count] for i in range(0, len(flat), count)])
            g = self.solver.cotangents(none, none)
            for k in reversed(range(n, run.grid.steps)):
                pair, g = self.solver.back(values, k, run.grid.size(0), run.grid.steps, pair, g)
            return sampled_as(known, pair[0])

        return amplified(rebuilt, tuple([leaf for leaves in last for leaf in leaves]))


@dataclass(frozen=True)
class StepVJPs:
    """Evaluations with their VJPs (`odenet._solvers.reversible.Back`)."""

    run: Run
    sums: Sums

    def slope(self, n: int, position: float, y: Leaves, cotangent: AnyLeaves) -> tuple[Leaves, Leaves]:
        """f at a position of step n, and the VJP of it by the state."""
        direct = self.run.direct
        if direct is None or self.run.settled is None:
            return self._pull(n, y, cotangent, functools.partial(self.run.slope, n, position))
        at, weights = y[0].detach().requires_grad_(), read(self.run, n)  # one tensor, and blocks that are known
        with torch.enable_grad():
            value = direct.slope(n, position, at)
        if not value.requires_grad:
            return (value,), zeros(y)
        part, *by_weights = pulled(value, (at, *weights), cotangent[0])
        self.sums.add(weights, by_weights)
        return (value.detach(),), (torch.zeros_like(at) if part is None else part,)

    def increment(self, n: int, y: Leaves, cotangent: AnyLeaves, *, reverse: bool = False) -> tuple[Leaves, Leaves]:
        """The base solver's increment of step n, forward or reversed, and the VJP of it by the state."""
        return self._pull(n, y, cotangent, functools.partial(self.run.increment, n, reverse=reverse))

    def rounded(self, y: AnyLeaves, shift: float = 0.0) -> Leaves:
        """The whole numbers next to y + shift; they have no derivative."""
        return tuple(whole(leaf, shift) for leaf in y)

    def of_samples(self, number: Callable[[Any], Any], y: AnyLeaves) -> Leaves:
        """For each leaf the numbers of its samples."""
        return tuple(of_samples(number, leaf) for leaf in y)

    def _pull(self, n: int, y: Leaves, cotangent: AnyLeaves, evaluate: Callable[..., Leaves]) -> tuple[Leaves, Leaves]:
        since = mark(self.run)
        at, explicit, stand = standing(self.run, n, y)
        with torch.enable_grad():
            value = evaluate(at, stand=stand)
        part, weights, by_weights = vjp(read(self.run, n), n, value, at, explicit, stand, cotangent, since)
        self.sums.add(weights, by_weights)
        return tuple(leaf.detach() for leaf in value), part


class _StepValues(StepVJPs):
    """Evaluations alone, whatever the cotangents."""

    def slope(self, n: int, position: float, y: Leaves, cotangent: AnyLeaves) -> tuple[Leaves, Leaves]:
        return self.run.slope(n, position, y), tuple(cotangent)

    def increment(self, n: int, y: Leaves, cotangent: AnyLeaves, *, reverse: bool = False) -> tuple[Leaves, Leaves]:
        return self.run.increment(n, y, reverse=reverse), tuple(cotangent)


def fixed(problem: Problem, stats: Stats) -> Solve:
    """A solve in equal steps whose gradient is by the reversible solver."""
    assert isinstance(problem.solver, ReversibleSolver)
    return Retrace(problem.solver, stats).solve
