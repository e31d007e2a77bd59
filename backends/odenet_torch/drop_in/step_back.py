"""How far `odeint_adjoint` in fixed steps is off: what it adds over a step, beside the exact VJP of that step."""

from __future__ import annotations

import itertools
import math
import sys
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from odenet.kit import DOUBTFUL, DRIFT, SMALL, WHOLE, Alarm, Certified, alarm
from odenet_torch.drop_in import fixed
from odenet_torch.drop_in.exact_gradient import MOST, ExactGradient, ForwardSteps, accepted_between, nodes_between
from odenet_torch.drop_in.flow import OdeintProblem
from odenet_torch.field.jumps import jumps
from odenet_torch.field.linearity import uneven
from odenet_torch.field.state import Layout
from odenet_torch.gradients.compared_steps import error
from odenet_torch.gradients.sums import Parts

_EVERY = 16
"""One of so many backward passes of a function is compared, of the first ones more, and all while it is doubtful."""
_DRIFT_OF_JUMPS = 3.0
"""`DRIFT` where f jumps, and no more is known: a step from the other side of a jump has another gradient altogether."""


@dataclass
class Passes:
    """Of one function.

    Args:
        count: of those that have been.
        error: the last that is known.
    """

    count: int = 0
    error: float = 0.0


_passes: weakref.WeakKeyDictionary[Alarm, Passes] = weakref.WeakKeyDictionary()
"""By alarm, of which a function has one as long as it lives."""


def passes_due(flow: OdeintProblem) -> tuple[Alarm, Passes] | None:
    """Of the function of a solve: who says how far off it is, and its backward passes; None where this one is not
    compared."""
    told = alarm(flow.original)
    if told is None:
        return None
    passes = _passes.setdefault(told, Passes())
    passes.count += 1
    if passes.count % _EVERY and passes.count.bit_count() > 1 and passes.error <= DOUBTFUL:
        return None
    return told, passes


def by_steps(flow: OdeintProblem) -> bool:
    """Whether the steps of the forward pass are known, and end at its times."""
    return flow.recording is not None and bool(flow.recording.ends) and flow.event_fn is None


def all_steps(flow: OdeintProblem, count: int) -> list[list[float]] | None:
    """The ends of the forward steps within each of so many intervals of times, of a function that jumps, or whose
    pullback is not linear; None of others, and where they are not known."""
    recording = flow.recording
    if recording is None or flow.event_fn is not None or not (jumps(of := flow.original or flow.func) or uneven(of)):
        return None
    if recording.accepted is not None:
        return accepted_between(flow, count)
    return nodes_between(flow, count) if recording.ends else None


