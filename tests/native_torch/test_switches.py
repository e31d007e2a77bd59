"""Fields that compare their state: whether they jump there is told by their values on either side."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.nn import functional as F

import odenet
from odenet_torch import odeint, odeint_adjoint
from odenet_torch.field.jumps import jumps

WIDTH = 4


def indexed(u, a, b):
    out = b.clone()
    out[u > 0.2] = a[u > 0.2]
    return out


def branched(u, a, b):
    return a if u.sum() > 0.4 else b


JUMPING = {
    "where": lambda u, a, b: torch.where(u > 0.2, u, -0.3 * u),
    "filled": lambda u, a, b: a.masked_fill(u > 0.2, 0.0),
    "indexed": indexed,
    "scattered": lambda u, a, b: b.masked_scatter(u > 0.2, a[u > 0.2]),
    "multiplied": lambda u, a, b: a * (u > 0.2),
    "counted": lambda u, a, b: a * (u > 0.2).sum(-1, keepdim=True),
    "straight through": lambda u, a, b: a + (torch.where(u > 0, 1.0, -1.0) - a).detach(),
    "of the largest": lambda u, a, b: torch.where(u == u.amax(-1, keepdim=True), a, b),
    "of what was clamped": lambda u, a, b: torch.where(u.clamp(-0.3, 0.3) == u, a, b),
    "between": lambda u, a, b: torch.where((u > -0.2) & (u < 0.3), a, b),
    "of each other": lambda u, a, b: torch.where(u > a, u, b),
    "signbit": lambda u, a, b: torch.where(torch.signbit(u - 0.2), a, b),
    "far": lambda u, a, b: torch.where(u > 12.0, a, b),
    "rounded": lambda u, a, b: a * torch.div(u, 0.3, rounding_mode="floor"),
    "histogram": lambda u, a, b: a * torch.histc(u.detach(), WIDTH, -1, 1),
    "branched": branched,
}
KINKED = {
    "leaky": lambda u, a, b: torch.where(u > 0, u, 0.1 * u),
    "elu": lambda u, a, b: torch.where(u > 0, u, u.exp() - 1),
    "steep": lambda u, a, b: torch.where(u > 0, u, 1e4 * u),
    "in pieces": lambda u, a, b: torch.where(u > 0.1, u - 0.1, torch.where(u < -0.1, u + 0.1, 0.0)),
    "safe root": lambda u, a, b: torch.where(u > 0, torch.where(u > 0, u, 1.0).sqrt() * u, 0.0),
    "clipped": lambda u, a, b: torch.where((n := u.norm(dim=-1, keepdim=True)) > 1, u / n, u),
    "masked": lambda u, a, b: u * (u > 0),
    "guarded": lambda u, a, b: a / torch.where((n := u.norm(dim=-1, keepdim=True)) > 0, n, 1.0),
    "finite": lambda u, a, b: torch.where(torch.isfinite(u), a, 0.0),
    "causal": lambda u, a, b: a.masked_fill(torch.ones(3, WIDTH).tril().bool(), 0.0),
    "dropout": lambda u, a, b: F.dropout(u, 0.3),
    "checked": lambda u, a, b: a if bool(torch.isfinite(u).all()) else b,
    "solved": lambda u, a, b: torch.linalg.solve(torch.eye(WIDTH, dtype=u.dtype) + 0.1 * u.mT @ u, a.mT).mT,
}


def solved(choose, seed, dtype=torch.float64, scale=0.7, **choices):
    """A field of this choice, the gradients of a solve and its stats."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(WIDTH, WIDTH)] * 4 + [(3, WIDTH)]
    *w, y0 = [(torch.randn(s, generator=generator) * scale).to(dtype).requires_grad_() for s in shapes]

    def field(t, y, w):
        return choose(y @ w[0], (y @ w[1]).cos(), (y @ w[2]).sin()) @ w[3] - y

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", odenet.GradientWarning)
        solution = odenet.solve(field, y0, w, **choices)
        solution.y1.square().sum().backward()
    weights = torch.cat([torch.zeros(WIDTH**2) if x.grad is None else x.grad.flatten() for x in w])
    return field, (y0.grad, weights), solution.stats.certificate, bool(said)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", [*JUMPING, *KINKED])
def test_a_comparison_jumps_where_the_values_do(kind, dtype):
    for seed in range(2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        field, *_ = solved(
            (JUMPING | KINKED)[kind], seed, dtype, steps=1, t1=0.01, solver="euler", gradient="discrete-adjoint"
        )
        assert jumps(field) == (kind in JUMPING)
        assert torch.equal(torch.get_rng_state(), before) == (kind != "dropout")


OFF = [("where", 0), ("filled", 3), ("of each other", 1), ("between", 2)]


@pytest.mark.parametrize(("kind", "seed"), OFF)
def test_the_certificate_of_a_field_that_switches_is_its_error(kind, seed):
    choices = {"rtol": 1e-2, "atol": 1e-3, "t1": 1.0, "solver": "bosh3"}
    _, exact, *_ = solved(JUMPING[kind], seed, gradient="checkpoint", **choices)
    _, found, certificate, said = solved(JUMPING[kind], seed, gradient="continuous-adjoint", **choices)
    off = max(float((one - two).norm() / two.norm()) for one, two in zip(found, exact, strict=True))
    assert off > 0.01
    assert certificate == pytest.approx(off, rel=1e-6)
    assert said == (off > 0.1)


def test_a_field_that_goes_on_for_ever_elsewhere_is_left():
    """Where it is far from the state it would not end."""

    def field(t, y):
        halved = y
        while halved.norm() > 4:
            halved = halved * 1.0
        return torch.where(halved > 3, halved, 0.5 * halved)

    y0 = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(0), requires_grad=True)
    odenet.solve(field, y0 / 2, steps=2, t1=0.1, gradient="discrete-adjoint").y1.sum().backward()
    assert y0.grad is not None


def test_a_field_is_left_as_it_was():
    class Counting(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(WIDTH)

        def forward(self, t, y):
            return torch.where(self.norm(y) > 0.2, y.cos(), y.sin())

    counts = []
    y0 = torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(0))
    for solve in (odeint, odeint_adjoint):
        field = Counting()
        solve(field, y0, torch.tensor([0.0, 1.0]), method="euler", options={"step_size": 0.5})
        counts.append((int(field.norm.num_batches_tracked), field.norm.running_mean))
    assert counts[0][0] == counts[1][0]
    assert torch.equal(counts[0][1], counts[1][1])
