"""Gradient methods by name. What a backend does for each is its `Way`.

A flag spells options behind colons: `discrete-adjoint:correct=no:iterations=2`.
"""

from __future__ import annotations

import dataclasses
from collections import ChainMap
from collections.abc import Callable, Mapping
from typing import Any

from odenet._errors import InputError, shown
from odenet._gradients.adjoints import ContinuousAdjoint, DiscreteAdjoint
from odenet._gradients.auto import Auto
from odenet._gradients.exact import Backprop, Checkpoint, Reversible
from odenet._gradients.record import Gradient, Method, Way
from odenet._names import Announced, boolean, load_entry_point, lookup

_OWN: dict[str, type[Gradient]] = {
    kind.name: kind
    for kind in sorted(
        (Backprop, Checkpoint, Reversible, DiscreteAdjoint, ContinuousAdjoint),
        key=lambda kind: not kind.exactness.startswith("exact"),
    )
}
_WAYS: dict[type[Gradient], Mapping[str, Way]] = {}
"""The implementations of other packages' methods, by the class of the record and the name of the backend."""


def _checked(method: Method) -> type[Gradient]:
    if not (isinstance(method.gradient, type) and issubclass(method.gradient, Gradient)):
        raise InputError(f"a gradient method whose record is {shown(method.gradient)}", "a subclass of odenet.Gradient")
    _WAYS[method.gradient] = dict(method.ways)
    return method.gradient


def _read(point: Any) -> type[Gradient]:
    kind = _checked(load_entry_point(point, Method))
    if kind.name != point.name:
        raise InputError(f"the entry point {point.name} = {point.value} is a method called {kind.name!r}", "its name")
    return kind


GRADIENTS: Announced[type[Gradient]] = Announced("odenet.gradients", _OWN, _read)
"""Every method by name: odenet's own, the exact ones first, then those of installed packages (entry-point group
`odenet.gradients`)."""


CHOICES: Mapping[str, type[Gradient]] = {Auto.name: Auto}
"""What can stand in the place of a method and is none: no backend has a `Way` for it, and no table lists it as one."""


def register_gradient(method: Method) -> None:
    """Make a method known by its name in this process; an installed package announces it in `odenet.gradients`.

    Raises:
        InputError: it is no method, or its name is taken.
    """
    if not isinstance(method, Method):
        raise InputError(f"a gradient method that is a {type(method).__name__}", "an odenet.kit.Method")
    GRADIENTS.register(method.gradient.name, _checked(method))


def foreign_way(kind: type[Gradient], backend: str) -> Way | None:
    """What a backend does for a method that another package brought; None where it does not offer it."""
    if kind not in _OWN.values() and kind not in _WAYS:
        list(GRADIENTS)  # reads what is announced
    return _WAYS.get(kind, {}).get(backend)


def menu() -> tuple[str, ...]:
    """Every method and the variants worth a look, as `--gradient all` and `odenet.check_gradients` take them."""
    return tuple(label for name, kind in GRADIENTS.items() for label in (name, *(f"{name}:{v}" for v in kind.notable)))


ALIASES = {"adjoint": "continuous-adjoint", "backpropagation": "backprop", "checkpointing": "checkpoint"}


def gradient(name: str | Gradient) -> Gradient:
    """The method of that name, with options behind colons; a record is returned as it is.

    `gradient("discrete-adjoint:correct=no:iterations=2") == DiscreteAdjoint(correct=False, iterations=2)`.

    Raises:
        UnknownNameError: of a method or an option.
        InputError: an option's value cannot be used.
    """
    if isinstance(name, Gradient):
        return name
    if not isinstance(name, str):
        names = ", ".join((*GRADIENTS, *CHOICES))
        raise InputError(f"gradient={shown(name)}", f"a name ({names}) or a record such as DiscreteAdjoint()")
    if name in _OWN:  # as loops of users spell it, again and again
        return _OWN[name]()
    plain, *texts = name.split(":")
    if plain.strip().lower() in CHOICES:  # whose options are often written in one go, `auto:audit=200,memory=64M`
        texts = [option for text in texts for option in text.split(",")]
    kind = lookup("gradient method", plain, ChainMap(dict(CHOICES), GRADIENTS), ALIASES)  # pyright: ignore
    fields = dataclasses.fields(kind) if texts else ()
    readers = {field.name: _reader(field) for field in fields if field.metadata.get("flag", True)}
    options: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"{text!r} in gradient {name!r}", "option=value", f"options are {', '.join(readers)}")
        reader = lookup(f"option of {kind.name}", key.replace("_", "-"), readers)
        option = key.strip().lower().replace("-", "_")
        if option in options:
            raise InputError(f"{option} twice in gradient {name!r}", "each option once")
        options[option] = reader(value)
    return kind(**options)


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InputError(f"{text!r} is no whole number", "digits") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{text!r} is no number", "digits, as in 1e-6") from None


def in_bytes(text: str) -> int:
    """`"64M"`, `"1.5G"`, `"4096"`; K, M and G are powers of 1024."""
    plain = text.strip().upper().removesuffix("IB").removesuffix("B")
    power = {"K": 1, "M": 2, "G": 3}.get(plain[-1:], 0)
    try:
        count = int(float(plain[:-1] if power else plain) * 1024**power)
    except (ValueError, OverflowError):
        count = 0
    if count < 1:
        raise InputError(f"memory={text!r} is no amount of memory", "at least 1 byte, as in 512K, 64M, 1.5G")
    return count


def _reader(option: dataclasses.Field[Any]) -> Callable[[str], Any]:
    """What reads an option's text: by its type, or that which the field names (`metadata={"unit": "bytes"}`)."""
    if option.metadata.get("unit") == "bytes":
        return in_bytes
    kinds = {part.strip() for part in str(getattr(option.type, "__name__", option.type)).split("|")}
    return next((read for kind, read in _READERS.items() if kind in kinds), str)


_READERS: dict[str, Callable[[str], Any]] = {"bool": boolean, "int": _whole, "float": _number}
