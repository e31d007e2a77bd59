"""The field along depth, and the tensors that its gradient goes to.

Over 250 lines: functions and blocks are two kinds of one interface, beside the walk over graphs that both ask.
"""

from __future__ import annotations

import collections
import functools
import gc
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction

from odenet import Depth, GradientError, UnsupportedError
from odenet.kit import blend, check_alike, require_finite_tree, tree_flatten, tree_leaves, tree_map
from odenet_torch.field.arguments import require_arguments
from odenet_torch.field.differentiating import record
from odenet_torch.field.half_precision import Reads, slots
from odenet_torch.field.knowledge import name_of
from odenet_torch.field.saved_tensors import LEAF
from odenet_torch.field.saved_tensors import now as now
from odenet_torch.field.state import as_tensor

_BLOCKS = "blocks that can be called as block(x), with what the network is given beside x"
Stand = Mapping[int, Tensor]
"""Tensors that stand in for explicit weights, by `id` of the weight: fresh leaves to take a VJP with respect to."""


class Field(ABC):
    """`f(t, y, w)` with the weights of a place in depth.

    Explicit tensors are handed to f and can be replaced by stand-ins; captured tensors are leaves that f reads by
    itself (parameters of modules, closures).
    """

    depth: Depth | None
    shared = False
    """Whether all steps are known to have the same weights."""
    calls = True
    """Whether it calls its modules, and not their parts alone."""
    captured: tuple[Tensor, ...] = ()
    reads: Reads | None = None
    """Of weights that many evaluations read, where autograd adds up what these add to the gradients."""
    homes: Mapping[int, tuple[Tensor, int]] = {}
    """Where the gradient of a row of a stacked weight goes, by `id` of the row: the stack and the index."""

    @abstractmethod
    def __call__(self, t: Tensor, y: Any, n: int, position: float, steps: int, stand: Stand | None = None) -> Any:
        """The slope at `position` in [0, 1] of step n of `steps`."""

    def explicit(self, n: int, steps: int) -> tuple[Tensor, ...]:
        """The differentiable tensors handed to f in step n, once each."""
        return ()

    def read(self, n: int, steps: int) -> tuple[Tensor, ...]:
        """The captured leaves that f may read in step n, once each."""
        return self.captured

    def functions(self) -> Iterable[Any]:
        """The functions and modules that f consists of, once each."""
        return ()

    def seen(self, by: Callable[..., bool]) -> bool | None:
        """Whether some of it is so (`jumps.jumps`, `kinks.kinked`, ...), where that is known without asking for
        each part."""
        return None

    def everything(self, steps: int) -> tuple[Tensor, ...]:
        """All tensors that a gradient goes to in some step, once each: stacks instead of their rows."""
        return unique(
            self.home(tensor)[0]
            for n in range(steps)
            for tensors in (self.explicit(n, steps), self.read(n, steps))
            for tensor in tensors
        )

    def capture(self, tensors: Iterable[Tensor]) -> None:
        """These are captured, too."""
        self.captured = unique((*self.captured, *tensors))

    def home(self, tensor: Tensor) -> tuple[Tensor, int | None]:
        """The tensor that a gradient goes to, and the row of it where that is a stack."""
        return self.homes.get(id(tensor), (tensor, None))

    def apart(self) -> Field:
        """The same field for a backward pass of our own, which needs no autograd between a stack and its rows."""
        return self

    def direct(self) -> Callable[[Tensor, Any], Any] | None:
        """f of time and state, where it is the same at all places; None where it is not."""
        return None

    def recorded(self, device: torch.device, steps: int | None) -> None:
        """Called before a forward pass that autograd records.

        Args:
            device: of the state.
            steps: how many; None for as many as are needed.
        """
        return

    def modules(self, n: int, position: float, steps: int) -> Sequence[tuple[str, nn.Module]]:
        """The modules that f is known to call at `position` of step n, with names for messages."""
        return ()

    def roots(self, n: int, position: float, steps: int) -> Sequence[tuple[str, Any]]:
        """What f is made of at `position` of step n, with names: what it reads beside its arguments is found there."""
        return self.modules(n, position, steps)

    def handed(self, n: int, steps: int) -> Iterable[Tensor]:
        """The tensors handed to f in step n, beside its state."""
        return ()

    def settle(self, ns: Iterable[int], steps: int) -> None:
        """Called before steps run again."""
        return

    def layers(self, n: int, steps: int) -> tuple[int, ...]:
        """The layers (or both nodes of the interval) that step n reads."""
        if self.depth is None:
            return ()
        layer, _, _ = self.depth.place(n, steps)
        return (layer, layer + 1) if self.depth.kind == "linear" else (layer,)


