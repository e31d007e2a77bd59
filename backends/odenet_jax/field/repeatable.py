"""Functions that are another at each call: JAX traces a function once, and all steps would run what it read then.

What can be seen is seen: a function whose program is not the same when it is traced again. State that changes later, or
by chance is the same twice, cannot be told from none.
"""

from __future__ import annotations

import contextlib
import random
from collections import OrderedDict
from collections.abc import Callable, Hashable
from itertools import zip_longest
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from odenet import StateError
from odenet_jax.field.closure import Converted, converted
from odenet_jax.field.fingerprint import ByIdentity, Reader, Unreadable, fingerprint
from odenet_jax.field.programs import eager

_TRACES = 16  # of a function that draws numbers: of two only, a choice with p = 1/2 is the same half the time
_KNOWN: OrderedDict[Hashable, None] = OrderedDict()
_MOST = 256  # fingerprints of functions that were the same, those that were traced last


def repeatable(name: str, function: Callable[..., Any], *arguments: Any) -> tuple[Converted, Hashable | None]:
    """A function traced with these arguments, and its fingerprint: None within `jax.jit`, and where it has none.

    Args:
        name: of the function, for messages.
        function, arguments: as `converted` takes them.

    Raises:
        StateError: traced again, it is another. A function whose fingerprint is that of one that was the same is not
            traced again, unless it draws random numbers.
    """
    before = _drawn()
    program = converted(function, *arguments)
    key = fingerprint(program) if eager() and not program.collective else None
    after = _drawn()
    if key is not None and key in _KNOWN and after == before:
        return program, key
    with contextlib.suppress(jax.errors.UnexpectedTracerError, Unreadable, TypeError):
        first = _read(program)
        for _ in range(1 if after == before else _TRACES):
            # a new function: JAX remembers the trace of one that it knows
            again = converted(lambda *arguments: function(*arguments), *arguments)
            if _traced(again) != _traced(program):
                break  # an array that it kept of the trace before: JAX says so where it is read
            _require_same(name, first, _read(again))
        if key is not None:
            _KNOWN[key] = None
            while len(_KNOWN) > _MOST:
                _KNOWN.popitem(last=False)
    return program, key


def _traced(program: Converted) -> set[int]:
    return {id(const) for const in program.consts if isinstance(const, Tracer)}


def _drawn() -> Hashable:
    """How far the random numbers of Python and of NumPy are drawn."""
    state: Any = np.random.get_state()
    return random.getstate(), state[1].tobytes(), state[2]


def _require_same(name: str, first: Any, second: Any) -> None:
    if first == second:
        return
    pairs = ((a, b) for a, b in zip_longest(_flat(first), _flat(second)) if a != b)
    one, other = next(pairs, ("", ""))
    raise StateError(
        f"the {name} is another at each call: traced twice with the same arguments, it has {_said(one)} once and "
        f"{_said(other)} once. It reads what changes from call to call (a counter, a list that grows, random numbers "
        "of Python or NumPy, the clock), and JAX, which traces it once, would run what it read first in every step",
        "functions of their arguments alone",
        "count in the state y, or read t; draw with jax.random from a key that weights hold, or from the key that "
        "ResidualStack and convert give to each block; draw other numbers before the solve and give them in weights",
    )


def _flat(value: Any) -> Any:
    if isinstance(value, tuple):
        for part in value:
            yield from _flat(part)
    else:
        yield value


def _said(value: Any) -> str:
    text = "nothing" if value is None else "other numbers" if isinstance(value, bytes) else str(value)
    return text if len(text) <= 60 else text[:60] + "..."


def _read(program: Converted) -> Any:
    reader = _Values()
    return reader.read(program.jaxpr), tuple(map(reader.read, program.consts)), program.outputs


class _Values(Reader):
    """Reads values by what they are; functions within a program, which may be made at each call, are not compared."""

    def read(self, value: Any) -> Any:
        if isinstance(value, Tracer):
            return ByIdentity(value)
        if isinstance(value, jax.Array):
            plain = jax.random.key_data(value) if jnp.issubdtype(value.dtype, jax.dtypes.prng_key) else value
            return ByIdentity(value) if not value.is_fully_addressable else self.read(np.asarray(plain))
        if isinstance(value, (np.ndarray, np.generic)) and value.size < 8:
            return value.dtype, value.shape, repr(value.tolist())  # which a message may show
        return super().read(value)

    def _object(self, value: Any, kind: type) -> Any:
        if kind.__hash__ in (None, object.__hash__) or callable(value):
            return kind.__name__
        return super()._object(value, kind)
