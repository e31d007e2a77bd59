"""The lazy adjoint in torch."""

import functools

from odenet import DiscreteAdjoint
from odenet_torch.gradients import accepted_steps
from odenet_torch.gradients.discrete_adjoint import Reversal


class Lazy(Reversal):
    """The backward pass without a prediction."""

    def __init__(self, stats):
        super().__init__(DiscreteAdjoint(), stats)

    def predict(self, run, n, y, seen):
        """The state where we stand."""
        return y


def fixed(problem, stats):
    """With equal steps: `solve(run, leaves)` to the leaves at the kept times."""
    return Lazy(stats).solve


def adaptive(problem, stats):
    """With tolerances: the same from a forward pass that keeps the steps that it accepts."""
    return functools.partial(accepted_steps.solve, Lazy(stats))
