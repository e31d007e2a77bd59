"""What the caller does between the forward and the backward pass: to y0, to the result, to the modes of autograd."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from odenet import GradientError, StateError, UnsupportedError
from odenet_torch import ResidualStack, convert, odeint, odeint_adjoint, solve

pytestmark = pytest.mark.usefixtures("double")

TIMES = (0.0, 0.3, 1.0)
REBUILT = "discrete-adjoint:iterations=20"


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return 0.1 * torch.tanh(self.linear(x))


class Field(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.linear = nn.Linear(3, 3)

    def forward(self, t, y):
        return 0.5 * torch.tanh(self.linear(y)) + 0.1 * t


def state():
    return torch.linspace(-1, 1, 6).reshape(2, 3).clone().requires_grad_()


def equal_steps(gradient, ts=None):
    return lambda field, y: solve(field, y, steps=10, solver="euler", gradient=gradient, ts=ts).ys[-1]


def to_a_tolerance(gradient):
    return lambda field, y: solve(field, y, gradient=gradient, rtol=1e-8, atol=1e-9).y1


def drop_in(method):
    return lambda field, y: odeint_adjoint(field, y, torch.tensor(TIMES), method=method)[-1]


SOLVES = {
    "backprop": equal_steps("backprop"),
    "checkpoint": equal_steps("checkpoint"),
    "schedule": equal_steps("checkpoint:states=3"),
    "rebuilt": equal_steps(REBUILT),
    "rebuilt, t0 kept": equal_steps(REBUILT, ts=TIMES),
    "continuous": equal_steps("continuous-adjoint"),
    "adaptive backprop": to_a_tolerance("backprop"),
    "adaptive checkpoint": to_a_tolerance("checkpoint"),
    "adaptive rebuilt": to_a_tolerance("discrete-adjoint"),
    "adaptive continuous": to_a_tolerance("continuous-adjoint"),
    "odeint_adjoint": drop_in("dopri5"),
    "odeint_adjoint, equal steps": drop_in("rk4"),
}
every = pytest.mark.parametrize("solve_by", SOLVES)


def gradients(solve_by, between=lambda y, result: None, loss=lambda result: result.square().sum()):
    """Gradients by y0 and the weights of a loss, before whose backward pass something is done."""
    field, y = Field(), state()
    result = SOLVES[solve_by](field, y)
    value = loss(result)
    between(y, result)
    value.backward()
    return [y.grad, *(p.grad for p in field.parameters())]


def squared(result):
    """A loss whose gradient does not read the result."""
    return (result * result.detach().clone()).sum()


@every
def test_the_result_may_be_written_on_in_place(solve_by):
    got = gradients(solve_by, loss=lambda result: torch.relu_(result).square().sum())
    expected = gradients(solve_by, loss=lambda result: torch.relu(result).square().sum())
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)


@every
def test_the_result_may_be_written_on_by_numpy(solve_by):
    def scaled(y, result):
        result.detach().numpy()[...] *= 100

    torch.testing.assert_close(
        gradients(solve_by, scaled, squared), gradients(solve_by, loss=squared), rtol=1e-12, atol=1e-14
    )


@pytest.mark.parametrize("solve_by", [name for name in SOLVES if "backprop" not in name])  # as autograd alone has it
def test_the_memory_of_y0_may_be_used_again(solve_by):
    def filled(y, result):
        y.detach().numpy()[...] = 3.0

    torch.testing.assert_close(gradients(solve_by, filled), gradients(solve_by), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("gradient", ["backprop", "checkpoint", "checkpoint:states=2", REBUILT])
def test_a_stack_before_an_activation_in_place_in_every_pass(gradient):
    torch.manual_seed(0)
    blocks, x = [Block() for _ in range(5)], torch.linspace(-1, 1, 8).reshape(2, 4)
    plain, y = copy.deepcopy(blocks), x
    for block in plain:
        y = y + block(y)
    torch.relu(y).square().sum().backward()
    expected = [p.grad for block in plain for p in block.parameters()]
    model = nn.Sequential(ResidualStack(blocks, gradient=gradient, t1=5.0), nn.ReLU(inplace=True))
    for _ in range(4):  # blocks that are known are called in another way
        model.zero_grad()
        model(x).square().sum().backward()
        torch.testing.assert_close([p.grad for p in model.parameters()], expected, rtol=1e-9, atol=1e-12)


def test_a_loader_that_fills_one_buffer():
    torch.manual_seed(0)
    stack, buffer = ResidualStack([Block() for _ in range(5)], gradient="checkpoint"), torch.ones(2, 4)
    for _ in range(3):
        stack.zero_grad()
        buffer.numpy()[:] = 1.0
        loss = stack(buffer).square().sum()
        buffer.numpy()[:] = -5.0
        loss.backward()
        got = [p.grad for p in stack.parameters()]
        stack.zero_grad()
        stack(torch.ones(2, 4)).square().sum().backward()
        torch.testing.assert_close(got, [p.grad for p in stack.parameters()], rtol=1e-12, atol=1e-14)


def test_the_result_of_compiled_steps_may_be_written_on_in_place(graphs):
    def by(relu, compiled=False):
        field, y = Field(), state()
        relu(solve(field, y, rtol=1e-8, atol=1e-9, compile=compiled).y1).square().sum().backward()
        return [y.grad, *(p.grad for p in field.parameters())]

    torch.testing.assert_close(by(torch.relu_, graphs[1]), by(torch.relu), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("solve_by", ["adaptive continuous", "odeint_adjoint"])
def test_a_loss_without_a_finite_gradient_is_named(solve_by):
    with pytest.raises(GradientError, match=r"gradient of the loss with respect to the state at t=1 is not finite"):
        gradients(solve_by, loss=lambda result: result[0, 0] * float("nan"))


@every
def test_several_backward_passes_at_once(solve_by):
    field, y = Field(), state()
    result, rows = SOLVES[solve_by](field, y), torch.eye(6).reshape(6, 2, 3)
    if solve_by in ("adaptive continuous", "odeint_adjoint", "odeint_adjoint, equal steps"):
        with pytest.raises(UnsupportedError, match="is_grads_batched"):
            torch.autograd.grad(result, y, rows, is_grads_batched=True)
        return
    (got,) = torch.autograd.grad(result, y, rows, is_grads_batched=True, retain_graph=True)
    expected = [torch.autograd.grad(result, y, row, retain_graph=True)[0] for row in rows]
    torch.testing.assert_close(got, torch.stack(expected), rtol=1e-9, atol=1e-12)


def test_several_backward_passes_at_once_through_rounded_layers():
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = Block()

        def forward(self, x):
            return x + self.block(x)

    model, x = nn.Sequential(*[Layer() for _ in range(4)]), torch.ones(2, 4, requires_grad=True)
    out = convert(model, example=x.detach(), gradient="checkpoint:bits=8")(x)
    with pytest.raises(UnsupportedError, match="is_grads_batched"):
        torch.autograd.grad(out, x, torch.eye(8).reshape(8, 2, 4), is_grads_batched=True)


class LeavesOff(Field):
    def forward(self, t, y):
        slope = super().forward(t, y)
        torch.set_grad_enabled(False)
        return slope


@every
def test_a_field_that_leaves_gradients_switched_off(solve_by):
    with torch.enable_grad():
        with pytest.raises(StateError, match=r"set_grad_enabled\(False\)"):
            SOLVES[solve_by](LeavesOff(), state())
        assert torch.is_grad_enabled()
    with torch.no_grad():
        expected = SOLVES[solve_by](Field(), state())
        torch.testing.assert_close(SOLVES[solve_by](LeavesOff(), state()), expected)


def test_the_adjoint_of_a_state_of_inference_mode():
    with torch.inference_mode():
        y0 = torch.linspace(-1, 1, 6).reshape(2, 3)

    def by(entry, y):
        field = Field()
        entry(field, y, torch.tensor(TIMES), rtol=1e-9, atol=1e-10)[-1].square().sum().backward()
        return [p.grad for p in field.parameters()]

    torch.testing.assert_close(by(odeint_adjoint, y0), by(odeint, y0.clone()), rtol=1e-6, atol=1e-8)


def test_checkpoint_where_hooks_are_forbidden():
    field, y = Field(), state()
    with torch.autograd.graph.disable_saved_tensors_hooks("no hooks here"):
        equal_steps("checkpoint")(field, y).square().sum().backward()
    got = [y.grad, *(p.grad for p in field.parameters())]
    torch.testing.assert_close(got, gradients("backprop"), rtol=1e-12, atol=1e-14)
