"""Fields whose pullback is not linear in the gradient that it is given: a `torch.autograd.Function` of the user's whose
backward clips or adds to it, or a hook on a tensor or a module that does.

Torch's own derivatives are linear, and two methods that take them along other steps, or of one step in other pieces,
agree as far as their states do. What a user writes may be anything: what clips has another gradient for each size of
steps, as it is given h times the gradient in a step of the network and the gradient itself in the continuous adjoint.
How far states are off says nothing of that. Whether there is such a function or hook is read off the graph of a block's
first evaluation; only then the pullback itself is asked, a few times, once in the block's life.

Over 250 lines: what is asked of one rule, and how it is told from torch's own and from hooks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import GradientEdge
from torch.overrides import TorchFunctionMode

from odenet_torch.field import kinks, switches
from odenet_torch.field.half_precision import HALF
from odenet_torch.field.jumps import Watch
from odenet_torch.field.looked import Looked
from odenet_torch.field.reachable_objects import ReachableObjects
from odenet_torch.field.saved_tensors import LEAF, nodes, now
from odenet_torch.field.side_results import recorded
from odenet_torch.field.state import Leaves

UNEVEN = Looked()
"""Parts of fields whose pullback was seen not to be linear."""
_KNOWN = ("odenet_torch.", "torch.distributed.")
"""Modules whose functions are linear, as a solve within the field is, which has a certificate of its own."""
_APART = 2.0**40
"""Between the sizes of gradients at which a pullback is asked: whatever is clipped or dropped is so at one of them."""
_OF_HALVES = 2.0**4
"""The same in float16, where larger and smaller ones overflow and vanish."""
_DIRECTIONS = 4
_OFF, _CROSSING = 0.02, 8
"""What a rule may differ by from a difference of two states, beside it: curvature, and by how many steps, whose length
tells how many kinks lie in between."""
_SMALL = 1e-3
"""What two pullbacks may differ by, relative to them: rounding, and what no certificate would see."""
_ROUNDINGS = 16
"""How many of those of a half-precision type."""


class HookWatch(TorchFunctionMode):
    """Looks whether a block registers hooks on tensors.

    Attributes:
        found: whether it did.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found |= func is Tensor.register_hook
        return func(*args, **(kwargs or {}))


def declares(found: Iterable[Any]) -> bool:
    """Whether there is a node of a function with a backward of its own among nodes of a graph: a full hook of a module
    has one."""
    return any(map(_declared, found))


def _declared(node: Any) -> bool:
    if not isinstance(node, BackwardCFunction):
        return False
    function: Any = getattr(node, "_forward_cls")  # noqa: B009
    return not function.__module__.startswith(_KNOWN)


def hooks_a_module(modules: Iterable[nn.Module]) -> bool:
    """Whether one of these has hooks on the gradient: those of the older kind have no node."""
    return any(module._backward_hooks for module in modules)


class Pullback(NamedTuple):
    """What a pullback was seen to do.

    Args:
        linear: whether it is linear in the gradient, and, where it masks by the state, the forward pass's own.
        jumps: whether a backward of the user's rounds, or sorts, by the state.
        kinked: whether one masks, compares or clips by the state: there, the derivative is another one on each side,
            whatever the forward does (a straight-through estimator has none of its own).
    """

    linear: bool
    jumps: bool
    kinked: bool = False


def pullback(evaluate: Callable[[], Leaves], y: Leaves, handed: Iterable[Tensor] = ()) -> Pullback:
    """What the pullback of an evaluation at y does.

    Args:
        evaluate: the block's evaluation, which is run once.
        y: the state.
        handed: tensors that the block is handed beside it.
    """
    since, watch = now(), _RuleWatch(y)
    with watch, recorded(y):
        with torch.autograd.graph.saved_tensors_hooks(torch.Tensor.detach, lambda saved: saved):  # told by `watch`
            outputs = [leaf for leaf in evaluate() if leaf.requires_grad]
        found = [*nodes(outputs, since)]
        edges = _edges(found, since, [*y, *handed])
        if not edges:
            return Pullback(linear=True, jumps=False)
        watch.bracket(found)
        try:
            even = linear(outputs, edges, watch)
        except Exception:  # of somebody's backward, which is made for one pass alone, or refuses such gradients
            even = False
    kinked = watch.compares or kinks.by_name(watch.names)
    return Pullback(even and not (kinked and _of_its_own(evaluate, y)), watch.rounds, kinked)


