"""Functions that remember: modules that write on themselves when they are called, as those of flax.nnx do (each call
gets one made anew), and functions that keep an array from one call to another."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from odenet import StateError
from odenet_jax.field.flax_modules import of_another_trace
from odenet_jax.field.handed_on import handed_on, same

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
            raise _wrote(
                "a module of flax.nnx that the field closes over", "or was handed to a transformation of flax (nnx.jit)"
            ) from error
        raise


def _modules_in(tree: Any) -> list[tuple[Any, list[Any], Any]]:
    """The modules in a tree of weights, the leaves of each, and its structure."""
    nodes = jax.tree.leaves(tree, is_leaf=lambda node: not isinstance(node, (dict, list, tuple)))
    parts = [(node, *jax.tree.flatten(node)) for node in nodes if not isinstance(node, _NUMBERS)]
    return [(node, leaves, of) for node, leaves, of in parts if same(leaves, jax.tree.leaves(node))]


def with_unwritten_modules(function: Callable[[Any], Any], tree: Any) -> Any:
    """What a function returns for a tree of weights, whose modules are made anew for each call.

    Raises:
        StateError: it wrote on a module in the tree (of flax.nnx, say), which would be lost.
    """
    before = _modules_in(tree)
    value = function(tree)
    other: list[Any] = []
    for module, leaves, structure in before:
        after, of = jax.tree.flatten(module)
        pairs = [(a, b) for a, b in zip(leaves, after, strict=False) if a is not b]
        if len(after) != len(leaves) or not _equal(structure, of) or not all(_are_arrays(pair) for pair in pairs):
            raise _wrote(f"a {type(module).__name__}")
        other += [module] if pairs else []
    # flax's own transformations hand all arrays on as other ones, which the program alone tells from written ones
    if other and _replaces(function, tree):
        raise _wrote(f"a {type(other[0]).__name__}")
    return value


def _replaces(function: Callable[[Any], Any], tree: Any) -> bool:
    """Whether a function replaces arrays of modules in a tree by others."""
    leaves, structure = jax.tree.flatten(tree)
    arrays = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)]
    places: list[int] = []

    def after(values: Sequence[Any]) -> list[Any]:
        mixed = dict(enumerate(leaves)) | dict(zip(arrays, values, strict=True))
        again = jax.tree.unflatten(structure, mixed.values())
        modules = _modules_in(again)
        place = {id(value): i for i, value in enumerate(values)}
        places[:] = [place[id(leaf)] for _, before, _ in modules for leaf in before if isinstance(leaf, jax.Array)]
        function(again)
        left = [leaf for module, _, _ in modules for leaf in jax.tree.leaves(module)]
        return [leaf for leaf in left if isinstance(leaf, jax.Array)]

    return handed_on(jax.make_jaxpr(after)([leaves[i] for i in arrays])) != places


def _are_arrays(leaves: Sequence[Any]) -> bool:
    return all(isinstance(leaf, jax.Array) for leaf in leaves)


def _wrote(module: str, otherwise: str = "") -> StateError:
    return StateError(
        f"{module} wrote on itself (running statistics, a count of random numbers, or an attribute), which would be "
        f"lost{', ' * bool(otherwise)}{otherwise}",
        "modules that leave themselves as they are",
        "blocks of flax.nnx: stack, state = ResidualStack.with_state(blocks), or odenet_jax.convert(model, "
        "example=...), or model.eval() where that does it; hand the module on in weights; of equinox: "
        "ResidualStack.stateful, and stack(x, state=, key=)",
    )


def _equal(structure: Any, other: Any) -> bool:
    try:
        return bool(structure == other)
    except (TypeError, ValueError):  # arrays among what is static
        return True
