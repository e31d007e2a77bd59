"""How far the continuous adjoint of a field that jumps is off: its gradient, beside that of the network."""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import Tensor

from odenet import Checkpoint, DiscreteAdjoint, Stats
from odenet.kit import DRIFT, ITERATIONS_BESIDE, STATES_BESIDE, subtract
from odenet.kit import Leaves as AnyLeaves
from odenet_torch.gradients.adjoint import SavedStates, read
from odenet_torch.gradients.checkpoint import Recomputation
from odenet_torch.gradients.compared_steps import difference, magnitude
from odenet_torch.gradients.discrete_adjoint import Reversal, counted_together
from odenet_torch.gradients.sums import Sums
from odenet_torch.steps.accepted import Accepted
from odenet_torch.steps.fixed import Run


class NetworkGradient:
    """The gradient of the network beside a backward pass of the continuous adjoint.

    Each jump that a step has crossed, on the way there or back, may change the whole gradient: two steps tell nothing
    of the others, and how far the state has drifted tells nothing of that.

    With equal steps it is that of the discrete adjoint. What this rebuilds has a certificate of its own, which says
    whether the comparison is to be believed. It takes three evaluations and a VJP of each step, and the memory of a
    second costate and of second gradients of those weights that the step at t0 reads, too.

    Of an adaptive solve y0 is kept, and the gradient is exact: that of the steps that were accepted, run again from a
    few states (`odenet.Checkpoint`).

    Args:
        run: the forward solve.
        stats: of the solve.
        saved, gradients: see `Adjoint.back`.
        sums: the gradients of weights of the continuous adjoint, whose backward pass may be handed over in stages.
    """

    def __init__(self, run: Run, stats: Stats, saved: SavedStates, gradients: dict[int, AnyLeaves], sums: Sums) -> None:
        self.run, self.stats, self.sums, self.exact = run, dataclasses.replace(stats), sums, Sums(run.field)
        self.rebuilds = not isinstance(run.grid, Accepted)
        method = (
            Reversal(DiscreteAdjoint(iterations=ITERATIONS_BESIDE), self.stats)
            if self.rebuilds
            else Recomputation(Checkpoint(states=STATES_BESIDE), self.stats)
        )
        self.way = method.back(run, saved, gradients, self.exact)
        self.n = steps = run.grid.steps
        self.size = functools.partial(magnitude, device=run.layout.device)
        self.off: list[Tensor] = []
        self.sizes: list[Tensor] = []
        self.homes = {
            id(home): (n, home)
            for n in reversed(range(steps))
            for tensor in (*run.field.explicit(n, steps), *read(run, n))
            for home in (run.field.home(tensor)[0],)
        }
        """Weights, and the lowest step that reads each."""

    def down_to(self, n: int) -> None:
        """Go back over steps as far as the start of step n, to which the continuous adjoint has come."""
        while self.n > n:
            self.n = next(self.way)
        for key, (lowest, home) in [*self.homes.items()]:
            if lowest >= n:  # complete, and gone from the sums at the next step
                del self.homes[key]
                exact, total = self.exact.so_far(home), self.sums.so_far(home)
                if exact is not None or total is not None:
                    self.off.append(self.size([difference(exact, total)]))
                    self.sizes.append(self.size([] if exact is None else [exact]))
                self.exact.gradient(key, home.dtype)

    def certificate(self, a: AnyLeaves, *, by_y0: bool = True) -> Tensor:
        """The relative error of the gradient, a scalar on the device.

        Args:
            a: the costate at t0.
            by_y0: whether that of y0 is asked for.
        """
        g: AnyLeaves = ()
        try:
            next(self.way)
        except StopIteration as finished:
            g = finished.value
        off = torch.stack([self.size(subtract(a, g) if by_y0 else ()), self.size(self.off)])
        sizes = torch.stack([self.size(g if by_y0 else ()), self.size(self.sizes)])
        errors = off / sizes.clamp_min(torch.finfo(off.dtype).tiny)
        error = errors.max()
        if self.rebuilds:
            # that of all steps together is as large as the error is
            share = 1.0 if counted_together(self.run) else DRIFT
            error = torch.maximum(error, share * self.stats.residual.to(off))
        return torch.where((off + sizes).any(), error, 0.0)  # a gradient of zero is right, whatever was rebuilt
