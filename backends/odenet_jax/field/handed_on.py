"""Which results of a program are arguments that it hands on as they are.

The transformations of flax (`nnx.jit`, `nnx.remat`, `nnx.vmap`, ...) return all variables of the modules that they are
handed, written to or not: outside of them, each is another array than it was before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Literal

Places = list[int | None]
_CALLS = ("jaxpr", "call_jaxpr", "fun_jaxpr")
"""The names by which a call (`jax.jit`, `jax.checkpoint`, functions with rules of their own) holds its program."""


def changed(function: Callable[[Sequence[Any]], Sequence[Any]], values: Sequence[Any]) -> tuple[int, ...]:
    """Which of some arrays a function replaces by others, from one that returns them all as it leaves them."""
    places = handed_on(jax.make_jaxpr(function)(values))
    return tuple(i for i, place in enumerate(places) if place != i)


def same(leaves: Sequence[Any], others: Sequence[Any]) -> bool:
    """Whether these are the very same objects."""
    return len(leaves) == len(others) and all(a is b for a, b in zip(leaves, others, strict=True))


def handed_on(program: Any) -> Places:
    """Which argument each result of a program is; None for one that is computed."""
    program = program.jaxpr if isinstance(program, ClosedJaxpr) else program
    origins = {argument: i for i, argument in enumerate(program.invars)}
    for equation in program.eqns:
        for result, place in zip(equation.outvars, _within(equation), strict=True):
            source = None if place is None else equation.invars[place]
            if source is not None and not isinstance(source, Literal) and source in origins:
                origins[result] = origins[source]
    return [None if isinstance(result, Literal) else origins.get(result) for result in program.outvars]


def _within(equation: Any) -> Places:
    """The same for an equation."""
    name, params, count = equation.primitive.name, equation.params, len(equation.outvars)
    if name == "scan":
        return _scan(params)
    if name == "while":
        return _while(params)
    if name == "cond":
        columns = zip(*(handed_on(branch) for branch in params["branches"]), strict=True)
        alike = [column[0] if len(set(column)) == 1 else None for column in columns]
        return [None if place is None else place + 1 for place in alike]
    inner = next((params[key] for key in _CALLS if key in params), None)
    program = inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner
    if program is None or len(program.outvars) != count or len(program.invars) != len(equation.invars):
        return [None] * count
    return handed_on(program)


def _scan(params: Any) -> Places:
    consts, carried = params["num_consts"], params["num_carry"]
    first = consts + carried
    places = handed_on(params["jaxpr"])
    carry = _kept(places[:carried], consts)
    # a result a pass is an argument as a whole where each pass hands on its own part
    return [*carry, *(place if place is not None and place >= first else None for place in places[carried:])]


def _while(params: Any) -> Places:
    first, consts = params["cond_nconsts"], params["body_nconsts"]
    kept = _kept(handed_on(params["body_jaxpr"]), consts)
    return [None if place is None else place + first for place in kept]


def _kept(places: Places, consts: int) -> Places:
    """Of what one pass of a loop hands on to the next: the places at which it is what it was."""
    return [place if place == consts + i else None for i, place in enumerate(places)]
