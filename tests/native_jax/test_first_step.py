"""The certificate of the continuous adjoint in compiled programs, over rows, and beside gradients that stay."""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from quick import quick

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


def test_rows_have_their_largest_step_each_and_so_has_a_scan_in_a_scan():
    """Of an ensemble, and of two solves one after the other, each within a loop; one of the largest blocks is the
    first, which is compared anyway."""
    scales = jnp.ones((4, 5)).at[jnp.arange(4), jnp.array([3, 0, 1, 4])].set(40.0)[:, :, None, None] * 0.1 * W

    def one(w, probe, y0=Y0, **choices):
        return jax.grad(lambda probe: loss(y0, w, probe, **choices))(probe)

    apart = jnp.stack([one(w, jnp.zeros(())) for w in scales])
    assert apart.min() > 0.1
    together = jax.jit(jax.vmap(one))(scales, jnp.zeros(4))
    np.testing.assert_allclose(together, apart, rtol=1e-4)
    pairs = jax.vmap(jax.vmap(one))(scales.reshape(2, 2, 5, 4, 4), jnp.zeros((2, 2)))
    np.testing.assert_allclose(pairs.ravel(), apart, rtol=1e-4)

    def outer(total, pair):
        return lax.scan(lambda total, w: (total + one(w, jnp.zeros(())), None), total, pair)

    total, _ = jax.jit(lambda w: lax.scan(outer, jnp.zeros(()), w.reshape(2, 2, 5, 4, 4)))(scales)
    np.testing.assert_allclose(total, apart.sum(), rtol=1e-4)


LARGEST = [
    ("", {"steps": 10}),
    (":interpolate=yes", {"ts": [0.0, 0.4, 1.0]}),
    ("", {"solver": "heun"}),
    (":interpolate=yes", {"steps": 10}),
    ("", {"ts": [0.0, 0.4, 1.0]}),
    (":interpolate=yes", {"solver": "heun"}),
]


@pytest.mark.parametrize(("option", "choices"), quick(LARGEST, LARGEST[1:3]))
def test_the_largest_step_in_half_precision_and_between_outputs(option, choices):
    """Layers of two steps; states that are kept; and a state of 16 bits, whose certificate is that of 32 almost."""
    w = jnp.ones(5).at[3].set(40.0)[:, None, None] * 0.1 * W

    def of(kind):
        def loss(w, probe):
            ys = solve(
                field, Y0.astype(kind), odenet.Depth(w.astype(kind), "piecewise"), gradient=CONTINUOUS + option,
                probe=probe, **choices,
            ).ys  # fmt: skip
            return jnp.sum(ys.astype(jnp.float32) ** 2)

        return float(jax.grad(loss, argnums=1)(w, jnp.zeros(())))

    wide, half = of(jnp.float32), of(jnp.bfloat16)
    assert wide > 0.05
    assert half == pytest.approx(wide, rel=0.1)


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


def test_rows_of_a_field_that_jumps_say_the_worst_of_all_their_steps():
    """Normalised in pairs: of no one step, with a certificate of each row, and of a row whose loss is nothing 0."""

    def pairs(t, y, w):
        u = (w @ y).reshape(2, 2)
        u = u - u.mean(-1, keepdims=True)
        return (u / jnp.sqrt((u**2).mean(-1, keepdims=True) + 0.05)).reshape(4)

    def one(y0, factor, probe):
        choices = {"t1": 2.0, "steps": 4, "gradient": CONTINUOUS, "probe": probe}
        return factor * jnp.sum(solve(pairs, y0, W[0], **choices).y1 ** 2)

    factors = jnp.array([1.0, 0.0, 1.0])
    states = jnp.stack([Y0, Y0, 3 * Y0])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        each = jax.jit(jax.vmap(jax.grad(one, argnums=2)))(states, factors, jnp.zeros(3))
        jax.effects_barrier()
    assert each[0] > 0
    assert each[1] == 0
    (warning,) = said
    assert warning.message.certificate == pytest.approx(float(each.max()), rel=1e-5)
    assert warning.message.step is None
    assert "over all 4 steps" in str(warning.message)


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
