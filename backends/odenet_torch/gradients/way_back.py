"""How far the continuous adjoint of an adaptive solve is off, by what is known of the states on its way back.

Tolerances bound the error of each backward step, and not how that of the state grows on the way back: where the field
contracts, it grows by what the solution has shrunk. What that means for the gradient is the field's to say: the
derivatives of a linear field are the same at any state. So where a state is known, at t0 and at the times that were
kept, `a^T df/dy` and `a^T df/dw` there are compared with those at what was integrated back in its place. What has
drifted far has another way, too, on which it may meet no kink that the solution met, and at whose end units are as
saturated: `a^T df/dy` is then compared with that half way to the state at t1 as well.

What the steps themselves leave of the costate is added up along the way (`odenet.kit.CostateError`).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from odenet.kit import ALL_OF, FAR, FURTHER, CostateError, CostateStep, LocalError, lasting, subtract, tree_leaves
from odenet.kit import Leaves as AnyLeaves
from odenet_torch.gradients.compared_steps import difference, magnitude
from odenet_torch.gradients.sums import Parts

Derivatives = tuple[AnyLeaves, Parts]
"""`a^T df/dy`, and `a^T df/dw` by the place of each weight."""


class WayBack:
    """What one backward pass comes to know of its error.

    Args:
        rtol: relative tolerance of the backward pass, the least of a state.
        device: of the state.
        method: of its steps; None for one without an estimate of their error.
        by_y0: whether the gradient of y0 is asked for.
    """

    def __init__(self, rtol: float, device: torch.device, method: LocalError | None, by_y0: bool = True) -> None:
        self.rtol, self.device, self.method, self.by_y0 = rtol, device, method, by_y0
        self.off_by_state, self.off_by_weights = (torch.zeros((), device=device) for _ in range(2))
        """Of the costate, relatively; and of the gradient of weights, which a later loss has a smaller part in."""
        self.last: tuple[float, Tensor, Tensor] | None = None
        """Of the state that was compared last: how far it was off, and what that said."""
        self.largest, self.count = 0.0, 0
        self.lengths: list[float] = []
        self.sizes: list[Tensor] = []
        """Of the costate at the ends of each step, of its slopes there, and of its error, as in a `CostateStep`."""
        self.end: tuple[AnyLeaves, AnyLeaves, Tensor, Tensor] | None = None
        """The costate and its slope where the last step ended, and their sizes."""

    def step(
        self, h: float, error: AnyLeaves, before: AnyLeaves, after: AnyLeaves, first: AnyLeaves, last: AnyLeaves
    ) -> None:
        """A step back is taken.

        Args:
            h: its size.
            error: the estimate of its error in the costate.
            before, after: the costate.
            first, last: slopes of the costate, of the first and the last stage.
        """
        (one, slope), known = (before, first), self.end
        size = known[2] if known and _same(known[0], one) else self._size(one)
        size_of_slope = known[3] if known and _same(known[1], slope) else self._size(slope)
        ends = self._size(after), self._size(last)
        self.end = after, last, *ends
        self.lengths.append(abs(h))
        self.sizes += [size, ends[0], size_of_slope, ends[1], self._size(error)]

    def by_steps(self) -> CostateError:
        """What the steps are off by; one host read."""
        total = CostateError()
        if self.method is not None and self.lengths:
            for h, sizes in zip(self.lengths, torch.stack(self.sizes).view(-1, 5).tolist(), strict=True):
                total = total.then(CostateStep(h, *sizes), self.method)
        return total

    def arrived(
        self,
        known: AnyLeaves,
        y: AnyLeaves,
        end: AnyLeaves,
        a: AnyLeaves,
        span: float,
        derivatives: Callable[[AnyLeaves, bool], Derivatives],
        *,
        last: bool,
    ) -> None:
        """A time is reached at which the state is known.

        Args:
            known: the state.
            y: the same, integrated back.
            end: the state at t1.
            a: the costate there, without what the loss reads there.
            span: the time since the state was set to a known one.
            derivatives: of the field at a state, with this costate; whether it is the one that was integrated back.
            last: whether this is t0.
        """
        norms = torch.stack([self._size(subtract(y, known)), self._size(known)]).tolist()  # one host read a known state
        drift = norms[0] / max(norms[1], sys.float_info.min)
        if drift == 0:
            return
        if self.last is not None and not last and self.count >= ALL_OF and drift <= FURTHER * self.largest:
            before, by_state, by_weights = self.last
            self._add(drift / before * by_state, drift / before * by_weights)  # as sensitive as there
            return
        self.largest, self.count = max(self.largest, drift), self.count + 1
        (rebuilt, parts), (exact, exact_parts) = derivatives(y, True), derivatives(known, False)
        finest = max(torch.finfo(leaf.dtype).eps for leaf in known)
        time = span * lasting(drift, max(self.rtol, finest), math.log)
        off_by = self._size(subtract(rebuilt, exact))
        if drift > FAR:
            half, _ = derivatives(tuple((one + other) / 2 for one, other in zip(known, end, strict=True)), False)
            off_by = torch.maximum(off_by, min(drift, 1.0) * self._size(subtract(half, exact)))
        by_state = time * share_of(off_by, self._size(a))
        off = [difference(parts.get(key), exact_parts.get(key)) for key in parts | exact_parts]
        by_weights = time * self._size(off)
        self.last = drift, by_state, by_weights
        self._add(by_state, by_weights)

    def _add(self, by_state: Tensor, by_weights: Tensor) -> None:
        self.off_by_state, self.off_by_weights = self.off_by_state + by_state, self.off_by_weights + by_weights

    def certificate(self, weights: Iterable[Tensor]) -> Tensor:
        """The relative error of the gradient, a scalar.

        Args:
            weights: their gradients.
        """
        by_weights, by_steps = share_of(self.off_by_weights, self._size(weights)), self.by_steps()
        by_weights = by_weights.clamp(min=by_steps.of_weights())
        return torch.maximum(by_weights, self.off_by_state.clamp(min=by_steps.off)) if self.by_y0 else by_weights

    def _size(self, leaves: Iterable[Tensor]) -> Tensor:
        return magnitude(leaves, self.device)


def _same(some: AnyLeaves, others: AnyLeaves) -> bool:
    return all(one is other for one, other in zip(some, others, strict=True))


def share_of(off: Tensor, of: Tensor) -> Tensor:
    """How large an error is beside what it is of; none is none, of whatever it is."""
    return torch.where(off == 0, 0.0, off / of)


def root_mean_square(leaves: Sequence[Tensor], device: torch.device) -> Tensor:
    """Of all entries together, a scalar."""
    return magnitude(leaves, device) / max(sum(leaf.numel() for leaf in leaves), 1) ** 0.5


def least(tolerance: Any) -> float:
    """The least number of a tree of tolerances."""
    return min((float(torch.as_tensor(bound, device="cpu").min()) for bound in tree_leaves(tolerance)), default=0.0)
