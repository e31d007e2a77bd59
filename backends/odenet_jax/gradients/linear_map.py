"""A linear map of tangents with a transpose of our own: what a gradient method is to JAX.

`jax.custom_vjp` has no forward mode, and what it gives cannot be differentiated again; `jax.custom_jvp` leaves the way
back to JAX. Here the rule of a `jax.custom_jvp` returns `carry(...)`, a primitive that is linear in the tangents. JAX's
reverse mode transposes it, which runs the gradient method's own backward pass; forward mode runs it as it stands; and
where somebody differentiates either again, the primitive's own derivative is that of a program which JAX knows.
"""

from __future__ import annotations

import functools
import itertools
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from odenet import UnsupportedError

Tree = TypeVar("Tree")
REMEDY = "take gradient='backprop', which has forward mode and can be differentiated again"


class Linear(ABC):
    """A linear map of tangents and its transpose. Both are functions of arrays alone: they close over none that is
    traced."""

    @abstractmethod
    def forward(self, residuals: Any, tangents: Any) -> Any:
        """The map, differentiable by JAX in both arguments."""

    @abstractmethod
    def backward(self, residuals: Any, cotangents: Any) -> Any:
        """Its transpose: cotangents like the tangents, of those like the outputs (None for zero ones)."""

    @abstractmethod
    def second(self, residuals: Any, cotangents: Any) -> Any:
        """The same as a program that JAX can differentiate again."""


def carry(rule: Linear, residuals: Any, outputs: Any, tangents: Any) -> Any:
    """The tangents of the outputs.

    Args:
        rule: the map.
        residuals: what it reads.
        outputs: the values that it gives the tangents of, of inexact number types.
        tangents: of the inputs.
    """
    leaves, structures = zip(*(jax.tree.flatten(tree) for tree in (residuals, outputs, tangents)), strict=True)
    counts = tuple(map(len, leaves))
    carried = _carry.bind(*itertools.chain(*leaves), rule=rule, structures=structures, counts=counts)
    return jax.tree.unflatten(structures[1], carried)


_carry = Primitive("odenet_linear_map")
_carry.multiple_results = True


def _parts(values: Any, counts: tuple[int, ...]) -> tuple[list[Any], list[Any], list[Any]]:
    first, second = counts[0], counts[0] + counts[1]
    return list(values[:first]), list(values[first:second]), list(values[second:])


@_carry.def_impl
def _forward(*values: Any, rule: Linear, structures: Any, counts: Any) -> list[Any]:
    residuals, _, tangents = (
        jax.tree.unflatten(tree, part) for tree, part in zip(structures, _parts(values, counts), strict=True)
    )
    return jax.tree.leaves(rule.forward(residuals, tangents))


@_carry.def_abstract_eval
def _abstract(*values: Any, rule: Linear, structures: Any, counts: Any) -> list[Any]:
    return _parts(values, counts)[1]


mlir.register_lowering(_carry, mlir.lower_fun(_forward, multiple_results=True))


def _jvp(primals: Any, tangents: Any, **parameters: Any) -> tuple[Any, Any]:
    moving = [i for i, tangent in enumerate(tangents) if type(tangent) is not ad.Zero]

    def moved(*some: Any) -> list[Any]:
        values = list(primals)
        for i, value in zip(moving, some, strict=True):
            values[i] = value
        return _forward(*values, **parameters)

    # by itself: in a `jax.vmap` over tangents alone it has no rows, as JAX expects of it
    value = _carry.bind(*primals, **parameters)
    there = [primals[i] for i in moving]
    return value, jax.jvp(moved, there, [tangents[i] for i in moving])[1]


ad.primitive_jvps[_carry] = _jvp


def _transpose(cotangents: Any, *values: Any, rule: Linear, structures: Any, counts: Any) -> list[Any]:
    residuals, _, tangents = _parts(values, counts)
    tree = jax.tree.unflatten(structures[0], residuals)
    arrived = [None if type(value) is ad.Zero else value for value in cotangents]
    transposed = _transposed(rule, tree, jax.tree.unflatten(structures[1], arrived))
    leaves = jax.tree.leaves(transposed)
    some = [leaf if ad.is_undefined_primal(value) else None for leaf, value in zip(leaves, tangents, strict=True)]
    return [None] * (counts[0] + counts[1]) + some


ad.primitive_transposes[_carry] = _transpose


def _transposed(rule: Linear, residuals: Any, cotangents: Any) -> Any:
    """The backward pass, whose own derivative is that of the program that JAX knows."""

    @jax.custom_jvp
    def fast(residuals: Any, cotangents: Any) -> Any:
        return rule.backward(residuals, cotangents)

    @fast.defjvp
    def again(primals: Any, tangents: Any) -> Any:
        return fast(*primals), jax.jvp(rule.second, primals, tangents)[1]

    return fast(residuals, cotangents)


