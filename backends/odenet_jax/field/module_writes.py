"""Functions that remember: modules that write on themselves when they are called, as those of flax.nnx do (each call
gets one made anew), and functions that keep an array from one call to another."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from odenet import StateError
from odenet_jax.field.flax_modules import of_another_trace

_NUMBERS = (jax.Array, np.ndarray, np.generic, int, float, complex, str)


@contextlib.contextmanager
def traced_arrays_forgotten() -> Iterator[None]:
    """Raises StateError where a function reads an array that it kept, and that was traced in a call that is over; or
    writes on a module of flax.nnx that it closes over."""
    try:
        yield
    except jax.errors.UnexpectedTracerError as error:
        raise StateError(
            "a function of the user (the field, a block or an event) reads an array that was traced in an earlier call "
            "or outside of this one, and that it, or what it calls, has kept (in a list, an attribute, a cache)",
            "functions of their arguments, of weights and of concrete arrays",
            "compute the array at each call, or before the solve and give it in weights; JAX's own words stand above",
        ) from error
    except Exception as error:
        if of_another_trace(error):
            raise _wrote("a module of flax.nnx that the field closes over") from error
        raise


def modules_in(tree: Any) -> list[tuple[Any, list[Any], Any]]:
    """The modules in a tree of weights, the leaves of each, and its structure."""
    nodes = jax.tree.leaves(tree, is_leaf=lambda node: not isinstance(node, (dict, list, tuple)))
    parts = [(node, *jax.tree.flatten(node)) for node in nodes if not isinstance(node, _NUMBERS)]
    return [(node, leaves, of) for node, leaves, of in parts if _same(leaves, jax.tree.leaves(node))]


def require_unwritten(before: list[tuple[Any, list[Any], Any]]) -> None:
    """Raises StateError where a call wrote on a module (of flax.nnx, say): each call gets one that is made anew."""
    for module, leaves, structure in before:
        after, of = jax.tree.flatten(module)
        if not (_same(leaves, after) and _equal(structure, of)):
            raise _wrote(f"a {type(module).__name__}")


def _wrote(module: str) -> StateError:
    return StateError(
        f"{module} wrote on itself (running statistics, a count of random numbers, or an attribute), which would be "
        "lost",
        "modules that leave themselves as they are",
        "blocks of flax.nnx: stack, state = ResidualStack.with_state(blocks), or odenet_jax.convert(model, "
        "example=...), or model.eval() where that does it; of equinox: ResidualStack.stateful, and "
        "stack(x, state=, key=)",
    )


def _equal(structure: Any, other: Any) -> bool:
    try:
        return bool(structure == other)
    except (TypeError, ValueError):  # arrays among what is static
        return True


def _same(leaves: list[Any], others: list[Any]) -> bool:
    return len(leaves) == len(others) and all(a is b for a, b in zip(leaves, others, strict=True))
