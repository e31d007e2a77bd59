"""The drop-in for torchdiffeq against torchdiffeq itself, closed forms and finite differences."""

from __future__ import annotations

import itertools
import math
import sys
import warnings

import pytest
import torch
import torchdiffeq
from quick import pairwise
from torch import nn

import odenet_torch
from odenet import BackendUnavailableError, GradientError, InputError, SolveError, UnknownNameError, UnsupportedError
from odenet_torch import odeint, odeint_adjoint, odeint_dense, odeint_event

ADAPTIVE = ["dopri8", "dopri5", "bosh3", "fehlberg2", "adaptive_heun"]
# fehlberg2's estimate is 1/512 of a difference: theirs is as far off
COARSE = {"fehlberg2": (1e-5, 1000), "adaptive_heun": (1e-4, 60)}
FIXED = ["euler", "midpoint", "heun2", "heun3", "rk4"]
DELEGATED = ["explicit_adams", "implicit_adams", "fixed_adams", "scipy_solver"]
BOTH_WAYS = ("odeint", "odeint_adjoint")
WAYS = pytest.mark.parametrize("way", BOTH_WAYS)
DIRECTIONS = pytest.mark.parametrize("backward", [False, True], ids=["forth", "back"])
BOTH = (torchdiffeq, odenet_torch)
DOUBLE = torch.float64


class Field(nn.Module):
    """Smooth, with weights and a dependence on time; counts its calls."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3, dtype=DOUBLE)
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, dtype=DOUBLE, generator=generator) / 2
        self.calls = 0

    def forward(self, t, y):
        self.calls += 1
        return torch.tanh(self.linear(y)) * torch.cos(2 * t) - 0.3 * y


class Decay(nn.Module):
    """y' = -rate y + rate t, in closed form."""

    def __init__(self, rate=1.5):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(rate, dtype=DOUBLE))

    def forward(self, t, y):
        return self.rate * (t - y)

    def solution(self, t, y0):
        since = (t - t[0]).unsqueeze(-1)
        start = t[0] - 1 / self.rate
        return t.unsqueeze(-1) - 1 / self.rate + (y0 - start) * torch.exp(-self.rate * since)


def start():
    return torch.linspace(-1, 1, 6, dtype=DOUBLE).reshape(2, 3).requires_grad_()


def times(backward=False, count=6):
    t = torch.linspace(0.1, 1.3, count, dtype=DOUBLE) ** 1.5
    return (t.flip(0) if backward else t).requires_grad_()


def results(library, way, func, *, backward=False, **options):
    """The solution, and the gradients with respect to y0, t and the parameters."""
    y0, t = start(), times(backward)
    ys = getattr(library, way)(func, y0, t, **options)
    weights = torch.cos(torch.arange(ys.numel(), dtype=DOUBLE)).reshape(ys.shape)
    return [ys.detach(), *torch.autograd.grad((ys * weights).sum(), [y0, t, *func.parameters()])]


def close(one, other, tolerance):
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="module")
def exact():
    """Results with tight tolerances, by direction."""
    tight = {"method": "dopri8", "rtol": 1e-11, "atol": 1e-12}
    return {backward: results(odenet_torch, "odeint", Field(), backward=backward, **tight) for backward in (0, 1)}


@pytest.mark.parametrize(
    ("method", "backward", "way"), pairwise(itertools.product((*ADAPTIVE, "tsit5"), (False, True), BOTH_WAYS))
)
def test_adaptive_methods_and_their_gradients_are_within_tolerance(method, backward, way, exact):
    tolerance, factor = COARSE.get(method, (1e-6, 60))
    found = results(odenet_torch, way, Field(), backward=backward, method=method, rtol=tolerance, atol=tolerance)
    close(found, exact[backward], factor * tolerance)


@WAYS
@pytest.mark.parametrize("method", ADAPTIVE)
def test_adaptive_methods_agree_with_theirs(method, way):
    tolerance = 1e-3 if method == "adaptive_heun" else 1e-5
    options = {"method": method, "rtol": tolerance, "atol": tolerance}
    theirs, ours = (results(library, way, Field(), **options) for library in BOTH)
    # as far as their dense output goes, which is of low order, and which gradients by times are taken of
    close(ours[:1], theirs[:1], 3e-3)
    close(ours[1:], theirs[1:], 0.1 if way == "odeint" else 1e-2)


@DIRECTIONS
@pytest.mark.parametrize("method", [*ADAPTIVE, "tsit5"])
def test_adaptive_methods_reach_a_closed_form(method, backward):
    func, t = Decay(), times(backward).detach()
    y0 = torch.tensor([0.3, -2.0], dtype=DOUBLE)
    tolerance, factor = COARSE.get(method, (1e-7, 30))
    found = odeint(func, y0, t, method=method, rtol=tolerance, atol=tolerance)
    close([found], [func.solution(t, y0)], factor * tolerance)


