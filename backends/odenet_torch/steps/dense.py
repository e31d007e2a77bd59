"""Dense output: the solution between the ends of steps."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from odenet import InputError
from odenet._solvers.interpolant import interpolant
from odenet._solvers.tableau import Tableau
from odenet_torch.field.state import Layout, Leaves
from odenet_torch.steps.weighted_sum import weigh_leaves


def between(tableau: Tableau, position: float, y: Leaves, h: Any, slopes: Sequence[Leaves]) -> Leaves:
    """The state at a position in [0, 1] of a step.

    Args:
        tableau: the method.
        position: where.
        y, h: the state at the start, and the step size.
        slopes: of all stages, and the slope at the end.
    """
    return weigh_leaves(y, h, interpolant(tableau).weights(position), slopes)


class Dense:
    """The solution at any time of a solve: what `Solution.at` evaluates.

    Args:
        tableau: the method.
        layout: of the state.
        t0, y0: where the solve begins.
    """

    def __init__(self, tableau: Tableau, layout: Layout, t0: float, y0: Leaves) -> None:
        self.tableau = tableau
        self.layout = layout
        self.nodes, self.last, self.y0 = [t0], t0, y0
        self.steps: list[tuple[Leaves, list[Leaves], Leaves]] = []

    def add(self, t1: float, y: Leaves, slopes: list[Leaves], y1: Leaves, last: float) -> None:
        """One more step, to t1; the solution ends at `last`, if with it."""
        self.nodes.append(t1)
        self.steps.append((y, slopes, y1))
        self.last = last

    def __call__(self, t: Any) -> Any:
        """The tree of the state at times t, whose shape leads that of the leaves.

        Raises:
            InputError: a time outside of the solve.
        """
        times = torch.as_tensor(t, dtype=torch.float64).detach().cpu()
        found = [self._at(float(time)) for time in times.reshape(-1).tolist()]
        columns = [torch.stack(column) for column in zip(*found, strict=True)]
        leaves = [
            self.layout.returned(leaf.reshape(*times.shape, *leaf.shape[1:]), i) for i, leaf in enumerate(columns)
        ]
        return self.layout.unflatten(leaves)

    def _at(self, t: float) -> Leaves:
        nodes, last = self.nodes, self.last
        sign = 1 if last >= nodes[0] else -1
        slack = 1e-6 * abs(last - nodes[0])
        if not sign * nodes[0] - slack <= sign * t <= sign * last + slack:
            raise InputError(f"Solution.at({t})", f"times between {nodes[0]} and {last}")
        if not self.steps:
            return self.y0
        n = bisect.bisect_right([sign * node for node in nodes], sign * t) - 1
        n = max(0, min(n, len(self.steps) - 1))
        y, slopes, y1 = self.steps[n]
        position = (t - nodes[n]) / (nodes[n + 1] - nodes[n])
        if position >= 1:
            return y1
        return between(self.tableau, max(position, 0.0), y, nodes[n + 1] - nodes[n], slopes)


def shifted(y: Leaves, by: Tensor, slope: Leaves) -> Leaves:
    """`y + by slope`: where a time that is off by `by` (zero, with a derivative) moves the state to."""
    return tuple(leaf + by.to(leaf.real.dtype) * k for leaf, k in zip(y, slope, strict=True))
