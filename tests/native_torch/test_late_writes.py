"""Kernels that write on what they have saved: torch's checkpoint would stop before them when it runs a step again."""

from __future__ import annotations

import contextlib
import copy
import gc

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from of_time import OfTime
from torch import Tensor, nn

import odenet
from odenet_torch import NeuralODE, ResidualStack, convert
from odenet_torch.verbs.measure import LiveBytes

EXACT = ("checkpoint", "checkpoint:segments=2", "checkpoint:states=2")


class Scaled(torch.autograd.Function):
    """x, whose gradient is multiplied by what is written on `scale` later."""

    @staticmethod
    def forward(ctx, x, scale):
        ctx.save_for_backward(scale)
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0], None


def random_scale(x: Tensor) -> Tensor:
    return torch.rand_like(x)


def fixed_scale(x: Tensor) -> Tensor:
    return x.detach().cos()


class Last(nn.Module):
    """A block that ends with such a kernel."""

    def __init__(self, last):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.last = last

    def forward(self, x):
        return self.last(self.linear(x))


def written_by(value):
    def last(x):
        scale = torch.empty_like(x)
        z = Scaled.apply(x, scale)
        scale.data.copy_(value(x))
        return z

    return last


LASTS = {
    "RReLU": nn.RReLU(0.1, 0.9),
    "RReLU in place": nn.RReLU(0.1, 0.9, inplace=True),
    "rrelu": lambda x: F.rrelu(x, 0.1, 0.9, training=True),
    "dropout": lambda x: F.dropout(x, 0.3, training=True),
    "alpha dropout": nn.AlphaDropout(0.3),
    "a Function, random": written_by(random_scale),
    "a Function": written_by(fixed_scale),
}


def stack(blocks, choices):
    return ResidualStack(blocks, along="piecewise", **choices)


def ode(blocks, choices):
    return NeuralODE(OfTime(blocks[0]), steps=len(blocks), **choices)


def closure(blocks, choices):
    weight, bias = (p for p in blocks[0].linear.parameters())
    last = blocks[0].last

    def f(t, y, w):
        return last(F.linear(y, *w))

    return lambda x: odenet.solve(f, x, (weight, bias), steps=len(blocks), **choices).y1


def gradients(model, last, solver, gradient):
    torch.manual_seed(0)
    blocks = [Last(last) for _ in range(5)]
    x = torch.randn(3, 4, requires_grad=True)
    torch.manual_seed(1)
    y = model(blocks, {"solver": solver, "gradient": gradient})(x)
    y.square().sum().backward()
    return [x.grad, *(p.grad for block in blocks for p in block.parameters() if p.grad is not None)]


@pytest.mark.parametrize("model", [stack, ode, closure])
@pytest.mark.parametrize("last", LASTS.values(), ids=LASTS)
def test_what_is_written_late_is_there_in_the_way_back(model, last):
    for solver in ("euler", "heun"):
        expected = gradients(model, last, solver, "backprop")
        for gradient in EXACT:
            for a, b in zip(gradients(model, last, solver, gradient), expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=lambda m: f"{gradient}: {m}")  # noqa: B023


