"""Strides: several equal steps as one compiled graph, the same graph for all strides of a solve.

What differs from stride to stride enters as tensors: the time of its first step, the size of steps, the weights of its
layers. What a stride calls is handed in, too, so that torch compares whatever the graph depends on; equal blocks share
a graph. A stride has as many steps as divide the solve, and whatever falls between two steps falls between two strides:
outputs, anchors, segments.
"""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from odenet import Grid, ReversibleSolver, UnsupportedError
from odenet.kit import Rebuild, StagedSolver, add, increment, positions, tree_flatten, tree_map, tree_same_shape
from odenet_torch.field import random_state
from odenet_torch.field.field import BlockField, Field, FunctionField
from odenet_torch.field.half_precision import HALF
from odenet_torch.field.knowledge import knowledge
from odenet_torch.field.state import Layout, Leaves
from odenet_torch.field.surroundings import no_trace
from odenet_torch.field.wiring import Wiring
from odenet_torch.steps.graph import Choices, Graph, anchor

LONGEST = 8
"""Steps of a stride at most: more would take longer to compile, and save little of what a call costs."""
_LARGE = 1 << 20
"""Bytes of states, or of weights, that the steps of a stride may have together: larger steps are bound by arithmetic,
and several at a time would take their memory."""
_KINDS = 8
"""Graphs that one solve may compile of a function: for blocks of as many kinds."""
_KEPT: weakref.WeakKeyDictionary[Any, dict[Hashable, Graph]] = weakref.WeakKeyDictionary()

Pair = tuple[Leaves, ...]
"""What a solver carries; y first."""
Slot = tuple[str, int, torch.dtype | None]
"""Where a stride has a value: "live", "fixed" or "plain", the place there, and the number type that it is read in."""


Layer = tuple[int, tuple[tuple[str, Slot], ...], tuple[Slot, ...] | None]
"""What f reads of one layer: the place of what is called, the parameters that it is called with, by name, and the
leaves of the tree that a function is handed; None where it is handed none."""
Place = tuple[tuple[Layer, ...], float, float]
"""Where a step lies in depth: its layer, or both ends of its interval, where in that it starts, and its part of it."""


@dataclass(frozen=True)
class Pattern:
    """All that strides of one graph have in common.

    Args:
        places: of its steps.
        extra: the leaves of what blocks are handed beside the state.
        trees: how the trees of weights and of these look.
        of_time: whether f is called with a time, and handed weights.
    """

    places: tuple[Place, ...]
    extra: tuple[Slot, ...]
    trees: str
    of_time: bool

    def slots(self, *steps: int) -> Iterator[Slot]:
        """All that some steps read; all steps without any."""
        for layers, _, _ in [self.places[j] for j in steps] or self.places:
            for _, parameters, weights in layers:
                yield from (slot for _, slot in parameters)
                yield from weights or ()
        yield from self.extra

    def live(self, j: int) -> tuple[int, ...]:
        """The places of the tensors with a gradient that step j reads."""
        return tuple(dict.fromkeys(i for where, i, _ in self.slots(j) if where == "live"))

    @functools.cached_property
    def wide(self) -> frozenset[int]:
        """The places of the tensors with a gradient that are of half precision and read in several steps."""
        return frozenset(i for where, i, kind in self.slots() if where == "live" and kind is not None)


@dataclass(frozen=True)
class Stride:
    """Some steps, and what they read.

    Args:
        first: the first of them.
        pattern: how.
        calls: what is called.
        live: the tensors that a gradient goes to, once each.
        fixed: other tensors.
        plain: what is no tensor.
        rebuild: the trees of weights and of what blocks are handed.
    """

    first: int
    pattern: Pattern
    calls: tuple[Any, ...]
    live: tuple[Tensor, ...]
    fixed: tuple[Tensor, ...]
    plain: tuple[Any, ...]
    rebuild: tuple[Rebuild | None, Rebuild | None]

    @property
    def end(self) -> int:
        """The step after the last."""
        return self.first + len(self.pattern.places)


@dataclass
class _Builder:
    """What a stride reads, as it is collected.

    Args:
        several: `id`s of the tensors of half precision that several steps read: what these add to the gradient is added
            up in float32.
        homes: see `Field.homes`.
    """

    several: set[int]
    homes: Any
    calls: dict[int, Any] = field(default_factory=dict)
    live: dict[int, Tensor] = field(default_factory=dict)
    fixed: dict[int, Tensor] = field(default_factory=dict)
    plain: list[Any] = field(default_factory=list)

    def slot(self, value: Any) -> Slot:
        if not isinstance(value, Tensor):
            self.plain.append(value)
            return "plain", len(self.plain) - 1, None
        needs = value.requires_grad or id(value) in self.homes
        store = self.live if needs else self.fixed
        store.setdefault(id(value), value)
        kind = value.dtype if needs and id(value) in self.several else None
        return "live" if needs else "fixed", [*store].index(id(value)), kind

    def callee(self, function: Any) -> int:
        self.calls.setdefault(id(function), function)
        return [*self.calls].index(id(function))


