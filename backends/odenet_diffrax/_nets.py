"""The networks of a `NetSpec`, solved by diffrax."""

from __future__ import annotations

from jax import Array

from odenet import Depth
from odenet._problem import problem
from odenet_diffrax._solve import solve_problem
from odenet_jax._nets import OdeNet


class DiffraxNet(OdeNet):
    """As `odenet_jax.OdeNet`, but for who takes the steps."""

    __init__ = OdeNet.__init__  # equinox would make one of the fields

    def __call__(self, x: Array, probe: Array | None = None) -> Array:
        """Logits, or final states. There is nothing to probe."""
        spec, weights = self.spec, self.weights
        y = x if spec.block == "conv" else x.reshape(x.shape[0], -1)
        if spec.classes is not None:
            y = self._stem(y)
        inner = {name.removeprefix("block."): w for name, w in weights.items() if name.startswith("block.")}
        if spec.along == "shared":
            inner = {name: w[0] for name, w in inner.items()}
        choices = {"steps": spec.depth, "t1": spec.horizon, "solver": self.solver, "gradient": self.gradient}
        y = solve_problem(problem(self.function, y, Depth(inner, spec.along), **choices)).ys[0]
        if spec.classes is None:
            return y
        pooled = y.mean((2, 3)) if spec.block == "conv" else y
        return pooled @ weights["head.weight"].T + weights["head.bias"]
