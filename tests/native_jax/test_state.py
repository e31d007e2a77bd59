"""Blocks with a state, random numbers and further arguments: what the way back must do as the forward pass did."""

from __future__ import annotations

import functools
import inspect

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import odenet
from odenet import StateError
from odenet_jax import ResidualStack, certified_value_and_grad

pytestmark = pytest.mark.usefixtures("x64")
N, WIDTH, BATCH = 5, 4, 6

# how far a gradient may be from backprop's, for steps of 0.2 and these small fields
NEAR = {
    "backprop": 1e-12,
    "checkpoint": 1e-12,
    "checkpoint:segments=2": 1e-12,
    "checkpoint:states=2": 1e-12,
    "discrete-adjoint:iterations=4": 1e-4,
    "discrete-adjoint:predictor=extrapolate:anchors=2:tolerance=1e-12": 1e-9,
    "continuous-adjoint": 0.3,
    "continuous-adjoint:interpolate=yes": 0.3,
    "reversible": 1e-11,
}
WAYS = [("euler", method) for method in NEAR if method not in ("backprop", "reversible")]
WAYS += [("heun", "checkpoint"), ("heun", "discrete-adjoint:iterations=4")]
WAYS += [(solver, "reversible") for solver in ("reversible:heun", "alf", "reversible-heun")]
SLOW = pytest.mark.slow
# some wait for `make test-slow`: they differ from others in what has nothing to do with replay, or JAX itself goes back
SOME = [way if i in (3, 9) else pytest.param(*way, marks=SLOW) for i, way in enumerate(WAYS)]


class Block(eqx.Module):
    """Linear, BatchNorm, dropout, tanh, as equinox writes it: for one row, under a vmap that has a name."""

    linear: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout

    def __init__(self, key, mode):
        self.linear = eqx.nn.Linear(WIDTH, WIDTH, key=key)
        # older versions of equinox have one mode, and no name for it
        named = {"mode": mode} if "mode" in inspect.signature(eqx.nn.BatchNorm).parameters else {}
        self.norm = eqx.nn.BatchNorm(WIDTH, "batch", **named)
        self.dropout = eqx.nn.Dropout(0.5)

    def __call__(self, x, state, *, key=None):
        x, state = self.norm(self.linear(x), state)
        return 0.3 * jnp.tanh(self.dropout(x, key=key)), state


class Dropped(eqx.Module):
    """Linear and dropout."""

    linear: eqx.nn.Linear
    dropout: eqx.nn.Dropout

    def __init__(self, key):
        self.linear = eqx.nn.Linear(WIDTH, WIDTH, key=key)
        self.dropout = eqx.nn.Dropout(0.5)

    def __call__(self, x, *, key=None):
        return 0.3 * self.dropout(self.linear(x), key=key)


class Attention(eqx.Module):
    """Pre-norm attention to a memory, with a mask of booleans and dropout; x and memory are (tokens, width)."""

    norm: eqx.nn.LayerNorm
    group: eqx.nn.GroupNorm
    attention: eqx.nn.MultiheadAttention

    def __init__(self, key):
        self.norm = eqx.nn.LayerNorm(WIDTH)
        self.group = eqx.nn.GroupNorm(2, WIDTH)
        self.attention = eqx.nn.MultiheadAttention(1, WIDTH, dropout_p=0.2, key=key)

    def __call__(self, x, memory, mask, *, scale=1.0, key=None):
        query = jax.vmap(self.group)(jax.vmap(self.norm)(x))
        return 0.3 * scale * self.attention(query, memory, memory, mask, key=key)


def batch(seed=0, shape=(BATCH, WIDTH)):
    return jax.random.normal(jax.random.key(seed), shape)


def keys(count=N):
    return jax.random.split(jax.random.key(1), count)


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array_like))])


def distance(one, other):
    return np.linalg.norm(flat(one) - flat(other)) / np.linalg.norm(flat(other))


def blocks_of(solver):
    """As many as make N steps."""
    return N + (odenet.solver(solver).stages > 1)


