"""What f reads beside its arguments, as it was when f ran, and what f leaves there.

A loss that a block keeps, a feature that a hook appends to a list, a graph that the user sets before each solve: f
must find again what it found when it runs again, and a run of ours must leave nothing behind. What there is to
look at is told by `reach`.

Over 250 lines: what is read is noted, compared and put back by the same places.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from odenet import GradientError
from odenet_torch.field.knowledge import knowledge
from odenet_torch.field.places import MISSING, Location
from odenet_torch.field.reachable_objects import ReachableObjects, held_by
from odenet_torch.field.written_on import sampled, version

Difference = tuple[Location, Any, Any, Any]
"""A place, a key there, what stood there, and what stands there now."""
_NUMBERS = (bool, int, float, complex)


class Written(NamedTuple):
    """The key of a tensor or array that f may write on, in what `looker` tells."""

    place: int


def reach(root: object) -> ReachableObjects:
    """What can be reached from something now; looked up again only where something stands elsewhere."""
    known = knowledge(root)
    if known is None:
        return ReachableObjects(root)
    now = known.reach
    if now is None or not now.current():
        now = known.reach = ReachableObjects(root)
    return now


class Surroundings:
    """Those of something that f is made of, now.

    Args:
        name: of it, for messages.
        root: a function, module or object.
        reached: what can be reached from it, if that is known.
        values: what tells whether tensors and arrays among that were written on, if that is known.
    """

    def __init__(
        self, name: str, root: object, reached: ReachableObjects | None = None, values: list[Any] | None = None
    ) -> None:
        self.name, self.root = name, root
        self.reach = reached or reach(root)
        self.before = self.reach.contents
        self.values = values or [*map(_value, self.reach.watched)]
        self.own: set[tuple[int, Any]] = set()
        self.stood: list[tuple[Location, Any]] = []
        """What stood anywhere before f ran, and still does, where it has put a tensor with a graph."""
        self.filled: list[tuple[Location, Any, Any]] = []
        """Location f put a tensor with a graph, and no tensor stood before: places, keys, and what stood there."""
        self.wrote = False
        """Whether f has written on a tensor or an array."""
        self.hooks: list[Any] = []
        """Hooks on modules that f itself has left."""

    def differences(self) -> list[Difference]:
        """The places whose values are others now than they were before."""
        return [] if self.reach.current() else differences(self.reach.places, self.before)

    def written(self, once: bool = False, outputs: Iterable[Tensor] = ()) -> None:
        """All that differs now was changed by f itself, which does not expect to find it again.

        What stood there before is let go, so that no results of the last pass stay alive.

        Args:
            once: whether f ran once alone: a count, or an order of things, is then found again as f found it.
            outputs: of the pass. What stood there with a graph and is a part of theirs, as keys and values of earlier
                calls are, is found again, too; it would not be let go anyway.
        """
        self.hooks = self.later_hooks()
        changes = self.differences()
        current = [*map(_value, self.reach.watched)]
        self.wrote = current != self.values
        if changes:
            self.own = {(id(place), key) for place, key, _, _ in changes}
            pairs = zip(self.reach.places, self.before, strict=True)
            self.stood = [(p, key) for p, contents in pairs for key in contents if (id(p), key) not in self.own]
            nodes = {x.grad_fn for c in changes for x in tensors_in(c[2]) if x.grad_fn is not None}
            read = within(outputs, nodes) if nodes else set()
            self.filled = []
            for place, key, old, new in changes:
                if _may_stay((place, key, old, new), once, read):
                    if once or _of_graph((place, key, old, new)):
                        self.filled.append((place, key, old))
                elif once:  # f may read it, and finds it without the graph of the last pass
                    self.filled.append((place, key, _apart(old)))
            if (memo := knowledge(self.root)) is not None:
                memo.reach = None
            pairs = zip(self.reach.places, self.before, strict=True)
            self.before = [{k: v for k, v in c.items() if (id(p), k) not in self.own} for p, c in pairs]
            gone = {id(tensor) for _, _, old, _ in changes for tensor in tensors_in(old)}
            self.reach = self.reach.without(gone, self.before)
            self.values = [*map(_value, self.reach.watched)]
        else:
            self.values = [
                earlier if earlier == later else None for earlier, later in zip(self.values, current, strict=True)
            ]

    def written_on(self) -> list[tuple[str, Tensor]]:
        """The tensors that f has written on, with their names."""
        pairs = zip(self.reach.watched, self.values, strict=True)
        return [
            (name, held)
            for (name, held), value in pairs
            if isinstance(held, Tensor) and value is not None and version(held) != value[0]
        ]

    @contextlib.contextmanager
    def copied(self, tensors: Iterable[Tensor]) -> Iterator[dict[int, Tensor]]:
        """Inside, copies stand in the places of some tensors: yields them by `id`. All that changes is put back."""
        copies = {id(held): held.detach().clone() for held in tensors}
        places = self.reach.places
        now = [place.contents() for place in places]
        for place, contents in zip(places, now, strict=True):
            for key, value in contents.items():
                if isinstance(value, Tensor) and id(value) in copies:
                    place.put(key, copies[id(value)])
                elif isinstance(value, tuple) and not copies.keys().isdisjoint(map(id, value)):
                    place.put(key, tuple(copies.get(id(item), item) for item in value))
        try:
            yield copies
        finally:
            put_back(differences(places, now))

    def require_unwritten(self) -> None:
        """Looks whether the tensors and arrays that f may read still hold what they held.

        Raises:
            GradientError: one was written on, and not by f.
        """
        for (name, array), value in zip(self.reach.watched, self.values, strict=True):
            if value is not None and _value((name, array)) != value:
                raise GradientError(
                    f"{full(self.name, name)}, which the field may read, was modified by an inplace operation after "
                    "the forward pass, and the field is to run again",
                    "the same values in the forward and the backward pass",
                    "call backward() first, put another tensor in its place instead of writing on it, or take "
                    "gradient='backprop'",
                )

    def later_hooks(self) -> list[Any]:
        """The tables of hooks on modules that are not empty, and were when f had run."""
        if not any(self.reach.hooks) and not any(self.reach.backward_hooks):
            return []
        known = {*(id(place.entries) for place in self.reach.places), *map(id, self.hooks)}
        return [hooks for hooks in (*self.reach.hooks, *self.reach.backward_hooks) if hooks and id(hooks) not in known]

    def untouched(self) -> bool:
        """Whether all is as f found and left it, so that nothing has to be done where f runs again."""
        return not self.own and self.reach.current()

    @contextlib.contextmanager
    def again(self, since: int | None = None) -> Iterator[None]:
        """Inside, f finds what it found; afterwards what the forward pass recorded stands there.

        What f logs or counts is logged and counted in a backward pass, too, after what was logged, and so is what
        hooks on its tensors log. What it computed with a graph and keeps for later evaluations, as a cache does, it
        does not find: it computes that again, so that it has its gradient.

        Args:
            since: when what runs again was begun (`field.now`), where its graph was kept: what was computed before then
                it found, and finds again.
        """
        current = self.reach.current()
        changes = [] if current else self.differences()
        swapped = [change for change in changes if (id(change[0]), change[1]) not in self.own]
        swapped += [(*entry, entry[0].contents().get(entry[1], MISSING)) for entry in self.emptied(since)]
        for place, key, old, _ in swapped:
            place.put(key, old)
        later = [(hooks, dict(hooks)) for hooks in ([] if current else self.later_hooks())]
        for hooks, _ in later:
            hooks.clear()
        present = self.before if current and not self.own else [place.contents() for place in self.reach.places]
        try:
            yield
        finally:
            for hooks, entries in later:
                hooks.update(entries)
            if not current or not self.reach.current():
                changes = differences(self.reach.places, present)
                put_back(change for change in changes if _of_graph(change) or self._replaced(change))
            for place, key, old, new in reversed(swapped):
                after = place.contents().get(key, MISSING)
                own = (id(place), key) in self.own  # what f itself logs again is known to `SideResults`
                place.put(key, new if own or not _longer(old, after) else (*new, *after[len(old) :]))

    def _replaced(self, change: Difference) -> bool:
        """Whether f put something in the place of what it had put there before; no count, and no further entry."""
        place, key, before, now = change
        if (id(place), key) not in self.own or before is MISSING or now is MISSING:
            return False
        return not (isinstance(now, int) or _longer(before, now))

    def emptied(self, since: int | None) -> list[tuple[Location, Any, Any]]:
        """Those of `filled` that held none yet (see `again`)."""
        if since is None:
            return self.filled
        return [entry for entry in self.filled if not _older(entry[0].contents().get(entry[1], MISSING), since)]

    def left(self) -> list[Difference]:
        """Location something was put that holds tensors."""
        leftovers = []
        for place, key, old, new in self.differences():
            known = {id(tensor) for tensor in tensors_in(old)}
            if any(id(tensor) not in known for tensor in tensors_in(new)):
                leftovers.append((place, key, old, new))
        return leftovers


def differences(places: Sequence[Location], before: Sequence[dict[Any, Any]]) -> list[Difference]:
    """The places whose values are others than they were before."""
    changes = []
    for place, previous in zip(places, before, strict=True):
        previous, present = place.alive(previous), place.contents()
        for key in dict.fromkeys((*previous, *present)):
            old, new = previous.get(key, MISSING), present.get(key, MISSING)
            if not _same(old, new):
                changes.append((place, key, old, new))
    return changes


def put_back(changes: Iterable[Difference]) -> None:
    """Put back what stood in the places that changed."""
    for place, key, old, _ in changes:
        place.put(key, old)


@contextlib.contextmanager
def no_trace(roots: Iterable[object]) -> Iterator[None]:
    """Afterwards all that can be reached from these holds what it held."""
    looked = [reach(root) for root in roots]
    try:
        yield
    finally:
        for reached in looked:
            if not reached.current():
                put_back(differences(reached.places, reached.contents))


def looker(looked: Sequence[ReachableObjects]) -> Callable[[], list[dict[Any, Any]]]:
    """A function that tells what can be reached now: a dict for each place, one of all modules, and one of all tensors
    and arrays.

    It has values by `id`; of modules their parameters, the memory of these, what wants a gradient, modes and hooks; of
    tensors and arrays (by `Written`) what tells whether they were written on. It is called for each tensor that is
    saved, and there may be thousands of places (classes of a package that the code reads): where nothing was put since
    these were looked up, the dict is the one that it was.
    """
    told: list[list[dict[Any, Any]]] = []
    for objects in looked:
        told.append([{key: _told(value) for key, value in contents.items()} for contents in objects.contents])

    def now() -> list[dict[Any, Any]]:
        held: list[dict[Any, Any]] = []
        for objects, known in zip(looked, told, strict=True):
            if objects.current():
                held += known
                continue
            for place, contents, before in zip(objects.places, objects.contents, known, strict=True):
                stands = place.same(contents)
                held.append(before if stands else {key: _told(value) for key, value in place.contents().items()})
        held.append(_of_modules(outer for objects in looked for outer in objects.modules))
        held.append({Written(id(pair[1])): _value(pair) for objects in looked for pair in objects.watched})
        return held

    return now


def _of_modules(modules: Iterable[nn.Module]) -> dict[Any, Any]:
    held: dict[Any, Any] = {}
    for outer in modules:
        for module in outer.modules():
            hooks = (*module._forward_hooks, "before", *module._forward_pre_hooks, "back", *module._backward_hooks)
            held[id(module)] = (module.training, hooks)
            for name, tensor in module._parameters.items():
                if tensor is not None:
                    held[id(module), name] = (id(tensor), tensor.requires_grad, sampled(tensor), _place(tensor))
    return held


def _told(value: Any) -> Any:
    return tuple(map(id, value)) if type(value) is tuple else value if isinstance(value, _NUMBERS) else id(value)


def _place(tensor: Tensor) -> int | None:
    try:
        return tensor.data_ptr()
    except RuntimeError:  # without memory
        return None


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in a value, or in a container, closure or object of somebody's."""
    stack, seen = [value], set[int]()
    while stack:
        value = stack.pop()
        if isinstance(value, Tensor):
            yield value
            continue
        if isinstance(value, (*_NUMBERS, str, bytes, type(None))) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            stack += value.values()
        elif isinstance(value, (list, tuple, set)):
            stack += value
        else:
            stack += (item for place in held_by(value) for item in place.contents().values())


