"""Fields whose derivative jumps, as that of ReLU does at 0.

A rebuilt state of which a little is wrong is on the other side of the kinks of as large a part of a field's units, and
each of these has another derivative altogether: the gradient is off by about the square root of that part (see
`odenet.kit.KINKS`). It is read off the field's program; where that compares its state, its derivative is looked at.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import jax.numpy as jnp
from jax.extend.core import Jaxpr, Literal

from odenet_jax.field import switches
from odenet_jax.field.collectives import within
from odenet_jax.field.jumps import subprograms
from odenet_jax.field.rules import declares, inexact, pullback

_OPERATIONS = frozenset(
    "max min abs clamp sort top_k approx_top_k reduce_max reduce_min cummax cummin reduce_window_max reduce_window_min "
    "select_and_gather_add pmax pmin".split()
)
_UNITS = 8
"""How many times as many entries as a field has units with a kink a state has at most.

Fewer numbers, such as the variance of each row that a normalisation keeps above zero, or the largest number of each
that a softmax subtracts, are no units.
"""


class _Found(IntEnum):
    """What a program was seen to have."""

    NOTHING = 0
    COMPARED = 1
    """It compares its state, as `jnp.where(y > 0, y, 0.1 * y)` does, whose pieces may have different slopes."""
    KINKS = 2


def kinked(program: Jaxpr, state: slice, fixed: Sequence[Any] = ()) -> bool:
    """Whether the derivative of what a program returns was seen to jump with its state.

    Args:
        program: of a field that does not jump itself (see `odenet_jax.field.jumps`).
        state: which of its arguments are the state.
        fixed: its constants, None for those that are being traced.
    """
    depends = [False] * len(program.invars)
    depends[state] = [True] * len(depends[state])
    inputs: list[Any] = program.invars[state]
    entries = max((_size(atom) for atom in inputs), default=0)
    found, _ = _look(program, depends, entries)
    return found == _Found.KINKS or (
        found == _Found.COMPARED and switches.jumps(program, state, fixed, derivative=True)
    )


def _look(program: Any, depends: Sequence[bool], entries: int, *, backward: bool = False) -> tuple[_Found, list[bool]]:
    """What a program has of the arguments that depend on the state, and which of its results do.

    Args:
        program: of the field, or a part of it.
        depends: which of its arguments do.
        entries: of the state.
        backward: whether it is a derivative itself, so that what it compares is what jumps.
    """
    of = {atom for atom, yes in zip(program.invars, depends, strict=True) if yes}
    most = _Found.NOTHING
    for equation in program.eqns:
        read = [not isinstance(atom, Literal) and atom in of for atom in equation.invars]
        if not any(read) or equation.primitive.name == "stop_gradient":
            continue
        found, outputs = within(equation, functools.partial(_equation, backward=backward), equation, read, entries)
        most = max(most, found)
        if most == _Found.KINKS:
            break
        of.update(atom for atom, yes in zip(equation.outvars, outputs, strict=True) if yes)
    return most, [not isinstance(atom, Literal) and atom in of for atom in program.outvars]


def _equation(equation: Any, read: Sequence[bool], entries: int, *, backward: bool) -> tuple[_Found, list[bool]]:
    name, outputs = equation.primitive.name, [True] * len(equation.outvars)
    wide = any(_size(atom) * _UNITS > entries for atom in equation.outvars)
    if declares(equation):
        back = None if backward else pullback(equation)
        if back is None:
            return _Found.NOTHING, outputs
        known = [*read, *[False] * (len(back.invars) - len(read))]
        return _look(back, known, entries, backward=True)[0], outputs
    inner = list(subprograms(equation.params))
    if inner:
        looks = [_look(program, _of(program, read), entries, backward=backward) for program in inner]
        aligned = len(looks) == 1 and len(looks[0][1]) == len(outputs)
        return max(found for found, _ in looks), looks[0][1] if aligned and name != "scan" else outputs
    if not wide:
        return _Found.NOTHING, outputs
    if name in _OPERATIONS and not backward and any(map(_real, equation.outvars)):
        return _Found.KINKS, outputs
    compares = any(_says_yes_or_no(atom) for atom in equation.outvars) and not switches.guards(equation, read)
    if backward:
        return (_Found.KINKS if compares or name == "sign" else _Found.NOTHING), outputs
    return (_Found.COMPARED if compares else _Found.NOTHING), outputs


def _of(program: Jaxpr, read: Sequence[bool]) -> Sequence[bool]:
    """Which arguments of a program within an equation depend on the state, as what the equation reads does."""
    return read if len(program.invars) == len(read) else [True] * len(program.invars)


def _size(atom: Any) -> int:
    """The number of its entries; one of a symbolic shape (`jax.export.symbolic_shape`) is large."""
    shape = getattr(atom.aval, "shape", ())
    return math.prod(length if isinstance(length, int) else 1 << 10 for length in shape)


def _real(atom: Any) -> bool:
    return inexact(atom) and not jnp.issubdtype(atom.aval.dtype, jnp.complexfloating)


def _says_yes_or_no(atom: Any) -> bool:
    return jnp.issubdtype(getattr(atom.aval, "dtype", None) or float, jnp.bool_)
