"""Looking whether a field jumps where it compares its state (`odenet._gradients.switches`).

A program is looked at while it is traced, when its arguments have no values. Whether a choice is one function in pieces
is a matter of its arithmetic, and so the same for numbers by chance in the place of weights.
"""

from __future__ import annotations

import collections
import functools
import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from odenet.kit import switches
from odenet_jax.field.closure import evaluated

_KNOWN: collections.OrderedDict[Any, bool] = collections.OrderedDict()
"""By program: whether it jumps. A solve is traced many times."""
_PROGRAMS = 256
_LOOPS = frozenset(("while", "shard_map"))
"""What is run as it is: how often a loop runs, its states tell; a program of many devices is another one in each."""


class _Look(NamedTuple):
    """See `switches.Look`."""

    sides: Sequence[int]
    out: Sequence[np.ndarray]

    def change(self, other: _Look) -> float:
        """The largest difference of what was returned, beside its root mean square."""
        pairs = [pair for pair in zip(self.out, other.out, strict=True) if pair[0].size]
        return max((float(np.abs(one - two).max() / _size(one, two)) for one, two in pairs), default=0.0)


def _size(*leaves: np.ndarray) -> float:
    return max(*(float(np.linalg.norm(leaf)) / leaf.size**0.5 for leaf in leaves), float(np.finfo(np.float32).tiny))


def jumps(program: Jaxpr, state: slice, fixed: Sequence[Any] = (), *, derivative: bool = False) -> bool:
    """Whether a program was seen to jump where it compares its state.

    Args:
        program: of the field.
        state: which of its arguments are the state.
        fixed: its constants, None for those that are being traced.
        derivative: whether its derivative is looked at, in a direction by chance, and not its value.
    """
    if not _compares(program, [*map(program.invars[state].__contains__, program.invars)]):
        return False
    # other constants may be other numbers the next time, but a zero is meant
    with jax.ensure_compile_time_eval():
        levels = [_level(constant) for constant in fixed or [None] * len(program.constvars)]
    key = (str(program), state.start, state.stop, tuple(levels), derivative)
    if key not in _KNOWN:
        if len(_KNOWN) >= _PROGRAMS:
            _KNOWN.popitem(last=False)
        _KNOWN[key] = _look_at(program, state, levels, derivative=derivative)
    return _KNOWN[key]


def _compares(program: Jaxpr, depends: Sequence[bool]) -> bool:
    """Whether it compares what depends on some of its arguments."""
    of = {var for var, yes in zip(program.invars, depends, strict=True) if yes}
    for equation in program.eqns:
        read = [not isinstance(atom, Literal) and atom in of for atom in equation.invars]
        if not any(read):
            continue
        of.update(equation.outvars)
        inner = _inner(equation)
        if inner is None:
            found = not guards(equation, read) and any(_says_yes_or_no(var.aval) for var in equation.outvars)
        else:
            found = _compares(inner.jaxpr, read)
        if found:
            return True
    return False


def _says_yes_or_no(array: Any) -> bool:
    return jnp.issubdtype(getattr(array, "dtype", None) or float, jnp.bool_)


def guards(equation: Any, depends: Sequence[bool]) -> bool:
    """Whether it asks for numbers that are none, or for one number alone, as a division that may not be by zero does:
    no state comes to lie on its other side."""
    name, atoms = equation.primitive.name, equation.invars
    return name == "is_finite" or (name in ("eq", "ne") and (atoms[0] is atoms[1] or not all(depends)))


def _inner(equation: Any) -> ClosedJaxpr | None:
    """The program that an equation runs, of the same arguments and results."""
    ends = (len(equation.invars), len(equation.outvars))
    for value in equation.params.values():
        program = ClosedJaxpr(value, ()) if isinstance(value, Jaxpr) and not value.constvars else value
        if isinstance(program, ClosedJaxpr) and (len(program.jaxpr.invars), len(program.jaxpr.outvars)) == ends:
            return None if equation.primitive.name in _LOOPS else program
    return None


def _level(constant: Any) -> float | None:
    """The number that all entries of a constant are, if they are one."""
    if constant is None or not jnp.issubdtype(constant.dtype, jnp.floating) or not constant.size:
        return None
    least, most = (float(bound) for bound in (jnp.min(constant), jnp.max(constant)))
    return least if least == most else None