def grid_constructor(func, y0, t):
    return torch.cat([t[:1], t[0] + (t[-1] - t[0]) * torch.tensor([0.1, 0.3, 0.35, 0.7], dtype=DOUBLE), t[-1:]])


GRIDS = {
    "times": {},
    "step_size": {"step_size": 0.07},
    "divides": {"step_size": 0.05},
    "perturb": {"step_size": 0.2, "perturb": True},
    "cubic": {"step_size": 0.21, "interp": "cubic"},
    "cubic-times": {"interp": "cubic", "perturb": True},
    "constructor": {"grid_constructor": grid_constructor},
    "constructor-cubic": {"grid_constructor": grid_constructor, "interp": "cubic"},
}


@pytest.mark.parametrize(
    ("method", "grid", "backward", "way"), pairwise(itertools.product(FIXED, GRIDS, (False, True), BOTH_WAYS))
)
def test_fixed_methods_and_their_gradients_are_theirs_to_rounding(method, grid, backward, way):
    theirs, ours = (
        results(library, way, Field(), backward=backward, method=method, options=dict(GRIDS[grid])) for library in BOTH
    )
    close(ours, theirs, 1e-12)


def test_a_perturbed_field_is_evaluated_inside_of_the_step():
    jump = lambda t, y: torch.where(t < 0.5, 1.0, 3.0) * torch.ones_like(y)  # noqa: E731
    y0, t = torch.zeros(1, dtype=DOUBLE), torch.tensor([0.0, 0.5, 1.0], dtype=DOUBLE)
    for backward in (False, True):
        found = odeint(jump, y0, t.flip(0) if backward else t, method="heun2", options={"perturb": True})
        assert abs(found[-1].item()) == pytest.approx(2.0, abs=1e-15)
    assert odeint(jump, y0, t, method="heun2")[-1].item() == pytest.approx(2.5)


@pytest.mark.parametrize("count", range(1, 60))
def test_a_step_size_that_divides_the_interval_takes_so_many_steps(count):
    steps = []
    field = lambda t, y: steps.append(t) or y  # noqa: E731
    odeint(field, torch.ones(1), torch.tensor([0.0, 1.0]), method="euler", options={"step_size": 1 / count})
    assert len(steps) == count


@pytest.mark.parametrize("other", [*FIXED, "dopri5"])
def test_the_way_back_may_have_a_method_of_its_own(other):
    options = {"method": "rk4", "adjoint_method": other, "options": {"step_size": 0.1}, "adjoint_options": {}}
    if other in FIXED:
        options["adjoint_options"] = {"step_size": 0.04}
    theirs, ours = (results(library, "odeint_adjoint", Field(), **options) for library in BOTH)
    if other not in FIXED:  # theirs by t[0] is that where dopri5 came back to from rk4's end, 6e-5 away
        for gradients in (ours, theirs):
            gradients[2] = gradients[2][1:]
    close(ours, theirs, 1e-12 if other in FIXED else 1e-6)
    with pytest.raises(InputError, match="adjoint_options"):
        odeint_adjoint(Field(), start(), times(), method="rk4", adjoint_method="euler", options={"step_size": 0.1})


def test_tighter_adjoint_tolerances_give_a_gradient_that_is_nearer(exact):
    def error(**options):
        found = results(odenet_torch, "odeint_adjoint", Field(), rtol=1e-10, atol=1e-10, **options)
        return max(float((a - b).abs().max()) for a, b in zip(found[1:], exact[0][1:], strict=True))

    loose, tight = (error(adjoint_rtol=tol, adjoint_atol=tol) for tol in (1e-3, 1e-9))
    assert tight < 1e-9 < 1e-7 < loose < 1e-2


def test_only_adjoint_params_have_a_gradient():
    func = Field()
    bias = func.linear.bias
    for library in BOTH:
        ys = library.odeint_adjoint(func, start(), times(), adjoint_params=(bias,))
        assert torch.autograd.grad(ys.sum(), func.linear.weight, allow_unused=True, retain_graph=True) == (None,)
        assert torch.autograd.grad(ys.sum(), bias)[0].abs().min() > 0
    whole = torch.autograd.grad(odeint_adjoint(func, start(), times()).sum(), bias)[0]
    ours = torch.autograd.grad(odeint_adjoint(func, start(), times(), adjoint_params=(bias,)).sum(), bias)[0]
    close([ours], [whole], 1e-6)
    y0 = start()
    assert torch.autograd.grad(odeint_adjoint(func, y0, times(), adjoint_params=()).sum(), y0)[0].abs().min() > 0
    with pytest.raises(InputError, match="adjoint_params"):
        odeint_adjoint(lambda t, y: -y, y0, times())


