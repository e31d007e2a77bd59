"""Gradient methods by name. The backends hold the code, one file each.

A flag spells options behind colons: `discrete-adjoint:correct=no:iterations=2`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from odenet._errors import InputError
from odenet._gradients.adjoints import ContinuousAdjoint, DiscreteAdjoint
from odenet._gradients.exact import Backprop, Checkpoint, Reversible
from odenet._gradients.record import Cost, Gradient
from odenet._names import boolean, lookup

__all__ = [
    "ALIASES",
    "GRADIENTS",
    "MENU",
    "Backprop",
    "Checkpoint",
    "ContinuousAdjoint",
    "Cost",
    "DiscreteAdjoint",
    "Gradient",
    "Reversible",
    "gradient",
]

GRADIENTS: dict[str, type[Gradient]] = {
    kind.name: kind
    for kind in sorted(Gradient.__subclasses__(), key=lambda kind: not kind.exactness.startswith("exact"))
}
"""The exact ones first."""
_VARIANTS = {
    "discrete-adjoint": (
        "discrete-adjoint:correct=no",
        "discrete-adjoint:iterations=2",
        "discrete-adjoint:predictor=extrapolate",
    )
}
MENU = tuple(label for name in GRADIENTS for label in (name, *_VARIANTS.get(name, ())))
"""Every method and the variants worth a look, as `--gradient all` and `odenet.check_gradients` take them."""

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
        raise InputError(f"gradient={name!r}", f"a name ({', '.join(GRADIENTS)}) or a record such as DiscreteAdjoint()")
    plain, *given = name.split(":")
    kind = lookup("gradient method", plain, GRADIENTS, ALIASES)
    readers = {field.name: _READERS[str(field.type)] for field in dataclasses.fields(kind)}
    if "memory" in readers:
        readers["memory"] = _bytes
    options: dict[str, Any] = {}
    for text in given:
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


def _bytes(text: str) -> int:
    """`"64M"`, `"1.5G"`, `"4096"`; K, M and G are powers of 1024."""
    plain = text.strip().upper().removesuffix("IB").removesuffix("B")
    power = {"K": 1, "M": 2, "G": 3}.get(plain[-1:], 0)
    try:
        return int(float(plain[:-1] if power else plain) * 1024**power)
    except (ValueError, OverflowError):
        raise InputError(f"{text!r} is no amount of memory", "bytes, or as in 512K, 64M, 1.5G") from None


_READERS: dict[str, Callable[[str], Any]] = {
    "bool": boolean,
    "int": _whole,
    "int | None": _whole,
    "float | None": _number,
    "str": str,
    "str | Solver | None": str,
}
