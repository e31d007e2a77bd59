"""Gradients of half-precision weights that many steps read add up in float32, and are rounded once."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import odenet
from odenet_torch import NeuralODE, ResidualStack, odeint, odeint_adjoint

HALVES = (torch.bfloat16, torch.float16)
METHODS = (
    "backprop",
    "checkpoint",
    "checkpoint:segments=3",
    "checkpoint:states=3",
    "discrete-adjoint",
    "continuous-adjoint",
)
STEPS = 160  # enough for sums in bfloat16 to be far off


def field(t, y, w):
    return torch.tanh(y.to(w.dtype) * w + w).to(y.dtype)


def weights(kind, *shape):
    torch.manual_seed(3)
    w = (torch.randn(*shape, 4) + 0.1).to(torch.bfloat16).to(kind).requires_grad_()
    y0 = torch.randn(8, 4).to(torch.bfloat16).to(torch.float64 if kind is torch.float64 else torch.float32)
    return w, y0.requires_grad_()


def apart(found, expected):
    found, expected = (torch.cat([g.double().flatten() for g in each]) for each in (found, expected))
    return float((found - expected).norm() / expected.norm())


def shared(kind, gradient, **choices):
    w, y0 = weights(kind)
    y1 = odenet.solve(field, y0, w, gradient=gradient, **choices).y1
    y1.square().mean().backward()
    return w.grad, y0.grad


def layered(kind, gradient, **choices):
    w, y0 = weights(kind, 2)
    y1 = odenet.solve(field, y0, odenet.Depth(w, choices.pop("along")), gradient=gradient, **choices).y1
    y1.square().mean().backward()
    return w.grad, y0.grad


class OfTime(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.w = nn.Parameter(weights(kind)[0].detach())

    def forward(self, t, y):
        return field(t, y, self.w)


class Block(OfTime):
    def forward(self, y, shift=0.0):
        return field(None, y + shift, self.w)


def by_module(kind, gradient, **choices):
    f, (_, y0) = OfTime(kind), weights(kind)
    NeuralODE(f, gradient=gradient, **choices)(y0).square().mean().backward()
    return f.w.grad, y0.grad


def by_tied_blocks(kind, gradient, steps, **choices):
    block, (_, y0) = Block(kind), weights(kind)
    shift = torch.full((4,), 0.125, dtype=kind, requires_grad=True)
    stack = ResidualStack([block] * steps, along="piecewise", gradient=gradient, **choices)
    stack(y0, shift=shift).square().mean().backward()
    return block.w.grad, shift.grad, y0.grad


@pytest.mark.parametrize("gradient", METHODS)
@pytest.mark.parametrize("solve", [shared, by_module, by_tied_blocks])
def test_with_equal_steps(solve, gradient):
    for solver, steps in (("euler", STEPS), ("rk4", STEPS // 6)) if solve is shared else [("heun", STEPS // 2)]:
        expected = solve(torch.float64, "backprop", solver=solver, steps=steps)
        assert apart(solve(torch.bfloat16, gradient, solver=solver, steps=steps), expected) < 0.01


@pytest.mark.parametrize("gradient", METHODS[1::2])
def test_layers_of_many_steps(gradient):
    for along in ("piecewise", "linear"):
        expected = layered(torch.float64, "backprop", solver="euler", steps=STEPS, along=along)
        assert apart(layered(torch.bfloat16, gradient, solver="euler", steps=STEPS, along=along), expected) < 0.01


def test_both_kinds():
    expected = shared(torch.float64, "backprop", solver="euler", steps=STEPS)
    for kind in HALVES:
        for gradient in ("backprop", "checkpoint:states=3"):
            found = shared(kind, gradient, solver="euler", steps=STEPS)
            assert found[0].dtype is kind
            assert apart(found, expected) < 0.01


@pytest.mark.parametrize("solve", [shared, by_module])
def test_with_adaptive_steps(solve):
    choices = {"control": odenet.PIDController(rtol=1e-3, atol=1e-3, max_step=1 / 40)}
    expected = solve(torch.float64, "backprop", **choices)
    for gradient in ("backprop", "checkpoint", "checkpoint:states=3", "discrete-adjoint", "continuous-adjoint"):
        assert apart(solve(torch.bfloat16, gradient, **choices), expected) < 0.01, gradient


def test_rows_with_steps_of_their_own():
    choices = {"control": odenet.PIDController(rtol=1e-3, atol=1e-3, max_step=1 / 40, per_sample=True)}
    expected = by_module(torch.float64, "backprop", **choices)
    assert apart(by_module(torch.bfloat16, "backprop", **choices), expected) < 0.01
    assert apart(shared(torch.bfloat16, "backprop", **choices), expected) < 0.01


@pytest.mark.parametrize(
    "choices", [{"method": "euler", "options": {"step_size": 1 / STEPS}}, {"rtol": 1e-5, "atol": 1e-5}]
)
def test_the_calls_of_torchdiffeq(choices):
    def solve(interface, kind):
        f, (_, y0) = OfTime(kind), weights(kind)
        interface(f, y0, torch.tensor([0.0, 1.0]), **choices)[-1].square().mean().backward()
        return f.w.grad, y0.grad

    expected = solve(odeint, torch.float64)
    for interface in (odeint, odeint_adjoint):
        assert apart(solve(interface, torch.bfloat16), expected) < 0.01


def test_under_autocast():
    torch.manual_seed(0)
    block, x = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8)), torch.randn(16, 8)

    def solve(gradient, enabled):
        tied = copy.deepcopy(block)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y = ResidualStack([tied] * 300, gradient=gradient)(x)
        y.float().square().mean().backward()
        return [p.grad for p in tied.parameters()]

    expected = solve("backprop", enabled=False)
    for gradient in ("backprop", "checkpoint", "discrete-adjoint"):
        assert apart(solve(gradient, enabled=True), expected) < 0.02, gradient


def test_what_a_module_holds_is_left_as_it_was():
    f, (_, y0) = OfTime(torch.bfloat16), weights(torch.bfloat16)
    w = f.w
    seen = []
    f.w.register_hook(lambda g: seen.append(g.dtype))
    y1 = NeuralODE(f, steps=8, solver="euler")(y0)
    assert f.w is w
    y1.sum().backward()
    assert seen == [torch.bfloat16]
    assert f.w.grad is not None


def test_second_derivatives():
    def solve(kind):
        w, y0 = weights(kind)
        y1 = odenet.solve(field, y0, w, steps=4).y1
        (g,) = torch.autograd.grad(y1.square().mean(), w, create_graph=True)
        return torch.autograd.grad(g.double().square().sum(), w)

    assert apart(solve(torch.bfloat16), solve(torch.float64)) < 0.05


class Scriptable(nn.Module):
    """The same field, in what TorchScript compiles."""

    def __init__(self, kind):
        super().__init__()
        self.w = nn.Parameter(weights(kind)[0].detach())

    def forward(self, t: torch.Tensor, y: torch.Tensor):
        return torch.tanh(y.to(self.w.dtype) * self.w + self.w).to(y.dtype)


class Around(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, t, y):
        return self.inner(t, y)


def closed_over(script):
    return lambda t, y: script(t, y)


def traced(module):
    return torch.jit.trace(module, (torch.tensor(0.0), weights(torch.float32)[1]))


SCRIPTED = {
    "script": torch.jit.script,
    "trace": traced,
    "within a module": lambda module: Around(torch.jit.script(module)),
    "within two": lambda module: torch.jit.script(Around(module)),
    "closure": lambda module: closed_over(torch.jit.script(module)),
}
SCRIPT_SOLVES = {
    "equal": lambda f, y: odenet.solve(f, y, solver="euler", steps=STEPS).y1,
    "adaptive": lambda f, y: odenet.solve(f, y, control=odenet.PIDController(1e-3, 1e-3, max_step=1 / 40)).y1,
    "odeint": lambda f, y: odeint(f, y, torch.tensor([0.0, 1.0]), method="euler", options={"step_size": 1 / STEPS})[-1],
}


@pytest.mark.filterwarnings("ignore:.torch.jit.(script|trace|trace_method). is deprecated:DeprecationWarning")
@pytest.mark.parametrize("solve", SCRIPT_SOLVES.values(), ids=SCRIPT_SOLVES)
@pytest.mark.parametrize("compiled", SCRIPTED.values(), ids=SCRIPTED)
def test_modules_of_torchscript(compiled, solve):
    def gradients(kind, wrap):
        module, (_, y0) = Scriptable(kind), weights(kind)
        field, before = wrap(module), [*module.parameters()]
        solve(field, y0).square().mean().backward()
        assert [id(p) for p in module.parameters()] == [id(p) for p in before]
        if isinstance(field, nn.Module):
            assert [id(p) for p in field.parameters()] == [id(p) for p in before]
        return module.w.grad, y0.grad

    expected = gradients(torch.float64, lambda module: module)
    assert apart(gradients(torch.bfloat16, compiled), expected) < 0.01


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_blocks_of_torchscript_that_are_one():
    def gradients(kind, wrap):
        module, (_, y0) = Scriptable(kind), weights(kind)
        block = wrap(module)
        blocks = [block] * STEPS
        stack = ResidualStack(blocks, along="piecewise", solver="euler")
        stack(y0).square().mean().backward()
        return module.w.grad, y0.grad

    def script(module):
        return torch.jit.script(OfState(module))

    expected = gradients(torch.float64, OfState)
    assert apart(gradients(torch.bfloat16, script), expected) < 0.01


class OfState(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, y: torch.Tensor):
        return self.inner(y.new_zeros(()), y)


def test_weights_are_not_looked_for_in_libraries():
    from odenet_torch.field.half_precision import _held

    module = nn.Linear(2, 2).bfloat16()

    def field(t, y):
        return torch.tanh(module(y))

    assert module in (held := [*_held(field)])
    assert len(held) < 20  # torch alone has 1500 names
