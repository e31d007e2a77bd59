"""Results that leave f by the side in a forward pass without a graph: tensors that f keeps where others find them.

Under a checkpoint of torch's they have their gradient. Location steps run without a graph they would be taken for
constants by a loss that uses them: they are replaced by ones whose gradient is an error.

Over 250 lines: finding such tensors, replacing them, and the error that they then are, read each other.
"""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeGuard, TypeVar

import torch
from torch import Tensor

from odenet import GradientError
from odenet_torch.field.looked import Names
from odenet_torch.field.places import (
    MISSING,
    CachedResults,
    CollectionLocation,
    Location,
    MappingEntries,
    WeakEntries,
)
from odenet_torch.field.reachable_objects import held_by
from odenet_torch.field.settings import Settings
from odenet_torch.field.shared_hooks import SharedHooks
from odenet_torch.field.state import Leaves
from odenet_torch.field.surroundings import Difference, Surroundings, differences, full, put_back, tensors_in

Result = TypeVar("Result")
Root = tuple[str, Any]
"""What f is made of, with a name for messages."""
_DETACHED = Names()
"""Of places where f was seen to keep tensors that depend on nothing."""


class SideResults:
    """The surroundings of f in one forward pass.

    Args:
        cut: whether its steps run without a graph.
    """

    def __init__(self, cut: bool) -> None:
        self.cut = cut
        self.anew = cut
        """Whether the backward pass evaluates f with a graph and without: f then computes anew what it keeps."""
        self.shared, self.settings = SharedHooks(), Settings()
        self.around: dict[int, Surroundings] = {}
        self.of_step: dict[int, dict[int, None]] = {}
        self.differentiable: set[tuple[int, Any]] = set()
        """Places and keys of tensors that depend on what has a gradient."""
        self.detached: set[tuple[int, Any]] = set()
        """Those of tensors that were seen not to."""
        self.evaluations: collections.Counter[int] = collections.Counter()
        """By `id` of what f is made of."""
        self.stood: set[tuple[Location, Any]] = set()
        """Entries of dicts that stood there before the pass."""
        self.filled: list[tuple[Location, Any, Any]] = []
        """Those that held none before, and what stood there: a cache, which a run without a graph fills without one."""
        self.caches: list[tuple[Location, dict[Any, Any]]] = []
        """Those of functions, and tensors that are held weakly; and what they held before the pass."""
        self.lengths: dict[int, int] = {}
        """Of the lists among the filled places, by `id`, after the last evaluation of the backward pass."""
        self.further: dict[int, list[Any]] = {}
        """What hooks on tensors have put there since an evaluation, by `id` of the list."""

    def begin(self, step: int, roots: Iterable[Root]) -> list[Surroundings]:
        """Before an evaluation: those that are met for the first time."""
        met = []
        for name, root in roots:
            self.evaluations[id(root)] += 1
            if id(root) not in self.around:
                self.around[id(root)] = around = Surroundings(name, root)
                met.append(around)
                pairs = zip(around.reach.places, around.before, strict=True)
                kinds = (CachedResults, WeakEntries) if self.anew else CachedResults
                self.caches += [(place, old) for place, old in pairs if isinstance(place, kinds)]
            self.of_step.setdefault(step, {})[id(root)] = None
        return met

    def look(self, met: Sequence[Surroundings], y: Leaves, evaluate: Callable[[], Any]) -> None:
        """After the first evaluation of some: which of the tensors that they keep depend on what has a gradient.

        Args:
            met: what `begin` returned.
            y: the state that it was evaluated at.
            evaluate: evaluates it once more.

        Raises:
            GradientError: f adds up something with a gradient in a tensor that it writes on.
        """
        for around in met:
            _require_overwritten(around, y, evaluate)
        if not self.cut:
            if self.anew:
                _refuse_retained((around, leftover) for around in met for leftover in around.left())
            return
        for around in met:
            known = _DETACHED.of(around.root, around.reach)
            left = around.left()
            leftovers = [leftover for leftover in left if _name(leftover) not in known]
            self.detached |= {(id(place), key) for place, key, *_ in left}
            if not leftovers:
                continue
            if not torch.is_grad_enabled():
                leftovers = _with_graph(around, y, evaluate)
            _refuse_retained((around, leftover) for leftover in leftovers)
            for leftover in leftovers:
                if any(tensor.requires_grad for tensor in _new(leftover)):
                    self.differentiable.add((id(leftover[0]), leftover[1]))
                else:
                    known.add(_name(leftover))

    def finish(self, outputs: Iterable[Tensor] = ()) -> None:
        """The forward pass has ended, with these outputs and their graph."""
        if self.differentiable:
            self._cut_off()
        for around in self.around.values():
            self.clear()
            around.written(self.evaluations[id(around.root)] == 1, outputs)
            self.filled += around.filled
            self.stood |= {(place, key) for place, key in around.stood if isinstance(place, MappingEntries)}

    def _cut_off(self) -> None:
        """Let what was kept with a gradient, and has none now, be tensors whose gradient is an error.

        What later evaluations have put under other keys of the same kind is taken to be as what the first one has: keys
        are others each time where they are counts, or the `id` of a state.
        """
        others = self.detached - self.differentiable
        kinds = {(place, _kind(key)) for place, key in self.differentiable}
        kinds -= {(place, _kind(key)) for place, key in others}
        done = set[tuple[int, Any]]()
        for first in (True, False):
            for around in self.around.values():
                for place, key, old, new in around.left():
                    entry, at = (id(place), key), (id(place.entries or place), key)
                    as_first = entry not in others and at not in done and (id(place), _kind(key)) in kinds
                    if entry in self.differentiable if first else as_first:
                        done.add(at)
                        name = full(around.name, place.called(key))
                        place.put(key, _cut(new, {id(tensor) for tensor in tensors_in(old)}, name))

    def logged(self, evaluate: Callable[[], Result]) -> Result:
        """An evaluation of the backward pass: what is put into a list thereafter comes from hooks on tensors."""
        self.collect()
        if self.anew:
            self.empty()
        out = evaluate()
        for place, *_ in self.filled:
            if _ordered(place):
                self.lengths[id(place.values)] = len(place.values)
        return out

    def collect(self) -> None:
        """Keep what hooks have put into lists that are to be emptied."""
        for place, *_ in self.filled:
            if _ordered(place) and (length := self.lengths.pop(id(place.values), None)) is not None:
                self.further.setdefault(id(place.values), []).extend([*place.values][length:])

    def append(self) -> None:
        """After the backward pass: what hooks have put into lists stands after what the forward pass has."""
        for place, *_ in self.filled:
            if _ordered(place):
                place.values.extend(self.further.pop(id(place.values), ()))

    def empty(self) -> None:
        """Before an evaluation of the backward pass: f computes again, with a graph or without, what it keeps."""
        self.clear()
        known = self.stood | {(place, key) for place, key, _ in self.filled if isinstance(place, MappingEntries)}
        for place, key, old in self.filled:
            place.put(key, old)
            if isinstance(place, MappingEntries):  # under keys that are other ones in each evaluation
                for other, value in place.contents().items():
                    if (place, other) not in known and next(tensors_in(value), None) is not None:
                        place.put(other, MISSING)

    @contextlib.contextmanager
    def back(self, steps: Iterable[int], since: int | None = None) -> Iterator[None]:
        """While steps run again: f finds what it found, and leaves nothing.

        Args:
            steps: these.
            since: see `Surroundings.again`.

        Raises:
            GradientError: a tensor that f may read was written on since.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.settings.again())
            stack.enter_context(self.shared.again())
            stack.callback(self.append)
            # what several share, as the entries of a cache, is as the first of them found it: that comes last
            for key in reversed(dict.fromkeys(key for n in sorted(steps) for key in self.of_step.get(n, ()))):
                around = self.around[key]
                around.require_unwritten()
                if not around.untouched():
                    stack.enter_context(around.again(since))
            self.clear()
            stack.callback(self.clear)
            stack.callback(self.collect)
            yield

    def clear(self) -> None:
        """Functions whose results are kept compute anew what they were asked for in the pass, each segment for itself:
        a result without a graph, or with one that is gone by then, has no gradient."""
        for cache, before in self.caches:
            cache.put(None, before[None])


def _refuse_retained(leftovers: Iterable[tuple[Surroundings, Difference]]) -> None:
    """Raises GradientError where f keeps a tensor that is to have its gradient: the next run has another one."""
    for around, leftover in leftovers:
        if any(tensor.retains_grad for tensor in _new(leftover)):
            raise GradientError(
                f"{full(around.name, _name(leftover))} keeps a tensor whose gradient it retains (retain_grad), and the "
                "field is to run again",
                "retain_grad on tensors outside of the solve",
                "take gradient='backprop', or with equal steps gradient='checkpoint'; or register a hook on the "
                "tensor, which is called when the field runs again",
            )


def _ordered(place: Location) -> TypeGuard[CollectionLocation]:
    return isinstance(place, CollectionLocation) and not isinstance(place.values, set)


def _with_graph(around: Surroundings, y: Leaves, evaluate: Callable[[], Any]) -> list[Difference]:
    """What is kept by an evaluation with a graph that begins as the first one did, and leaves nothing behind."""
    places, before = around.reach.places, around.before
    now = [place.contents() for place in places]
    put_back(differences(places, before))  # a cache that is filled would not be filled again
    try:
        with recorded(y):
            evaluate()
        return differences(places, before)
    finally:
        put_back(differences(places, now))


def _require_overwritten(around: Surroundings, y: Leaves, evaluate: Callable[[], Any]) -> None:
    """Looks whether the tensors that f writes on are filled anew in each evaluation, if they depend on a gradient.

    Raises:
        GradientError: one is added to, so that each further run would add once more.
    """
    known = _DETACHED.of(around.root, around.reach)
    written = [(name, held) for name, held in around.written_on() if f"written {name}" not in known]
    if not written:
        return
    with around.copied([held for _, held in written]) as copies, recorded(y):
        evaluate()
    for name, held in written:
        copy = copies[id(held)]
        if copy.requires_grad and not torch.equal(copy.detach(), held.detach()):
            raise GradientError(
                f"{full(around.name, name)}, on which the field adds up in place something that needs a gradient, and "
                "the field is to run again",
                "sums in new tensors, as in total = total + loss",
                "put a new tensor in its place instead of writing on it, or take gradient='backprop'",
            )
        known.add(f"written {name}")


@contextlib.contextmanager
def recorded(y: Leaves) -> Iterator[None]:
    """Inside, what is computed from these has a graph."""
    alone = [leaf for leaf in y if leaf.is_leaf and not leaf.requires_grad]
    for leaf in alone:
        leaf.requires_grad_()
    try:
        with torch.enable_grad():
            yield
    finally:
        for leaf in alone:
            leaf.requires_grad_(False)


def _new(difference: Difference) -> list[Tensor]:
    _, _, old, new = difference
    known = {id(tensor) for tensor in tensors_in(old)}
    return [tensor for tensor in tensors_in(new) if id(tensor) not in known]


def _kind(key: Any) -> Any:
    """Of a key: its class, and of a word what stands in it beside digits."""
    return "".join([x for x in key if not x.isdigit()]) if isinstance(key, str) else type(key)


def _name(difference: Difference) -> str:
    place: Location = difference[0]
    return place.called(difference[1])


def _cut(value: Any, known: set[int], name: str, held: tuple[Any, ...] = ()) -> Any:
    """The tensors in a value, but for leaves and those that are known, as ones whose gradient is an error.

    What these take the place of lives as long as they do: a cache may know it by its `id`, which would be given to
    another object if nobody held it.

    Args:
        value: any.
        known: tensors, and what was looked into, by `id`.
        name: of its place.
        held: what else is no longer there, because the value is a part of it.
    """
    if isinstance(value, Tensor):
        own = value.is_leaf and value.requires_grad  # a parameter: what asks for its gradient, finds it there
        if own or id(value) in known or not (value.is_floating_point() or value.is_complex()):
            return value
        with torch.enable_grad():
            return _SideResult.apply(torch.empty(0, requires_grad=True), value.detach(), name, (value, *held))
    if id(value) in known:
        return value
    if not isinstance(value, (tuple, str, int, float)):
        known.add(id(value))  # it may hold itself
    if isinstance(value, dict):
        value.update({key: _cut(item, known, name) for key, item in value.items()})
        return value
    if isinstance(value, list):
        value[:] = [_cut(item, known, name) for item in value]
        return value
    if isinstance(value, tuple):
        items = [_cut(item, known, name, (value, *held)) for item in value]
        if all(new is item for new, item in zip(items, value, strict=True)):
            return value
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    for place in held_by(value):
        for key, item in place.contents().items():
            if (new := _cut(item, known, name)) is not item:
                place.put(key, new)
    return value


class _SideResult(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, _: Tensor, value: Tensor, name: str, held: tuple[Any, ...]) -> Tensor:
        ctx.place = name  # a node has a method `name`
        ctx.held = held
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise GradientError(
            f"the gradient of {ctx.place}: a tensor that the field kept beside what it returned, in a forward pass "
            "that keeps no graph",
            "losses of what the solve returns",
            "take gradient='backprop' (odeint in the place of odeint_adjoint), or with equal steps "
            "gradient='checkpoint' (every step, or segments=), where such a tensor has its gradient; make it part of "
            "the state; or detach() it",
        )