def test_adjoint_params_may_be_computed_elsewhere_unused_or_frozen():
    made, unused, frozen = (torch.full((3,), value, dtype=DOUBLE, requires_grad=True) for value in (0.2, 0.3, 0.4))
    frozen.requires_grad_(False)
    rates = []
    for library in BOTH:
        rate = made.exp()
        given = {"adjoint_params": iter([rate, unused, frozen]), "rtol": 1e-9, "atol": 1e-10}
        ys = library.odeint_adjoint(lambda t, y: -rate * y + frozen, start(), times(), **given)  # noqa: B023
        rates.append(torch.autograd.grad(ys.sum(), (made, unused)))
    close(rates[1], rates[0], 1e-7)
    assert not rates[1][1].any()


def test_the_seminorm_takes_fewer_evaluations_and_is_as_good(exact):
    def counted(**options):
        func = Field()
        tolerance = {"rtol": 1e-7, "atol": 1e-9}
        found = results(odenet_torch, "odeint_adjoint", func, method="dopri5", **tolerance, **options)
        return func.calls, found

    (all_calls, whole), (calls, found) = counted(), counted(adjoint_options={"norm": "seminorm"})
    assert calls <= all_calls
    close(found, exact[0], 1e-5)
    close(whole, exact[0], 1e-5)


def test_many_times_cost_fewer_evaluations_than_there():
    counts = []
    for library in BOTH:
        func, t = Field(), torch.linspace(0, 0.5, 20, dtype=DOUBLE)
        ys = library.odeint_adjoint(func, start(), t, rtol=1e-6, atol=1e-8)
        forth = func.calls
        ys.sin().sum().backward()
        counts.append((forth, func.calls - forth))
    assert counts[1][0] <= 1.1 * counts[0][0]
    assert counts[1][1] <= 0.7 * counts[0][1]  # the size of steps is known from one time to the next


@pytest.mark.parametrize("tupled", [False, True])
def test_norms_of_ones_own_are_given_what_theirs_are(tupled):
    seen = {}
    func = Field()
    both = (lambda t, y: (func(t, y[0]), -y[1])) if tupled else func

    def norm(which):
        def of(value):
            leaves = value if isinstance(value, tuple) else (value,)
            seen[which] = [tuple(leaf.shape) for leaf in leaves]
            return max(leaf.abs().max() for leaf in leaves)

        return of

    for library in BOTH:
        seen.clear()
        y0 = (start(), torch.ones(4, dtype=DOUBLE)) if tupled else start()
        given = {"options": {"norm": norm("forth")}, "adjoint_options": {"norm": norm("back")}}
        ys = library.odeint_adjoint(
            both, y0, times(), adjoint_params=tuple(func.parameters()), method="dopri5", **given
        )
        (ys[0] if tupled else ys).sum().backward()
        shapes = [(2, 3), (4,)] if tupled else [(2, 3)]
        assert seen == {"forth": shapes, "back": [(), *shapes, *shapes, (3, 3), (3,)]}
    with pytest.raises(InputError, match="seminorm"):
        odeint_adjoint(func, start(), times(), adjoint_options={"norm": "semi"})


def test_states_that_are_tuples():
    def field(t, state):
        position, (speed, scale) = state[0], state[1:]
        return [speed * scale, -position * torch.cos(t), torch.zeros(())]

    found = []
    for library in BOTH:
        y0 = tuple(torch.full(shape, 0.5, dtype=DOUBLE, requires_grad=True) for shape in ((2, 2), (2, 2), ()))
        t = times()
        ys = library.odeint(field, y0, t, rtol=1e-9, atol=1e-11)
        assert isinstance(ys, tuple)
        assert [leaf.shape for leaf in ys] == [(6, 2, 2), (6, 2, 2), (6,)]
        found.append([*ys, *torch.autograd.grad(sum(leaf.sin().sum() for leaf in ys), (*y0, t))])
        again = library.odeint_adjoint(field, y0, t, rtol=1e-9, atol=1e-11, adjoint_params=())
        found[-1] += torch.autograd.grad(sum(leaf.sin().sum() for leaf in again), (*y0, t))
    close(found[1], found[0], 1e-6)


@pytest.mark.parametrize("way", ["odeint", "odeint_adjoint"])
def test_tolerances_by_entry_of_a_tuple_and_by_entry_of_a_tensor(way):
    def error(library, y0, **tolerances):
        func = lambda t, y: tuple(2 * torch.cos(20 * t) * leaf for leaf in y) if tupled else 2 * torch.cos(20 * t) * y  # noqa: E731
        t = torch.tensor([0.0, 1.0], dtype=DOUBLE)
        more = {"adjoint_params": ()} if way == "odeint_adjoint" else {}
        ys = getattr(library, way)(func, y0, t, **tolerances, **more)
        last = torch.stack([leaf[-1] for leaf in ys]) if tupled else ys[-1]
        return float((last - math.exp(math.sin(20) / 10)).abs().max())

    one = torch.ones((), dtype=DOUBLE)
    for library in BOTH:
        tupled = True
        assert error(library, (one, one), rtol=(1e-2, 1e-2), atol=(1e-2, 1e-2)) > 1e-5
        assert error(library, (one, one), rtol=(1e-9, 1e-2), atol=(1e-10, 1e-2)) < 1e-6
        tupled = False
        tight = torch.tensor([1e-2, 1e-9], dtype=DOUBLE)
        assert error(library, torch.stack([one, one]), rtol=tight, atol=tight) < 1e-6
    tupled = True
    with pytest.raises(InputError, match="entries"):
        error(odenet_torch, (one, one), rtol=(1e-2,))
    with pytest.raises(InputError, match="gradient"):
        error(odenet_torch, (one, one), rtol=torch.tensor(1e-2, requires_grad=True))


