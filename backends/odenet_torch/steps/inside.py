"""The field of some equal steps within a compiled graph: plain functions of the tensors that the graph is handed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odenet.kit import Rebuild, StagedSolver, add, increment, positions, tree_flatten, tree_same_shape
from odenet_torch.field.state import Leaves
from odenet_torch.steps.seeded import drawing
from odenet_torch.steps.stride_patterns import Pattern, Slot

_STAGES = 256  # of a step, at most


class Inside:
    """The field of a stride, within its graph; steps are counted from its first.

    Args:
        plan: see `Kind.plan`.
        trees: the trees of a state, of weights and of what blocks are handed.
        stride: what is called, the tensors without gradients that it reads, what is no tensor, and one seed a step of
            its random numbers; None where it draws none, or from the generator.
        numbers: the size of a step; where f is called with a time, the first time, the time from there to the last,
            the steps of the solve, and the first step, too.
        live: the tensors with a gradient.
    """

    def __init__(self, plan: Any, trees: Any, stride: Any, numbers: Any, live: tuple[Tensor, ...]) -> None:
        self.look, self.places, self.extra, self.of_time, self.tableau = plan
        self.trees, self.numbers, self.live = trees, numbers, live
        self.calls, self.fixed, self.plain, self.seeds = stride
        self.h = numbers[0].to(self.look[3])

    def slope(
        self, n: int, position: float, y: Leaves, live: tuple[Tensor, ...] | None = None, stage: int | None = None
    ) -> Leaves:
        """f at `position` in [0, 1] of step n; of an increment, which of its stages draws the same numbers."""
        live = self.live if live is None else live
        if self.seeds is not None:
            drawing(self.seeds[n], _STAGES + int(position * _STAGES) if stage is None else stage)
        single, dtypes, carried, kind_of_time = self.look
        state_of, weights_of, extra_of = self.trees
        leaves = tuple([leaf.clone() for leaf in y])  # f may write on its state
        if dtypes != carried:
            leaves = tuple([leaf.to(kind) for leaf, kind in zip(leaves, dtypes, strict=True)])
        state = leaves[0] if single else state_of(leaves)
        layers, begin, span = self.places[n]
        local = begin + span * position
        if local == 1 and not self.of_time:
            layers = layers[-1:]
        callee, parameters, weights = layers[0]
        held = {name: self._held(slot, live) for name, slot in parameters}
        between = len(layers) == 2 and local != 0
        named: Any = {}
        if self.of_time:
            arguments: tuple[Any, ...] = (self._time(n, position, kind_of_time), state)
            if weights is not None:
                tree = [self._held(slot, live) for slot in weights]
                if between:
                    other = [self._held(slot, live) for slot in layers[1][2]]
                    tree = [_between(a, b, local) for a, b in zip(tree, other, strict=True)]
                arguments = (*arguments, weights_of(tree))
        else:
            if between:
                beyond = {name: self._held(slot, live) for name, slot in layers[1][1]}
                held = {name: _between(a, beyond[name], local) for name, a in held.items()}
            more: Any = ()
            if extra_of is not None:
                more, named = extra_of([self._held(slot, live) for slot in self.extra])
            arguments = (state, *more)
        function = self.calls[callee]
        if held:
            value = torch.func.functional_call(function, held, arguments, named)
        else:
            value = function(*arguments, **named)
        return _slope(value, y, single, carried, state_of)

    def _held(self, slot: Slot, live: tuple[Tensor, ...]) -> Any:
        where, i, kind = slot
        value = live[i] if where == "live" else self.fixed[i] if where == "fixed" else self.plain[i]
        return value if kind is None else value.to(kind)

    def _time(self, n: int, position: float, kind: torch.dtype) -> Tensor:
        _, t0, length, steps, first = self.numbers.unbind()
        return (t0 + length * ((first + (n + position)) / steps)).to(kind)

    def increment(self, n: int, y: Leaves, live: tuple[Tensor, ...] | None = None, *, reverse: bool = False) -> Leaves:
        """The increment of step n, or that of one step of size -h from its end."""
        a, b, stages, forward, backward = self.tableau
        places = backward if reverse else forward
        h = -self.h if reverse else self.h
        weights: Any = _Weights(a, b, stages)

        def stage(i: int, at: Leaves) -> Leaves:
            # a step back draws at a place in the step what the step draws there
            drawn = forward.index(places[i]) if places[i] in forward else i
            return self.slope(n, places[i], at, live, drawn)

        return increment(weights, stage, y, h)

    def after(self, n: int, y: Leaves, *, reverse: bool = False) -> Leaves:
        """See `Run.after`."""
        return add(y, self.increment(n, y, reverse=reverse))


class _Weights:
    """Those of a tableau, which is made within a graph: torch would compare each of another's before each stride."""

    def __init__(self, a: Any, b: Any, stages: int) -> None:
        self.a, self.b, self.step_stages = a, b, stages


def _slope(value: Any, y: Leaves, single: bool, carried: Any, state_of: Rebuild) -> Leaves:
    if not single and not tree_same_shape(state_of(y), value):
        raise ValueError("the field returned another tree than the state's")
    leaves = [value] if single else tree_flatten(value)[0]
    slope = []
    for k, leaf, kind in zip(leaves, y, carried, strict=True):
        if k.shape != leaf.shape:
            raise ValueError(f"the field returned shape {tuple(k.shape)} for a state of shape {tuple(leaf.shape)}")
        if torch.promote_types(k.dtype, kind) != kind:
            raise ValueError(f"the field returned {k.dtype} for a state of {kind}")
        slope.append(k.to(kind))
    return tuple(slope)


def _between(a: Any, b: Any, local: float) -> Any:
    """Weights between two layers, as `odenet.kit.blend` has them; what is no tensor is the same in both."""
    if isinstance(a, Tensor) and not (a.is_floating_point() or a.is_complex()):
        return b if local == 1 else a
    return (1 - local) * a + local * b if isinstance(a, Tensor) else a


@dataclass(frozen=True)
class Kind:
    """What strides of one graph are.

    Args:
        pattern: theirs.
        look: whether the state is one tensor, its number types as given and as carried, and that of times.
        trees: the trees of a state, of weights and of what blocks are handed.
        solver: the method.
        steps: of the solve, where the method reads them.
    """

    pattern: Pattern
    look: tuple[bool, tuple[torch.dtype, ...], tuple[torch.dtype, ...], torch.dtype]
    trees: tuple[Rebuild, Rebuild | None, Rebuild | None]
    solver: StagedSolver
    steps: int

    @property
    def count(self) -> int:
        """Steps of a stride."""
        return len(self.pattern.places)

    @property
    def reads(self) -> tuple[tuple[int, ...], ...]:
        """For each step what `Pattern.live` says of it."""
        return tuple([self.pattern.live(j) for j in range(self.count)])

    def constants(self) -> dict[str, Any]:
        """What stands in a graph's code: torch would compare what is anywhere else before each stride."""
        tableau = self.solver.increments
        stages = tableau.step_stages
        places = positions(tableau)[:stages], positions(tableau, reverse=True)[:stages]
        pattern = self.pattern
        plan = (self.look, pattern.places, pattern.extra, pattern.of_time, (tableau.a, tableau.b, stages, *places))
        return {"plan": plan, "reads": self.reads}
