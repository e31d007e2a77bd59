"""Checkpointing: some states are kept, and what lies between them is computed again.

Chen et al. 2016 (segments); Griewank and Walther 2000 (the optimal schedule, `odenet._revolve`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from odenet import Checkpoint, Stats
from odenet._revolve import schedule
from odenet._step import Leaves as AnyLeaves
from odenet._step import add, subtract
from odenet_torch._field import now, unique
from odenet_torch._fixed import Run
from odenet_torch._state import Leaves
from odenet_torch.gradients._adjoint import Adjoint, Kept, Sums, require_known, standing, zeros
from odenet_torch.gradients.discrete_adjoint import relative


class Recomputation(Adjoint):
    """Back from one kept state to the one before."""

    def __init__(self, method: Checkpoint, stats: Stats) -> None:
        super().__init__(stats)
        self.method = method

    def keeps(self, run: Run) -> Iterable[int]:
        """See `Adjoint.keeps`."""
        steps = run.grid.steps
        if self.method.states is not None:
            return schedule(steps, self.method.states).forward
        return [first for first, _ in self.method.parts(steps)]

    def discover(self, run: Run, y0: Leaves) -> Leaves:
        """See `Adjoint.discover`. What the first evaluation saves tells how many states fit in `memory`."""
        if self.method.memory is None:
            return super().discover(run, y0)
        storages: dict[int, int] = {}

        def saved(tensor: Tensor) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(saved, lambda tensor: tensor):
            first = super().discover(run, y0)
        for tensor in (*y0, *run.field.everything(run.grid.steps)):  # there anyway
            storages.pop(tensor.untyped_storage().data_ptr(), None)
        state = sum(leaf.nbytes for leaf in y0)
        stages = run.solver.stages * (sum(storages.values()) + state)
        self.method = Checkpoint(states=self.method.affordable(state, stages))
        return first

    def back(self, run: Run, kept: Kept, gradients: dict[int, AnyLeaves], sums: Sums) -> Leaves:
        """See `Adjoint.back`."""
        steps, known = run.grid.steps, dict(kept.states)
        self.stats.residual = torch.zeros((), dtype=run.layout.time, device=run.layout.device)
        later: Leaves | None = None  # the state at the end of the segment, as it was before
        g = gradients.get(steps) or zeros(known[0])
        for turn in self.turns(steps):
            y = known[turn.origin]
            for n in range(turn.origin, turn.step):
                y = add(y, run.increment(n, y))
                if n + 1 in turn.keep:
                    known[n + 1] = y
            g, end = self.segment(run, turn.step, turn.end, y, g, gradients, sums)
            if later is not None:
                self.stats.residual = torch.maximum(self.stats.residual, relative(subtract(end, later), later))
            later = y
            known.pop(turn.step, None)
        return g

    def turns(self, steps: int) -> Iterable[Segment]:
        """The pieces in the order of the way back."""
        if self.method.states is None:
            return [Segment(first, end, first, ()) for first, end in reversed(self.method.parts(steps))]
        return [Segment(t.step, t.step + 1, t.origin, t.keep) for t in schedule(steps, self.method.states).turns]

    @staticmethod
    def segment(
        run: Run, first: int, end: int, y: Leaves, g: AnyLeaves, gradients: dict[int, AnyLeaves], sums: Sums
    ) -> tuple[Leaves, Leaves]:
        """The cotangent at the start of steps first..end-1, and the state at their end.

        Each step is `y + D(y)` as in the forward pass, and what was added up so far enters as cotangents of the
        weights themselves: autograd then adds in the order of backprop, to the last bit.
        """
        since = now()
        at, _, stand = standing(run, first, y)
        explicit = unique(tensor for n in range(first, end) for tensor in run.field.explicit(n, run.grid.steps))
        stand |= {id(weight): weight.detach().requires_grad_() for weight in explicit if id(weight) not in stand}
        captured = unique(tensor for n in range(first, end) for tensor in run.field.read(n, run.grid.steps))
        met: list[tuple[Tensor, Tensor]] = []
        with torch.enable_grad():
            z = at
            for n in range(first, end):
                if n in gradients:
                    met += zip(z, gradients[n], strict=True)
                z = add(z, run.increment(n, z, stand=stand))
        weights = (*explicit, *captured)
        reads = (*(stand[id(weight)] for weight in explicit), *captured)
        require_known(run, first, z, (*at, *reads), since)
        so_far = [(leaf, total) for leaf, w in zip(reads, weights, strict=True) if (total := sums.total(w)) is not None]
        outputs, cotangents = zip(*zip(z, g, strict=True), *met, *so_far, strict=True)
        found = torch.autograd.grad(outputs, [*at, *reads], cotangents, allow_unused=True)
        for weight, total in zip(weights, found[len(at) :], strict=True):
            if total is not None:
                sums.put(weight, total)
        return found[: len(at)], tuple(leaf.detach() for leaf in z)


@dataclass(frozen=True)
class Segment:
    """Steps step..end-1, whose VJP is taken as one, from the kept state `origin`; see `odenet._revolve.Turn`."""

    step: int
    end: int
    origin: int
    keep: tuple[int, ...]
