"""Random numbers in compiled equal steps that run again: those of the forward pass, by explicit seeds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import odenet_torch
from odenet import UnsupportedError
from odenet_torch.steps import seeded

KIND = torch.float64


class Drops(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.drop = nn.Linear(4, 4), nn.Dropout(0.4)

    def forward(self, y):
        return self.drop(torch.tanh(self.linear(y)))


class Noise(nn.Module):
    """What is drawn otherwise."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, y):
        z = self.linear(y) + 0.1 * torch.randn_like(y) + 0.1 * torch.rand(y.shape[0], 1, dtype=y.dtype)
        z = z * torch.bernoulli(torch.full_like(y, 0.7)) + 0.1 * torch.zeros_like(y).normal_(1.0, 2.0)
        z = nn.functional.alpha_dropout(z, 0.2, training=True)
        return torch.tanh(z) + nn.functional.gumbel_softmax(y, dim=-1)


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.2, batch_first=True)

    def forward(self, y):
        return self.inner(y[None])[0] - y


def blocks(kind, count=4):
    torch.manual_seed(0)
    return [kind().to(KIND) for _ in range(count)]


def start():
    return torch.randn(3, 4, dtype=KIND, generator=torch.Generator().manual_seed(1))


def trained(of, gradient, compile, solver="euler", x=None, seed=3, net=None):
    """Loss, the gradients of the state and of all weights, and the network, which may be one of before."""
    if net is None:
        net = odenet_torch.ResidualStack(of, solver=solver, gradient=gradient, along="piecewise", compile=compile)
    x = (start() if x is None else x).detach().requires_grad_()
    torch.manual_seed(seed)
    loss = net(x).square().sum()
    return loss.detach(), torch.autograd.grad(loss, [x, *net.parameters()]), net


def require_of_its_loss(of, compile, gradient, solver, rtol=1e-6):
    """The gradient is that of the loss, by central differences with one seed along one direction of all of them."""
    loss, gradients, net = trained(of, gradient, compile, solver)
    assert trained(of, gradient, compile, solver, net=net)[0] == loss
    assert trained(of, gradient, compile, solver, seed=4, net=net)[0] != loss
    x, weights = start(), [p for block in of for p in block.parameters()]
    generator = torch.Generator().manual_seed(7)
    along = [torch.randn(g.shape, dtype=KIND, generator=generator) for g in gradients]
    size, losses = 1e-6, []
    for sign in (1, -1):
        with torch.no_grad():
            for p, d in zip(weights, along[1:], strict=True):
                p.add_(sign * size * d)
        losses.append(trained(of, gradient, compile, solver, x + sign * size * along[0], net=net)[0])
        with torch.no_grad():
            for p, d in zip(weights, along[1:], strict=True):
                p.sub_(sign * size * d)
    by_differences = (losses[0] - losses[1]) / (2 * size)
    exact = sum((g * d).sum() for g, d in zip(gradients, along, strict=True))
    torch.testing.assert_close(exact, by_differences, rtol=rtol, atol=1e-7)


@pytest.fixture
def runs():
    """What graphs were run with, and the choice of a backend that notes it."""
    torch._dynamo.reset()
    seen = []

    def backend(graph, inputs):
        def run(*arguments):
            seen.append((graph, arguments))
            return graph(*arguments)

        return run

    yield seen, {"backend": backend}
    torch._dynamo.reset()


@pytest.mark.parametrize("kind", [Drops, pytest.param(Noise, marks=pytest.mark.slow)])
def test_a_checkpoint_has_the_gradient_of_what_was_computed(runs, kind):
    seen, choice = runs
    of = blocks(kind)
    _, gradients, _ = trained(of, "checkpoint", choice)
    (graph, arguments), *_ = seen  # the forward pass, which autograd can differentiate
    known = {p.data_ptr(): p for p in (start(), *(p for block in of for p in block.parameters()))}
    leaves = {p.data_ptr() for p in known.values()}
    handed = [a.detach().requires_grad_(a.is_floating_point() and a.ndim > 0) for a in arguments]
    (y,) = graph(*handed)
    wanted = [a for a in handed if a.requires_grad and a.data_ptr() in leaves]
    by_autograd = torch.autograd.grad(y.square().sum(), wanted)
    by_weight = {a.data_ptr(): g for a, g in zip(wanted, by_autograd, strict=True)}
    weights = [p for block in of for p in block.parameters()]
    assert len(by_weight) == len(weights) > 0
    for p, g in zip(weights, gradients[1:], strict=True):
        torch.testing.assert_close(g, by_weight[p.data_ptr()], rtol=1e-10, atol=1e-12)


