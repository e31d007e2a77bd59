"""The trial step of an adaptive solve as one compiled graph: stages, error and norm, which eager torch does op by op.

What changes from step to step enters as a tensor (times and size of the step in one, the tolerances, the weights of a
layer), so that one graph serves all steps of all solves of a field with states of one shape. The controller is a few
operations on Python floats beside the one number that is read of a step, and stays outside.

Graphs are kept by what the field is made of: a module or another object, and of functions their code, so that a lambda
that is made anew at each call finds its graph.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from odenet import Backprop, Problem, Span, UnsupportedError
from odenet.kit import Tableau, Trial, tree_flatten, tree_map
from odenet.kit import trial as attempted
from odenet_torch.field.field import FunctionField, Stand
from odenet_torch.field.state import Layout, Leaves
from odenet_torch.steps.accepted import Accepted
from odenet_torch.steps.graph import Choices, Graph, anchor, checked, entered, require_no_transform
from odenet_torch.steps.size_control import AdaptiveLoop
from odenet_torch.steps.tolerance import NAMED, within

_KEPT: weakref.WeakKeyDictionary[Any, dict[Hashable, Graph]] = weakref.WeakKeyDictionary()


class CompiledSteps:
    """The trial steps of one solve.

    Args:
        field: a function's, with weights that are the same at all places, or divided into layers.
        loop: with the method, and the tolerance of its error.
        layout: of the state.
        grid: with the times of the layers.
        choices: see `checked`.
        y, first: leaves of the state, and of the slope there.

    Raises:
        UnsupportedError: within a transform that sees no compiled graph.
    """

    def __init__(
        self,
        field: FunctionField,
        loop: AdaptiveLoop,
        layout: Layout,
        grid: Accepted,
        choices: Choices,
        y: Leaves,
        first: Leaves,
    ) -> None:
        require_no_transform()
        self.field, self.grid, self.layout = field, grid, layout
        self.recorded = torch.is_grad_enabled() and any(leaf.requires_grad for leaf in (*y, *first))
        self.linear = field.depth is not None and field.depth.kind == "linear"
        tolerance = loop.tolerance
        named = None if tolerance.named is None else NAMED[tolerance.named]
        self.norm = tolerance.norm if named is None else None
        self.rtol, self.atol = (
            tuple(
                torch.as_tensor(number, dtype=leaf.real.dtype, device=leaf.device)
                for number, leaf in zip(numbers, y, strict=True)
            )
            for numbers in (tolerance.rtol, tolerance.atol)
        )
        memory, (owner, more) = layout.memory, anchor(field.traced)
        kinds = (layout.dtypes, layout.time, layout.device, tuple(leaf.shape for leaf in y))
        tree = str(tree_map(lambda _: 0, layout.unflatten(y)))
        key = (loop.tableau, tolerance.named, self.linear, memory.lends, memory.takes, kinds, tree, str(choices), *more)
        kept = _KEPT.setdefault(owner, {})
        if key not in kept:
            kept[key] = Graph(_step(loop.tableau, layout, self.linear, named), choices)
        self.graph, self.before = kept[key], kept[key].count
        self.last: Leaves | None = None

    def enter(self, leaves: Leaves) -> Leaves:
        """A state or a slope as graphs take it (see `entered`)."""
        return entered(leaves, self.recorded)

    def trial(self, t: float, t1: float, times: Sequence[float], y: Leaves, first: Leaves) -> tuple[Trial, float]:
        """A step (see `odenet.kit.trial`) without its error, and the error's ratio to what is allowed.

        Args:
            t, t1: its ends.
            times: of its stages.
            y: the state at its start, from `enter` or the step before.
            first: the slope there.
        """
        numbers, layer = [t1 - t, *times], self.grid.place((t + t1) / 2)[0]
        if self.linear:
            start, end = self.grid.layers[layer : layer + 2]
            numbers += [min(1.0, max(0.0, (time - start) / (end - start))) for time in times]
        operands = torch.tensor(numbers, dtype=self.layout.time, device=self.layout.device)
        first = first if first is self.last else self.enter(first)
        field, count = self.field, self.grid.count

        def run(stand: Stand | None) -> Any:
            arguments = (field.traced, self.norm, y, first, operands, self.rtol, self.atol)
            return self.graph.run(self.before, *arguments, field.around(layer, count, stand))

        reads = (field.inner or field.reads) if self.recorded else None
        y1, slopes, ratio = (
            run(None) if reads is None else reads.evaluate(run, field.explicit(layer, count), field.module)
        )
        # a field that reads nothing at the end of a step has a slope without a gradient there
        self.last = slopes[-1] if not self.recorded or all(k.requires_grad for k in slopes[-1]) else None
        return Trial(y1, (), (first, *slopes)), ratio.item()  # the step's one host read


def _step(tableau: Tableau, layout: Layout, linear: bool, norm: Callable[[Leaves], Tensor] | None) -> Any:
    """The function that is compiled. It holds nothing of the solve that it was made in but plain data."""
    single, dtypes, carried, unflatten = layout.single, layout.dtypes, layout.carried, layout.unflatten
    cast, stages = dtypes != carried, tableau.stages
    lends, takes = layout.memory.lends, layout.memory.takes

    def trial_step(
        f: Any, norm_of: Any, y: Leaves, first: Leaves, of: Tensor, rtol: Leaves, atol: Leaves, weights: Any
    ) -> Any:
        h = of[0]

        def stage(i: int, at: Leaves) -> Leaves:
            leaves = tuple(leaf.clone() for leaf in at) if lends else at
            if cast:
                leaves = tuple(leaf.to(kind) for leaf, kind in zip(leaves, dtypes, strict=True))
            read = weights
            if linear:
                place, (start, end) = of[stages + 1 + i], weights
                read = (_mixed(start, end, place),)
            value = f(of[1 + i], leaves[0] if single else unflatten(leaves), *read)
            slope = [value] if single else tree_flatten(value)[0]
            slope = [k.clone() for k in slope] if takes else slope
            return tuple([_slope(k, leaf, kind) for k, leaf, kind in zip(slope, at, carried, strict=True)])

        attempt = attempted(tableau, stage, y, h, first)
        ratio = within(norm or norm_of, attempt.error, y, attempt.y1, rtol, atol)
        y1 = tuple([leaf.contiguous() for leaf in attempt.y1])
        return y1, tuple([tuple([leaf.contiguous() for leaf in k]) for k in attempt.slopes[1:]]), ratio

    return trial_step


def _slope(k: Any, like: Tensor, kind: torch.dtype) -> Tensor:
    if k.shape != like.shape:
        raise ValueError(f"the field returned shape {tuple(k.shape)} for a state of shape {tuple(like.shape)}")
    return k.to(kind)


def _mixed(one: Any, other: Any, place: Tensor) -> Any:
    """Weights between two layers; what is no tensor is the same in both."""

    def mix(a: Any, b: Any) -> Any:
        return (1 - place.to(a.dtype)) * a + place.to(a.dtype) * b if isinstance(a, Tensor) else a

    return tree_map(mix, one, other)


def compilable(problem: Problem) -> Choices:
    """The choices of an adaptive problem whose steps are to be compiled.

    Raises:
        UnsupportedError: rows with steps of their own, or a backward pass that runs the field step by step.
        InputError: see `checked`.
    """
    assert problem.compile is not None
    assert isinstance(problem.grid, Span)
    if problem.grid.control.per_sample:
        raise UnsupportedError("compile with per_sample=True", "steps for all rows", "leave out one of them")
    if not isinstance(problem.gradient, Backprop):
        raise UnsupportedError(
            f"compile with gradient {problem.gradient.label!r}, whose way back runs the field by itself",
            "backprop",
            "leave out compile, or take gradient='backprop'",
        )
    return checked(problem.compile)
