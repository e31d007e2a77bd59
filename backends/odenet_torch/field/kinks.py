"""Blocks whose derivative jumps, as that of ReLU does at 0.

A rebuilt state of which a little is wrong is on the other side of the kinks of as large a part of a block's units, and
each of these has another derivative altogether: the gradient is off by about the square root of that part (see
`odenet.kit.KINKS`). Looked for once in a block's life, and asked for only where it may matter.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from odenet_torch.field.jumps import Watch
from odenet_torch.field.looked import Looked
from odenet_torch.field.reachable_objects import ReachableObjects

KINKED = Looked()
"""Parts of fields that were seen to have a kink."""
_OPERATIONS = frozenset(
    "relu leaky_relu _prelu_kernel prelu rrelu_with_noise rrelu_with_noise_functional threshold hardtanh hardswish "
    "hardsigmoid softshrink abs clamp clamp_min clamp_max maximum minimum fmax fmin max min amax amin aminmax cummax "
    "cummin median nanmedian sort max_pool2d_with_indices max_pool3d_with_indices adaptive_max_pool2d".split()
)


def kinked(root: Any, reached: ReachableObjects | None = None) -> bool:
    """Whether a part of a field was seen to have a kink (see `Looked.some`)."""
    return KINKED.some(root, reached)


def perhaps(root: Any, reached: ReachableObjects | None = None) -> bool:
    """Whether some variant of it was, which costs less to tell."""
    return bool(KINKED) and KINKED.knows(root, reached)


def within(watch: Watch) -> bool:
    """Whether an evaluation that was looked at has a kink. What it compares is taken for one where it does not jump."""
    return watch.compares or by_name(watch.names)


def by_name(names: Iterable[str]) -> bool:
    """Whether one of some operations has a kink, or is the derivative of one that has."""
    return any(name.removesuffix("_backward") in _OPERATIONS for name in names)
