"""Arithmetic of a batch whose rows have times and step sizes of their own."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from odenet.kit import Arithmetic
from odenet_torch.field.state import Leaves
from odenet_torch.steps.scalars import product


def beside(row: Tensor, like: Tensor) -> Tensor:
    """One number a row, to broadcast to a leaf."""
    return row.reshape(-1, *(1,) * (like.ndim - 1))


Columns = dict[tuple[torch.dtype, int], Tensor]
"""One number a row, to broadcast to leaves of a number type and of so many axes."""


def weigh_rows(
    y: Leaves | None, h: Tensor, weights: Sequence[Any], slopes: Sequence[Leaves], columns: Columns | None = None
) -> Leaves:
    """`y + h sum_i weights[i] slopes[i]`, h and weights being numbers, or one a row.

    Without y it is an error, of which nobody asks the derivative: it is not recorded. All sums with the same h may
    share columns of it.
    """
    terms = [(w, k) for w, k in zip(weights, slopes, strict=False) if isinstance(w, Tensor) or w]
    assert terms
    plain = [(weight, slope) for weight, slope in terms if isinstance(weight, float)]
    if len(plain) == len(terms):
        with torch.no_grad() if y is None else contextlib.nullcontext():
            return _scaled_sum(y, h, plain, {} if columns is None else columns)
    total = y
    for weight, slope in terms:
        parts = tuple(beside((h * weight).to(k.real.dtype), k) * k for k in slope)
        total = parts if total is None else tuple(a + b for a, b in zip(total, parts, strict=True))
    assert total is not None
    return total


def _scaled_sum(y: Leaves | None, h: Tensor, terms: Sequence[tuple[float, Leaves]], columns: Columns) -> Leaves:
    """The same where weights are numbers: the size is multiplied once, and each slope takes one operation of four."""
    (weight, first), *rest = terms
    sums: list[Tensor] = []
    for i, total in enumerate(first):
        size = columns.get((total.dtype, total.ndim))
        if size is None:
            size = columns[total.dtype, total.ndim] = beside(h.to(total.real.dtype), total)
        total = total if weight == 1.0 else product(weight, total)
        for factor, slope in rest:
            total = torch.add(total, slope[i], alpha=factor)
        sums.append(size * total if y is None else y[i] + size * total)
    return tuple(sums)


def choose_rows(mask: Tensor, one: Leaves, other: Leaves) -> Leaves:
    """The rows of one where the mask holds, else those of the other."""
    return tuple(torch.where(beside(mask, a), a, b) for a, b in zip(one, other, strict=True))


def finite_rows(*states: Leaves) -> Tensor:
    """The rows all of whose numbers are finite."""
    return functools.reduce(
        torch.logical_and, (torch.isfinite(leaf).flatten(1).all(1) for y in states for leaf in map(_deep, y))
    )


def stand_ins(mask: Tensor, leaves: Leaves) -> Leaves:
    """A row of those in the mask in the place of each that is not.

    What is computed of a row that stands still, or that has gone astray, is not used; but the field is called with the
    whole batch, and zero times infinity in its backward would be NaN in the gradient of what the rows share.
    """
    row = mask.to(torch.uint8).argmax().reshape(1)
    return choose_rows(mask, leaves, tuple(leaf.detach().index_select(0, row).expand_as(leaf) for leaf in leaves))


def _deep(leaf: Tensor) -> Tensor:
    return leaf if leaf.ndim > 1 else leaf.unsqueeze(1)


def _pick(condition: Any, one: Any, other: Any) -> Any:
    if isinstance(condition, bool):
        return one if condition else other
    return torch.where(condition, one, other)


def _bound(name: str) -> Any:
    def bound(one: Any, other: Any) -> Any:
        if not isinstance(one, Tensor):
            one, other = other, one
        if isinstance(other, Tensor):
            return getattr(torch, "minimum" if name == "max" else "maximum")(one, other.to(one))
        return one.clamp(**{name: other})

    return bound


ROWS = Arithmetic(_bound("max"), _bound("min"), _pick)
