"""The backward pass in stages: autograd takes the gradients of some layers before those of the layers below are made.

One node of autograd's returns all its gradients at once: those of all layers would be held until the last is there, and
where gradients are accumulated they are a second copy of all weights. So a pass over weights of several megabytes is a
chain of nodes, and each goes back over some steps. What runs on from node to node is a `BackwardSweep`.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from odenet_torch.field import saved_tensors
from odenet_torch.field.raised import as_raised
from odenet_torch.field.state import Leaves
from odenet_torch.field.storages import nbytes
from odenet_torch.gradients.sums import Sums

LEAST = 1 << 20
"""Bytes of weights in a stage: for fewer a node of their own would not pay."""
Weights = tuple[Tensor, ...]
Steps = Generator[int, None, Leaves]
"""A backward pass: the steps that it has gone back, with the gradient by y0 as its value."""
Way = Steps | Leaves
"""The same, or the gradient all at once."""


@dataclass(frozen=True)
class Stage:
    """Some steps of a backward pass.

    Args:
        first: the lowest of them.
        weights: whose gradients are complete when it has been gone back.
    """

    first: int
    weights: Weights


def stages(
    back: Callable[..., Any] | None, steps: int, read: Callable[[int], Iterable[Tensor]], every: Weights
) -> list[Stage]:
    """Those of a backward pass, the first to run first.

    Args:
        back: the backward pass; one that is no generator, or None, is one stage.
        steps: how many.
        read: the tensors that a step reads and that a gradient goes to.
        every: all of these, once each.
    """
    one_stage = [Stage(0, every)]
    if sum(nbytes(weight) for weight in every) < 2 * LEAST or not inspect.isgeneratorfunction(back):
        return one_stage
    lowest = {id(weight): n for n in reversed(range(steps)) for weight in read(n)}
    if len(lowest) < len(every):
        return one_stage
    by_step: dict[int, list[Tensor]] = {}
    for weight in every:
        by_step.setdefault(lowest[id(weight)], []).append(weight)
    result, group = [], []
    for n in reversed(range(steps)):
        group += by_step.get(n, ())
        if n == 0 or sum(nbytes(weight) for weight in group) >= LEAST:
            result.append(Stage(n, tuple(group)))
            group = []
    return result


class BackwardSweep:
    """One backward pass, as far as it has come.

    Args:
        steps: begins it.
        sums: where it adds up the gradients of weights.
        surrounded: what has to be entered where steps above one, down to another, are gone back.
        last: the number of steps.
    """

    def __init__(
        self,
        steps: Callable[[], Way],
        sums: Sums,
        surrounded: Callable[[int, int], contextlib.AbstractContextManager[Any]],
        last: int,
    ) -> None:
        self.begin, self.sums, self.surrounded, self.last = steps, sums, surrounded, last
        self.way: Way | None = None

    def gradient(self, weight: tuple[int, torch.dtype]) -> Tensor | None:
        """The gradient of a weight, by its `id` and number type."""
        return self.sums.gradient(*weight)

    def reach(self, first: int) -> Leaves | None:
        """Goes on until step `first` is behind it; the gradient by y0 if that is the start."""
        with self.surrounded(first, self.last):
            self.last = first
            self.way = self.begin() if self.way is None else self.way
            return advance(self.way, first)


def advance(way: Way, first: int = 0) -> Leaves | None:
    """Goes a way until step `first` is behind it; the gradient by y0 if that is the start."""
    if not isinstance(way, Generator):
        return way
    while True:
        try:
            n = next(way)
        except StopIteration as end:
            return end.value
        if first and n <= first:
            return None


@dataclass(frozen=True)
class RecordedSweep:
    """A backward pass that was recorded by autograd, and gone all at once.

    Args:
        y0: the gradient by the state at the start.
        weights: those by weights, by `id`.
    """

    y0: tuple[Tensor | None, ...]
    weights: dict[int, Tensor | None]

    def gradient(self, weight: tuple[int, torch.dtype]) -> Tensor | None:
        """The gradient of a weight, by its `id`."""
        return self.weights[weight[0]]

    def reach(self, first: int) -> tuple[Tensor | None, ...] | None:
        """The gradient by y0, if that is where to go: it is known from the start."""
        return None if first else self.y0


@dataclass
class StageChain:
    """The chain of nodes of one forward pass.

    Args:
        y0: the state at its start.
        every: the weights of all stages.
        top: the first step of the uppermost stage.
        ways: the backward passes that are under way, by graph task.
    """

    y0: Leaves
    every: Weights
    top: int
    ways: dict[int, BackwardSweep | RecordedSweep] = field(default_factory=dict)

    def begin(self, way: BackwardSweep | RecordedSweep) -> None:
        """A backward pass goes this way, until it ends."""
        task = torch._C._current_graph_task_id()
        self.ways[task] = way

        def ended() -> None:
            self.ways.pop(task, None)

        torch.autograd.Variable._execution_engine.queue_callback(ended)

    @property
    def way(self) -> BackwardSweep | RecordedSweep:
        """The sweep of the running backward pass."""
        return self.ways[torch._C._current_graph_task_id()]


def chain(course: StageChain, lower: list[Stage]) -> Tensor:
    """The nodes of the lower stages, and what the node above them is to be given."""
    bottom = torch.zeros((), device=course.y0[0].device, requires_grad=True)  # gone back to even if all is frozen
    link = (*course.y0, bottom)
    for stage in reversed(lower):
        link = (_Stage.apply(course, stage.first, len(link), *link, *stage.weights),)
    return link[0]


class _Stage(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, course: StageChain, first: int, count: int, *tensors: Tensor) -> Tensor:
        ctx.course, ctx.first, ctx.count = course, first, count
        ctx.weights = tuple((id(tensor), tensor.dtype) for tensor in tensors[count:])
        ctx.save_for_backward(*tensors[count:])
        return torch.zeros((), device=tensors[0].device)

    @staticmethod
    @as_raised
    def backward(ctx: Any, link: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        saved_tensors.of(ctx)  # torch looks whether they were written on
        way = ctx.course.way
        g = way.reach(ctx.first)
        below = (link,) if g is None else (*g, None)
        needs = zip(ctx.weights, ctx.needs_input_grad[3 + ctx.count :], strict=True)
        return (None, None, None, *below, *(way.gradient(weight) if want else None for weight, want in needs))
