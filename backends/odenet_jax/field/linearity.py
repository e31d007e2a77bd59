"""Fields whose pullback is not linear in the gradient that it is given: a `jax.custom_vjp` that clips, or adds to it.

JAX's own derivatives are linear, and two methods that take them along other steps, or of one step in other pieces,
agree as far as their states do. A rule of the user may be anything: one that clips has another gradient for each size
of steps, as it is given h times the gradient in a step of the network and the gradient itself in the continuous
adjoint. How far states are off says nothing of that. It is read off the program of the pullback.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from enum import IntFlag
from typing import Any

import numpy as np
from jax.extend.core import ClosedJaxpr, Literal

from odenet_jax.field.collectives import within
from odenet_jax.field.jumps import subprograms
from odenet_jax.field.rules import declares, inexact, pullback


class Part(IntFlag):
    """What an array is of the gradient that a pullback is given. Of two that are chosen among, or added, it is both."""

    ZERO = 0
    FIXED = 1
    LINEAR = 2
    UNEVEN = 3
    """Neither: not linear, or with something added."""


_ONE_BY_ONE = frozenset(
    "neg copy copy_p reduce_sum cumsum broadcast_in_dim reshape transpose squeeze expand_dims rev slice real imag conj "
    "complex fft split reduce_window_sum reduce_precision convert_element_type sharding_constraint "
    "optimization_barrier psum psum_invariant pvary pcast pbroadcast ppermute all_gather all_to_all reduce_scatter "
    "stop_gradient tie add add_any sub concatenate pad dynamic_update_slice scatter-add scatter name".split()
)
"""Linear in all of their numbers together."""
_PRODUCTS = frozenset(("mul", "dot_general", "conv_general_dilated", "ragged_dot_general"))
_BY_THE_FIRST = frozenset(("div", "gather", "dynamic_slice", "select_and_scatter_add"))
_BY_THE_LAST = frozenset(("triangular_solve",))


def linear(program: Any) -> bool:
    """Whether the pullback of a program is linear, as far as can be seen: JAX's own always is."""
    for equation in program.eqns:
        if declares(equation, linear=False):
            if (back := pullback(equation)) is None:
                return False
            given = sum(map(inexact, equation.outvars))
            parts = [Part.FIXED] * (len(back.invars) - given) + [Part.LINEAR] * given
            if not all(part in (Part.ZERO, Part.LINEAR) for part in _outputs(back, parts)):
                return False
        elif not within(equation, lambda params: all(map(linear, subprograms(params))), equation.params):
            return False
    return True


def _outputs(program: Any, inputs: Sequence[Part]) -> list[Part]:
    """What a program's results are, from what its arguments are."""
    program = program.jaxpr if isinstance(program, ClosedJaxpr) else program
    parts: dict[Any, Part] = dict(zip(program.invars, inputs, strict=True))

    def part(atom: Any) -> Part:
        if isinstance(atom, Literal):
            return Part.FIXED if np.asarray(atom.val).any() else Part.ZERO
        return parts.get(atom, Part.FIXED)

    for equation in program.eqns:
        read = [part(atom) for atom in equation.invars]
        parts.update(zip(equation.outvars, _equation(equation, read), strict=True))
    return [part(atom) for atom in program.outvars]


def _equation(equation: Any, read: list[Part]) -> list[Part]:
    name, count = equation.primitive.name, len(equation.outvars)
    if name in _CONTROL:
        return _CONTROL[name](equation.params, read)
    for program in subprograms(equation.params):
        if len(program.invars) == len(read) and len(program.outvars) == count:
            return _outputs(program, read)
    return [_arithmetic(name, equation, read)] * count


def _arithmetic(name: str, equation: Any, read: list[Part]) -> Part:
    """Of an operation that holds no program."""
    together = _joined(read)
    if name in _ONE_BY_ONE:
        whole = any(not inexact(atom) or atom.aval.dtype.itemsize < 2 for atom in equation.outvars)  # it rounds
        if name == "dynamic_update_slice":
            together = _joined(read[:2]) if _known(read[2:]) else Part.UNEVEN
        elif name.startswith("scatter"):
            together = _joined([read[0], read[2]]) if _known(read[1:2]) else Part.UNEVEN
        return Part.UNEVEN if whole and together & Part.LINEAR else together
    if name in _PRODUCTS:
        if Part.ZERO in read or Part.LINEAR not in read:
            return Part.ZERO if Part.ZERO in read else together
        return Part.LINEAR if sum(of & Part.LINEAR > 0 for of in read) == 1 else Part.UNEVEN
    if name in _BY_THE_FIRST and _known(read[1:]):
        return read[0]
    if name in _BY_THE_LAST and _known(read[:-1]):
        return read[-1]
    if name == "custom_linear_solve":
        count = len(equation.outvars)
        return _joined(read[-count:]) if _known(read[:-count]) else Part.UNEVEN
    return Part.FIXED if _known(read) else Part.UNEVEN


def _cond(params: Any, read: list[Part]) -> list[Part]:
    branches = [_outputs(branch, read[1:]) for branch in params["branches"]]
    return [_joined(column) if _known(read[:1]) else Part.UNEVEN for column in zip(*branches, strict=True)]


def _select(params: Any, read: list[Part]) -> list[Part]:
    return [_joined(read[1:]) if _known(read[:1]) else Part.UNEVEN]


def _scan(params: Any, read: list[Part]) -> list[Part]:
    consts, carried = params["num_consts"], params["num_carry"]
    return _repeated(params["jaxpr"], read[:consts], read[consts : consts + carried], read[consts + carried :])


def _while(params: Any, read: list[Part]) -> list[Part]:
    first = params["cond_nconsts"]
    second = first + params["body_nconsts"]
    carry = _repeated(params["body_jaxpr"], read[first:second], read[second:], [])
    until = _outputs(params["cond_jaxpr"], [*read[:first], *carry])
    return carry if _known(until) else [Part.UNEVEN] * len(carry)


def _repeated(body: Any, consts: list[Part], carry: list[Part], elements: list[Part]) -> list[Part]:
    """Of a loop: what one pass makes of its carry, the next one reads."""
    while True:
        outputs = _outputs(body, [*consts, *carry, *elements])
        after = [one | other for one, other in zip(carry, outputs[: len(carry)], strict=True)]
        if after == carry:
            return [*after, *outputs[len(carry) :]]
        carry = after


_CONTROL = {"cond": _cond, "select_n": _select, "select_if_vmap": _select, "scan": _scan, "while": _while}


def _joined(parts: Sequence[Part]) -> Part:
    return functools.reduce(operator.or_, parts, Part.ZERO)


def _known(parts: Sequence[Part]) -> bool:
    """Whether the gradient is no part of these."""
    return not _joined(parts) & Part.LINEAR
