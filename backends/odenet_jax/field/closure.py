"""Functions whose closure's arrays are leaves of them as trees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jax import Array
from jax.extend.core import Jaxpr


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
        return jax.tree.unflatten(self.outputs, jax.core.eval_jaxpr(self.jaxpr, self.consts, *leaves))


def converted(function: Callable[..., Any], *examples: Any) -> Converted:
    """The function, traced with examples."""
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*examples)
    return Converted(closed.jaxpr, closed.consts, jax.tree.structure(examples), jax.tree.structure(shape))
