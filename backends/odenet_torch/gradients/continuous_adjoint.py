"""The continuous adjoint: solve `a' = -(df/dy)^T a` backward in time, together with y and the weights' quadrature.

Pontryagin 1962; Chen et al. 2018, appendix B.

Over 250 lines: the costate of equal and of accepted steps, which differ in how steps are found alone.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from odenet import ContinuousAdjoint, GradientError, PIDController, Problem, Solver, Stats
from odenet.kit import DOUBTFUL, WHOLE, AnySolver, add, combine, hermite, increment, local_error, positions, subtract
from odenet.kit import Leaves as AnyLeaves
from odenet_torch.field.field import now
from odenet_torch.field.state import Layout, Leaves
from odenet_torch.field.witness import amplified, looks, missed, require_reached, sampled_as, unlike
from odenet_torch.gradients import accepted_steps
from odenet_torch.gradients.adjoint import (
    Adjoint,
    SavedStates,
    refuse_batches,
    require_finite,
    standing,
    vjp,
    zeros,
)
from odenet_torch.gradients.certificate import Sketch, StepErrors, certify, compared_whole
from odenet_torch.gradients.compared_steps import ComparedSteps, LargestMove, kinds
from odenet_torch.gradients.known_ends import add_strayed, allowed, name
from odenet_torch.gradients.network_gradient import NetworkGradient
from odenet_torch.gradients.stages import Steps
from odenet_torch.gradients.sums import Parts, Sums
from odenet_torch.gradients.way_back import Derivatives, WayBack, least, root_mean_square
from odenet_torch.steps.accepted import AcceptedField
from odenet_torch.steps.adaptive import Back, ForwardSolve
from odenet_torch.steps.fixed import Run, Solve, loop
from odenet_torch.steps.size_control import AcceptedStep, AdaptiveLoop
from odenet_torch.steps.tolerance import LEAST, Tolerance, allowances, over
from odenet_torch.steps.weighted_sum import plus

_FINE = 3
"""Of a method whose steps back miss less than a tenth of what the step forward adds, where those steps are of use."""
_WHOLE = 1 << 11
"""Entries: so small a state, of up to 16 KiB, is kept whole to know f by."""
_MANY = 32
"""Steps, of which one more forward takes less than a hundredth of a pass."""
Between = Callable[[float, Leaves], Leaves]
"""y at a position of the step, given the slope at its end."""


class Costate(Adjoint):
    """The augmented system (y, a), backward from t1, by a solver and a step count of its own."""

    by_steps = False
    back_by = 1
    known_whole = _WHOLE

    def __init__(self, method: ContinuousAdjoint, solver: AnySolver, stats: Stats) -> None:
        super().__init__(stats)
        self.method = method
        self.solver = solver
        self.moves: LargestMove | None = None

    def keeps(self, run: Run) -> Iterable[int]:
        return range(run.grid.steps + 1) if self.method.interpolate else (*run.grid.kept, run.grid.steps)

    def sketch(self, y0: Leaves) -> Sketch | None:
        return Sketch(y0)

    def by_layers(self, run: Run) -> bool:
        return self.method.segment(run.grid.steps) == (1, 1)

    def forth(self, run: Run, y0: Leaves) -> tuple[dict[int, Leaves], tuple[Leaves, ...]]:
        if self.method.compared(run.grid.steps) < 2 or (first := self.always(run)) == run.grid.steps:
            return super().forth(run, y0)
        self.moves = LargestMove(run, y0, first)
        return loop(run, y0, self.kept_states(run), self.moves.add)

    def always(self, run: Run) -> int:
        """How many steps from t0 on are compared whatever the state does: the first one of each kind, or a segment."""
        return kinds(run) if self.by_layers(run) else self.method.segment(run.grid.steps)[0]

    def back(self, run: Run, saved: SavedStates, gradients: dict[int, AnyLeaves], sums: Sums) -> Steps:
        solver, steps = self.method.backward(self.solver, run.grid.steps)
        backward = dataclasses.replace(run, solver=solver, grid=dataclasses.replace(run.grid, steps=steps))
        forward = run.grid.steps
        meets = {n * steps // forward: n for n in (*saved.states, *gradients)}
        y = saved.states[forward]
        a: AnyLeaves = gradients.get(forward) or zeros(y)
        # where a state was kept, y goes on from it, and not from what was integrated back, whose error grows on the
        # way; the costate takes up there what the loss reads of that state
        errors, (length, count) = StepErrors(run), self.method.segment(forward)
        segments = {n // length for n in range(self.always(run))} if length else set[int]()
        if self.moves is not None:
            segments |= {n // length for n in self.moves.step()}
        compared = ComparedSteps(run, self.method, sums, a)
        beside = NetworkGradient(run, self.stats, saved, gradients, sums) if compared_whole(run) else None
        segments = segments if beside is None else set[int]()
        running, end = False, y
        for n in reversed(range(steps)):
            if count and n % count == count - 1 and (k := n // count) in segments:
                compared, running = ComparedSteps(run, self.method, sums, a, k), True
            between = self.between(backward, n, saved.states) if self.method.interpolate else None
            d = self.step(backward, n, y, a, compared if running else sums, between)
            y, a = add(y, d[: len(y)]), add(a, d[len(y) :])
            if running:
                compared.changed(d[len(y) :])
            if saved.known is not None and n * forward == (forward - 1) * steps:
                self.add_strayed(errors, run, y, saved.known, end, solver)
            if n in meets:
                y = saved.states.get(meets[n], y)
                a = add(a, gradients[meets[n]]) if meets[n] in gradients else a
            if running and n % count == 0:
                errors.add(compared.certificate(y), compared.first)
                errors.worst()  # the next one is not that of the step below
                running = False
            if beside is not None:
                beside.down_to(n * forward // steps)
            yield n * forward // steps
        if beside is not None:
            errors.add(beside.certificate(a), WHOLE)
        elif saved.sketch is not None:
            compared = compared if length else ComparedSteps(run, self.method, sums, a)
            # the steps are compared at states as they were rebuilt: what these are off by is no part of that
            errors.on_top(compared.drift(saved.sketch, y, saved.states[forward]), -1)
        certify(self.stats, self.alarm, errors, "first step")
        return a

    @staticmethod
    def add_strayed(errors: StepErrors, run: Run, y: Leaves, known: Leaves, end: Leaves, solver: Solver) -> None:
        """Hold the state before the last step, as it was integrated back, against what is known of it.

        What the integration misses by itself is not told apart from another f until that is asked for: if the whole
        state is known, the step forward from there ends where it did, or f is another one; of a sample, a step forward
        from the rebuilt state tells how much an integration of low order misses.

        Raises:
            GradientError: the step forward from the known state ends elsewhere.
        """
        n, order = run.grid.steps - 1, min(run.solver.order, solver.order)

        def defect() -> AnyLeaves:
            return subtract(end, run.after(n, y))

        if not (looks(known) and all(leaf.shape == kept.shape for leaf, kept in zip(y, known, strict=True))):
            add_strayed(errors, n, y, known, end, defect if order < _FINE else None, of_rebuilt=True)
            return
        # a step back by Euler's method misses by more than a changed f may: of few steps one more is no small part
        part = missed(y, known, end, DOUBTFUL if order == 1 and n < _MANY else allowed(run))
        if not part:
            return
        require_reached(run.after(n, known), end, known, name(run, n), allowed(run))
        if order >= _FINE and DOUBTFUL < part < math.inf:
            errors.add(torch.tensor(part, dtype=errors.pair.dtype), n)

    def between(self, run: Run, n: int, states: dict[int, Leaves]) -> Between:
        """y within step n of the forward solve: the kept states, and the cubic Hermite interpolant between them."""
        start, end, h = states[n], states[n + 1], run.grid.size(n)
        first = run.slope(n, 0.0, start, rank=0) if self.method.between(self.solver) else None

        def at(position: float, last: Leaves) -> Leaves:
            if first is None or position in (0.0, 1.0):
                return start if position == 0.0 else end
            return combine(*zip(hermite(position, h), (start, end, first, last), strict=True))

        return at

    @staticmethod
    def step(
        run: Run, n: int, y: Leaves, a: AnyLeaves, sums: Sums | ComparedSteps, between: Between | None
    ) -> AnyLeaves:
        """How y and a change from the end of step n to its start. The quadrature touches only the layers that step n
        reads."""
        tableau, size, count = run.solver.increments, run.grid.size(n), len(y)
        places = positions(tableau, reverse=True)
        ends: list[Leaves] = []  # the slope at the end of the step, which the first stage evaluates

        def stage(i: int, both: AnyLeaves) -> AnyLeaves:
            since = now()
            here = both[:count] if between is None or i == 0 else between(places[i], ends[0])
            at, explicit, stand = standing(run, n, here)
            with torch.enable_grad():
                slope = run.slope(n, places[i], at, stand, reverse=True, rank=i)
            part, weights, by_weights = vjp(
                run.field.read(n, run.grid.steps), n, slope, at, explicit, stand, both[count:], since
            )
            # the quadrature of -a^T df/dw over steps of -h: the two signs cancel
            if tableau.b[i]:
                sums.add(weights, by_weights, factor=size * tableau.b[i])
            ends.append(tuple(k.detach() for k in slope))
            return (*ends[-1], *(-p for p in part))

        return increment(tableau, stage, (*y, *a), -size, plus)


class AdaptiveCostate(Costate):
    """The same with steps of its own that follow the error, anew from each output.

    The gradient of the weights is a quadrature: it is added up where a step is accepted, and no part of the state.
    """

    reads_outputs = True
    proposed: float | None = None
    end: Leaves | None = None
    """The state where the backward pass began."""
    slope: Leaves | None = None
    """A sample of that at t1 in the forward pass, where that has evaluated it in its last step."""
    changed: Tensor | None = None
    """By which part of it the slope there is another one now."""

    def known_of(self, last: AcceptedStep) -> Leaves | None:
        return last.slopes[-1] if last.loop.tableau.fsal else None

    def back_accepted(
        self, forward: ForwardSolve, states: dict[int, Leaves], outputs: list[Leaves], rows: list[Leaves], sums: Sums
    ) -> Leaves:
        """Gradient with respect to y0, from the outputs and the gradients of the loss with respect to them."""
        refuse_batches((leaf for row in rows for leaf in row), f"gradient={self.stats.gradient!r}")
        y, t = states[forward.grid.steps], forward.grid.nodes[-1]
        a: AnyLeaves = zeros(y)
        self.proposed = self.end = self.changed = None
        solver, _ = self.method.backward(self.solver, 1)
        self.control, device = self._control(forward.span.control), forward.run.layout.device
        self.way_back = WayBack(least(self.control.rtol), device, local_error(solver.tableau), self.by_y0)
        for time, output, row in reversed(list(zip(forward.ts, outputs, rows, strict=True))):
            if not all(bool(torch.isfinite(leaf).all()) for leaf in output):
                continue
            if time != t and any(bool(leaf.any()) for leaf in a):
                a = self.between_outputs(forward, (t, y), (time, output), a, sums)
            y, t, a = output, time, add(a, row)
        a = self.between_outputs(forward, (t, y), (forward.t0, states[0]), a, sums)
        errors, run = StepErrors(forward.run), dataclasses.replace(forward.run, again=True)
        if compared_whole(run):  # what is known at a few states tells nothing of all
            met, inside = accepted_steps.joined(forward, rows)
            run = dataclasses.replace(run, inside=inside)
            beside = NetworkGradient(run, self.stats, SavedStates(states, ()), met, sums)
            beside.down_to(0)
            errors.add(beside.certificate(a, by_y0=self.by_y0), WHOLE)
        else:
            errors.add(self.way_back.certificate(sums.totals()), -1)
        if self.changed is not None:
            errors.add(torch.where(self.changed > DOUBTFUL, self.changed, 0.0), len(forward.grid.nodes) - 2)
        certify(self.stats, self.alarm, errors, "way back")
        return a

    def _control(self, forward: PIDController) -> PIDController:
        """That of the backward steps, whose first size is not that of the forward steps."""
        method = self.method
        tolerances = {name: getattr(method, name) for name in ("rtol", "atol") if getattr(method, name) is not None}
        if forward.first_step is None and not tolerances:
            return forward
        return dataclasses.replace(forward, first_step=None, **tolerances)

    def between_outputs(
        self, forward: ForwardSolve, start: tuple[float, Leaves], known: tuple[float, Leaves], a: AnyLeaves, sums: Sums
    ) -> AnyLeaves:
        """The costate at an earlier time, where the state is known, from a time and the state there."""
        (t, y), (end, exact) = start, known
        if t == end:
            return a
        self.end = y if self.end is None else self.end
        method, count = self.method, len(y)
        solver, _ = method.backward(self.solver, 1)
        control = self.control
        sign = 1 if end >= t else -1
        stops = sorted((s for s in forward.loop.stops if sign * t < sign * s < sign * end), key=lambda s: sign * s)
        quadrature = Quadrature(dataclasses.replace(forward.run, again=True), count, sums)
        tolerance = Doubled(control, forward.run.layout, y)
        if not method.seminorm:
            tolerance.also = quadrature.error
        layout = forward.run.layout
        loop = AdaptiveLoop(
            quadrature.evaluate,
            solver.tableau,
            control,
            tolerance,
            layout.device,
            layout.time,
            [*stops, end],
            forward.loop.jumps,
            proposed=self.proposed,  # steps go on as long as they were before an output
        )
        quadrature.loop = loop
        both: AnyLeaves = (*y, *a)
        with torch.no_grad():
            for step in loop.steps(t, both):
                if self.slope is not None and t == forward.grid.nodes[-1] and self.changed is None:
                    self.changed = _changed(step.slopes[0][:count], self.slope)
                    # the same state and time; at a jump in time it may be that on its other side
                    if (
                        looks(self.slope)
                        and not forward.loop.jumps
                        and allowed(forward.run) < float(self.changed) < math.inf
                        and not _amplified(
                            step.slopes[0], self.slope, y, lambda at: loop.slope(t, (*at, *a), 0, t, end)
                        )
                    ):
                        how = f"has a slope that is off by {float(self.changed):.1e} of it"
                        raise unlike(name(forward.run, len(forward.grid.nodes) - 2), how)
                quadrature.accept(step)
                assert loop.trial is not None
                of_costate = loop.trial.error, both, step.y1, step.slopes[0], step.slopes[-1]
                self.way_back.step(step.h, *(leaves[count:] for leaves in of_costate))
                both = step.y1
        self.proposed = loop.proposed
        if loop.failed is not None:
            require_finite(a, t)
            raise GradientError(
                f"the continuous adjoint stopped after {loop.n} steps back from t={t:.8g}: {loop.failed.happened}",
                "backward solves that reach t0",
                f"{loop.failed.remedy}; or take gradient='checkpoint', which is exact and integrates nothing back",
            )
        y, a = both[:count], both[count:]

        def derivatives(at: AnyLeaves, integrated: bool) -> Derivatives:
            return quadrature.derivatives((*at, *a), t, end, known=integrated)

        self.way_back.arrived(exact, y, self.end, a, abs(end - t), derivatives, last=end == forward.t0)
        return a


def _changed(slope: Leaves, known: Leaves) -> Tensor:
    """By which part of it a slope is another one than it was, of which a sample is known."""
    pairs = zip(sampled_as(known, slope), known, strict=True)
    return torch.stack([torch.linalg.vector_norm(x - y) / torch.linalg.vector_norm(y) for x, y in pairs]).amax()


def _amplified(slope: Leaves, known: Leaves, y: Leaves, run: Callable[[Leaves], Leaves]) -> bool:
    """Whether a slope is another one by no more than rounding may be amplified."""
    most = amplified(lambda y: sampled_as(known, run(y)[: len(known)]), y)
    triples = zip(sampled_as(known, slope[: len(known)]), known, most, strict=True)
    return all(float(torch.linalg.vector_norm(one - other)) <= off for one, other, off in triples)


class Doubled(Tolerance):
    """The error norm of a state and its adjoint, each with the tolerances of the state.

    The adjoint is as large as the loss is, and its equation is linear: `atol` is held against it in units of its size,
    the root of its mean square, so that c times the loss has c times the gradient, by the same steps. An adjoint far
    below `atol` would be integrated by steps that nothing holds to it.
    """

    also: Callable[[Tensor], Tensor | None] | None = None
    """The error of what follows these, of an adjoint of such a size."""

    def __init__(self, control: PIDController, layout: Layout, y: Leaves) -> None:
        super().__init__(control, layout, y)
        of = self.norm
        self.count = count = len(y)
        self.device, self.plain, self.relative = layout.device, False, self.relative * 2
        self.norm = lambda leaves: torch.maximum(of(leaves[:count]), of(leaves[count:]))

    def sizes(self, y: Leaves) -> Callable[[Leaves], Tensor]:
        magnitudes = [leaf.abs() for leaf in y]
        allowed, some = self._allowed(magnitudes, self._unit(magnitudes))
        return lambda value: self.at_start(over(value, allowed, some, least=True))

    def ratio(self, error: Leaves, y: Leaves, y1: Leaves) -> Tensor:
        with torch.no_grad():
            magnitudes = [torch.maximum(one.abs(), other.abs()) for one, other in zip(y, y1, strict=True)]
            unit = self._unit(magnitudes)
            ratio_of_both = self.norm(over(error, *self._allowed(magnitudes, unit)))
        more = None if self.also is None else self.also(unit)
        return ratio_of_both if more is None else torch.maximum(ratio_of_both, more.to(ratio_of_both))

    def _unit(self, magnitudes: Sequence[Tensor]) -> Tensor:
        return root_mean_square(magnitudes[self.count :], self.device)

    def _allowed(self, magnitudes: Sequence[Tensor], unit: Tensor) -> tuple[list[Tensor], Sequence[bool]]:
        """What is allowed of the entries of each leaf, and whether that is more than zero everywhere."""
        absolute = (*self.absolute, *(bound * unit for bound in self.atol))
        least = unit.item() if unit.is_cpu else 0.0  # on a device a look would be a wait
        small = [isinstance(bound, float) and bound * least > LEAST for bound in self.atol]
        return [*allowances(magnitudes, self.relative, absolute)], (*self.some, *small)


class Quadrature:
    """The augmented field, and the gradient of the weights that each step adds.

    Args:
        run: the forward solve.
        count: leaves of the state.
        sums: where gradients are added up.
    """

    def __init__(self, run: Run, count: int, sums: Sums) -> None:
        self.run, self.count, self.sums = run, count, sums
        self.parts: dict[int, tuple[Sequence[Tensor], Sequence[Tensor | None]]] = {}
        self.slopes: list[AnyLeaves] = []  # slopes since the last accepted step, so that none takes another's id
        self.loop: AdaptiveLoop | None = None

    def evaluate(self, t: Tensor, rank: int, time: float, both: AnyLeaves) -> AnyLeaves:
        """The slope of y and of its adjoint; the weights' is remembered by it."""
        run, field, count = self.run, self.run.field, self.count
        assert isinstance(field, AcceptedField)
        layer, position = field.grid.place(time)
        since = now()
        explicit = field.field.explicit(layer, field.count)
        stand = {id(weight): weight.detach().requires_grad_() for weight in explicit}
        at = tuple([leaf.detach().requires_grad_() for leaf in both[:count]])
        with torch.enable_grad():
            slope = run.layout.evaluate(lambda y: field.field(t, y, layer, position, field.count, stand), at)
        captured = field.field.read(layer, field.count)
        part, weights, by_weights = vjp(captured, 0, slope, at, explicit, stand, both[count:], since)
        slopes = (*[k.detach() for k in slope], *[-p for p in part])
        self.parts[id(slopes)] = weights, by_weights
        self.slopes.append(slopes)
        return slopes

    def accept(self, step: AcceptedStep) -> None:
        """Add what the step adds: -h sum_i b_i times that of stage i, h being negative."""
        for weight, slope in zip(step.loop.tableau.b, step.slopes, strict=True):
            if weight:
                self.sums.add(*self.parts[id(slope)], factor=-step.h * weight)
        last = step.ends[-1] if step.loop.tableau.fsal else None
        self.parts = {} if last is None else {id(last): self.parts[id(last)]}
        self.slopes[:] = [] if last is None else [last]

    def derivatives(self, both: AnyLeaves, start: float, end: float, *, known: bool) -> Derivatives:
        """Those of the field at the end of the way from `start`, and the parts of weights by their place.

        Args:
            both: state and adjoint.
            start, end: times.
            known: whether the last step may have evaluated them.
        """
        loop, evaluated = self.loop, self.slopes[-1] if known and self.slopes else None
        assert loop is not None
        if evaluated is None:
            evaluated = loop.slope(end, both, 0, start, end)
        parts: Parts = {}
        self.sums.collect(parts, *self.parts[id(evaluated)])
        return evaluated[self.count :], parts

    def error(self, unit: Tensor) -> Tensor | None:
        """That of the quadrature in the step that is tried, over what is allowed; None with tolerances by leaf.

        Args:
            unit: what `atol` is in units of.
        """
        loop = self.loop
        assert loop is not None
        assert loop.trial is not None
        tableau, control, h = loop.tableau, loop.control, loop.size
        if not (isinstance(control.rtol, (int, float)) and isinstance(control.atol, (int, float))):
            return None
        totals: dict[int, tuple[Tensor, Tensor]] = {}
        for weight, low, slope in zip(tableau.b, tableau.error_weights or (), loop.trial.slopes, strict=True):
            for tensor, part in zip(*self.parts[id(slope)], strict=True):
                if part is not None:
                    before = totals.get(id(tensor))
                    if before is None:
                        totals[id(tensor)] = h * low * part, h * weight * part
                    else:
                        error, size = before
                        totals[id(tensor)] = (
                            torch.add(error, part, alpha=h * low) if low else error,
                            torch.add(size, part, alpha=h * weight) if weight else size,
                        )
        if not totals:
            return None
        atol = control.atol * unit
        ratios = [error.abs() / (atol + control.rtol * size.abs()) for error, size in totals.values()]
        squares = torch.stack([leaf.square().sum().double() for leaf in ratios]).sum()
        return squares.div(sum(leaf.numel() for leaf in ratios)).sqrt()


def fixed(problem: Problem, stats: Stats) -> Solve:
    """A solve in equal steps whose gradient is by the continuous adjoint."""
    assert isinstance(problem.gradient, ContinuousAdjoint)
    return Costate(problem.gradient, problem.solver, stats).solve


def adaptive(problem: Problem, stats: Stats) -> Back:
    """The backward pass of the continuous adjoint over accepted steps."""
    assert isinstance(problem.gradient, ContinuousAdjoint)
    assert isinstance(problem.solver, Solver)
    return functools.partial(accepted_steps.solve, AdaptiveCostate(problem.gradient, problem.solver, stats))
