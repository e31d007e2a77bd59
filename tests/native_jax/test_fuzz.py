"""Two thousand random calls: each is right, or refused by an error of our own; none hangs."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from fuzz import Framework, judged
from fuzz_calls import Call

SECONDS = 120  # no call takes a tenth of it; one that does hangs


def array(values: np.ndarray, dtype: str) -> jax.Array:
    """An array of that number type; 64-bit ones want x64."""
    kind = jnp.dtype(getattr(ml_dtypes, dtype, dtype))
    if jax.dtypes.canonicalize_dtype(kind) != kind:
        raise TypeError(dtype)
    return jnp.asarray(values).astype(kind)


def numpy(leaf: Any) -> np.ndarray:
    """Half precision as float32."""
    leaf = jnp.asarray(leaf)
    return np.asarray(leaf.astype(jnp.float32) if leaf.dtype in (jnp.bfloat16, jnp.float16) else leaf)


def gradient(loss: Any, y0: Any) -> list[np.ndarray]:
    """That of a real loss; JAX conjugates those by complex numbers."""
    return [np.conj(numpy(leaf)) for leaf in jax.tree.leaves(jax.grad(loss)(y0))]


JAX = Framework("jax", array, numpy, gradient)


def clear(drawn: Call) -> None:
    """Programs are not kept for two thousand calls."""
    if drawn.seed % 100 == 99:
        jax.clear_caches()


def test_a_few_random_calls_are_right_or_refused():
    """Enough to see that the judge judges."""
    found = judged(0, 12, JAX, SECONDS, clear)
    assert found["solved"]
    assert found["refused"]


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_random_calls_are_right_or_refused(part, x64):
    """Half of them are good, and are compared with NumPy or SciPy."""
    found = judged(1000 + 200 * part, 200, JAX, SECONDS, clear)
    assert found["solved"] > 50
    assert found["refused"] > 50
