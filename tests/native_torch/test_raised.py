"""What a field raises comes out as it is, a StopIteration too, which Python forbids to leave a generator."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import odenet
from odenet import Event, PIDController
from odenet_torch import convert, odeint, odeint_adjoint, odeint_event

GRADIENTS = ("backprop", "checkpoint", "checkpoint:states=3", "discrete-adjoint", "continuous-adjoint")
TIMES = torch.linspace(0.0, 1.0, 3, dtype=torch.float64)
EQUAL, TOLERANCE = {"steps": 12, "solver": "rk4"}, {"rtol": 1e-8, "atol": 1e-10}
RK4 = {"method": "rk4", "options": {"step_size": 0.1}}
SOLVES = {
    **{
        f"{gradient}, {'equal' if choices is EQUAL else 'adaptive'}": (
            lambda f, y, gradient=gradient, choices=choices: odenet.solve(f, y, gradient=gradient, **choices).y1
        )
        for gradient in GRADIENTS
        for choices in (EQUAL, TOLERANCE)
    },
    "rows": lambda f, y: odenet.solve(f, y, control=PIDController(1e-8, 1e-10, per_sample=True)).y1,
    "event": lambda f, y: odenet.solve(f, y, event=Event(lambda t, y: y[0, 0] - 0.5), **TOLERANCE).y1,
    "dense": lambda f, y: odenet.solve(f, y, dense=True, **TOLERANCE).y1,
    "odeint": lambda f, y: odeint(f, y, TIMES)[-1],
    "odeint, rk4": lambda f, y: odeint(f, y, TIMES, **RK4)[-1],
    "odeint_adjoint": lambda f, y: odeint_adjoint(f, y, TIMES, adjoint_params=())[-1],
    "odeint_adjoint, rk4": lambda f, y: odeint_adjoint(f, y, TIMES, adjoint_params=(), **RK4)[-1],
    "odeint_event": lambda f, y: odeint_event(f, y, TIMES[0], event_fn=lambda t, y: y[0, 0] - 0.5)[1][-1],
}
GOES_BACK = [name for name in SOLVES if "adjoint" in name or "states" in name or name == "checkpoint, adaptive"]


def in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


def ones() -> Tensor:
    return torch.ones(2, 1, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("evaluation", [0, 1, 9])
@pytest.mark.parametrize("solve", SOLVES.values(), ids=SOLVES)
def test_a_stop_of_a_field_is_that_of_the_solve(solve, evaluation):
    mine, calls = StopIteration("of the field"), []

    def field(t, y):
        calls.append(t)
        if len(calls) > evaluation:
            raise mine
        return -y

    with pytest.raises(StopIteration) as caught:
        solve(field, ones())
    assert caught.value is mine


@pytest.mark.parametrize("name", GOES_BACK)
def test_a_stop_on_the_way_back_is_that_of_backward(name):
    mine = StopIteration("of the field")

    def field(t, y):
        if in_backward():
            raise mine
        return -y

    loss = SOLVES[name](field, ones()).sum()
    with pytest.raises(StopIteration) as caught:
        loss.backward()
    assert caught.value is mine


class Layer(nn.Module):
    stop: StopIteration | None = None

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        if self.stop is not None and (in_backward() or not self.stop.args):
            raise self.stop
        return x + torch.tanh(self.linear(x)) / 8


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Layer() for _ in range(4)])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.parametrize("mine", [StopIteration("on the way back"), StopIteration()], ids=["back", "forth"])
@pytest.mark.parametrize("gradient", ["checkpoint", "checkpoint:bits=8", "discrete-adjoint"])
def test_a_stop_of_a_converted_layer_is_that_of_the_model(gradient, mine, monkeypatch):
    x = torch.randn(2, 4)
    model = convert(Layers(), example=x, gradient=gradient)
    monkeypatch.setattr(Layer, "stop", mine)
    with pytest.raises(StopIteration) as caught:
        model(x).sum().backward()
    assert caught.value is mine


@pytest.mark.parametrize("choices", [EQUAL, TOLERANCE], ids=["equal", "adaptive"])
def test_the_error_of_a_generator_of_the_fields_own_stays_what_it_is(choices):
    def numbers():
        yield 1.0
        raise StopIteration("in a generator of the field's")

    with pytest.raises(RuntimeError, match="generator raised StopIteration"):
        odenet.solve(lambda t, y: sum(numbers()) * y, ones(), **choices)
