"""A batch as arrays, and the loss that is taken where a user names none."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from odenet import InputError
from odenet.kit import array_of_numbers, shown, takes

try:
    from jax.experimental import enable_x64  # pyright: ignore[reportAttributeAccessIssue]
except ImportError:  # jax >= 0.9 has it at the top
    from jax import enable_x64


@contextlib.contextmanager
def like(arrays: Iterable[Array]) -> Iterator[None]:
    """A context in which arrays of the widest of these number types can be made, on the device of the first."""
    known = list(arrays)
    wide = any(leaf.dtype in (jnp.float64, jnp.complex128) for leaf in known)
    with enable_x64(wide), jax.default_device(next(iter(known[0].devices()))):
        yield


def on(like: Array, batch: Any) -> Any:
    """The batch with NumPy arrays as JAX's, inexact ones of the number type of `like`."""

    def leaf(value: Any) -> Any:
        if not isinstance(value, np.ndarray | np.generic):
            return value
        value = np.asarray(value)
        array_of_numbers("batch", value)
        return jnp.asarray(value, like.dtype) if np.issubdtype(value.dtype, np.floating) else jnp.asarray(value)

    return jax.tree.map(leaf, batch)


def pair(like: Array, batch: Any) -> tuple[Any, Any]:
    """Input and target, as `on` has them; None as the target of a batch that is no pair."""
    return on(like, batch if isinstance(batch, tuple) and len(batch) == 2 else (batch, None))


def mean_loss(outputs: Any, target: Any = None) -> Array:
    """Cross-entropy, half the mean squared difference to a target, or half the mean square where there is none.

    Shapes: outputs (batch, classes) with whole numbers (batch,) as target; outputs and target of one shape; or any
    tree of outputs.

    Raises:
        InputError: anything else.
    """
    leaves = jax.tree.leaves(outputs)
    if leaves and all(isinstance(leaf, jax.Array) for leaf in leaves):
        if target is None:
            return 0.5 * sum((jnp.abs(leaf) ** 2).mean() for leaf in leaves)  # pyright: ignore[reportReturnType]
        if len(leaves) == 1 and isinstance(target, jax.Array):
            of_classes = not jnp.issubdtype(target.dtype, jnp.inexact)
            if of_classes and leaves[0].ndim == 2 and target.shape == leaves[0].shape[:1]:
                return -jnp.take_along_axis(jax.nn.log_softmax(leaves[0]), target[:, None], axis=1).mean()
            if not of_classes and target.shape == leaves[0].shape:
                return 0.5 * (jnp.abs(leaves[0] - target) ** 2).mean()
    kinds = " and ".join(_kind(value) for value in (outputs, target))
    raise InputError(
        f"outputs and target that are {kinds}, without a loss",
        "outputs (batch, classes) with class numbers (batch,), or both of one shape, or outputs alone",
        "give loss=function(outputs, target)",
    )


def scalar(loss: Callable[..., Any] | None, outputs: Any, target: Any) -> Array:
    """The loss, a user's or `mean_loss`; of outputs alone where the target is None.

    Raises:
        InputError: it is no real scalar.
    """
    if loss is not None and not callable(loss):
        raise InputError(f"loss={shown(loss)}, a {type(loss).__name__}", "loss(outputs, target), or None")
    if loss is not None:
        form = "loss(outputs), since there is no target" if target is None else "loss(outputs, target)"
        takes(loss, 1 if target is None else 2, "loss", f"a function that can be called as {form}")
    value = (mean_loss if loss is None else loss)(*((outputs,) if target is None else (outputs, target)))
    if not isinstance(value, jax.Array) or value.shape != () or jnp.iscomplexobj(value):
        raise InputError(f"the loss returned {shown(value)}", "a real scalar array")
    return value


def _kind(value: Any) -> str:
    return f"an array {value.shape} of {value.dtype}" if isinstance(value, jax.Array) else type(value).__name__
