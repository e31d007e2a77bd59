"""Numbers of Python's in the arithmetic of small tensors.

Of a number beside a tensor in float32, torch makes a tensor in float64, and of that one in float32, in each operation:
a product with a small state takes three times as long as one with a tensor of the same type.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from odenet_torch.field.state import Leaves


def product(factor: float, leaf: Tensor) -> Tensor:
    """`factor * leaf`, to the last bit."""
    zero = _ZERO.get(leaf.dtype) if type(leaf) is Tensor and leaf.is_cpu else None
    return factor * leaf if zero is None else torch.add(zero, leaf, alpha=factor)


def beside(numbers: tuple[float | Tensor, ...], leaves: Leaves) -> tuple[float | Tensor, ...]:
    """The same, to calculate with beside real parts of these leaves, or their sizes."""
    pairs = zip(numbers, leaves, strict=True)
    return tuple([_scalar(n, leaf.real.dtype) if isinstance(n, float) and leaf.is_cpu else n for n, leaf in pairs])


@functools.lru_cache(256)
def _scalar(number: float, kind: torch.dtype) -> Tensor:
    # by NumPy, so that no mode of torch has a part in what is kept
    with torch.inference_mode(False), np.errstate(over="ignore"):
        return torch.from_numpy(np.array(number, np.float64 if kind == torch.float64 else np.float32))


_ZERO = {kind: _scalar.__wrapped__(-0.0, kind) for kind in (torch.float32, torch.float64)}
"""What a product is added to, which takes `alpha` as it is: -0.0 leaves zeros of both signs as they are."""
