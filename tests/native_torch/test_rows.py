"""Rows with steps of their own: what is thrown away has no gradient, and rows that read each other are refused."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from quick import quick
from torch import nn

import odenet
from odenet import GridError, PIDController, UnsupportedError


def rows(**choices):
    return PIDController(per_sample=True, **choices)


def gradients(field, y0, w, pick, control, **choices):
    y, w = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (y0, w))
    solution = odenet.solve(field, y, w, rtol=1e-6, atol=1e-8, control=control, **choices)
    return solution, *torch.autograd.grad(pick(solution), (w, y))


def alone(field, y0, w, **choices):
    """The gradients of the sum of each row's end, one by one."""
    of_w, of_y = 0.0, []
    for row in y0:
        _, g, g0 = gradients(field, [row], w, lambda s: s.y1.sum(), PIDController(), **choices)
        of_w, of_y = of_w + g.item(), [*of_y, g0.item()]
    return of_w, of_y


OVERFLOWING = {
    "sinh": (lambda t, y, w: -w * torch.sinh(y), [[3.0], [30.0]]),
    "logarithm": (lambda t, y, w: -w * y * torch.log(y), [[1.5], [40.0], [0.2]]),
    "cube": (lambda t, y, w: -w * y.pow(3) / (1 + (-y).exp()), [[1.0], [60.0]]),
}


@pytest.mark.parametrize(
    ("name", "first_step", "solver"),
    quick(
        list(itertools.product(OVERFLOWING, (None, 50.0), ("dopri5", "bosh3", "dopri8"))),
        [
            ("sinh", None, "dopri5"),
            ("logarithm", 50.0, "dopri5"),
            ("logarithm", None, "dopri8"),
            ("cube", 50.0, "dopri8"),
            ("cube", None, "bosh3"),
        ],
    ),
)
def test_a_rejected_step_that_overflowed_has_no_gradient(name, first_step, solver):
    field, y0 = OVERFLOWING[name]
    control = rows(first_step=first_step)
    solution, w, y = gradients(field, y0, 1.0, lambda s: s.y1.sum(), control, solver=solver)
    assert solution.result is odenet.Result.SUCCESS
    right, right_y = alone(field, y0, 1.0, solver=solver)
    assert w.item() == pytest.approx(right, rel=1e-3)
    assert y.flatten().tolist() == pytest.approx(right_y, rel=1e-3, abs=1e-8)


@pytest.mark.parametrize("bad", [2.0, math.nan, math.inf, 1e200])
def test_a_row_that_is_lost_leaves_the_others_their_gradient(bad):
    """y' = w y^2 from 1/2 is 1 at t = 1, and so are its derivative by w and a quarter of that by y0."""
    control = rows(throw=False, max_steps=500)
    for y0, row in (([[0.5], [bad]], 0), ([[bad], [0.5], [0.5]], 1)):
        solution, w, y = gradients(lambda t, y, w: w * y * y, y0, 1.0, lambda s, row=row: s.y1[row].sum(), control)
        assert solution.y1[row].item() == pytest.approx(1.0, rel=1e-5)
        assert not torch.isfinite(solution.y1[y0.index([bad])]).any()
        assert w.item() == pytest.approx(1.0, rel=1e-5)
        assert y.flatten().tolist() == pytest.approx([4.0 if i == row else 0.0 for i in range(len(y0))], rel=1e-5)
        assert solution.outcome[y0.index([bad])] > 0


def test_an_infinite_derivative_of_a_row_that_the_loss_does_not_read_is_none():
    """y' = -w sqrt(y) is (1 - w t / 2)^2 from 1, and stays at 0, where the derivative of the root is infinite."""
    _, w, y = gradients(
        lambda t, y, w: -w * torch.sqrt(y.clamp(min=0)), [[1.0], [0.0]], 1.0, lambda s: s.y1[0].sum(), rows()
    )
    assert w.item() == pytest.approx(-0.5, rel=1e-4)
    assert y.flatten().tolist() == pytest.approx([0.5, 0.0], rel=1e-4)


