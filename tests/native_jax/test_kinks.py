"""Fields with kinks: states that are a little off have gradients that are off by the root of it, which is said."""

import functools
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import odenet
from odenet import Depth
from odenet_jax import solve
from odenet_jax.field.kinks import kinked

STEPS = 5


def branch(activation, y, w):
    y = jax.nn.standardize(y)
    return activation(y @ w["a"] + w["b"]) @ w["c"] * w["size"]


@functools.cache
def made(seed, activation, increment):
    """Weights of branches, each of which adds a part of its state, and a state."""
    numbers = np.random.default_rng(seed)
    y = start = jnp.asarray(numbers.standard_normal((16, 64)), jnp.float32)
    layers = []
    for _ in range(STEPS):
        w = {"a": numbers.standard_normal((64, 128)) / 8, "b": numbers.standard_normal(128) / 8}
        w |= {"c": numbers.standard_normal((128, 64)) / 11, "size": 1.0}
        w = {name: jnp.asarray(value, jnp.float32) for name, value in w.items()}
        w["size"] = increment * jnp.linalg.norm(y) / jnp.linalg.norm(branch(activation, y, w))
        layers.append(w)
        y = y + branch(activation, y, w)
    return start, jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)


def gradients(activation, gradient, *, jit=True):
    """Of the weights and by the probe, which is the certificate."""

    def loss(y0, weights, probe):
        along = Depth(weights, "piecewise")
        solution = solve(
            lambda t, y, w: branch(activation, y, w),
            y0,
            along,
            t1=float(STEPS),
            steps=STEPS,
            gradient=gradient,
            probe=probe,
        )
        return jnp.mean(solution.y1**2)

    of = jax.grad(loss, (1, 2))
    return jax.jit(of) if jit else of


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


@pytest.mark.parametrize("rows", [False, True])
def test_what_kinks_leave_of_a_gradient_is_said(rows):
    exact, of = (gradients(jax.nn.relu, name) for name in ("backprop", "discrete-adjoint"))
    probe = jnp.float32(0)
    if rows:  # each a solve of its own
        exact, of = (jax.vmap(each, (0, None, 0)) for each in (exact, of))
    for seed in (0, 1):
        y, weights = made(seed, jax.nn.relu, 0.2)
        if rows:
            y, probe = y.reshape(4, 4, 64), jnp.zeros(4)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found, certificate = jax.block_until_ready(of(y, weights, probe))
            jax.effects_barrier()
        known = flat(exact(y, weights, probe)[0])
        error = np.linalg.norm(flat(found) - known) / np.linalg.norm(known)
        assert 0.05 < error < np.max(certificate)
        assert np.max(certificate) < 0.25
        for warning in said if seed == 0 else ():  # a program has one alarm
            assert isinstance(warning.message, odenet.GradientWarning)
            assert warning.message.certificate == pytest.approx(np.max(certificate))
            assert "kinks" in str(warning.message)
        assert (len(said) == 1) or seed > 0


def test_smooth_fields_and_a_given_tolerance_are_left_alone():
    probe, (y, weights) = jnp.float32(0), made(0, jax.nn.softplus, 0.2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert gradients(jax.nn.softplus, "discrete-adjoint")(y, weights, probe)[1] < 0.1
        # what is compared with the tolerance is how far states are off
        y, weights = made(0, jax.nn.relu, 0.1)
        of = gradients(jax.nn.relu, "discrete-adjoint:tolerance=0.02", jit=False)
        assert of(y, weights, probe)[1] < 0.02


def pooled(y):
    return jnp.repeat(lax.reduce_window(y, -jnp.inf, lax.max, (1, 2), (1, 2), "VALID"), 2, 1)


@jax.custom_jvp
def declared(y):
    return jnp.where(y > 0, y, 0)


declared.defjvp(lambda y, dy: (declared(*y), jnp.where(y[0] > 0, dy[0], 0)))


def attention(y):
    q = y[None, :, None]
    return jax.nn.dot_product_attention(q, q, q)[0, :, 0]


KINKED = {
    "relu": jax.nn.relu,
    "clip": lambda y: jnp.clip(y, -1, 1),
    "where": lambda y: jnp.where(y > 0, y, 0.05 * y),
    "mask": lambda y: y * (y > 0),
    "abs": jnp.abs,
    "sort": jnp.sort,
    "pooled": pooled,
    "declared": declared,
    "looped": lambda y: lax.scan(lambda c, _: (0.9 * jax.nn.relu(c), None), y, None, length=2)[0],
    "recomputed": jax.checkpoint(lambda y: jnp.maximum(y, 0.1 * y)),
    "selu": jax.nn.selu,
}
SMOOTH = {
    "tanh": jnp.tanh,
    "gelu": jax.nn.gelu,
    "softplus": jax.nn.softplus,
    "elu": jax.nn.elu,
    "softmax": lambda y: jax.nn.softmax(y) * y,
    "layer norm": jax.vmap(eqx.nn.LayerNorm(32)),
    "length": lambda y: y / jnp.maximum(jnp.linalg.norm(y, axis=-1, keepdims=True), 1e-6),
    "dropout": lambda y: jax.random.bernoulli(jax.random.key(0), 0.5, y.shape) * y,
    "attention": attention,
    "no division by zero": lambda y: jnp.where(y == 0, 0, jnp.sin(y) / jnp.where(y == 0, 1, y)),
}


@pytest.mark.parametrize("name", [*KINKED, *SMOOTH])
def test_operations_with_kinks_are_known(name):
    function = KINKED.get(name) or SMOOTH[name]
    program = jax.make_jaxpr(lambda t, y: function(y))(0.0, jnp.ones((4, 32)))
    assert kinked(program.jaxpr, slice(1, 2), program.consts) is (name in KINKED)
