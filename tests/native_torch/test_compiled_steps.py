"""compile=True: the trial step of an adaptive solve as one graph, with the results of the eager loop."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

import odenet
import odenet_torch
from odenet import Depth, InputError, PIDController, UnsupportedError
from odenet.kit import tree_leaves
from odenet_torch.drop_in.odeint import odeint, odeint_event

TOLERANCES = {"rtol": 1e-5, "atol": 1e-7}


class Field(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(3, 5), nn.Linear(5, 3)

    def forward(self, t, y):
        return self.two(torch.tanh(self.one(y))) * (1 + t)


def leaves(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def results(field, y0, weights=None, **choices):
    """The outputs of a solve, the gradients of all that needs one, and its statistics."""
    solution = odenet_torch.solve(field, y0, weights, **{**TOLERANCES, **choices})
    modules = field.parameters() if isinstance(field, nn.Module) else ()
    tree = weights.tree if isinstance(weights, Depth) else weights
    wanted = [x for x in (*modules, *leaves(y0), *leaves(tree)) if x.requires_grad]
    ys, gradients = leaves(solution.ys), []
    if torch.is_grad_enabled() and wanted:
        gradients = torch.autograd.grad(sum(y.abs().square().sum() for y in ys), wanted, allow_unused=True)
    stats = solution.stats
    return [y.detach() for y in ys], gradients, (stats.steps, stats.rejected, stats.f_evaluations)


def require_equal(one, other):
    for a, b in zip([*one[0], *one[1]], [*other[0], *other[1]], strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    assert one[2] == other[2]


def test_one_graph_serves_all_tolerances_times_and_outputs(graphs):
    seen, choice = graphs
    torch.manual_seed(0)
    field, y0 = Field().double(), torch.randn(4, 3, dtype=torch.float64)
    for choices in (
        {},
        {"rtol": 1e-3, "t1": -2.0},
        {"ts": [0.1, 0.15, 0.7, 1.0]},
        {"t0": 0.5, "control": PIDController(max_step=0.1, jump_t=(0.7,))},
        {"dense": True, "event": lambda t, y: t - 0.8},
    ):
        require_equal(results(field, y0, **choices), results(field, y0, compile=choice, **choices))
    assert len(seen) == 1
    with torch.no_grad():
        require_equal(results(field, y0), results(field, 2 * y0.t().contiguous().t() / 2, compile=choice))
    assert len(seen) == 2


def test_the_drop_in_has_it_too(graphs):
    seen, choice = graphs
    torch.manual_seed(0)
    net = Field().double()
    y0, t = (torch.randn(3, dtype=torch.float64), torch.ones((), dtype=torch.float64)), torch.tensor([0.0, 0.4, 1.0])

    def found(**choices):
        ys = odeint(lambda t, y: (net(t, y[0]), -y[1]), y0, t, **choices)
        return ys, torch.autograd.grad(sum(y.square().sum() for y in ys), list(net.parameters()))

    for one, other in zip(found(), found(compile=choice), strict=True):
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert len(seen) == 1


def test_a_field_that_is_no_one_graph_is_refused_and_says_why(graphs):
    _, choice = graphs
    y0 = torch.ones(2)
    with pytest.raises(UnsupportedError, match=r"cannot take as one graph .*branch(.|\n)*torch\.where"):
        odenet_torch.solve(lambda t, y: -y if y.sum() > 0 else y, y0, compile=choice, **TOLERANCES)


def test_second_derivatives_of_compiled_steps_are_refused(graphs):
    _, choice = graphs
    y0 = torch.ones(2, requires_grad=True)
    y1 = odenet_torch.solve(lambda t, y: torch.sin(y), y0, compile=choice, **TOLERANCES).y1
    torch.autograd.grad(y1.sum(), y0, retain_graph=True)
    with pytest.raises(UnsupportedError, match="second derivative"):
        torch.autograd.grad(y1.sum(), y0, create_graph=True)


@pytest.mark.parametrize(
    ("choices", "error", "said"),
    [
        ({"control": PIDController(per_sample=True), "compile": True}, UnsupportedError, "per_sample"),
        ({"rtol": 1e-3, "gradient": "checkpoint", "compile": "step"}, UnsupportedError, "backprop"),
        ({"rtol": 1e-3, "compile": "all"}, InputError, "compile='all'"),
        ({"rtol": 1e-3, "compile": 1}, InputError, "compile=1"),
        ({"rtol": 1e-3, "compile": {"mode": "default"}}, InputError, "mode"),
        ({"rtol": 1e-3, "compile": {"backend": "indctor"}}, InputError, "inductor"),
        ({"rtol": 1e-3, "compile": {"options": {"triton.cudagraphs": True}}}, InputError, "cudagraphs"),
        ({"rtol": 1e-3, "compile": True, "backend": "torchdiffeq"}, UnsupportedError, "torchdiffeq"),
    ],
)
def test_what_is_not_compiled_is_refused(choices, error, said):
    with pytest.raises(error, match=said):
        odenet.solve(lambda t, y: -y, torch.ones(2), **choices)


def test_within_a_transform_it_is_refused():
    def loss(y):
        return odenet_torch.solve(lambda t, y: -y, y, compile=True, **TOLERANCES).y1.sum()

    with pytest.raises(UnsupportedError, match=r"torch\.func"):
        torch.func.grad(loss)(torch.ones(2))


class Writes(nn.Module):
    def forward(self, t, y):
        return y.mul_(-1)


class Buffer(nn.Module):
    def __init__(self):
        super().__init__()
        self.slopes = torch.zeros(2, 4, 3, dtype=torch.float64)

    def forward(self, t, y):
        self.slopes[0].copy_(-y * (1 + t))
        return self.slopes[0]


class Normed(Field):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, t, y):
        return self.norm(super().forward(t, y))


def seeded(field):
    torch.manual_seed(3)
    return field().double()


def weights(*shape):
    torch.manual_seed(5)
    return {"a": torch.randn(*shape, dtype=torch.float64, requires_grad=True)}


def layered(t, y, w):
    return torch.tanh(y @ w["a"]) * (1 + t)


Y = functools.partial(torch.linspace, -1, 1, 12, dtype=torch.float64)
CASES = {
    **{name: (lambda: seeded(Field), {"solver": name}) for name in ("heun", "bosh3", "dopri5", "tsit5", "dopri8")},
    "shared weights": (lambda: layered, {"weights": weights(3, 3)}),
    "layers": (lambda: layered, {"weights": Depth(weights(4, 3, 3), "piecewise")}),
    "layers backwards": (lambda: layered, {"weights": Depth(weights(4, 3, 3), "piecewise"), "t0": 1.0, "t1": 0.0}),
    "between layers": (lambda: layered, {"weights": Depth(weights(4, 3, 3), "linear")}),
    "a field of its own at each call": (lambda: lambda t, y: torch.sin(y) * t, {}),
    "the norm max": (lambda: seeded(Field), {"control": PIDController(norm="max")}),
    "a norm of the user": (lambda: seeded(Field), {"control": PIDController(norm=lambda y: y.abs().mean())}),
    "tolerances by entry": (lambda: seeded(Field), {"atol": torch.full((3,), 1e-6)}),
    "no absolute tolerance": (lambda: lambda t, y: -y, {"atol": 0.0}),
    "the first step": (lambda: seeded(Field), {"control": PIDController(first_step=0.01)}),
    "a derivative inside": (
        lambda: lambda t, y: -torch.func.grad(lambda z: torch.cosh(z).sum())(y),
        {"control": PIDController(max_step=0.2)},
    ),
    "a time that needs a gradient": (lambda: seeded(Field), {"t1": torch.tensor(1.0, requires_grad=True)}),
    "it writes on its state": (lambda: Writes(), {}),
    "it returns a buffer": (lambda: Buffer(), {}),
    "batch norm": (lambda: seeded(Normed), {}),
    "a slope without a gradient": (lambda: lambda t, y: torch.ones_like(y), {}),
    "random numbers": (
        lambda: lambda t, y: nn.functional.dropout(y, 0.5),
        {"control": PIDController(rtol=10.0, atol=10.0), "rtol": None, "atol": None},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_results_are_those_of_the_eager_loop(name, recorded):
    make, choices = CASES[name]
    found = []
    with torch.set_grad_enabled(recorded):
        # with aot_eager autograd saves the statistics of a batch norm, which the next evaluation writes on
        for compile in (False, {"backend": "eager" if name == "batch norm" else "aot_eager"}):
            field = make()
            torch.manual_seed(1)
            y0 = Y().reshape(4, 3).requires_grad_(recorded)
            found.append(results(field, y0, compile=compile, **choices))
            found[-1][0].extend(b.double() for b in field.buffers()) if isinstance(field, nn.Module) else ()
    if name == "the first step":  # one evaluation more, to know whether the field writes
        assert found[1][2] == (*found[0][2][:2], found[0][2][2] + 1)
        found = [(*each[:2], None) for each in found]
    require_equal(*found)


@pytest.mark.slow
def test_by_inductor_in_float32_and_bfloat16():
    torch.manual_seed(0)
    field, y0 = Field(), torch.randn(4, 3)
    for kind, apart in ((torch.float32, 1e-4), (torch.bfloat16, 3e-2)):
        field.to(kind)
        one, other = (results(field, y0.to(kind), compile=compile) for compile in (False, True))
        for a, b in zip([*one[0], *one[1]], [*other[0], *other[1]], strict=True):
            assert (a - b).abs().max() <= apart * a.abs().max()


@pytest.mark.slow
def test_a_backward_pass_may_be_run_twice_and_events_have_gradients():
    torch.manual_seed(0)
    field, y0 = Field().double(), torch.randn(4, 3, dtype=torch.float64)
    found = []
    for compile in (False, {"backend": "aot_eager"}):
        y1 = odenet_torch.solve(field, y0, compile=compile, **TOLERANCES).y1
        loss = y1.square().sum()
        first, second = (torch.autograd.grad(loss, field.one.weight, retain_graph=True)[0] for _ in range(2))
        torch.testing.assert_close(first, second)
        choices = {"odeint_interface": functools.partial(odeint, compile=compile)}
        t, _ = odeint_event(
            field,
            y0,
            torch.zeros(1, dtype=torch.float64),
            event_fn=lambda t, y: (y[0, 0] - y0[0, 0]).abs() - 0.05,
            **choices,
        )
        found.append((first, t.detach(), torch.autograd.grad(t.sum(), field.one.weight)[0]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.slow
def test_fields_from_one_function_may_be_many():
    def make(net):
        return lambda t, y: net(y)

    torch.manual_seed(0)
    y0 = torch.randn(2, 3, dtype=torch.float64)
    for depth in range(1, 12):
        field = make(nn.Sequential(*[nn.Linear(3, 3) for _ in range(depth)]).double())
        with torch.no_grad():
            require_equal(results(field, y0), results(field, y0, compile={"backend": "eager"}))
