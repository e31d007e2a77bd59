"""What strides of equal steps read: tensors, and the pattern of them, which all strides of one graph have in common."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from odenet.kit import Rebuild, tree_flatten, tree_map
from odenet_torch.field.field import BlockField, Field, FunctionField
from odenet_torch.field.half_precision import HALF
from odenet_torch.field.state import Leaves
from odenet_torch.field.storages import nbytes
from odenet_torch.field.wiring import Wiring

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


def strides_of(f: Any, steps: int, length: int, wiring: Wiring) -> list[Stride]:
    """The strides of a `FunctionField` or a `BlockField`, of so many steps each."""
    depth: Any = f.depth
    tree: Any = None if depth is None else depth.tree
    blocks = issubclass(type(f), BlockField)
    named = {id(function): held for function, held in zip(wiring.functions, wiring.named, strict=True)}
    several = _several(f, steps, named)
    extra, rebuild_extra = tree_flatten(f.extra) if blocks and f.extra != ((), {}) else ([], None)
    known: dict[int, tuple[list[Any], Rebuild, str]] = {}

    def weights(layer: int) -> tuple[list[Any], Rebuild, str]:
        if layer not in known:
            weights_tree = f.trees[layer]
            like = known[0][2] if known and depth is not None and depth.stacked else None
            leaves, rebuild = tree_flatten(weights_tree)
            known[layer] = leaves, rebuild, str(tree_map(lambda _: 0, weights_tree)) if like is None else like
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
                function = tree[at] if blocks else f.function
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


def bytes_of_step(f: Field, function: Any, y0: Leaves) -> int:
    """Those of a state or of the weights of a step, whichever has more."""
    weights = 0
    if isinstance(f, BlockField):
        weights = sum(nbytes(parameter) for parameter in function.parameters())
    elif f.depth is not None and f.depth.kind != "shared":
        total = sum(nbytes(leaf) for leaf in tree_flatten(f.depth.tree)[0] if isinstance(leaf, Tensor))
        weights = total // f.depth.layers
    return max(weights, sum(leaf.nbytes for leaf in y0))


def _several(f: Any, steps: int, named: Mapping[int, Mapping[str, Tensor]]) -> set[int]:
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
