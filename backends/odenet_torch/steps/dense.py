"""Dense output: the solution between the ends of steps."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from odenet import GradientError, InputError
from odenet.kit import Tableau, interpolant, shown, weigh
from odenet_torch.field.memory import overwritten, versions
from odenet_torch.field.state import Layout, Leaves
from odenet_torch.steps.weighted_sum import weigh_leaves


def between(tableau: Tableau, position: float, y: Leaves, h: Any, slopes: Sequence[Leaves]) -> Leaves:
    """The state at a position in [0, 1] of a step.

    Args:
        tableau: the method.
        position: where.
        y, h: the state at the start, and the step size.
        slopes: of all stages, and the slope at the end.
    """
    return weigh_leaves(y, h, interpolant(tableau).weights(position), slopes)


class Dense:
    """The solution at any time of a solve: what `Solution.at` evaluates.

    Args:
        tableau: the method.
        layout: of the state.
        t0, y0: where the solve begins.
    """

    def __init__(self, tableau: Tableau, layout: Layout, t0: float, y0: Leaves) -> None:
        self.tableau = tableau
        self.layout = layout
        self.nodes, self.last, self.y0 = [t0], t0, y0
        self.steps: list[tuple[Leaves, list[Leaves], Leaves]] = []
        self.versions: list[int] = []
        self.outputs: Leaves = ()
        self.gradient = ""

    def add(self, t1: float, y: Leaves, slopes: list[Leaves], y1: Leaves, last: float) -> None:
        """One more step, to t1; the solution ends at `last`, if with it."""
        self.nodes.append(t1)
        self.steps.append((y, slopes, y1))
        self.versions.append(versions((*y, *itertools.chain(*slopes), *y1)))
        self.last = last

    def __call__(self, t: Any) -> Any:
        """The tree of the state at times t, whose shape leads that of the leaves.

        Raises:
            InputError: a time outside of the solve.
        """
        times = times_of_any_shape(t)
        moving = times.to(dtype=torch.float64, device=self.layout.device).reshape(-1) if differentiable(times) else None
        states = [
            self._at(float(time), None if moving is None else moving[i])
            for i, time in enumerate(times.detach().reshape(-1).tolist())
        ]
        columns = [torch.stack(column) for column in zip(*states, strict=True)]
        columns = columns or [leaf.new_zeros((0, *leaf.shape)) for leaf in self.y0]
        leaves = [
            self.layout.returned(leaf.reshape((*times.shape, *leaf.shape[1:])), i) for i, leaf in enumerate(columns)
        ]
        if self.outputs and torch.is_grad_enabled():
            leaves = [leaf + _Cut.apply(self.gradient, leaf.detach(), *self.outputs) for leaf in leaves]
        return self.layout.unflatten(leaves)

    def require_graph(self, gradient: str, outputs: Leaves) -> None:
        """Have a gradient of `at` with respect to y0 and weights refused, if the steps were not recorded by autograd.

        Args:
            gradient: the method of the solve.
            outputs: of the solve, which have a gradient if anything has.
        """
        recorded = any(leaf.requires_grad for _, _, y1 in self.steps[-1:] for leaf in y1)
        self.outputs = () if recorded else tuple(leaf for leaf in outputs if leaf.requires_grad)
        self.gradient = gradient

    def _at(self, t: float, moving: Tensor | None) -> Leaves:
        """The state at a time; `moving` is the same as a tensor, where that needs a gradient."""
        nodes, last = self.nodes, self.last
        sign = 1 if last >= nodes[0] else -1
        slack = 1e-6 * abs(last - nodes[0])
        if not sign * nodes[0] - slack <= sign * t <= sign * last + slack:
            raise InputError(f"Solution.at({t})", f"times between {nodes[0]} and {last}")
        if not self.steps:
            return self.y0
        n = bisect.bisect_right([sign * node for node in nodes], sign * t) - 1
        n = max(0, min(n, len(self.steps) - 1))
        y, slopes, y1 = self.steps[n]
        if versions((*y, *itertools.chain(*slopes), *y1)) != self.versions[n]:
            raise overwritten()
        h = nodes[n + 1] - nodes[n]
        position = (t - nodes[n]) / h
        state = y1 if position >= 1 else between(self.tableau, max(position, 0.0), y, h, slopes)
        if moving is None:
            return state
        # the polynomial of the step, less itself where it stands still: zero, with the derivatives by the time
        place = min(max(position, 0.0), 1.0)
        by = (moving - moving.detach()) / h
        rows = [interpolant(self.tableau).weights(p) for p in (by + place, torch.full_like(by, place))]
        at, still = (weigh(None, h, weights, slopes) for weights in rows)
        return tuple(leaf + (a - b).to(leaf.dtype) for leaf, a, b in zip(state, at, still, strict=True))


class _Cut(torch.autograd.Function):
    """Zero, whose derivative is refused."""

    @staticmethod
    def forward(ctx: Any, gradient: str, like: Tensor, *outputs: Tensor) -> Tensor:
        ctx.gradient = gradient
        ctx.set_materialize_grads(False)
        return torch.zeros_like(like)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        raise GradientError(
            f"the gradient of Solution.at by y0 or weights with gradient={ctx.gradient!r}, which keeps no graph of the "
            "steps",
            "gradients of ys; with gradient='backprop' of Solution.at, too",
            "name the times in ts, whose states every method differentiates, or take gradient='backprop'",
        )


def differentiable(value: Tensor) -> bool:
    """Whether autograd is asked for a derivative by this tensor, or (forward mode) of it."""
    if torch.is_grad_enabled() and value.requires_grad:
        return True
    return torch.autograd.forward_ad._current_level >= 0 and (
        torch.autograd.forward_ad.unpack_dual(value).tangent is not None
    )


def times_of_any_shape(t: Any) -> Tensor:
    """Times as a tensor of floats.

    Raises:
        InputError: what is no number, or numbers in no rectangle.
    """
    try:
        times = torch.as_tensor(t)
        if times.dtype == torch.bool:
            raise TypeError(t)
        times = times if times.is_floating_point() or times.is_complex() else torch.as_tensor(t, dtype=torch.float64)
        finite = bool(torch.isfinite(times).all())
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputError(f"the solution at t={shown(t)}", "a number, or an array of them") from error
    if not finite or times.is_complex():
        raise InputError(f"the solution at t={shown(t)}", "finite real numbers")
    return times
