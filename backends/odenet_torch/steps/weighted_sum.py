"""`y + h sum_i weights[i] slopes[i]` in few operations: what a step does beside evaluating the field.

Small states are bound by the number of operations, so that what autograd does not watch is one matrix-vector product.
"""

from __future__ import annotations

import collections
import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from odenet.kit import Tableau, Trial, weigh
from odenet_torch.field.differentiating import transformed
from odenet_torch.field.state import Leaves
from odenet_torch.steps.scalars import product
from odenet_torch.steps.tolerance import Tolerance

_SMALL = 1 << 15  # entries: beyond, the products are bound by memory and sums of two are as fast


def plus(leaf: Tensor, factor: float, slope: Tensor) -> Tensor:
    """See `odenet.kit.increment`: one operation, and one node of autograd's."""
    return torch.add(leaf, slope, alpha=factor)


def weigh_leaves(y: Leaves | None, h: Any, weights: Sequence[Any], slopes: Sequence[Leaves]) -> Leaves:
    """`odenet.kit.weigh` by one fused operation a term."""
    if isinstance(h, Tensor):
        return weigh(y, h, weights, slopes)
    terms = [(h * weight, slope) for weight, slope in zip(weights, slopes, strict=False) if weight]
    if y is not None and not terms:
        return y
    (weight, first), *terms = terms
    plus = torch.add if torch.is_grad_enabled() else Tensor.add_
    sums: list[Tensor] = []
    for i, k in enumerate(first):
        total = product(weight, k)
        for factor, slope in terms:
            total = plus(total, slope[i], alpha=factor)
        sums.append(total if y is None else y[i] + total)  # the sum is rounded onto y once
    return tuple(sums)


@functools.lru_cache(maxsize=64)
def _coefficients(tableau: Tableau, kind: torch.dtype, device: torch.device) -> tuple[list[Tensor], Tensor, Tensor]:
    """The rows of a, the weights of the step, and those of its error."""
    of = {"dtype": kind, "device": device}
    a = [torch.tensor(row, **of) for row in tableau.a]
    return a, a[-1] if tableau.fsal else torch.tensor(tableau.b, **of), torch.tensor(tableau.error_weights, **of)


class SlopeRows:
    """The slopes of a step as the rows of one matrix.

    A solve of a small state spends some percent of its time on the views of it. They are kept for the next solve of
    such a state, as long as nobody else takes them.

    Args:
        stages: of the method.
        y: the state.
        kept_as: what the next solve asks for, where they are kept.
    """

    def __init__(self, stages: int, y: Tensor, kept_as: Any) -> None:
        self.kept_as = kept_as
        self.matrix = slopes = y.new_empty(stages, y.numel())
        self.rows = slopes.view(stages, *y.shape).unbind(0)
        columns = slopes.t()
        self.before = [columns.narrow(1, 0, i) for i in range(1, stages + 1)]
        """The slopes of the first stages as columns, by how many there are, less one."""

    @classmethod
    def take(cls, stages: int, y: Tensor) -> SlopeRows:
        """Rows for nobody else, until they are given back."""
        if y.numel() > _KEPT_ENTRIES or not y.is_cpu:  # elsewhere what was queued may still write on them
            return cls(stages, y, None)
        kept_as = stages, y.shape, y.dtype, torch.is_inference_mode_enabled()
        return _spare.pop(kept_as, None) or cls(stages, y, kept_as)

    def give_back(self) -> None:
        """Another solve may have them."""
        if self.kept_as is not None:
            _spare[self.kept_as] = self
            if len(_spare) > _KEPT:
                _spare.popitem(last=False)


_spare: collections.OrderedDict[Any, SlopeRows] = collections.OrderedDict()
_KEPT = 8
_KEPT_ENTRIES = 1 << 12  # of a state: of larger ones the time of a few views is no part


class Buffered:
    """Steps of a state that is one small real tensor, without autograd: slopes are the rows of one buffer.

    Args:
        tableau: the method.
        tolerance: that of the error, the root mean square of all entries.
        y: the state.
    """

    def __init__(self, tableau: Tableau, tolerance: Tolerance, y: Tensor) -> None:
        stages, entries = tableau.stages, y.numel()
        self.fsal = tableau.fsal
        self.inner = stages - 1 - self.fsal
        """Stages after the first that are not at the end of the step."""
        self.slopes = SlopeRows.take(stages, y)
        self.a, self.last, self.error = _coefficients(tableau, y.dtype, y.device)
        (rtol,), (atol,) = tolerance.rtol, tolerance.atol
        self.rtol = min(rtol, torch.finfo(y.dtype).max)  # a factor must be a number of the state's type
        self.atol = y.new_full((entries,), atol)  # pyright: ignore[reportArgumentType]
        self.scale = entries**-0.5
        self.sizes: tuple[Tensor, Tensor] | None = None

    @staticmethod
    def fits(tolerance: Tolerance, y: Leaves) -> bool:
        """Whether a state is one of these."""
        return (
            tolerance.plain
            and not torch.is_grad_enabled()
            and not transformed()
            and y[0].is_floating_point()
            and 0 < y[0].numel() <= _SMALL
            and type(y[0]) is Tensor
            and all(isinstance(bound, float) for bound in (*tolerance.rtol, *tolerance.atol))
            and tolerance.some[0]  # else an entry may have nothing allowed
        )

    def trial(self, stage: Any, y: Leaves, h: float, first: Leaves) -> tuple[Trial, float]:
        """The step (see `odenet._solvers.step.trial`), without its error, and the error's ratio to what is allowed."""
        a, before, into, product = self.a, self.slopes.before, self.slopes.rows, torch.addmv
        (like,) = y
        flat, slopes = like.reshape(-1), [first]
        into[0].copy_(first[0])
        i = 0
        for i in range(1, self.inner + 1):
            # new memory for each stage: the field may keep what it is given, or return it
            slope = stage(i, (product(flat, before[i - 1], a[i], alpha=h).view_as(like),))
            slopes.append(slope)
            into[i].copy_(slope[0])
        flat1 = product(flat, before[len(slopes) - 1], self.last, alpha=h)
        y1 = (flat1.view_as(like),)
        if self.fsal:
            slope = stage(i + 1, y1)
            slopes.append(slope)
            into[i + 1].copy_(slope[0])
        sizes = self.sizes
        size = sizes[1] if sizes is not None and sizes[0] is like else flat.abs()
        size1 = flat1.abs()
        self.sizes = y1[0], size1
        allowed = torch.add(self.atol, torch.maximum(size, size1), alpha=self.rtol)  # pyright: ignore[reportArgumentType]
        error = torch.mv(before[-1], self.error).div_(allowed)
        ratio = abs(h) * self.scale * math.sqrt(torch.dot(error, error).item())  # the step's one host read
        return Trial(y1, (), tuple(slopes)), ratio
