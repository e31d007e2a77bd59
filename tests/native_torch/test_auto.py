"""`gradient="auto"`: it plans on the first backward pass, audits itself, moves when it must, and leaves no trace."""

from __future__ import annotations

import copy
import logging
import pickle
import warnings

import pytest
import torch
from torch import nn

import odenet
import odenet_torch
from odenet import Auto, Checkpoint, DiscreteAdjoint
from odenet_torch.conversion.converted import FirstOfRun

WIDTH = 6
AUTO = "auto:audit=4"
WATCHED = Auto(audit=2, method=DiscreteAdjoint(iterations=3))


class Block(nn.Module):
    """A tanh block, with dropout and a batch norm if wanted."""

    def __init__(self, dropout=0.0, norm=False):
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH) if norm else nn.Identity()
        self.one, self.other = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, shift=0.0):
        return self.other(self.dropout(torch.tanh(self.one(self.norm(x) + shift))))


def stack(gradient=AUTO, count=6, seed=0, dtype=torch.float64, **choices):
    torch.manual_seed(seed)
    inner = {key: choices.pop(key) for key in ("dropout", "norm") if key in choices}
    made = odenet_torch.ResidualStack([Block(**inner) for _ in range(count)], gradient=gradient, **choices)
    return made.to(dtype)


def batch(seed=1, rows=8, dtype=torch.float64):
    torch.manual_seed(seed)
    return torch.randn(rows, WIDTH, dtype=dtype)


def grads(model, x, *arguments, seed=7):
    """The gradients of one pass, by name; that of the input, too."""
    x = x.clone().requires_grad_()
    torch.manual_seed(seed)
    model.zero_grad()
    (model(x, *arguments) ** 2).sum().backward()
    return {"x": x.grad} | {name: p.grad for name, p in model.named_parameters()}


def off(one, other):
    """The relative error of the whole gradient."""
    pairs = [(one[name], other[name]) for name in other if other[name] is not None]
    return float(sum(((a - b) ** 2).sum() for a, b in pairs) / sum((b**2).sum() for _, b in pairs)) ** 0.5


def watched(model):
    """The stack of a model whose choice is looked at."""
    return next(
        each if isinstance(each, odenet_torch.ResidualStack) else each.stack
        for each in model.modules()
        if isinstance(each, odenet_torch.ResidualStack | FirstOfRun)
    )


def method(module):
    """What is chosen now."""
    return module.auditor.method


def test_the_first_backward_pass_is_exact_and_plans():
    model, plain = stack("auto:memory=1G"), stack("backprop")
    assert model.plan is None
    assert off(grads(model, batch()), grads(plain, batch())) < 1e-14
    assert isinstance(model.plan, odenet.Plan)
    assert model.plan.gradient == method(model)
    labels = {row.label for row in model.plan.profiles}
    assert {"backprop", "checkpoint", "discrete-adjoint", "discrete-adjoint:iterations=2"} <= labels
    assert model.plan.tolerance == pytest.approx(0.5e-2)  # half of auto's
    assert str(model).count(method(model).label)


def test_errors_of_the_plan_are_those_of_whole_gradients():
    model = stack("auto:memory=1G", count=8)
    grads(model, batch())
    truth = grads(stack("backprop", count=8), batch())
    for label in ("discrete-adjoint", "discrete-adjoint:predictor=extrapolate", "checkpoint:segments=3"):
        (row,) = (row for row in model.plan.profiles if row.label == label)
        found = grads(stack(label, count=8), batch())
        inside = {name: g for name, g in truth.items() if name != "x"}
        expected = max(off(found, {"x": truth["x"]}), off(found, inside))
        assert row.gradient_error == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_audits_come_sooner_at_first_then_every_audit_passes():
    model = stack(Auto(audit=8, method=DiscreteAdjoint(iterations=3)))
    for _ in range(40):
        grads(model, batch())
    assert [each.passes for each in model.audits] == [0, 1, 2, 4, 8, 16, 24, 32]
    assert all(each.gradient_error <= 1e-2 and each.moved_to is None for each in model.audits)


def test_it_moves_off_a_method_when_the_weights_become_rough(caplog):
    model, plain = (stack(gradient, t1=2.0) for gradient in (Auto(method=DiscreteAdjoint()), "backprop"))
    grads(model, batch())
    assert method(model) == DiscreteAdjoint()
    for each in (model, plain):
        with torch.no_grad():
            for p in each.parameters():
                p.mul_(5)
    before = len(model.audits)
    caplog.set_level("WARNING", "odenet")
    with pytest.warns(odenet.GradientWarning, match="discrete-adjoint is .* off"):
        grads(model, batch())
    found = grads(model, batch())
    last = model.audits[before:][0]
    assert last.gradient_error > last.tolerance
    assert last.moved_to == method(model) != DiscreteAdjoint()
    assert "from now on" in caplog.text
    assert off(found, grads(plain, batch())) <= 1e-2
    assert model.plan is not None