def test_reversible_and_segmented_passes_draw_the_same_numbers(graphs):
    _, choice = graphs
    require_of_its_loss(blocks(Drops, 2), choice, "reversible", "alf")
    of = blocks(Drops)
    one, other = (trained(of, gradient, choice) for gradient in ("checkpoint", "checkpoint:segments=2"))
    assert one[0] == other[0]
    for a, b in zip(one[1], other[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


WAYS = [
    ("euler", "checkpoint", Drops),
    ("heun", "checkpoint:states=3", Noise),
    ("rk4", "checkpoint", Attends),
    ("reversible-heun", "reversible", Noise),
    ("reversible:heun", "reversible", Drops),
    ("alf", "reversible", Attends),
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::odenet.GradientWarning")
@pytest.mark.parametrize(("solver", "gradient", "kind"), WAYS)
def test_each_way_of_running_steps_again(graphs, solver, gradient, kind):
    _, choice = graphs
    require_of_its_loss(blocks(kind), choice, gradient, solver, rtol=1e-5)


@pytest.mark.slow
def test_the_discrete_adjoint_misses_by_what_its_states_miss(graphs):
    """As without dropout: more steps, nearer states, a smaller error, and a certificate above it."""
    _, choice = graphs
    errors = []
    for count in (8, 32):
        of = blocks(Drops, count)
        exact, missed = (trained(of, gradient, choice) for gradient in ("checkpoint", "discrete-adjoint"))
        assert exact[0] == missed[0]
        pairs = list(zip(exact[1], missed[1], strict=True))
        error = sum((a - b).square().sum() for a, b in pairs) / sum(a.square().sum() for a, _ in pairs)
        assert error.sqrt() < missed[2].certificate
        errors.append(error.sqrt())
    assert errors[1] < errors[0] / 2


def test_in_eval_mode_the_generator_stands_where_it_stood(graphs):
    """Graphs are handed seeds only where they draw."""
    _, choice = graphs
    of = blocks(Drops, 2)
    trained(of, "checkpoint", choice)
    for block in of:
        block.eval()
    one, other = (trained(of, "checkpoint", compile) for compile in (False, choice))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    net = other[2]
    net(start().requires_grad_())
    assert torch.equal(before, torch.get_rng_state())
    for a, b in zip(one[1], other[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


class Own(Drops):
    def __init__(self):
        super().__init__()
        self.generator = torch.Generator()

    def forward(self, y):
        return super().forward(y) * torch.rand(4, dtype=y.dtype, generator=self.generator)


class Orders(Drops):
    def forward(self, y):
        return super().forward(y)[:, torch.randperm(4)]


class Leaks(Drops):
    def forward(self, y):
        return nn.functional.rrelu(super().forward(y), training=True)


@pytest.mark.parametrize("kind", [Own, Orders, Leaks])
def test_other_draws_are_refused(graphs, kind):
    _, choice = graphs
    with pytest.raises(UnsupportedError, match="leave out compile"):
        trained(blocks(kind, 2), "checkpoint", choice)


def test_numbers_are_uniform_and_independent_of_each_other():
    def drawn(seed, rank):
        seeded.drawing(torch.tensor(seed), rank)
        return torch.stack([seeded._uniform((4096,), KIND, torch.device("cpu")) for _ in range(3)])

    torch.manual_seed(0)
    of = [0, 1, 2, 1 << 32, *torch.randint(1 << 62, (4,)).tolist()]
    rows = torch.cat([drawn(seed, rank) for seed in of for rank in (0, 1, 256)])
    seeded._now.seed = None
    assert rows.min() > 0
    assert rows.max() < 1
    spread = 12**-0.5
    assert (rows.mean(1) - 0.5).abs().max() < 5 * spread / 4096**0.5
    assert (rows.std(1) - spread).abs().max() < 0.01
    centred = (rows - 0.5) / spread
    together = centred @ centred.t() / 4096 - torch.eye(len(rows), dtype=KIND)
    assert together.fill_diagonal_(0).abs().max() < 6 / 4096**0.5
    lagged = (centred[:, 1:] * centred[:, :-1]).mean(1)
    assert lagged.abs().max() < 5 / 4096**0.5
    bits = ((rows * 2**24).long()[..., None] >> torch.arange(24)) & 1
    assert (bits.double().mean(1) - 0.5).abs().max() < 6 * 0.5 / 4096**0.5


@pytest.mark.slow
def test_inductor_draws_the_same_in_both_passes():
    torch._dynamo.reset()
    of = blocks(Drops, 3)
    require_of_its_loss(of, True, "checkpoint", "heun")
    require_of_its_loss(of, True, "reversible", "alf")
    torch._dynamo.reset()
