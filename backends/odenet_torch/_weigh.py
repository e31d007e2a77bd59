"""`y + h sum_i weights[i] slopes[i]` in few operations: what a step does beside evaluating the field.

Small states are bound by the number of operations, so that what autograd does not watch is one matrix-vector product.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from odenet._step import Trial, weigh
from odenet._tableau import Tableau
from odenet_torch._state import Leaves

_SMALL = 1 << 15  # entries: beyond, the products are bound by memory and sums of two are as fast


def weigh_leaves(y: Leaves | None, h: Any, weights: Sequence[Any], slopes: Sequence[Leaves]) -> Leaves:
    """See `odenet._step.Weigh`: one fused operation a term."""
    if isinstance(h, Tensor):
        return weigh(y, h, weights, slopes)
    terms = [(h * weight, slope) for weight, slope in zip(weights, slopes, strict=False) if weight]
    watched = torch.is_grad_enabled()
    if y is None:
        (weight, slope), *terms = terms
        y = tuple(weight * leaf for leaf in slope)
    elif terms and not watched:
        (weight, slope), *terms = terms
        y = tuple(torch.add(leaf, k, alpha=weight) for leaf, k in zip(y, slope, strict=True))
    for weight, slope in terms:
        if watched:
            y = tuple(torch.add(leaf, k, alpha=weight) for leaf, k in zip(y, slope, strict=True))
        else:
            y = tuple(leaf.add_(k, alpha=weight) for leaf, k in zip(y, slope, strict=True))
    return y


class Buffered:
    """Steps of a state that is one small real tensor, without autograd: slopes are the rows of one buffer.

    Args:
        tableau: the method.
        like: the state.
    """

    def __init__(self, tableau: Tableau, like: Tensor) -> None:
        self.tableau = tableau
        self.shape = like.shape
        stages = tableau.stages
        self.rows = like.new_empty(stages, like.numel())
        self.row = self.rows.unbind(0)
        self.before = [self.rows[:i].t() for i in range(stages + 1)]

        def weights(values: Sequence[float]) -> Tensor:
            return like.new_tensor(values)

        assert tableau.error_weights is not None
        self.a = [weights(row) for row in tableau.a]
        self.b, self.error = weights(tableau.b), weights(tableau.error_weights)

    @staticmethod
    def fits(y: Leaves) -> bool:
        """Whether a state is one of these."""
        return (
            len(y) == 1
            and not torch.is_grad_enabled()
            and y[0].is_floating_point()
            and y[0].numel() <= _SMALL
            and type(y[0]) is Tensor
        )

    def trial(self, stage: Any, y: Leaves, h: float, first: Leaves) -> Trial:
        """See `odenet._step.trial`."""
        shape, a, before, row, product = self.shape, self.a, self.before, self.row, torch.addmv
        flat = y[0].reshape(-1)
        slopes, at = [first], y
        row[0].copy_(first[0].reshape(-1))
        for i in range(1, len(row)):
            at = (product(flat, before[i], a[i], alpha=h).view(shape),)
            slope = stage(i, at)
            slopes.append(slope)
            row[i].copy_(slope[0].reshape(-1))
        if not self.tableau.fsal:
            at = (product(flat, before[-1], self.b, alpha=h).view(shape),)
        error = torch.mv(before[-1], self.error).mul_(h).view(shape)
        return Trial(at, (error,), tuple(slopes))
