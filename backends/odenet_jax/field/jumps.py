"""Fields that jump: they round, choose or count by the state, so that a small error in it may change all they return.

So does a normalisation over very few numbers: what it divides by, their spread, may be tiny beside them. A program
computes it by its parts: a mean of few numbers is subtracted from them, and their rest divided by the size of that.
Or nothing is subtracted, and something is divided by the size of one number, two or three (`y / |y|`).

A rebuilt state of which a little is wrong may be on the other side of such a jump, where another branch has another
gradient: how far the state itself is off says nothing of that. It is read off the field's program.

Over 250 lines: one walk over a program, and what it asks of each kind of operation.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from numbers import Integral
from typing import Any

import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from odenet.kit import few_numbers
from odenet_jax.field.collectives import devices, within
from odenet_jax.field.rules import declares, inexact, pullback
from odenet_jax.field.state import Leaves

Level = few_numbers.Level
APART, SMOOTH, SIZE, FEW = few_numbers.APART, few_numbers.SMOOTH, few_numbers.SIZE, few_numbers.FEW
CENTRED, SPREAD, DIVIDED, JUMPING = few_numbers.CENTRED, few_numbers.SPREAD, few_numbers.DIVIDED, few_numbers.JUMPING
may_vanish = few_numbers.may_vanish
Walk = Callable[[Any, Sequence[Level]], list[Level]]
"""From a program and the levels of its arguments to those of its results."""


_ROUNDING = frozenset(("round", "floor", "ceil", "sign", "rem", "pure_callback", "io_callback", "ffi_call"))
"""What jumps, or may: nobody can see into a call."""
_PLACES = frozenset(("argmax", "argmin"))
_ORDERS = frozenset(("sort", "top_k", "approx_top_k"))
_REDUCTIONS = frozenset("reduce_sum reduce_max reduce_min psum pmax pmin psum_invariant psum2".split())
_KEEPING = frozenset(
    "broadcast_in_dim reshape transpose squeeze expand_dims convert_element_type reduce_precision copy slice rev real "
    "imag conj neg abs mul div max min add add_any sub sqrt square integer_pow pow "
    "sharding_constraint pvary pcast".split()
)
"""What leaves numbers that are put together or centred what they are, beside others that are so or no function of y."""
_INVERTING = frozenset(("rsqrt", "log"))
_SQUARES = frozenset(("square", "abs"))


def jumps(program: Jaxpr, state: slice, *, by_division: bool = False) -> bool:
    """Whether what a program returns jumps with its state.

    A choice among values (`jnp.where`, `lax.cond`) by a comparison counts where all of these are constants: others
    may be one function in pieces, as ReLU is (see `switches`). Rounding that reaches no result does not count.

    Args:
        program: of the field.
        state: which of its arguments are the state.
        by_division: whether by one by what may vanish: no part of a step bounds what is off there.
    """
    levels = [APART] * len(program.invars)
    levels[state] = [SMOOTH] * len(levels[state])
    inputs: list[Any] = program.invars[state]
    shapes = [atom.aval.shape for atom in inputs]
    once = few_numbers.rows(shapes)
    kinds = (DIVIDED.kind,) if by_division else (DIVIDED.kind, JUMPING.kind)
    return any(level.kind in kinds and level.groups not in once for level in _outputs(program, levels))


def against(increment: Leaves, y: Leaves) -> Leaves:
    """What an error in y is held against where the next step jumps: the increment, all of which may be another one; of
    one that is tiny beside y, what rounding lets see of it."""
    return tuple(
        jnp.abs(d) + float(jnp.finfo(leaf.dtype).eps) ** 0.5 * jnp.abs(leaf)
        for d, leaf in zip(increment, y, strict=True)
    )


def _outputs(program: Any, inputs: Sequence[Level], *, rules: bool = True) -> list[Level]:
    """The levels of a program's results, from those of its arguments; `rules`: also of how it is differentiated."""
    program = program.jaxpr if isinstance(program, ClosedJaxpr) else program
    levels: dict[Any, Level] = dict(zip(program.invars, inputs, strict=True))
    conjugates: dict[Any, Any] = {}

    def level(atom: Any) -> Level:
        return APART if isinstance(atom, Literal) else levels.get(atom, APART)

    def squares(equation: Any) -> bool:
        one, *others = [atom if isinstance(atom, Literal) else conjugates.get(atom, atom) for atom in equation.invars]
        name = equation.primitive.name
        even = name == "integer_pow" and equation.params["y"] % 2 == 0 and equation.params["y"] > 0
        return name in _SQUARES or even or (name in ("mul", "dot_general") and one is others[0])

    for equation in program.eqns:
        read = [level(atom) for atom in equation.invars]
        if max(read, default=APART) > APART:
            if equation.primitive.name == "conj":
                conjugates[equation.outvars[0]] = equation.invars[0]
            levels.update(
                zip(equation.outvars, _equation(equation, read, square=squares(equation), rules=rules), strict=True)
            )
    return [level(atom) for atom in program.outvars]


