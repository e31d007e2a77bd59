"""How far the continuous adjoint is off: what it adds over a step, beside the exact VJP of that step.

The first step is compared, where the state that is integrated back has drifted furthest, and of the others the one that
moves the state furthest.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from odenet import ContinuousAdjoint
from odenet.kit import DRIFT, SHARE, SMALL, add, least_change, subtract
from odenet.kit import Leaves as AnyLeaves
from odenet_torch.field.state import Leaves
from odenet_torch.gradients.adjoint import mark, read, standing, vjp
from odenet_torch.gradients.certificate import SMALL_STATE, Sketch
from odenet_torch.gradients.sums import Parts, Sums
from odenet_torch.steps.fixed import Run

Added = tuple[AnyLeaves, Parts]
"""What steps add to the costate, and to the gradients of weights."""


class ComparedSteps:
    """The comparison over a segment: the steps between two neighbouring times that both the forward and the backward
    grid have.

    It stands for `Sums` while the backward pass goes back over these, and sees what is added.

    Args:
        run: the forward solve.
        method: the continuous adjoint.
        sums: of the backward pass.
        a: the costate at the end of these steps.
        segment: which; 0 is that at t0.
    """

    def __init__(self, run: Run, method: ContinuousAdjoint, sums: Sums, a: AnyLeaves, segment: int = 0) -> None:
        self.run, self.sums, self.a = run, sums, a
        self.steps, _ = method.segment(run.grid.steps)
        self.first = segment * self.steps
        self.change: AnyLeaves | None = None
        self.by_weights: Parts = {}

    def add(self, tensors: Sequence[Tensor], gradients: Sequence[Tensor | None], factor: float = 1.0) -> None:
        """See `Sums.add`."""
        self.sums.add(tensors, gradients, factor)
        self.sums.collect(self.by_weights, tensors, gradients, factor)

    def changed(self, change: AnyLeaves) -> None:
        """The costate has changed by so much, in a backward step."""
        self.change = change if self.change is None else add(self.change, change)

    def certificate(self, y: Leaves) -> Tensor:
        """The relative error of the gradient over these steps, a scalar on the device.

        Args:
            y: the state at their start, as far as the backward pass knows it.
        """
        run, states, g = self.run, [y], self.a
        steps = range(self.first, self.first + self.steps)
        for n in steps[:-1]:
            states.append(run.after(n, states[-1]))
        by_weights: Parts = {}
        exact: AnyLeaves | None = None
        for n in reversed(steps):
            since = mark(run)
            at, explicit, stand = standing(run, n, states.pop())
            with torch.enable_grad():
                d = run.increment(n, at, stand=stand)
            part, tensors, gradients = vjp(read(run, n), n, d, at, explicit, stand, g, since)
            self.sums.collect(by_weights, tensors, gradients)
            g, exact = add(g, part), part if exact is None else add(exact, part)
        assert exact is not None
        assert self.change is not None
        added = self.change, self.by_weights
        return error(self.a, (exact, by_weights), added, self.steps, run.grid.steps, run.layout.device)

    def drift(self, start: Sketch, y: Leaves, end: Leaves) -> Tensor:
        """What the drift of the state says of the gradient, a scalar.

        From a state that has drifted, the first step has another gradient, which the comparison there does not see.

        Args:
            start: of the state at t0.
            y: the same, integrated back.
            end: the state at t1.
        """
        exact, rebuilt, last = ([rows for rows, _ in sketch.rows] for sketch in (start, Sketch(y), Sketch(end)))
        size = functools.partial(magnitude, device=self.run.layout.device)
        off = size([one - other for one, other in zip(rebuilt, exact, strict=True)])
        share = DRIFT * _ratio(off, size(exact), SMALL * size(last))
        return torch.where(size(self.a) == 0, 0.0, share)  # a gradient of zero is right, whatever was rebuilt


def error(a: AnyLeaves, exact: Added, added: Added, steps: int, of: int, device: torch.device) -> Tensor:
    """The relative error of what a backward pass adds over some steps, a scalar.

    Args:
        a: the costate at their end.
        exact: what the VJPs of the forward steps add.
        added: what the backward pass added.
        steps: their number.
        of: the number of all steps.
        device: of the result.
    """
    (exact_change, by_weights), (change, added_by_weights) = exact, added
    size = functools.partial(magnitude, device=device)
    eps = max([torch.finfo(leaf.dtype).eps for leaf in a], default=0.0)
    least = least_change(eps, steps, of) * size(a)
    of_state = _ratio(size(subtract(exact_change, change)), size(exact_change), least)
    off = [difference(by_weights.get(key), added_by_weights.get(key)) for key in by_weights | added_by_weights]
    least = SHARE * size(added_by_weights.values())
    return torch.maximum(of_state, _ratio(size(off), size(by_weights.values()), least))


def magnitude(leaves: Iterable[Tensor], device: torch.device) -> Tensor:
    """The norm of all leaves together, in float64 where that is: squares of small numbers vanish in float32."""
    kind = torch.float32 if device.type == "mps" else torch.float64
    norms = [torch.linalg.vector_norm(_numbers(leaf), dtype=kind).to(device) for leaf in leaves]
    if len(norms) == 1:  # the most
        return norms[0]
    return torch.linalg.vector_norm(torch.stack(norms or [torch.zeros((), dtype=kind, device=device)]))


def _numbers(leaf: Tensor) -> Tensor:
    """The real numbers that it consists of."""
    leaf = leaf.coalesce().values() if leaf.is_sparse else leaf
    return torch.view_as_real(leaf.resolve_conj()) if leaf.is_complex() else leaf


class LargestMove:
    """The step of a forward pass that moves the state furthest, beside its size.

    Blocks of their own, and fields that depend on time, may do most of their work in one step, of which the first ones
    tell nothing.

    Args:
        run: the forward solve.
        y: the state at t0.
        first: the first step that counts.
    """

    def __init__(self, run: Run, y: Leaves, first: int) -> None:
        self.steps, self.states, self.first = run.grid.steps, [y] * (first == 0), first
        self.together = _TOGETHER if sum(leaf.numel() for leaf in y) <= SMALL_STATE else 1
        self.largest = torch.tensor([0.0, first], dtype=run.layout.time, device=run.layout.device)
        """How far, and the step."""

    def add(self, n: int, y: Leaves) -> None:
        """Step n led to state y."""
        if n < self.first - 1:
            return
        self.states.append(y)
        last, count = n == self.steps - 1, len(self.states) - 1
        if (last or count == self.together) and count:
            of_leaves = [self._moves(column) for column in zip(*self.states, strict=True) if column[0].numel()]
            of_leaves = of_leaves or [self.largest.new_zeros(count)]
            moves = functools.reduce(torch.maximum, of_leaves)
            value, index = torch.cat([self.largest[:1], moves]).max(0)
            place = torch.where(index == 0, self.largest[1], n - count + index)
            self.largest = torch.stack([value, place.to(value.dtype)])
            self.states = [] if last else [y]

    def _moves(self, leaves: Sequence[Tensor]) -> Tensor:
        """How far each goes from the one before it, beside its size. What is nowhere has not moved."""
        if len(leaves) == 2:
            norm = torch.linalg.vector_norm
            off, sizes = norm(leaves[1] - leaves[0]).reshape(1), norm(leaves[1]).reshape(1)
        else:
            rows = torch.stack([*leaves]).reshape(len(leaves), -1)
            off, sizes = (torch.linalg.vector_norm(part, dim=-1) for part in (rows.diff(dim=0), rows[1:]))
        return (off / sizes.clamp_min(torch.finfo(sizes.dtype).tiny)).to(self.largest.dtype)

    def step(self) -> set[int]:
        """The step; none where no number may be read by the host."""
        pair = self.largest
        if type(pair) is not Tensor or pair.is_meta or (pair.is_cuda and torch.cuda.is_current_stream_capturing()):
            return set()
        return {int(pair.tolist()[1])}


def kinds(run: Run) -> int:
    """How many steps there are from the first one to the next with weights of the same shapes, `_MOST` at most.

    The attention of a transformer's first layer tells little about its perceptron: each is a step of its own.
    """
    steps = run.grid.steps

    def shapes(n: int) -> list[torch.Size]:
        return [tensor.shape for tensor in (*run.field.explicit(n, steps), *run.field.read(n, steps))]

    return next((n for n in range(1, min(steps, _MOST)) if shapes(n) == shapes(0)), min(steps, _MOST))


_MOST = 4
"""Steps of several kinds that are compared."""
_TOGETHER = 4
"""Steps that are looked through at once, of states that are small: one at a time takes longer, and more take memory."""


def difference(one: Tensor | None, other: Tensor | None) -> Tensor:
    if one is not None and other is not None and one.layout is not other.layout:  # of an embedding, one may be sparse
        one, other = one.to_dense(), other.to_dense()
    difference = one if other is None else -other if one is None else one - other
    assert difference is not None
    return difference


def _ratio(off: Tensor, size: Tensor, least: Tensor) -> Tensor:
    """How large an error is beside what it is of, or beside the least that counts."""
    return off / torch.maximum(size, least).clamp_min(torch.finfo(off.dtype).tiny)
