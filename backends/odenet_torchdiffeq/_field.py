"""The field as torchdiffeq calls it: on increasing times, and told where in depth it is."""

from __future__ import annotations

import bisect
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from odenet import Grid, Solver, Span
from odenet_torch.field.field import FunctionField, Stand, now, outside, unique
from odenet_torch.field.state import Layout, Leaves


class OrientedField(ABC):
    """`sign f(sign tau, y)` for tau = sign t, which increases: torchdiffeq's own reversal hides from callbacks.

    Args:
        field: with its weights.
        layout: of the state.
        sign: 1 forward in time, -1 backward.
    """

    def __init__(self, field: FunctionField, layout: Layout, sign: int) -> None:
        self.field = field
        self.layout = layout
        self.sign = sign
        self.evaluations = self.accepted = self.rejected = 0

    def __call__(self, tau: Tensor, y: Tensor | Leaves) -> Tensor | Leaves:
        """The slope by tau, in the shape of y."""
        self.evaluations += 1
        leaves = self.leaves(y)
        slope = self.slope(tau, leaves)
        if self.sign < 0:
            slope = tuple(-k for k in slope)
        return slope[0] if isinstance(y, Tensor) else slope

    @staticmethod
    def leaves(y: Tensor | Leaves) -> Leaves:
        """torchdiffeq's state as leaves: a tensor alone, or a tuple."""
        return (y,) if isinstance(y, Tensor) else tuple(y)

    def slope(self, tau: Tensor, leaves: Leaves, stand: Stand | None = None) -> Leaves:
        """The slope at time t as leaves."""
        n, position, steps = self.place(tau)
        t = self.sign * tau
        return self.layout.slope(self.field(t, self.layout.call(leaves), n, position, steps, stand), leaves)

    @abstractmethod
    def place(self, tau: Tensor) -> tuple[int, Any, int]:
        """Step, position in it and number of steps, by which weights are read at tau."""

    def weights(self, steps: int) -> tuple[Tensor, ...]:
        """The tensors handed to f at all depths that a gradient goes to."""
        return unique(tensor for n in range(steps) for tensor in self.field.explicit(n, steps))

    def parameters(self, tau: Tensor, y0: Leaves, steps: int) -> tuple[Tensor, ...]:
        """Every tensor that f reads and a gradient goes to, for `adjoint_params`; evaluates f once.

        Raises:
            GradientError: f reads a tensor that was computed elsewhere, to which `odeint_adjoint` is blind.
        """
        weights = self.weights(steps)
        stand = {id(tensor): tensor.detach().requires_grad_() for tensor in weights}
        at = tuple(leaf.detach().requires_grad_() for leaf in y0)
        since = now()
        with torch.enable_grad():
            slope = self.slope(tau, at, stand)
        return unique((*weights, *self.field.captured, *outside(slope, (*stand.values(), *at), since)))


class OnGrid(OrientedField):
    """In equal steps, whose stages are counted: a stage at the end of a step reads that step's weights.

    Args:
        field, layout, sign: see `OrientedField`.
        grid: of the forward solve.
        solver: whose stages these are.
        backward: steps of the backward solve of `odeint_adjoint`.
    """

    def __init__(
        self, field: FunctionField, layout: Layout, sign: int, grid: Grid, solver: Solver, backward: int
    ) -> None:
        super().__init__(field, layout, sign)
        self.grid = grid
        self.counts = grid.steps, backward
        self.nodes = solver.tableau.c
        self.back = False
        self.step = self.stage = 0

    def callback_step(self, tau: Tensor, y: Any, dt: Tensor) -> None:
        """A step of the forward solve begins."""
        self._begin(float(tau + dt / 2), back=False)

    def callback_step_adjoint(self, tau: Tensor, y: Any, dt: Tensor) -> None:
        """A step of the backward solve begins, at its later end."""
        self._begin(float(tau - dt / 2), back=True)

    def _begin(self, middle: float, back: bool) -> None:
        start, length = self.sign * self.grid.t0, abs(self.grid.t1 - self.grid.t0)
        self.back, self.stage = back, 0
        self.step = int((middle - start) / length * self.counts[back])

    def place(self, tau: Tensor) -> tuple[int, Any, int]:
        node = self.nodes[self.stage]
        self.stage += 1
        return self.step, 1 - node if self.back else node, self.counts[self.back]


class OnSpan(OrientedField):
    """In steps of torchdiffeq's choice: weights are read by time.

    Args:
        field, layout, sign: see `OrientedField`.
        t0, t1: times of the span.
        adjoint: whether evaluations under autograd are those of `odeint_adjoint` in its backward pass.
    """

    def __init__(
        self, field: FunctionField, layout: Layout, sign: int, span: Span, t0: float, t1: float, adjoint: bool
    ) -> None:
        super().__init__(field, layout, sign)
        self.t0, self.t1, self.adjoint = t0, t1, adjoint
        self.control = span.control
        depth = field.depth
        self.intervals = 1 if depth is None else depth.intervals or 1
        inner = range(1, self.intervals) if depth is not None and depth.kind == "piecewise" else ()
        ends = [sign * (t0 + (t1 - t0) * (n / self.intervals)) for n in inner]
        self.ends: list[float] = torch.tensor(ends, dtype=layout.time).tolist()  # as tau is rounded
        self.linear = depth is not None and depth.kind == "linear"

    def callback_accept_step(self, tau: Tensor, y: Any, dt: Tensor) -> None:
        """Count an accepted step."""
        self.accepted += 1

    def callback_reject_step(self, tau: Tensor, y: Any, dt: Tensor) -> None:
        """Count a rejected step."""
        self.rejected += 1

    def place(self, tau: Tensor) -> tuple[int, Any, int]:
        """Beyond t1, where a last step may end, linear weights go on along their line."""
        if self.linear:
            whole = (self.sign * tau - self.t0) / (self.t1 - self.t0) * self.intervals
            n = min(max(int(whole.detach()), 0), self.intervals - 1)
            return n, whole - n if whole.requires_grad else float(whole) - n, self.intervals
        # in the backward pass the end of a layer belongs to the layer before it
        back = self.adjoint and torch.is_grad_enabled()
        find = bisect.bisect_left if back else bisect.bisect_right
        return find(self.ends, float(tau.detach())), 0.0, self.intervals