class FunctionField(Field):
    """A function `field(t, y, w)`, or `field(t, y)` without weights.

    Raises:
        DepthError: layers that cannot be interpolated.
    """

    inner: Reads | None

    def __init__(self, function: Callable[..., Any], depth: Depth | None) -> None:
        if depth is not None and depth.kind == "linear" and not depth.stacked:
            check_alike(depth.tree)
        if isinstance(function, nn.Module):
            arguments = "ty" if depth is None else "tyw"
            form = f"field({', '.join(arguments)})"
            require_arguments(function, arguments, {}, "field", f"a module that can be called as {form}")
        self.function = function
        # of a compiled step: what it calls, the module whose weights that reads, and how, where it is not `reads`
        self.traced, self.module, self.inner = function, function, None
        self.depth, self.shared = depth, depth is None or depth.kind == "shared"
        # as in BlockField
        self.parameters: dict[str, Tensor] = (
            dict(function.named_parameters()) if isinstance(function, nn.Module) else {}
        )
        self.moved = False
        self.captured = tuple(p for p in self.parameters.values() if p.requires_grad)

    def modules(self, n: int, position: float, steps: int) -> Sequence[tuple[str, nn.Module]]:
        function = self.function
        return [(type(function).__name__, function)] if isinstance(function, nn.Module) else ()

    def roots(self, n: int, position: float, steps: int) -> Sequence[tuple[str, Any]]:
        function = self.function
        return [(name_of(function), function)]

    def functions(self) -> Iterable[Any]:
        return (self.function,)

    def handed(self, n: int, steps: int) -> Iterable[Tensor]:
        if self.depth is None:
            return ()
        whole = self.depth.stacked or self.depth.kind == "shared"
        trees = [self.depth.tree] if whole else [self.depth.tree[layer] for layer in self.layers(n, steps)]
        return (leaf for leaf in tree_leaves(trees) if isinstance(leaf, Tensor))

    def direct(self) -> Callable[[Tensor, Any], Any] | None:
        function = self.function
        if self.reads is not None:
            return None
        if self.depth is None:
            return function
        if self.depth.kind != "shared":
            return None
        weights = self.trees[0]
        return lambda t, y: function(t, y, weights)

    def recorded(self, device: torch.device, steps: int | None) -> None:
        if not torch.is_grad_enabled():
            self.reads = None
            return
        depth = self.depth
        # f reads the parameters of a module in every step, and a layer in as many as there are to it
        once = steps is not None and depth is not None and depth.kind != "shared" and depth.factor(steps) == 1
        handed = () if depth is None or once else tree_leaves(self.trees)
        captured = self.parameters.values() if self.parameters else (weight for *_, weight in slots(self.function))
        self.reads = Reads.of(device, (*(leaf for leaf in handed if isinstance(leaf, Tensor)), *captured))

    def settle(self, ns: Iterable[int], steps: int) -> None:
        self.reads = None
        self.moved = isinstance(self.function, nn.Module) and moved(self.function, self.parameters)

    @functools.cached_property
    def trees(self) -> list[Any]:
        """The weights, one tree a layer; made when they are first read, since an adjoint reads those of `apart`."""
        return _unstack(self.depth)

    def __call__(self, t: Tensor, y: Any, n: int, position: float, steps: int, stand: Stand | None = None) -> Any:
        if self.reads is None:
            return self._at(t, y, n, position, steps, stand)
        weights = self.explicit(n, steps)
        return self.reads.evaluate(lambda read: self._at(t, y, n, position, steps, read), weights, self.function)

    def _at(self, t: Tensor, y: Any, n: int, position: float, steps: int, stand: Stand | None) -> Any:
        if self.depth is None:
            return self._call(t, y)
        layer, start, span = self.depth.place(n, steps)
        if self.depth.kind != "linear":
            return self._call(t, y, self._weights(layer, stand))
        local = start + span * position
        one = self._weights(layer, stand)
        return self._call(t, y, blend(one, self._weights(layer + 1, stand), local) if local else one)

    def _call(self, *arguments: Any) -> Any:
        if self.moved and isinstance(self.function, nn.Module):
            return torch.func.functional_call(self.function, self.parameters, arguments)
        try:
            return self.function(*arguments)
        except RuntimeError as error:
            return record(error, self.function, *arguments)

    def explicit(self, n: int, steps: int) -> tuple[Tensor, ...]:
        if self.depth is None:
            return ()
        leaves = (leaf for layer in self.layers(n, steps) for leaf in tree_leaves(self.trees[layer]))
        return unique(leaf for leaf in leaves if id(leaf) in self.homes or _differentiable(leaf))

    def apart(self) -> FunctionField:
        if self.depth is None or self.depth.kind == "shared" or not self.depth.stacked:
            return self
        stacks, unflatten = tree_flatten(self.depth.tree)
        cut = Depth(unflatten([x.detach() if isinstance(x, Tensor) else x for x in stacks]), self.depth.kind)
        alone = FunctionField(self.function, cut)
        alone.homes = {
            id(row): (stack, layer)
            for layer, tree in enumerate(alone.trees)
            for row, stack in zip(tree_leaves(tree), stacks, strict=True)
            if _differentiable(stack)
        }
        return alone

    def around(self, layer: int, count: int, stand: Stand | None) -> tuple[Any, ...]:
        """The weights that a step within a layer reads, of `count` layers: none, one tree, or both ends' of an
        interval."""
        if self.depth is None:
            return ()
        layers = self.layers(layer, count)
        return tuple(self._weights(index, stand) for index in layers)

    def _weights(self, layer: int, stand: Stand | None) -> Any:
        tree = self.trees[layer]
        return tree if stand is None else tree_map(lambda leaf: stand.get(id(leaf), leaf), tree)


