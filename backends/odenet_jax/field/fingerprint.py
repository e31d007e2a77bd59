"""What a traced function computes, as a value that can be compared: two programs of one fingerprint give the same.

A field is traced anew at each call that is not inside of `jax.jit`, and so whatever it reads, a global, a closure, an
attribute, is noticed when it changes. To trace is cheap and to compile is not: a program is compiled where its
fingerprint is new (`field.programs`).
"""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Hashable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from odenet.kit import Alarm
from odenet_jax.field.closure import Converted
from odenet_jax.field.live import is_check, live

_OURS = ("jax", "jaxlib", "equinox", "odenet", "odenet_jax")
"""Packages whose functions read nothing that changes but their closures."""


class Unreadable(Exception):
    """A program holds what cannot be compared."""


class ByIdentity:
    """An object that is equal to itself alone, and lives as long as what it is compared in."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ByIdentity) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def fingerprint(program: Converted) -> Hashable | None:
    """That of a function; None where it cannot be told.

    The rule of a derivative that somebody else wrote is called later, and may read what changes by then: the program of
    its derivative is part of the fingerprint.
    """
    reader = Reader()
    try:
        key = reader.read(program.jaxpr), program.inputs, program.outputs
        if reader.foreign:
            key = (*key, reader.read(_derivative(program)))
        hash(key)
    except (Unreadable, TypeError):
        return None
    return key


def described(*values: Any) -> Hashable | None:
    """The fingerprint of any records; None where they have none."""
    try:
        key = Reader().read(values)
        hash(key)
    except (Unreadable, TypeError):
        return None
    return key


def _derivative(program: Converted) -> ClosedJaxpr | None:
    """The program of the derivative; None where there is none."""
    kinds: list[Any] = [variable.aval for variable in program.jaxpr.invars]
    arguments = [jax.ShapeDtypeStruct(kind.shape, kind.dtype) for kind in kinds]
    moving, fixed = eqx.partition((program.consts, arguments), _inexact)

    def value(moving: Any, fixed: Any) -> list[Any]:
        consts, arguments = eqx.combine(moving, fixed)
        return jax.core.eval_jaxpr(program.jaxpr, consts, *arguments)

    def back(moving: Any, fixed: Any, cotangents: Any) -> Any:
        return jax.vjp(lambda moving: value(moving, fixed), moving)[1](cotangents)

    try:
        return jax.make_jaxpr(back)(moving, fixed, jax.eval_shape(value, moving, fixed))
    except Exception:  # whatever it raises, it will raise again when a derivative is asked for
        return None


def _inexact(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


class Reader:
    """From values to fingerprints.

    Args:
        foreign: whether a function that somebody else wrote was met, which JAX may call later: the rule of a
            derivative, say. It is compared by identity.
    """

    def __init__(self) -> None:
        self.foreign = False
        self.open: dict[int, tuple[int, Any]] = {}

    def read(self, value: Any) -> Hashable:
        """The fingerprint of a program, or of what is found in one.

        Raises:
            Unreadable: it holds what is traced.
        """
        kind = type(value)
        if value is None or kind in (str, bytes, bool, int):
            return kind, value
        if kind in (float, complex):
            return kind, repr(value)  # -0.0 is not 0.0
        if isinstance(value, Tracer):
            raise Unreadable
        if isinstance(value, (tuple, list)):
            return kind, tuple(map(self.read, value))
        if isinstance(value, dict):
            return kind, tuple((self.read(key), self.read(item)) for key, item in value.items())
        if isinstance(value, Jaxpr):
            return self.program(value)
        if isinstance(value, ClosedJaxpr):
            return self.program(value.jaxpr), self.read(value.consts)
        if isinstance(value, (np.ndarray, np.generic)):
            return kind, value.dtype, value.shape, value.tobytes()
        if isinstance(value, (jax.Array, Alarm)):  # an alarm is of one network: a program that rings it is no other's
            return ByIdentity(value)
        return self._object(value, kind)

    def program(self, program: Any, read: Sequence[bool] | None = None) -> Hashable:
        """That of a jaxpr: what its variables are called is left out, and what nothing reads.

        Args:
            program: see above.
            read: which of its results are read; None for all.
        """
        numbers: dict[Any, int] = {}

        def known(variable: Any) -> Hashable:
            if isinstance(variable, Literal):
                return self.read(np.asarray(variable.val)), variable.aval
            return numbers[variable]

        def new(variable: Any) -> Hashable:
            numbers[variable] = len(numbers)
            return variable.aval

        heads = tuple(map(new, (*program.constvars, *program.invars)))
        lines = []
        for equation, operands, kept in live(program, read):
            known_operands = tuple(map(known, operands))
            params = self._params(equation, kept)
            lines.append(
                (equation.primitive, known_operands, params, tuple(map(new, equation.outvars)), _context(equation))
            )
        results = program.outvars if read is None else [v for v, one in zip(program.outvars, read, strict=True) if one]
        return len(program.constvars), heads, tuple(lines), tuple(map(known, results))

    def _params(self, equation: Any, kept: Sequence[bool]) -> Hashable:
        if is_check(equation):
            return equation.params["debug"]
        whole = all(kept) or equation.primitive.name not in ("jit", "pjit")
        return tuple(
            (name, self.read(value) if whole or name != "jaxpr" else self.program(value.jaxpr, kept))
            for name, value in sorted(equation.params.items())
        )

    def _object(self, value: Any, kind: type) -> Hashable:
        if id(value) in self.open:  # what holds itself, by way of others
            return "again", self.open[id(value)][0]
        self.open[id(value)] = (len(self.open), value)
        if isinstance(value, functools.partial):
            return kind, self.read((value.func, value.args, value.keywords))
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.MethodType):
            return kind, self.read((value.__func__, value.__self__))
        if kind.__name__ == "WrappedFun":
            return kind, self.read((value.f, value.transforms, value.params, value.in_type))
        if kind in (object, weakref.ref) or (_ours(kind) and kind.__name__.endswith("Trace")):
            return (kind,)  # marks, and the trace that the program comes from, which is over
        if kind in (set, frozenset):
            return kind, frozenset(map(self.read, value))
        if kind.__hash__ in (None, object.__hash__) and not isinstance(value, type):
            if not any(map(_ours, kind.__mro__)):
                self.foreign = True
                return ByIdentity(value)
            if hasattr(value, "__wrapped__") and not hasattr(value, "__dict__"):
                return kind, self.read(value.__wrapped__)
            return kind, self.read(attributes(value))
        try:
            hash(value)
        except TypeError:
            return ByIdentity(value)
        return kind, value

    def _function(self, value: Any) -> Hashable:
        if not _ours(value):
            self.foreign = True
            return ByIdentity(value)
        cells = tuple(cell.cell_contents for cell in value.__closure__ or ())
        return value.__code__, self.read((cells, value.__defaults__, value.__kwdefaults__))


def attributes(value: Any) -> dict[str, Any]:
    """The attributes of an object, those in slots too."""
    slots = [name for kind in type(value).__mro__ for name in vars(kind).get("__slots__", ())]
    values = {name: getattr(value, name) for name in slots if hasattr(value, name) and not name.startswith("__")}
    return values | getattr(value, "__dict__", {})


def _ours(value: Any) -> bool:
    return str(getattr(value, "__module__", None)).partition(".")[0] in _OURS


def _context(equation: Any) -> Hashable:
    context = getattr(equation, "ctx", None)
    return getattr(context, "compute_type", None), str(getattr(context, "xla_metadata", None))
