"""Derivatives that a user has declared within a field (`jax.custom_vjp`, `jax.custom_jvp`): the program of each."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr

from odenet_jax.field.closure import evaluated
from odenet_jax.field.collectives import axis_sizes
from odenet_jax.field.varying import alike, axes_of

_BACKWARD = ("custom_vjp_call", "linear_call")
_FORWARD = ("custom_jvp_call",)


def declares(equation: Any, *, linear: bool = True) -> bool:
    """Whether an operation of a program is a function with a derivative of its own; `linear`: or with a tangent, which
    JAX holds to be linear."""
    return equation.primitive.name.startswith(_BACKWARD + (_FORWARD if linear else ()))


def pullback(equation: Any) -> Jaxpr | None:
    """What JAX goes back through such an operation by: of its arguments and, after these, of the gradients by its
    inexact results, to those by its inexact arguments. None where JAX cannot trace it by itself, as one of a
    `jax.shard_map` that asks over which axes its arrays vary: it may be anything."""
    atoms, results = equation.invars, [n for n, atom in enumerate(equation.outvars) if inexact(atom)]
    moves = [inexact(atom) for atom in atoms]

    def back(arguments: list[Any], cotangents: list[Any]) -> list[Any]:
        arguments = [_varying(*pair) for pair in zip(arguments, atoms, strict=True)]
        cotangents = [_varying(leaf, equation.outvars[n]) for leaf, n in zip(cotangents, results, strict=True)]

        def function(moving: list[Any]) -> list[Any]:
            some = iter(moving)
            values = [next(some) if moved else leaf for leaf, moved in zip(arguments, moves, strict=True)]
            found = evaluated(equation, values)
            return [found[n] for n in results]

        moving = [leaf for leaf, moved in zip(arguments, moves, strict=True) if moved]
        return jax.vjp(function, moving)[1](cotangents)[0]

    examples = [_like(atom) for atom in atoms], [_like(equation.outvars[n]) for n in results]
    sizes = axis_sizes()
    try:
        return jax.make_jaxpr(back, axis_env=sizes or None)(*examples).jaxpr
    except Exception:
        if not sizes:
            raise
        return None


def inexact(atom: Any) -> bool:
    """Whether a value of a program has a gradient."""
    dtype = getattr(atom.aval, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.inexact)


def _like(atom: Any) -> Any:
    return jax.ShapeDtypeStruct(atom.aval.shape, atom.aval.dtype)


def _varying(leaf: Any, atom: Any) -> Any:
    """An array that varies over the mesh axes that the program's does."""
    return alike(leaf, axes=axes_of(atom.aval)) if axes_of(atom.aval) else leaf