def test_an_audited_pass_returns_the_exact_gradient():
    model = stack(Auto(method=DiscreteAdjoint(correct=False)), count=3, t1=3.0)
    plain = stack("backprop", count=3, t1=3.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", odenet.GradientWarning)
        found = grads(model, batch())
    (first,) = model.audits
    assert first.gradient_error > 1e-2
    assert off(found, grads(plain, batch())) < 1e-14


@pytest.mark.parametrize(
    "choices",
    [
        {"dropout": 0.3, "norm": True},
        {"dropout": 0.3, "gradient": WATCHED},
        {"norm": True, "gradient": WATCHED},
        {"solver": "heun", "gradient": WATCHED},
        {"solver": "reversible-heun"},
        {"solver": "bdia"},
        {"solver": "reversible:heun"},
        {"dtype": torch.float32, "gradient": WATCHED},
        {"gradient": Auto(audit=2, memory=30_000, method=DiscreteAdjoint(iterations=3))},
    ],
    ids=str,
)
def test_passes_that_plan_and_audit_are_as_plain_ones(choices):
    gradient = choices.get("gradient", AUTO)
    rest = {key: value for key, value in choices.items() if key != "gradient"}
    model, plain = stack(gradient, **rest), stack("backprop", **rest)
    x = batch(dtype=rest.get("dtype", torch.float64))
    for step in range(6):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", odenet.GradientWarning)
            found = grads(model, x, seed=step)
        state = torch.get_rng_state()
        assert off(found, grads(plain, x, seed=step)) < 1e-2
        assert torch.equal(state, torch.get_rng_state())
    for (name, one), (_, other) in zip(model.named_buffers(), plain.named_buffers(), strict=True):
        assert torch.equal(one, other), name
    assert model.training


def test_further_arguments_have_their_gradients():
    model, plain = (stack(gradient) for gradient in (Auto(method=DiscreteAdjoint(iterations=3)), "backprop"))
    base = torch.randn(WIDTH, dtype=torch.float64, requires_grad=True)
    found = []
    for each in (model, plain):
        grads(each, batch(), 2 * base)
        found.append(base.grad)
        base.grad = None
    assert torch.allclose(*found, rtol=1e-12)
    assert len(model.audits) == 1


def test_zero_gradients_choose_nothing_and_are_said(caplog):
    model = stack()
    head = nn.Linear(WIDTH, 1, dtype=torch.float64)
    nn.init.zeros_(head.weight)
    with caplog.at_level(logging.INFO, "odenet"):
        for _ in range(3):
            head(model(batch())).sum().backward()
    assert method(model) is None
    assert model.plan is None
    assert caplog.text.count("zero or not finite") == 1
    nn.init.ones_(head.weight)
    head(model(batch())).sum().backward()
    assert method(model) is not None


def test_gradients_that_overflow_are_no_audit():
    model = stack(Auto(method=DiscreteAdjoint(iterations=3)))
    (model(batch()) * float("inf")).sum().backward()
    assert model.audits == ()
    grads(model, batch())
    assert len(model.audits) == 1


def test_what_needs_no_gradient_counts_for_nothing():
    model = stack(Auto(method=DiscreteAdjoint(iterations=3)))
    with torch.no_grad():
        expected = model(batch())
    for _ in range(3):
        model(batch())  # no backward pass follows
    model.eval()
    assert torch.equal(model(batch()), expected)
    assert model.auditor.passes == 0
    model.requires_grad_(False)
    assert not model(batch()).requires_grad


def test_accumulated_gradients_and_several_solves_in_one_graph():
    model, plain = (stack(gradient) for gradient in (Auto(method=DiscreteAdjoint(iterations=3)), "backprop"))
    for each in (model, plain):
        for seed in (1, 2):
            (each(each(batch(seed))) ** 2).sum().backward()
    pairs = zip(model.parameters(), plain.parameters(), strict=True)
    assert all(torch.allclose(a.grad, b.grad, rtol=1e-4, atol=1e-9) for a, b in pairs)
    assert model.auditor.passes == 4


def test_copies_pickles_and_states():
    model = stack(AUTO)
    grads(model, batch())
    for made in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert made.plan == model.plan
        assert method(made) == method(model)
        grads(made, batch())
        assert made.auditor.passes == 2
    assert model.auditor.passes == 1
    fresh = stack(AUTO, seed=3)
    fresh.load_state_dict(model.state_dict())
    assert fresh.plan is None


def test_another_method_is_taken_at_once():
    model = stack(AUTO)
    grads(model, batch())
    model.gradient = odenet.gradient("checkpoint")
    model(batch())
    assert model.stats.gradient == "checkpoint"
    model.gradient = odenet.gradient("auto:audit=7")
    assert method(model) is None


def test_memory_that_no_exact_pass_fits_is_an_error():
    model = stack("auto:memory=100")
    with pytest.raises(odenet.InputError, match=r"at least \d+ bytes .* which checkpoint"):
        grads(model, batch())


def test_a_net_and_an_ode_and_converted_layers():
    spec = odenet.NetSpec(inputs=(4,), classes=3, width=5, depth=6, block="mlp", activation="tanh")
    weights = spec.init(0, "independent")
    x = torch.randn(7, 4)
    field = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))

    class Field(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = copy.deepcopy(field)

        def forward(self, t, y):
            return self.inner(y)

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = copy.deepcopy(field)

        def forward(self, y):
            return y + 0.1 * self.inner(y)

    def converted(gradient):
        return odenet_torch.convert(nn.Sequential(*(Residual() for _ in range(4))), example=x, gradient=gradient)

    makers = [
        lambda g: odenet_torch.OdeNet(spec, weights, gradient=g),
        lambda g: odenet_torch.NeuralODE(Field(), steps=5, gradient=g),
        lambda g: odenet_torch.NeuralODE(Field(), rtol=1e-4, gradient=g),
        converted,
    ]
    for make in makers:
        model, plain = make(Auto(audit=2)), make("backprop")
        for _ in range(2):
            assert off(grads(model, x), grads(plain, x)) < 5e-3
        first = model[0].odenet_run if isinstance(model, nn.Sequential) else model
        assert first.plan is not None


def test_solve_itself_says_what_to_do():
    with pytest.raises(odenet.UnsupportedError, match=r"odenet\.plan"):
        odenet_torch.solve(lambda t, y: -y, torch.ones(2), steps=3, gradient="auto")
    made = odenet_torch.solve(lambda t, y: -y, torch.ones(2), steps=3, gradient=Auto(method=Checkpoint()))
    assert made.stats.gradient == "checkpoint"


class Attention(nn.Module):
    """A pre-norm block of a transformer: `x + attention`, then `+ mlp`, as one residual branch."""

    def __init__(self, width):
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x):
        y = self.norms[0](x)
        d = self.attention(y, y, y, need_weights=False)[0]
        return d + self.mlp(self.norms[1](x + d))


