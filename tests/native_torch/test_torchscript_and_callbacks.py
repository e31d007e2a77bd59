"""Fields of TorchScript, and functions of the caller's that write on the state they are shown."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import odenet
from odenet import ConversionError, StateError
from odenet_torch import ResidualStack, convert, odeint, odeint_adjoint, odeint_event, solve

pytestmark = [
    pytest.mark.usefixtures("double"),
    pytest.mark.filterwarnings("ignore:.torch.jit.(script|trace|trace_method). is deprecated:DeprecationWarning"),
]

TIMES = (0.0, 0.3, 1.0)


class Field(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.linear = nn.Linear(3, 3)

    def forward(self, t: torch.Tensor, y: torch.Tensor):
        return 0.5 * torch.tanh(self.linear(y)) + 0.1 * t


def state():
    return torch.linspace(-1, 1, 6).reshape(2, 3).clone().requires_grad_()


SOLVES = {
    "odeint": lambda field, y: odeint(field, y, torch.tensor(TIMES))[-1],
    "odeint, rk4": lambda field, y: odeint(field, y, torch.tensor(TIMES), method="rk4")[-1],
    "odeint_adjoint": lambda field, y: odeint_adjoint(field, y, torch.tensor(TIMES))[-1],
    "checkpoint": lambda field, y: solve(field, y, steps=10, solver="euler", gradient="checkpoint").y1,
    "adaptive": lambda field, y: solve(field, y, rtol=1e-8, gradient="checkpoint").y1,
}
every = pytest.mark.parametrize("solve_by", SOLVES)


@every
@pytest.mark.parametrize("kind", ["script", "trace", "inner"])
def test_a_field_of_torchscript(kind, solve_by):
    def gradients(field, plain):
        y = state()
        SOLVES[solve_by](field, y).square().sum().backward()
        return [y.grad, *(p.grad for p in plain.parameters())]

    plain, other = Field(), Field()
    if kind == "inner":
        setattr(other, "linear", torch.jit.script(other.linear))  # noqa: B010
        field = other
    else:
        field = torch.jit.script(other) if kind == "script" else torch.jit.trace(other, (torch.tensor(0.0), state()))
    torch.testing.assert_close(gradients(field, other), gradients(plain, plain), rtol=1e-9, atol=1e-12)


def test_blocks_of_torchscript_run_again_by_checkpoint():
    torch.manual_seed(0)
    plain = [nn.Sequential(nn.Linear(3, 3), nn.Tanh()) for _ in range(3)]
    blocks = [torch.jit.script(copy.deepcopy(block)) for block in plain]
    stack = ResidualStack(blocks, gradient="checkpoint", t1=3.0)
    y = state().detach()
    for block in plain:
        y = y + block(y)
    y.square().sum().backward()
    for _ in range(3):
        stack.zero_grad()
        stack(state()).square().sum().backward()
        expected = [p.grad for block in plain for p in block.parameters()]
        torch.testing.assert_close([p.grad for p in stack.parameters()], expected, rtol=1e-12, atol=1e-14)


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x):
        return x + 0.1 * torch.tanh(self.linear(x))


@pytest.mark.parametrize("gradient", ["checkpoint", "discrete-adjoint"])
def test_layers_of_torchscript_are_not_converted(gradient):
    model = nn.Sequential(*[torch.jit.script(Layer()) for _ in range(3)])
    with pytest.raises(ConversionError, match=r"Layer is compiled by torch\.jit"):
        convert(model, example=state().detach(), gradient=gradient)
    model = nn.Sequential(*[Layer() for _ in range(3)])
    model[1].linear = torch.jit.script(model[1].linear)
    with pytest.raises(ConversionError, match=r"linear of Layer is compiled by torch\.jit"):
        convert(model, example=state().detach(), gradient=gradient)


def in_place(y):
    with torch.no_grad():
        y.mul_(0.5)


def by_numpy(y):
    y.detach().numpy()[...] *= 0.5


@pytest.mark.parametrize("entry", [odeint, odeint_adjoint])
@pytest.mark.parametrize("write", [in_place, by_numpy])
@pytest.mark.parametrize("name", ["callback_step", "callback_accept_step", "grid_constructor"])
def test_a_function_that_is_shown_the_state_and_writes_on_it(name, write, entry):
    def grid(func, y0, t):
        write(y0)
        return torch.linspace(0.0, 1.0, 11)

    def told(t, y, h):
        write(y)

    field, choices = Field(), {}
    if name == "grid_constructor":
        choices = {"method": "rk4", "options": {"grid_constructor": grid}, "adjoint_options": {}}
        choices = choices if entry is odeint_adjoint else {k: choices[k] for k in ("method", "options")}
    else:
        setattr(field, name, told)
    with pytest.raises(StateError, match=f"{name} wrote on the state"):
        entry(field, state() * 1.0, torch.tensor(TIMES), **choices)


CONDITIONS = {
    "solve": lambda f, y, event: odenet.solve(f, y, t1=1.0, rtol=1e-3, event=event),
    "checkpoint": lambda f, y, event: odenet.solve(f, y, t1=1.0, rtol=1e-3, event=event, gradient="checkpoint"),
    "odeint_event": lambda f, y, event: odeint_event(f, y, torch.tensor(0.0), event_fn=event),
    "rk4": lambda f, y, event: odeint_event(
        f, y, torch.tensor(0.0), event_fn=event, method="rk4", options={"step_size": 0.1}
    ),
}


@pytest.mark.parametrize("entry", CONDITIONS)
@pytest.mark.parametrize("write", [in_place, by_numpy])
def test_a_condition_that_writes_leaves_the_callers_state_alone(write, entry):
    y0, y = state().detach(), state().detach()
    with pytest.raises(StateError, match="wrote on the state"):
        CONDITIONS[entry](Field(), y, lambda t, y: (write(y), y.sum())[1])
    assert torch.equal(y, y0)


def test_a_condition_that_writes_nothing_on_a_state_with_nan():
    y = torch.tensor([1.0, torch.nan])
    seen = []
    sol = odenet.solve(
        lambda t, y: -torch.ones_like(y),
        y,
        t1=1.0,
        event=lambda t, y: seen.append(t) or y[0] - 0.5,
        control=odenet.PIDController(norm=lambda y: y[0].abs()),
    )
    assert seen
    assert float(sol.ts[-1]) == pytest.approx(0.5, abs=1e-4)
