"""How large the error of a step is, beside what is allowed: `|error| / (atol + rtol max(|y|, |y'|))`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from odenet import InputError, PIDController
from odenet.kit import shown, tree_leaves, tree_same_shape
from odenet_torch.field.not_dense import not_dense
from odenet_torch.field.state import Layout, Leaves
from odenet_torch.steps.scalars import beside

_Each = tuple["float | Tensor", ...]


class Tolerance:
    """Tolerances by leaf, and the norm.

    Args:
        control: with `rtol`, `atol` and `norm`.
        layout: of the state.
        like: leaves of the state.

    Raises:
        InputError: a tree of tolerances that is not like the state, or arrays that do not broadcast to its leaves.
    """

    def __init__(self, control: PIDController, layout: Layout, like: Leaves) -> None:
        self.rtol = _each("rtol", control.rtol, layout, like)
        self.atol = _each("atol", control.atol, layout, like)
        self.relative, self.absolute = beside(self.rtol, like), beside(self.atol, like)
        self.some = tuple(map(_some, self.atol))
        """Of each leaf whether something is allowed of entries that are zero."""
        self.rows = control.per_sample
        self.norm = self._norm(control, layout, like)
        self.named = None if callable(control.norm) else control.norm
        self.plain = control.norm == "rms" and len(like) == 1 and not self.rows and not like[0].is_complex()

    def ratio(self, error: Leaves, y: Leaves, y1: Leaves) -> Tensor:
        """The norm of the error over what is allowed: a scalar, or one number a row.

        Args:
            error: of the step.
            y, y1: the states at both ends of the step.
        """
        with torch.no_grad():
            allowed = allowances(_sizes(y, y1), self.relative, self.absolute)
            return self.norm(over(error, allowed, self.some))

    def sizes(self, y: Leaves) -> Callable[[Leaves], Tensor]:
        """The norm over what is allowed at y, of any value; made and asked where nothing is recorded."""
        if self.plain and self.some[0]:
            # the same numbers in fewer operations, for the norm of one leaf
            (leaf,), (relative,), (absolute,) = y, self.relative, self.absolute
            most = leaf.abs().mul_(relative).add_(absolute)
            return lambda value: self.norm((value[0] / most,))
        allowed, some = [*allowances((leaf.abs() for leaf in y), self.rtol, self.atol)], [*map(_some, self.atol)]
        return lambda value: self.at_start(over(value, allowed, some, least=True))

    def at_start(self, ratios: Leaves) -> Tensor:
        """The norm of entries over what is allowed, before the first step."""
        return self.norm(ratios)

    def _norm(self, control: PIDController, layout: Layout, like: Leaves) -> Callable[[Leaves], Tensor]:
        if callable(control.norm):
            of = control.norm
            rows = self.rows
            return lambda leaves: normed(of(layout.unflatten(leaves)), len(leaves[0]) if rows else None)
        if self.rows:
            return {"rms": _rms_rows, "mixed": _mixed_rows, "max": _max_rows}[control.norm]
        if control.norm == "rms" and len(like) == 1:
            (root,) = beside((max(like[0].numel(), 1) ** 0.5,), like)  # of no number it is 0
            return lambda leaves: torch.linalg.vector_norm(leaves[0]) / root
        return NAMED[control.norm]


def normed(value: Any, rows: int | None = None) -> Tensor:
    """What a norm of the user's returned.

    Args:
        value: that.
        rows: of the state, each of which may have its own.

    Raises:
        InputError: neither one real number nor, of rows, one for each.
    """
    try:
        size = value if isinstance(value, Tensor) else torch.as_tensor(value, device="cpu")
    except (TypeError, ValueError, RuntimeError, OverflowError):
        size = None
    of_rows = size is not None and rows is not None and size.shape == (rows,)
    if size is None or size.is_complex() or not (size.numel() == 1 or of_rows):
        allowed = "one real number" if rows is None else f"one real number, or one for each of {rows} rows"
        raise InputError(f"norm returned {shown(value)}", allowed)
    return size if of_rows else size.reshape(())


def within(norm: Callable[[Leaves], Tensor], error: Leaves, y: Leaves, y1: Leaves, rtol: _Each, atol: _Each) -> Tensor:
    """The norm of the error of a step over what is allowed; the arguments are those of a `Tolerance`."""
    with torch.no_grad():
        return norm(scaled(error, _sizes(y, y1), rtol, atol))


def _sizes(y: Leaves, y1: Leaves) -> Iterator[Tensor]:
    return (torch.maximum(a.abs(), b.abs()) for a, b in zip(y, y1, strict=True))


def scaled(value: Leaves, sizes: Iterable[Tensor], rtol: _Each, atol: _Each) -> Leaves:
    """Entries over what is allowed."""
    return over(value, allowances(sizes, rtol, atol), [*map(_some, atol)])


def allowances(sizes: Iterable[Tensor], rtol: _Each, atol: _Each) -> Iterator[Tensor]:
    """What is allowed of the entries of each leaf, by their sizes."""
    for size, relative, absolute in zip(sizes, rtol, atol, strict=True):
        yield absolute + relative * size


def over(value: Leaves, allowances: Iterable[Tensor], some: Sequence[bool], *, least: bool = False) -> Leaves:
    """Entries over what is allowed. Where none is allowed of an entry that is zero, no error is none too many, and with
    `least`, for the first step, such an entry says nothing.

    Args:
        value: the entries.
        allowances: what is allowed of each.
        some: of each leaf whether that is more than zero everywhere.
        least: see above.
    """
    ratios: list[Tensor] = []
    for leaf, allowed, positive in zip(value, allowances, some, strict=True):
        size = leaf.abs()
        scaled = size / allowed
        if not positive:
            scaled.masked_fill_((allowed if least else torch.maximum(allowed, size)) == 0, 0)
        ratios.append(scaled)
    return tuple(ratios)


def _some(absolute: float | Tensor) -> bool:
    """Whether something is allowed of an entry that is zero: of a tensor that is not known."""
    return isinstance(absolute, float) and absolute > LEAST


LEAST = 1e-37
"""Below, a number may be zero in float32."""


def _each(name: str, value: Any, layout: Layout, like: Leaves) -> _Each:
    """The tolerances, one a leaf of the state."""
    if isinstance(value, (int, float)):
        return (float(value),) * len(like)
    tree = layout.unflatten(like)
    leaves = [value] * len(like) if _is_array(value) and value.ndim == 0 else None
    if leaves is None:
        if not tree_same_shape(value, tree):
            raise InputError(
                f"{name} is a tree of {len(tree_leaves(value))} leaves, and the state one of {len(like)}",
                "a number, or a tree like the state",
            )
        leaves = tree_leaves(value)
    bounds: list[float | Tensor] = []
    for bound, leaf in zip(leaves, like, strict=True):
        if isinstance(bound, (int, float)):
            bounds.append(float(bound))
            continue
        if fault := not_dense(bound):
            raise InputError(f"{name} holds a tensor {fault}", "dense tensors of at least 0")
        try:
            tensor = torch.as_tensor(bound, device=leaf.device).detach().to(leaf.real.dtype)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise InputError(f"{name} holds {shown(bound)} ({error})", "numbers of at least 0") from error
        try:
            fits = torch.broadcast_shapes(tensor.shape, leaf.shape) == leaf.shape
        except RuntimeError:
            fits = False
        if not fits or bool((~(tensor >= 0)).any()):
            raise InputError(
                f"{name} holds an array of shape {tuple(tensor.shape)} for a leaf of shape {tuple(leaf.shape)}",
                "numbers of at least 0 that broadcast to the leaf",
            )
        bounds.append(tensor)
    return tuple(bounds)


def _is_array(value: Any) -> bool:
    return isinstance(value, (Tensor, np.ndarray, np.generic))


def _rms(leaves: Leaves) -> Tensor:
    total = sum(leaf.numel() for leaf in leaves)
    if len(leaves) == 1:
        return torch.linalg.vector_norm(leaves[0]) / max(total, 1) ** 0.5  # drop-ins have empty batches
    kind = _widest(leaves)
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(leaf).to(kind) for leaf in leaves])) / (
        total**0.5
    )


def _mixed(leaves: Leaves) -> Tensor:
    kind = _widest(leaves)
    return torch.stack([(torch.linalg.vector_norm(x) / x.numel() ** 0.5).to(kind) for x in leaves]).amax()


def _max(leaves: Leaves) -> Tensor:
    kind = _widest(leaves)
    return torch.stack([leaf.amax().to(kind) for leaf in leaves]).amax()


NAMED = {"rms": _rms, "mixed": _mixed, "max": _max}
"""Norms of a state, by their names."""


def _rms_rows(leaves: Leaves) -> Tensor:
    count = sum(leaf[0].numel() for leaf in leaves)
    kind = _widest(leaves)
    first, *rest = [leaf.flatten(1).to(kind).square().sum(1) for leaf in map(_rows, leaves)]
    return (sum(rest, first) / count).sqrt()


def _mixed_rows(leaves: Leaves) -> Tensor:
    kind = _widest(leaves)
    return torch.stack([leaf.flatten(1).to(kind).square().mean(1).sqrt() for leaf in map(_rows, leaves)]).amax(0)


def _max_rows(leaves: Leaves) -> Tensor:
    kind = _widest(leaves)
    return torch.stack([leaf.flatten(1).to(kind).amax(1) for leaf in map(_rows, leaves)]).amax(0)


def _rows(leaf: Tensor) -> Tensor:
    return leaf if leaf.ndim > 1 else leaf.unsqueeze(1)


def _widest(leaves: Leaves) -> torch.dtype:
    return torch.float64 if any(leaf.dtype == torch.float64 for leaf in leaves) else torch.float32
