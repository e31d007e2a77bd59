"""Blocks of equinox that were made with a state one by one, or inside of a model: `ResidualStack.with_state`."""

from __future__ import annotations

import inspect

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odenet import InputError
from odenet_jax import ResidualStack

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
