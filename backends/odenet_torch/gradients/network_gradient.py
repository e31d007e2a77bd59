"""How far the continuous adjoint of a field that jumps is off: its gradient, beside that of the network."""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import Tensor

from odenet import DiscreteAdjoint, Stats
from odenet.kit import DRIFT, ITERATIONS_BESIDE, subtract
from odenet.kit import Leaves as AnyLeaves
from odenet_torch.gradients.adjoint import SavedStates, read
from odenet_torch.gradients.compared_steps import difference, magnitude
from odenet_torch.gradients.discrete_adjoint import Reversal
from odenet_torch.gradients.sums import Sums
from odenet_torch.steps.fixed import Run


class NetworkGradient:
    """The gradient of the network, by the discrete adjoint, beside a backward pass of the continuous one.

    Each jump that a step has crossed, on the way there or back, may change the whole gradient: two steps tell nothing
    of the others, and how far the state has drifted tells nothing of that. What the discrete adjoint rebuilds has a
    certificate of its own, which says whether the comparison is to be believed.

    It takes three evaluations and a VJP of each step, and the memory of a second costate and of second gradients of
    those weights that the step at t0 reads, too.

    Args:
        run: the forward solve.
        stats: of the solve.
        saved, gradients: see `Adjoint.back`.
        sums: the gradients of weights of the continuous adjoint, whose backward pass may be handed over in stages.
    """

    def __init__(self, run: Run, stats: Stats, saved: SavedStates, gradients: dict[int, AnyLeaves], sums: Sums) -> None:
        self.stats, self.sums, self.exact = dataclasses.replace(stats), sums, Sums(run.field)
        reversal = Reversal(DiscreteAdjoint(iterations=ITERATIONS_BESIDE), self.stats)
        self.way = reversal.back(run, saved, gradients, self.exact)
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

    def certificate(self, a: AnyLeaves) -> Tensor:
        """The relative error of the gradient, a scalar on the device; a is the costate at t0."""
        g: AnyLeaves = ()
        try:
            next(self.way)
        except StopIteration as finished:
            g = finished.value
        off = torch.stack([self.size(subtract(a, g)), self.size(self.off)])
        sizes = torch.stack([self.size(g), self.size(self.sizes)])
        errors = off / sizes.clamp_min(torch.finfo(off.dtype).tiny)
        error = torch.maximum(errors.max(), DRIFT * self.stats.residual.to(off))
        return torch.where((off + sizes).any(), error, 0.0)  # a gradient of zero is right, whatever was rebuilt
