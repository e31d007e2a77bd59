"""The solution at any time, as a function."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odenet import InputError
from odenet.kit import Tableau, interpolant, weigh
from odenet_torch.field.state import Layout, Leaves
from odenet_torch.steps.dense import differentiable, times_of_any_shape


@dataclass(frozen=True)
class Continuous:
    """`y(t)` for times of any shape, which leads that of the result; differentiable by these, too.

    Args:
        tableau: the method.
        layout: of the state.
        nodes: ends of the steps, in the order of the solve.
        steps: of each the state at its start, and its slopes.
    """

    tableau: Tableau
    layout: Layout
    nodes: Sequence[float]
    steps: Sequence[tuple[Leaves, Sequence[Leaves], Leaves]]

    def __call__(self, t: Any) -> Tensor:
        """The state at times t.

        Raises:
            InputError: a time outside of the solve.
        """
        times = times_of_any_shape(t)
        moving = differentiable(times)
        flat = times.reshape(-1)
        if not len(flat):
            raise InputError("odeint_dense's solution at no time", "at least one time")
        states = [
            self._at(time, flat[i] if moving else time) for i, time in enumerate(flat.detach().double().cpu().tolist())
        ]
        stacked = torch.stack(states)
        return self.layout.returned(stacked.reshape((*times.shape, *stacked.shape[1:])), 0)

    def _at(self, t: float, time: Any) -> Tensor:
        nodes = self.nodes
        sign = 1 if nodes[-1] >= nodes[0] else -1
        slack = 1e-6 * abs(nodes[-1] - nodes[0])
        if not sign * nodes[0] - slack <= sign * t <= sign * nodes[-1] + slack:
            raise InputError(f"odeint_dense's solution at t={t}", f"times between {nodes[0]} and {nodes[-1]}")
        n = bisect.bisect_right([sign * node for node in nodes], sign * t) - 1
        n = max(0, min(n, len(self.steps) - 1))
        y, slopes, _ = self.steps[n]
        h = nodes[n + 1] - nodes[n]
        (state,) = weigh(y, h, interpolant(self.tableau).weights((time - nodes[n]) / h), slopes)
        return state.to(y[0].dtype)  # a state without an axis would be widened by a time in double
