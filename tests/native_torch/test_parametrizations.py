"""Blocks with parametrized weights, whose cache a second evaluation must not read."""

from __future__ import annotations

import contextlib

import pytest
import torch
from of_time import OfTime
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import odenet
from odenet_torch import NeuralODE, ResidualStack, odeint, odeint_adjoint

KINDS = {
    "weight_norm": parametrizations.weight_norm,
    "orthogonal": parametrizations.orthogonal,
    "spectral_norm": lambda module: parametrizations.spectral_norm(module).eval(),
}


def block(kind):
    return nn.Sequential(KINDS[kind](nn.Linear(4, 4)), nn.Tanh(), nn.Linear(4, 4))


def layers(kind, **choices):
    return ResidualStack([block(kind) for _ in range(3)], **choices)


def tied(kind, **choices):
    return ResidualStack([block(kind)] * 3, **choices)


def ode(kind, **choices):
    return NeuralODE(OfTime(block(kind)), steps=3, **choices)


def adaptive(kind, **choices):
    return NeuralODE(OfTime(block(kind)), rtol=1e-3, atol=1e-3, **choices)


def gradients(build, kind, gradient, cached):
    torch.manual_seed(0)
    model = build(kind, gradient=gradient)
    x = torch.randn(2, 4, requires_grad=True)
    if cached == "forward and backward":
        with parametrize.cached():
            model(x).square().sum().backward()
            assert parametrize._cache_enabled == 1
    elif cached == "forward":
        with parametrize.cached():
            y = model(x)
        y.square().sum().backward()
    else:
        model(x).square().sum().backward()
    return [x.grad, *(p.grad for p in model.parameters())]


@pytest.mark.parametrize("build", [layers, tied, ode, adaptive])
@pytest.mark.parametrize("kind", KINDS)
def test_within_parametrize_cached(build, kind):
    for gradient in ("checkpoint", "checkpoint:states=2", "discrete-adjoint"):
        expected = gradients(build, kind, gradient, None)
        for cached in ("forward", "forward and backward"):
            for a, b in zip(gradients(build, kind, gradient, cached), expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("gradient", ["checkpoint", "checkpoint:states=2", "discrete-adjoint"])
def test_a_power_iteration_a_step_is_refused_where_the_cache_would_make_one(gradient):
    stack = ResidualStack([nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 4)))] * 3, gradient=gradient)
    with parametrize.cached(), pytest.raises(odenet.GradientError, match=r"outside of parametrize.cached\(\)"):
        stack(torch.randn(2, 4))
    assert parametrize._cache_enabled == 0
    stack(torch.randn(2, 4)).sum().backward()


def test_the_calls_of_torchdiffeq_within_parametrize_cached():
    def solve(interface, cached):
        torch.manual_seed(0)
        f, y0 = OfTime(block("orthogonal")), torch.randn(2, 4, requires_grad=True)
        t = torch.tensor([0.0, 1.0])
        if cached:
            with parametrize.cached():
                interface(f, y0, t, rtol=1e-5, atol=1e-5)[-1].square().sum().backward()
        else:
            interface(f, y0, t, rtol=1e-5, atol=1e-5)[-1].square().sum().backward()
        return [y0.grad, *(p.grad for p in f.parameters())]

    expected = solve(odeint, cached=False)
    for interface in (odeint, odeint_adjoint):
        for a, b in zip(solve(interface, cached=True), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "choices", [{"steps": 6, "solver": "rk4"}, {"rtol": 1e-6, "atol": 1e-8}], ids=["equal", "adaptive"]
)
@pytest.mark.parametrize("norm", [torch.nn.utils.spectral_norm, parametrizations.spectral_norm], ids=["old", "new"])
@pytest.mark.filterwarnings("ignore:.*spectral_norm.* is deprecated:FutureWarning")
def test_backprop_of_a_spectral_norm_in_training_is_that_of_the_steps_as_they_were_taken(norm, choices):
    """Each evaluation iterates once more, and is differentiated at the vectors that it has read."""
    torch.manual_seed(1)
    module = norm(nn.Linear(4, 4, dtype=torch.float64))
    y0, vectors = torch.randn(3, 4, dtype=torch.float64), []

    def field(t, y):
        slope = torch.tanh(module(y))
        at = module if hasattr(module, "weight_u") else module.parametrizations.weight[0]
        names = ("weight_u", "weight_v") if at is module else ("_u", "_v")
        vectors.append([getattr(at, name).clone() for name in names])
        return slope

    odenet.solve(field, y0, **choices).y1.square().sum().backward()
    weight = module.weight_orig if hasattr(module, "weight_orig") else module.parametrizations.weight.original
    w, b = (p.detach().clone().requires_grad_() for p in (weight, module.bias))
    recorded = iter(vectors)

    def again(t, y):
        u, v = next(recorded)
        return torch.tanh(nn.functional.linear(y, w / (u @ w @ v), b))

    odenet.solve(again, y0, **choices).y1.square().sum().backward()
    assert next(recorded, None) is None
    torch.testing.assert_close([weight.grad, module.bias.grad], [w.grad, b.grad], rtol=1e-11, atol=1e-13)


def test_compiled_steps_compute_a_weight_that_is_cached_around_them():
    def of(cached, **choices):
        torch.manual_seed(0)
        model = layers("weight_norm", gradient="checkpoint", **choices)
        with parametrize.cached() if cached else contextlib.nullcontext():
            model(torch.ones(2, 4)).square().sum().backward()
        return [p.grad for p in model.parameters()]

    torch.testing.assert_close(of(True, compile={"backend": "eager"}), of(False))
