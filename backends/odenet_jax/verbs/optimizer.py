"""A gradient transformation of optax's, or one that is written like them, in the place of gradient descent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from odenet import InputError, UnsupportedError
from odenet.kit import Imported

Weights = dict[str, Array]


class ChosenOptimizer:
    """An optimiser that a user chose: pure functions, which the program of a step calls.

    Args:
        choice: a transformation with `init` and `update`, or what to call for one.

    Raises:
        InputError: what was chosen is or makes no transformation.
    """

    def __init__(self, choice: Imported) -> None:
        self.choice = choice
        if "torch" in choice.origins:
            raise _foreign(choice)
        ready = not isinstance(choice.object, type) and _is_transformation(choice.object)
        self.transformation = choice.object if ready and not choice.options else choice()
        if not _is_transformation(self.transformation):
            raise _foreign(choice)

    def begin(self, weights: Weights) -> Any:
        """What it remembers before the first step, a tree of arrays."""
        try:
            return jax.tree.map(_strong, self.transformation.init(weights))
        except Exception as error:  # code of somebody else's, which may fail in any way
            raise self._unsupported(f"cannot begin ({type(error).__name__}: {error})") from error

    def moved(
        self, weights: Weights, gradients: Weights, state: Any, rates: Mapping[str, Array]
    ) -> tuple[Weights, Any]:
        """The weights after a step whose updates are multiplied by `rates`, and what is remembered then."""
        try:
            updates, after = self.transformation.update(gradients, state, weights)
            after = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), after, state)
            moved = {
                name: (weight + rates[name] * updates[name]).astype(weight.dtype) for name, weight in weights.items()
            }
        except Exception as error:  # code of somebody else's, which may fail in any way
            raise self._unsupported(f"cannot take a step ({type(error).__name__}: {error})") from error
        return moved, after

    def kept(self, state: Any) -> dict[str, np.ndarray]:
        """Copies of what it remembers, by its place in the tree."""
        return {name: _bits(leaf) for name, leaf in _named(state).items()}

    def restored(self, template: Any, arrays: Mapping[str, np.ndarray]) -> Any:
        """A tree like `template` of what `kept` gave.

        Raises:
            InputError: it is of another optimiser.
        """
        templates = _named(template)
        expected = {name: (bits.shape, bits.dtype) for name, bits in self.kept(template).items()}
        if expected != {name: (array.shape, array.dtype) for name, array in arrays.items()}:
            raise InputError(
                f"a state of training that {self.choice.text} cannot go on from, of {', '.join(arrays) or 'nothing'}",
                f"one of the same optimiser with the same options: {', '.join(expected) or 'nothing'}",
            )
        leaves = [_from_bits(arrays[name], leaf) for name, leaf in templates.items()]
        return jax.tree.unflatten(jax.tree.structure(template), leaves)

    def _unsupported(self, why: str) -> UnsupportedError:
        return UnsupportedError(
            f"the optimiser {self.choice.text} {why}",
            "one whose update(gradients, state, weights) needs nothing else, and returns trees like these",
            "take another, such as optax:adamw,learning_rate=1e-3",
        )


def _is_transformation(value: Any) -> bool:
    return callable(getattr(value, "init", None)) and callable(getattr(value, "update", None))


def _strong(leaf: Any) -> Any:
    """An array whose number type is its own: programs are compiled for it, and Python's numbers would have none."""
    array = jnp.asarray(leaf)
    return jnp.asarray(array, array.dtype)


def _named(state: Any) -> dict[str, Array]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def _is_key(leaf: Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _bits(leaf: Array) -> np.ndarray:
    """A copy in NumPy; of number types that its files cannot hold, as bfloat16, the bytes."""
    array = np.array(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
    return array if array.dtype.kind in "biufc" else np.frombuffer(array.tobytes(), np.uint8)


def _from_bits(bits: np.ndarray, like: Array) -> Array:
    if _is_key(like):
        return jax.random.wrap_key_data(jnp.asarray(bits), impl=jax.random.key_impl(like))
    return jnp.asarray(np.frombuffer(bits.tobytes(), like.dtype).reshape(like.shape), like.dtype)


def _foreign(choice: Imported) -> InputError:
    return InputError(
        f"{choice.text} is no gradient transformation for JAX",
        "one of optax, an object with init(weights) and update(gradients, state, weights), or what makes one",
        "take optax:adamw,learning_rate=1e-3 or another of optax, or --backend torch for one of torch.optim",
    )
