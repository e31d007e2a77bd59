"""A layer that somebody else wrote, and how it is called."""

from __future__ import annotations

import inspect
import types
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from odenet import ConversionError
from odenet.kit import tree_leaves
from odenet_torch.conversion.branches import PLAIN, Branch, traced, whole
from odenet_torch.conversion.sums import added, in_place, version
from odenet_torch.field.outer_data import LIBRARIES
from odenet_torch.field.places import OF_MODULES
from odenet_torch.field.reachable_objects import data_of_class

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""The arguments of a layer other than its state: positional and keyword arguments."""
_OF_MODULES = OF_MODULES | {"odenet_run", "_odenet_ways"}
_REMEMBERED = 16  # ways of calling a layer
_READ_ONLY = (*PLAIN, Tensor, torch.dtype, torch.device)


def arguments_of(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Arguments]:
    """The state that a layer is called with, its first argument, and the other arguments."""
    name = state_name(module, args)
    if name is None:
        return args[0], (args[1:], dict(kwargs))
    return kwargs.get(name), ((), {key: value for key, value in kwargs.items() if key != name})


def copied(value: Any) -> Any:
    """The same tensors and numbers in lists and dicts of their own, which a caller or a layer may go on filling."""
    if type(value) is list:
        return [copied(item) for item in value]
    if type(value) is dict:
        return {key: copied(item) for key, item in value.items()}
    return tuple(map(copied, value)) if type(value) is tuple else value


def state_name(module: nn.Module, args: tuple[Any, ...]) -> str | None:
    """The name by which a layer is given its state; None where it comes first."""
    return None if args else next(iter(inspect.signature(module.forward).parameters), "")


def state_of(output: Any) -> Any:
    """The new state in what a layer returned: all of it, or the first of several."""
    return output[0] if isinstance(output, (tuple, list)) and output else output


class Layer:
    """A layer of somebody else's, and its residual branches for each way in which it is called.

    Args:
        module: the layer.
        x: its state in a call, in evaluation.
        arguments: the others of that call.
        state: its new state in that call.
        tail: what it returned after its new state; None where it returned the state alone.
        tolerance: how far the sum of its branches may be from `state`, relative to the largest entry.

    Raises:
        InputError: it returns something else than its input plus something: the reason.
    """

    def __init__(
        self,
        module: nn.Module,
        x: Tensor,
        arguments: Arguments,
        state: Tensor,
        tail: tuple[Any, ...] | None,
        tolerance: float,
    ) -> None:
        self.module = module
        self.tail = tail
        self.known: dict[Any, tuple[Branch, ...]] = {}
        self.fresh = True
        ways = [self._traced(mode, arguments) for mode in (False, True)]
        # where it cannot be traced, or goes another way in training, all of it is one branch
        self.whole = None in ways or len(set(map(len, filter(None, ways)))) > 1
        if written_to(arguments):  # it cannot run again
            return
        if not self.whole:
            self.whole = difference(state, _sum(module, ways[0] or (), x, arguments)) > coarse(tolerance, state)
        if self.whole:
            added(module, x, *arguments[0], **arguments[1])

    def _traced(self, mode: bool, arguments: Arguments) -> tuple[Branch, ...] | None:
        before = self.module.training
        self.module.training = mode
        try:
            return traced(self.module, *arguments)
        finally:
            self.module.training = before

    def branches(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Branch, ...]:
        """The branches for a call with these other arguments; `fresh` is set where it was not called so before.

        Raises:
            InputError: called in this way, the layer is no sum of its input and something.
        """
        key = (kind_of(args), kind_of(kwargs))
        if not self.whole:
            key = (*key, decisions(self.module))
        if key not in self.known:
            branches = None if self.whole else traced(self.module, args, kwargs)
            while len(self.known) >= _REMEMBERED:
                del self.known[next(iter(self.known))]
            self.known[key] = whole(self.module, args, kwargs) if branches is None else branches
            self.fresh = True
        return self.known[key]

    def returned(self, state: Tensor) -> Any:
        """What the layer returns with this new state."""
        return state if self.tail is None else (state, *self.tail)

    def state(self, output: Any) -> Tensor:
        """The new state in what the layer returned."""
        return output if self.tail is None else output[0]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "known": {}, "fresh": True}  # made code, which cannot be pickled and is made again


def decisions(module: nn.Module) -> Any:
    """What a trace of a layer's own code depends on: all that it reads beside tensors, and which children it has."""
    own = vars(module)
    attributes = tuple((name, kind_of(value)) for name, value in own.items() if name not in _OF_MODULES)
    kind = getattr(type(module), "_odenet_base", type(module))
    children = own["_modules"].values()
    # none is missing as a rule, and a set of modules takes what is equal for one, too
    known = tuple(map(weakref.ref if None not in children else _itself, children))
    return attributes, known, _read(kind)