def _equation(equation: Any, read: list[Level], *, square: bool, rules: bool) -> list[Level]:
    """The levels of what an equation makes of what it reads; `square`: whether that is a size of its numbers."""
    name, count = equation.primitive.name, len(equation.outvars)
    outputs = functools.partial(_outputs, rules=rules)
    outputs = functools.partial(within, equation, outputs)
    if name in _CONTROL:
        return _CONTROL[name](equation.params, read, outputs)
    if name == "select_n":
        return _chosen(read[0], [read[1:]])
    most = _normalised(name, equation, read, square=square)
    if name in _ROUNDING or (name in _PLACES and inexact(equation.invars[0])):
        return [JUMPING] * count
    if name in _ORDERS:  # sorted values move as the state does, and their places jump
        return [most, *[JUMPING] * (count - 1)]
    if name == "lu":  # its pivots choose the order of arithmetic, and not its result
        return [most, *[APART] * (count - 1)]
    if name == "custom_linear_solve":
        return [most] * count
    if rules and declares(equation) and _goes_back_by_jumps(equation, read):
        return [JUMPING] * count
    inner = list(subprograms(equation.params))
    aligned = [program for program in inner if len(program.invars) == len(read) and len(program.outvars) == count]
    if aligned:
        return outputs(aligned[0], read)
    inside = max((max(outputs(program, [most] * len(program.invars)), default=most) for program in inner), default=most)
    if inside > most:
        return [inside] * count
    # whole numbers that become others: an index, a mask that multiplies
    counted = any(of > APART and not inexact(atom) for of, atom in zip(read, equation.invars, strict=True))
    return [
        JUMPING if inexact(result) and counted else _converted(name, equation, most, result)
        for result in equation.outvars
    ]


def _goes_back_by_jumps(equation: Any, read: list[Level]) -> bool:
    """Whether a derivative of the user's jumps with the state: one that rounds, where the function itself does not."""
    if (back := pullback(equation)) is None:
        return True
    levels = [min(level, SMOOTH) for level in read]
    levels += [SMOOTH] * (len(back.invars) - len(read))
    return JUMPING in _outputs(back, levels, rules=False)


def _normalised(name: str, equation: Any, read: list[Level], *, square: bool) -> Level:
    """The level of what an operation of arithmetic returns."""
    most = max(read)
    if most.kind in (APART.kind, DIVIDED.kind, JUMPING.kind):
        return most
    if name in _REDUCTIONS or name == "dot_general":
        return _reduced(name, equation, read, square=square)
    if square and most == SMOOTH:
        return SIZE._replace(number=1 + _complex(equation.invars[0]))
    last, exponent = read[-1], equation.invars[-1]
    power = equation.params["y"] if name == "integer_pow" else exponent.val if isinstance(exponent, Literal) else -1
    if may_vanish(last) and name == "div":
        return few_numbers.divided(last)
    if may_vanish(read[0]) and (name in _INVERTING or (name in ("pow", "integer_pow") and not power > 0)):
        return few_numbers.divided(read[0])
    if name == "sub" and last.kind == FEW.kind and read[0] > APART:
        return few_numbers.subtracted(most, read[0])
    if most.kind == SIZE.kind and name in ("add", "add_any", "sub", "max"):
        if all(level.kind == SIZE.kind for level in read):
            return few_numbers.sized(sum(level.number for level in read), equation.outvars[0].aval.size)
        if any(isinstance(atom, Literal) and abs(atom.val) > few_numbers.NEAR_ZERO for atom in equation.invars):
            return SMOOTH
    alike = all(level.kind in (APART.kind, most.kind) for level in read)
    return most if alike and name in _KEEPING else SMOOTH


