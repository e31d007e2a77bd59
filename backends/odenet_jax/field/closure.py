"""Functions whose closure's arrays are leaves of them as trees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Jaxpr, Literal

from odenet_jax.field.varying import alike, axes_of


class Converted(eqx.Module):
    """A function of arrays whose closure's arrays are its leaves: called with the shapes that it was traced with.

    That of equinox refuses arguments whose sharding over a mesh, or whose weak type, is another than that of the
    examples; in a loop these are what JAX makes them.
    """

    jaxpr: Jaxpr
    consts: list[Array]
    inputs: Any = eqx.field(static=True)
    outputs: Any = eqx.field(static=True)

    def __call__(self, *arguments: Any) -> Any:
        """The function's value."""
        leaves, structure = jax.tree.flatten(arguments)
        assert structure == self.inputs, (structure, self.inputs)
        return jax.tree.unflatten(self.outputs, _evaluate(self.jaxpr, self.consts, leaves))


def _evaluate(jaxpr: Any, consts: Any, arguments: list[Any]) -> list[Any]:
    """The program's values. What it makes varying over mesh axes may be so already (see `field.varying`)."""
    if not any(_varies(leaf) for leaf in (*consts, *arguments)):
        return jax.core.eval_jaxpr(jaxpr, consts, *arguments)
    known: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *arguments), strict=True))

    def value(variable: Any) -> Any:
        return variable.val if isinstance(variable, Literal) else known[variable]

    for equation in jaxpr.eqns:
        inputs, name = [value(each) for each in equation.invars], equation.primitive.name
        if name == "pvary":
            found = [alike(jnp.asarray(each), axes=equation.params["axes"]) for each in inputs]
        elif name in ("jit", "pjit"):
            inner = equation.params["jaxpr"]
            found = _evaluate(inner.jaxpr, inner.consts, inputs)
        else:
            own = [each for each in equation.invars if not isinstance(each, Literal)]
            alone = jaxpr.replace(
                constvars=[],
                invars=list(dict.fromkeys(own)),
                outvars=equation.outvars,
                eqns=[equation],
                debug_info=None,
            )
            found = jax.core.eval_jaxpr(alone, (), *(known[each] for each in alone.invars))
        known.update(zip(equation.outvars, found, strict=True))
    return [value(each) for each in jaxpr.outvars]


def _varies(leaf: Any) -> bool:
    return bool(axes_of(leaf))


def converted(function: Callable[..., Any], *examples: Any) -> Converted:
    """The function, traced with examples."""
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*examples)
    return Converted(closed.jaxpr, closed.consts, jax.tree.structure(examples), jax.tree.structure(shape))