def full(root: str, name: str) -> str:
    """What a place is called in a message."""
    return f"{name.removeprefix('.')} of {root}" if name else root


def _value(watched: tuple[str, Any]) -> Any:
    """What tells whether a tensor or an array was written on."""
    array = watched[1]
    return (version(array), sampled(array)) if isinstance(array, Tensor) else array.tobytes()


def _same(old: Any, new: Any) -> bool:
    if old is new:
        return True
    if type(old) is not type(new):
        return False
    if type(old) is tuple:
        return len(old) == len(new) and all(map(_same, old, new))
    return isinstance(old, (*_NUMBERS, str, bytes)) and (old == new or old != old != new)


def _longer(before: Any, now: Any) -> bool:
    """Whether a list or the like holds what it held, and further entries."""
    several = type(before) is tuple and type(now) is tuple and len(now) > len(before)
    return several and all(map(operator.is_, before, now))


def _older(value: Any, since: int) -> bool:
    """Whether it holds tensors with a graph, all of which were computed before a mark (`field.now`)."""
    nodes = [tensor.grad_fn for tensor in tensors_in(value) if tensor.grad_fn is not None]
    return bool(nodes) and all(node._sequence_nr() < since for node in nodes)


def within(outputs: Iterable[Tensor], nodes: set[Any]) -> set[Any]:
    """Those of some nodes that the graph of outputs goes back to."""
    earliest = min(node._sequence_nr() for node in nodes)  # nothing that was recorded before leads to one of them
    stack = [output.grad_fn for output in outputs if output.grad_fn is not None]
    visited, met = set(stack), set[Any]()
    while stack:
        node = stack.pop()
        if node in nodes:
            met.add(node)
        for following, _ in node.next_functions:
            if following is not None and following not in visited and following._sequence_nr() >= earliest:
                visited.add(following)
                stack.append(following)
    return met


def _may_stay(difference: Difference, once: bool, read: set[Any]) -> bool:
    """Whether what stood there holds no tensor that what stands there now does not hold, or that f has read with its
    graph; or none with a graph, which would keep all of the last pass alive, if f ran once alone and so is to find it
    again."""
    _, _, old, new = difference
    new = {id(tensor) for tensor in tensors_in(new)}
    return all(
        id(tensor) in new or (tensor.grad_fn in read if tensor.requires_grad else once) for tensor in tensors_in(old)
    )


def _apart(value: Any) -> Any:
    """A tensor, or several, without their graph, and still to be recorded."""
    if isinstance(value, Tensor):
        return value.detach().requires_grad_(value.requires_grad)
    return tuple(map(_apart, value)) if type(value) is tuple else value


def _of_graph(difference: Difference) -> bool:
    _, _, old, new = difference
    return any(tensor.requires_grad for value in (old, new) for tensor in tensors_in(value))
