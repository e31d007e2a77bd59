"""The compiler that is installed computes what it is told to; of one that does not, a user is warned."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odenet_jax.field import miscompiled


@pytest.mark.parametrize(("rows", "matrix"), [(1024, np.ones((4, 4))), (32769, np.eye(3))], ids=["ones", "identity"])
def test_compiled_products_with_a_matrix_that_is_closed_over_are_those_of_numpy(rows, matrix):
    """Of 0.10.2 the one is a quarter of it, and the other that of other rows."""
    x = np.random.default_rng(0).standard_normal((rows, len(matrix))) + 1
    total = jax.jit(lambda x: jnp.sum(x @ matrix))(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(total, np.sum(x @ matrix), rtol=1e-4)
    squares = jax.jit(jax.vmap(lambda row: jnp.sum((matrix @ row) ** 2)))(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(squares, np.sum((x @ matrix) ** 2, axis=1), rtol=1e-4)


def test_a_version_that_is_known_to_be_wrong_is_said_with_what_to_do():
    with pytest.warns(RuntimeWarning, match=r"jaxlib 0\.10\.2 miscompiles .*pip install 'jax!=0\.10\.2'"):
        miscompiled.warn("0.10.2")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        miscompiled.warn("0.10.1")
