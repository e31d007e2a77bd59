"""What keeps the rows of a batch apart in a backward pass: a gate around each call of the field."""

from __future__ import annotations

import collections
import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from odenet_torch.field.differentiating import transformed
from odenet_torch.field.state import Leaves
from odenet_torch.steps.rows import beside


class Gate:
    """A call of the field between an entrance and an exit: a row of whose slope the loss reads nothing has no gradient.

    A derivative that is infinite (that of a root at zero) would make NaN of its zeros. A state of one tensor has hooks
    in the place of the two: they cost about half, and what is finite on the host is left as it is.
    """

    read: Tensor | None = None
    """The rows that the loss reads."""
    late: Tensor | None = None
    """The slope's gradient, from which they are found where that is necessary."""
    hooked = False

    def enter(self, *leaves: Tensor, alone: bool = False) -> Leaves:
        """The state that the field is called with.

        Args:
            leaves: of the state.
            alone: whether nobody else reads them, so that no view need be made.
        """
        if transformed() or len(leaves) != 1:
            return (_Enter if transformed() else _EnterPlain).apply(self, *leaves)
        self.hooked = True
        if alone:
            _hook(leaves[0], self._enter)
            return leaves
        return _hooked(leaves[0], self._enter)

    def leave(self, *leaves: Tensor) -> Leaves:
        """The slope of the rows as it leaves the gate."""
        if not self.hooked:
            return (_Leave if transformed() else _LeavePlain).apply(self, *leaves)
        return _hooked(leaves[0], self._leave)

    def _leave(self, g: Tensor | None) -> None:
        if g is None:  # of what no loss reads
            self.read = self.late = None
            return
        # a second derivative comes to the entrance without the exit, and reads what the first one left
        if g.device.type == "cpu" and not (g.is_complex() or torch.is_grad_enabled() or transformed()):
            self.late = g
        else:
            self.read, self.late = _rows_read(g), None

    def _enter(self, g: Tensor | None) -> Tensor | None:
        late, self.late = self.late, None
        if g is None:
            return None
        if late is not None:
            if _finite(g):
                return None
            self.read = _rows_read(late)
        return None if self.read is None else _without_nan(g, self.read)


def _finite(g: Tensor) -> bool:
    """Whether a gradient is known to be finite; a batch of gradients is not read."""
    try:
        return math.isfinite(g.sum().item())
    except RuntimeError:
        return False


def _hooked(leaf: Tensor, hook: Callable[[Tensor], Tensor | None]) -> Leaves:
    """A view of the leaf, whose gradient the hook is told: the leaf itself may be a parameter, or used again."""
    view = leaf.view_as(leaf)
    if view.requires_grad:
        _hook(view, hook)
    return (view,)


def _hook(leaf: Tensor, hook: Callable[[Tensor], Tensor | None]) -> None:
    """`leaf.register_hook(hook)` without a handle to remove it by, which takes most of its time."""
    node = leaf.grad_fn
    if node is None or type(leaf) is not Tensor or leaf._backward_hooks is not None:
        leaf.register_hook(hook)
        return
    leaf._backward_hooks = hooks = collections.OrderedDict[int, Any]()
    node._register_hook_dict(leaf)  # pyright: ignore[reportAttributeAccessIssue]
    hooks[-1] = hook  # the numbers of handles begin at zero


class _Passing(torch.autograd.Function):
    """Leaves as they are, in the form that transforms of torch.func take."""

    @staticmethod
    def forward(gate: Gate, *leaves: Tensor) -> Leaves:
        return tuple([leaf.view_as(leaf) for leaf in leaves])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.gate = inputs[0]
        ctx.set_materialize_grads(False)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Any:
        """Forward differentiation, in which a row that is not selected is nowhere multiplied by anything."""
        return tuple([tangent if tangent is None else tangent.view_as(tangent) for tangent in tangents[1:]])


class _PassingPlain(torch.autograd.Function):
    """The same where there is no transform: torch reads the other form's signature in every call, a third of a step."""

    @staticmethod
    def forward(ctx: Any, gate: Gate, *leaves: Tensor) -> Leaves:
        ctx.gate = gate
        ctx.set_materialize_grads(False)
        return tuple([leaf.view_as(leaf) for leaf in leaves])


def _entered(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    read = ctx.gate.read
    return None, *(g if g is None or read is None else _without_nan(g, read) for g in gradients)


def _left(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    read = [_rows_read(g) for g in gradients if g is not None]
    ctx.gate.read = functools.reduce(torch.logical_or, read) if read else None
    return None, *gradients


def _rows_read(g: Tensor) -> Tensor:
    """The rows of a slope that have a gradient; NaN is one."""
    return g.reshape(len(g), math.prod(g.shape[1:])).any(1)  # torch.autograd.grad of batched vectors knows no flatten


class _Enter(_Passing):
    backward = staticmethod(_entered)


class _EnterPlain(_PassingPlain):
    backward = staticmethod(_entered)


class _Leave(_Passing):
    backward = staticmethod(_left)


class _LeavePlain(_PassingPlain):
    backward = staticmethod(_left)


def _without_nan(g: Tensor, read: Tensor) -> Tensor:
    """A gradient, zero for rows that are not read where it is not finite.

    What is finite is right: in a second derivative, gradients come here that did not pass the exit.
    """
    plain = g.masked_fill(~torch.isfinite(g), 0) if g.is_complex() else g.nan_to_num(0.0, 0.0, 0.0)
    return torch.where(beside(read, g), g, plain)
