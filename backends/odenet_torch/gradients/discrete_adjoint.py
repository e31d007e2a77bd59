"""The discrete adjoint: rebuild y[n] from y[n+1], and take step n's exact VJP at the rebuilt point.

Sander, Ablin, Peyre 2022, section 4.1; the correction is this library's (docs/mathematics.md).
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from odenet import DiscreteAdjoint, Stats
from odenet._step import Leaves as AnyLeaves
from odenet._step import add, subtract
from odenet_torch._field import now
from odenet_torch._fixed import Run
from odenet_torch._state import Leaves
from odenet_torch.gradients._adjoint import Adjoint, Sums, standing, vjp


class Reversal(Adjoint):
    """Backward from y[N], a step at a time."""

    def __init__(self, method: DiscreteAdjoint, stats: Stats) -> None:
        super().__init__(stats)
        self.method = method

    def back(self, run: Run, kept: list[Leaves], last: Leaves, gradients: list[AnyLeaves], sums: Sums) -> Leaves:
        """See `Adjoint.back`."""
        place = {n: k for k, n in enumerate(run.grid.kept)}
        y, residual = last, torch.zeros((), dtype=run.layout.time, device=run.layout.device)
        g = gradients[-1] if run.grid.steps in place else tuple(torch.zeros_like(leaf) for leaf in y)
        for n in reversed(range(run.grid.steps)):
            z = self.predict(run, n, y)
            since = now()
            at, explicit, stand = standing(run, n, z)
            with torch.enable_grad():
                d = run.increment(n, at, stand=stand)
            part, weights, found = vjp(run, n, d, at, explicit, stand, g, since)
            sums.add(weights, found)
            g = add(g, part)
            before = subtract(y, tuple(leaf.detach() for leaf in d))
            residual = torch.maximum(residual, _relative(subtract(before, z), y))
            y = before if self.method.correct else z
            if n in place:
                y, g = kept[place[n]], add(g, gradients[place[n]])
        self.stats.residual = residual
        return g

    def predict(self, run: Run, n: int, y: Leaves) -> Leaves:
        """z, near the y[n] with `y[n] + D_n(y[n]) = y`."""
        z = add(y, run.increment(n, y, reverse=True))
        for _ in range(self.method.iterations - 1):
            z = subtract(y, run.increment(n, z))
        return z


def _relative(defect: Leaves, y: Leaves) -> Tensor:
    """|defect| / |y|, Euclidean over all leaves."""
    size = _norm(y)
    return _norm(defect) / size.clamp_min(torch.finfo(size.dtype).tiny)


def _norm(leaves: Leaves) -> Tensor:
    return functools.reduce(torch.hypot, (torch.linalg.vector_norm(leaf) for leaf in leaves))
