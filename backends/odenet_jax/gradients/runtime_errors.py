"""Errors that only a run of a compiled program can find.

The program calls its host to raise them. One that `jax.export` made has no host: JAX refuses to write it to a file, or
to lower it for several platforms, in words of its own. There NaN stands for the error.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer
from jax.custom_batching import custom_vmap
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from odenet import GradientError
from odenet_jax.field.varying import alike, axes_of

Tree = TypeVar("Tree")


def raised(tree: Tree, wrong: Array, error: GradientError, *, by_row: bool = False) -> Tree:
    """The tree of inexact arrays; a program that reads any of them raises a RuntimeError of that message where `wrong`.
    One that `jax.export` made has NaN.

    The check is on every array: JAX leaves out what nothing reads, and with it a check on the gradient of a y0 whose
    gradient nobody asks for.

    Args:
        tree, wrong, error: see above.
        by_row: of rows of a `jax.vmap` those that are wrong are NaN, and the others none the worse for them.
    """
    messages = (str(error),)
    # by way of a number: what passes through error_if itself loses its sharding over devices
    zero = _by_row(messages)(wrong) if by_row else checked(wrong, messages)
    return jax.tree.map(lambda leaf: leaf + zero.astype(leaf.dtype), tree)


def checked(wrong: Array, messages: Sequence[str], which: Any = 0) -> Array:
    """Zero, which a program that raises a RuntimeError where `wrong` has: or NaN there, if `jax.export` made it.

    Args:
        wrong: a boolean.
        messages: of the error.
        which: of the messages, an index.
    """
    return _checked_p.bind(wrong, jnp.asarray(which, jnp.int32), messages=tuple(messages))


def _by_row(messages: Sequence[str]) -> Callable[[Array], Array]:
    function = custom_vmap(lambda wrong: checked(wrong, messages))

    @function.def_vmap
    def _(size: int, batched: Any, wrong: Array) -> tuple[Array, bool]:
        return jnp.where(wrong, jnp.nan, jnp.zeros(())), True

    return function


_checked_p = Primitive("odenet_checked")


@_checked_p.def_impl
def _by_host(wrong: Array, which: Array, *, messages: tuple[str, ...]) -> Array:
    return eqx.branched_error_if(jnp.zeros((), jnp.float32), wrong, which, messages)


@_checked_p.def_abstract_eval
def _one_number(wrong: Any, which: Any, *, messages: tuple[str, ...]) -> Any:
    return wrong.update(dtype=jnp.dtype(jnp.float32))


def _checked_rows(arguments: Any, axes: Any, *, messages: tuple[str, ...]) -> tuple[Array, None]:
    """The error of any row of a `jax.vmap`."""
    (wrong, which), (by_row, of_rows) = arguments, axes
    if by_row is not None and of_rows is not None:
        which = jnp.where(wrong, which, 0)  # both are scalars: their only axis is that of rows
    wrong, which = (leaf if axis is None else leaf.max(axis) for leaf, axis in ((wrong, by_row), (which, of_rows)))
    return _checked_p.bind(wrong, which, messages=messages), None


batching.primitive_batchers[_checked_p] = _checked_rows
ad.primitive_jvps[_checked_p] = lambda primals, tangents, *, messages: (
    value := _checked_p.bind(*primals, messages=messages),
    ad.Zero.from_primal_value(value),  # pyright: ignore[reportAttributeAccessIssue]
)


def for_export(context: Any) -> bool:
    """Whether a program is being lowered for `jax.export`, which has no host to call when it runs."""
    return getattr(context.module_context.lowering_parameters, "for_export", False)


def _checked_in_a_program(context: Any, *arguments: Any, messages: tuple[str, ...]) -> Any:
    exported = for_export(context)

    def program(wrong: Array, which: Array) -> Array:
        if exported:
            return jnp.where(wrong, jnp.float32(jnp.nan), jnp.float32(0))
        return _by_host(wrong, which, messages=messages)

    return mlir.lower_fun(program, multiple_results=False)(context, *arguments)


mlir.register_lowering(_checked_p, _checked_in_a_program)


def without_gradient(tree: Any, sources: Any, error: GradientError) -> Any:
    """The tree, made of the sources in a way that has no gradient: a loss that reads its numbers is an error.

    Not a derivative of zero in silence: one that is asked for with a cotangent other than zero raises, in a compiled
    program when it runs. Forward mode gives NaN.

    Args:
        tree: arrays, of any number types.
        sources: arrays, of which those of inexact number types count.
        error: what is raised.
    """
    numbers, others = eqx.partition(jax.lax.stop_gradient(tree), eqx.is_inexact_array)
    leaves, structure = jax.tree.flatten(numbers)
    if not leaves:
        return tree
    moving = jax.tree.leaves(eqx.filter(sources, eqx.is_inexact_array))
    apart = _apart.bind(*leaves, *moving, count=len(leaves), error=error)
    return eqx.combine(jax.tree.unflatten(structure, apart), others)


def _primitive(name: str, values: Callable[..., list[Any]]) -> Primitive:
    """A primitive of some numbers and of their sources, whose shapes have nothing to do with each other: under
    `jax.vmap` numbers that are the same for all rows stay so."""
    primitive = Primitive(name)
    primitive.multiple_results = True
    primitive.def_impl(values)
    primitive.def_abstract_eval(lambda *arrays, count, error: arrays[:count])
    mlir.register_lowering(primitive, mlir.lower_fun(values, multiple_results=True))

    def rows(arrays: Any, axes: Any, *, count: int, error: GradientError) -> Any:
        return primitive.bind(*arrays, count=count, error=error), axes[:count]

    batching.primitive_batchers[primitive] = rows
    return primitive


_apart = _primitive("odenet_without_gradient", lambda *arrays, count, error: list(arrays[:count]))
_lost = _primitive(
    "odenet_lost_gradient", lambda *arrays, count, error: [jnp.full_like(leaf, jnp.nan) for leaf in arrays[:count]]
)


def _jvp(primals: Any, tangents: Any, *, primitive: Primitive, count: int, error: GradientError) -> Any:
    values = primitive.bind(*primals, count=count, error=error)
    moving = [tangent for tangent in tangents[count:] if type(tangent) is not ad.Zero]
    if not moving:
        return values, [ad.Zero.from_primal_value(value) for value in values]  # pyright: ignore[reportAttributeAccessIssue]
    return values, _lost.bind(*primals[:count], *moving, count=count, error=error)


for _of in (_apart, _lost):
    ad.primitive_jvps[_of] = functools.partial(_jvp, primitive=_of)


def _transpose(cotangents: Any, *values: Any, count: int, error: GradientError) -> list[Any]:
    arrived, sources = [leaf for leaf in cotangents if type(leaf) is not ad.Zero], values[count:]
    if not arrived:
        return [None] * len(values)
    read = jnp.stack([jnp.any(leaf != 0) for leaf in arrived]).any()
    if not isinstance(read, Tracer):
        if bool(read):
            raise error
        return [None] * len(values)
    zeros = [alike(jnp.zeros(s.aval.shape, s.aval.dtype), arrived, axes=axes_of(s.aval)) for s in sources]
    return [*[None] * count, *raised(zeros, read, error)]


ad.primitive_transposes[_lost] = _transpose