def strides_of(f: Field, steps: int, length: int, wiring: Wiring) -> list[Stride]:
    """The strides of a field with so many steps."""
    assert isinstance(f, FunctionField | BlockField)
    depth, blocks = f.depth, isinstance(f, BlockField)
    named = {id(function): held for function, held in zip(wiring.functions, wiring.named, strict=True)}
    several = _several(f, steps, named)
    extra, rebuild_extra = tree_flatten(f.extra) if blocks and f.extra != ((), {}) else ([], None)
    known: dict[int, tuple[list[Any], Rebuild, str]] = {}

    def weights(layer: int) -> tuple[list[Any], Rebuild, str]:
        if layer not in known:
            tree = f.trees[layer]
            like = known[0][2] if known and depth is not None and depth.stacked else None
            leaves, rebuild = tree_flatten(tree)
            known[layer] = leaves, rebuild, str(tree_map(lambda _: 0, tree)) if like is None else like
        return known[layer]

    strides, patterns = [], dict[Pattern, Pattern]()
    for first in range(0, steps, length):
        builder = _Builder(several, f.homes)
        places, looks = [], [str(tree_map(lambda _: 0, f.extra))] if blocks else []
        rebuild: Rebuild | None = None
        for n in range(first, first + length):
            layer, start, span = (0, 0.0, 1.0) if depth is None else depth.place(n, steps)
            layers = []
            for at in (layer, layer + 1) if depth is not None and depth.kind == "linear" else (layer,):
                function = depth.tree[at] if blocks else f.function
                held = named[id(function)]
                slots = None
                if not blocks and depth is not None:
                    leaves, rebuild, look = weights(at)
                    slots = tuple([builder.slot(leaf) for leaf in leaves])
                    looks.append(look)
                parameters = tuple([(name, builder.slot(tensor)) for name, tensor in held.items()])
                layers.append((builder.callee(function), parameters, slots))
            linear = len(layers) == 2
            places.append((tuple(layers), start if linear else 0.0, span if linear else 1.0))
        handed = tuple([builder.slot(leaf) for leaf in extra])
        pattern = Pattern(tuple(places), handed, " ".join(looks), not blocks)
        pattern = patterns.setdefault(pattern, pattern)  # strides of one graph know each other by identity
        calls, live, fixed = (tuple(store.values()) for store in (builder.calls, builder.live, builder.fixed))
        strides.append(Stride(first, pattern, calls, live, fixed, tuple(builder.plain), (rebuild, rebuild_extra)))
    return strides


def _bytes(f: Field, function: Any, y0: Leaves) -> int:
    """Those of a state or of the weights of a step, whichever has more."""
    weights = 0
    if isinstance(f, BlockField):
        weights = sum(parameter.nbytes for parameter in function.parameters())
    elif f.depth is not None and f.depth.kind != "shared":
        total = sum(leaf.nbytes for leaf in tree_flatten(f.depth.tree)[0] if isinstance(leaf, Tensor))
        weights = total // f.depth.layers
    return max(weights, sum(leaf.nbytes for leaf in y0))


def _several(f: Field, steps: int, named: dict[int, dict[str, Tensor]]) -> set[int]:
    """The `id`s of the tensors of half precision that several steps read."""
    depth = f.depth
    if isinstance(f, BlockField):
        assert depth is not None
        count: dict[int, int] = {}
        for block in depth.tree:
            for tensor in named[id(block)].values():
                count[id(tensor)] = count.get(id(tensor), 0) + 1
        again = depth.kind == "linear" or depth.factor(steps) > 1
        tensors = [tensor for held in named.values() for tensor in held.values() if again or count[id(tensor)] > 1]
        tensors += [leaf for leaf in tree_flatten(f.extra)[0] if isinstance(leaf, Tensor)]
    else:
        assert isinstance(f, FunctionField)
        once = depth is not None and depth.kind == "piecewise" and depth.factor(steps) == 1
        handed = [] if depth is None or once else [leaf for tree in f.trees for leaf in tree_flatten(tree)[0]]
        tensors = [*(tensor for held in named.values() for tensor in held.values()), *handed]
    return {id(tensor) for tensor in tensors if isinstance(tensor, Tensor) and tensor.dtype in HALF}


