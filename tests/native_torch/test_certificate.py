"""A gradient by rebuilt states that is badly wrong says so, by the row that it is wrong in."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

import odenet
from odenet_torch import ResidualStack
from odenet_torch.gradients.certificate import Sketch, relative

METHODS = (
    "discrete-adjoint",
    "discrete-adjoint:correct=no",
    "discrete-adjoint:iterations=2",
    "discrete-adjoint:predictor=extrapolate",
    "discrete-adjoint:anchors=3",
)


class Transformer(nn.Module):
    """A pre-norm block's increment."""

    def __init__(self, width=16):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x):
        at = self.norms[0](x)
        a, _ = self.attention(at, at, at, need_weights=False)
        return a + self.mlp(self.norms[1](x + a))


class PreActivation(nn.Module):
    def __init__(self, channels=4):
        super().__init__()
        self.inner = nn.Sequential(
            *(
                part
                for _ in range(2)
                for part in (nn.GroupNorm(2, channels), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1))
            )
        )

    def forward(self, x):
        return self.inner(x)


def gradient(stack, x, read):
    """The gradient as one vector, and what was said in the backward pass."""
    stack.zero_grad()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        read(stack(x)).backward()
    return torch.cat([p.grad.flatten() for p in stack.parameters()]), said


def error(blocks, method, x, read, **choices):
    exact, _ = gradient(ResidualStack(blocks, gradient="checkpoint", **choices), x, read)
    stack = ResidualStack(blocks, gradient=method, **choices)
    found, said = gradient(stack, x, read)
    return float((found - exact).norm() / exact.norm()), stack.certificate, said


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("token", [0.02, 1.0])
def test_a_class_token_among_many_other_rows_is_seen(method, token):
    torch.manual_seed(0)
    x = 3 * torch.randn(4, 49, 16)
    x[:, 0] *= token / 3
    head = nn.Linear(16, 3)

    def read(y):
        return nn.functional.cross_entropy(head(y[:, 0]), torch.arange(4) % 3)

    off, certificate, said = error([Transformer() for _ in range(6)], method, x, read, t1=3.0)
    assert certificate is not None
    assert off < 3 * certificate  # in silence it was 0.8 at 0.008
    if off > 0.1:
        assert [issubclass(each.category, odenet.GradientWarning) for each in said] == [True]
        assert f"{certificate:.2g}" in str(said[0].message)


def test_a_tolerance_is_held_to_the_class_token():
    torch.manual_seed(0)
    x = 30 * torch.randn(4, 49, 16)
    x[:, 0] *= 0.01
    stack = ResidualStack([Transformer() for _ in range(4)], gradient="discrete-adjoint:tolerance=1e-3", t1=4.0)
    with pytest.raises(odenet.GradientError, match=r"residual went from .* to .*gradient='checkpoint'"):
        stack(x)[:, 0].square().sum().backward()


def test_steps_that_were_undone_to_a_tolerance_and_together_were_not():
    torch.manual_seed(0)
    blocks = [nn.Linear(4, 4, bias=False).double() for _ in range(200)]
    for block in blocks:
        block.weight.data = -0.5 * torch.eye(4, dtype=torch.float64)  # states fall by 2, and errors grow as much back
    stack = ResidualStack(blocks, gradient="discrete-adjoint:tolerance=1e-8", t1=200.0)
    with pytest.raises(odenet.GradientError, match=r"off by .*although each step was undone"):
        stack(torch.randn(3, 4, dtype=torch.float64)).square().sum().backward()


@pytest.mark.parametrize("depth", [16, 100])
def test_untrained_blocks_before_their_activation_are_too_loud_to_miss(depth):
    torch.manual_seed(0)
    x = torch.randn(2, 4, 6, 6)

    def read(y):
        return y.mean((2, 3)).square().sum()

    blocks = [PreActivation() for _ in range(depth)]
    off, certificate, said = error(blocks, "discrete-adjoint:correct=no", x, read, t1=float(depth))
    assert off > 0.1
    assert certificate > off / 3
    assert [each.category for each in said] == [odenet.UselessGradientWarning]
    assert "gradient='checkpoint'" in str(said[0].message)


def stack_off_by(scale, seed=0, method="discrete-adjoint", t1=1.0):
    rng = np.random.default_rng(seed)
    blocks = [nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(4)]
    for block in blocks:
        block[0].weight.data = torch.tensor(scale * rng.standard_normal((6, 6)), dtype=torch.float32)
        block[0].bias.data.zero_()
    return ResidualStack(blocks, gradient=method, t1=t1), torch.tensor(rng.standard_normal((5, 6)), dtype=torch.float32)


