"""Strides: several equal steps as one compiled graph, the same graph for all strides of a solve.

What differs from stride to stride enters as tensors: the time of its first step, the size of steps, the weights of its
layers. What a stride calls is handed in, too, so that torch compares whatever the graph depends on; equal blocks share
a graph. A stride has as many steps as divide the solve, and whatever falls between two steps falls between two strides:
outputs, anchors, segments.

Over 250 lines: the strides of a solve, their graphs, and what is said where one cannot be compiled.
"""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from odenet import Grid, ReversibleSolver, UnsupportedError
from odenet.kit import StagedSolver, add, tree_map
from odenet_torch.field import random_state
from odenet_torch.field.field import BlockField, Field
from odenet_torch.field.knowledge import knowledge
from odenet_torch.field.state import Layout, Leaves
from odenet_torch.field.surroundings import no_trace
from odenet_torch.field.wiring import Wiring
from odenet_torch.steps.graph import Choices, Effects, Graph, anchor, require_repeatable
from odenet_torch.steps.inside import Inside, Kind
from odenet_torch.steps.seeded import seeds
from odenet_torch.steps.shortcuts import Shortcut, Shortcuts, tensors_of
from odenet_torch.steps.stride_patterns import Stride, bytes_of_step, strides_of

LONGEST = 16
"""Evaluations of f in a stride at most: more would take longer to compile, and save little of what a call costs."""
_LARGE = 1 << 20
"""Bytes of states, or of weights, that the steps of a stride may have together: larger steps are bound by arithmetic,
and several at a time would take their memory."""
_KINDS = 8
"""Graphs that one solve may compile of a function: for blocks of as many kinds."""
_KEPT: weakref.WeakKeyDictionary[Any, dict[Hashable, Graph]] = weakref.WeakKeyDictionary()

Pair = tuple[Leaves, ...]
"""What a solver carries; y first."""


