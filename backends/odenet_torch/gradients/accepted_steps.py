"""The backward pass over the steps that an adaptive solve accepted: its grid is kept, and gone back as any other is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from odenet import GradientError
from odenet.kit import Leaves as AnyLeaves
from odenet.kit import add, alarm
from odenet_torch.field import saved_tensors
from odenet_torch.field.differentiating import forward_mode_again
from odenet_torch.field.raised import as_raised
from odenet_torch.field.replay import Replay
from odenet_torch.field.state import Leaves
from odenet_torch.field.witness import ordinary, sample
from odenet_torch.gradients.adjoint import (
    Adjoint,
    SavedStates,
    in_forward_mode,
    own,
    refuse_classes,
    refuse_second_derivatives,
    refuse_transforms,
    unhooked,
)
from odenet_torch.gradients.stages import advance
from odenet_torch.gradients.sums import Sums
from odenet_torch.steps.adaptive import ForwardSolve, evaluation


def plain(forward: ForwardSolve, y0: Leaves) -> Leaves:
    """The outputs as autograd records the accepted steps: step sizes are numbers."""
    run = forward.run
    run.field.recorded(run.layout.device, None)
    if run.field.reads is not None:
        forward.loop.evaluate = evaluation(run)
    outputs, _ = forward.pass_over(y0)
    if forward.loop.compiled is not None:
        return once(_stacked(outputs))
    return _stacked(outputs)


def once(outputs: Leaves) -> Leaves:
    """The same, which autograd differentiates once: they come from compiled steps."""
    return tuple(_FirstDerivativeOnly.apply(leaf) for leaf in outputs)


class _FirstDerivativeOnly(torch.autograd.Function):
    """The identity, whose derivative has none: what `once` applies."""

    @staticmethod
    def forward(ctx: Any, leaf: Tensor) -> Tensor:
        return leaf.detach()  # no view, on which nobody could write in place

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        refuse_second_derivatives("backprop of compiled steps")
        return g


def solve(adjoint: Adjoint, forward: ForwardSolve, y0: Leaves) -> Leaves:
    """The outputs, with the backward pass of an adjoint."""
    if not torch.is_grad_enabled():
        return plain(forward, y0)
    refuse_transforms(f"gradient={adjoint.stats.gradient!r}")
    refuse_classes(y0, f"gradient={adjoint.stats.gradient!r}")
    if in_forward_mode():
        return plain(forward, y0)
    y0 = own(y0)
    adjoint.alarm = alarm(next(iter(forward.run.field.functions()), None))
    field = forward.run.field.apart()
    replay = Replay.of(field, forward.run.layout, 1, cut=True, exact=True)
    run = dataclasses.replace(forward.run, field=field, replay=replay)
    forward.run = run
    with replay.forth():
        forward.loop.evaluate = _replayed(forward)
        forward.grid.nodes.append(forward.loop.stops[0])  # for the first evaluation
        first = adjoint.discover(run, y0)
        forward.loop.evaluations += 1
        tensors = (*y0, *field.everything(1))
        return _AcceptedStepsSolve.apply(forward, adjoint, first, len(y0), *tensors)


def _replayed(forward: ForwardSolve) -> Callable[..., Leaves]:
    """The field in a forward pass whose evaluations will run again."""
    run, loop, field, replay = forward.run, forward.loop, forward.run.field, forward.run.replay
    layout, stages = run.layout, run.solver.increments.stages
    assert replay is not None
    at: Any = getattr(field, "at")  # noqa: B009

    def evaluate(t: Tensor, rank: int, time: float, y: Leaves) -> Leaves:
        # the slope at the end of a step is the first of the next
        n, of = (loop.n, rank) if rank < stages else (loop.n, 0)
        forward = replay.first((n, False, of), (n, 0.0, 1), lambda: layout.evaluate(lambda y: at(t, time, y), y), y)
        layout.memory.hold(forward)
        return forward

    return evaluate


def _stacked(outputs: list[Leaves]) -> Leaves:
    return tuple(torch.stack(column) for column in zip(*outputs, strict=True))


class _AcceptedStepsSolve(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, forward: ForwardSolve, adjoint: Adjoint, first: Leaves, count: int, *tensors: Tensor
    ) -> Leaves:
        forward_mode_again()
        outputs, states = forward.pass_over(tensors[:count], adjoint.keeps_accepted, first)
        ctx.forward, ctx.adjoint, ctx.count = forward, adjoint, count
        ctx.indices = tuple(states)
        ctx.sketch = None if 0 in states else adjoint.sketch(tensors[:count])
        last, forward.last = forward.last, None
        known = None if last is None else adjoint.known_of(last)
        ctx.known = sample(known, own=True) if known is not None and ordinary(known) else None
        ctx.weights = tuple(id(tensor) for tensor in tensors[count:])
        ctx.kinds = tuple(tensor.dtype for tensor in tensors[count:])
        stacked = _stacked(outputs)
        replay = forward.run.replay
        if replay is not None:
            replay.finish()
        if replay is not None and (replay.random or replay.buffers):
            raise GradientError(
                "the field of an adaptive solve draws random numbers or changes what it reads, so that the error of a "
                "step is not what it is estimated to be",
                "fields that are functions of their arguments",
                "call model.eval(), take steps=N (which replays them), or gradient='backprop'",
            )
        saved = [leaf for leaves in states.values() for leaf in leaves]
        if adjoint.reads_outputs:
            saved += [leaf for leaves in outputs for leaf in leaves]
        ctx.save_for_backward(*saved, *tensors[count:])
        return stacked

    @staticmethod
    @as_raised
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivatives(ctx.adjoint.stats.gradient)
        forward, count = ctx.forward, ctx.count
        ctx.adjoint.by_y0 = any(ctx.needs_input_grad[4 : 4 + count])
        run = dataclasses.replace(forward.run, again=True)
        saved = saved_tensors.of(ctx)  # once: within torch's checkpoint a second time is an error
        saved = saved[: len(saved) - len(ctx.weights)]
        groups = [tuple(leaf.detach() for leaf in saved[i : i + count]) for i in range(0, len(saved), count)]
        states = dict(zip(ctx.indices, groups, strict=False))
        rows = [tuple(leaf) for leaf in zip(*(g.unbind(0) for g in gradients), strict=True)]
        sums = Sums(run.field)
        run.field.settle(range(1), 1)
        run.replay.steps = run.grid.steps
        with run.replay.back(), unhooked(run.field.everything(1)):
            if ctx.adjoint.reads_outputs:
                ctx.adjoint.slope = ctx.known
                g = ctx.adjoint.back_accepted(forward, states, groups[len(ctx.indices) :], rows, sums)
            else:
                met, inside = joined(forward, rows)
                run = dataclasses.replace(run, inside=inside)
                g = advance(ctx.adjoint.back(run, SavedStates(states, (), ctx.sketch, known=ctx.known), met, sums))
                assert g is not None
        needs = zip(ctx.weights, ctx.kinds, ctx.needs_input_grad[4 + count :], strict=True)
        return (None, None, None, None, *g, *(sums.gradient(key, kind) if want else None for key, kind, want in needs))


def joined(
    forward: ForwardSolve, rows: list[Leaves]
) -> tuple[dict[int, AnyLeaves], dict[int, list[tuple[float, Leaves]]]]:
    """Gradients with respect to outputs: at the ends of steps by index, and inside of steps by step."""
    at_nodes: dict[int, AnyLeaves] = {}
    inside: dict[int, list[tuple[float, Leaves]]] = {}
    for (n, position), row in zip(forward.grid.places, rows, strict=False):
        if position:
            inside.setdefault(n, []).append((position, row))
        else:
            at_nodes[n] = add(at_nodes[n], row) if n in at_nodes else row
    return at_nodes, inside
