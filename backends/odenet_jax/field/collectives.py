"""Which named axes a function reads other rows along: `jax.lax.pmean` and its like, BatchNorm under `jax.vmap`."""

from __future__ import annotations

import contextvars
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
from jax import lax

Value = TypeVar("Value")
_NONE: Mapping[str, int] = types.MappingProxyType({})
_SIZES: contextvars.ContextVar[Mapping[str, int]] = contextvars.ContextVar("odenet_sizes_of_axes", default=_NONE)
"""Of the axes of meshes, of each `jax.shard_map` within a field that is being looked into."""


def collective_axes(function: Callable[..., Any], *arguments: Any) -> set[str]:
    """The names of the axes along which a function reads other rows.

    Axes that it maps over itself are not among them, nor is what asks for a row's own index alone.
    """
    named = named_axes(jax.make_jaxpr(function)(*arguments).jaxpr)
    return {str(axis) for primitive, axis in named if primitive != "axis_index"}


def named_axes(program: Any) -> Iterator[tuple[str, Any]]:
    """Each operation of a program, by name, that has to do with a named axis from outside of it, and the axis."""
    for equation in program.eqns:
        params = equation.params
        inner = [getattr(subprogram, "jaxpr", subprogram) for subprogram in _programs(params)]
        if inner:  # a loop, a branch, a compiled function; or jax.shard_map, which has axes of its own
            own = {*params.get("manual_axes", getattr(params.get("mesh"), "axis_names", ())), params.get("axis_name")}
            yield from (pair for subprogram in inner for pair in named_axes(subprogram) if pair[1] not in own)
            continue
        # most of them have an effect; ppermute and pbroadcast do not, and name their axis
        axes = params.get("axis_name", ())
        # by their class, which has no public name: other effects, as of what reads and writes a jax.Ref, are named, too
        names = {effect.name for effect in equation.effects if type(effect).__name__ == "NamedAxisEffect"}
        names |= set(axes) if isinstance(axes, (tuple, list)) else {axes}
        yield from ((equation.primitive.name, name) for name in names - {None})


def has_rule_of_rows(program: Any) -> bool:
    """Whether a function in the program has a rule of its own for rows of a `jax.vmap` (`jax.custom_batching`), which
    may have them read each other."""
    for equation in program.eqns:
        if equation.primitive.name == "custom_vmap_call":
            rule = getattr(equation.params["rule"], "rule", equation.params["rule"])
            if not getattr(rule, "__qualname__", "").startswith("sequential_vmap."):  # of JAX, one row after another
                return True
        if any(has_rule_of_rows(getattr(inner, "jaxpr", inner)) for inner in _programs(equation.params)):
            return True
    return False


def within(equation: Any, function: Callable[..., Value], *arguments: Any) -> Value:
    """`function(*arguments)`, which looks into an equation; of a `jax.shard_map` the axes of its mesh have names there.

    To JAX they have not: it knows of them while it traces that program itself.
    """
    if equation.primitive.name != "shard_map":
        return function(*arguments)
    context = contextvars.copy_context()
    context.run(_SIZES.set, {**_SIZES.get(), **equation.params["mesh"].shape})
    return context.run(function, *arguments)


def devices(axis: Any) -> int:
    """The size of a named axis: of a mesh (see `within`), or of one that JAX knows of where this is asked."""
    size = _SIZES.get().get(axis)
    return int(lax.psum(1, axis)) if size is None else size


def axis_sizes() -> list[tuple[Any, int]]:
    """Of the axes that have names by `within`, for `jax.make_jaxpr`."""
    return [*_SIZES.get().items()]


def _programs(params: Any) -> Iterator[Any]:
    for value in params.values():
        for candidate in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(getattr(candidate, "jaxpr", candidate), "eqns"):
                yield candidate