def test_second_derivatives_pass():
    y, w = torch.tensor([[0.5], [0.2]]).double(), torch.tensor(1.0).double().requires_grad_()
    end = odenet.solve(lambda t, y, w: w * y * y, y, w, rtol=1e-9, atol=1e-11, control=rows(first_step=5.0)).y1
    (first,) = torch.autograd.grad(end.sum(), w, create_graph=True)
    (second,) = torch.autograd.grad(first, w)
    assert second.item() == pytest.approx(sum(2 * a**3 / (1 - a) ** 3 for a in (0.5, 0.2)), rel=1e-5)


class Normed(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.norm, self.linear = norm, nn.Linear(3, 3)

    def forward(self, t, y):
        return torch.tanh(self.linear(self.norm(y)))


class Called(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, y):
        return self.function(y)


MIXING = {
    "batch norm": nn.BatchNorm1d(3),
    "batch norm without statistics": nn.BatchNorm1d(3, track_running_stats=False).eval(),
    "mean": lambda y: y - y.mean(0),
    "first row": lambda y: y - y[:1],
    "last row": lambda y: y - y[-1:],
    "second row": lambda y: y - y[1:2],
    "softmax": lambda y: torch.softmax(y, 0),
    "neighbour": lambda y: y + 0.01 * y.roll(1, 0),
    "attention": lambda y: torch.softmax(y @ y.T, 1) @ y,
}


@pytest.mark.parametrize("kind", MIXING)
def test_rows_that_read_each_other_are_refused(kind):
    torch.manual_seed(0)
    norm = MIXING[kind]
    field = Normed(norm if isinstance(norm, nn.Module) else Called(norm))
    for y0 in (torch.randn(6, 3), torch.randn(2, 3), torch.ones(4, 3), torch.zeros(4, 3)):
        closure = lambda t, y: field(t, y)  # noqa: E731
        for f in (field, closure):
            with pytest.raises(UnsupportedError, match="read each other"):
                odenet.solve(f, y0, t1=1.0, rtol=1e-3, control=rows())
    found = odenet.solve(field, torch.randn(6, 3), t1=1.0, steps=4).y1  # equal steps are right
    assert bool(torch.isfinite(found).all())
    if kind == "batch norm":
        assert int(field.norm.num_batches_tracked) == 4  # of the equal steps alone


@pytest.mark.parametrize(
    ("kind", "count"), [("mean", 2), ("neighbour", 2), ("last row", 3), ("softmax", 3), ("mean", 8), ("softmax", 8)]
)
def test_rows_that_read_each_other_on_the_way_alone(kind, count):
    """In the middle of the span; for several rows, wherever the time of one of them is."""
    torch.manual_seed(0)
    middles = [0.5] if count < 8 else [0.5, 0.12, 0.35, 0.71, 0.97]
    for middle in middles:

        def f(t, y):
            within = (t - middle).abs() < 0.1  # noqa: B023
            return -y + torch.where(within, MIXING[kind](y) - y, torch.sin(t) * y)

        for y0 in (torch.randn(count, 3), torch.ones(count, 3)):
            with pytest.raises(UnsupportedError, match="read each other"):
                odenet.solve(f, y0, t1=1.0, rtol=1e-3, control=rows())


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_field_whose_rows_were_independent_is_looked_at_over_a_longer_span_and_as_it_is_by_then(sign):
    torch.manual_seed(0)
    middle, y0, mixes = 2.0 * sign, torch.randn(4, 3), []

    def f(t, y):
        return -y + torch.where(((t - middle).abs() < 0.1) | bool(mixes), y.mean(0) - y, 0.0)

    for _ in range(2):
        odenet.solve(f, y0, t1=sign, rtol=1e-3, control=rows())
    for _ in range(2):
        with pytest.raises(UnsupportedError, match="read each other"):
            odenet.solve(f, y0, t1=4.0 * sign, rtol=1e-3, control=rows())
    mixes.append(1)
    with pytest.raises(UnsupportedError, match="read each other"):
        odenet.solve(f, y0, t1=sign, rtol=1e-3, control=rows())


@pytest.mark.parametrize("norm", [nn.LayerNorm(3), nn.BatchNorm1d(3).eval(), nn.Identity()])
def test_rows_that_do_not_are_solved_and_the_random_state_is_left_alone(norm):
    torch.manual_seed(0)
    field, y0 = Normed(norm), torch.randn(5, 3)
    field.norm.train(norm.training)
    torch.manual_seed(1)
    found = odenet.solve(field, y0, t1=1.0, rtol=1e-5, control=rows()).y1
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert drawn == torch.rand(1)
    with torch.no_grad():
        for i in range(5):
            one = odenet.solve(field, y0[i : i + 1], t1=1.0, rtol=1e-5).y1
            torch.testing.assert_close(found[i : i + 1], one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("t0", [1e4, 131072.0, 2459000.5, 1.7e9])
@pytest.mark.parametrize("how", [{"control": rows()}, {}, {"steps": 40, "solver": "rk4"}])
def test_float32_states_at_large_times(t0, how):
    """The loops count in float64, and so does the field where float32 cannot tell its times apart."""
    choices = how if "steps" in how else {"rtol": 1e-5, "atol": 1e-7, **how}
    y0 = torch.ones(2, 1)
    end = odenet.solve(lambda t, y: -y, y0, t0=t0, t1=t0 + 2, **choices).y1
    torch.testing.assert_close(end, torch.full((2, 1), math.exp(-2)), rtol=1e-4, atol=0)
    if how == {"control": rows()}:
        with pytest.raises(GridError, match="float32"):
            odenet.solve(lambda t, y: torch.cos(t) * torch.ones_like(y), 0 * y0, t0=t0, t1=t0 + 2, **choices)
        return
    end = odenet.solve(lambda t, y: torch.cos(t) * torch.ones_like(y), 0 * y0, t0=t0, t1=t0 + 2, **choices).y1
    right = math.sin(t0 + 2) - math.sin(t0)
    torch.testing.assert_close(end, torch.full((2, 1), right), rtol=0, atol=2e-5)


def test_an_event_at_large_times_has_its_time():
    for t0 in (1e6, 1.7e9):
        found = odenet.solve(lambda t, y: -y, torch.ones(1), t0=t0, t1=t0 + 2, rtol=1e-6, event=lambda t, y: y < 0.5)
        assert found.event_t.item() - t0 == pytest.approx(math.log(2), abs=1e-4)


@pytest.mark.parametrize("n", [3, 7, 49, 100])
def test_n_steps_of_an_nth_are_n_steps(n):
    for control in (PIDController(max_step=1 / n, first_step=1 / n), rows(max_step=1 / n, first_step=1 / n)):
        found = odenet.solve(lambda t, y: torch.ones_like(y), torch.zeros(1, 1), control=control)
        assert int(torch.as_tensor(found.stats.steps).max()) == n


def looked_up(t, y):
    return -y * [1.0, 2.0][int(t * 1.5)]


def filled(t, y):
    return -y * torch.full_like(y, t)


def stacked(t, y):
    return torch.stack([y[:, 1], -y[:, 0] * t], 1)


@pytest.mark.parametrize(
    "field", [lambda t, y: -y if t < 0.5 else y, lambda t, y: -y * math.sin(t), looked_up, filled, stacked]
)
def test_a_field_that_takes_one_time_is_refused_with_what_to_write(field):
    y = torch.ones(3, 2, dtype=torch.float64)
    odenet.solve(field, y, rtol=1e-3, atol=1e-3, control=PIDController(max_step=0.5))  # one step size for all
    with pytest.raises(UnsupportedError, match=r"takes one time.*shape \(3, 1\).*torch\.where"):
        odenet.solve(field, y, rtol=1e-3, atol=1e-3, control=rows())


def test_what_a_field_raises_itself_comes_out_as_it_is():
    def field(t, y):
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        odenet.solve(field, torch.ones(3, 2), rtol=1e-3, control=rows())
