"""Values as they stand in many places, and tensors as they are: compared all in one go, since that is asked several
times in every pass of a network of many small blocks."""

from __future__ import annotations

import itertools
import operator
import types
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from odenet_torch.field.called_modules import state
from odenet_torch.field.written_on import windows

Entry = tuple[Any, Any, Any]
"""A dict (or the attributes of a class), a key, and the value that stands under it; None where none does."""


class StoredValues:
    """Dicts that have so many entries, and values that stand in them.

    Args:
        sized: what has as many entries as it has now.
        entries: of dicts.
        of_classes: of classes.
    """

    def __init__(self, sized: Iterable[Any], entries: Iterable[Entry], of_classes: Iterable[Entry] = ()) -> None:
        self.sized, self.entries, self.of_classes = list(sized), list(entries), list(of_classes)
        self._sizes = [*map(len, self.sized)]
        self._columns = [*zip(*self.entries, strict=True)] or [(), (), ()]
        self._columns_of_classes = [*zip(*self.of_classes, strict=True)] or [(), (), ()]

    @classmethod
    def joined(cls, parts: Sequence[StoredValues], entries: Iterable[Entry] = ()) -> StoredValues:
        """Those of several, once each, and further entries."""
        sized = {id(own): own for part in parts for own in part.sized}
        every = [*(entry for part in parts for entry in part.entries), *entries]
        of_classes = [entry for part in parts for entry in part.of_classes]
        return cls(sized.values(), *({(id(e[0]), e[1]): e for e in group}.values() for group in (every, of_classes)))

    def stand(self) -> bool:
        """Whether all of them still do."""
        if self._sizes != [*map(len, self.sized)]:
            return False
        owners, keys, values = self._columns
        if not all(map(operator.is_, map(dict.get, owners, keys), values)):
            return False
        owners, keys, values = self._columns_of_classes
        return all(map(operator.is_, map(types.MappingProxyType.get, owners, keys), values))


_VERSION, _WANTS = operator.attrgetter("_version"), operator.attrgetter("requires_grad")


def _plain(tensor: Tensor) -> bool:
    dense = type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided
    return dense and tensor.is_cpu and not tensor.is_inference()


class TensorStates:
    """Tensors, of which `called_modules.state` tells whether they were written on: for all at once.

    Args:
        tensors: any.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = tensors
        self.counted = all(map(_plain, tensors))
        self.addresses: list[int] = []
        self.windows: list[Any] | None = []
        """Two for each tensor; None where one has no memory of its own to look at."""
        self.sizes: list[int] = []

    def now(self) -> Any:
        """What is equal as long as nothing was written on, frozen or thawed."""
        if not self.tensors:
            return []
        if self.counted:
            addresses = [*map(Tensor.data_ptr, self.tensors)]
            if addresses != self.addresses:  # before the old memory is read
                self.addresses, pairs = addresses, [windows(tensor) for tensor in self.tensors]
                self.windows = None if None in pairs else [window for pair in pairs if pair for window in pair]
                self.sizes = [*map(len, self.windows or ())]
            if self.windows is not None:
                wants = [*map(_WANTS, self.tensors)]
                return [*map(_VERSION, self.tensors)], wants, addresses, b"".join(self.windows), self.sizes
        return [*map(state, self.tensors)]

    def apart(self, now: Any) -> list[Any]:
        """What `now` returned, as `called_modules.state` has it of each tensor."""
        if isinstance(now, list):
            return now
        versions, wants, _, values, sizes = now
        ends = [0, *itertools.accumulate(sizes)][::2]
        return [*zip(versions, wants, [values[a:b] for a, b in itertools.pairwise(ends)], strict=True)]
