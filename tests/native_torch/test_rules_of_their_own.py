"""Fields with backward passes of their own (`torch.autograd.Function`, hooks): what is not linear is compared whole."""

from __future__ import annotations

import warnings

import pytest
import torch
from quick import quick
from torch import nn

import odenet
from odenet_torch import ResidualStack, odeint, odeint_adjoint, solve
from odenet_torch.field.jumps import jumps
from odenet_torch.field.kinks import kinked
from odenet_torch.field.linearity import uneven

GENERATOR = torch.Generator().manual_seed(1)
Y0, W = torch.tensor([[1.0, -0.4, 0.3], [0.2, 0.9, -1.1]]), torch.randn(3, 3, generator=GENERATOR)


def ruled(backward, forward=torch.clone):
    """A function with a backward pass of the state and the gradient."""

    class Rule(torch.autograd.Function):
        @staticmethod
        def forward(ctx, h):
            ctx.save_for_backward(h)
            return forward(h)

        @staticmethod
        def backward(ctx, g):
            return backward(*ctx.saved_tensors, g)

    return Rule.apply


def hooked(hook):
    def function(h):
        h = h * 1
        if h.requires_grad:
            h.register_hook(hook)
        return h

    return function


def module(hook, register="register_full_backward_hook"):
    inner = nn.Tanh()
    getattr(inner, register)(lambda _, given, g: (hook(given[0]),))
    return inner


def clipping(g):
    return g.clamp(-0.05, 0.05)


clip = ruled(lambda h, g: clipping(g))
LINEAR = {
    "tanh": ruled(lambda h, g: g * (1 - torch.tanh(h) ** 2), torch.tanh),
    "relu": ruled(lambda h, g: g * (h > 0).to(h.dtype), torch.relu),
    "reversed": ruled(lambda h, g: -0.7 * g),
    "straight through": ruled(lambda h, g: g, torch.round),
    "stopped": ruled(lambda h, g: torch.zeros_like(g)),
    "none": ruled(lambda h, g: None),
    "solved": ruled(lambda h, g: torch.linalg.solve(torch.eye(3, dtype=h.dtype) + h.mT @ h, g.mT).mT),
    "scaled by a hook": hooked(lambda g: 2 * g),
    "read by a hook": hooked(lambda g: None),
    "scaled by a module": module(lambda g: 2 * g),
    "no rule": torch.sin,
}
UNEVEN = {
    "clipped": clip,
    "by norm": ruled(lambda h, g: g / g.norm().clamp_min(1.0)),
    "normalised": ruled(lambda h, g: g / (g.norm() + 1e-12)),
    "signs": ruled(lambda h, g: g.sign()),
    "squares": ruled(lambda h, g: g * g.abs()),
    "dead zone": ruled(lambda h, g: torch.where(g.abs() > 1e-5, g, 0.0)),
    "of one sign": ruled(lambda h, g: g.clamp_min(0)),
    "added to": ruled(lambda h, g: g + 0.01),
    "replaced": ruled(lambda h, g: torch.ones_like(g)),
    "noise": ruled(lambda h, g: g + torch.randn_like(g)),
    "of eight bits": ruled(lambda h, g: g.to(torch.float8_e4m3fn).to(g.dtype)),
    "refused": ruled(lambda h, g: 1 / 0),
    "hook": hooked(clipping),
    "module": module(clipping),
    "older hook": module(clipping, "register_backward_hook"),
    "in a loop": lambda h: clip(torch.sin(clip(h))),
    "recomputed": lambda h: torch.utils.checkpoint.checkpoint(clip, h, use_reentrant=False),
}
MASKED = {  # by the state, whatever the forward pass does
    "sign": ruled(lambda h, g: torch.where(h.abs() <= 1, g, 0.0), torch.sign),
    "window": ruled(lambda h, g: torch.where(h.abs() <= 0.5, g, 0.0)),
    "window of tanh": ruled(lambda h, g: torch.where(h.abs() <= 0.5, g, 0.0), torch.tanh),
    "of hardtanh": ruled(lambda h, g: torch.ops.aten.hardtanh_backward(g, h, -0.3, 0.3), torch.sin),
    "branches": ruled(lambda h, g: torch.where(h > 0, g, -0.5 * g), torch.sin),
    "filled": ruled(lambda h, g: g.masked_fill(h > 0.4, 0.0), torch.sin),
}
ROUNDED = {
    "rounded": ruled(lambda h, g: g * (0.5 + torch.round(2 * h) / 2), torch.nn.functional.silu),
    "counted": ruled(lambda h, g: g * (3 * h).long(), torch.tanh),
}