@WAYS
@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_states_that_are_complex(way, method):
    rate = torch.tensor(-0.5 + 2.0j, dtype=torch.complex128, requires_grad=True)
    options = {"options": {"step_size": 0.02, "interp": "cubic"}} if method == "rk4" else {"rtol": 1e-9, "atol": 1e-10}
    more = {"adjoint_params": (rate,)} if way == "odeint_adjoint" else {}
    found = []
    for library in BOTH:
        y0 = torch.tensor([1.0 + 0.5j, -0.3j], dtype=torch.complex128, requires_grad=True)
        ys = getattr(library, way)(lambda t, y: rate * y, y0, times().detach(), method=method, **options, **more)
        found.append([ys, *torch.autograd.grad(ys.abs().square().sum(), (y0, rate))])
    close(found[1], found[0], 1e-7)
    t = times().detach()
    close(found[1][:1], [y0 * torch.exp(rate * (t - t[0]))[:, None]], 1e-6)


@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_number_types_are_those_of_y0_whatever_the_field_and_the_times_have(method):
    wide = torch.tensor([0.5], dtype=DOUBLE)
    seen = set()

    def field(t, y):
        seen.add((t.dtype, y.dtype))
        return -wide * y

    for kind in (torch.float32, torch.float64, torch.bfloat16):
        y0, t = torch.ones(3, dtype=kind), torch.linspace(0, 1, 9, dtype=DOUBLE)
        seen.clear()
        tolerance = {"rtol": 1e-3, "atol": 1e-3}
        ys = odeint(field, y0, t, method=method, **tolerance)
        assert ys.dtype == kind
        assert seen == {(kind, kind)}
        assert float(ys[-1, 0]) == pytest.approx(math.exp(-0.5), rel=0.01)


@WAYS
@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_scalars_in_float32_with_times_in_float64(way, method):
    found = []
    for library in BOTH:
        rate, y0 = nn.Parameter(torch.tensor(0.5)), torch.tensor(2.0, requires_grad=True)
        t = torch.linspace(0.1, 2.0, 5, dtype=DOUBLE, requires_grad=True)
        more = {"adjoint_params": (rate,)} if way == "odeint_adjoint" else {}
        more |= {"options": {"step_size": 0.1, "interp": "cubic"}} if method == "rk4" else {"rtol": 1e-5}
        ys = getattr(library, way)(lambda t, y: -rate * y, y0, t, method=method, **more)  # noqa: B023
        found.append([ys, *torch.autograd.grad(ys.sum(), (y0, t, rate))])
        assert [leaf.dtype for leaf in found[-1]] == [torch.float32, torch.float32, DOUBLE, torch.float32]
    close(found[1], found[0], 1e-4)


def test_rounding_errors_of_many_steps_in_float32_are_theirs():
    found = []
    for library in BOTH:
        t = torch.tensor([0.0, 1.0])
        ys = library.odeint(lambda t, y: 0.2 + 0 * y, torch.tensor([3.2]), t, method="rk4", options={"step_size": 1e-2})
        found.append(abs(ys[-1].item() - 3.4))
    assert found[1] <= 1.5 * found[0] + 1e-6


class Ball(nn.Module):
    """A ball that falls from a height."""

    def __init__(self):
        super().__init__()
        self.gravity = nn.Parameter(torch.tensor(9.8, dtype=DOUBLE))
        self.height = nn.Parameter(torch.tensor(3.0, dtype=DOUBLE))

    def forward(self, t, state):
        position, speed = state
        return speed, -self.gravity + 0 * position

    @property
    def at_start(self):
        return self.height, torch.zeros((), dtype=DOUBLE)


