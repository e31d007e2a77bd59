"""Adaptive solves on torch: operations and host reads, rows with steps of their own, times that need gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import odenet
from odenet import PIDController
from odenet_torch import NeuralODE, solve

ROWS = PIDController(per_sample=True)


@pytest.fixture(autouse=True)
def _double():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Operations(TorchDispatchMode):
    """Counts operations, and those that read a number on the host."""

    def __init__(self):
        super().__init__()
        self.count = self.reads = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        self.reads += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)
        return func(*args, **(kwargs or {}))


class Rotation(nn.Module):
    """y' = tanh(W y), counting its evaluations."""

    def __init__(self, size=4):
        super().__init__()
        self.linear = nn.Linear(size, size, bias=False)
        self.evaluations = 0

    def forward(self, t, y):
        self.evaluations += 1
        return torch.tanh(self.linear(y)) * torch.cos(t)


def counted(field, y0, **choices):
    field.evaluations = 0
    with Operations() as all_of, torch.no_grad():
        solution = solve(field, y0, **choices)
    evaluations = field.evaluations
    with Operations() as of_field, torch.no_grad():
        for _ in range(evaluations):
            field(torch.zeros(()), y0)
    return solution, all_of.count - of_field.count, all_of.reads


@pytest.mark.parametrize(("solver", "most"), [("dopri5", 70), ("tsit5", 70), ("bosh3", 60), ("heun", 60)])
def test_a_step_reads_one_number_on_the_host_and_takes_few_operations(solver, most):
    field, y0 = Rotation(), torch.randn(8, 4)
    choices = {"rtol": 1e-4, "atol": 1e-5, "solver": solver}
    short, few, reads = counted(field, y0, t1=1.0, **choices)
    long, many, more = counted(field, y0, t1=20.0, **choices)

    def tried(solution):
        return solution.stats.steps + solution.stats.rejected

    steps = tried(long) - tried(short)
    assert steps > 10
    assert more - reads == steps
    assert (many - few) / steps <= most
    assert reads <= tried(short) + 4  # to find the first step size


@pytest.mark.parametrize("solver", ["dopri5", "bosh3", "dopri8"])
def test_what_autograd_does_not_watch_is_the_same_in_fewer_operations(solver):
    field, y0 = Rotation(), torch.randn(8, 4)
    choices = {"t1": 4.0, "rtol": 1e-7, "atol": 1e-9, "solver": solver, "ts": [0.5, 1.7, 4.0]}
    with torch.no_grad():
        fast = solve(field, y0, **choices)
        general = solve(field, y0, control=PIDController(norm=lambda y: y.square().mean().sqrt()), **choices)
    watched = solve(field, y0, **choices)
    for other in (general, watched):
        assert (fast.stats.steps, fast.stats.rejected) == (other.stats.steps, other.stats.rejected)
        torch.testing.assert_close(fast.ys, other.ys, rtol=1e-7, atol=1e-8)  # sizes follow rounding, too


def test_a_field_may_keep_and_return_what_it_is_given():
    seen = []

    def field(t, y):
        seen.append((y, y.clone()))
        return y

    with torch.no_grad():
        found = solve(field, torch.ones(3), rtol=1e-8, atol=1e-10, dense=True)
    assert all(torch.equal(y, copy) for y, copy in seen)
    torch.testing.assert_close(found.at(0.37), torch.full((3,), 0.37).exp(), rtol=1e-6, atol=0)


def oscillators(t, y, stiffness):
    return torch.stack([y[:, 1], -stiffness * y[:, 0]], 1)


@pytest.mark.parametrize("solver", ["dopri5", "bosh3", "dopri8"])
def test_rows_with_steps_of_their_own_are_as_if_alone(solver):
    stiffness, y0 = torch.tensor([1.0, 5.0, 40.0, 0.1]), torch.randn(4, 2)
    choices = {"t1": 2.0, "ts": [0.0, 0.5, 1.7, 2.0], "rtol": 1e-7, "atol": 1e-8, "solver": solver}
    together = solve(oscillators, y0, stiffness, control=ROWS, **choices)
    assert len(set(together.stats.steps.tolist())) == 4
    for i in range(4):
        alone = solve(oscillators, y0[i : i + 1], stiffness[i : i + 1], **choices)
        assert together.stats.steps[i] == alone.stats.steps
        assert together.stats.rejected[i] == alone.stats.rejected
        torch.testing.assert_close(together.ys[:, i], alone.ys[:, 0], rtol=1e-7, atol=1e-9)


