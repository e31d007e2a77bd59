"""Errors of several steps that are worked out together are those of each by itself, for states of every shape."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from odenet.kit import subtract
from odenet_torch.gradients.certificate import StepErrors, relative

SHAPES = {
    "a number": ((),),
    "one axis": ((5,),),
    "rows": ((4, 3),),
    "one row": ((1, 3),),
    "images": ((2, 3, 4, 4),),
    "several leaves": ((4, 3), (2,), ()),
    "an empty leaf": ((4, 3), (0, 3)),
    "larger than what is joined": ((130, 130),),
}


def states(shapes, kind):
    torch.manual_seed(0)
    return [tuple(torch.randn(shape, dtype=kind) for shape in shapes) for _ in range(3 * 40)]


@pytest.mark.parametrize("kind", [torch.float32, torch.complex128])
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_the_largest_and_its_step_are_those_of_each_by_itself(shapes, kind):
    layout = SimpleNamespace(time=torch.float64, device=torch.device("cpu"))
    errors = StepErrors(SimpleNamespace(layout=layout, grid=SimpleNamespace(steps=64)))  # pyright: ignore[reportArgumentType]
    every = states(shapes, kind)
    one, other, y = every[:40], every[40:80], every[80:]
    expected = [relative(subtract(a, b), c) for a, b, c in zip(one, other, y, strict=True)]
    for n in reversed(range(40)):
        errors.add_difference(one[n], other[n], y[n], n)
    value, step = errors.worst().tolist()
    assert value == pytest.approx(float(max(expected)), rel=1e-6)
    assert step == max(range(40), key=lambda n: float(expected[n]))
    errors.add(torch.tensor(1e9), -1)  # the state at t0
    assert errors.worst().tolist() == [1e9, -1]


def test_a_nan_in_one_step_is_kept():
    layout = SimpleNamespace(time=torch.float64, device=torch.device("cpu"))
    errors = StepErrors(SimpleNamespace(layout=layout, grid=SimpleNamespace(steps=64)))  # pyright: ignore[reportArgumentType]
    good, bad = (torch.ones(3, 2),), (torch.full((3, 2), torch.nan),)
    for n in reversed(range(20)):
        errors.add_difference(bad if n == 7 else good, good, good, n)
    value, step = errors.worst().tolist()
    assert value != value
    assert step == 7