@pytest.mark.parametrize("interface", ["odeint", "odeint_adjoint"])
@pytest.mark.parametrize("method", ["dopri5", "bosh3", "rk4"])
def test_a_ball_meets_the_ground_when_it_should_and_its_gradients_are_known(interface, method):
    found = []
    for library in BOTH:
        ball, t0 = Ball(), torch.tensor(0.3, dtype=DOUBLE, requires_grad=True)
        options = {"options": {"step_size": 0.05, "interp": "cubic"}} if method == "rk4" else {}
        event_t, (position, speed) = library.odeint_event(
            ball,
            ball.at_start,
            t0,
            event_fn=lambda t, state: state[0],
            odeint_interface=getattr(library, interface),
            method=method,
            atol=1e-9,
            rtol=1e-9,
            **options,
        )
        assert position.shape == speed.shape == (2,)
        of_time = torch.autograd.grad(event_t, (ball.height, ball.gravity, t0), retain_graph=True)
        of_speed = torch.autograd.grad(speed[-1], (ball.height, ball.gravity))
        found.append([event_t, position, speed, *of_time, *of_speed])
    h, g = 3.0, 9.8
    fall = math.sqrt(2 * h / g)
    event_t, position, speed, *gradients = found[1]
    assert event_t.item() == pytest.approx(0.3 + fall, abs=1e-7)
    assert speed[-1].item() == pytest.approx(-g * fall, abs=1e-6)
    known = [fall / 2 / h, -fall / 2 / g, 1.0, -g * fall / 2 / h, -fall / 2]
    assert [float(value) for value in gradients] == pytest.approx(known, abs=1e-5)
    if method != "bosh3":  # whose dense output puts their ball on the ground 0.2 s too early
        close(found[1], found[0], 1e-5)


def test_a_ball_bounces_several_times():
    def simulate(library):
        ball = Ball()
        state, t, met = ball.at_start, torch.zeros((), dtype=DOUBLE), []
        for _ in range(4):
            t, found = library.odeint_event(
                ball, state, t, event_fn=lambda t, state: state[0], atol=1e-10, rtol=1e-10, method="dopri5"
            )
            position, speed = (leaf[-1] for leaf in found)
            state = position + 1e-7, -0.8 * speed
            met.append(t)
        return [torch.stack(met), *torch.autograd.grad(met[-1], (ball.height, ball.gravity))]

    theirs, ours = map(simulate, BOTH)
    close(ours, theirs, 1e-5)
    fall = math.sqrt(2 * 3 / 9.8)
    known = [fall, fall * 2.6, fall * (2.6 + 2 * 0.64), fall * (2.6 + 2 * (0.64 + 0.512))]
    close(ours[:1], [torch.tensor(known, dtype=DOUBLE)], 1e-5)


@pytest.mark.parametrize("method", ["dopri5", "midpoint"])
def test_events_backward_in_time_of_several_conditions_and_at_the_start(method):
    rate = nn.Parameter(torch.tensor(0.5, dtype=DOUBLE))
    field = lambda t, y: rate * y  # noqa: E731
    more = {"options": {"step_size": 0.01}} if method == "midpoint" else {}
    y0, t0 = torch.ones(2, dtype=DOUBLE), torch.tensor(1.0, dtype=DOUBLE)
    for library in BOTH:
        event_t, ys = library.odeint_event(
            field, y0, t0, event_fn=lambda t, y: y - 0.5, reverse_time=True, method=method, **more
        )
        assert event_t.item() == pytest.approx(1 - math.log(2) / 0.5, abs=1e-4)
        assert ys[-1, 0].item() == pytest.approx(0.5, abs=1e-4)
        (by_rate,) = torch.autograd.grad(event_t, rate)
        assert by_rate.item() == pytest.approx(math.log(2) / 0.25, rel=1e-3)
        several = lambda t, y: torch.stack([y[0] - 3.0, t - 1.7])  # noqa: E731
        event_t, ys = library.odeint_event(field, y0, t0, event_fn=several, method=method, **more)
        assert event_t.item() == pytest.approx(1.7, abs=1e-5)
        (by_rate,) = torch.autograd.grad(ys[-1].sum(), rate)
        assert by_rate.item() == pytest.approx(2 * 0.7 * math.exp(0.35), rel=1e-3)
    t = torch.stack([t0, t0 + 1])  # met where it begins: theirs goes on for ever with fixed steps
    event_t, ys = odeint(field, y0, t, event_fn=lambda t, y: y[0] - 1, method=method, **more)
    assert event_t.item() == 1.0
    close([ys], [torch.stack([y0, y0])], 0)


def test_the_condition_s_own_parameters_have_a_gradient():
    level = nn.Parameter(torch.tensor(0.25, dtype=DOUBLE))
    y0, t0 = torch.ones(1, dtype=DOUBLE), torch.zeros((), dtype=DOUBLE)
    event_t, _ = odeint_event(lambda t, y: -y, y0, t0, event_fn=lambda t, y: y - level)
    (found,) = torch.autograd.grad(event_t, level)
    assert found.item() == pytest.approx(-4.0, abs=1e-5)  # t = -log(level)


def test_the_time_of_an_event_by_odeint_adjoint_alone_has_its_gradient():
    ball = Ball()
    t = torch.tensor([0.0, 1.0], dtype=DOUBLE)
    event_t, _ = odeint_adjoint(ball, ball.at_start, t, event_fn=lambda t, state: state[0])
    (found,) = torch.autograd.grad(event_t, ball.height)
    assert found.item() == pytest.approx(math.sqrt(2 * 3 / 9.8) / 6, abs=1e-5)


