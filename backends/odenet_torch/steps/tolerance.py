"""How large the error of a step is, beside what is allowed: `|error| / (atol + rtol max(|y|, |y'|))`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from odenet import InputError, PIDController
from odenet.kit import shown, tree_leaves, tree_same_shape
from odenet_torch.field.state import Layout, Leaves

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
        self.rows = control.per_sample
        self.norm = self._norm(control, layout)
        self.named = None if callable(control.norm) else control.norm
        self.plain = control.norm == "rms" and len(like) == 1 and not self.rows and not like[0].is_complex()

    def ratio(self, error: Leaves, y: Leaves, y1: Leaves) -> Tensor:
        """The norm of the error over what is allowed: a scalar, or one number a row.

        Args:
            error: of the step.
            y, y1: the states at both ends of the step.
        """
        return within(self.norm, error, y, y1, self.rtol, self.atol)

    def size(self, value: Leaves, y: Leaves) -> Tensor:
        """The norm of a value over what is allowed at y."""
        with torch.no_grad():
            return self.sizes(y)(value)

    def sizes(self, y: Leaves) -> Callable[[Leaves], Tensor]:
        """The norm over what is allowed at y, of any value; made and asked where nothing is recorded."""
        if self.plain and isinstance(positive := self.atol[0], float) and positive:
            # the same numbers in fewer operations, for the norm of one leaf
            (leaf,), (relative,) = y, self.rtol
            most = leaf.abs().mul_(relative).add_(positive)
            return lambda value: self.norm((value[0] / most,))
        allowed = [*_allowances((leaf.abs() for leaf in y), self.rtol, self.atol)]
        return lambda value: self.at_start(_over(value, allowed, self.atol, least=True))

    def at_start(self, ratios: Leaves) -> Tensor:
        """The norm of entries over what is allowed, before the first step."""
        return self.norm(ratios)

    def _norm(self, control: PIDController, layout: Layout) -> Callable[[Leaves], Tensor]:
        if callable(control.norm):
            of = control.norm
            rows = self.rows
            return lambda leaves: normed(of(layout.unflatten(leaves)), len(leaves[0]) if rows else None)
        if self.rows:
            return {"rms": _rms_rows, "mixed": _mixed_rows, "max": _max_rows}[control.norm]
        return {"rms": _rms, "mixed": _mixed, "max": _max}[control.norm]


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
        sizes = (torch.maximum(a.abs(), b.abs()) for a, b in zip(y, y1, strict=True))
        return norm(scaled(error, sizes, rtol, atol))


def scaled(value: Leaves, sizes: Iterable[Tensor], rtol: _Each, atol: _Each, *, least: bool = False) -> Leaves:
    """Entries over what is allowed. With atol=0 none is allowed of an entry that is zero: no error is none too many,
    and with `least`, for the first step, such an entry says nothing."""
    return _over(value, _allowances(sizes, rtol, atol), atol, least=least)


def _allowances(sizes: Iterable[Tensor], rtol: _Each, atol: _Each) -> Iterator[Tensor]:
    """What is allowed of the entries of each leaf, by their sizes."""
    for size, relative, absolute in zip(sizes, rtol, atol, strict=True):
        yield absolute + relative * size


def _over(value: Leaves, allowances: Iterable[Tensor], atol: _Each, *, least: bool = False) -> Leaves:
    """See `scaled`."""
    ratios: list[Tensor] = []
    for leaf, allowed, absolute in zip(value, allowances, atol, strict=True):
        scaled = leaf.abs() / allowed
        if not (isinstance(absolute, float) and absolute > 0):
            scaled = torch.where((allowed == 0) & (least | (leaf == 0)), 0, scaled)
        ratios.append(scaled)
    return tuple(ratios)


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
        try:
            tensor = torch.as_tensor(bound, device=leaf.device).detach().to(leaf.real.dtype)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise InputError(f"{name} holds {shown(bound)} ({error})", "numbers of at least 0") from error
        if tensor.layout is not torch.strided:
            raise InputError(f"{name} holds a tensor of layout {tensor.layout}", "dense tensors of at least 0")
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
