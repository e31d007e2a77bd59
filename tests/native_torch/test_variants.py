"""Variants of what was once wrong in silence: memory that is shared, slopes that broadcast, times on a grid."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import nn

from odenet import DtypeError, InputError, OdenetError, PIDController, StateError
from odenet_torch import NeuralODE, odeint, odeint_adjoint, solve

pytestmark = pytest.mark.usefixtures("double")

ADAMS = ("explicit_adams", "implicit_adams", "fixed_adams")


def by_numpy(t, y):
    slope = -y
    y.numpy()[:] = 5
    return slope


def by_data(t, y):
    slope = -y
    y.data.fill_(5)
    return slope


def by_operation(t, y):
    slope = -y
    y.fill_(5)
    return slope


def ring(count):
    """A field that returns its slopes in several tensors, one after the other."""
    tensors, calls = [torch.zeros(2, 1) for _ in range(count)], []

    def field(t, y):
        calls.append(t)
        return tensors[len(calls) % count].copy_(-y)

    return field


SOLVES = {
    "equal": {"steps": 40, "solver": "rk4"},
    "two-step": {"steps": 400, "solver": "reversible-heun"},
    "adaptive": {"rtol": 1e-6},
    "per_sample": {"rtol": 1e-6, "control": PIDController(per_sample=True)},
}


@pytest.mark.parametrize("solve_by", SOLVES)
@pytest.mark.parametrize("field", [by_numpy, by_data, by_operation])
def test_a_field_that_writes_on_y_by_whatever_means(field, solve_by):
    y0 = torch.ones(2, 1)
    solution = solve(field, y0, **SOLVES[solve_by])
    assert solution.y1.flatten().tolist() == pytest.approx([math.exp(-1)] * 2, abs=1e-4)
    assert (y0 == 1).all()


@pytest.mark.parametrize("gradient", ["backprop", "checkpoint:states=3", "continuous-adjoint"])
def test_the_gradient_of_a_field_that_writes_on_the_data_of_y(gradient):
    def field(t, y, w):
        slope = -w * y.clone()
        y.data.fill_(5)
        return slope

    w = torch.tensor(1.0, requires_grad=True)
    y1 = solve(field, torch.ones(2), w, steps=40, solver="rk4", gradient=gradient).y1
    (found,) = torch.autograd.grad(y1.sum(), w)
    assert found.item() == pytest.approx(-2 * math.exp(-1), abs=1e-5)


@pytest.mark.parametrize("method", ["dopri5", "rk4", "midpoint", *ADAMS])
@pytest.mark.parametrize("field", [by_numpy, by_operation])
def test_the_drop_in_and_what_it_leaves_to_torchdiffeq(field, method):
    y0, t = torch.ones(2, 1), torch.tensor([0.0, 1.0])
    options = {} if method == "dopri5" else {"options": {"step_size": 1 / 128}}
    pure = odeint(lambda t, y: -y, y0, t, method=method, **options)
    assert torch.equal(odeint(field, y0, t, method=method, **options), pure)
    if method in ADAMS:
        assert torch.equal(odeint(ring(2), y0, t, method=method, **options), pure)
    assert (y0 == 1).all()


@pytest.mark.parametrize("count", [2, 3])
def test_slopes_in_a_ring_of_tensors_are_refused_where_one_is_lost(count):
    with pytest.raises(StateError, match="wrote on a slope"):
        solve(ring(count), torch.ones(2, 1), **SOLVES["per_sample"])
    for method, options in (("rk4", {}), ("midpoint", {"interp": "cubic"}))[: 2 if count == 2 else 1]:
        options = {"step_size": 0.1, **options}
        with pytest.raises(StateError, match="wrote on a slope"):
            odeint(ring(count), torch.ones(2, 1), torch.tensor([0.0, 0.55, 1.0]), method=method, options=options)


@pytest.mark.parametrize("call", [odeint, odeint_adjoint])
@pytest.mark.parametrize("method", [*ADAMS[:2], "scipy_solver"])
def test_slopes_that_broadcast_are_refused_by_methods_of_torchdiffeq_too(call, method):
    options = {} if method == "scipy_solver" else {"step_size": 0.1}
    more = {"adjoint_params": ()} if call is odeint_adjoint else {}
    y, pair = torch.ones(3), (torch.ones(2, 3), torch.ones(3, 2))
    for field, y0, error in (
        (lambda t, y: -y[:1], y, StateError),
        (lambda t, y: -y.sum(), y, StateError),
        (lambda t, y: -1.0, y, StateError),
        (lambda t, y: (-y[1], -y[0]), pair, StateError),
        (lambda t, y: -y * 1j, y, DtypeError),
    ):
        with pytest.raises(error, match="returned"):
            call(field, y0, torch.tensor([0.0, 1.0]), method=method, options=options, **more)


@pytest.mark.parametrize("step_size", [0.25, 0.01, 0.3])
@pytest.mark.parametrize("method", ["euler", "rk4"])
def test_times_at_which_steps_end_move_within_them(method, step_size):
    """The derivative by a time is the slope there, whether or not it happens to lie on the grid."""
    times = torch.tensor([0.0, 0.5, 0.6, 1.0], requires_grad=True)
    ys = odeint(lambda t, y: y * torch.cos(t), torch.ones(1), times, method=method, options={"step_size": step_size})
    for i in (1, 2):
        (found,) = torch.autograd.grad(ys[i].sum(), times, retain_graph=True)
        assert found[i].item() == pytest.approx((ys[i] * torch.cos(times[i])).item(), rel=step_size)
        assert found[0].item() == pytest.approx(-ys[i].item(), rel=2 * step_size)  # -f(0) dy1/dy0


def test_whole_numbers_as_slopes_in_the_adjoint():
    ys = odeint_adjoint(
        lambda t, y: torch.ones(3, dtype=torch.long), torch.ones(3), torch.tensor([0.0, 1.0]), adjoint_params=()
    )
    assert ys[-1].tolist() == pytest.approx([2.0] * 3)


def test_a_state_of_several_leaves_in_a_neural_ode():
    class Field(nn.Module):
        def forward(self, t, y):
            return -y[0], y[1]

    x = torch.ones(2)
    first, second = NeuralODE(Field(), steps=20)((x, x))
    assert first.tolist() == pytest.approx([math.exp(-1)] * 2, abs=1e-5)
    assert second.tolist() == pytest.approx([math.e] * 2, abs=1e-5)


def test_numbers_that_have_no_place():
    y = torch.ones(2)
    with pytest.raises(InputError, match="finite real numbers"):
        solve(lambda t, y: -y, y, rtol=1e-3, dense=True).at(torch.tensor(0.5 + 0.5j))
    for slope in (lambda y: y.to_sparse(), lambda y: y.to(torch.float8_e4m3fn)):
        for choices in ({"steps": 3}, {"rtol": 1e-3}):
            with pytest.raises(OdenetError, match="returned"):
                solve(lambda t, y, slope=slope: slope(y), y, **choices)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    with pytest.raises(StateError, match="arrays or numbers"):
        solve(lambda t, y: -y, nested, steps=3)
