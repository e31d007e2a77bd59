"""The networks of a `NetSpec`, solved by torchdiffeq."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from odenet import Depth
from odenet._problem import problem
from odenet_torch._nets import OdeNet
from odenet_torchdiffeq._solve import solve_problem


class TorchdiffeqNet(OdeNet):
    """As `odenet_torch.OdeNet`, but for who takes the steps."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits, or final states."""
        spec, weights = self.spec, dict(self.named_parameters())
        y = x if spec.block == "conv" else x.flatten(1)
        if spec.classes is not None:
            y = self._stem(y, weights)
        inner = {name.removeprefix("block."): w for name, w in weights.items() if name.startswith("block.")}
        if spec.along == "shared":
            inner = {name: w[0] for name, w in inner.items()}
        choices = {"steps": spec.depth, "t1": spec.horizon, "solver": self.solver, "gradient": self.gradient}
        solution = solve_problem(problem(self.function, y, Depth(inner, spec.along), **choices), closed=False)
        self.stats = solution.stats
        y = solution.ys[0]
        if spec.classes is None:
            return y
        pooled = y.mean((2, 3)) if spec.block == "conv" else y
        return F.linear(pooled, weights["head.weight"], weights["head.bias"])
