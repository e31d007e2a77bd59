"""Whether the rows of a batch move each by itself, as steps of their own take for granted."""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from odenet import UnsupportedError
from odenet_torch.field.differentiating import transformed
from odenet_torch.field.state import Leaves
from odenet_torch.steps.rows import choose_rows

_GOLDEN = (5.0**0.5 - 1) / 2
_CLOSE = 2.0**7  # roundings of a row that are no sign of another row


def refuse_batch_statistics(function: Any) -> None:
    """Raises UnsupportedError where the field is known to hold a layer that normalises over the batch."""
    for module in _modules_in(function):
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            raise _refusal(f"{type(module).__name__} in training mode normalises over the rows of the batch")


_LOOKED: weakref.WeakKeyDictionary[Any, tuple[float, float]] = weakref.WeakKeyDictionary()
"""Fields whose rows are independent, and the least and the largest time that they were looked at over."""


def known_independent(field: Any, t0: float, t1: float) -> bool:
    """Whether a field was looked at all over a span that holds these times."""
    try:
        span = _LOOKED.get(field)
    except TypeError:  # it has no weak references, or no hash
        return False
    return span is not None and span[0] <= min(t0, t1) and max(t0, t1) <= span[1]


def note_independent(field: Any, t0: float, t1: float) -> None:
    """It was, between these."""
    with contextlib.suppress(TypeError):
        _LOOKED[field] = min(t0, t1), max(t0, t1)


def require_independent(
    evaluate: Callable[[Tensor, Leaves], Leaves],
    t: Tensor,
    later: Tensor,
    y: Leaves,
    slope: Leaves,
    span: tuple[float, float] | None = None,
    known: Tensor | None = None,
) -> None:
    """Looks whether the slope of a row depends on the states or times of other rows: these are moved, and it must not.

    Rows are moved by turns, those of odd and of even place a little, and the first and the second half to the other
    side of their neighbours: what reads any other row in one of the usual ways (a mean, a softmax or a product over the
    batch, pairs, groups, an order) is seen. The second of these looks is in the field's first solve alone, at times all
    over the span, one a row: what rows read of each other for a part of the time alone is seen where the time of one of
    them is in it. Five evaluations, two later on, and two where the solve has ended.

    Args:
        evaluate: the field, of the rows' times and a state.
        t, later: the times of the rows, and others that are in the span too.
        y, slope: the state there, and its slope.
        span: the first and the last time, in the field's first solve.
        known: at the end of the solve, the rows whose slope this is, each from when it came there. What rows begin to
            read of each other on the way is seen then.

    Raises:
        UnsupportedError: it does.
    """
    rows, device = y[0].shape[0], y[0].device
    if rows < 2:
        return
    place = torch.arange(rows, device=device)
    odd, late = place % 2 == 1, place >= rows // 2
    with torch.no_grad():
        differences: list[Tensor] = []

        def look(rows_kept: Tensor, moved: Leaves) -> None:
            again = evaluate(torch.where(rows_kept, t, later), choose_rows(rows_kept, y, moved))
            rows_kept = rows_kept if known is None else rows_kept & known
            if not _same(rows_kept, slope, again):
                differences.append(_apart(rows_kept, slope, again))

        if known is None:
            near = tuple(map(_moved, y))
            look(odd, near)
            look(~odd, near)
        if span is not None or known is not None:
            # so far away, or at another time, it may not be defined
            with contextlib.suppress(ArithmeticError, AssertionError, RuntimeError, ValueError):
                far, half = tuple([2 * leaf.roll(1, 0) - leaf for leaf in y]), odd
                if span is not None:
                    # the middle first, and what comes next is far from all before
                    t = span[0] + (0.5 + place * _GOLDEN).to(t).remainder(1.0) * (span[1] - span[0])
                    later, slope, half = t.roll(1), evaluate(t, y), late
                    far = tuple(map(_moved, far))  # rows that are all the same, too
                look(half, far)
                look(~half, far)
        apart = torch.stack(differences).amax().item() if differences else 0.0
    if apart > 0:
        raise _refusal(f"the slope of a row changes by {apart:.1e} of its size when other rows are moved")


def _moved(leaf: Tensor) -> Tensor:
    """Other rows of the same size: towards the next row, and away from zero."""
    sizes = torch.where(torch.isfinite(leaf), leaf, 0).abs()
    typical = sizes.mean()
    return leaf + 0.1 * (leaf.roll(1, 0) - leaf) + 0.1 * (sizes + torch.where(typical > 0, typical, 1.0))


def _same(kept: Tensor, slope: Leaves, again: Leaves) -> bool:
    """Whether the kept rows are the same to the last bit, as most are: asked on the host, where asking costs little."""
    if kept.device.type != "cpu" or transformed():
        return False
    return all(torch.equal(a, b) for a, b in zip(choose_rows(kept, again, slope), slope, strict=True))


def _apart(kept: Tensor, slope: Leaves, again: Leaves) -> Tensor:
    """By how much of their size the kept rows differ, zero where that is rounding."""
    worst = []
    for one, other in zip(slope, again, strict=True):
        one, other = one.detach().reshape(len(kept), -1), other.reshape(len(kept), -1)
        both = torch.isfinite(one) & torch.isfinite(other)
        size = torch.where(torch.isfinite(one), one, 0).abs().amax(1)
        size = torch.maximum(size, 1e-3 * size.amax()).clamp_min(torch.finfo(size.dtype).tiny)
        difference = torch.where(both, one - other, 0).abs().amax(1) / size
        difference = torch.where((torch.isfinite(one) == torch.isfinite(other)).all(1), difference, 1.0)
        rounding = _CLOSE * torch.finfo(size.dtype).eps
        worst.append(torch.where(kept & (difference > rounding), difference, 0).amax().double())
    return torch.stack(worst).amax()


def _refusal(reason: str) -> UnsupportedError:
    return UnsupportedError(
        f"per_sample=True with a field whose rows read each other: {reason}, and each row is at a time of its own",
        "fields that move each row by itself",
        "call eval() on such layers, or take one step size for the whole batch (per_sample=False, or steps=N)",
    )


def _modules_in(function: Any) -> Iterator[nn.Module]:
    """The modules that a function is seen to hold."""
    if isinstance(function, nn.Module):
        yield from function.modules()
        return
    if isinstance(function, functools.partial):
        for value in (function.func, *function.args, *function.keywords.values()):
            if callable(value):
                yield from _modules_in(value)
        return
    values = [getattr(function, "__self__", None), *(getattr(function, "__defaults__", None) or ())]
    for cell in getattr(function, "__closure__", None) or ():
        try:
            values.append(cell.cell_contents)
        except ValueError:  # not yet assigned
            continue
    for value in values:
        if isinstance(value, nn.Module):
            yield from value.modules()