def test_rows_have_gradients_and_read_one_number_a_step():
    stiffness, y0 = torch.tensor([1.0, 5.0, 40.0, 0.1], requires_grad=True), torch.randn(4, 2)
    choices = {"rtol": 1e-9, "atol": 1e-10}
    together = solve(oscillators, y0, stiffness, control=ROWS, **choices).y1.square().sum()
    alone = sum(solve(oscillators, y0[i : i + 1], stiffness[i : i + 1], **choices).y1.square().sum() for i in range(4))
    torch.testing.assert_close(
        *(torch.autograd.grad(loss, stiffness)[0] for loss in (together, alone)), rtol=1e-7, atol=0
    )
    with Operations() as counter, torch.no_grad():
        found = solve(oscillators, y0, stiffness.detach(), control=ROWS, **choices)
    assert counter.reads <= int((found.stats.steps + found.stats.rejected).max()) * 4 + 8


def test_a_row_that_fails_is_named_and_the_others_are_returned():
    y0 = torch.tensor([[1.0], [-1.0]])

    def field(t, y):  # y = 1 / (1 - t) beyond its pole, and 1 / (1 + t)
        return y * y * torch.where(y > 1e8, torch.nan, 1.0)

    choices = {"t1": 2.0, "rtol": 1e-6, "atol": 1e-8}
    with pytest.raises(odenet.SolveError, match=r"1 of 2 rows could not go on \(rows 0\)"):
        solve(field, y0, control=ROWS, **choices)
    found = solve(field, y0, control=PIDController(per_sample=True, throw=False), **choices)
    assert found.outcome.tolist()[1] == 0
    assert found.outcome.tolist()[0] > 0
    assert found.result not in (odenet.Result.SUCCESS, odenet.Result.EVENT)
    assert torch.isnan(found.y1[0]).all()
    torch.testing.assert_close(found.y1[1], torch.tensor([-1 / 3]), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "choices",
    [
        {"gradient": "checkpoint"},
        {"event": lambda t, y: t - 0.5},
        {"dense": True},
        {"ts": "all"},
        {"weights": odenet.Depth(torch.ones(3, 2, 2), "piecewise")},
    ],
)
def test_rows_refuse_what_needs_common_steps(choices):
    choices = {"weights": torch.ones(2, 2)} | choices
    with pytest.raises(odenet.UnsupportedError, match="per_sample"):
        solve(lambda t, y, w: y @ w, torch.ones(3, 2), rtol=1e-3, control=ROWS, **choices)


@pytest.mark.parametrize("gradient", ["backprop", "checkpoint", "discrete-adjoint", "continuous-adjoint"])
def test_times_have_gradients(gradient):
    weights, y0 = torch.tensor([[0.1, -1.0], [1.0, 0.2]], requires_grad=True), torch.tensor([1.0, 0.5])
    weigh = torch.tensor([[0.1, 0.2], [0.3, -0.5], [-0.3, 0.7]])

    def loss(t0, t1, ts):
        found = solve(
            lambda t, y, w: torch.sin(t * y @ w),
            y0,
            weights,
            t0=t0,
            t1=t1,
            ts=torch.stack([ts[0], ts[1], t1]),
            rtol=1e-11,
            atol=1e-12,
            gradient=gradient,
        )
        return (found.ys * weigh).sum()

    times = (torch.tensor(0.1), torch.tensor(1.7), torch.tensor([0.5, 1.2]))
    exact = torch.autograd.grad(loss(*[t.requires_grad_() for t in times]), times)
    size = 1e-5
    for place, of in ((0, ()), (1, ()), (2, (0,)), (2, (1,))):

        def moved(sign, place=place, of=of):
            given = [t.detach().clone() for t in times]
            given[place][of] += sign * size
            return loss(*given).item()

        difference = (moved(1) - moved(-1)) / (2 * size)
        assert exact[place][of].item() == pytest.approx(difference, abs=1e-7)


def test_times_with_layers_that_would_move_are_refused():
    t1 = torch.tensor(1.0, requires_grad=True)
    with pytest.raises(odenet.UnsupportedError, match="layers would move"):
        solve(lambda t, y, w: y @ w, torch.ones(2), odenet.Depth(torch.ones(3, 2, 2), "linear"), t1=t1, rtol=1e-3)


