"""The way back in stages: gradients of weights are autograd's as soon as a layer is done, and what they were."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import odenet
from odenet_torch import ResidualStack
from odenet_torch.gradients import stages
from odenet_torch.verbs.measure import LiveBytes

METHODS = {
    "checkpoint": "heun",
    "checkpoint:segments=2": "euler",
    "checkpoint:states=2": "euler",
    "checkpoint:bits=8": "euler",
    "discrete-adjoint": "heun",
    "discrete-adjoint:anchors=2": "euler",
    "continuous-adjoint": "rk4",
    "reversible": "reversible-heun",
}


class Block(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x, shift=0.0):
        return torch.tanh(self.linear(self.norm(x + shift)))


def stack(gradient, along="piecewise", layers=5, **choices):
    torch.manual_seed(0)
    solver = choices.pop("solver", None) or METHODS[gradient]
    return ResidualStack([Block() for _ in range(layers)], solver=solver, gradient=gradient, along=along, **choices)


def passes(model, x, count=3):
    """Gradients of several passes in a row, since the first ones over a block are another way than those after."""
    for _ in range(count):
        model.zero_grad()
        x.grad = None
        model(x).square().sum().backward()
    return [x.grad, *(p.grad for p in model.parameters())]


@pytest.fixture
def fine(monkeypatch):
    """A stage for each layer."""
    monkeypatch.setattr(stages, "LEAST", 1)


def both(monkeypatch, run):
    monkeypatch.setattr(stages, "LEAST", 1 << 40)
    whole = run()
    monkeypatch.setattr(stages, "LEAST", 1)
    for a, b in zip(run(), whole, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("along", ["piecewise", "linear"])
@pytest.mark.parametrize("gradient", METHODS)
def test_the_gradients_are_the_same_bit_by_bit(monkeypatch, gradient, along):
    both(monkeypatch, lambda: passes(stack(gradient, along), torch.randn(3, 4, requires_grad=True)))


@pytest.mark.parametrize("gradient", METHODS)
def test_tied_frozen_and_drawing_blocks_and_a_shift(monkeypatch, gradient):
    def run():
        torch.manual_seed(0)
        a, b, c = Block(), nn.Sequential(Block(), nn.Dropout(0.3)), Block()
        c.requires_grad_(False)
        model = ResidualStack([c, a, b, a, c], solver=METHODS[gradient], gradient=gradient, along="piecewise")
        x = torch.randn(3, 4)
        for _ in range(2):
            model.zero_grad()
            torch.manual_seed(1)
            model(x).square().sum().backward()
        return [p.grad for p in model.parameters()]

    both(monkeypatch, run)


def test_layers_of_a_field(monkeypatch):
    def run():
        torch.manual_seed(0)
        w = [torch.randn(4, 4, requires_grad=True) for _ in range(4)]
        y0 = {"a": torch.randn(3, 4, requires_grad=True), "b": torch.randn(2, 4)}
        depth = odenet.Depth.each(w)
        y1 = odenet.solve(
            lambda t, y, w: {k: torch.tanh(v @ w) for k, v in y.items()},
            y0,
            depth,
            steps=8,
            gradient="discrete-adjoint",
        ).y1
        (y1["a"].sum() + y1["b"].square().sum()).backward()
        return [y0["a"].grad, *(each.grad for each in w)]

    both(monkeypatch, run)


@pytest.mark.usefixtures("fine")
@pytest.mark.parametrize("gradient", METHODS)
def test_hooks_see_each_gradient_once_and_from_the_last_layer_on(gradient):
    model, x = stack(gradient), torch.randn(3, 4)
    for _ in range(2):
        model(x).square().sum().backward()
    order, seen = [], []
    for name, p in model.named_parameters():
        p.grad = None
        p.register_hook(lambda g, name=name: seen.append((name, g.clone())))
        p.register_post_accumulate_grad_hook(lambda p, name=name: order.append((name, p.grad.clone())))
    model(x).square().sum().backward()
    assert sorted(name for name, _ in order) == sorted(name for name, _ in model.named_parameters())
    assert [int(name.split(".")[1]) for name, _ in order[:: len(order) // 5]] == [4, 3, 2, 1, 0]
    assert all(torch.equal(g, dict(seen)[name]) for name, g in order)
    assert len(seen) == len(order)


@pytest.mark.usefixtures("fine")
@pytest.mark.parametrize("gradient", METHODS)
def test_an_optimizer_within_the_backward_pass(gradient):
    """Weights may be written on as soon as their gradient is there."""

    def descend(p):
        p.data.sub_(0.1 * p.grad)
        p.grad = None

    def train(within):
        model, x = stack(gradient), torch.randn(3, 4, generator=torch.Generator().manual_seed(2))
        if within:
            for p in model.parameters():
                p.register_post_accumulate_grad_hook(descend)
        for _ in range(3):
            model(x).square().sum().backward()
            for p in () if within else model.parameters():
                descend(p)
        return list(model.parameters())

    for a, b in zip(train(within=True), train(within=False), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.usefixtures("fine")
@pytest.mark.parametrize("gradient", METHODS)
def test_some_gradients_alone(gradient):
    model, x = stack(gradient), torch.randn(3, 4, requires_grad=True)
    expected = dict(zip(["x", *dict(model.named_parameters())], passes(model, x), strict=True))
    model.zero_grad()
    for wanted in (
        ["x"],
        ["blocks.4.linear.weight"],
        ["blocks.1.norm.bias", "blocks.3.linear.bias"],
        ["blocks.0.linear.bias", "x"],
    ):
        inputs = [dict(model.named_parameters(), x=x)[name] for name in wanted]
        for g, name in zip(torch.autograd.grad(model(x).square().sum(), inputs), wanted, strict=True):
            torch.testing.assert_close(g, expected[name], rtol=0, atol=0)
    assert all(p.grad is None for p in model.parameters())
    loss = model(x).square().sum()
    for _ in range(2):
        found = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
        for g, p in zip(found, list(expected)[1:], strict=True):
            torch.testing.assert_close(g, expected[p], rtol=0, atol=0)


@pytest.mark.usefixtures("fine")
def test_second_derivatives_of_checkpoint():
    model, reference = stack("checkpoint"), stack("backprop", solver="heun")
    x = torch.randn(3, 4, requires_grad=True)

    def second(of):
        for _ in range(2):
            of(x)
        of.zero_grad()
        first = torch.autograd.grad(of(x).square().sum(), [x, *of.parameters()], create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), [x, *of.parameters()])

    for a, b in zip(second(model), second(reference), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gradient", ["checkpoint", "checkpoint:states=2", "discrete-adjoint", "reversible"])
def test_accumulated_gradients_are_no_second_copy_of_the_weights(monkeypatch, gradient):
    width, layers = 64, 12
    blocks = [nn.Sequential(nn.Linear(width, 4 * width), nn.Tanh(), nn.Linear(4 * width, width)) for _ in range(layers)]
    solver = "reversible-heun" if gradient == "reversible" else "euler"
    model, x = ResidualStack(blocks, gradient=gradient, solver=solver, along="piecewise"), torch.randn(2, width)
    weights = sum(p.nbytes for p in model.parameters())

    def peak():
        for _ in range(3):
            model(x).square().sum().backward()  # the gradients are there
        with LiveBytes() as mode:
            model(x).square().sum().backward()
        return mode.peak

    whole = peak()
    monkeypatch.setattr(stages, "LEAST", 1)
    assert whole > weights
    assert peak() < 0.35 * weights
