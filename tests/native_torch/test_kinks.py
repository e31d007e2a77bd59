"""Blocks with kinks: states that are a little off have gradients that are off by the root of it, which is said."""

import copy
import warnings

import pytest
import torch
from torch import nn

import odenet
from odenet_torch import ResidualStack, convert
from odenet_torch.field import kinks
from odenet_torch.field.jumps import Watch


class Residual(nn.Module):
    def __init__(self, branch):
        super().__init__()
        self.branch = branch

    def forward(self, x):
        return x + self.branch(x)


def made(seed, activation, increment):
    """Five branches, each of which adds a part of its state, and a state."""
    torch.manual_seed(seed)
    branches = [nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 128), activation(), nn.Linear(128, 64)) for _ in range(5)]
    x = torch.randn(16, 64)
    with torch.no_grad():
        for branch in branches:
            factor = increment * float(x.norm() / branch(x).norm())
            branch[-1].weight *= factor
            branch[-1].bias *= factor
    return branches, x


def stacked(branches, x, gradient, solver):
    return ResidualStack(branches, gradient=gradient, solver=solver, t1=float(len(branches)))


def converted(branches, x, gradient, solver):
    model = nn.Sequential(*map(Residual, branches))
    return model if gradient == "backprop" else convert(model, example=x, gradient=gradient)


def gradient(model, x):
    """The gradient, and the warnings of the certificate."""
    model(x).square().mean().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def looked(make, seed, activation, increment, solver, method):
    """How far the gradient is off, and what was said."""
    branches, x = made(seed, activation, increment)
    exact = gradient(make(copy.deepcopy(branches), x, "backprop", solver), x)
    model = make(branches, x, method, solver)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = gradient(model, x)
    return float((found - exact).norm() / exact.norm()), [w.message for w in said]


@pytest.mark.parametrize(
    ("make", "solver", "increment"),
    [(stacked, "euler", 0.2), (stacked, "heun", 0.27), (converted, "euler", 0.2)],
)
def test_what_kinks_leave_of_a_gradient_is_said_and_smooth_blocks_are_left_alone(make, solver, increment):
    off, said = zip(*[looked(make, s, nn.ReLU, increment, solver, "discrete-adjoint") for s in range(3)], strict=True)
    assert max(off) > 0.06
    for error, messages in zip(off, said, strict=True):
        (warning,) = messages
        assert isinstance(warning, odenet.GradientWarning)
        assert warning.certificate > error
        assert "kinks" in str(warning)
    error, messages = looked(make, 0, nn.Softplus, increment, solver, "discrete-adjoint")
    assert error < 0.05
    assert not messages


def test_the_certificate_is_what_was_said():
    branches, x = made(1, nn.ReLU, 0.2)
    model = stacked(branches, x, "discrete-adjoint", "euler")
    with pytest.warns(odenet.GradientWarning, match="kinks") as said:
        gradient(model, x)
    assert f" is {model.certificate:.2g}: " in str(said[0].message)


@pytest.mark.parametrize(
    ("function", "kinked"),
    [
        (torch.relu, True),
        (lambda y: y.clamp(-1, 1), True),
        (lambda y: torch.maximum(y, 0.1 * y), True),
        (lambda y: torch.where(y > 0, y, 0.1 * y), True),
        (nn.functional.hardswish, True),
        (lambda y: y.abs(), True),
        (torch.tanh, False),
        (nn.functional.gelu, False),
        (lambda y: torch.softmax(y, -1) * y, False),
        (lambda y: nn.functional.dropout(y, 0.5), False),
    ],
)
def test_operations_with_kinks_are_known(function, kinked):
    y = torch.randn(4, 6)
    with Watch((y,)) as watch:
        function(y)
    assert kinks.within(watch) is kinked
