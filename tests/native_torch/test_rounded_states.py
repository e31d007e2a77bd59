"""`checkpoint:bits=8` and `bits=16` on torch: bytes counted, blocks run again as they ran, modules, models."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import odenet
from odenet_torch import NeuralODE, ResidualStack, convert, solve
from odenet_torch.verbs.measure import LiveBytes


def field(t, y, w):
    return torch.tanh(y * w)


@pytest.mark.parametrize(
    ("shape", "rows"),
    [((256, 48), 256), ((8, 16, 32), 128), ((4, 3, 8, 8), 12), ((8, 7, 2, 2), 8), ((50,), 1), ((), 1)],
)
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize(("solver", "bits"), [("euler", 8), ("rk4", 16)])
def test_bytes_kept_are_those_of_the_codes_their_scales_and_one_state(shape, rows, kind, solver, bits):
    """A row for each sample and position, for each channel of an image, for each sample where these are few numbers."""
    steps, y0 = 20, torch.ones(shape, dtype=kind, requires_grad=True)
    w = torch.ones((), dtype=kind, requires_grad=True)
    with LiveBytes() as mode:
        y1 = solve(field, y0, w, steps=steps, solver=solver, gradient=f"checkpoint:bits={bits}").y1
    assert y1.requires_grad
    scale = 2 if bits == 8 and kind is torch.float32 else kind.itemsize
    codes = steps * (y0.numel() * bits // 8 + rows * scale)
    # y0, which the caller may write on, and the rounded end beside the solution; numbers: the certificate
    assert 0 <= mode.live - codes - 3 * y0.nbytes <= 2 * kind.itemsize
    cost = odenet.Checkpoint(bits=bits).cost(odenet.solver(solver), steps)
    assert (cost.states, cost.rounded) == (2, steps)


@pytest.mark.parametrize("solver", ["euler", "heun", "rk4"])
def test_f_is_evaluated_as_often_as_by_checkpoint(solver):
    counts = []
    for gradient in ("checkpoint:states=12", "checkpoint:bits=8"):
        seen = []

        def counted(t, y, w, seen=seen):
            seen.append(torch.is_grad_enabled())
            return field(t, y, w)

        y0, w = torch.ones(3, 4, requires_grad=True), torch.ones(4, requires_grad=True)
        solve(counted, y0, w, steps=12, solver=solver, gradient=gradient).y1.sum().backward()
        counts.append(len(seen))
    cost = odenet.Checkpoint(bits=8).cost(odenet.solver(solver), 12)
    assert counts[0] == counts[1] == cost.f_forward + cost.f_backward


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.linear, self.drop = nn.BatchNorm1d(width), nn.Linear(width, width), nn.Dropout(0.2)

    def forward(self, x):
        return self.drop(torch.tanh(self.linear(self.norm(x))))


def gradient_of(model, x, cast=False):
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16, enabled=cast):
        loss = model(x).square().sum()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def apart(one, other):
    return ((one - other).norm() / other.norm()).item()


@pytest.mark.parametrize("cast", [False, True])
def test_blocks_run_again_as_they_ran(cast):
    """Dropout draws the same masks, running statistics are updated once, autocast is that of the forward pass."""
    torch.manual_seed(0)
    blocks, x = nn.ModuleList(Block(32) for _ in range(8)), torch.randn(16, 32)
    plain = ResidualStack(copy.deepcopy(blocks), gradient="backprop")
    exact = gradient_of(plain, x, cast)
    for bits, most in ((8, 1e-3), (16, 1e-5)):
        stack = ResidualStack(copy.deepcopy(blocks), gradient=f"checkpoint:bits={bits}")
        assert apart(gradient_of(stack, x, cast), exact) < (max(most, 1e-2) if cast else most)
        assert stack.certificate is not None
        assert 0 < stack.certificate < most
        for one, other in zip(stack.buffers(), plain.buffers(), strict=True):
            assert torch.equal(one, other)


def test_a_stack_with_weights_linear_in_depth_and_a_neural_ode():
    torch.manual_seed(0)
    x = torch.randn(5, 40)

    class Field(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(40, 40)

        def forward(self, t, y):
            return torch.tanh(self.linear(y)) + t

    blocks, ode = nn.ModuleList(nn.Sequential(nn.Linear(40, 40), nn.Tanh()) for _ in range(9)), Field()
    makes = (
        lambda gradient: ResidualStack(copy.deepcopy(blocks), solver="heun", gradient=gradient),
        lambda gradient: NeuralODE(copy.deepcopy(ode), steps=8, gradient=gradient),
    )
    for make in makes:
        exact = gradient_of(make("backprop"), x)
        model = make("checkpoint:bits=8")
        assert 0 < apart(gradient_of(model, x), exact) < 3 * model.certificate < 3e-3


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x):
        return x + torch.tanh(self.linear(self.norm(x)))


def test_a_model_that_is_converted_by_name():
    """With h = 1, where rebuilding by reversal is far off."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 48), *(Residual(48) for _ in range(12)), nn.Linear(48, 3))
    x = torch.randn(10, 8)
    exact = gradient_of(copy.deepcopy(model), x)
    found = {}
    for gradient in ("checkpoint:bits=8", "checkpoint:bits=16", "discrete-adjoint"):
        converted = convert(copy.deepcopy(model), example=x, gradient=gradient)
        found[gradient] = apart(gradient_of(converted, x), exact)
        if "bits" in gradient:
            run = converted[1].odenet_run
            assert found[gradient] < 3 * run.certificate
            assert 1 / 3 < run.gradient_error / found[gradient] < 3
    assert found["checkpoint:bits=8"] < 1e-2 < found["discrete-adjoint"]
    assert found["checkpoint:bits=16"] < 1e-4


def test_a_graph_that_is_gone_back_through_twice():
    y0, w = torch.ones(3, 40, requires_grad=True), torch.linspace(-1, 1, 40).requires_grad_()
    loss = solve(field, y0, w, steps=9, gradient="checkpoint:bits=8").y1.sum()
    first = torch.autograd.grad(loss, [y0, w], retain_graph=True)
    for one, other in zip(first, torch.autograd.grad(loss, [y0, w]), strict=True):
        assert torch.equal(one, other)


def test_second_derivatives_are_refused():
    y0 = torch.ones(3, 4, requires_grad=True)
    loss = solve(lambda t, y: torch.sin(y), y0, steps=4, gradient="checkpoint:bits=8").y1.sum()
    with pytest.raises(odenet.UnsupportedError, match="second derivative through gradient='checkpoint:bits=8'"):
        torch.autograd.grad(loss, y0, create_graph=True)


def test_no_number_is_read_on_the_host_in_the_forward_pass(monkeypatch):
    reads = []
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self, plain=torch.Tensor.tolist: reads.append(1) or plain(self))
    monkeypatch.setattr(torch.Tensor, "item", lambda self, plain=torch.Tensor.item: reads.append(1) or plain(self))
    y0 = torch.ones(3, 40, requires_grad=True)
    loss = solve(lambda t, y: torch.sin(y), y0, steps=30, gradient="checkpoint:bits=8").y1.sum()
    assert not reads
    loss.backward()
    # which chains restarted, what there is to say at the end, and on the host up to three ends that are looked at
    assert 2 + 2 <= len(reads) <= 2 + 3