class Block(nn.Module):
    def __init__(self, function, w=W):
        super().__init__()
        self.function, self.w = function, nn.Parameter(w.clone())

    def forward(self, y):
        return torch.tanh(self.function(y @ self.w))


def looked_at(function, dtype):
    """A field that was looked at, which has left neither gradients nor the random state otherwise."""
    block = Block(function).to(dtype)

    def field(t, y):
        return block(y)

    before = torch.get_rng_state()
    y0 = Y0.to(dtype, copy=True).requires_grad_()
    solve(field, y0, steps=1, t1=0.1, solver="euler", gradient="discrete-adjoint")
    assert block.w.grad is None
    assert y0.grad is None
    assert torch.equal(torch.get_rng_state(), before)
    return field


@pytest.mark.parametrize("dtype", quick([torch.float64, torch.float32, torch.bfloat16], [torch.float32]))
def test_what_is_linear_and_what_is_not(dtype):
    linear = {name: function for name, function in LINEAR.items() if (name, dtype) != ("solved", torch.bfloat16)}
    assert [name for name, function in linear.items() if uneven(looked_at(function, dtype))] == []
    assert [name for name, function in UNEVEN.items() if not uneven(looked_at(function, dtype))] == []


@pytest.mark.parametrize("dtype", quick([torch.float64, torch.float32], [torch.float64]))
def test_a_backward_that_masks_by_the_state_has_kinks_and_is_compared_whole_where_it_is_no_derivative(dtype):
    assert [name for name, rule in MASKED.items() if not kinked(looked_at(rule, dtype))] == []
    assert [name for name, rule in MASKED.items() if not uneven(looked_at(rule, dtype))] == []
    assert kinked(looked_at(LINEAR["relu"], dtype))  # which is one, as `test_what_is_linear_and_what_is_not` sees
    smooth = ("tanh", "reversed", "scaled by a hook", "solved", "stopped")
    assert [name for name in smooth if kinked(looked_at(LINEAR[name], dtype))] == []


@pytest.mark.parametrize("name", ["window", "of hardtanh"])
def test_the_continuous_adjoint_says_what_a_mask_changes(name):
    exact, _, _ = gradient(MASKED[name], "backprop", rtol=1e-3, atol=1e-3)
    found, certificate, said = gradient(MASKED[name], "continuous-adjoint", rtol=1e-3, atol=1e-3)
    assert certificate == pytest.approx(error(found, exact), rel=0.05, abs=1e-3)
    assert bool(said) == (certificate > 0.1)


def test_a_backward_that_rounds_by_the_state_jumps():
    assert [name for name, function in ROUNDED.items() if not jumps(looked_at(function, torch.float64))] == []
    smooth = {name: LINEAR[name] for name in ("tanh", "relu", "reversed", "scaled by a hook")}
    smooth |= {"signs": UNEVEN["signs"], "of eight bits": UNEVEN["of eight bits"]}  # of the gradient alone
    assert [name for name, function in smooth.items() if jumps(looked_at(function, torch.float64))] == []