class StepsBack:
    """What the backward pass of one solve comes to know of its error.

    The exact gradient is that of `odeint`, whose steps autograd differentiates. As torchdiffeq's, the adjoint is the
    gradient of the differential equation, from which steps that are few or long are far away.

    Two steps are compared, each where the state is known at which the backward steps arrive: the longest, and the one
    that changes the state most. Beside them, the state that was integrated back is held against the known one at each
    time. Of a function that jumps, which two steps tell little of, the whole gradient is compared, if its steps end
    where the times are, or follow its error.

    Args:
        flow: of the solve, whose forward pass has been recorded.
        ys: its states at all times.
        params: that have a gradient.
        layout: of the state.
        gradients: of the loss with respect to the states.
        nodes: of a function that jumps, see `all_steps`.
        told: who says it.
        passes: of the function.
    """

    def __init__(
        self,
        flow: OdeintProblem,
        ys: Tensor,
        params: Sequence[Tensor],
        layout: Layout,
        gradients: Tensor,
        nodes: list[list[float]] | None,
        told: Alarm,
        passes: Passes,
    ) -> None:
        self.flow, self.ys, self.layout, self.told, self.passes = flow, ys, layout, told, passes
        assert flow.recording is not None
        self.ends, self.forward = flow.recording.ends, ForwardSteps(flow, layout, params)
        self.count = len(self.ends) if nodes is None else sum(map(len, nodes)) - len(nodes)
        self.exact = None if nodes is None else ExactGradient(self.forward, ys, nodes, gradients)
        self.compared: dict[int, StepBack] = {}
        self.drifts: list[tuple[float, Tensor]] = []
        if self.exact is None:
            self._choose()

    def _choose(self) -> None:
        """The steps that are compared, and the sizes of the states."""
        flow, ys = self.flow, self.ys
        steps = self._first_steps(len(ys) - 1)
        change = torch.linalg.vector_norm((ys[1:] - ys[:-1]).reshape(len(ys) - 1, -1), dim=1).tolist()
        apart = [abs(b - a) for a, b in itertools.pairwise(flow.times[: len(ys)])]
        # a step is a part of its interval, or goes beyond it
        most = [moved * min(h / length, 1.0) for moved, (_, h), length in zip(change, steps, apart, strict=True)]
        # equal steps differ by rounding
        longest = [round(h / max(h for _, h in steps), 3) for _, h in steps]
        self.compared = {i: StepBack(self, *steps[i], i) for i in {most.index(max(most)), longest.index(1.0)}}
        sizes = torch.linalg.vector_norm(ys.reshape(len(ys), -1), dim=1).tolist()
        self.sizes = [max(size, SMALL * sizes[-1]) for size in sizes]
        """That the error of each state is held against."""

    def _first_steps(self, count: int) -> list[tuple[int, float]]:
        """For each of so many intervals of times: the forward step at its start, and its size."""
        direction, n, steps = self.flow.direction, 0, []
        for t in self.flow.times[:count]:
            while n < len(self.ends) - 1 and direction * self.ends[n][1] <= direction * t:
                n += 1
            start, end = self.ends[n]
            steps.append((n, abs(end - start)))
        return steps

    def arrived(self, i: int, y: Tensor) -> None:
        """Time i is reached, with state y."""
        if self.exact is not None:
            self.exact.over(i)
            return
        self.drifts.append((self.sizes[i], torch.linalg.vector_norm(y - self.ys[i])))

    def tell(self, method: str, a: Tensor, totals: Sequence[Tensor]) -> None:
        """Say how far the gradient is off, if it is much.

        Args:
            method: of the backward pass.
            a: the gradient by y0.
            totals: those by parameters.
        """
        if self.exact is not None:
            value, step = self.exact.error(a, totals).item(), WHOLE
        elif self.drifts:
            value, step = self._worst()
        else:  # a gradient of zero
            return
        self.passes.error = value if value == value else math.inf
        of: Certified = "drop-in back" if self.exact is not None and not self.ends else "step back"
        self.told.tell(value, "odeint_adjoint", method, self.count, step, of=of)

    def _worst(self) -> tuple[float, int]:
        sizes, off = zip(*self.drifts, strict=True)
        pairs = zip(torch.stack(off).tolist(), sizes, strict=True)
        drift = max(error / max(size, sys.float_info.min) for error, size in pairs)
        errors = [(one.value.item(), one.step) for one in self.compared.values() if one.value is not None]
        share = _DRIFT_OF_JUMPS if jumps(self.flow.original or self.flow.func) else DRIFT
        # NaN is the worst
        largest, step = max([(0.0, -1), *errors], key=lambda pair: (pair[0] != pair[0], pair[0]))
        # steps are compared at states that are known: what others are off by comes on top of it
        return share * drift + largest, -1 if share * drift > largest else step


class StepBack:
    """The comparison over one forward step, or over a backward step that is longer.

    Args:
        steps: those of the solve.
        step: the forward step.
        h: its size.
        interval: at whose start it begins.
    """

    def __init__(self, steps: StepsBack, step: int, h: float, interval: int) -> None:
        self.forward, self.count = steps.forward, len(steps.ends)
        self.step, self.h, self.t = step, h, steps.flow.times[interval]
        (kind,) = steps.layout.carried
        self.y = steps.ys[interval].to(kind)
        self.a: Tensor | None = None
        self.value: Tensor | None = None
        """The relative error, where it is known."""
        self.begins, self.end = 0, self.t
        self.by_params: Parts = {}

    def over(self, grid: Sequence[float]) -> None:
        """The ends of the backward steps that arrive at this state: which of them are compared."""
        reach = (1 - 1e-3) * self.h
        self.begins = max(i for i, t in enumerate(grid[:-1]) if i == 0 or abs(t - self.t) >= reach)
        self.end = grid[self.begins]

    def add(self, step: fixed.FixedStep, parts: Sequence[Tensor | None]) -> None:
        """A backward step, and what it adds to parameters."""
        if step.n < self.begins:
            return
        if self.a is None:
            self.a = step.y[1]
        for i, part in enumerate(parts):
            if part is not None:
                self.by_params[i] = self.by_params[i] + part if i in self.by_params else part

    def finish(self, after: Tensor) -> None:
        """The adjoint after the backward steps."""
        a = self.a
        assert a is not None
        number = min(max(round(abs(self.end - self.t) / self.h), 1), MOST)
        nodes = [self.t + (self.end - self.t) * i / number for i in range(number)]
        of_y, by_params = self.forward.pulled(self.y, [*nodes, self.end], a)
        added = (after - a,), self.by_params
        self.value = error((a,), ((of_y,), by_params), added, 1, self.count, self.y.device)
