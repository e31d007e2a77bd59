"""What f reads beside its arguments, as it was when f ran, and what f leaves there.

A loss that a block keeps, a feature that a hook appends to a list, a graph that the user sets before each solve: f
must find again what it found when it runs again, and a run of ours must leave nothing behind. What there is to
look at is told by `reach`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor

from odenet import GradientError
from odenet_torch.field.knowledge import knowledge
from odenet_torch.field.places import MISSING, Location
from odenet_torch.field.reachable_objects import ReachableObjects
from odenet_torch.field.written_on import sampled, version

Difference = tuple[Location, Any, Any, Any]
"""A place, a key there, what stood there, and what stands there now."""
_NUMBERS = (bool, int, float, complex)


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
    """

    def __init__(self, name: str, root: object) -> None:
        self.name, self.root = name, root
        self.reach = reach(root)
        self.before = self.reach.contents
        self.values = [*map(_value, self.reach.watched)]
        self.own: set[tuple[int, Any]] = set()

    def differences(self) -> list[Difference]:
        """The places whose values are others now than they were before."""
        return [] if self.reach.current() else differences(self.reach.places, self.before)

    def written(self) -> None:
        """All that differs now was changed by f itself, which does not expect to find it again.

        What stood there before is let go, so that no results of the last pass stay alive.
        """
        changes = self.differences()
        if changes:
            self.own = {(id(place), key) for place, key, _, _ in changes}
            if (memo := knowledge(self.root)) is not None:
                memo.reach = None
            pairs = zip(self.reach.places, self.before, strict=True)
            self.before = [{k: v for k, v in c.items() if (id(p), k) not in self.own} for p, c in pairs]
            gone = {id(tensor) for _, _, old, _ in changes for tensor in tensors_in(old)}
            self.reach = self.reach.without(gone, self.before)
            self.values = [*map(_value, self.reach.watched)]
        else:
            current = [*map(_value, self.reach.watched)]
            self.values = [
                earlier if earlier == later else None for earlier, later in zip(self.values, current, strict=True)
            ]

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

    def untouched(self) -> bool:
        """Whether all is as f found and left it, so that nothing has to be done where f runs again."""
        return not self.own and self.reach.current()

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        """Inside, f finds what it found; afterwards no tensor with a graph stands where another stood.

        What f logs or counts is logged and counted in a way back, too.
        """
        current = self.reach.current()
        changes = [] if current else self.differences()
        swapped = [change for change in changes if (id(change[0]), change[1]) not in self.own]
        for place, key, old, _ in swapped:
            place.put(key, old)
        present = self.before if current else [place.contents() for place in self.reach.places]
        try:
            yield
        finally:
            if not current or not self.reach.current():
                put_back(change for change in differences(self.reach.places, present) if _of_graph(change))
            for place, key, _, new in reversed(swapped):
                place.put(key, new)

    def left(self) -> list[Difference]:
        """Where something was put that holds tensors."""
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
        present = place.contents()
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


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in a value, or in a container of values."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from (tensor for item in value.values() for tensor in tensors_in(item))
    elif isinstance(value, (list, tuple, set)):
        yield from (tensor for item in value for tensor in tensors_in(item))


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


def _of_graph(difference: Difference) -> bool:
    _, _, old, new = difference
    return any(tensor.requires_grad for value in (old, new) for tensor in tensors_in(value))