def said_by(stack, x, times=1):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        for _ in range(times):
            stack(x).square().sum().backward()
    return [each.category for each in said]


def test_doubtful_is_said_once_for_each_network_and_useless_every_time():
    doubtful, x = stack_off_by(1.2)
    assert said_by(doubtful, x, 3) == [odenet.GradientWarning]
    assert 0.1 < doubtful.certificate <= 0.5
    assert said_by(doubtful, x) == []
    doubtful.gradient = odenet.DiscreteAdjoint(correct=False)
    assert said_by(doubtful, x, 2) == [odenet.GradientWarning]  # another method is another matter
    another, _ = stack_off_by(1.2)
    assert said_by(another, x, 2) == [odenet.GradientWarning]
    useless, x = stack_off_by(1.2, t1=8.0)
    assert said_by(useless, x, 3) == [odenet.UselessGradientWarning] * 3
    small, x = stack_off_by(0.1)
    assert said_by(small, x, 3) == []


def test_it_names_the_layer_and_can_be_made_an_error():
    stack, x = stack_off_by(1.2, method="discrete-adjoint:anchors=1")
    assert said_by(stack, x) == []  # every state is known
    stack.gradient = odenet.DiscreteAdjoint(correct=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", odenet.GradientWarning)
        with pytest.raises(
            odenet.GradientWarning, match=r"of the state at t0|in step \d of 4, block \d \(Sequential\)"
        ):
            stack(x).square().sum().backward()


def test_nan_in_the_forward_pass_is_a_certificate_of_nan_and_said():
    stack, x = stack_off_by(0.1)
    x[2, 3] = torch.nan
    with pytest.warns(odenet.UselessGradientWarning, match="NaN"):
        stack(x).square().sum().backward()
    assert np.isnan(stack.certificate)


@pytest.mark.parametrize(
    "shape", [(), (5,), (5, 4), (3, 50, 4), (2, 50, 30), (2, 4, 8, 8), (2, 8, 8, 4), (2, 3, 4, 5, 6)]
)
@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.complex128])
def test_a_row_that_is_wrong_shows_whatever_axis_holds_the_channels(shape, kind):
    torch.manual_seed(0)
    y = torch.randn(shape, dtype=kind)
    assert float(relative((torch.zeros_like(y),), (y,))) == 0
    assert float(relative((y,), (y,))) == pytest.approx(1)
    for axis in {len(shape) - 1, min(1, len(shape) - 1)} if shape else ():
        wrong = torch.zeros_like(y)
        place = [0] * len(shape)
        place[axis] = slice(None)
        wrong[tuple(place)] = y[tuple(place)]  # one row, all of it
        assert 0.99 < float(relative((wrong,), (y,))) < 3
        assert float(Sketch((y,)).error((y + wrong,), (y,))) > 0.3
    assert float(Sketch((y,)).error((y,), (y,))) == 0
    assert float(Sketch((y,)).error((2 * y,), (y,))) == pytest.approx(1, abs=0.01)


def test_rows_of_nearly_nothing_and_huge_rows_hide_nothing_and_blow_up_nothing():
    torch.manual_seed(0)
    y, off = torch.randn(2, 20, 32), 1e-3 * torch.randn(2, 20, 32)
    plain = float(relative((off,), (y,)))
    padded = y.clone()
    padded[:, 12:] = 0
    assert float(relative((off,), (padded,))) < 1e3 * plain
    assert float(relative((torch.where(padded == 0, 0, off),), (padded,))) < 2 * plain
    huge = y.clone()
    huge[:, 0] *= 1e4
    wrong = torch.zeros_like(y)
    wrong[1, 7] = y[1, 7]
    assert float(relative((wrong,), (huge,))) > 0.9


def test_the_state_at_t0_is_the_users_to_write_on():
    stack, x = stack_off_by(0.1)
    expected = gradient(stack, x, lambda y: y.square().sum())[0]
    stack.zero_grad()
    kept = x.clone()
    y = stack(kept)
    kept.zero_()
    y.square().sum().backward()
    assert torch.equal(torch.cat([p.grad.flatten() for p in stack.parameters()]), expected)
    assert stack.certificate < 1e-2


def test_an_adaptive_solve_says_it_too():
    def f(t, y):
        return -8 * y + 8 * torch.sin(3 * y)

    y0 = torch.tensor([[2.0, -1.0], [0.3, 1.4]], requires_grad=True)
    solution = odenet.solve(f, y0, t1=5.0, rtol=1e-2, atol=1e-2, solver="bosh3", gradient="discrete-adjoint")
    with pytest.warns(odenet.UselessGradientWarning, match="of the state at t0|in step"):
        solution.y1.sum().backward()
    assert not solution.stats.certificate < 0.5
