"""Which named axes a function reads other rows along: `jax.lax.pmean` and its like, BatchNorm under `jax.vmap`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax


def collective_axes(function: Callable[..., Any], *arguments: Any) -> set[str]:
    """The names of the axes along which a function reads other rows.

    Axes that it maps over itself are not among them, nor is what asks for a row's own index alone.
    """
    return {str(name) for name in _axes(jax.make_jaxpr(function)(*arguments).jaxpr)}


def _axes(program: Any) -> Iterator[Any]:
    for equation in program.eqns:
        names = {getattr(effect, "name", None) for effect in equation.effects} - {None}
        inner = [getattr(subprogram, "jaxpr", subprogram) for subprogram in _programs(equation.params)]
        if not names or equation.primitive.name == "axis_index":
            continue
        if inner:  # a loop, a branch, a compiled function: look for what in it has the effect
            yield from (name for subprogram in inner for name in _axes(subprogram) if name in names)
        else:
            yield from names


def _programs(params: Any) -> Iterator[Any]:
    for value in params.values():
        for candidate in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(getattr(candidate, "jaxpr", candidate), "eqns"):
                yield candidate
