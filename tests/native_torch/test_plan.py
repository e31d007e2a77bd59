"""`odenet.plan` and `odenet.audit` of torch models: true errors, memory, and nothing left behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import odenet
import odenet_torch
from odenet import Auto, Backprop, Checkpoint, DiscreteAdjoint
from odenet_torch.field.live_bytes import LiveBytes

WIDTH, METHODS = 6, ("backprop", "checkpoint", "checkpoint:states=3", "discrete-adjoint")


class Block(nn.Module):
    """Batch norm and dropout, so that there is a state to be left as it was."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH)
        self.one, self.other = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.dropout = nn.Dropout(0.2)

    def forward(self, x):
        return self.other(self.dropout(torch.tanh(self.one(self.norm(x)))))


def network(gradient="backprop", layers=8, seed=0, **choices):
    torch.manual_seed(seed)
    stack = odenet_torch.ResidualStack([Block() for _ in range(layers)], gradient=gradient, **choices)
    return nn.Sequential(nn.Linear(5, WIDTH), stack, nn.Linear(WIDTH, 3)).double()


def batch(rows=40):
    torch.manual_seed(1)
    return torch.randn(rows, 5, dtype=torch.float64), torch.randint(0, 3, (rows,))


def loss(model, data):
    torch.manual_seed(2)
    return nn.functional.cross_entropy(model(data[0]), data[1])


def test_errors_are_those_against_backprop_and_peaks_those_that_are_counted():
    model, data = network(), batch()
    torch.manual_seed(2)
    made = odenet.plan(model, data, gradients=METHODS, repeats=1)
    rows = {row.label: row for row in made.profiles}
    inside = [p for name, p in model.named_parameters() if name.startswith("1.")]
    truth = torch.autograd.grad(loss(model, data), inside)
    model[1].gradient = DiscreteAdjoint()
    found = torch.autograd.grad(loss(model, data), inside)
    defect = sum(((a - b) ** 2).sum() for a, b in zip(found, truth, strict=True))
    off = float(defect / sum((b**2).sum() for b in truth)) ** 0.5
    assert rows["discrete-adjoint"].gradient_error == pytest.approx(off, rel=1e-6)
    assert rows["backprop"].gradient_error < 1e-14
    for name in METHODS:
        model[1].gradient = odenet.gradient(name)
        with LiveBytes() as live:
            torch.autograd.grad(loss(model, data), [*model.parameters()])
        assert rows[name].peak_bytes == pytest.approx(live.peak, rel=0.05)  # random states and buffers are put aside
        assert rows[name].seconds > 0


def test_nothing_is_left_behind():
    model, data = network("discrete-adjoint"), batch()
    model.train()
    model[1].blocks[0].dropout.eval()
    loss(model, data).backward()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    grads = [p.grad.clone() for p in model.parameters()]
    modes = [module.training for module in model.modules()]
    stats, state = model[1].stats, torch.get_rng_state()
    odenet.plan(model, data, gradients=METHODS, repeats=1)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads, strict=True))
    assert [module.training for module in model.modules()] == modes
    assert model[1].gradient == DiscreteAdjoint()
    assert model[1].stats is stats


def test_a_limit_of_memory_stops_what_needs_more():
    model, data = network(layers=12), batch(200)
    whole = {row.label: row for row in odenet.plan(model, data, gradients=METHODS, repeats=1).profiles}
    limit = whole["checkpoint"].peak_bytes
    assert limit < whole["backprop"].peak_bytes
    made = odenet.plan(model, data, limit, gradients=METHODS, repeats=1)
    assert made.gradient != Backprop()
    (row,) = (row for row in made.profiles if row.label == "backprop")
    assert row.seconds is None
    assert limit < row.peak_bytes < whole["backprop"].peak_bytes
    with pytest.raises(odenet.InputError, match=r"at least \d+ bytes"):
        odenet.plan(model, data, 1000, gradients=METHODS, repeats=1)


def test_a_head_at_zero_hides_every_error():
    model = network()
    nn.init.zeros_(model[2].weight)
    made = odenet.plan(model, batch(), gradients=METHODS, repeats=1)
    assert made.zero
    assert made.gradient in (Backprop(), Checkpoint(), Checkpoint(states=3))
    assert all(row.gradient_error is None for row in made.profiles)


def test_a_plan_is_applied_and_audited():
    model, data = network(Auto(tolerance=0.1)), batch()
    model.eval()
    made = odenet.plan(model, data, gradients=["discrete-adjoint", "checkpoint"], repeats=1)
    assert made.tolerance == 0.05  # half of auto's: room to change in
    same = odenet.backend("torch").with_gradient(model, DiscreteAdjoint())
    assert same is model
    assert model[1].gradient == Auto(tolerance=0.1, method=DiscreteAdjoint())
    again, found = odenet.audit(model, data)
    assert again is model
    assert found.moved_to is None
    with torch.no_grad():
        for p in model[1].parameters():
            p.mul_(4)
    with pytest.warns(odenet.GradientWarning, match="discrete-adjoint is"):
        model, found = odenet.audit(model, data)
    assert found.gradient_error > 0.1
    assert found.moved_to == model[1].gradient.method
    assert model[1].auditor.method == found.moved_to
    model[1].gradient = Checkpoint()
    assert odenet.audit(model, data).audit is None


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"memory": 0}, "memory=0"),
        ({"memory": "1G"}, "memory='1G'"),
        ({"tolerance": 2}, "tolerance=2"),
        ({"gradients": ["auto"]}, "not auto"),
        ({"gradients": []}, "at least one"),
        ({"gradients": ["continuous-adjoint"]}, "continuous-adjoint reached"),
    ],
)
def test_bad_input(choices, message):
    with pytest.raises(odenet.InputError, match=message):
        odenet.plan(network(layers=2), batch(), repeats=1, **choices)


def test_models_without_a_solve_or_with_a_loss_that_is_none():
    with pytest.raises(odenet.InputError, match="without a solve"):
        odenet.plan(nn.Linear(2, 2), torch.ones(1, 2))
    with pytest.raises(odenet.InputError, match="loss"):
        odenet.plan(network(layers=2), batch(), loss=lambda outputs, target: outputs)
    with pytest.raises(odenet.UnsupportedError, match="not offer"):
        odenet.plan(network(layers=2), batch(), gradients=["reversible"])


def test_converted_layers_and_an_adaptive_ode():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x):
            return x + 0.1 * torch.tanh(self.inner(x))

    class Field(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, t, y):
            return torch.tanh(self.inner(y))

    torch.manual_seed(0)
    x = torch.randn(5, 4)
    converted = odenet_torch.convert(nn.Sequential(*(Residual() for _ in range(4))), example=x)
    ode = odenet_torch.NeuralODE(Field(), rtol=1e-4, atol=1e-4)
    for model in (converted, ode):
        made = odenet.plan(model, x, gradients=["checkpoint", "discrete-adjoint:iterations=2"], repeats=1)
        assert made.gradient in (Checkpoint(), DiscreteAdjoint(iterations=2))
        assert all(row.gradient_error < 1e-2 for row in made.profiles)