@pytest.mark.parametrize("last", [LASTS["RReLU"], LASTS["a Function, random"]], ids=["RReLU", "a Function"])
def test_a_reversible_solver_draws_the_same_noise(last):
    expected = gradients(ode, last, "reversible-heun", "backprop")
    for a, b in zip(gradients(ode, last, "reversible-heun", "reversible"), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_function_with_a_generator_of_its_own_is_refused():
    generator = torch.Generator().manual_seed(0)
    y0 = torch.ones(3, requires_grad=True)
    with pytest.raises(odenet.GradientError, match="is not a function of its inputs"):
        odenet.solve(lambda t, y: y * torch.rand(3, generator=generator), y0, steps=4, gradient="checkpoint")


def test_looking_leaves_nothing_in_memory():
    gc.disable()
    try:
        x = torch.randn(64, requires_grad=True)
        with LiveBytes() as mode:
            y = odenet.solve(lambda t, y: torch.tanh(y), x, steps=8, gradient="checkpoint").y1
            assert mode.live <= 10 * x.nbytes  # eight states, the solution, and a copy of this to know it by
        y.sum().backward()
    finally:
        gc.enable()


class Lending(nn.Module):
    """A layer that changes what it reads for the time of its run, and puts it back when all is saved.

    Args:
        lent: changes it, and puts it back when it is left without an error.
    """

    def __init__(self, lent):
        super().__init__()
        self.linear = nn.Linear(4, 4, dtype=torch.float64)
        self.lent = lent
        self.scale = 0.5
        self.tensor = torch.full((4,), 0.5, dtype=torch.float64)
        self.array = np.full(4, 0.5)

    def forward(self, x):
        with self.lent(self):
            scale = self.scale * self.tensor * torch.tensor(self.array)
            return x + scale * torch.tanh(self.linear(x))


def number(layer):
    before, layer.scale = layer.scale, 3 * layer.scale
    yield
    layer.scale = before


def in_place(layer):
    layer.tensor.mul_(3)
    yield
    layer.tensor.div_(3)


def through_data(layer):
    layer.tensor.data.mul_(3)
    yield
    layer.tensor.data.div_(3)


def by_numpy(layer):
    layer.array *= 3
    yield
    layer.array /= 3


class Layers(nn.Module):
    def __init__(self, lent, numbers):
        super().__init__()
        self.layers = nn.ModuleList([Lending(contextlib.contextmanager(lent)) for _ in range(4)])
        self.numbers = numbers

    def forward(self, x):
        for layer, scale in zip(self.layers, self.numbers, strict=True):
            if scale is not None:
                layer.scale = scale
            x = layer(x)
        return x


class Increment(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x) - x


@pytest.mark.parametrize("numbers", [(None,) * 4, (0.4, 0.6, 0.8, 1.0)], ids=["as made", "set by the model"])
@pytest.mark.parametrize("lent", [number, in_place, through_data, by_numpy])
@pytest.mark.parametrize("kind", ["converted", "converted, eval()", "stack", "stack, segments"])
def test_what_a_layer_puts_back_at_its_end_is_put_back_in_the_way_back(kind, lent, numbers):
    torch.manual_seed(0)
    plain = Layers(lent, numbers)
    model, x = copy.deepcopy(plain), torch.randn(3, 4, dtype=torch.float64)
    if "stack" in kind:
        gradient = "checkpoint:segments=2" if "segments" in kind else "checkpoint"
        for layer, scale in zip(model.layers, numbers, strict=True):
            layer.scale = scale or layer.scale
        run = ResidualStack([Increment(layer) for layer in model.layers], gradient=gradient, t1=4.0)
    else:
        run = convert(model, example=x, gradient="checkpoint").train("eval" not in kind)
    for _ in range(3):
        expected, gradients = (
            torch.autograd.grad(net(x).square().sum(), [*owner.parameters()])
            for net, owner in ((plain, plain), (run, model))
        )
        for one, other in zip(expected, gradients, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-12, atol=0)
        for one, other in zip(plain.layers, model.layers, strict=True):
            assert (other.scale, other.tensor.tolist(), other.array.tolist()) == (
                one.scale,
                one.tensor.tolist(),
                one.array.tolist(),
            )


class Overwrites(nn.Module):
    """Writes on its state after a product that saves it for the gradient of its weights alone."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[0.3, -0.2], [0.1, 0.4]]))

    def forward(self, *arguments):
        y = arguments[-1]
        slope = torch.tanh(y @ self.weight)
        return y.copy_(slope)


@pytest.mark.parametrize("gradient", ["checkpoint", "checkpoint:segments=2", "checkpoint:states=2", "discrete-adjoint"])
@pytest.mark.parametrize("what", ["field", "block", "weights"])
def test_what_was_looked_at_with_frozen_weights_is_looked_at_again(what, gradient):
    """What a graph saves depends on what needs a gradient: the first pass, with frozen weights, sees nothing wrong."""
    x, module = torch.tensor([[1.0, 0.5]]), Overwrites()
    stack = ResidualStack([module, module], gradient=gradient)

    def run():
        if what == "block":
            return stack(x)
        field, weights = (
            (module, None) if what == "field" else (lambda t, y, w: y.copy_(torch.tanh(y @ w)), module.weight)
        )
        return odenet.solve(field, x, weights, steps=4, gradient=gradient).y1

    module.requires_grad_(False)
    run()
    module.requires_grad_(True)
    with pytest.raises(odenet.GradientError, match="writes in place on a tensor that autograd has saved"):
        run().sum().backward()
