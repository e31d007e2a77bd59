"""What is done to a field, or around it, between its forward and its backward pass: right, or refused by name."""

from __future__ import annotations

import itertools

import pytest
import torch
from quick import quick
from torch import nn
from torch.nn import init

import odenet
from odenet import GradientError, PIDController, UnsupportedError
from odenet_torch import odeint, odeint_adjoint

pytestmark = pytest.mark.usefixtures("double")
TIMES = (0.0, 1.0)
AGAIN = {
    **{
        f"{gradient}, {kind}": lambda f, y, gradient=gradient, choices=choices: (
            odenet.solve(f, y, gradient=gradient, **choices).y1
        )
        for gradient in ("checkpoint", "checkpoint:states=2", "discrete-adjoint", "continuous-adjoint")
        for kind, choices in (("equal", {"steps": 40, "solver": "rk4"}), ("adaptive", {"rtol": 1e-8, "atol": 1e-10}))
    },
    "bits": lambda f, y: odenet.solve(f, y, steps=40, solver="rk4", gradient="checkpoint:bits=16").y1,
    "reversible": lambda f, y: odenet.solve(f, y, steps=800, solver="reversible-heun", gradient="reversible").y1,
    "odeint_adjoint": lambda f, y: odeint_adjoint(f, y, torch.tensor(TIMES), rtol=1e-8, atol=1e-10)[-1],
}
again = pytest.mark.parametrize("solve", AGAIN.values(), ids=AGAIN)


class Field(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, t, y):
        return torch.tanh(self.second(torch.tanh(self.first(y))))


def gradients(solve, between=lambda field: None, passes=1):
    field, y = Field(), torch.linspace(-1, 1, 12).reshape(3, 4).requires_grad_()
    for _ in range(passes - 1):
        solve(field, y).sum().backward()
    field.zero_grad()
    y.grad = None
    loss = solve(field, y).square().sum()
    between(field)
    loss.backward()
    return y.grad, *(p.grad for p in field.parameters())


def forward_hook(field):
    field.first.register_forward_hook(lambda module, args, out: 2 * out)


def pre_hook(field):
    field.second.register_forward_pre_hook(lambda module, args: (0 * args[0],))


def backward_hook(field):
    field.first.register_full_backward_hook(lambda module, inputs, outputs: (2 * inputs[0],))


HOOKS = (forward_hook, pre_hook, backward_hook)
EACH = [(HOOKS[n % 3], name) for n, name in enumerate(AGAIN)]  # every way with a hook, every hook with several ways
FIRST = [(hook, "checkpoint, equal") for hook in HOOKS]


@pytest.mark.parametrize(("hook", "way"), quick(list(itertools.product(HOOKS, AGAIN)), {*EACH, *FIRST}))
def test_a_hook_that_is_registered_after_the_forward_pass_is_not_called_for_it(hook, way):
    solve = AGAIN[way]

    def register(field):
        hook(field)
        tables.extend([field.first._forward_hooks, field.first._backward_hooks, field.second._forward_pre_hooks])

    tables = []
    expected = gradients(lambda f, y: odenet.solve(f, y, steps=40, solver="rk4").y1)
    for passes in (1, 2):
        torch.testing.assert_close(gradients(solve, register, passes), expected, rtol=2e-4, atol=1e-5)
        assert sum(map(len, tables)) == 1  # it is there again
        tables.clear()


def test_backward_in_inference_mode_is_refused_where_steps_are_recorded_again():
    def back(solve):
        field, y = Field(), torch.ones(3, 4)
        loss = solve(field, y).square().sum()
        with torch.inference_mode():
            loss.backward()
        return [p.grad for p in field.parameters()]

    for name, solve in AGAIN.items():
        with pytest.raises(UnsupportedError, match="inference_mode"):
            back(solve)
        assert name
    plain = back(lambda f, y: odenet.solve(f, y, rtol=1e-8).y1)
    torch.testing.assert_close(plain, back(lambda f, y: odeint(f, y, torch.tensor(TIMES), rtol=1e-8)[-1]))


class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.LazyLinear(4)

    def forward(self, t, y):
        return torch.tanh(self.linear(y))


class MadeAtFirst(nn.Module):
    """It makes the same each time, so that no value tells that it has made it anew."""

    def __init__(self):
        super().__init__()
        self.register_parameter("scale", None)

    def forward(self, t, y):
        if self.scale is None:
            self.scale = nn.Parameter(init.constant_(torch.empty(4), 0.5))
        return self.scale * torch.sin(y)


@again
@pytest.mark.parametrize("kind", [Lazy, MadeAtFirst])
def test_parameters_that_a_field_makes_in_its_first_evaluation(kind, solve):
    field, y = kind(), torch.ones(3, 4)
    with pytest.raises(GradientError, match="makes the parameter"):
        solve(field, y)
    with torch.no_grad():
        field(torch.tensor(0.0), y)  # what the error says
    solve(field, y).sum().backward()
    made = [p.grad for p in field.parameters()]
    field.zero_grad()
    odenet.solve(field, y, steps=40, solver="rk4").y1.sum().backward()
    torch.testing.assert_close(made, [p.grad for p in field.parameters()], rtol=2e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # of torch.func.jvp
def test_forward_differentiation_of_rows_with_steps_of_their_own():
    """y' = w y^2: y(1) = y0 / (1 - w y0), whose derivative by w is y(1)^2."""
    y0, w = torch.tensor([[0.5], [0.4]]), torch.ones(())

    def final(w):
        control = PIDController(1e-9, 1e-11, per_sample=True)
        return odenet.solve(lambda t, y: w * y**2, y0, control=control).y1

    value, tangent = torch.func.jvp(final, (w,), (torch.ones(()),))
    torch.testing.assert_close(value, y0 / (1 - y0), rtol=1e-7, atol=0)
    torch.testing.assert_close(tangent, value**2, rtol=1e-6, atol=0)


def test_sparse_gradients_of_an_embedding_by_odeint_adjoint():
    class Shifted(nn.Module):
        def __init__(self, sparse):
            super().__init__()
            torch.manual_seed(2)
            self.table = nn.Embedding(5, 4, sparse=sparse)

        def forward(self, t, y):
            return torch.tanh(y + self.table(torch.tensor([0, 1, 3])))

    def gradient(sparse):
        field = Shifted(sparse)
        odeint_adjoint(field, torch.ones(3, 4), torch.tensor(TIMES))[-1].square().sum().backward()
        return field.table.weight.grad

    torch.testing.assert_close(gradient(True), gradient(False), rtol=1e-12, atol=0)


@again
def test_parameters_may_be_swapped_for_others_when_all_is_over(solve):
    """As a module's conversion does, which torch refuses of what something holds a weak reference to."""
    field, y0 = Field(), torch.randn(3, 4)
    solve(field, y0).sum().backward()
    field.zero_grad()
    for parameter in field.parameters():
        torch.utils.swap_tensors(parameter, nn.Parameter(parameter.detach() / 2))
    found, expected = [], []
    for into, way in (
        (found, solve),
        (expected, lambda f, y: odeint(f, y, torch.tensor(TIMES), rtol=1e-8, atol=1e-10)[-1]),
    ):
        way(field, y0).square().sum().backward()
        into += [p.grad.clone() for p in field.parameters()]
        field.zero_grad()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
