"""What a layer returned, held against what it returns when it runs again (see `field.witness`)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odenet.kit import tree_leaves
from odenet_torch.field.half_precision import HALF
from odenet_torch.field.state import Leaves
from odenet_torch.field.witness import OFF, OFF_HALF, looks, require_reached, sample


@dataclass(frozen=True)
class LayerEnd:
    """Of one call of a layer.

    Args:
        kept: of the first tensor of numbers that it returned, a sample.
    """

    kept: Leaves

    @classmethod
    def of(cls, out: Any) -> LayerEnd | None:
        """None where it returned no numbers that can be read at once."""
        leaf = _first(out)
        # somebody may write on it, as x += f(x) does
        return None if leaf is None or not looks((leaf,)) else cls(sample((leaf,), own=True))

    def require(self, name: str, x: Any, out: Any, nearby: Callable[[], Any] | None = None) -> None:
        """Looks whether the layer returns the same once more.

        Args:
            name: of the layer.
            x: what it was called with first: where it adds to that, what it adds has to be the same.
            out: what it returns now.
            nearby: where x is rounded: what the layer returns as far from there again as rounding may have moved it,
                which is asked for if it returns something else.

        Raises:
            GradientError: it returns something else.
        """
        leaf = _first(out)
        if leaf is None or not looks((leaf,)):
            return
        adds = isinstance(x, Tensor) and x.shape == leaf.shape and x.dtype == leaf.dtype
        start = x.detach() if adds else torch.zeros_like(leaf)
        casts = leaf.dtype in HALF or torch.is_autocast_enabled("cpu")

        def rounded(_: int) -> float:
            assert nearby is not None
            other = _first(nearby())
            return math.inf if other is None else 3 * float(torch.linalg.vector_norm(other - leaf))

        off = OFF_HALF if casts else OFF
        require_reached((leaf,), self.kept, (start,), name, off, None if nearby is None else rounded)


def _first(out: Any) -> Tensor | None:
    leaves = (leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor))
    return next((leaf for leaf in leaves if leaf.is_floating_point() or leaf.is_complex()), None)
