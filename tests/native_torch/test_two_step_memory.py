"""What a deep stack keeps for the way back by two-step solvers: two states, and side information to the byte."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from odenet_torch import ResidualStack


def passed(solver: str, gradient: str, depth: int) -> tuple[int, torch.Tensor]:
    """The bytes that autograd keeps beside the parameters and the input, and the gradient."""
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16)).double() for _ in range(depth)]
    stack = ResidualStack(blocks, solver=solver, gradient=gradient)
    x = torch.randn(8, 16, dtype=torch.float64).requires_grad_()
    known = {tensor.untyped_storage().data_ptr() for tensor in (x, *stack.parameters())}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = stack(x)
    found = torch.autograd.grad(y.square().sum(), [x, *stack.parameters()])
    return sum(kept.values()), torch.cat([g.flatten() for g in found])


@pytest.mark.parametrize(
    ("solver", "bits"),
    [("two-step-midpoint", 0), ("momentum", 0), ("bdia", 2), ("bdia:guard=no:seed=1", 1), ("bdia:gamma=0.25", 4)],
)
def test_two_states_and_the_side_information_are_kept_whatever_the_depth(solver: str, bits: int) -> None:
    kept = {depth: passed(solver, "reversible", depth)[0] for depth in (10, 40)}
    numbers = 8 * 16
    assert kept[40] - kept[10] == 30 * numbers * bits // 8
    assert 2 * numbers * 8 <= kept[10] - 10 * numbers * bits // 8 < 4 * numbers * 8


@pytest.mark.parametrize("solver", ["two-step-midpoint", "momentum", "bdia", "bdia:gamma=-0.5:guard=no"])
def test_the_gradient_is_that_of_backprop_which_keeps_more_for_each_block(solver: str) -> None:
    few, exact = passed(solver, "reversible", 40), passed(solver, "backprop", 40)
    assert (few[1] - exact[1]).norm() < 1e-11 * exact[1].norm()
    assert exact[0] > 8 * few[0]