def test_events_need_two_times_and_a_step_size(monkeypatch):
    monkeypatch.setattr("odenet_torch.drop_in.fixed._EVENT_STEPS", 50)
    with pytest.raises(InputError, match="event_fn"):
        odeint(Decay(), start(), times(), event_fn=lambda t, y: y[0])
    with pytest.raises(InputError, match="step_size"):
        odeint(Decay(), start(), times(count=2), event_fn=lambda t, y: y[0, 0], method="rk4")
    with pytest.raises(SolveError, match="no event"):
        odeint(lambda t, y: 0 * y, torch.ones(1), torch.tensor([0.0, 1.0]), event_fn=lambda t, y: y, method="euler",
               options={"step_size": 0.1})  # fmt: skip


@DIRECTIONS
def test_dense_output_is_a_function_of_time(backward):
    func, ends = Decay(), [0.2, 2.0]
    if backward:
        ends.reverse()
    y0 = torch.tensor([0.3, -2.0], dtype=DOUBLE, requires_grad=True)
    t0, t1 = (torch.tensor(value, dtype=DOUBLE) for value in ends)
    dense = odeint_dense(func, y0, t0, t1, rtol=1e-9, atol=1e-10)
    t = torch.cat([t0[None], torch.linspace(0.3, 1.9, 9, dtype=DOUBLE), t1[None]]).requires_grad_()
    known = func.solution(t, y0)
    close([dense(t)], [known], 1e-6)
    assert dense(t[:6].reshape(2, 3)).shape == (2, 3, 2)
    wanted = (t, y0, func.rate)
    mine, exact = (torch.autograd.grad(ys.sin().sum(), wanted) for ys in (dense(t), known))
    close(mine[1:], exact[1:], 1e-6)
    # the first time is where the closed form begins, too
    close([mine[0][1:]], [exact[0][1:]], 1e-5)
    with pytest.raises(InputError, match="between"):
        dense(2.5)


def test_dense_output_is_theirs_at_a_time():
    func = Field()
    t0, t1 = torch.tensor(0.0, dtype=DOUBLE), torch.tensor(1.5, dtype=DOUBLE)
    theirs, ours = (library.odeint_dense(func, start(), t0, t1, rtol=1e-8, atol=1e-9) for library in BOTH)
    for t in (0.0, 0.4, 1.3):
        time = torch.tensor(t, dtype=DOUBLE)
        close([ours(time)], [theirs(time)], 1e-6)
    with pytest.raises(InputError, match="dopri5"):
        odeint_dense(func, start(), 0.0, 1.0, method="rk4")


class Watched(nn.Module):
    """Told of all steps."""

    def __init__(self, tupled=False):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(8.0, dtype=DOUBLE))
        self.tupled = tupled
        self.told = {}

    def forward(self, t, y):
        slope = lambda leaf: self.rate * torch.cos(20 * t) * torch.sin(leaf)  # noqa: E731
        return tuple(map(slope, y)) if self.tupled else slope(y)

    def note(self, name, t, y, h):
        self.told.setdefault(name, []).append((t, y, h))

    def callback_step(self, t, y, h):
        self.note("step", t, y, h)

    def callback_accept_step(self, t, y, h):
        self.note("accept", t, y, h)

    def callback_reject_step(self, t, y, h):
        self.note("reject", t, y, h)

    def callback_step_adjoint(self, t, y, h):
        self.note("step_adjoint", t, y, h)

    def callback_accept_step_adjoint(self, t, y, h):
        self.note("accept_adjoint", t, y, h)


@DIRECTIONS
@pytest.mark.parametrize("tupled", [False, True])
def test_callbacks_are_told_of_all_steps(tupled, backward):
    func, y0 = Watched(tupled), torch.ones(2, dtype=DOUBLE)
    t = torch.tensor([0.0, 0.7, 1.0], dtype=DOUBLE)
    t = t.flip(0) if backward else t
    ys = odeint_adjoint(func, (y0, y0) if tupled else y0, t, method="bosh3", rtol=1e-4, atol=1e-5)
    told = func.told
    assert len(told["step"]) == len(told["accept"]) + len(told["reject"])
    assert told["reject"]
    assert "step_adjoint" not in told
    assert float(sum(h for _, _, h in told["accept"])) == pytest.approx(1.0)
    direction = -1 if backward else 1
    for (time, y, h), (after, _, _) in itertools.pairwise(told["accept"]):
        assert isinstance(y, tuple) == tupled
        assert h > 0
        assert float(time + direction * h) == pytest.approx(float(after))
    (ys[0] if tupled else ys)[-1].sum().backward()
    assert float(sum(h for _, _, h in told["accept_adjoint"])) == pytest.approx(1.0)
    moved, y, adjoint, of_rate = told["accept_adjoint"][-1][1]
    assert moved.shape == of_rate.shape == ()
    assert y.shape == adjoint.shape == ((4,) if tupled else (2,))


