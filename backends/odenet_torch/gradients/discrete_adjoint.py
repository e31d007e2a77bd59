"""The discrete adjoint: rebuild y[n] from y[n+1], and take step n's exact VJP at the rebuilt point.

Sander, Ablin, Peyre 2022, section 4.1; the correction is this library's (docs/mathematics.md).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from odenet import DiscreteAdjoint, Problem, Stats
from odenet.kit import DRIFTED, WHOLE, add, combine, subtract
from odenet.kit import Leaves as AnyLeaves
from odenet_torch.field.jumps import against, divides
from odenet_torch.field.kinks import KINKED, perhaps
from odenet_torch.field.state import Leaves
from odenet_torch.gradients import accepted_steps
from odenet_torch.gradients.adjoint import Adjoint, SavedStates, mark, pulled, read, standing, vjp, zeros
from odenet_torch.gradients.certificate import (
    Norms,
    Sketch,
    StepErrors,
    anywhere,
    certify,
    jumping,
    norms,
    relative,
    sized,
)
from odenet_torch.gradients.known_ends import add_strayed
from odenet_torch.gradients.stages import Steps
from odenet_torch.gradients.sums import Sums
from odenet_torch.steps.adaptive import Back
from odenet_torch.steps.fixed import Run, Solve


class Path:
    """What all steps together are off by, beside what they add, entry by entry.

    Where steps share their weights the gradient is a sum over them, in which one that adds little counts for little,
    however large its error is beside that. Layers have gradients of their own, and the worst one counts.
    """

    def __init__(self) -> None:
        self.off: AnyLeaves = ()
        self.all: AnyLeaves = ()

    def add(self, defect: AnyLeaves, reference: AnyLeaves) -> None:
        """One more step: how far it is off, and what that is held against."""
        off = tuple(leaf.abs() for leaf in defect)
        self.off = add(self.off, off) if self.off else off
        self.all = add(self.all, reference) if self.all else reference

    def error(self, y: AnyLeaves, drift: Tensor | None) -> Tensor:
        """Of all steps, a scalar.

        Args:
            y: the rebuilt state at t0.
            drift: its relative error, where that is not among those of the steps. It has grown on the way, where states
                are not known: it counts twice.
        """
        off = (
            self.off
            if drift is None
            else tuple(a + DRIFTED * drift * b.abs() for a, b in zip(self.off, y, strict=True))
        )
        return relative(off, self.all)


def counted_together(run: Run) -> bool:
    """Whether the steps of a field that jumps count together. Where it divides by what may vanish, one of them may be
    off by any amount."""
    return run.field.shared and not jumping(run, divides)


class LoneStep(NamedTuple):
    """What the backward pass of one step alone comes to know.

    Args:
        g: the gradient by the state before it.
        y: that state, as it was rebuilt.
        norms: of which its error is made, see `certificate.joined`.
    """

    g: AnyLeaves
    y: Leaves
    norms: Norms


class Reversal(Adjoint):
    """Backward from y[N], a step at a time."""

    def __init__(self, method: DiscreteAdjoint, stats: Stats) -> None:
        super().__init__(stats)
        self.method = method

    back_by = 1
    shares: list[Tensor] | None = None
    """Of the last backward pass, see `StepErrors.shares`."""

    def keeps(self, run: Run) -> Iterable[int]:
        return (*run.grid.kept, run.grid.steps, *self.method.anchored(run.grid.steps))

    def back(self, run: Run, saved: SavedStates, gradients: dict[int, AnyLeaves], sums: Sums) -> Steps:
        steps, method = run.grid.steps, self.method
        y = saved.states[steps]
        errors = StepErrors(run)
        g: AnyLeaves = gradients.get(steps) or zeros(y)
        increments: list[Leaves] = []  # increments, the latest first
        d = y
        known = run.settled is not None and run.settled.once(steps)
        jumps = jumping(run)  # their errors are held against increments
        path = Path() if jumps and counted_together(run) else None
        if not jumps and (KINKED or run.field.seen(perhaps)) and anywhere(run, perhaps):
            errors.shares = self.shares = []
        for n in reversed(range(steps)):
            z = saved.states[n] if n in saved.states else self.predict(run, n, y, increments)
            d, g = (self.known_step if known else self.step)(run, n, z, g, sums)
            before = subtract(y, d)
            # its own increment taken back from a rebuilt y[n+1] misses a y[n] that is known by what y[n+1] is off
            reference = sized(z, y) if n in saved.states else y
            if n in jumps:
                reference = tuple(map(against, d, reference))
            if path is None:
                errors.add_difference(before, z, reference, n)
            else:
                path.add(subtract(before, z), reference)
            if n == steps - 1 and saved.known is not None:
                add_strayed(errors, n, before, saved.known, y, subtract(before, z))
            y = before if method.correct and n not in saved.states else z
            if n in gradients:
                g = add(g, gradients[n])
            if method.extrapolates:
                increments = [d, *increments[: method.order - 1]]
            yield n
        drift = None if saved.sketch is None else saved.sketch.error(y, saved.states[steps])
        if path is not None:
            errors.add(path.error(y, drift), WHOLE)
        elif drift is not None:
            errors.add(drift * relative(y, tuple(map(against, d, y))) if jumps else drift, -1)
        worst = certify(self.stats, self.alarm, errors)
        if method.tolerance is not None:
            if not float(worst) <= method.tolerance:
                raise self.method.grown(f"{float(worst):.1e}")
        return g

    @staticmethod
    def step(run: Run, n: int, z: Leaves, g: AnyLeaves, sums: Sums) -> tuple[Leaves, Leaves]:
        """The increment of step n at z, and the cotangent at its start."""
        since = mark(run)
        at, explicit, stand = standing(run, n, z)
        with torch.enable_grad():
            d, outputs, cotangents = run.piece(n, at, stand, g)
        part, weights, by_weights = vjp(read(run, n), n, outputs, at, explicit, stand, cotangents, since)
        sums.add(weights, by_weights)
        return tuple(leaf.detach() for leaf in d), add(g, part)

    @staticmethod
    def known_step(run: Run, n: int, z: Leaves, g: AnyLeaves, sums: Sums) -> tuple[Leaves, Leaves]:
        """The same where the state is one tensor, and the step reads parameters of its own alone."""
        at, weights, direct = z[0].detach().requires_grad_(), read(run, n), run.direct
        assert direct is not None
        single, h = direct.single, run.grid.size(n)  # of one stage, whose factor h is no node of the graph
        with torch.enable_grad():
            d = direct.slope(n, direct.places[0][0], at) if single else run.increment(n, (at,))[0]
        single = single and h != 1.0  # as of a converted layer
        value = h * d.detach() if single else d.detach()
        if not d.requires_grad:  # the block depends on nothing
            return (value,), tuple(g)
        part, *by_weights = pulled(d, (at, *weights), h * g[0] if single else g[0])
        sums.by_tensor.update([(id(x), k) for x, k in zip(weights, by_weights, strict=True) if k is not None])
        return (value,), (g[0] if part is None else g[0] + part,)

    def sketch(self, y0: Leaves) -> Sketch | None:
        return Sketch(y0)

    def keeps_accepted(self, n: int) -> bool:
        return self.method.anchors is not None and n > 0 and n % self.method.anchors == 0

    def predict(self, run: Run, n: int, y: Leaves, increments: list[Leaves]) -> Leaves:
        """z, near the y[n] with `y[n] + D_n(y[n]) = y`."""
        z = predicted(self.method, run, n, y, increments)
        return z if self.method.tolerance is None else self.settle(run, n, y, z, self.method.tolerance)

    def settle(self, run: Run, n: int, y: Leaves, z: Leaves, tolerance: float) -> Leaves:
        """z with a residual of at most `tolerance`.

        Raises:
            GradientError: it is not reached.
        """
        residuals = []
        for _ in range(self.method.limit):
            after = subtract(y, run.increment(n, z))
            residuals.append(float(relative(subtract(after, z), y)))
            z = after
            if residuals[-1] <= tolerance:
                return z
        raise self.method.stuck(f"step {n}", f"went from {residuals[0]:.1e} to {residuals[-1]:.1e}")


def alone(method: DiscreteAdjoint, run: Run, start: Leaves | None, y: Leaves, g: AnyLeaves, sums: Sums) -> LoneStep:
    """The backward pass of one step that is a solve of its own, as a converted layer is, whose state is one tensor and
    that reads parameters of its own alone: its error is left to who adds up those of many.

    Args:
        method: without a tolerance.
        run: that solve.
        start: the state before the step, where it was kept.
        y, g: the state after it, and the gradient by that.
        sums: for gradients of weights.
    """
    z = predicted(method, run, 0, y, []) if start is None else start
    d, g = Reversal.known_step(run, 0, z, g, sums)
    before = subtract(y, d)
    reference = y if start is None else sized(z, y)
    if jumping(run):
        reference = tuple(map(against, d, reference))
    rebuilt = before if method.correct and start is None else z
    return LoneStep(g, rebuilt, norms(subtract(before, z), reference))


def predicted(method: DiscreteAdjoint, f: Any, n: int, y: Leaves, seen: Sequence[Leaves]) -> Leaves:
    """z as a method predicts it, from y after step n and the increments of the steps after that; f has `increment`."""
    if method.extrapolates and len(seen) == method.order:
        z = subtract(y, combine(*zip(method.continued, seen, strict=True)))
        more = method.iterations - 1
    else:
        z = f.after(n, y, reverse=True)
        more = (method.startup if method.extrapolates else method.iterations) - 1
    for _ in range(more):
        z = subtract(y, f.increment(n, z))
    return z


def fixed(problem: Problem, stats: Stats) -> Solve:
    """A solve in equal steps whose gradient is by the discrete adjoint."""
    assert isinstance(problem.gradient, DiscreteAdjoint)
    return Reversal(problem.gradient, stats).solve


def adaptive(problem: Problem, stats: Stats) -> Back:
    """The backward pass of the discrete adjoint over accepted steps."""
    assert isinstance(problem.gradient, DiscreteAdjoint)
    return functools.partial(accepted_steps.solve, Reversal(problem.gradient, stats))