def _batch(size: int, name: Any, _: Any, values: Any, axes: Any, **parameters: Any) -> tuple[Any, Any]:
    """Under `jax.vmap`: the map and its transpose of every row, whose own tangents each has."""
    counts = parameters["counts"]
    if all(axis is None for axis in axes):
        return _carry.bind(*values, **parameters), [None] * counts[1]

    def spread(value: Any, axis: int | None) -> Any:
        return jnp.broadcast_to(value, (size, *value.shape)) if axis is None else jnp.moveaxis(value, axis, 0)

    pairs = list(zip(values, axes, strict=True))
    values = [*values[: counts[0]], *(spread(*pair) for pair in pairs[counts[0] :])]
    rule = _Rows(parameters["rule"], size, name, parameters["structures"][0], tuple(axes[: counts[0]]))
    return _carry.bind(*values, **{**parameters, "rule": rule}), [0] * counts[1]


batching.axis_primitive_batchers[_carry] = _batch


@dataclass(frozen=True)
class _Rows(Linear):
    """A map of every row.

    Args:
        rule: of one row.
        size, name: of the axis of rows.
        structure, axes: of the residuals, and where each of their leaves has its rows.
    """

    rule: Linear
    size: int
    name: Any
    structure: Any
    axes: tuple[int | None, ...]

    def _mapped(self, function: Any, residuals: Any, values: Any) -> Any:
        def one(leaves: list[Any], values: Any) -> Any:
            return function(jax.tree.unflatten(self.structure, leaves), values)

        rows = jax.vmap(one, (list(self.axes), 0), axis_size=self.size, axis_name=self.name)
        return rows(jax.tree.leaves(residuals), values)

    def forward(self, residuals: Any, tangents: Any) -> Any:
        return self._mapped(self.rule.forward, residuals, tangents)

    def backward(self, residuals: Any, cotangents: Any) -> Any:
        return self._mapped(self.rule.backward, residuals, cotangents)

    def second(self, residuals: Any, cotangents: Any) -> Any:
        return self._mapped(self.rule.second, residuals, cotangents)


def with_rows(values: Tree, sources: Any) -> Tree:
    """The values, in which `jax.vmap` sees rows wherever one of the sources has some.

    What a `jax.custom_jvp` returns needs as many rows as its tangents, also where it does not depend on what they
    depend on: under `jax.checkpoint` and `lax.cond` JAX traces the two apart, and takes the rows of one for those of
    the other. Compilers drop a choice between two that are the same, and what the choice is made by.
    """
    moving = [leaf for leaf in jax.tree.leaves(sources) if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)]
    if not moving:
        return values
    rows = functools.reduce(jnp.logical_or, (jnp.isnan(leaf).any() for leaf in moving))
    return jax.tree.map(lambda leaf: jnp.where(rows, leaf, leaf), values)


_reverse = Primitive("odenet_reverse_only")


def reverse_only(tree: Tree, gradient: str) -> Tree:
    """The tree, which only JAX's reverse mode can differentiate.

    Raises:
        UnsupportedError: in forward mode.
    """

    @jax.custom_jvp
    def identity(leaf: Any) -> Any:
        return leaf

    @identity.defjvp
    def rule(primals: Any, tangents: Any) -> Any:
        # not the value itself, which would be kept for the backward pass: one number, which is of rows where that is
        value = jnp.sum(jax.lax.stop_gradient(primals[0]))
        return primals[0], _reverse.bind(tangents[0], value, gradient=gradient)

    return jax.tree.map(lambda leaf: identity(leaf) if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf, tree)


def refuse_forward(gradient: str, *, drop_in: bool = False) -> None:
    """Raises UnsupportedError about forward mode through a gradient method, or through a drop-in that takes it."""
    call = "odeint" if drop_in else f"gradient={gradient!r}"
    remedy = "take odenet.solve with gradient='backprop', which has forward mode" if drop_in else REMEDY
    raise UnsupportedError(f"forward mode (jvp, jacfwd, linearize) through {call}", "reverse mode", remedy)


@_reverse.def_impl
def _refused(tangent: Any, value: Any, *, gradient: str) -> Any:
    refuse_forward(gradient)


def _reverse_rows(values: Any, axes: Any, *, gradient: str) -> tuple[Any, Any]:
    """Tangents of rows where the values have none are those of `jax.jacfwd`: under `jax.jit` JAX would go on to refuse
    the solve's `custom_vjp` in words of its own, before this is run. In reverse mode rows have both."""
    by_tangent, by_value = axes
    if by_tangent is not None and by_value is None:
        refuse_forward(gradient)
    return _reverse.bind(*values, gradient=gradient), by_tangent


_reverse.def_abstract_eval(lambda tangent, value, **_: tangent)
mlir.register_lowering(_reverse, mlir.lower_fun(_refused, multiple_results=False))
ad.primitive_jvps[_reverse] = lambda primals, tangents, *, gradient: (
    _reverse.bind(*primals, gradient=gradient),
    tangents[0] if type(tangents[0]) is ad.Zero else _reverse.bind(tangents[0], primals[1], gradient=gradient),
)
ad.primitive_transposes[_reverse] = lambda cotangent, *_, **__: [cotangent, None]
batching.primitive_batchers[_reverse] = _reverse_rows
