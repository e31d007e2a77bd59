"""Two thousand random calls: each is right, or refused by an error of our own; none hangs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from fuzz import Framework, judged

from odenet import _tree

SECONDS = 60  # no call takes a tenth of it; one that does hangs


def array(values: np.ndarray, dtype: str) -> torch.Tensor:
    """A tensor of that number type."""
    return torch.tensor(values).to(getattr(torch, dtype))


def numpy(leaf: Any) -> np.ndarray:
    """Half precision as float32."""
    leaf = torch.as_tensor(leaf).detach()
    return (leaf.float() if leaf.dtype in (torch.bfloat16, torch.float16) else leaf).numpy()


def gradient(loss: Any, y0: Any) -> list[np.ndarray]:
    """That of a real loss."""
    y0 = _tree.map(lambda leaf: leaf.clone().requires_grad_() if isinstance(leaf, torch.Tensor) else leaf, y0)
    leaves = _tree.leaves(y0)
    found = torch.autograd.grad(loss(y0), leaves, allow_unused=True)
    return [numpy(torch.zeros_like(y) if g is None else g) for y, g in zip(leaves, found, strict=True)]


TORCH = Framework("torch", array, numpy, gradient)


def test_a_few_random_calls_are_right_or_refused():
    """Enough to see that the judge judges."""
    found = judged(0, 100, TORCH, SECONDS, lambda drawn: None)
    assert found["solved"]
    assert found["refused"]


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_random_calls_are_right_or_refused(part):
    """Half of them are good, and are compared with NumPy or SciPy."""
    found = judged(1000 + 200 * part, 200, TORCH, SECONDS, lambda drawn: None)
    assert found["solved"] > 50
    assert found["refused"] > 50
