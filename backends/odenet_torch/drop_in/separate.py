"""The function as torchdiffeq's own loops call it, for the methods that are left to them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from odenet_torch.drop_in.flow import OdeintProblem


class Separate(nn.Module):
    """Func with slopes that are checked, and with no memory in common with torchdiffeq.

    Its loops keep times, states and slopes as they are and check no shape: a func that writes on t or y, or returns
    each slope in the same tensor, or one that broadcasts, would be solved wrong without an error.

    Args:
        problem: with the caller's func, whose callbacks are called as well.
    """

    def __init__(self, problem: OdeintProblem) -> None:
        super().__init__()
        self.problem, self.layout = problem, problem.layout()[0]
        for name in dir(problem.func):
            if name.startswith("callback_"):
                setattr(self, name, getattr(problem.func, name))

    def forward(self, t: Tensor, y: Any) -> Any:
        """The slope.

        Raises:
            StateError: func returned another shape.
            DtypeError: it returned complex numbers for a real state.
        """
        state = y if isinstance(y, Tensor) else torch.cat([part.reshape(-1) for part in y])
        (slope,) = self.layout.evaluate(lambda at: self.problem.f(t.clone(), at), (state,), start=True)
        return self.problem.unpacked(slope.to(state.dtype, copy=True))
