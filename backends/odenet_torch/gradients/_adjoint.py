"""What both adjoints share: a forward pass that keeps one state, and a backward pass that goes back step by step."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from odenet import GradientError, Stats, UnsupportedError
from odenet._step import Leaves as AnyLeaves
from odenet_torch._field import Field, Stand, now, outside, unique
from odenet_torch._fixed import Run, loop, stacked
from odenet_torch._state import Leaves


class Sums:
    """Gradients of weights as they add up; those of a stack's rows in place, so that there is no second copy."""

    def __init__(self, field: Field) -> None:
        self.field = field
        self.by_tensor: dict[int, Tensor] = {}

    def add(self, tensors: Sequence[Tensor], gradients: Sequence[Tensor | None], factor: float = 1.0) -> None:
        """Add `factor` times each gradient that is there; None is zero."""
        for tensor, gradient in zip(tensors, gradients, strict=True):
            if gradient is None:
                continue
            home, row = self.field.home(tensor)
            before = self.by_tensor.get(id(home))
            if row is None:
                part = gradient if factor == 1 else factor * gradient
                self.by_tensor[id(home)] = part if before is None else before + part
            else:
                stack = torch.zeros_like(home) if before is None else before
                stack[row].add_(gradient, alpha=factor)
                self.by_tensor[id(home)] = stack


class Adjoint(ABC):
    """A way back from the last state."""

    def __init__(self, stats: Stats) -> None:
        self.stats = stats

    @abstractmethod
    def back(self, run: Run, kept: list[Leaves], last: Leaves, gradients: list[AnyLeaves], sums: Sums) -> Leaves:
        """Gradient with respect to y0; those of weights go to `sums`.

        Args:
            run: the forward solve.
            kept: the states at `grid.kept`, known exactly.
            last: the state at t1.
            gradients: of the loss with respect to `kept`.
            sums: for gradients of explicit and captured tensors.
        """

    def solve(self, run: Run, y0: Leaves) -> Leaves:
        """The leaves at the kept times, with this way back."""
        if not torch.is_grad_enabled():
            return stacked(run, loop(run, y0)[0])
        run = dataclasses.replace(run, field=run.field.apart())
        first = self._discover(run, y0)
        weights = run.field.everything(run.grid.steps)
        return _Solve.apply(run, self, len(y0), first, *y0, *weights)

    @staticmethod
    def _discover(run: Run, y0: Leaves) -> Leaves:
        """Step 0 with its graph: what it ends at, beside the weights handed over, are the tensors that f captured."""
        since = now()
        y, _, stand = standing(run, 0, y0)
        with torch.enable_grad():
            first = run.increment(0, y, stand=stand)
        known = (*y, *stand.values(), *run.field.read(0, run.grid.steps))
        run.field.captured = unique((*run.field.captured, *outside(first, known, since)))
        return tuple(d.detach() for d in first)


def standing(run: Run, n: int, y: Leaves) -> tuple[Leaves, tuple[Tensor, ...], dict[int, Tensor]]:
    """Fresh leaves for the state, the explicit weights of step n, and fresh leaves that stand in for these."""
    explicit = run.field.explicit(n, run.grid.steps)
    stand = {id(weight): weight.detach().requires_grad_() for weight in explicit}
    return tuple(leaf.detach().requires_grad_() for leaf in y), explicit, stand


def vjp(
    run: Run,
    n: int,
    outputs: Leaves,
    y: Leaves,
    explicit: tuple[Tensor, ...],
    stand: Stand,
    cotangent: AnyLeaves,
    since: int,
) -> tuple[Leaves, Sequence[Tensor], Sequence[Tensor | None]]:
    """The one VJP of a piece of step n.

    Returns:
        The part of y, the tensors that have a gradient, and these gradients.

    Raises:
        GradientError: f reads a tensor here that it did not read in step 0.
    """
    captured = run.field.read(n, run.grid.steps)
    fresh = tuple(stand.values())
    pairs = [(d, g) for d, g in zip(outputs, cotangent, strict=True) if d.requires_grad]
    if not pairs:  # f depends on nothing that has a gradient
        return tuple(torch.zeros_like(leaf) for leaf in y), (), ()
    if unknown := outside([d for d, _ in pairs], (*y, *fresh, *captured), since):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in unknown)
        raise GradientError(
            f"in step {n} the field reads tensors (of shape {shapes}) that need a gradient and were not read in step 0",
            "fields that read the same closed-over tensors at every step",
            "pass them as weights, make the field an nn.Module, or take gradient='backprop'",
        )
    found = torch.autograd.grad(
        [d for d, _ in pairs], [*y, *fresh, *captured], [g for _, g in pairs], allow_unused=True
    )
    part = tuple(torch.zeros_like(leaf) if g is None else g for leaf, g in zip(y, found[: len(y)], strict=True))
    return part, (*explicit, *captured), found[len(y) :]


class _Solve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: Run, adjoint: Adjoint, count: int, first: Leaves, *tensors: Tensor) -> Leaves:
        states, last = loop(run, tensors[:count], first)
        ctx.run, ctx.adjoint, ctx.count = run, adjoint, count
        ctx.states = len(states)
        ctx.weights = tuple(id(tensor) for tensor in tensors[count:])  # the field keeps the tensors alive
        # the last state is saved apart only where it is not among the kept ones
        ctx.ends = run.grid.kept[-1] == run.grid.steps
        flat = [leaf for state in states for leaf in state]
        ctx.save_for_backward(*flat, *(() if ctx.ends else last), *tensors[count:])
        return stacked(run, states)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise UnsupportedError(
                f"a second derivative through gradient={ctx.adjoint.stats.gradient!r}",
                "first derivatives (create_graph=False)",
                "take gradient='backprop', which can be differentiated again",
            )
        run: Run = ctx.run
        flat, count = ctx.saved_tensors, ctx.count
        states = [tuple(flat[i * count : (i + 1) * count]) for i in range(ctx.states)]
        last = states[-1] if ctx.ends else tuple(flat[ctx.states * count : (ctx.states + 1) * count])
        carried = [g.to(kind) for g, kind in zip(gradients, run.layout.carried, strict=True)]
        sums = Sums(run.field)
        g = ctx.adjoint.back(run, states, last, list(zip(*carried, strict=True)), sums)
        wanted = zip(ctx.weights, ctx.needs_input_grad[4 + count :], strict=True)
        return (None, None, None, None, *g, *(sums.by_tensor.get(key) if want else None for key, want in wanted))