@pytest.mark.parametrize("gradient", ["checkpoint", "discrete-adjoint", "continuous-adjoint"])
def test_a_random_field_is_refused_where_it_would_be_evaluated_again(gradient):
    field = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))

    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = field

        def forward(self, t, y):
            return self.inner(y)

    with pytest.raises(odenet.GradientError, match="random"):
        solve(Noisy(), torch.randn(2, 3), rtol=1e-1, atol=1e-1, gradient=gradient)


@pytest.mark.parametrize("gradient", ["backprop", "checkpoint", "discrete-adjoint", "continuous-adjoint"])
def test_a_neural_ode_trains_with_tolerances(gradient):
    model = NeuralODE(Rotation(), rtol=1e-8, atol=1e-9, gradient=gradient, t1=2.0)
    x = torch.randn(5, 4)
    model(x).square().sum().backward()
    found = model.field.linear.weight.grad
    exact = NeuralODE(model.field, steps=200, t1=2.0)
    model.field.linear.weight.grad = None
    exact(x).square().sum().backward()
    torch.testing.assert_close(found, model.field.linear.weight.grad, rtol=1e-6, atol=1e-8)
    with pytest.raises(odenet.InputError, match="neither steps nor"):
        NeuralODE(Rotation())
    with pytest.raises(odenet.InputError, match="steps=4 and rtol"):
        NeuralODE(Rotation(), steps=4, rtol=1e-3)


def test_frozen_tied_unused_and_closed_over_tensors():
    tied = torch.randn(3, 3, requires_grad=True)
    weights = {"a": tied, "b": tied, "frozen": torch.randn(3, 3), "unused": torch.randn(2, requires_grad=True)}
    closed = torch.randn(3, requires_grad=True)

    def field(t, y, w):
        return torch.tanh(y @ w["a"]) - torch.tanh(y @ w["b"].T) + y @ w["frozen"] * 0.1 + closed

    def gradients(method):
        loss = solve(field, torch.ones(2, 3), weights, rtol=1e-9, atol=1e-10, gradient=method).y1.square().sum()
        return torch.autograd.grad(loss, (tied, closed))

    exact = gradients("backprop")
    for method in ("checkpoint", "discrete-adjoint", "continuous-adjoint"):
        torch.testing.assert_close(gradients(method), exact, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", [torch.complex128, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gradient", ["backprop", "checkpoint", "discrete-adjoint", "continuous-adjoint"])
def test_number_types(kind, gradient):
    y0 = torch.tensor([1.0, 0.5], dtype=kind, requires_grad=True)
    rate = 1j if kind.is_complex else -1.0
    found = solve(lambda t, y: rate * y, y0, rtol=1e-5, atol=1e-6, gradient=gradient)
    assert found.y1.dtype is kind
    exact = y0.detach().to(torch.complex128) * torch.exp(torch.tensor(rate + 0j))
    loose = 2e-2 if kind is torch.bfloat16 else 1e-4
    torch.testing.assert_close(found.y1.detach().to(torch.complex128), exact, rtol=loose, atol=loose)
    (g,) = torch.autograd.grad(found.y1.abs().square().sum(), y0)
    assert g.dtype is kind
    size = 1.0 if kind.is_complex else torch.exp(torch.tensor(-2.0))
    torch.testing.assert_close(g.abs().double(), (2 * y0.detach().abs() * size).double(), rtol=5 * loose, atol=loose)


def test_a_second_backward_and_a_kept_graph():
    w = torch.randn(3, 3, requires_grad=True)
    for method in ("checkpoint", "checkpoint:states=2", "discrete-adjoint", "continuous-adjoint"):
        loss = solve(lambda t, y, w: torch.tanh(y @ w), torch.ones(3), w, rtol=1e-6, gradient=method).y1.sum()
        first = torch.autograd.grad(loss, w, retain_graph=True)
        torch.testing.assert_close(torch.autograd.grad(loss, w), first)
        loss = solve(lambda t, y, w: torch.tanh(y @ w), torch.ones(3), w, rtol=1e-6, gradient=method).y1.sum()
        with pytest.raises(odenet.UnsupportedError, match="second derivative"):
            torch.autograd.grad(loss, w, create_graph=True)