class BlockField(Field):
    """A list of modules `x -> f(x)`, one a layer; linear in depth, their parameters are interpolated.

    Args:
        blocks: one a layer.
        kind: "piecewise" or "linear".
        extra: positional and keyword arguments of every block beside x. Tensors among them are weights, too.
    """

    def __init__(self, blocks: Sequence[nn.Module], kind: str, extra: tuple[Any, Any] = ((), {})) -> None:
        self.depth = Depth.each(blocks, "linear" if kind == "linear" else "piecewise")
        self.extra = extra
        require_finite_tree("what the blocks are given beside x", [*extra])
        self.extra_tensors = unique(leaf for leaf in tree_leaves(extra) if _differentiable(leaf))
        plain = (Tensor, bool, int, float, complex, str, type(None))
        # what a block may write in, or that holds tensors which nobody knows of
        self.keepers: list[tuple[str, Any]] = (
            [] if all(isinstance(x, plain) for x in (*extra[0], *extra[1].values())) else [("the arguments", extra)]
        )
        self.moved = False

    @functools.cached_property
    def parameters(self) -> dict[int, dict[str, Tensor]]:
        """What the blocks hold in the forward pass: inside functional_call or FSDP they hold something else when they
        run again. Read in the forward pass by all that reads it later."""
        return {id(block): dict(block.named_parameters()) for block in self.functions()}

    def __call__(self, t: Tensor, y: Any, n: int, position: float, steps: int, stand: Stand | None = None) -> Any:
        if self.reads is None:
            return self._at(t, y, n, position, steps, stand)
        assert self.depth is not None
        block = self.depth.tree[self.depth.place(n, steps)[0]]
        return self.reads.evaluate(
            lambda read: self._at(t, y, n, position, steps, read),
            self.extra_tensors,
            block if self.depth.kind == "piecewise" else None,
        )

    def _at(self, t: Tensor, y: Any, n: int, position: float, steps: int, stand: Stand | None) -> Any:
        assert self.depth is not None
        layer, start, span = self.depth.place(n, steps)
        local = start + span * position if self.depth.kind == "linear" else 0.0
        arguments, named = self.extra
        if stand and self.extra_tensors:
            arguments, named = tree_map(lambda leaf: stand.get(id(leaf), leaf), self.extra)
        if local in (0, 1):
            block = self.depth.tree[layer + int(local)]
            if not self.moved:
                try:
                    return block(y, *arguments, **named)
                except RuntimeError as error:
                    return record(error, lambda _, at: block(at, *arguments, **named), None, y)
                except TypeError:
                    require_arguments(block, (y, *arguments), named, "a block", _BLOCKS)
                    raise
            return torch.func.functional_call(block, self.parameters[id(block)], (y, *arguments), named)
        if torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
            raise _not_traced(local)
        one, other = self.depth.tree[layer], self.depth.tree[layer + 1]
        mixed = blend(self.parameters[id(one)], self.parameters[id(other)], local)
        return torch.func.functional_call(one, mixed, (y, *arguments), named)

    def recorded(self, device: torch.device, steps: int | None) -> None:
        assert self.depth is not None
        count = collections.Counter(id(p) for block in self.depth.tree for p in self.parameters[id(block)].values())
        several = (p for tables in self.parameters.values() for p in tables.values() if count[id(p)] > 1)
        self.reads = Reads.of(device, (*self.extra_tensors, *several))

    def settle(self, ns: Iterable[int], steps: int) -> None:
        """Looks whether the blocks still hold the parameters of the forward pass."""
        assert self.depth is not None
        self.reads = None
        blocks = {layer: self.depth.tree[layer] for n in ns for layer in self.layers(n, steps)}
        self.moved = any(
            moved(block, self.parameters[id(block)])
            for block in {id(block): block for block in blocks.values()}.values()
        )

    def explicit(self, n: int, steps: int) -> tuple[Tensor, ...]:
        return self.extra_tensors

    def read(self, n: int, steps: int) -> tuple[Tensor, ...]:
        assert self.depth is not None
        tables = (self.parameters[id(self.depth.tree[layer])] for layer in self.layers(n, steps))
        return unique((*self.captured, *(p for table in tables for p in table.values() if p.requires_grad)))

    def modules(self, n: int, position: float, steps: int) -> Sequence[tuple[str, nn.Module]]:
        assert self.depth is not None
        layer, start, span = self.depth.place(n, steps)
        layer += self.depth.kind == "linear" and start + span * position == 1  # between two blocks it is the first
        block = self.depth.tree[layer]
        return [(f"block {layer} ({type(block).__name__})", block)]

    def roots(self, n: int, position: float, steps: int) -> Sequence[tuple[str, Any]]:
        return [*self.modules(n, position, steps), *self.keepers]

    def functions(self) -> Iterable[Any]:
        assert self.depth is not None
        return {id(block): block for block in self.depth.tree}.values()

    def handed(self, n: int, steps: int) -> Iterable[Tensor]:
        return (leaf for leaf in tree_leaves(self.extra) if isinstance(leaf, Tensor))