def stack_of(mode, solver, gradient):
    made = keys(N + (odenet.solver(solver).stages > 1))  # as many as make N steps
    return ResidualStack.stateful(lambda key: Block(key, mode), made, solver=solver, gradient=gradient)


@eqx.filter_jit
def step(stack, x, state, key, outside=False):
    """Loss, new state and gradients, the batch axis within the blocks or outside of the stack."""

    @eqx.filter_value_and_grad(has_aux=True)
    def loss(both):
        stack, x = both
        if outside:
            each = lambda x: stack(x, state=state, key=key)  # noqa: E731
            y, new = jax.vmap(each, axis_name="batch", out_axes=(0, None))(x)
        else:
            y, new = stack(x, state=state, key=key, axis_name="batch")
        return jnp.sum(y**2), new

    return loss((stack, x))


@functools.cache
def exact(mode, solver):
    return step(*with_state(mode, solver, "backprop"))


def with_state(mode, solver, gradient):
    stack, state = stack_of(mode, solver, gradient)
    return stack, batch(), state, jax.random.key(7)


@pytest.mark.parametrize("mode", ["ema", pytest.param("batch", marks=SLOW)])
def test_state_and_value_are_those_of_a_plain_loop_over_blocks(mode):
    stack, x, state, _ = with_state(mode, "euler", "discrete-adjoint:iterations=4")
    stack = eqx.tree_at(lambda s: s.blocks.dropout.inference, stack, True)

    def row(tree, i):
        return jax.tree.map(lambda leaf: leaf[i] if eqx.is_array(leaf) else leaf, tree)

    @eqx.filter_jit
    def loop(blocks, y):
        expected = []
        for i in range(N):
            f, new = jax.vmap(row(blocks, i), axis_name="batch", in_axes=(0, None), out_axes=(0, None))(
                y, row(state, i)
            )
            y, expected = y + f / N, [*expected, new]
        return y, jax.tree.map(lambda *each: jnp.stack(each), *expected)

    y, expected = loop(stack.blocks, x)
    for outside in (False, True):
        (value, after), _ = step(stack, x, state, None, outside)
        np.testing.assert_allclose(value, jnp.sum(y**2), rtol=1e-12)
        assert jax.tree.structure(after) == jax.tree.structure(state)
        for found, wanted in zip(jax.tree.leaves(after), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-10)


@pytest.mark.parametrize(("solver", "gradient"), SOME)
def test_gradients_are_backprop_s_and_each_evaluation_counts_once(solver, gradient):
    """The same masks are drawn again, and a state that matters to what a block returns is read as it was."""
    (value, after), found = step(*with_state("ema", solver, gradient))
    (expected, after_backprop), by_backprop = exact("ema", solver)
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    np.testing.assert_allclose(flat(after), flat(after_backprop), rtol=1e-10)
    assert distance(found, by_backprop) < NEAR[gradient]


@pytest.mark.parametrize(("solver", "gradient"), [WAYS[2], WAYS[8], WAYS[11]])
def test_a_state_is_updated_as_often_as_the_forward_pass_evaluates_blocks(solver, gradient):
    class Counted(eqx.Module):
        weight: jax.Array

        def __call__(self, x, state):
            return jnp.sin(self.weight * x), state + 1

    stack = ResidualStack([Counted(jnp.ones(())) for _ in range(N)], solver=solver, gradient=gradient)
    _, counts = eqx.filter_grad(lambda s: _first_summed(s(batch(), state=jnp.zeros(N, jnp.int32))), has_aux=True)(stack)
    steps = N if stack.along == "piecewise" else N - 1
    assert counts.sum() == odenet.solver(solver).evaluations(steps)


def _first_summed(both):
    return jnp.sum(both[0]), both[1]


