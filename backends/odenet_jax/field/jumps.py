"""Fields that jump: they round, choose or count by the state, so that a small error in it may change all they return.

A rebuilt state of which a little is wrong may be on the other side of such a jump, where another branch has another
gradient: how far the state itself is off says nothing of that. It is read off the field's program.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from odenet_jax.field.state import Leaves

_APART, _SMOOTH, _JUMPING = range(3)
"""What an array is of the state: no function of it, one that has no jump that can be seen here, or one that jumps."""

_ROUNDING = frozenset(("round", "floor", "ceil", "sign", "rem", "pure_callback", "io_callback", "ffi_call"))
"""What jumps, or may: nobody can see into a call."""
_PLACES = frozenset(("argmax", "argmin"))
_ORDERS = frozenset(("sort", "top_k", "approx_top_k"))


def jumps(program: Jaxpr, state: slice) -> bool:
    """Whether what a program returns jumps with its state.

    A choice among values (`jnp.where`, `lax.cond`) by a comparison counts where all of these are constants: most others
    are one function in pieces, as ReLU is. Rounding that reaches no result does not count.

    Args:
        program: of the field.
        state: which of its arguments are the state.
    """
    levels = [_APART] * len(program.invars)
    levels[state] = [_SMOOTH] * len(levels[state])
    return _JUMPING in _outputs(program, levels)


def against(increment: Leaves, y: Leaves) -> Leaves:
    """What an error in y is held against where the next step jumps: the increment, all of which may be another one; of
    one that is tiny beside y, what rounding lets see of it."""
    return tuple(
        jnp.abs(d) + float(jnp.finfo(leaf.dtype).eps) ** 0.5 * jnp.abs(leaf)
        for d, leaf in zip(increment, y, strict=True)
    )


def _outputs(program: Any, inputs: Sequence[int]) -> list[int]:
    """The levels of a program's results, from those of its arguments."""
    program = program.jaxpr if isinstance(program, ClosedJaxpr) else program
    levels: dict[Any, int] = dict(zip(program.invars, inputs, strict=True))

    def level(atom: Any) -> int:
        return _APART if isinstance(atom, Literal) else levels.get(atom, _APART)

    for equation in program.eqns:
        read = [level(atom) for atom in equation.invars]
        if any(read):
            levels.update(zip(equation.outvars, _equation(equation, read), strict=True))
    return [level(atom) for atom in program.outvars]


def _equation(equation: Any, read: list[int]) -> list[int]:
    name, most, count = equation.primitive.name, max(read), len(equation.outvars)
    if name in _CONTROL:
        return _CONTROL[name](equation.params, read)
    if name == "select_n":
        return _chosen(read[0], [read[1:]])
    if name in _ROUNDING or (name in _PLACES and _inexact(equation.invars[0])):
        return [_JUMPING] * count
    if name in _ORDERS:  # sorted values move as the state does, and their places jump
        return [most, *[_JUMPING] * (count - 1)]
    if name == "lu":  # its pivots choose the order of arithmetic, and not its result
        return [most, *[_APART] * (count - 1)]
    if name == "custom_linear_solve":
        return [most] * count
    inner = list(_programs(equation.params))
    aligned = [program for program in inner if len(program.invars) == len(read) and len(program.outvars) == count]
    if aligned:
        return _outputs(aligned[0], read)
    if any(_JUMPING in _outputs(program, [most] * len(program.invars)) for program in inner):
        return [_JUMPING] * count
    # whole numbers that become others: an index, a mask that multiplies
    counted = any(of and not _inexact(atom) for of, atom in zip(read, equation.invars, strict=True))
    return [
        _JUMPING if _inexact(result) and counted else _converted(name, equation, most, result)
        for result in equation.outvars
    ]


def _converted(name: str, equation: Any, most: int, result: Any) -> int:
    """Of a conversion to whole numbers, or to those of 8 bits, all values jump."""
    if name != "convert_element_type" or not _inexact(equation.invars[0]) or result.aval.dtype == bool:
        return most
    return most if _inexact(result) and result.aval.dtype.itemsize > 1 else _JUMPING


def _chosen(by: int, columns: Sequence[Sequence[int]]) -> list[int]:
    """Of values that one chooses among, each column from its candidates."""
    return [_JUMPING if by and not any(column) else max((*column, by and by - _SMOOTH and by)) for column in columns]


def _cond(params: Any, read: list[int]) -> list[int]:
    branches = [_outputs(branch, read[1:]) for branch in params["branches"]]
    return _chosen(read[0], [*zip(*branches, strict=True)])


def _scan(params: Any, read: list[int]) -> list[int]:
    consts, carried = params["num_consts"], params["num_carry"]
    return _repeated(params["jaxpr"], read[:consts], read[consts : consts + carried], read[consts + carried :])


def _while(params: Any, read: list[int]) -> list[int]:
    first = params["cond_nconsts"]
    second = first + params["body_nconsts"]
    return _repeated(params["body_jaxpr"], read[first:second], read[second:], [])


def _repeated(body: Any, consts: list[int], carry: list[int], elements: list[int]) -> list[int]:
    """Of a loop: what one pass makes of its carry, the next one reads."""
    while True:
        outputs = _outputs(body, [*consts, *carry, *elements])
        after = [max(pair) for pair in zip(carry, outputs[: len(carry)], strict=True)]
        if after == carry:
            return [*after, *outputs[len(carry) :]]
        carry = after


_CONTROL = {"cond": _cond, "scan": _scan, "while": _while}


def _programs(value: Any) -> Iterator[Any]:
    """The programs within an equation's parameters."""
    if isinstance(value, (Jaxpr, ClosedJaxpr)):
        yield value.jaxpr if isinstance(value, ClosedJaxpr) else value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _programs(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _programs(item)


def _inexact(atom: Any) -> bool:
    dtype = getattr(atom.aval, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.inexact)
