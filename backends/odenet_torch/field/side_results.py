"""Results that leave f by the side in a forward pass without a graph: tensors that f keeps where others find them.

Under a checkpoint of torch's they have their gradient. Where steps run without a graph they would be taken for
constants by a loss that uses them: they are replaced by ones whose gradient is an error.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from odenet import GradientError
from odenet_torch.field.places import Location
from odenet_torch.field.state import Leaves
from odenet_torch.field.surroundings import Difference, Surroundings, differences, full, put_back, tensors_in

Root = tuple[str, Any]
"""What f is made of, with a name for messages."""
# by what f is made of: names of places where it was seen to keep tensors that depend on nothing
_DETACHED: weakref.WeakKeyDictionary[Any, set[str]] = weakref.WeakKeyDictionary()


class SideResults:
    """The surroundings of f in one forward pass.

    Args:
        cut: whether its steps run without a graph.
    """

    def __init__(self, cut: bool) -> None:
        self.cut = cut
        self.around: dict[int, Surroundings] = {}
        self.of_step: dict[int, set[int]] = {}
        self.differentiable: set[tuple[int, Any]] = set()
        """Places and keys of tensors that depend on what has a gradient."""

    def begin(self, step: int, roots: Iterable[Root]) -> list[Surroundings]:
        """Before an evaluation: those that are met for the first time."""
        met = []
        for name, root in roots:
            if id(root) not in self.around:
                self.around[id(root)] = around = Surroundings(name, root)
                met.append(around)
            self.of_step.setdefault(step, set()).add(id(root))
        return met

    def look(self, met: Sequence[Surroundings], y: Leaves, evaluate: Callable[[], Any]) -> None:
        """After the first evaluation of some: which of the tensors that they keep depend on what has a gradient.

        Args:
            met: what `begin` returned.
            y: the state that it was evaluated at.
            evaluate: evaluates it once more.
        """
        if not self.cut:
            return
        for around in met:
            leftovers = [leftover for leftover in around.left() if _name(leftover) not in _detached(around.root)]
            if not leftovers:
                continue
            if not torch.is_grad_enabled():
                leftovers = _with_graph(around, y, evaluate)
            for leftover in leftovers:
                if any(tensor.requires_grad for tensor in _new(leftover)):
                    self.differentiable.add((id(leftover[0]), leftover[1]))
                else:
                    _detached(around.root).add(_name(leftover))

    def finish(self) -> None:
        """The forward pass has ended."""
        for around in self.around.values():
            if self.differentiable:
                for place, key, old, new in around.left():
                    if (id(place), key) in self.differentiable:
                        name = full(around.name, place.called(key))
                        place.put(key, _cut(new, {id(tensor) for tensor in tensors_in(old)}, name))
            around.written()

    @contextlib.contextmanager
    def back(self, steps: Iterable[int]) -> Iterator[None]:
        """While steps run again: f finds what it found, and leaves nothing.

        Raises:
            GradientError: a tensor that f may read was written on since.
        """
        with contextlib.ExitStack() as stack:
            for key in {key for n in steps for key in self.of_step.get(n, ())}:
                around = self.around[key]
                around.require_unwritten()
                if not around.untouched():
                    stack.enter_context(around.again())
            yield


def _with_graph(around: Surroundings, y: Leaves, evaluate: Callable[[], Any]) -> list[Difference]:
    """What is kept by an evaluation with a graph, which leaves nothing behind."""
    places = around.reach.places
    now = [place.contents() for place in places]
    alone = [leaf for leaf in y if leaf.is_leaf and not leaf.requires_grad]
    for leaf in alone:
        leaf.requires_grad_()
    try:
        with torch.enable_grad():
            evaluate()
        return differences(places, now)
    finally:
        put_back(differences(places, now))
        for leaf in alone:
            leaf.requires_grad_(False)


def _new(difference: Difference) -> list[Tensor]:
    _, _, old, new = difference
    known = {id(tensor) for tensor in tensors_in(old)}
    return [tensor for tensor in tensors_in(new) if id(tensor) not in known]


def _name(difference: Difference) -> str:
    place: Location = difference[0]
    return place.called(difference[1])


def _detached(root: Any) -> set[str]:
    try:
        return _DETACHED.setdefault(root, set())
    except TypeError:  # no weak reference to it
        return set()


def _cut(value: Any, known: set[int], name: str) -> Any:
    """The tensors in a value, but for those that are known, as ones whose gradient is an error."""
    if isinstance(value, Tensor):
        if id(value) in known or not (value.is_floating_point() or value.is_complex()):
            return value
        with torch.enable_grad():
            return _SideResult.apply(torch.empty(0, requires_grad=True), value.detach(), name)
    if isinstance(value, dict):
        value.update({key: _cut(item, known, name) for key, item in value.items()})
        return value
    if isinstance(value, list):
        value[:] = [_cut(item, known, name) for item in value]
        return value
    if isinstance(value, tuple):
        items = [_cut(item, known, name) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


class _SideResult(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, _: Tensor, value: Tensor, name: str) -> Tensor:
        ctx.name = name
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise GradientError(
            f"the gradient of {ctx.name}: a tensor that the field kept beside what it returned, in a forward pass "
            "that keeps no graph",
            "losses of what the solve returns",
            "take gradient='backprop', or with equal steps gradient='checkpoint' (every step, or segments=), where "
            "such a tensor has its gradient; make it part of the state; or detach() it",
        )