class Inside:
    """The field of a stride, within its graph; steps are counted from its first.

    Args:
        plan: see `Kind.plan`.
        trees: the trees of a state, of weights and of what blocks are handed.
        stride: what is called, the tensors without gradients that it reads, and what is no tensor.
        numbers: the size of a step; where f is called with a time, the first time, the time from there to the last,
            the steps of the solve, and the first step, too.
        live: the tensors with a gradient.
    """

    def __init__(self, plan: Any, trees: Any, stride: Any, numbers: Any, live: tuple[Tensor, ...]) -> None:
        self.look, self.places, self.extra, self.of_time, self.tableau = plan
        self.trees, self.numbers, self.live = trees, numbers, live
        self.calls, self.fixed, self.plain = stride
        self.h = numbers[0].to(self.look[3])

    def slope(self, n: int, position: float, y: Leaves, live: tuple[Tensor, ...] | None = None) -> Leaves:
        """See `odenet.kit.Forth`."""
        live = self.live if live is None else live
        single, given, carried, kind_of_time = self.look
        state_of, weights_of, extra_of = self.trees
        leaves = tuple([leaf.clone() for leaf in y])  # f may write on its state
        if given != carried:
            leaves = tuple([leaf.to(kind) for leaf, kind in zip(leaves, given, strict=True)])
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
        """See `odenet.kit.Forth`."""
        a, b, stages, forward, backward = self.tableau
        places = backward if reverse else forward
        h = -self.h if reverse else self.h
        return increment(_Weights(a, b, stages), lambda i, at: self.slope(n, places[i], at, live), y, h)


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
    """Weights between two layers; what is no tensor is the same in both."""
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
        """See `Pattern.live`, for each step."""
        return tuple([self.pattern.live(j) for j in range(self.count)])

    def constants(self) -> dict[str, Any]:
        """What stands in a graph's code: torch would compare what is anywhere else before each stride."""
        tableau = self.solver.increments
        stages = tableau.step_stages
        places = positions(tableau)[:stages], positions(tableau, reverse=True)[:stages]
        pattern = self.pattern
        plan = (self.look, pattern.places, pattern.extra, pattern.of_time, (tableau.a, tableau.b, stages, *places))
        return {"plan": plan, "reads": self.reads}


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
        self.field, self.y0 = f, y0
        functions = tuple(f.functions())
        divisor = math.gcd(grid.steps, *grid.kept, *bounds)
        most = min(LONGEST, max(1, _LARGE // max(1, _bytes(f, functions[0], y0))))
        length = max(n for n in range(1, most + 1) if divisor % n == 0)
        self.wiring, self.list = self._known(f, functions, length)
        self.wiring.require_unhooked()
        self.at = {stride.first: stride for stride in self.list}
        self.ends = {stride.end: stride for stride in self.list}
        owner, self.more = anchor(functions[0])
        self.kept = _KEPT.setdefault(owner, {})
        self.look = (layout.single, layout.given, layout.carried, layout.time)
        self.before: dict[int, int] = {}
        self.graphs: dict[Hashable, Graph] = {}
        self.unread: dict[int, set[int]] = {}
        """By first step: the places of tensors that need a gradient and that nothing in a stride reads."""
        self.numbers = self._numbers(length)
        self.strict = False
        """Whether the steps are to run again."""

    def _known(self, f: Field, functions: tuple[Any, ...], length: int) -> tuple[Wiring, list[Stride]]:
        """The strides, of blocks those of the last pass where nothing stands elsewhere."""
        held = knowledge(functions[0]) if isinstance(f, BlockField) and f.extra == ((), {}) else None
        key = (length, self.grid.steps, f.depth.kind if f.depth is not None else "", [*map(id, functions)])
        tree = f.depth.tree if held is not None and f.depth is not None else ()
        key = (*key, [*map(id, tree)])
        if held is not None and held.strides is not None:
            known, wiring, strides = held.strides
            if known == key and wiring.current():
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
        state = (layout.given, layout.time, layout.device, str(tree_map(lambda _: 0, layout.unflatten(layout.given))))
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
        graph.require = self._require if self.strict else None
        numbers = self.numbers[stride.first // (stride.end - stride.first)]
        handed = (stride.calls, stride.fixed, stride.plain)
        mode = (torch.is_grad_enabled(), any(tensor.requires_grad for tensor in live))
        try:
            value = graph.run(mode, self.before[id(graph)], handed, numbers, tuple(live), *arguments)
        except UnsupportedError as error:
            if error.__cause__ is not None:  # a compiler's: it wraps what f itself raises
                self._evaluate(stride)
            raise
        if self.strict and name == "forth" and graph.effects is not None:
            read = {id(given) for given, no in zip(graph.inputs, graph.effects.unread, strict=True) if not no}
            self.unread[stride.first] = {i for i, tensor in enumerate(live) if id(tensor) not in read}
        graph.inputs = ()
        return value

    def _evaluate(self, stride: Stride) -> None:
        """Evaluates the field once in each step of a stride, for the errors that it raises without a compiler."""
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

    @staticmethod
    def _require(effects: Any) -> None:
        """Raises UnsupportedError for a graph that cannot run again as it ran."""
        for so, what, instead in (
            (effects.random, "draws random numbers, as dropout does", "put the model in eval mode"),
            (effects.written, "writes on a buffer, as running statistics do", "put the model in eval mode"),
            (
                effects.captured,
                "reads tensors that need a gradient and are neither its parameters nor its weights "
                f"(of shape {', '.join(map(str, effects.captured))})",
                "pass them as weights, or make the field an nn.Module",
            ),
        ):
            if so:
                raise UnsupportedError(
                    f"compile of equal steps with a gradient method that runs them again, of a field that {what}",
                    "fields that give the same for the same",
                    f"{instead}, take gradient='backprop', or leave out compile",
                )


def forth(kind: Kind) -> Any:
    """The function of a stride: from what is carried at its start to what is carried at its end."""
    solver, steps, count, trees = kind.solver, kind.steps, kind.count, kind.trees
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
