"""What a deep stack keeps for the way back by two-step solvers: two states, and side information to the byte."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from odenet_torch import ResidualStack

STATE = (8, 16)


def passed(solver: str, gradient: str, depth: int) -> tuple[int, torch.Tensor]:
    """The bytes that the node of the solve keeps beside the parameters (0 where there is none), and the gradient."""
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16)).double() for _ in range(depth)]
    stack = ResidualStack(blocks, solver=solver, gradient=gradient)
    x = torch.randn(*STATE, dtype=torch.float64).requires_grad_()
    y = stack(x)
    node: Any = y.grad_fn
    while node is not None and type(node).__name__ != "_FixedStepSolveBackward":
        node = node.next_functions[0][0] if node.next_functions else None
    known = {tensor.data_ptr() for tensor in stack.parameters()}
    kept = sum(t.nbytes for t in node.saved_tensors if t.data_ptr() not in known) if node is not None else 0
    found = torch.autograd.grad(y.square().sum(), [x, *stack.parameters()])
    return kept, torch.cat([g.flatten() for g in found])


@pytest.mark.parametrize(
    ("solver", "bits"),
    [("two-step-midpoint", 0), ("momentum", 0), ("bdia", 2), ("bdia:guard=no:seed=1", 1), ("bdia:gamma=0.25", 4)],
)
def test_two_states_and_the_side_information_are_kept_whatever_the_depth(solver: str, bits: int) -> None:
    numbers = STATE[0] * STATE[1]
    for depth in (10, 40):
        assert passed(solver, "reversible", depth)[0] == 2 * numbers * 8 + depth * numbers * bits // 8


@pytest.mark.parametrize("solver", ["two-step-midpoint", "bdia", "bdia:gamma=-0.5:guard=no"])
def test_the_gradient_is_that_of_backprop(solver: str) -> None:
    found, exact = passed(solver, "reversible", 40)[1], passed(solver, "backprop", 40)[1]
    assert (found - exact).norm() < 1e-11 * exact.norm()
