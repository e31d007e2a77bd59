"""Hooks on all modules of the process, and classes of modules: a block runs again under those of its forward pass."""

from __future__ import annotations

import copy

import pytest
import torch
from of_time import Layer, OfTime
from torch import nn
from torch.nn.modules import module as every
from torch.nn.utils import parametrizations, parametrize

from odenet import DiscreteAdjoint, GradientError
from odenet_torch import NeuralODE, ResidualStack, convert, odeint, odeint_adjoint

pytestmark = pytest.mark.usefixtures("double")
BITS = "checkpoint:bits=16"
REVERSED = DiscreteAdjoint(tolerance=1e-11, iterations=60)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x):
        return 0.1 * self.second(torch.tanh(self.first(x)))


def blocks():
    torch.manual_seed(1)
    return [Block() for _ in range(3)]


def stack(gradient):
    return lambda: ResidualStack(blocks(), gradient=gradient, t1=3.0)


def converted(gradient):
    return lambda: convert(nn.Sequential(*map(Layer, blocks())), example=torch.ones(2, 4), gradient=gradient)


def drop_in():
    class Solved(OfTime):
        def forward(self, x):
            y = odeint_adjoint(
                OfTime(self.block), x, torch.tensor([0.0, 1.0]), method="rk4", options={"step_size": 0.1}
            )
            return y[-1]

    return Solved(blocks()[0])


def neural(gradient, **choices):
    return lambda: NeuralODE(OfTime(blocks()[0]), gradient=gradient, **choices)


MODELS = {
    **{f"stack, {g}": (stack(g), stack("backprop")) for g in ("checkpoint", "checkpoint:states=2", REVERSED, BITS)},
    **{f"converted, {g}": (converted(g), stack("backprop")) for g in ("checkpoint", REVERSED, BITS)},
    **{
        f"{g}, adaptive": (neural(g, rtol=1e-9, atol=1e-11), neural("backprop", rtol=1e-9, atol=1e-11))
        for g in ("checkpoint", "continuous-adjoint")
    },
    "odeint_adjoint": (drop_in, neural("backprop", steps=10, solver="rk4")),
    "reversible": (
        neural("reversible", steps=10, solver="reversible-heun"),
        neural("backprop", steps=10, solver="reversible-heun"),
    ),
}
models = pytest.mark.parametrize("pair", MODELS.values(), ids=MODELS)


def doubled(module, args, out):
    return 2 * out if type(module) is nn.Linear else None


def of_gradient(module, inputs, outputs):
    return (2 * inputs[0],) if type(module) is nn.Linear and inputs[0] is not None else None


HOOKS = {
    "forward": lambda: every.register_module_forward_hook(doubled),
    "backward": lambda: every.register_module_full_backward_hook(of_gradient),
}


def gradients(model, before=None, between=lambda: None):
    x = torch.linspace(-1, 1, 8).reshape(2, 4).requires_grad_()
    loss = model(x).square().sum()
    between()
    loss.backward()
    every_gradient = [x.grad, *(p.grad for p in model.parameters())]
    model.zero_grad()
    return every_gradient


@models
@pytest.mark.parametrize("register", HOOKS.values(), ids=HOOKS)
def test_hooks_on_all_modules_are_those_of_the_forward_pass(register, pair):
    handles, tables = [], (every._global_forward_hooks, every._global_backward_hooks)
    ours, plain = (make() for make in pair)

    def count():
        return sum(map(len, tables))

    def close(values, expected):
        torch.testing.assert_close(values, expected, rtol=2e-3, atol=1e-5)

    try:
        without = gradients(plain)
        handles.append(register())
        within = gradients(plain)
        close(gradients(ours), within)
        close(gradients(ours, between=handles[0].remove), within)
        for _ in range(2):  # blocks are looked at in their first pass
            close(gradients(ours, between=lambda: handles.append(register())), without)
            assert count() == 1  # it is there again
            handles[-1].remove()
            assert count() == 0
        close(gradients(ours), without)
        with pytest.raises(AssertionError):
            close(within, without)
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("gradient", ["checkpoint", BITS, REVERSED], ids=str)
@pytest.mark.parametrize("make", [stack, converted])
def test_what_hooks_on_all_modules_keep_has_its_gradient_or_is_refused(make, gradient):
    features, ours, plain = [], make(gradient)(), stack("backprop")()

    def keep(module, args, out):
        if type(module) is nn.Linear:
            features.append(out)

    def gradient_of(model):
        features.clear()
        y = model(torch.linspace(-1, 1, 8).reshape(2, 4))
        (y.sum() + sum(x.square().sum() for x in [*features])).backward()
        return [p.grad for p in model.parameters()]

    handle = every.register_module_forward_hook(keep)
    try:
        expected = gradient_of(plain)
        if gradient == "checkpoint" or make is converted:
            torch.testing.assert_close(gradient_of(ours), expected, rtol=2e-3, atol=1e-5)
        else:
            with pytest.raises(GradientError, match="kept beside what it returned"):
                gradient_of(ours)
    finally:
        handle.remove()


class Half(nn.Module):
    def forward(self, weight):
        return weight / 2


def parametrized(model):
    parametrize.register_parametrization(inner(model).first, "weight", Half())


def normed(model):
    parametrizations.weight_norm(inner(model).first)


def replaced(model):
    Other.forward = lambda self, x: torch.sin(x)


def inner(model):
    return next(module for module in model.modules() if isinstance(module, Block))


class Other(nn.Tanh):
    def forward(self, x):
        return torch.tanh(x)


CHANGED = {
    "parametrized": (parametrized, 1, "class of a Linear.*after|inplace operation after"),  # which writes on the weight
    "normed": (normed, 2, "class of a Linear in .* was changed to ParametrizedLinear after"),
    "replaced": (replaced, 1, "method forward of Other in .* was replaced after"),
    "replaced, second pass": (replaced, 2, "method forward of Other in .* was replaced after"),
}
NAMES = ["stack, checkpoint", f"stack, {REVERSED}", "converted, checkpoint", f"converted, {BITS}", "odeint_adjoint"]


@pytest.mark.parametrize(("change", "passes", "match"), CHANGED.values(), ids=CHANGED)
@pytest.mark.parametrize("make", [MODELS[name][0] for name in NAMES], ids=NAMES)
def test_a_class_that_is_changed_after_the_forward_pass_is_named(make, change, match, passes, monkeypatch):
    monkeypatch.setattr(Other, "forward", Other.forward)
    model, expected = make(), None
    inner(model).second = nn.Sequential(Other(), inner(model).second)
    for _ in range(passes - 1):
        expected = gradients(model)
    twin = copy.deepcopy(model)
    with pytest.raises(GradientError, match=match):
        gradients(model, between=lambda: change(model))
    if expected is not None and change is replaced:  # what is changed before a pass is read in it
        assert not torch.equal(gradients(twin)[0], expected[0])


def test_the_drop_in_function_records_hooks_on_all_modules_itself():
    """`odeint` is backprop: nothing runs again."""
    field, x = OfTime(blocks()[0]), torch.ones(2, 4, requires_grad=True)
    options = {"method": "rk4", "options": {"step_size": 0.1}}
    loss = odeint(field, x, torch.tensor([0.0, 1.0]), **options)[-1].sum()
    handle = every.register_module_forward_hook(doubled)
    try:
        (of_x,) = torch.autograd.grad(loss, x)
    finally:
        handle.remove()
    (expected,) = torch.autograd.grad(odeint(field, x, torch.tensor([0.0, 1.0]), **options)[-1].sum(), x)
    torch.testing.assert_close(of_x, expected, rtol=1e-12, atol=0)
