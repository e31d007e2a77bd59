"""The certificate of the continuous adjoint on modules: what it evaluates again, and what it leaves alone."""

import warnings

import pytest
import torch
from of_time import OfTime
from torch import nn

import odenet
from odenet import GradientWarning
from odenet_torch import NeuralODE, ResidualStack, convert
from odenet_torch.gradients import compared_steps
from odenet_torch.gradients.sums import Sums

CONTINUOUS = "continuous-adjoint"


class Block(nn.Module):
    def __init__(self, width=8, *between, scale=1.0):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(width, width), *between, nn.Tanh(), nn.Linear(width, width))
        self.scale = scale

    def forward(self, x):
        return self.scale * self.inner(x)


def stack(*between, blocks=6, h=0.2, gradient=CONTINUOUS, **choices):
    torch.manual_seed(0)
    made = [Block(8, *[part() for part in between]) for _ in range(blocks)]
    return ResidualStack(made, t1=blocks * h, gradient=gradient, **choices).double()


def start(rows=16):
    return torch.randn(rows, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def gradient(net, x, read=lambda y: y.square().mean()):
    net.zero_grad()
    x = x.clone().requires_grad_()
    read(net(x)).backward()
    return torch.cat([x.grad.flatten(), *(p.grad.flatten() for p in net.parameters() if p.grad is not None)])


def apart(one, other):
    return ((one - other).norm() / other.norm()).item()


def compared(net, x, seed=0):
    """The true error of the gradient, and the certificate."""
    torch.manual_seed(seed)
    found = gradient(net, x)
    certificate = net.certificate
    net.gradient = odenet.gradient("checkpoint")
    torch.manual_seed(seed)
    exact = gradient(net, x)
    net.gradient = odenet.gradient(CONTINUOUS)
    return apart(found, exact), certificate


@pytest.mark.parametrize("between", [(), (lambda: nn.BatchNorm1d(8),), (lambda: nn.Dropout(0.5),)])
@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_the_same_statistics_and_the_same_random_numbers(between, solver):
    """Of another mask, the first step's gradient would be another one altogether."""
    net = stack(*between, solver=solver, h=0.02, along="piecewise")
    error, certificate = compared(net, start())
    assert error / 3 < certificate < max(4 * error, 0.05)
    state = torch.get_rng_state()
    y = net(start().requires_grad_())
    drawn = torch.get_rng_state()
    y.sum().backward()
    assert torch.equal(torch.get_rng_state(), drawn)
    assert torch.equal(state, drawn) != any(isinstance(m, nn.Dropout) for m in net.modules())


def test_a_batch_is_counted_once_in_running_statistics():
    one, other = (stack(lambda: nn.BatchNorm1d(8), gradient=gradient) for gradient in (CONTINUOUS, "backprop"))
    for net in (one, other):
        gradient(net, start())
    for (name, buffer), same in zip(one.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(buffer, same, rtol=1e-12, atol=0, msg=name)


@pytest.mark.parametrize("option", ["", ":interpolate=yes", ":steps=12", ":solver=rk4"])
@pytest.mark.parametrize("solver", ["euler", "rk4"])
def test_the_look_changes_no_bit_of_the_gradient(monkeypatch, solver, option):
    net, x = stack(solver=solver, along="piecewise", gradient=CONTINUOUS + option), start()
    looked = gradient(net, x)
    assert net.certificate > 0
    monkeypatch.setattr(compared_steps.ComparedSteps, "certificate", lambda self, y: torch.zeros(()))
    monkeypatch.setattr(compared_steps.ComparedSteps, "drift", lambda self, *states: torch.zeros(()))
    monkeypatch.setattr(Sums, "collect", lambda self, *parts: None)
    assert torch.equal(gradient(net, x), looked)
    assert net.certificate == 0


def test_frozen_shared_and_unused_weights():
    block, spare = Block(), nn.Linear(3, 3)
    block.spare = spare
    net = NeuralODE(OfTime(block), steps=6, t1=1.2, solver="euler", gradient=CONTINUOUS).double()
    error, certificate = compared(net, start())
    assert error / 3 < certificate < 4 * error
    for p in block.parameters():
        p.requires_grad_(False)
    error, frozen = compared(net, start())
    assert error / 3 < frozen < 5 * error  # of the costate alone
    # the first layer's weights alone are frozen: its step is judged by the costate
    net = stack(h=0.3)
    for p in net.blocks[0].parameters():
        p.requires_grad_(False)
    error, certificate = compared(net, start())
    assert error / 3 < certificate < 4 * error


class Rounds(nn.Module):
    """A block that jumps, with a gradient that goes straight through."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x):
        u = torch.tanh(self.inner(x))
        return u + (torch.round(4 * u) / 4 - u).detach()


def test_blocks_that_jump_have_one_by_their_gradients():
    torch.manual_seed(0)
    net = ResidualStack([Rounds() for _ in range(6)], t1=1.2, gradient=CONTINUOUS).double()
    error, certificate = compared(net, start())
    assert error / 3 < certificate < 4 * error


def test_under_autocast():
    net = stack(h=0.2).float()
    with torch.autocast("cpu", torch.bfloat16):
        y = net(start().float().requires_grad_())
        loss = y.float().square().mean()
    loss.backward()
    half = net.certificate
    gradient(net, start().float())
    assert half == pytest.approx(net.certificate, rel=0.2)


def test_half_precision_weights_and_sparse_gradients():
    torch.manual_seed(0)
    net = stack(h=0.2)
    gradient(net, start())
    exact = net.certificate
    net = net.to(torch.bfloat16)
    gradient(net, start().to(torch.bfloat16))
    assert net.certificate == pytest.approx(exact, rel=0.2)

    class Looks(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(10, 8, sparse=True)

        def forward(self, x):
            return torch.tanh(2 * x) * self.table.weight[0] + torch.tanh(self.table(torch.arange(3)).sum(0) + x)

    net = ResidualStack([Looks() for _ in range(4)], t1=1.0, gradient=CONTINUOUS).double()
    gradient(net, start())
    assert 0 < net.certificate < 1


@pytest.mark.parametrize("h", [0.1, 1.0])
def test_the_first_layer_is_named(h):
    net = stack(h=h)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(2):
            gradient(net, start())
    count = sum(net.certificate > bound for bound in (0.1,)) + (net.certificate > 0.5)
    assert len(said) == count
    assert all(isinstance(warning.message, GradientWarning) for warning in said)
    if h == 1.0:
        assert "in step 0 of 6, block 0 (Block)" in str(said[0].message)


def test_converted_transformers():
    """Pre-norm layers of somebody else's, solved as one stack with steps of 1."""
    errors = []
    for layers, gain in ((4, 0.3), (4, 1.0), (8, 1.0)):
        torch.manual_seed(layers)
        layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True, norm_first=True)
        model = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False).double()
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(gain * torch.randn_like(p) / 4 if p.ndim > 1 else p)
        x = torch.randn(4, 6, 16, dtype=torch.float64)
        exact = gradient(model, x)
        net = convert(model, gradient=CONTINUOUS, example=x)
        found = gradient(net, x)
        (run,) = [vars(module)["stack"] for module in net.modules() if "stack" in vars(module)]
        errors.append((apart(found, exact), run.certificate))
    for error, certificate in errors:
        assert error / 3 < certificate < 4 * error, errors


def test_the_check_names_its_certificate():
    torch.manual_seed(0)
    net = nn.Sequential(stack(h=1 / 6).float(), nn.Linear(8, 3))
    diagnosis = odenet.check_gradients(net, (start().float(), torch.arange(16) % 3))
    (row,) = [row for row in diagnosis.examinations if row.label == CONTINUOUS]
    assert row.certificate == row.estimate
    assert row.gradient_error / 3 < row.certificate < 0.1  # the head's gradient, which is exact, is part of the whole
