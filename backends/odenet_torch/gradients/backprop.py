"""Backprop: autograd records the loop."""

from __future__ import annotations

from odenet import Problem, Stats
from odenet_torch.field.state import Leaves
from odenet_torch.gradients.accepted_steps import plain
from odenet_torch.steps.adaptive import Back
from odenet_torch.steps.fixed import Run, Solve, loop, stacked


def solve(run: Run, y0: Leaves) -> Leaves:
    """The leaves at the kept times."""
    if run.direct is None:
        run.field.recorded(run.layout.device, run.grid.steps)
    return stacked(run, loop(run, y0)[0])


def fixed(problem: Problem, stats: Stats) -> Solve:
    """A solve in equal steps whose gradient is by backprop."""
    return solve


def adaptive(problem: Problem, stats: Stats) -> Back:
    """The backward pass of backprop over accepted steps."""
    return plain