@pytest.mark.parametrize(
    "gradient", ["checkpoint:states=2", pytest.param("discrete-adjoint:tolerance=1e-8", marks=SLOW)]
)
def test_the_batch_axis_may_be_outside_of_the_stack_too(gradient):
    """Also where JAX goes back after it has left the vmap, and knows the name of its axis no more."""
    stack, x, state, _ = with_state("ema", "euler", gradient)
    stack = eqx.tree_at(lambda s: s.blocks.dropout.inference, stack, True)
    inside, outside = (step(stack, x, state, None, where) for where in (False, True))
    np.testing.assert_allclose(flat(outside), flat(inside), rtol=1e-6, atol=1e-7)

    @eqx.filter_jit
    def total(stack):
        return jnp.sum(jax.vmap(lambda x: stack(x, state=state)[0], axis_name="batch")(x) ** 2)

    np.testing.assert_allclose(flat(eqx.filter_grad(total)(stack)), flat(inside[1][0]), rtol=1e-6, atol=1e-7)


def test_a_vmap_of_the_blocks_takes_no_gradient_of_the_weights_for_each_row():
    wide, rows = 64, 32
    blocks = [eqx.nn.Linear(wide, wide, key=key) for key in jax.random.split(jax.random.key(0), 8)]
    stack = ResidualStack(blocks, gradient="discrete-adjoint")
    x = batch(0, (rows, wide))

    def temporaries(call):
        program = eqx.filter_jit(eqx.filter_grad(lambda stack, x: jnp.sum(call(stack, x)))).lower(stack, x).compile()
        return program.compiled.memory_analysis().temp_size_in_bytes

    outside = temporaries(lambda stack, x: jax.vmap(stack)(x))
    inside = temporaries(lambda stack, x: stack(x, axis_name="rows"))
    weights = 8 * wide * wide * 8
    assert outside > rows * weights
    assert inside < weights


def test_inference_mode_needs_no_key_and_other_keys_draw_other_masks():
    stack = ResidualStack([Dropped(key) for key in keys()], gradient="discrete-adjoint")
    found = [stack(batch(), key=jax.random.key(seed), axis_name="batch") for seed in (0, 0, 1)]
    assert (found[0] == found[1]).all()
    assert (found[0] != found[2]).any()
    quiet = eqx.nn.inference_mode(stack)
    assert (quiet(batch(), axis_name="batch") == quiet(batch(), key=jax.random.key(0), axis_name="batch")).all()


def test_each_evaluation_of_dropout_draws_a_mask_of_its_own():
    """With as many blocks of ones as steps, the sum over depth of the masks is no multiple of one of them."""

    def block(x, *, key):
        return jnp.where(jax.random.bernoulli(key, 0.5, x.shape), 1.0, 0.0)

    class Ones(eqx.Module):
        weight: jax.Array

        def __call__(self, x, *, key):
            return self.weight * block(x, key=key)

    y = ResidualStack([Ones(jnp.ones(())) for _ in range(16)])(jnp.zeros(1000), key=jax.random.key(0))
    assert 0.1 < jnp.std(y) < 0.15  # a binomial's: 1 / 8
    rows = ResidualStack([Ones(jnp.ones(()))])(jnp.zeros((2, 100)), key=jax.random.key(0), axis_name="rows")
    assert (rows[0] != rows[1]).any()


@pytest.mark.parametrize(
    ("solver", "gradient", "outside"), [(*WAYS[1], True), pytest.param(*WAYS[3], False, marks=SLOW)]
)
def test_further_arguments_get_their_gradients(solver, gradient, outside):
    blocks = [Attention(key) for key in keys(2)]
    tokens, memory = batch(0, (2, 3, WIDTH)), batch(1, (2, 7, WIDTH))
    mask = jax.random.bernoulli(jax.random.key(2), 0.7, (2, 3, 7)).at[:, :, 0].set(True)

    @eqx.filter_jit
    def gradients(stack):
        def loss(given, mask):
            stack, x, memory, scale = given
            if outside:  # memory and mask are traced by the vmap and closed over by the field
                each = lambda x, memory, mask: stack(x, memory, mask, key=jax.random.key(0), scale=scale)  # noqa: E731
                y = jax.vmap(each)(x, memory, mask)
            else:
                y = stack(x, memory, mask, key=jax.random.key(0), axis_name="batch", scale=jnp.stack([scale, scale]))
            return jnp.sum(y**2)

        return eqx.filter_grad(loss)((stack, tokens, memory, jnp.array(1.5)), mask)

    found, exact = (gradients(ResidualStack(blocks, solver=solver, gradient=each)) for each in (gradient, "backprop"))
    for one, other in zip(found, exact, strict=True):
        assert distance(one, other) < 3 * NEAR[gradient]


