"""A solve of the drop-in to a time that its steps could not reach in years is given up early, and says so."""

from __future__ import annotations

import pytest
import torch

from odenet import SolveError
from odenet_torch import odeint, odeint_dense
from odenet_torch.steps import size_control

FAR = 1e14


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """The pace is looked at after 1000 steps, as it is after 100 000, to which the same factor belongs."""
    monkeypatch.setattr(size_control, "_LOOKS", frozenset((1000,)))


@pytest.mark.parametrize("end", [FAR, -FAR])
def test_far_times_are_refused(end):
    field, y0 = (lambda t, y: torch.cos(t) * torch.ones_like(y)), torch.ones(1, dtype=torch.float64)
    for solve in (
        lambda: odeint(field, y0, torch.tensor([0.0, end]).double()),
        lambda: odeint_dense(field, y0, 0, end),
    ):
        with pytest.raises(SolveError, match=r"stopped at t=.* after .* steps .* times it"):
            solve()


def test_what_becomes_faster_is_solved():
    """The steps of a solve that comes to rest grow without end: 1000 of them say nothing about the next."""

    def field(t, y):
        return torch.where(t < 60, torch.cos(10 * t), torch.zeros_like(t)) * torch.ones_like(y)

    y = odeint(field, torch.ones(1, dtype=torch.float64), torch.tensor([0.0, 1e10]).double())
    assert torch.isfinite(y).all()


def test_the_longer_a_pace_was_kept_the_less_it_may_change():
    leads = [size_control.lead(tried) for tried in (20_000, 100_000, 1_000_000)]
    assert leads == sorted(leads, reverse=True)
    assert leads[-1] >= 10
