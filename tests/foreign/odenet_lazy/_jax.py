"""The lazy adjoint in JAX."""

from odenet import DiscreteAdjoint
from odenet_jax.gradients.discrete_adjoint import AdaptiveReversal, Reversal


class Lazy(Reversal):
    """The backward pass without a prediction."""

    def __init__(self, stats):
        super().__init__(DiscreteAdjoint(), stats, None)

    def predict(self, run, n, y, seen, trouble, *, early):
        """The state where we stand."""
        return y, trouble


class AdaptiveLazy(AdaptiveReversal):
    """The same over the steps that an adaptive solve accepted."""

    def __init__(self, stats):
        super().__init__(DiscreteAdjoint(), stats, None)
        self.fixed = Lazy(stats)


def fixed(problem, stats):
    """With equal steps: `solve(run, leaves, probe)`."""
    return Lazy(stats).solve


def adaptive(problem, stats):
    """With tolerances: the backward pass over the accepted steps."""
    return AdaptiveLazy(stats)
