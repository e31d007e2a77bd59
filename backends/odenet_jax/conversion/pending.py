"""The state between the layers of a run, of which nothing is computed before the last layer is called.

A run of N layers is one solve, and a later layer is called with arguments of its own (a random key, say): so the layers
before the last hand on what they were called with, and the last one solves. Whatever else asks for a state in between
is refused, since there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from odenet import ConversionError

_SHAPE = ("shape", "dtype", "ndim", "size")
_OPERATORS = (
    "add radd sub rsub mul rmul truediv rtruediv floordiv rfloordiv mod rmod pow rpow matmul rmatmul and rand or ror "
    "xor rxor neg pos abs invert eq ne lt le gt ge hash len iter getitem bool float int complex index array contains"
)


@dataclass(frozen=True, eq=False)
class Call:
    """A call of a layer: the layer and its arguments beside the state."""

    layer: Any
    arguments: tuple[Any, ...]
    named: Mapping[str, Any]


class Refusing:
    """What no operation can be done with."""

    __array_ufunc__ = None  # so that an array of NumPy's leaves an addition to us

    what: str
    like: Any

    def refuse(self, *_: Any) -> NoReturn:
        """Raises ConversionError."""
        raise ConversionError(
            f"the model does something else with {self.what} than to {self.allowed}",
            f"code that takes it nowhere but to {self.allowed}",
            "take gradient='checkpoint', with which each layer computes its own output",
        )

    @property
    def allowed(self) -> str:
        """What may be done with it."""
        return "call the next layer with it"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.like, name) if name in _SHAPE else self.refuse()


def _refusal() -> Callable[..., Any]:
    return lambda self, *arguments: self.refuse(*arguments)


for _name in _OPERATORS.split():
    setattr(Refusing, f"__{_name}__", _refusal())


class Pending(Refusing):
    """The state after the first layers of a run.

    Args:
        run: which one.
        like: the state before it.
        calls: of the layers so far.
        state: of equinox's layers, which is handed on.
    """

    def __init__(self, run: Any, like: Any, calls: tuple[Call, ...], state: Any) -> None:
        self.run, self.like, self.calls, self.state = run, like, calls, state
        self.what = f"the state after layer {len(calls) - 1} of a converted run of {run.count}"

    @property
    def allowed(self) -> str:
        return "call the next layer with it" + (", and add what that returns" if self.run.adds else "")

    @property
    def __jax_array__(self) -> NoReturn:
        """Raises ConversionError where JAX looks for it: functions of jax.numpy call it, all others refuse what has it
        by an error of their own (`jax.nn.relu`, `jax.jit`, `jax.debug.callback`)."""
        self.refuse()

    def __add__(self, other: Any) -> Any:
        return other + self if isinstance(other, Addend) else self.refuse()

    __radd__ = __add__


class Addend(Refusing):
    """What a layer returned that the model is to add to the layer's input.

    Args:
        before: that input.
        after: the sum.
        place: of the layer in the run, for messages.
    """

    def __init__(self, before: Any, after: Any, place: str) -> None:
        self.before, self.after = before, after
        self.like, self.what = before, f"what {place} returned"

    @property
    def allowed(self) -> str:
        return "add it to the layer's input"

    def __add__(self, other: Any) -> Any:
        return self.after if other is self.before else self.refuse()

    __radd__ = __add__