class Transformer(nn.Module):
    """Patches and a class token, whose last state is what is classified."""

    def __init__(self, gradient, width=4, layers=3):
        super().__init__()
        self.stem, self.token = nn.Linear(5, width), nn.Parameter(torch.zeros(1, 1, width))
        self.stack = odenet_torch.ResidualStack(
            [Attention(width) for _ in range(layers)], gradient=gradient, t1=float(layers)
        )
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        x = torch.cat([self.token.expand(len(x), -1, -1), self.stem(x)], 1)
        return self.head(self.stack(x)[:, 0])


def test_on_a_transformer_with_a_class_token_no_audit_returns_a_gradient_beyond_the_tolerance():
    torch.manual_seed(0)
    model = Transformer(Auto(audit=20, method=DiscreteAdjoint(iterations=2)))
    plain = Transformer("backprop")
    x, y = torch.randn(8, 4, 5), torch.randint(0, 3, (8,))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", odenet.GradientWarning)
        audited = 0
        for _ in range(200):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            if len(model.stack.audits) > audited:
                audited = len(model.stack.audits)
                plain.load_state_dict(model.state_dict())
                plain.zero_grad()
                nn.functional.cross_entropy(plain(x), y).backward()
                pairs = [(p.grad, q.grad) for p, q in zip(model.parameters(), plain.parameters(), strict=True)]
                defect = sum(((a - b) ** 2).sum() for a, b in pairs) / sum((b**2).sum() for _, b in pairs)
                assert float(defect) ** 0.5 < 1e-4  # an audited pass is exact
            optimizer.step()
    audits = model.stack.audits
    assert audits
    assert all((each.gradient_error > each.tolerance) == (each.moved_to is not None) for each in audits)
