"""Blocks of equinox that were made with a state one by one, or inside of a model: `ResidualStack.with_state`."""

from __future__ import annotations

import inspect

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odenet import InputError, StateError
from odenet_jax import ResidualStack, convert

pytestmark = pytest.mark.usefixtures("x64")
N, WIDTH, BATCH = 3, 4, 5


class Block(eqx.Module):
    norm: eqx.nn.BatchNorm

    def __init__(self, key):
        named = {"mode": "ema"} if "mode" in inspect.signature(eqx.nn.BatchNorm).parameters else {}
        norm = eqx.nn.BatchNorm(WIDTH, "rows", **named)
        self.norm = eqx.tree_at(lambda norm: norm.weight, norm, jax.random.normal(key, (WIDTH,)))

    def __call__(self, x, state):
        x, state = self.norm(x, state)
        return jnp.tanh(x), state


class Model(eqx.Module):
    blocks: list

    def __init__(self, keys):
        self.blocks = [Block(key) for key in keys]


def test_blocks_of_a_model_and_blocks_made_one_by_one_are_those_made_together():
    keys = jax.random.split(jax.random.key(0), N)
    x = jax.random.normal(jax.random.key(1), (BATCH, WIDTH))
    model, state = eqx.nn.make_with_state(Model)(keys)
    apart = [eqx.nn.make_with_state(Block)(key) for key in keys]
    choices = {"gradient": "discrete-adjoint:iterations=6"}
    stacks = [
        ResidualStack.stateful(Block, keys, **choices),
        ResidualStack.with_state(model.blocks, state, **choices),
        ResidualStack.with_state([block for block, _ in apart], [state for _, state in apart], **choices),
    ]
    arrays = [eqx.filter((stack, state), eqx.is_array) for stack, state in stacks]
    for other in arrays[1:]:
        for one, same in zip(jax.tree.leaves(arrays[0]), jax.tree.leaves(other), strict=True):
            np.testing.assert_array_equal(one, same)
    stack, rows = stacks[1]
    y, after = eqx.filter_jit(stack)(x, state=rows, axis_name="rows")
    z, expected = x, []
    for block in model.blocks:
        f, new = jax.vmap(block, axis_name="rows", in_axes=(0, None), out_axes=(0, None))(z, state.substate(block))
        z, expected = z + f / N, [*expected, *jax.tree.leaves(new)]
    np.testing.assert_allclose(y, z, rtol=1e-12)
    columns = [np.asarray(leaf) for leaf in jax.tree.leaves(after)]
    found = [leaf[i] for i in range(N) for leaf in columns]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)


def test_states_that_do_not_fit_are_refused():
    keys = jax.random.split(jax.random.key(0), N)
    model, state = eqx.nn.make_with_state(Model)(keys)
    with pytest.raises(InputError, match="no state"):
        ResidualStack.with_state(model.blocks)
    shared = eqx.tree_at(lambda block: block.norm.weight, model.blocks[0], jnp.ones(WIDTH))
    with pytest.raises(InputError, match="share an entry of their state"):
        ResidualStack.with_state([model.blocks[0], shared], state)
    for other in (3, "state", [state], [1, 2, 3]):
        with pytest.raises(InputError, match=r"(?s)state=.* of 3 blocks"):
            ResidualStack.with_state(model.blocks, other)
    stack, rows = ResidualStack.with_state(model.blocks, state)
    for other in (3, "state", state):
        with pytest.raises(StateError, match=r"(?s)a state of .* for 3 blocks"):
            stack(jnp.ones((2, WIDTH)), state=other, axis_name="rows")
    for key in (3, "key", jax.random.split(jax.random.key(0)), jnp.ones(2), jax.random.split(jax.random.PRNGKey(0))):
        with pytest.raises(InputError, match=r"key=.* one random key"):
            stack(jnp.ones((2, WIDTH)), state=rows, axis_name="rows", key=key)


class Counting(eqx.Module):
    """x + x / 5 (1 + count / 10). The count begins as a number of Python: JAX calls its type weak."""

    count: eqx.nn.StateIndex
    weight: jax.Array

    def __init__(self):
        self.count, self.weight = eqx.nn.StateIndex(jnp.asarray(0)), jnp.ones(())

    def __call__(self, x, state):
        count = state.get(self.count)
        return x + self.weight * x / 5 * (1 + count / 10), state.set(self.count, count + 1)


class Counters(eqx.Module):
    layers: list

    def __init__(self):
        self.layers = [Counting() for _ in range(N)]

    def __call__(self, x, state):
        for layer in self.layers:
            x, state = layer(x, state)
        return x, state


def test_a_state_that_began_as_a_number_is_put_back_after_a_run():
    """It was an error of equinox, which compares weak types."""
    model, state = eqx.nn.make_with_state(Counters)()
    changed = convert(model, example=(jnp.ones(2), state), gradient="checkpoint:segments=2")
    for count in range(3):
        x, state = eqx.filter_jit(changed)(jnp.ones(2), state)
        np.testing.assert_allclose(x, np.ones(2) * (1.2 + 0.02 * count) ** N, rtol=1e-12)
    assert [int(leaf) for leaf in jax.tree.leaves(state)] == [3] * N