def _read(kind: type) -> Any:
    """The data that code of a class reads from the class and from global names."""
    return tuple((name, kind_of(value)) for name, value in data_of_class(kind))


def written_to(arguments: Arguments) -> str | None:
    """The class of an argument that the layer may write to, such as a cache of keys and values."""
    args, kwargs = arguments
    if all([isinstance(value, _READ_ONLY) for value in args]) and not kwargs:  # the most, without a tree made of them
        return None
    return next((type(leaf).__name__ for leaf in tree_leaves(arguments) if not isinstance(leaf, _READ_ONLY)), None)


def require_dense(value: Any) -> None:
    """Raises ConversionError for a nested tensor, of which torch has few operations."""
    if isinstance(value, Tensor) and value.is_nested:
        raise ConversionError(
            "a layer whose state is a nested tensor",
            "dense tensors as states; other arguments may be nested",
            "pad the state, and give the layers a mask; or convert other layers with where=",
        )


def difference(expected: Tensor, actual: Tensor) -> float:
    """The largest difference of two tensors, relative to the first one's largest entry; infinite for other shapes."""
    require_dense(expected)
    if expected.shape != actual.shape:
        return float("inf")
    if torch.equal(expected, actual) or not expected.numel():
        return 0.0
    wide = torch.promote_types(expected.dtype, torch.float64)
    one, other = expected.to(wide), actual.to(wide)
    off = float((one - other).abs().max() / one.abs().max().clamp_min(1e-30))
    return off if off == off else float("inf")


def coarse(tolerance: float, tensor: Tensor) -> float:
    """A tolerance, or 8 roundings of a number type that is coarser than float32."""
    half = tensor.is_floating_point() and tensor.element_size() < 4
    return max(tolerance, 8 * torch.finfo(tensor.dtype).eps) if half else tolerance


def _sum(module: nn.Module, branches: Sequence[Branch], x: Tensor, arguments: Arguments) -> Tensor:
    """The layer's new state as its branches make it."""
    for branch in branches:
        before = version(x)
        more = branch.function(module, x, tree_leaves(arguments))
        if version(x) != before:
            raise in_place(type(module).__name__)
        x = x + more
    return x


def marks(arguments: Arguments) -> list[Any]:
    """What tells arguments from others (see `same`), without keeping tensors alive: a tensor has one such reference."""
    return [weakref.ref(leaf) if isinstance(leaf, Tensor) else leaf for leaf in tree_leaves(arguments)]


def same(one: Sequence[Any], other: Sequence[Any]) -> bool:
    """Whether two calls had the same arguments: the same objects, or equal numbers and strings."""
    return len(one) == len(other) and all(
        a is b or (type(a) in PLAIN and type(a) is type(b) and a == b) for a, b in zip(one, other, strict=True)
    )


def kind_of(value: Any) -> Any:
    """What a trace depends on: plain values and containers; of anything else its class."""
    if value is None or type(value) in PLAIN:
        return type(value), value
    if isinstance(value, Mapping):
        return type(value), tuple((key, kind_of(item)) for key, item in value.items())
    if isinstance(value, (tuple, list)):
        return type(value), tuple(map(kind_of, value))
    if isinstance(value, Tensor):
        return Tensor
    own = getattr(value, "__dict__", None)
    if isinstance(own, dict) and type(value).__module__.partition(".")[0] not in LIBRARIES:
        return type(value), tuple((name, item) for name, item in own.items() if item is None or type(item) in PLAIN)
    return type(value), _itself(value) if callable(value) else None


def _itself(value: Any) -> Any:
    """What is equal for the same object, and for no other one that has its `id` when it is gone."""
    if isinstance(value, types.MethodType):  # made anew wherever it is asked for
        return value.__func__, _itself(value.__self__)
    try:
        return weakref.ref(value) if type(value).__eq__ is object.__eq__ else _Held(value)
    except TypeError:  # it has no weak references
        return _Held(value)


class _Held:
    """An object that is held, and equal to itself alone."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Held) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)