@pytest.mark.parametrize("gradient", [pytest.param("checkpoint:states=2", marks=SLOW), "discrete-adjoint:iterations=4"])
def test_a_state_may_be_a_tree_and_a_block_s_own_state_any_tree(gradient):
    class Mixed(eqx.Module):
        weight: jax.Array

        def __call__(self, x, state):
            new = {"calls": state["calls"] + 1, "mean": 0.9 * state["mean"] + 0.1 * x["q"].mean()}
            return {"q": jnp.sin(self.weight * x["p"]), "p": -jnp.tanh(x["q"] * self.weight) * state["mean"]}, new

    blocks = [Mixed(jnp.array(0.1 * i)) for i in range(N)]
    x = {"q": batch(3), "p": batch(4)}
    state = {"calls": jnp.zeros(N, jnp.int32), "mean": jnp.linspace(0.5, 1, N)}

    def scalar(stack):
        y, new = stack(x, state=state)
        return jnp.sum(y["q"] * y["p"]), new

    found, exact = (
        eqx.filter_grad(scalar, has_aux=True)(ResidualStack(blocks, gradient=each)) for each in (gradient, "backprop")
    )
    assert distance(found[0], exact[0]) < NEAR[gradient]
    np.testing.assert_allclose(flat(found[1]), flat(exact[1]), rtol=1e-12)
    assert (found[1]["calls"] == 1).all()
    tied = ResidualStack([blocks[0], blocks[1], blocks[0]], gradient=gradient)
    _, new = tied(x, state=jax.tree.map(lambda leaf: leaf[:2], state))
    np.testing.assert_array_equal(new["calls"], [2, 1])
    with pytest.raises(StateError, match=r"for 5 blocks.*stateful"):
        ResidualStack(blocks)(x, state=jax.tree.map(lambda leaf: leaf[:2], state))


def test_a_block_must_return_a_state_like_the_one_it_was_given():
    class Growing(eqx.Module):
        weight: jax.Array

        def __call__(self, x, state):
            return self.weight * x, jnp.append(state, 0.0)

    with pytest.raises(StateError, match="a block returned the state"):
        ResidualStack([Growing(jnp.ones(()))])(batch(), state=jnp.ones((1, 2)))


@pytest.mark.parametrize("rows", [pytest.param(None, marks=SLOW), BATCH])
def test_the_certificate_comes_out_of_a_training_step(rows):
    stack = ResidualStack([eqx.nn.Linear(WIDTH, WIDTH, key=key) for key in keys()], gradient="discrete-adjoint")

    def loss(stack, probe, x):
        if rows is None:
            return jnp.sum(stack(x, probe=probe, axis_name="batch") ** 2), "aux"
        return jnp.sum(jax.vmap(lambda x, probe: stack(x, probe=probe))(x, probe) ** 2), "aux"

    certified = eqx.filter_jit(certified_value_and_grad(loss, rows=rows, has_aux=True))
    (value, aux), gradients, certificate = certified(stack, batch())
    plain = eqx.filter_value_and_grad(lambda s: loss(s, jnp.zeros(rows or ()), batch())[0])
    expected = eqx.filter_jit(plain)(stack)
    np.testing.assert_allclose(value, expected[0], rtol=1e-12)
    assert distance(gradients, expected[1]) < 1e-12
    assert aux == "aux"
    assert 1e-4 < certificate < 0.5