def unique(tensors: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """Each tensor once, by identity, in order."""
    return tuple({id(tensor): tensor for tensor in tensors}.values())


def outside(
    outputs: Iterable[Tensor], known: Iterable[Tensor], since: int, *, thoroughly: bool = False
) -> tuple[Tensor, ...]:
    """The leaves, beside `known`, that a graph recorded after `since` (see `now`) ends at.

    One that the evaluation made for itself and let go (`y.detach().requires_grad_()`, of which an energy is
    differentiated) is none: nobody is left who could ask for its gradient, and each evaluation makes another one.

    Args:
        outputs: of the evaluation, in whose thread this is called.
        known: leaves that it is known to read.
        since: before the evaluation.
        thoroughly: whether what only the garbage collector lets go (a function that calls itself, a frame and the
            exception that it caught), and what a node of the user's keeps on its context, is known for let go, too.

    Raises:
        GradientError: the graph goes on into one that was recorded before, so that f reads a tensor that was computed
            elsewhere: recomputing f alone could not give that computation its gradient.
    """
    found, older, visited = _walked(outputs, since)
    if older:
        by = type(older[0]).__name__
        raise GradientError(
            f"the field reads a tensor that was computed outside of it (by {by}) and needs a gradient",
            "tensors passed as weights, and parameters",
            "pass that tensor in weights, compute it inside the field, or take gradient='backprop'",
        )
    for tensor in known:
        found.pop(id(tensor), None)
    held = _held(found, {})
    if thoroughly and held:
        on_contexts = collections.Counter(
            id(value)
            for node in visited
            if isinstance(node, BackwardCFunction)
            for kept in vars(node).values()
            for value in (kept if type(kept) in (tuple, list) else (kept,))
        )
        held = _held(found, on_contexts)
        for generation in range(3):  # what an evaluation has just made is in the youngest as a rule
            if not held:
                break
            gc.collect(generation)
            held = _held(found, on_contexts)
    return tuple([found[key] for key in held])


def _held(found: dict[int, Tensor], besides: Mapping[int, int]) -> list[int]:
    """Those of some leaves, by `id`, that somebody holds beside their graph, and so often `besides`."""
    graph = _references_of_a_graph()
    return [key for key in found if sys.getrefcount(found[key]) - besides.get(key, 0) > graph]


@functools.cache
def _references_of_a_graph() -> int:
    """How often a leaf is referred to that `_walked` has found and nobody but its graph holds.

    Measured, since it depends on the release of torch whether what C++ holds counts; and in a thread of its own, since
    a mode that is active in this one may hold whatever it sees.
    """
    counts: list[int] = []

    def count() -> None:
        found, *_ = _walked([torch.zeros((), device="cpu", requires_grad=True) * 1], 0)
        (key,) = found
        counts.append(sys.getrefcount(found[key]))

    thread = threading.Thread(target=count)
    thread.start()
    thread.join()
    return counts[0]


def leaves(outputs: Iterable[Tensor], since: int) -> tuple[Tensor, ...]:
    """The leaves that a graph recorded after `since` ends at, whatever it ends at beside them."""
    return ends(outputs, since)[0]


def ends(outputs: Iterable[Tensor], since: int) -> tuple[tuple[Tensor, ...], list[Any]]:
    """Where a graph ends: at leaves, and at nodes that were recorded before."""
    found, older, _ = _walked(outputs, since)
    return tuple(found.values()), older


def _walked(outputs: Iterable[Tensor], since: int) -> tuple[dict[int, Tensor], list[Any], set[Any]]:
    """See `ends`; the leaves by their `id`, and all nodes that were met."""
    leaves: dict[int, Tensor] = {}
    older: list[Any] = []
    # each is asked for its node once: torch makes an object of Python's for it, which is gone when nobody holds it
    pairs = [(node, output.is_cpu) for output in outputs if (node := output.grad_fn) is not None]
    stack: list[Any] = [node for node, _ in pairs]
    # each thread counts by itself: another one's number may be any. On the host gradients of the evaluation's own are
    # recorded in its thread, too, and not in one of the device's
    until = now() if all([on_host for _, on_host in pairs]) else sys.maxsize
    visited = set(stack)
    while stack:
        node = stack.pop()
        if type(node).__name__ == LEAF:
            leaf = node.variable
            leaves[id(leaf)] = leaf
        elif not since <= node._sequence_nr() < until:
            older.append(node)
        else:
            for following, _ in node.next_functions:
                if following is not None and following not in visited:
                    visited.add(following)
                    stack.append(following)
    return leaves, older, visited


def moved(module: nn.Module, parameters: Mapping[str, Tensor]) -> bool:
    """Whether a module holds other parameters than these now."""
    current = dict(module.named_parameters())
    return current.keys() != parameters.keys() or any(current[name] is not parameters[name] for name in parameters)


def _differentiable(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.requires_grad


def _unstack(depth: Depth | None) -> list[Any]:
    """One tree of weights a layer. `unbind` costs its backward one stack; indexing would cost it N."""
    if depth is None:
        return []
    depth = Depth(tree_map(as_tensor, depth.tree), depth.kind, depth.stacked)
    if depth.kind == "shared" or not depth.stacked:
        return [depth.at(n) for n in range(depth.layers)]
    leaves, unflatten = tree_flatten(depth.tree)
    columns = [leaf.unbind(0) if isinstance(leaf, Tensor) else [leaf] * depth.layers for leaf in leaves]
    return [unflatten(row) for row in zip(*columns, strict=True)]


def _not_traced(local: float) -> UnsupportedError:
    """The error of weights between two layers under torch.jit.trace, whose modules cannot be called with others."""
    return UnsupportedError(
        f"weights between two layers (at {local:g} of the way) in torch.jit.trace, which cannot call a block with them",
        "solvers that read layers alone there, such as euler and heun, or along='piecewise'",
        "take torch.export or torch.onnx.export(..., dynamo=True), which record it",
    )
