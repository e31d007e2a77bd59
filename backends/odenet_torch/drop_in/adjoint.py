"""torchdiffeq's adjoint: the state and its adjoint backward from time to time, and what they add to parameters.

Where torchdiffeq packs the parameters' gradients into the state, and copies them at every stage, they are quadratures
here, added up where a step is accepted. Only what is named as a parameter has a gradient.

Over 250 lines: the problem, its backward pass and the node of autograd read each other throughout.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odenet import PIDController, UnsupportedError
from odenet.kit import Leaves as AnyLeaves
from odenet.kit import Tableau
from odenet_torch.drop_in import fixed
from odenet_torch.drop_in.compiled import AugmentedSlope, AugmentedSteps
from odenet_torch.drop_in.error import AdjointTolerance
from odenet_torch.drop_in.flow import OdeintProblem
from odenet_torch.drop_in.methods import ADAPTIVE, FIXED
from odenet_torch.drop_in.options import Spacing
from odenet_torch.drop_in.recalled_function import Recalled
from odenet_torch.drop_in.recording import lent_buffers, modules_of
from odenet_torch.drop_in.step_back import StepsBack, all_steps, by_steps, passes_due
from odenet_torch.drop_in.way_back import KnownStates
from odenet_torch.drop_in.words import speaking, stopped_back
from odenet_torch.field import saved_tensors
from odenet_torch.field.differentiating import forward_mode_again
from odenet_torch.field.half_precision import HALF
from odenet_torch.field.raised import as_raised
from odenet_torch.field.surroundings import no_trace
from odenet_torch.gradients.adjoint import refuse_batches, require_finite, require_recording, unhooked
from odenet_torch.gradients.way_back import least
from odenet_torch.steps.graph import Choices
from odenet_torch.steps.size_control import AdaptiveLoop, StepCallbacks

_MANY = 16
"""Steps beside which one more evaluation is little."""


@dataclass(frozen=True)
class AdjointProblem:
    """Forth and back.

    Args:
        flow: the problem.
        again: its function.
        forth: the forward solve: the time of the event, and the states.
        method: of the backward pass.
        choice: its controller or spacing.
        reach: how large its error is; None for a method without an estimate.
        watch: who is told of its steps, once it is known how to show them the state.
        chosen: how steps are compiled; None where they are not.
        names: of the parameters that have a gradient, by which a graph is handed these.
    """

    flow: OdeintProblem
    again: Recalled
    forth: Callable[[], tuple[Tensor | None, Tensor]]
    method: str
    choice: PIDController | Spacing
    reach: AdjointTolerance | None
    watch: Callable[[Callable[..., Any]], StepCallbacks | None]
    chosen: Choices | None = None
    names: tuple[str, ...] = ()


def solve(way: AdjointProblem, params: tuple[Tensor, ...]) -> tuple[Tensor | None, Tensor]:
    """The time of the event and the states, differentiable by t, y0 and the parameters.

    Raises:
        UnsupportedError: a parameter is sparse: what it gets is in the norm of the error, as torchdiffeq has it.
    """
    for param in params:
        if param.layout is not torch.strided:
            raise UnsupportedError(
                f"adjoint_params with a sparse tensor (torch.layout {param.layout}, shape {tuple(param.shape)})",
                "dense tensors",
                "make its values the parameter and the sparse tensor of them in func: "
                "torch.sparse_coo_tensor(indices, values, size); or take odeint",
            )
    if not torch.is_grad_enabled():
        return way.forth()
    event_t, ys = _OdeintAdjoint.apply(way, way.flow.t, way.flow.y0, *params)
    return event_t, ys


class AdjointSolve:
    """The backward pass, from time to time.

    Args:
        way: which.
        params: that have a gradient.
        timed: whether the times have one.
    """

    def __init__(self, way: AdjointProblem, params: Sequence[Tensor], timed: bool) -> None:
        self.way, self.params, self.timed = way, params, timed
        self.layout, _ = way.flow.layout()
        self.sums = [torch.zeros_like(p, dtype=torch.float32 if p.dtype in HALF else None) for p in params]
        self.moved = torch.zeros((), dtype=self.layout.time, device=self.layout.device)
        """What the adjoint adds to the gradient by t0 through the field's own dependence on time."""
        self.size: float | None = None
        """Of the first step: the longest between the times before, which saves an evaluation and small steps."""
        self.on = way.watch(lambda y, a: (self.moved, y, a, *self.sums))
        self.steps_back: StepsBack | None = None
        """What backward steps are compared with; None where they are not."""
        self.known_states: KnownStates | None = None
        """What rebuilt states are compared with, where steps are not."""

    def field(self, t: Tensor, both: AnyLeaves) -> AugmentedSlope:
        """The slopes of state, adjoint and quadratures at a time."""
        y, a = both
        state_layout = self.layout
        time, at = t.detach().requires_grad_(self.timed), y.detach().requires_grad_()
        with torch.enable_grad():
            (value,) = state_layout.evaluate(lambda y: self.way.flow.f(time, y), (at,))
        sources = (at, *((time,) if self.timed else ()), *self.params)
        gradients: Sequence[Tensor | None] = (None,) * len(sources)
        if value.requires_grad:
            # what f reads of a graph from outside is gone through again at the next stage
            gradients = torch.autograd.grad(value, sources, a, allow_unused=True, retain_graph=True)
        # those of embeddings may be sparse, which can't be added to a step's other slopes
        part, *rest = [g.to_dense() if g is not None and g.is_sparse else g for g in gradients]
        slope = AugmentedSlope((value.detach(), torch.zeros_like(y) if part is None else -part))
        slope.parts = tuple(rest if self.timed else [None, *rest])
        return slope

    def rate(self, y0: Tensor, a: Tensor) -> Tensor:
        """What costate a makes of the slope at the first time; it is no evaluation that a counter would see."""
        flow = self.way.flow
        original = flow.original
        assert original is not None
        time = torch.full((), flow.times[0], dtype=self.layout.time, device=self.layout.device)
        with no_trace([original]), lent_buffers(modules_of(original)):
            (slope,) = self.layout.evaluate(lambda y: flow.f(time, y), (y0.to(a.dtype),), start=True)
        return (slope * a.conj()).sum().real

    def between(self, i: int, start: float, end: float, y: Tensor, a: Tensor, known: Tensor) -> Tensor:
        """The adjoint at time i, from the state and the adjoint at the time after it; the state is known there, too.

        Raises:
            GradientError: the backward pass could not go on.
        """
        if not a.any():
            return a
        both = self._steps_between(i, start, end, y, a)
        if self.steps_back is not None:
            self.steps_back.arrived(i, both[0])
        if self.known_states is not None:
            self.known_states.arrived(known, both, start, end, last=i == 0)
        return both[1]

    def _steps_between(self, i: int, start: float, end: float, y: Tensor, a: Tensor) -> AnyLeaves:
        choice, method = self.way.choice, self.way.method
        both: AnyLeaves = (y, a)
        if isinstance(choice, Spacing):
            ends = torch.tensor([start, end], dtype=self.way.flow.t.dtype, device=y.device)
            grid = fixed.nodes(self.way.flow, choice, y, ends)
            tableau = FIXED[method].tableau
            recording, graph = self.way.flow.recording, self._graph(tableau)
            step_back = None if self.steps_back is None else self.steps_back.compared.get(i)
            if step_back is not None:
                step_back.over(grid.tolist())
            on_stage = None if recording is None else recording.back(tableau)

            def run(both: AnyLeaves, numbers: Tensor) -> tuple[AnyLeaves, Sequence[AnyLeaves]]:
                assert graph is not None
                attempt = graph.step(both, numbers)
                return attempt.y1, attempt.slopes

            compiled = None if graph is None else run
            for step in fixed.steps(
                self.field, tableau, both, grid, self.layout.time, choice.perturb, self.on, on_stage, compiled
            ):
                parts = weighed(step.slopes, tableau.b, -step.h) if graph is None else graph.added
                self.accept(parts)
                if step_back is not None:
                    step_back.add(step, parts[1:])
                if self.known_states is not None:
                    self.known_states.step(step.h, both, None)
                both = step.y1
            if step_back is not None:
                step_back.finish(both[1])
            return both
        (loop, graph), longest = self._loop(choice, start, end), 0.0
        loop.proposed = self.size if choice.first_step is None else None
        for step in loop.steps(start, both):
            self.accept(weighed(step.slopes, loop.tableau.b, -step.h) if graph is None else graph.added)
            if self.known_states is not None:
                attempt = loop.trial if graph is None else graph.attempt
                assert attempt is not None
                self.known_states.step(step.h, both, attempt)
            both, longest = step.y1, max(longest, abs(step.h))
        # steps that end where the next time is are shorter than they might be
        self.size = longest * (1 if loop.tried > loop.n else 2) or None
        if loop.failed is not None:
            require_finite((a,), start)
            raise stopped_back(loop.failed, choice.max_steps // max(len(self.way.flow.times) - 1, 1), loop.n, start)
        return both

    def _graph(self, tableau: Tableau, ratio: Callable[..., Tensor] | None = None) -> AugmentedSteps | None:
        """The compiled steps; None where they are not compiled."""
        way = self.way
        if way.chosen is None:
            return None
        return AugmentedSteps(way.flow, way.chosen, tableau, self.params, way.names, self.timed, ratio)

    def _loop(self, control: PIDController, start: float, end: float) -> tuple[AdaptiveLoop, AugmentedSteps | None]:
        assert self.way.reach is not None
        sign = 1 if end >= start else -1
        inner = {t for t in (*control.step_t, *control.jump_t) if sign * start < sign * t < sign * end}
        stops, jumps = [*sorted(inner, reverse=sign < 0), end], frozenset(control.jump_t)
        tableau = ADAPTIVE[self.way.method].tableau

        def tried() -> list[tuple[Tensor | None, Tensor | None]]:
            if graph is not None:
                return list(zip(graph.errors, graph.added, strict=True))
            assert loop.trial is not None
            assert tableau.error_weights is not None
            of, h = loop.trial.slopes, -loop.size
            return list(zip(weighed(of, tableau.error_weights, h), weighed(of, tableau.b, h), strict=True))

        reach = self.way.reach.of(lambda: (self.moved, *self.sums), tried)
        graph = self._graph(tableau, reach.ratio)
        loop = AdaptiveLoop(
            lambda t, rank, time, both: self.field(t, both),
            tableau,
            control,
            reach,
            self.layout.device,
            self.layout.time,
            stops,
            jumps,
            on=self.on,
            compiled=None if graph is None else lambda y, first: graph,
        )
        return loop, graph

    def accept(self, parts: Sequence[Tensor | None]) -> None:
        """Add to the quadratures what a step adds to them."""
        moved, *rest = parts
        if moved is not None:
            self.moved = self.moved + moved
        for total, part in zip(self.sums, rest, strict=True):
            if part is not None:
                total.add_(part)


def weighed(slopes: Sequence[AnyLeaves], weights: Sequence[float], h: float) -> list[Tensor | None]:
    """`h sum_i weights[i] parts[i]` of each quadrature; None where it is zero."""
    totals: list[Tensor | None] = []
    for slope, weight in zip(slopes, weights, strict=False):
        assert isinstance(slope, AugmentedSlope)
        totals = totals or [None] * len(slope.parts)
        if not weight:
            continue
        for i, part in enumerate(slope.parts):
            if part is not None:
                before = totals[i]
                wide = part.float() if part.dtype in HALF else part
                totals[i] = (h * weight) * wide if before is None else before.add_(part, alpha=h * weight)
    return totals


class _OdeintAdjoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, way: AdjointProblem, t: Tensor, y0: Tensor, *params: Tensor) -> tuple[Tensor | None, Tensor]:
        forward_mode_again()
        event_t, ys = way.forth()
        way.again.finish()
        kinds = dict.fromkeys((y0.device.type, "cpu"))
        ctx.autocast = [(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in kinds]
        ctx.way = way
        ctx.end = None if event_t is None else event_t.item()
        # the caller's are a copy: who writes on them, in place or by NumPy, does not change where the way back begins
        ctx.save_for_backward(ys, *params)
        ys = ys.clone()
        if event_t is not None:
            ctx.mark_non_differentiable(event_t)
        return event_t, ys

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        with speaking("odeint_adjoint"):
            return _pulled(ctx, gradients)


@as_raised
def _pulled(ctx: Any, gradients: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    require_recording("odeint_adjoint")
    if torch.is_grad_enabled():
        raise UnsupportedError(
            "a second derivative through odeint_adjoint",
            "first derivatives (create_graph=False)",
            "take odeint, which can be differentiated again",
        )
    refuse_batches(gradients, "odeint_adjoint", "odeint")
    way, (ys, *params) = ctx.way, saved_tensors.of(ctx)
    ys = ys.detach()
    flow, timed, (_, grads) = way.flow, ctx.needs_input_grad[1], gradients
    times = flow.times if ctx.end is None else (flow.times[0], ctx.end)
    back = AdjointSolve(way, params, timed)
    (kind,) = back.layout.carried
    rates: list[Tensor] = []
    with contextlib.ExitStack() as stack:
        for device, enabled, of in ctx.autocast:
            stack.enter_context(torch.autocast(device, dtype=of, enabled=enabled))
        stack.enter_context(unhooked(params))
        if flow.recording is not None:
            stack.enter_context(flow.recording.again(adaptive=not isinstance(way.choice, Spacing)))
        stack.enter_context(way.again.back())
        a = torch.zeros_like(ys[-1], dtype=kind)
        due = passes_due(flow)
        recording, stepped = flow.recording, isinstance(way.choice, Spacing)
        if due is not None or not stepped or (recording is not None and len(recording.ends) >= _MANY):
            way.again.require_known(flow, ys[0].to(flow.y0.dtype))
        nodes = None if due is None else all_steps(flow, len(ys) - 1)
        if due is not None and (nodes is not None or (stepped and by_steps(flow))):
            back.steps_back = StepsBack(flow, ys, params, back.layout, grads, nodes, *due)
        elif due is not None:
            rtol = None if way.reach is None else least(list(way.reach.rtol))
            end, by_y0 = ys[-1].to(kind), ctx.needs_input_grad[2]
            tableau = (FIXED if rtol is None else ADAPTIVE)[way.method].tableau
            back.known_states = KnownStates(flow, back.layout, rtol, tableau, by_y0, back.field, end, *due)
        for i in reversed(range(1, len(times))):
            if timed:
                time = torch.full((), times[i], dtype=back.layout.time, device=ys.device)
                at = (ys[i].to(kind),)
                (rate,) = back.layout.evaluate(lambda y: flow.f(time, y), at, start=True)  # noqa: B023
                rates.append((rate * grads[i].conj()).sum().real)
            y, known = (ys[n].to(kind) for n in (i, i - 1))
            a = back.between(i - 1, times[i], times[i - 1], y, a + grads[i], known)
        first = back.moved - sum(rates)
        if timed and not isinstance(way.choice, Spacing):
            # the same of the ODE, without what the state has drifted by in the quadrature; y0 is known
            first = -back.rate(ys[0], a)
        a = a + grads[0]
        if back.steps_back is not None:
            back.steps_back.tell(way.method, a, back.sums)
        if back.known_states is not None:
            back.known_states.tell(way.method, back.sums)
    g = None
    if timed:
        rest = reversed(rates) if ctx.end is None else [torch.zeros_like(first)] * (len(flow.times) - 1)
        g = torch.stack([first, *rest]).to(flow.t.dtype)
    return (None, g, a.to(flow.y0.dtype), *(total.to(p.dtype) for total, p in zip(back.sums, params, strict=True)))