def test_a_block_without_rules_is_asked_for_no_gradient(monkeypatch):
    asked = []
    monkeypatch.setattr("odenet_torch.field.linearity.pullback", lambda *arguments: asked.append(arguments))
    looked_at(torch.cos, torch.float64)
    assert asked == []


def test_a_backward_that_adds_to_gradients_itself_adds_once():
    """As reversible blocks of the user's own do."""

    class Inner(torch.autograd.Function):
        @staticmethod
        def forward(ctx, h):
            ctx.save_for_backward(h)
            return h.sin()

        @staticmethod
        def backward(ctx, g):
            with torch.enable_grad():
                h = ctx.saved_tensors[0].detach().requires_grad_()
                torch.autograd.backward((h * block.bias).sin(), g)
            return h.grad

    block = Block(Inner.apply).double()
    block.bias = nn.Parameter(torch.ones(3, dtype=torch.float64))
    y0 = Y0.to(torch.float64, copy=True).requires_grad_()
    solved = solve(lambda t, y: block(y), y0, steps=1, t1=0.1, solver="euler", gradient="discrete-adjoint")
    assert block.bias.grad is None
    del solved


def gradient(function, method, **choices):
    """With respect to y0 and weights, the certificate, and what was said."""
    block, y0 = Block(function).double(), Y0.to(torch.float64, copy=True).requires_grad_()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", odenet.GradientWarning)
        solution = solve(lambda t, y: block(y), y0, gradient=method, **choices)
        torch.sin(solution.y1).sum().backward()
    return (y0.grad, block.w.grad), solution.stats.certificate, [str(warning.message) for warning in said]


def error(ones, others):
    return max(float((one - other).norm() / other.norm()) for one, other in zip(ones, others, strict=True))


@pytest.mark.parametrize(
    "name", quick(["clipped", "added to", "replaced", "hook", "module", "older hook"], ["clipped", "hook"])
)
@pytest.mark.parametrize(
    "choices", [{"rtol": 1e-4, "atol": 1e-4}, {"steps": 12, "solver": "heun"}], ids=lambda c: next(iter(c))
)
def test_the_certificate_of_what_is_not_is_the_error_beside_the_network(name, choices):
    exact, _, _ = gradient(UNEVEN[name], "backprop", **choices)
    found, certificate, said = gradient(UNEVEN[name], "continuous-adjoint", **choices)
    off = error(found, exact)
    assert certificate == pytest.approx(off, rel=0.05, abs=1e-3)
    assert bool(said) == (off > 0.1)
    assert all("all steps are compared" in text for text in said)
    assert off > 0.1 or name != "clipped"
    for method in ("discrete-adjoint", "checkpoint"):  # of the network's own steps
        found, certificate, said = gradient(UNEVEN[name], method, **choices)
        assert error(found, exact) < 0.02
        assert not said


@pytest.mark.parametrize("choices", [{"method": "dopri5", "rtol": 1e-4, "atol": 1e-4}, {"method": "rk4"}])
def test_the_drop_in_says_it(choices):
    def found(integrate):
        block, y0 = Block(clip).double(), Y0.to(torch.float64, copy=True).requires_grad_()
        field = nn.Module()
        field.block, field.forward = block, lambda t, y: block(y)
        ys = integrate(field, y0, torch.linspace(0, 1, 2 if "rtol" in choices else 9, dtype=torch.float64), **choices)
        torch.sin(ys[-1]).sum().backward()
        return y0.grad, block.w.grad

    exact = found(odeint)
    with pytest.warns(odenet.GradientWarning, match="all steps are compared"):
        assert error(found(odeint_adjoint), exact) > 0.1


def test_blocks_of_a_stack():
    stack = ResidualStack([Block(clip, W * (1 + n / 8)) for n in range(8)], gradient="continuous-adjoint").double()
    with pytest.warns(odenet.GradientWarning, match="all steps are compared"):
        torch.sin(stack(Y0.to(torch.float64, copy=True).requires_grad_())).sum().backward()
    assert stack.certificate > 0.1