def _of_its_own(evaluate: Callable[[], Leaves], y: Leaves) -> bool:
    """Whether a pullback that masks by the state is no derivative of the forward pass, as that of a straight-through
    estimator with a window is not: smaller steps do not make it one, as they do at the kinks of ReLU.

    Along a few directions, as good as by chance, together: along one alone much may cancel.
    """
    y = tuple(leaf for leaf in y if leaf.is_floating_point())
    try:
        with recorded(y):
            outputs = [leaf for leaf in evaluate() if leaf.requires_grad]
            weights = [x.detach().cos() for x in outputs]
            found = torch.autograd.grad(outputs, y, weights, allow_unused=True, materialize_grads=True)
        slopes = [_dense(x) for x in found]
        step = max(torch.finfo(leaf.dtype).eps for leaf in y) ** (1 / 3)
        off = size = 0.0
        for seed in range(_DIRECTIONS):
            places = switches.either_side(y, seed, step)
            way = [(a.double() - b.double()) for a, b in zip(*places, strict=True)]
            ends = [switches.elsewhere(y, place, evaluate) for place in places]
            told = sum(float((a * b.to(a)).sum()) for a, b in zip(slopes, way, strict=True))
            pairs = zip(weights, *ends, strict=True)
            true = sum(float((w.double() * (a.double() - b.double())).sum()) for w, a, b in pairs)
            off, size = off + (told - true) ** 2, size + max(told**2, true**2)
    except Exception:  # of one that takes derivatives itself, or is no function at other states
        return False
    return bool(off > max(_OFF, _CROSSING * step) ** 2 * size)


def linear(outputs: Sequence[Tensor], edges: Sequence[GradientEdge], watch: _RuleWatch) -> bool:
    """Whether the pullback from outputs to edges of their graph is linear, by four gradients.

    Those of torch's own are so to the last bit where the gradient is multiplied by a power of two, and up to rounding
    where two are added.
    """

    def pulled(gradients: Sequence[Tensor], factor: float = 1.0) -> list[Tensor | None]:
        found = torch.autograd.grad(
            outputs, edges, [factor * x for x in gradients], retain_graph=True, allow_unused=True
        )
        return [None if x is None else _dense(x) / factor for x in found]

    # as good as by chance, and of the outputs' own class and device
    one, other = [x.detach().cos() for x in outputs], [(3 * x.detach() + 1).sin() for x in outputs]
    whole = pulled([a + b for a, b in zip(one, other, strict=True)])
    apart = _OF_HALVES if torch.float16 in watch.dtypes else _APART
    size = max(_SMALL, *(_ROUNDINGS * torch.finfo(x).eps for x in watch.dtypes & HALF), 0.0)
    small, large, turned = pulled(one, 1 / apart), pulled(other, apart), pulled(one, -1.0)
    for a, b, c, minus in zip(whole, small, large, turned, strict=True):
        pairs = ((_sum(b, c), a), (minus, b))
        if not all(_same(*pair, size) for pair in pairs):
            return False
    return True


def _dense(x: Tensor) -> Tensor:
    x = x.to_dense() if x.layout is not torch.strided else x
    return x.to(torch.complex128 if x.is_complex() else torch.float64)


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def _same(a: Tensor | None, b: Tensor | None, size: float) -> bool:
    if a is None or b is None:
        return a is b or not any(x is not None and bool(x.any()) for x in (a, b))
    return bool(torch.linalg.vector_norm(a - b) <= size * torch.linalg.vector_norm(b))  # of NaN it is not


def _edges(found: Iterable[Any], since: int, known: Iterable[Tensor]) -> list[GradientEdge]:
    """Where a gradient leaves the part of a graph that an evaluation has recorded: at leaves, and tensors that it was
    handed. Those with hooks are left out, which are no part of the block and are not to hear of this."""
    handed = {(x.grad_fn, x.output_nr) for x in known if x.grad_fn is not None and not x._backward_hooks}
    edges: dict[tuple[Any, int], None] = {}
    for node in found:
        for following, n in node.next_functions:
            if following is None:
                continue
            if type(following).__name__ == LEAF and not isinstance(following, BackwardCFunction):
                if not following.variable._backward_hooks:
                    edges[following, n] = None
            elif following._sequence_nr() < since and (following, n) in handed:
                edges[following, n] = None
    return [GradientEdge(*edge) for edge in edges]


class _RuleWatch(Watch):
    """Looks for rounding and comparing by the state in backward passes of the user's own alone, and number types."""

    def __init__(self, y: Leaves) -> None:
        super().__init__(y)
        self.within, self.dtypes = 0, set[torch.dtype]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = self.rounds, self.compares, {*self.names}
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if not self.within:
            self.rounds, self.compares, self.names = before
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, Tensor):
                self.dtypes.add(x.dtype)
        return out

    def bracket(self, found: Iterable[Any]) -> None:
        """Tell what nodes of the user's compute from what others do: there, the gradient is no part of the state."""

        def enter(gradients: Sequence[Tensor | None]) -> None:
            self.within += 1
            for x in gradients:
                self.forget(x)

        def leave(*_: Any) -> None:
            self.within -= 1

        for node in found:
            if _declared(node):
                node.register_prehook(enter)
                node.register_hook(leave)


@contextlib.contextmanager
def keeping_gradients(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, a backward of the user's that calls `backward()` itself adds to nobody's `.grad`."""
    parameters = {id(x): x for module in modules for x in module.parameters()}.values()
    before = [x.grad for x in parameters]
    for x in parameters:
        x.grad = None
    try:
        yield
    finally:
        for x, gradient in zip(parameters, before, strict=True):
            x.grad = gradient


def uneven(root: Any, reached: ReachableObjects | None = None) -> bool:
    """Whether the pullback of a part of a field was seen not to be linear (see `Looked.some`)."""
    return UNEVEN.some(root, reached)
