"""The residual branches of a layer for each way in which it is called, and where random numbers begin in each."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from odenet import InputError
from odenet_torch.conversion.branches import Branch, traced
from odenet_torch.conversion.layer import Arguments, decisions, kind_of
from odenet_torch.field import random_state

WAYS = "_odenet_ways"
"""The attribute of a converted layer that holds its `CallModes`."""
_REMEMBERED = 16  # ways of calling a layer
_AS_IT_IS = contextlib.nullcontext()
Step = Callable[[nn.Module, Tensor, Any], Tensor]


@dataclass
class CallMode:
    """One way in which a layer is called.

    Args:
        branches: its residual branches in order; none where all that it adds is one branch.
        fresh: whether their sum was not compared yet with what the layer returns.
        draws: whether the layer is known to draw random numbers, called in this way.
    """

    branches: tuple[Branch, ...]
    fresh: bool = True
    draws: bool | None = None

    def noting(self, layer: nn.Module, states: dict[int, Any], device: Any) -> contextlib.AbstractContextManager[None]:
        """Inside the layer runs; takes the random state at the start of each branch after the first."""
        if len(self.branches) < 2 or self.draws is False:
            return _AS_IT_IS
        return self._noting(layer, states, device)

    @contextlib.contextmanager
    def _noting(self, layer: nn.Module, states: dict[int, Any], device: Any) -> Iterator[None]:
        handles = []
        for index, branch in enumerate(self.branches):
            if index and branch.start is not None:
                child = layer.get_submodule(branch.start)
                handles.append(child.register_forward_pre_hook(_note(states, index, device)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _note(states: dict[int, Any], index: int, device: Any) -> Callable[..., None]:
    def note(module: nn.Module, inputs: Any) -> None:
        states.setdefault(index, random_state.state(device))

    return note


class CallModes:
    """The modes in which one layer is called, by the kind of its arguments.

    Args:
        place: the name of the layer in the model.
        kinked: whether it was seen to have kinks, or to jump, when it was converted.
    """

    def __init__(self, place: str = "", kinked: bool = False) -> None:
        self.place, self.kinked = place, kinked
        self.known: dict[Any, CallMode] = {}
        self.calls = 0  # with rounded states
        self.recomputed = 0  # calls of the layer that were to run again, as one that is not settled

    def of(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> CallMode:
        """That of a call with these arguments beside the state."""
        key = _key(layer, layer.training, (args, kwargs))
        way = self.known.get(key)
        if way is None:
            try:
                branches = traced(layer, args, kwargs) or ()
            except InputError:  # it was seen to be a residual layer in another way
                branches = ()
            while len(self.known) >= _REMEMBERED:
                del self.known[next(iter(self.known))]
            way = self.known[key] = CallMode(branches if len(branches) > 1 else ())
        return way

    def add(self, layer: nn.Module, mode: bool, arguments: Arguments, way: CallMode) -> None:
        """One that is known already."""
        self.known[_key(layer, mode, arguments)] = way

    def __getstate__(self) -> dict[str, Any]:
        return {
            "place": self.place,
            "kinked": self.kinked,
            "known": {},
            "calls": 0,
            "recomputed": 0,
        }  # made code, which cannot be pickled and is made again


def described(layer: Any) -> str:
    """A converted layer, for a message: its class, and its name in the model that was converted."""
    return f"{type(layer).__name__} ({layer._odenet_ways.place})"


def _key(layer: nn.Module, mode: bool, arguments: Arguments) -> Any:
    return mode, *map(kind_of, arguments), decisions(layer)
