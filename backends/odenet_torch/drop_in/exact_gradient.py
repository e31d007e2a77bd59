"""The gradient of `odeint` through the forward steps, beside which that of `odeint_adjoint` is held."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from odenet_torch.drop_in import fixed
from odenet_torch.drop_in.flow import OdeintProblem
from odenet_torch.drop_in.recording import lent_buffers, modules_of
from odenet_torch.field.half_precision import HALF
from odenet_torch.field.state import Layout, Leaves
from odenet_torch.field.surroundings import no_trace
from odenet_torch.gradients.compared_steps import difference, magnitude
from odenet_torch.gradients.sums import Parts

MOST = 16
"""Forward steps whose graph is held at once."""
_CLOSE = 1e-4  # of a step: how far a time may lie from its end


class ForwardSteps:
    """The steps of a forward pass, taken again, for their VJPs.

    Args:
        flow: of the solve, whose forward pass has been recorded.
        layout: of the state.
        params: that have a gradient.
    """

    def __init__(self, flow: OdeintProblem, layout: Layout, params: Sequence[Tensor]) -> None:
        self.flow, self.layout, self.params = flow, layout, params

    def pulled(self, y: Tensor, nodes: Sequence[float], a: Tensor) -> tuple[Tensor, Parts]:
        """What some steps add to a costate, and to the gradients of parameters.

        Args:
            y: the state where they begin.
            nodes: their ends.
            a: the costate at the last one.
        """
        if len(nodes) > MOST + 1:  # halves: no more states are held than the number of steps has digits
            middle = len(nodes) // 2
            with self._unseen(), torch.no_grad():
                later = self._after(y, nodes[: middle + 1])
            change, by_params = self.pulled(later, nodes[middle:], a)
            more, others = self.pulled(y, nodes[: middle + 1], a + change)
            add(by_params, others)
            return change + more, by_params
        y = y.detach().requires_grad_()
        exact: Sequence[Tensor | None] = [None] * (1 + len(self.params))
        with self._unseen(), torch.enable_grad():
            moved = self._after(y, nodes) - y
        if moved.requires_grad:
            # what f reads of a graph from outside is gone through again
            exact = torch.autograd.grad(moved, (y, *self.params), a, allow_unused=True, retain_graph=True)
        by_params: Parts = {
            i: part.float() if part.dtype in HALF else part for i, part in enumerate(exact[1:]) if part is not None
        }
        return torch.zeros_like(y) if exact[0] is None else exact[0], by_params

    @contextlib.contextmanager
    def _unseen(self) -> Iterator[None]:
        """No evaluation of the solve: a counter of the user's does not see it."""
        original = self.flow.original
        assert original is not None
        with no_trace([original]), lent_buffers(modules_of(original)):
            yield

    def _after(self, y: Tensor, nodes: Sequence[float]) -> Tensor:
        """The state after steps with these ends."""
        recording, states = self.flow.recording, (y,)
        assert recording is not None
        tableau = recording.tableau if recording.accepted is None else recording.accepted[0]
        assert tableau is not None
        grid = torch.tensor(nodes, dtype=torch.float64, device=y.device)

        def evaluate(t: Tensor, y: Leaves) -> Leaves:
            return self.layout.evaluate(lambda at: self.flow.f(t, at), y)

        for step in fixed.steps(
            evaluate, tableau, states, grid, self.layout.time, recording.perturb, None, recording.anew()
        ):
            states = step.y1
        return states[0]


class ExactGradient:
    """The whole gradient of `odeint`, from the states that are known at all times, interval by interval.

    Each jump that a step has crossed, on the way there or back, may change the whole gradient, so that two steps tell
    nothing of the others. It takes as much time as the backward pass, where that is compared at all, and, beside the
    graph of a few steps, a second costate and second gradients of parameters.

    Args:
        steps: of the forward pass.
        ys: the states at all times.
        nodes: for each interval of times, the ends of its steps (see `nodes_between` and `accepted_between`).
        gradients: of the loss with respect to the states.
    """

    def __init__(self, steps: ForwardSteps, ys: Tensor, nodes: Sequence[Sequence[float]], gradients: Tensor) -> None:
        self.steps, self.ys, self.nodes, self.gradients = steps, ys, nodes, gradients
        (self.kind,) = steps.layout.carried
        self.g = torch.zeros_like(ys[-1], dtype=self.kind)
        self.by_params: Parts = {}

    def over(self, i: int) -> None:
        """Go back over interval i, from the last one on."""
        self.g = self.g + self.gradients[i + 1]
        change, by_params = self.steps.pulled(self.ys[i].to(self.kind), self.nodes[i], self.g)
        self.g = self.g + change
        add(self.by_params, by_params)

    def error(self, a: Tensor, totals: Sequence[Tensor]) -> Tensor:
        """The relative error of the gradients by y0 and by parameters, a scalar on the device.

        Args:
            a: the gradient by y0.
            totals: those by parameters.
        """
        size, g, exact = functools.partial(magnitude, device=a.device), self.g + self.gradients[0], self.by_params
        off = [size([a - g]), size([difference(exact.get(i), total) for i, total in enumerate(totals)])]
        sizes = torch.stack([size([g]), size(exact.values())])
        return (torch.stack(off) / sizes.clamp_min(torch.finfo(sizes.dtype).tiny)).max()


def nodes_between(flow: OdeintProblem, count: int) -> list[list[float]] | None:
    """The ends of the forward steps within each of so many intervals of times; None where a time lies within a step:
    what is known there is no state of a step."""
    assert flow.recording is not None
    ends, direction, n = flow.recording.ends, flow.direction, 0
    intervals: list[list[float]] = []
    for start, end in itertools.pairwise(flow.times[: count + 1]):
        nodes = [start]
        while n < len(ends) and direction * (ends[n][1] - end) <= _CLOSE * abs(ends[n][1] - ends[n][0]):
            if abs(ends[n][0] - nodes[-1]) > _CLOSE * abs(ends[n][1] - ends[n][0]):
                return None
            nodes.append(ends[n][1])
            n += 1
        if len(nodes) == 1 or abs(nodes[-1] - end) > _CLOSE * abs(nodes[-1] - nodes[-2]):
            return None
        intervals.append(nodes)
    return intervals


def accepted_between(flow: OdeintProblem, count: int) -> list[list[float]]:
    """The same of the steps of an adaptive method. A time within a step divides it: a solve to that time, and on from
    there, is as good by its tolerance."""
    assert flow.recording is not None
    assert flow.recording.accepted is not None
    (_, ends), direction, n = flow.recording.accepted, flow.direction, 0
    intervals: list[list[float]] = []
    for start, end in itertools.pairwise(flow.times[: count + 1]):
        nodes = [start]
        while n < len(ends) and direction * ends[n] < direction * end:
            if direction * ends[n] > direction * start:
                nodes.append(ends[n])
            n += 1
        intervals.append([*nodes, end])
    return intervals


def add(by_params: Parts, others: Parts) -> None:
    """Add the gradients of parameters to others of the same."""
    for i, part in others.items():
        by_params[i] = by_params[i] + part if i in by_params else part