def test_fixed_methods_call_back_as_often_as_theirs_and_warn_of_what_they_do_not_call():
    counts = []
    for library in BOTH:
        func = Watched()

        def there_and_back():
            y0 = torch.ones(2, dtype=DOUBLE)
            library.odeint_adjoint(func, y0, times(), method="rk4").sum().backward()  # noqa: B023

        with pytest.warns(UserWarning, match=r"rk4.*does not support callbacks"):
            there_and_back()
        counts.append({name: [float(h) for _, _, h in told] for name, told in func.told.items()})
    theirs, ours = counts
    assert ours.keys() == theirs.keys() == {"step", "step_adjoint"}
    assert all(ours[name] == pytest.approx(theirs[name]) for name in ours)


def sizes(**options):
    """Sizes of the steps that were tried, and of those accepted."""
    func = Watched()
    odeint(func, torch.ones(2, dtype=DOUBLE), torch.tensor([0.0, 1.0], dtype=DOUBLE), method="dopri5",
           rtol=1e-4, atol=1e-5, options=options)  # fmt: skip
    return [[float(h) for _, _, h in func.told.get(name, [])] for name in ("step", "accept")]


def test_options_bound_the_steps():
    tried, accepted = sizes()
    assert sizes(first_step=0.001)[0][0] == pytest.approx(0.001)
    assert max(accepted) > 0.02
    assert max(sizes(max_step=torch.tensor(0.02))[0]) == pytest.approx(0.02)
    least, _ = sizes(min_step=0.09)
    assert min(least[:-1]) >= 0.09 - 1e-9
    assert len(least) < len(tried)
    grown, _ = sizes(ifactor=1.5, first_step=1e-4)
    assert all(late <= 1.5001 * early for early, late in itertools.pairwise(grown))
    assert len(sizes(safety=0.4)[1]) > len(accepted)
    assert sizes(dtype=torch.float64, max_num_steps=1000)[0] == tried
    assert len(sizes(norm=lambda error: 0.0)[1]) < len(accepted)
    strict, _ = sizes(dfactor=0.9, first_step=0.5)
    assert all(late >= 0.8999 * early for early, late in itertools.pairwise(strict[:4]))


@DIRECTIONS
def test_steps_end_at_step_t_and_jump_t(backward):
    jump = lambda t, y: torch.where(t < 1 / 3, -1.0, 2.0) * torch.ones_like(y)  # noqa: E731
    t, y0 = torch.tensor([0.0, 1.0], dtype=DOUBLE), torch.zeros(1, dtype=DOUBLE)
    sign = -1 if backward else 1
    t = t.flip(0) if backward else t
    for name in ("jump_t", "step_t"):
        calls = []

        def counted(t, y):
            calls.append(t)  # noqa: B023
            return jump(t, y)

        at = torch.tensor([1 / 3, 7.0], dtype=DOUBLE)
        found = odeint(counted, y0, t, method="dopri5", options={name: at})
        assert any(abs(float(time) - 1 / 3) < 1e-12 for time in calls)
        # only a jump is known to be one: it is not stepped over, and costs nothing
        assert found[-1].item() == pytest.approx(sign * 1.0, abs=1e-12 if name == "jump_t" else 1e-4)
        assert len(calls) < 40 or name == "step_t"
    with pytest.raises(InputError, match="repeat"):
        odeint(jump, y0, t, method="dopri5", options={"step_t": at, "jump_t": at})


def test_solves_that_cannot_go_on_raise_a_solve_error():
    t, y0 = torch.tensor([0.0, 2.0], dtype=DOUBLE), torch.ones(1, dtype=DOUBLE)
    blows_up = lambda t, y: y * y  # noqa: E731
    with pytest.raises(SolveError, match=r"vanished|finite"):
        odeint(blows_up, y0, t)
    with pytest.raises(SolveError, match="max_num_steps=5 "):
        odeint(lambda t, y: torch.cos(50 * t) * y, y0, t, method="dopri5", options={"max_num_steps": 5})
    with pytest.raises(AssertionError):
        torchdiffeq.odeint(blows_up, y0, t)
    with pytest.raises(SolveError, match="finite"):
        odeint(lambda t, y: y * math.nan, y0, t)
    ys = odeint_adjoint(
        Field(), start(), times(), method="dopri5", adjoint_options={"max_num_steps": 1}, rtol=1e-12, atol=1e-12
    )
    with pytest.raises(GradientError, match="max_num_steps=1 "):
        ys.sum().backward()


