"""What a layer returned, held against what it returns when it runs again (see `field.witness`)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odenet.kit import tree_leaves
from odenet_torch.field import switches
from odenet_torch.field.half_precision import HALF
from odenet_torch.field.jumps import Watch
from odenet_torch.field.state import Leaves
from odenet_torch.field.witness import LIKELY, OFF, OFF_HALF, looks, missed, missing, moved_by, sample, unlike


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

    def require(self, name: str, x: Any, out: Any) -> None:
        """Looks whether the layer returns the same once more.

        Args:
            name: of the layer.
            x: what it was called with first: where it adds to that, what it adds has to be the same.
            out: what it returns now.

        Raises:
            GradientError: it returns something else.
        """
        if part := self._missed(x, out):
            raise unlike(name, missing(part))

    def strayed(self, name: str, x: Tensor, out: Any, again: Callable[[Tensor], Any], error: float) -> float:
        """By which part of what it had returned the layer returns something else, because x was rounded and it jumps:
        on which side of a jump a rounded state is, is a matter of chance. 0 where it returns what may be expected.

        Args:
            name, x, out: see `require`; x as it was rounded.
            again: the layer, at another x.
            error: of x, relative.

        Raises:
            GradientError: it returns something else, and does not jump.
        """

        def away(_: int) -> float:
            other, leaf = _first(again(moved_by(x, error))), _first(out)
            if other is None or leaf is None:
                return math.inf
            return LIKELY * float(torch.linalg.vector_norm(other - leaf))

        part = self._missed(x, out, away)
        if part and not _jumps(x, again):
            raise unlike(name, missing(part))
        return part

    def _missed(self, x: Any, out: Any, *rounded: Callable[[int], float]) -> float:
        leaf = _first(out)
        if leaf is None or not looks((leaf,)):
            return 0.0
        adds = isinstance(x, Tensor) and x.shape == leaf.shape and x.dtype == leaf.dtype
        start = x.detach() if adds else torch.zeros_like(leaf)
        casts = leaf.dtype in HALF or torch.is_autocast_enabled("cpu")
        return missed((leaf,), self.kept, (start,), OFF_HALF if casts else OFF, *rounded)


def _jumps(x: Tensor, run: Callable[[Tensor], Any]) -> bool:
    """Whether a layer jumps, or divides by what may vanish (see `odenet_torch.field.jumps`)."""
    watch = Watch((x,))
    try:
        with torch.no_grad(), watch:
            run(x)
    except RuntimeError:  # it goes back through itself: what it does then is not to be seen
        return True
    return switches.seen_to_jump(watch, (x,), lambda: _numbers(run(x)))


def _numbers(out: Any) -> Leaves:
    leaves = (leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor))
    return tuple(leaf for leaf in leaves if leaf.is_floating_point() or leaf.is_complex())


def _first(out: Any) -> Tensor | None:
    return next(iter(_numbers(out)), None)