class Strides:
    """The strides of one solve, and their graphs.

    Args:
        f: the field.
        layout: of the state.
        grid: with the steps.
        solver: the method.
        choices: of the compiler.
        bounds: steps that a stride begins or ends at, and does not pass over.
        y0: the state at its start.
    """

    def __init__(
        self,
        f: Field,
        layout: Layout,
        grid: Grid,
        solver: StagedSolver,
        choices: Choices,
        bounds: Iterable[int],
        y0: Leaves,
    ) -> None:
        self.layout, self.grid, self.solver, self.choices = layout, grid, solver, choices
        self.field = f
        self.y0: Leaves | None = y0
        """Let go when the forward pass is over."""
        functions = tuple(f.functions())
        divisor = math.gcd(grid.steps, *grid.kept, *bounds)
        most = max(1, min(LONGEST // solver.stages, _LARGE // max(1, bytes_of_step(f, functions[0], y0))))
        length = max(n for n in range(1, most + 1) if divisor % n == 0)
        self.wiring, self.list = self._known(f, functions, length)
        self.wiring.require_unhooked()
        self.at = {stride.first: stride for stride in self.list}
        owner, self.more = anchor(functions[0])
        self.kept = _KEPT.setdefault(owner, {})
        self.look = (layout.single, layout.dtypes, layout.carried, layout.time)
        self.before: dict[int, int] = {}
        self.graphs: dict[Hashable, Graph] = {}
        self.unread: dict[int, set[int]] = {}
        """By first step: the places of tensors that need a gradient and that nothing in a stride reads."""
        self.unread_by: dict[int, set[int]] = {}
        """The same by `id` of what is known of a graph."""
        self.numbers = self._numbers(length)
        self.strict = False
        """Whether the steps are to run again."""
        self.seeds: tuple[Tensor, ...] | None = None

    def _known(self, f: Field, functions: tuple[Any, ...], length: int) -> tuple[Wiring, list[Stride]]:
        """The strides, of blocks those of the last pass where nothing stands elsewhere."""
        self.lasting = False
        """Whether the strides are those of the last pass."""
        held = knowledge(functions[0]) if isinstance(f, BlockField) and f.extra == ((), {}) else None
        key = (length, self.grid.steps, f.depth.kind if f.depth is not None else "", [*map(id, functions)])
        tree = f.depth.tree if held is not None and f.depth is not None else ()
        key = (*key, [*map(id, tree)])
        if held is not None and held.strides is not None:
            known, wiring, strides = held.strides
            if known == key and wiring.current():
                self.lasting = True
                return wiring, strides
        wiring = Wiring(functions)
        strides = strides_of(f, self.grid.steps, length, wiring)
        # what stands in the place of parameters for one call is not to be kept alive
        if held is not None and all(isinstance(parameter, nn.Parameter) for parameter in wiring.parameters):
            held.strides = key, wiring, strides
        return wiring, strides

    def _numbers(self, length: int) -> tuple[Tensor, ...]:
        """See `Inside`; filled on the device. Not one by one: torch takes a single float64 on the CPU for a number of
        Python's, and reads it before each stride."""
        grid, layout = self.grid, self.layout
        if not self.list[0].pattern.of_time:
            return (torch.full((1,), grid.h, dtype=layout.time, device=layout.device),) * len(self.list)
        wide = torch.float32 if layout.device.type == "mps" else torch.float64
        table = torch.empty(len(self.list), 5, dtype=wide, device=layout.device)
        for i, number in enumerate((grid.h, grid.t0, grid.t1 - grid.t0, grid.steps)):
            table[:, i].fill_(number)
        torch.arange(0, grid.steps, length, out=table[:, 4])
        return table.unbind()

    @functools.cached_property
    def live(self) -> tuple[Tensor, ...]:
        """All tensors that a gradient goes to, once each."""
        return tuple({id(tensor): tensor for stride in self.list for tensor in stride.live}.values())

    @functools.cached_property
    def once(self) -> bool:
        """Whether no two strides read the same of these, none of which is a row of another tensor."""
        return not self.field.homes and sum(len(stride.live) for stride in self.list) == len(self.live)

    def widened(self, stride: Stride, live: Sequence[Tensor], known: dict[int, Tensor]) -> tuple[Tensor, ...]:
        """These tensors of a stride, those of half precision that several steps read in float32.

        Args:
            stride: whose they are.
            live: in the place of `stride.live`.
            known: those of other strides, by `id` of what they are made of.
        """
        wide = stride.pattern.wide
        if not wide:
            return tuple(live)
        for i in wide:
            known.setdefault(id(stride.live[i]), live[i].float())
        return tuple([known[id(stride.live[i])] if i in wide else tensor for i, tensor in enumerate(live)])

    def graph(self, name: str, function: Callable[..., Any], stride: Stride, *more: Hashable) -> Graph:
        """The graph of a function of strides.

        Args:
            name: of the function.
            function: from a `Kind` and more to the function that is compiled.
            stride: one of those that it is for.
            more: what tells one such function from another.
        """
        key = (name, id(stride.pattern), more)
        if key in self.graphs:
            return self.graphs[key]
        like, layout = stride.pattern, self.layout
        # the steps of a solve are a number in the graphs of the methods that read it
        steps = self.grid.steps if isinstance(self.solver, ReversibleSolver) else 0
        state = (layout.dtypes, layout.time, layout.device, str(tree_map(lambda _: 0, layout.unflatten(layout.dtypes))))
        whole = (name, like, self.solver, steps, state, str(self.choices), *self.more, *more)
        if whole not in self.kept:
            kind = Kind(like, self.look, (layout.unflatten, *stride.rebuild), self.solver, steps)
            self.kept[whole] = Graph(
                function(kind, *more), self.choices, _KINDS, examined=True, constants=kind.constants()
            )
        graph = self.graphs[key] = self.kept[whole]
        self.before.setdefault(id(graph), graph.count)
        return graph

    def run(
        self,
        name: str,
        function: Callable[..., Any],
        stride: Stride,
        live: Sequence[Tensor],
        *arguments: Any,
        more: tuple[Hashable, ...] = (),
    ) -> Any:
        """The value of a function of a stride (see `graph`) with these tensors that need a gradient."""
        graph = self.graph(name, function, stride, *more)
        last = graph.last
        drawn = self._seeds(stride) if self.strict else None
        last.require = (_require if drawn else _require_seeds) if self.strict else None
        numbers = self.numbers[stride.first // (stride.end - stride.first)]
        shortcuts = self.shortcuts if drawn is None else None
        at_hand, key = [numbers, *live, *stride.fixed], None
        if shortcuts is not None:
            key = (id(graph), stride.first, tensors_of(arguments, at_hand))
            known = shortcuts.known.get(key)
            if known is not None and shortcuts.compared.get(id(graph)) is known.code:
                value = known(at_hand)
                last.inputs = last.outputs = ()
                if self.strict and name == "forth":
                    self.unread[stride.first] = self.unread_by[id(last.effects)]
                return value
        handed = (stride.calls, stride.fixed, stride.plain, drawn)
        try:
            value = graph.run(self.before[id(graph)], handed, numbers, tuple(live), *arguments)
        except _SeedsRequired:  # before anything has run
            self._random().add(self._training(stride))
            return self.run(name, function, stride, live, *arguments, more=more)
        except UnsupportedError as error:
            if error.__cause__ is not None:  # a compiler's: it wraps what f itself raises
                self._evaluate(stride)
            raise
        effects = last.effects
        if self.strict and name == "forth" and effects is not None:
            if id(effects) not in self.unread_by:
                read = {id(tensor) for tensor, no in zip(last.inputs, effects.unread, strict=True) if not no}
                self.unread_by[id(effects)] = {i for i, tensor in enumerate(live) if id(tensor) not in read}
            self.unread[stride.first] = self.unread_by[id(effects)]
        if shortcuts is not None and last.code is not None and effects is not None and not effects.written:
            shortcuts.compared[id(graph)] = last.code
            if not (effects.random or (key in shortcuts.known and shortcuts.known[key].code is last.code)):
                shortcut = Shortcut.of(last.code, last.inputs, last.outputs, at_hand, value)
                if shortcut is not None:
                    shortcuts.known[key] = shortcut
        last.inputs = last.outputs = ()
        return value

    @functools.cached_property
    def shortcuts(self) -> Shortcuts | None:
        """Those of the pass; None where what the strides call is looked up in each pass."""
        return Shortcuts(self.wiring, looked=self.strict) if self.lasting else None

    def _random(self) -> set[Hashable]:
        """What draws random numbers of all that graphs are kept for, by pattern, in training or not."""
        kept: Any = self.kept
        return kept.setdefault("random", set())

    @staticmethod
    def _training(stride: Stride) -> Hashable:
        return stride.pattern, tuple([getattr(function, "training", None) for function in stride.calls])

    def _seeds(self, stride: Stride) -> tuple[Tensor, ...] | None:
        """One a step of the stride; None where it draws no random numbers, as far as is known."""
        random = self._random()
        if not random or self._training(stride) not in random:
            return None
        if self.seeds is None:
            self.seeds = seeds(self.grid.steps, self.layout.device)
        return self.seeds[stride.first : stride.end]

    def _evaluate(self, stride: Stride) -> None:
        """Evaluates the field once in each step of a stride, for the errors that it raises without a compiler."""
        if self.y0 is None:
            return
        layout, random = self.layout, random_state.state(self.layout.device)
        held = [buffer for own in self.wiring.own for buffer in own["_buffers"].values() if buffer is not None]
        buffers = [(buffer, buffer.clone()) for buffer in held]
        with torch.no_grad(), no_trace(self.wiring.functions):
            try:
                for n in range(stride.first, stride.end):
                    t = torch.full((), self.grid.time(n), dtype=layout.time, device=layout.device)
                    y = tuple([leaf.clone() for leaf in self.y0])
                    layout.evaluate(lambda at, t=t, n=n: self.field(t, at, n, 0.0, self.grid.steps), y)
            finally:
                random_state.restore(layout.device, random)
                for buffer, value in buffers:
                    buffer.copy_(value)


class _SeedsRequired(Exception):
    """A graph draws random numbers, and was handed no seeds."""


def _require_seeds(effects: Effects) -> None:
    if effects.random:
        raise _SeedsRequired
    _require(effects)


def _require(effects: Effects) -> None:
    require_repeatable(effects, "equal steps with a gradient method that runs them again", "gradient='backprop'")


def forth(kind: Kind) -> Any:
    """The function of a stride: from what is carried at its start to what is carried at its end."""
    solver: Any = kind.solver
    steps, count, trees = kind.steps, kind.count, kind.trees
    reversible = isinstance(solver, ReversibleSolver)

    def stride_forth(stride: Any, numbers: Any, live: Any, pair: Pair) -> Pair:
        inside = Inside("plan", trees, stride, numbers, live)
        for n in range(count):
            if reversible:
                pair = solver.step(inside, n, inside.h, steps, pair)
            else:
                pair = (add(pair[0], inside.increment(n, pair[0])),)
        return contiguous(pair)

    return stride_forth


def start(kind: Kind) -> Any:
    """The function of a reversible solver's start: from y(t0) to what is carried there."""
    solver: Any = kind.solver
    trees = kind.trees

    def stride_start(stride: Any, numbers: Any, live: Any, y: Leaves) -> Pair:
        inside = Inside("plan", trees, stride, numbers, live)
        return contiguous(solver.start(inside, inside.h, y))

    return stride_start


def contiguous(pair: Pair) -> Pair:
    """Leaves laid out alike, as another stride takes them."""
    return tuple([tuple([leaf.contiguous() for leaf in leaves]) for leaves in pair])
