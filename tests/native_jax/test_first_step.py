"""The certificate of the continuous adjoint in compiled programs, over rows, and beside gradients that stay."""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import odenet
from odenet_jax import ResidualStack, certified_value_and_grad, solve
from odenet_jax.gradients import compared_steps

CONTINUOUS = "continuous-adjoint"
W = jax.random.normal(jax.random.PRNGKey(0), (5, 4, 4)) / 2
Y0 = jax.random.normal(jax.random.PRNGKey(1), (4,))


def field(t, y, w):
    return jnp.tanh(w @ y)


def loss(y0, w, probe=None, size=1.0, **choices):
    y1 = solve(field, y0, odenet.Depth(size * w, "piecewise"), gradient=CONTINUOUS, probe=probe, **choices).y1
    return jnp.sum(y1**2)


def test_in_a_program_and_in_each_row_of_a_batch():
    def one(y0, size, probe):
        return jax.grad(loss, argnums=2)(y0, W, probe, size, t1=2.0)

    sizes, zero = jnp.array([0.0, 1.0, 3.0]), jnp.zeros(())
    apart = [one(Y0, size, zero) for size in sizes]
    together = jax.jit(jax.vmap(one, (None, 0, 0)))(Y0, sizes, jnp.zeros(3))
    np.testing.assert_allclose(together, apart, rtol=1e-4, atol=1e-6)
    assert together[0] < 1e-6
    assert together[1] > 0.01
    assert together[2] > together[1]


def test_a_compiled_program_says_it_when_it_runs():
    gradient = jax.jit(jax.grad(lambda w, size: loss(Y0, w, size=size, t1=4.0)))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        jax.block_until_ready(gradient(W, 0.01))
        jax.effects_barrier()
        assert not said
        jax.block_until_ready(gradient(W, 3.0))
        jax.effects_barrier()
    assert len(said) == 1
    assert "and the whole gradient is useless" in str(said[0].message)


@pytest.mark.parametrize("option", ["", ":interpolate=yes"])
def test_the_look_changes_no_bit_of_the_gradient(monkeypatch, option):
    looked = jax.grad(lambda y0, w: loss_of(y0, w, option), argnums=(0, 1))(Y0, W)
    monkeypatch.setattr(compared_steps.ComparedSteps, "certificate", lambda self, k, y, a, changes: jnp.zeros(()))
    monkeypatch.setattr(compared_steps.ComparedSteps, "drift", lambda self, *states: jnp.zeros(()))
    plain = jax.grad(lambda y0, w: loss_of(y0, w, option), argnums=(0, 1))(Y0, W)
    for one, other in zip(looked, plain, strict=True):
        assert (one == other).all()


def loss_of(y0, w, option):
    def own(t, y, w):  # a function of its own has programs of its own
        return jnp.tanh(w @ y)

    return jnp.sum(solve(own, y0, odenet.Depth(w, "piecewise"), gradient=CONTINUOUS + option).y1 ** 2)


def test_networks_and_layers_of_equinox():
    keys = jax.random.split(jax.random.PRNGKey(2), 6)
    blocks = [eqx.nn.MLP(4, 4, 8, 1, jnp.tanh, key=key) for key in keys]
    net, other = (ResidualStack(blocks, t1=3.0, gradient=gradient) for gradient in (CONTINUOUS, "checkpoint"))

    def of(net, probe, y):
        return jnp.sum(net(y, probe=probe) ** 2)

    _, found, certificate = certified_value_and_grad(of)(net, Y0)
    _, exact, none = certified_value_and_grad(of)(other, Y0)
    one, two = (jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(g)]) for g in (found, exact))
    error = jnp.linalg.norm(one - two) / jnp.linalg.norm(two)
    assert none == 0
    assert error / 3 < certificate < 4 * error
