"""What a layer adds to its input, observed while its own code runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from odenet import InputError

_IN_PLACE = {Tensor.add_, Tensor.__iadd__}
_ADDITIONS = {torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, *_IN_PLACE}


def added(layer: Callable[..., Any], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """f(x) of a layer that returns x + f(x), without the cancellation of subtracting x again.

    Sums of the input and something are followed: of `x + a` it is known to be `a` more than x, of `(x + a) + b` to be
    `a + b` more.

    Args:
        layer: returns its new state, or a tuple that begins with it.
        x: its state, any shape.
        args, kwargs: its other arguments.

    Returns:
        f(x), of x's shape.

    Raises:
        InputError: what the layer returns is not made by such sums, or it changes its input in place.
    """
    name = type(layer).__name__
    before = version(x)
    with _Following(x) as following:
        out = layer(x, *args, **kwargs)
    state = out[0] if isinstance(out, (tuple, list)) and out else out
    if version(x) != before:
        raise in_place(name)
    known = following.known(state) if isinstance(state, Tensor) else None
    if known is None:
        raise InputError(
            f"the last thing that {name} does is {following.last}, not an addition to its own input",
            "layers x -> x + f(x)",
            "take a pre-activation or pre-norm layer, whose addition comes last",
        )
    return torch.zeros_like(x) if known[1] is None else known[1]


def in_place(name: str) -> InputError:
    """The error for a layer that writes on its own input."""
    return InputError(
        f"{name} changes its input in place",
        "layers that leave their input as it is",
        "take inplace=False for the operation that comes first in it",
    )


def version(tensor: Tensor) -> int:
    """How often a tensor was written on; 0 where torch does not count it."""
    return 0 if tensor.is_inference() else tensor._version


class _Following(TorchFunctionMode):
    """Follows sums from a tensor on."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.x = x
        # by id: the tensor (which stays alive here), what it has more than x (None: nothing), its version
        self.more: dict[int, tuple[Tensor, Tensor | None, int]] = {id(x): (x, None, version(x))}
        self.last = "handing on what it was given"

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        pair = self._pair(func, args) if func in _ADDITIONS and not kwargs else None
        if pair is None:
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                self.last = str(getattr(func, "__name__", func))
            return out
        more, other = pair
        if func in _IN_PLACE and other is args[0]:
            other = other.clone()
        out = func(*args)
        if out.shape == self.x.shape:
            self.more[id(out)] = (out, (other if more is None else more + other).expand_as(out), version(out))
        return out

    def _pair(self, func: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Tensor | None, Tensor] | None:
        """What the followed summand has more than x, and the other summand; None where it is no such sum."""
        if len(args) != 2 or not all(isinstance(arg, Tensor) for arg in args):
            return None
        first, second = (self.known(arg) for arg in args)
        if first is not None and second is None:
            return first[1], args[1]
        if second is not None and first is None:
            return second[1], args[0]
        return None

    def known(self, tensor: Tensor) -> tuple[Tensor, Tensor | None, int] | None:
        """What is known of a tensor; None where it is no such sum, or was written on since."""
        entry = self.more.get(id(tensor))
        return entry if entry is not None and entry[2] == version(tensor) else None
