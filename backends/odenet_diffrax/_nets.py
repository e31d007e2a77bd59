"""The networks of a `NetSpec`, solved by diffrax."""

from __future__ import annotations

from typing import Any

from jax import Array

from odenet import Problem, Solution, UnsupportedError
from odenet_diffrax._solve import solve_problem
from odenet_jax.nets.modules import OdeNet


class DiffraxNet(OdeNet):
    """As `odenet_jax.OdeNet`, but for who takes the steps."""

    __init__ = OdeNet.__init__  # equinox would make one of the fields

    def solve(self, ivp: Problem, probe: Array | None, context: Any) -> tuple[Solution, Any]:
        """The same solve by diffrax, in which there is nothing to probe.

        Raises:
            UnsupportedError: batch normalisation in training, whose running statistics diffrax would not hand on.
        """
        if context is not None:
            raise UnsupportedError(
                f"{type(self).__name__} with norm='batch' in training",
                "norm='group' or 'none'; norm='batch' on backends torch and jax",
            )
        return solve_problem(ivp), None