def test_options_that_are_not_known_are_warned_of():
    for library in BOTH:
        with pytest.warns(UserWarning, match=r"Unexpected arguments \{'step_size': 0.1\}"):
            library.odeint(Decay(), start(), times(), method="dopri5", options={"step_size": 0.1})
        with pytest.warns(UserWarning, match=r"Unexpected arguments \{'first_step': 0.1\}"):
            library.odeint(Decay(), start(), times(), method="euler", options={"first_step": 0.1})


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"t": torch.tensor([0.0, 1.0, 0.5])}, "strictly"),
        ({"t": torch.tensor([0.0, 1.0, 1.0])}, "strictly"),
        ({"t": torch.tensor([0, 1])}, "floats"),
        ({"t": torch.zeros(2, 2)}, "one-dimensional"),
        ({"t": [0.0, 1.0]}, "tensor of times"),
        ({"y0": [torch.ones(2)]}, "tuple"),
        ({"method": "dopri6"}, "dopri5"),
        ({"method": "rk4", "options": {"interp": "quintic"}}, "cubic"),
        ({"method": "rk4", "options": {"step_size": 0.1, "grid_constructor": grid_constructor}}, "one of them"),
        ({"method": "rk4", "options": {"step_size": -0.1}}, "positive"),
        ({"method": "rk4", "options": {"grid_constructor": lambda f, y, t: t[:-1]}}, "grid from"),
    ],
)
def test_arguments_that_cannot_be_used(changes, match):
    given = {"y0": start(), "t": times(), **changes}
    with pytest.raises(InputError, match=match):
        odeint(Decay(), **given)
    assert issubclass(UnknownNameError, ValueError)  # what they raise for a method


def test_one_time_is_the_state_itself():
    for method in ("dopri5", "rk4"):
        for way in (odeint, odeint_adjoint):
            y0 = start()
            ys = way(Field(), y0, torch.tensor([0.5], dtype=DOUBLE), method=method)
            close([ys, *torch.autograd.grad(ys.sum(), y0)], [y0[None], torch.ones_like(y0)], 0)


def test_second_derivatives_by_odeint_and_none_in_silence_by_its_adjoint():
    y0, t = torch.tensor([0.5], dtype=DOUBLE, requires_grad=True), torch.tensor([0.0, 1.0], dtype=DOUBLE)
    field = lambda t, y: -y * y  # noqa: E731
    (first,) = torch.autograd.grad(odeint(field, y0, t)[-1].sum(), y0, create_graph=True)
    (second,) = torch.autograd.grad(first, y0)
    assert second.item() == pytest.approx(-2 / 1.5**3, abs=1e-5)  # y = y0 / (1 + y0 t)
    with pytest.raises(UnsupportedError, match="second derivative"):
        torch.autograd.grad(odeint_adjoint(field, y0, t, adjoint_params=())[-1].sum(), y0, create_graph=True)


@pytest.mark.parametrize("method", DELEGATED)
def test_methods_that_are_left_to_torchdiffeq(method, monkeypatch):
    options = {} if method == "scipy_solver" else {"options": {"step_size": 0.05}}
    theirs, ours = (library.odeint(Decay(), start(), times(), method=method, **options) for library in BOTH)
    close([ours], [theirs], 0)
    if method != "scipy_solver":
        theirs, ours = (results(library, "odeint_adjoint", Field(), method=method, **options) for library in BOTH)
        close(ours, theirs, 0)
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(BackendUnavailableError, match="pip install torchdiffeq"):
        odeint(Decay(), start(), times(), method=method)
    assert odeint(Decay(), start(), times(), method="rk4").isfinite().all()


SCRIPT = """
import torch
import torch.nn as nn
from LIBRARY import odeint_adjoint as odeint

torch.manual_seed(0)
t = torch.linspace(0.0, 2.0, 21)
true_A = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]])
true_y0 = torch.tensor([[2.0, 0.0]])


class Lambda(nn.Module):
    def forward(self, t, y):
        return torch.mm(y**3, true_A)


with torch.no_grad():
    true_y = odeint(Lambda(), true_y0, t, method="dopri5")


class ODEFunc(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 20), nn.Tanh(), nn.Linear(20, 2))
        for m in self.net.modules():
            if isinstance(m, nn.Linear):
                nn.init.normal_(m.weight, mean=0, std=0.1)
                nn.init.constant_(m.bias, val=0)

    def forward(self, t, y):
        return self.net(y**3)


func = ODEFunc()
optimizer = torch.optim.RMSprop(func.parameters(), lr=1e-2)
losses = []
for step in range(4):
    optimizer.zero_grad()
    begin = torch.randint(0, 11, (5,))
    batch_y = torch.stack([true_y[begin + i] for i in range(6)], dim=0)
    pred_y = odeint(func, true_y[begin], t[:6])
    loss = torch.mean(torch.abs(pred_y - batch_y))
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
"""


def test_a_script_changes_its_import_line_and_nothing_else():
    found = []
    for library in BOTH:
        names = {"__name__": "script"}
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            exec(SCRIPT.replace("LIBRARY", library.__name__), names)
        found.append([torch.tensor(names["losses"]), names["true_y"], *names["func"].parameters()])
    close(found[1], found[0], 2e-4)
    assert found[1][0][-1] < found[1][0][0]
