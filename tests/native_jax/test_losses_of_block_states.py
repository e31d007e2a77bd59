"""A loss that reads the state that blocks leave: an error, where its gradient was zero; others are as they were."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick

from odenet import GradientError
from odenet_jax import ResidualStack

pytestmark = pytest.mark.usefixtures("x64")
METHODS = quick(["backprop", "discrete-adjoint", "checkpoint"], ["checkpoint"])


class Router(eqx.Module):
    """A block that leaves the size of its value as a state."""

    linear: eqx.nn.Linear
    size: eqx.nn.StateIndex

    def __init__(self, key):
        self.linear, self.size = eqx.nn.Linear(2, 2, key=key), eqx.nn.StateIndex(jnp.zeros(()))

    def __call__(self, x, state):
        value = jnp.tanh(self.linear(x))
        return 0.1 * value, state.set(self.size, jnp.sum(value**2))


@pytest.mark.parametrize("gradient", METHODS)
def test_the_state_of_blocks_in_a_loss(gradient):
    stack, state = ResidualStack.stateful(Router, jax.random.split(jax.random.key(0), 2), gradient=gradient)
    rows = jnp.asarray([[1.0, 0.5], [0.3, -1.0]])

    def loss(x, share):
        y, after = stack(x, state=state)
        return jnp.sum(y**2) + share * sum(map(jnp.sum, jax.tree.leaves(after)))

    def of_values(x):
        return jnp.sum(stack(x, state=state)[0] ** 2)

    slopes = jax.jit(jax.vmap(jax.grad(loss), (0, None)))
    np.testing.assert_allclose(slopes(rows, 0.0), jax.vmap(jax.grad(of_values))(rows), rtol=1e-12)
    with pytest.raises(Exception, match="state that blocks leave"):  # by XLA, of its own class
        jax.block_until_ready(slopes(rows, 1.0))
    with pytest.raises(GradientError, match="return from the model what the loss is to read"):
        jax.grad(loss)(rows[0], 1.0)
