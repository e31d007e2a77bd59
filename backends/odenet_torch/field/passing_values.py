"""Values that are others in each pass of a block that nevertheless runs again as it ran: a loss that it keeps in an
attribute, what a hook stores in a dict, the statistics of batch norm in training.

A block that is known (see `field.settled`) is compared with what it consists of, and these are left out. What stood
there when the block ran is put there when it runs again, without the graph of an earlier pass; what stands there by
then is put back.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from torch import Tensor

from odenet_torch.field.called_modules import changed
from odenet_torch.field.places import MISSING
from odenet_torch.field.written_on import writes

_KINDS = frozenset({Tensor, type(None)})
Slot = tuple[dict[Any, Any], Any]
"""A dict and a key."""


class PassingValues:
    """Those of a block.

    Args:
        slots: entries of dicts, where tensors stand.
        buffers: dicts of buffers, keys, and buffers that the block writes on.
        places: of the slots, as `Surroundings.own` has them.
        late: whether the block is to run to its end (see `late_writes`).
    """

    def __init__(
        self,
        slots: Sequence[Slot],
        buffers: Sequence[tuple[dict[str, Any], str, Tensor]],
        places: Collection[tuple[int, Any]],
        late: bool,
    ) -> None:
        self.slots, self.buffers, self.places, self.late = slots, buffers, set(places), late
        self._owners, self._keys = [owner for owner, _ in slots], [key for _, key in slots]

    def found(self) -> FoundValues | None:
        """What stands there, where the block is about to run; None where it is nothing that can be put back."""
        values = self.present()
        return FoundValues(self, values) if _KINDS.issuperset(map(type, values)) else None

    def present(self) -> list[Any]:
        """What stands in the slots now."""
        return [*map(dict.get, self._owners, self._keys, itertools.repeat(MISSING))]

    def put(self, values: Iterable[Any]) -> None:
        """Let these stand in the slots."""
        for (owner, key), value in zip(self.slots, values, strict=True):
            if value is MISSING:
                owner.pop(key, None)
            else:
                owner[key] = value


class FoundValues:
    """What a block found in a run of its own. As a context: it runs once more, and finds the same.

    Args:
        passing: where.
        values: what stood in the slots.
    """

    def __init__(self, passing: PassingValues, values: list[Any]) -> None:
        self.passing = passing
        self.before: list[Any] = values
        """What stood in the slots, until `let_go`."""
        self.values = [x if x is None or x.is_leaf else x.detach().requires_grad_(x.requires_grad) for x in values]
        self.states = [None if x is None else writes(x) for x in self.values]
        self.buffers = [buffer.detach().clone() for *_, buffer in passing.buffers]
        self.present: list[Any] = []
        self.counted: list[Tensor] = []

    def ordinary(self) -> bool:
        """After the run: whether what stands there now can be put back."""
        return _KINDS.issuperset(map(type, self.passing.present()))

    def let_go(self) -> None:
        """The run counts: what it found, with the graphs of earlier passes, is let go."""
        self.before = []

    def restore(self) -> None:
        """All is as it was before the run."""
        self.passing.put(self.before)
        for (*_, buffer), value in zip(self.passing.buffers, self.buffers, strict=True):
            buffer.detach().copy_(value)

    def __enter__(self) -> None:
        """Raises GradientError where a value that was found has been written on."""
        if self.states != [None if x is None else writes(x) for x in self.values]:
            raise changed("a tensor that the field may read was modified by an inplace operation")
        self.present = self.passing.present()
        self.passing.put(self.values)
        self.counted = [owner[key] for owner, key, _ in self.passing.buffers]
        for (owner, key, _), value in zip(self.passing.buffers, self.buffers, strict=True):
            owner[key] = value.clone()  # it may run more than once

    def __exit__(self, *raised: object) -> None:
        self.passing.put(self.present)
        self.present = []
        for (owner, key, _), buffer in zip(self.passing.buffers, self.counted, strict=True):
            owner[key] = buffer