def _look_at(program: Jaxpr, state: slice, levels: Sequence[float | None], *, derivative: bool) -> bool:
    names = np.random.default_rng(0)
    try:
        with jax.ensure_compile_time_eval():
            arguments = [_by_chance(var.aval, names) for var in program.invars]
            constants = [
                _by_chance(var.aval, names) if level is None else jnp.full_like(_by_chance(var.aval, names), level)
                for var, level in zip(program.constvars, levels, strict=True)
            ]
            floating = [n for n in range(*state.indices(len(arguments))) if _floats(arguments[n])]
    except Exception:  # of devices, or of another package's types of numbers
        return False
    value = functools.partial(_run, program, constants)
    seen = functools.partial(_derivative, value, floating) if derivative else value
    # compiled by itself, with no constants folded: JAX 0.5 would fold those of a scan and fail, and the field would not
    # be looked at
    run = functools.cache(lambda: jax.jit(seen).lower(arguments).compile())

    def look(place: switches.Place) -> _Look | None:
        moved, ways = [*arguments], np.random.default_rng(1 + place.line)
        for n in floating if place.s else ():
            size = float(np.linalg.norm(moved[n])) / max(moved[n].size, 1) ** 0.5
            way = place.s * (size or 1.0) * _normal(moved[n], ways)
            moved[n] = np.asarray(moved[n]) + way.astype(moved[n].dtype)  # by NumPy: JAX would trace the sum
        try:
            with jax.disable_jit(False):  # under `True` nothing that is compiled runs
                out, sides = jax.device_get(run()(moved))
        except Exception:  # an axis that has a name outside of the program alone, an error that it raises
            return None
        if not all(bool(np.isfinite(leaf).all()) for leaf in out):
            return None
        return _Look([zlib.crc32(np.asarray(side).tobytes()) for side in sides], out)

    if not floating:
        return False
    width = max(2.0**-26, *(32 * float(jnp.finfo(arguments[n].dtype).eps) for n in floating))
    return switches.jumps(look, width, least=switches.COARSE if _halves(program) else switches.LEAST)


def _halves(program: Jaxpr) -> bool:
    """Whether it computes in half precision."""
    for equation in program.eqns:
        if any(getattr(var.aval, "dtype", None) in (jnp.bfloat16, jnp.float16) for var in equation.outvars):
            return True
        if (inner := _inner(equation)) is not None and _halves(inner.jaxpr):
            return True
    return False


def _by_chance(aval: Any, names: np.random.Generator) -> Any:
    """An argument: of a matrix of the size that keeps that of states; of a vector above zero, as most are."""
    if jnp.issubdtype(aval.dtype, jax.dtypes.prng_key):
        keys = jax.random.key(0, impl=jax.random.key_impl(aval))
        return jnp.broadcast_to(keys, aval.shape)
    if not jnp.issubdtype(aval.dtype, jnp.inexact):
        return jnp.ones(aval.shape, aval.dtype) if aval.dtype == bool else jnp.zeros(aval.shape, aval.dtype)
    like = np.empty(aval.shape, np.complex128 if jnp.issubdtype(aval.dtype, jnp.complexfloating) else np.float64)
    numbers = _normal(like, names)
    # those of vectors, as of times, steps and scales, are mostly above zero
    numbers = np.abs(numbers) if len(aval.shape) < 2 else numbers / math.prod(aval.shape[:-1]) ** 0.5
    return jnp.asarray(numbers, aval.dtype)


def _normal(like: Any, names: np.random.Generator) -> np.ndarray:
    real = names.standard_normal(like.shape)
    return real + 1j * names.standard_normal(like.shape) if np.iscomplexobj(like) else real


def _floats(array: Any) -> bool:
    return jnp.issubdtype(array.dtype, jnp.inexact)


def _derivative(value: Callable[..., Any], floating: Sequence[int], arguments: Sequence[Any]) -> Any:
    """Of what `_run` returns, by the state; and what was compared."""

    def of(state: Sequence[Any]) -> Any:
        moved = [*arguments]
        for n, leaf in zip(floating, state, strict=True):
            moved[n] = leaf
        out, sides = value(moved)
        return [leaf for leaf in out if _floats(leaf)], sides

    out, back, sides = jax.vjp(of, [arguments[n] for n in floating], has_aux=True)
    ways = np.random.default_rng(0)
    return back([jnp.asarray(_normal(leaf, ways), leaf.dtype) for leaf in out])[0], sides


def _run(program: Jaxpr, constants: Sequence[Any], arguments: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """What a program returns, and what it has compared."""
    values: dict[Any, Any] = dict(zip((*program.constvars, *program.invars), (*constants, *arguments), strict=True))
    sides: list[Any] = []

    def value(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for equation in program.eqns:
        read, inner = [*map(value, equation.invars)], _inner(equation)
        if inner is None:
            out = evaluated(equation, read)
            sides += [x for x in out if _says_yes_or_no(x)]
        elif equation.primitive.name == "scan":
            out, compared = _scan(inner, equation.params, read)
            sides += compared
        else:
            out, compared = _run(inner.jaxpr, inner.consts, read)
            sides += compared
        values.update(zip(equation.outvars, out, strict=True))
    return [*map(value, program.outvars)], sides


def _scan(body: ClosedJaxpr, params: Any, read: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    first, carried = params["num_consts"], params["num_carry"]
    constants, carry, rows = read[:first], read[first : first + carried], read[first + carried :]

    def step(carry: Sequence[Any], row: Sequence[Any]) -> tuple[Any, Any]:
        out, sides = _run(body.jaxpr, body.consts, [*constants, *carry, *row])
        return out[:carried], (out[carried:], sides)

    carry, (stacked, sides) = lax.scan(step, [*carry], [*rows], length=params["length"], reverse=params["reverse"])
    return [*carry, *stacked], sides
