"""The lazy adjoint: a gradient method of odenet from another package. Importing this loads no framework."""

from dataclasses import dataclass

from odenet.kit import Cost, Gradient, Method, Solver, Way


@dataclass(frozen=True)
class LazyAdjoint(Gradient):
    """Step back from y[n+1] with the increment that is linearised there: no prediction."""

    name = "lazy-adjoint"
    summary = "linearise each step at its end, and step back with that"
    exactness = "O(h)"
    formula = ("N s", "N s", "N s", "1")  # f forward, f backward, VJPs, states kept

    def offered(self, solver):
        """Methods whose increments odenet takes itself."""
        return isinstance(solver, Solver)

    def cost(self, solver, steps):
        """See `Cost`."""
        evaluations = solver.evaluations(steps)
        return Cost(evaluations, evaluations, evaluations, 1)


method = Method(
    LazyAdjoint,
    ways={
        "torch": Way(fixed="odenet_lazy._torch:fixed", adaptive="odenet_lazy._torch:adaptive"),
        "jax": Way(fixed="odenet_lazy._jax:fixed", adaptive="odenet_lazy._jax:adaptive"),
    },
)
