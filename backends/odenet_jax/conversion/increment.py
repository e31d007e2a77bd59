"""What a layer adds to its input, told by its program: `x + f(x)` is evaluated as `f(x)`, without the last addition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Literal

from odenet import ConversionError

_INSIDE = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr"}
"""Programs within the program that are a part of it, by primitive, and the parameter that holds them."""


@dataclass(frozen=True)
class Sum:
    """A value of a program.

    Args:
        value: it.
        more: of a value that is the input plus something, that something; () for the input itself; else None.
    """

    value: Any
    more: Any = None


def increment(function: Callable[[Any], tuple[Array, Any]], x: Array, name: str) -> tuple[Array, Any]:
    """`f(x)` of a function that returns `x + f(x)` and something else, and what else it returns.

    Args:
        function: of x.
        x: the state.
        name: of the layer, for messages.

    Raises:
        ConversionError: its value is not its input plus something of the same shape and number type.
    """
    closed, shape = jax.make_jaxpr(function, return_shape=True)(x)
    value = shape[0]
    if not isinstance(value, jax.ShapeDtypeStruct) or (value.shape, value.dtype) != (x.shape, x.dtype):
        raise ConversionError(f"{name} changes the state from {kind_of_state(x)} to {kind_of_state(value)}")
    (first, *rest) = _evaluated(closed.jaxpr, closed.consts, [Sum(x, ())])
    if first.more is None:
        last_equation = next(
            (equation for equation in closed.jaxpr.eqns if closed.jaxpr.outvars[0] in equation.outvars), None
        )
        last = "nothing" if last_equation is None else last_equation.primitive.name
        raise ConversionError(
            f"the last thing that {name} does is {last}, not the addition of its input",
            "layers x -> x + f(x) whose code ends with the addition",
            "take gradient='checkpoint', which undoes nothing; or a pre-activation or pre-norm layer",
        )
    results = jax.tree.unflatten(jax.tree.structure(shape), [first.value, *(result.value for result in rest)])
    more = jnp.zeros_like(x) if isinstance(first.more, tuple) else jnp.broadcast_to(first.more, x.shape)
    return more.astype(x.dtype), results[1]


def kind_of_state(value: Any) -> str:
    """Number type and shape, for messages."""
    if isinstance(value, (jax.Array, jax.ShapeDtypeStruct)):
        return f"{value.dtype} {tuple(value.shape)}"
    return f"a {type(value).__name__}"


def _evaluated(program: Any, consts: Any, inputs: list[Sum]) -> list[Sum]:
    """The values of a program, which keep their sums through additions and through programs within it."""
    known: dict[Any, Sum] = dict(zip(program.constvars, map(Sum, consts), strict=True))
    known |= dict(zip(program.invars, inputs, strict=True))

    def value(variable: Any) -> Sum:
        return Sum(variable.val) if isinstance(variable, Literal) else known[variable]

    for equation in program.eqns:
        read, name = [value(variable) for variable in equation.invars], equation.primitive.name
        if name in _INSIDE and any(operand.more is not None for operand in read):
            inner: Any = equation.params[_INSIDE[name]]
            results = _evaluated(inner.jaxpr, inner.consts, read)
        else:
            results = list(map(Sum, _bound(equation, [operand.value for operand in read])))
            if name in ("add", "add_any", "sub"):
                results = [Sum(results[0].value, _more(name, *read))]
        known.update(zip(equation.outvars, results, strict=True))
    return [value(variable) for variable in program.outvars]


def _more(name: str, one: Sum, other: Sum) -> Any:
    """What a sum or difference adds to the input."""
    sign = -1 if name == "sub" else 1
    if one.more is not None:
        more = other.value if sign == 1 else -other.value
        return more if isinstance(one.more, tuple) else one.more + more
    if other.more is not None and sign == 1:
        return one.value if isinstance(other.more, tuple) else other.more + one.value
    return None


def _bound(equation: Any, inputs: list[Any]) -> list[Any]:
    """One equation's values."""
    params = equation.primitive.get_bind_params(equation.params)
    functions, params = params if isinstance(params, tuple) else ((), params)  # older versions of JAX return a pair
    with equation.ctx.manager:
        results = equation.primitive.bind(*functions, *inputs, **params)
    return list(results) if equation.primitive.multiple_results else [results]