def _reduced(name: str, equation: Any, read: list[Level], *, square: bool) -> Level:
    """Of a sum, or a largest or least number, or a sum of products."""
    (shape, *_), most, result = [atom.aval.shape for atom in equation.invars], max(read), equation.outvars[0].aval.size
    if name == "dot_general":
        ((axes, _), _), centred = equation.params["dimension_numbers"], all(of.kind == CENTRED.kind for of in read)
    else:
        axes, centred = equation.params["axes"], most.kind in (CENTRED.kind, SPREAD.kind)
    number = math.prod(shape[axis] if isinstance(axis, Integral) else devices(axis) for axis in axes)
    square = square and most == SMOOTH
    if name == "dot_general" and not centred and not square:
        return SMOOTH
    # a row is normalised over its last axis, and a batch is not
    groups = result if len(shape) - 1 in axes else math.inf
    parts = 1 + _complex(equation.invars[0])
    return few_numbers.reduced(most, number, groups, parts=parts, square=square, centred=centred)


def _converted(name: str, equation: Any, most: Level, result: Any) -> Level:
    """Of a conversion to whole numbers, or to those of 8 bits, all values jump."""
    if name != "convert_element_type" or not inexact(equation.invars[0]) or result.aval.dtype == bool:
        return most
    return most if inexact(result) and result.aval.dtype.itemsize > 1 else JUMPING


def _chosen(by: Level, columns: Sequence[Sequence[Level]]) -> list[Level]:
    """Of values that one chooses among, each column from its candidates."""
    chosen = by > APART
    by = by if by.kind >= DIVIDED.kind else APART
    return [JUMPING if chosen and max(column) == APART else max(*column, by) for column in columns]


def _cond(params: Any, read: list[Level], outputs: Walk) -> list[Level]:
    branches = [outputs(branch, read[1:]) for branch in params["branches"]]
    return _chosen(read[0], [*zip(*branches, strict=True)])


def _scan(params: Any, read: list[Level], outputs: Walk) -> list[Level]:
    consts, carried = params["num_consts"], params["num_carry"]
    return _repeated(outputs, params["jaxpr"], read[:consts], read[consts : consts + carried], read[consts + carried :])


def _while(params: Any, read: list[Level], outputs: Walk) -> list[Level]:
    first = params["cond_nconsts"]
    second = first + params["body_nconsts"]
    return _repeated(outputs, params["body_jaxpr"], read[first:second], read[second:], [])


def _repeated(walk: Walk, body: Any, consts: list[Level], carry: list[Level], elements: list[Level]) -> list[Level]:
    """Of a loop: what one pass makes of its carry, the next one reads."""
    while True:
        outputs = walk(body, [*consts, *carry, *elements])
        after = [max(pair) for pair in zip(carry, outputs[: len(carry)], strict=True)]
        if after == carry:
            return [*after, *outputs[len(carry) :]]
        carry = after


_CONTROL = {"cond": _cond, "scan": _scan, "while": _while}


def subprograms(value: Any) -> Iterator[Any]:
    """The programs within an equation's parameters."""
    if isinstance(value, (Jaxpr, ClosedJaxpr)):
        yield value.jaxpr if isinstance(value, ClosedJaxpr) else value
    elif isinstance(value, dict):
        for item in value.values():
            yield from subprograms(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from subprograms(item)


def _complex(atom: Any) -> bool:
    return jnp.issubdtype(atom.aval.dtype, jnp.complexfloating)
