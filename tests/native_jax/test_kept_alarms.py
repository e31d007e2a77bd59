"""Networks that compute the same run the same kept programs: what is said of their gradients stays each one's own."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import odenet
from odenet.kit import quiet
from odenet_jax import solve
from odenet_jax.field import programs

RNG = np.random.default_rng(0)
W = jnp.asarray(RNG.standard_normal((6, 8, 8)))
Y0 = jnp.asarray(RNG.standard_normal((4, 8)))


def network():
    """A field along depth that is another object at each call, and computes the same."""
    return lambda t, y, w: 5 * jnp.tanh(y @ w)


def stiff_network():
    """A field whose adaptive solve cannot be taken back."""
    return lambda t, y, w: -8 * w * y + 8 * w * jnp.sin(3 * y)


def equal(network, scale):
    """Gradient of the weights and certificate with equal steps."""

    def loss(w, probe):
        choices = {"solver": "euler", "gradient": "discrete-adjoint"}
        return (solve(network, Y0, odenet.Depth(w, "piecewise"), probe=probe, **choices).y1 ** 2).sum()

    return jax.grad(loss, argnums=(0, 1))(scale * W, jnp.zeros(()))


def adaptive(network, scale):
    """Gradient of a weight and certificate with steps of the solver's choice."""

    def loss(w, probe):
        choices = {"t1": 5.0, "rtol": 1e-2, "atol": 1e-2, "solver": "bosh3", "gradient": "discrete-adjoint"}
        return solve(network, jnp.array([[2.0, -1.0], [0.3, 1.4]]), w, probe=probe, **choices).y1.sum()

    return jax.grad(loss, argnums=(0, 1))(jnp.asarray(scale), jnp.zeros(()))


def kept_programs():
    """How many were made so far."""
    return programs._kept.cache_info().misses


def said_by(gradient, network, scale):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", odenet.GradientWarning)
        found = jax.block_until_ready(gradient(network, scale))
        jax.effects_barrier()
    return [each.category for each in said if issubclass(each.category, odenet.GradientWarning)], found


def test_a_doubtful_gradient_is_said_once_for_each_network():
    with quiet():  # the programs are made where nothing is to be said
        assert said_by(equal, network(), 0.15)[0] == []
    count = kept_programs()
    one, other = network(), network()
    for _ in range(2):
        for each, times in ((one, 1), (other, 1)):
            said, (_, certificate) = said_by(equal, each, 0.15)
            assert said == [odenet.GradientWarning] * times
            assert 0.1 < certificate < 0.5
        assert said_by(equal, one, 0.15)[0] == said_by(equal, other, 0.15)[0] == []
        with quiet():
            assert said_by(equal, network(), 1.0)[0] == []
        one, other = network(), network()
    assert kept_programs() == count


@pytest.mark.parametrize(("gradient", "make"), [(equal, network), (adaptive, stiff_network)])
def test_a_useless_gradient_is_said_every_time_and_the_certificate_is_that_of_the_call(gradient, make):
    one, other = make(), make()
    certificates = {}
    for scale in (1.0, 0.01, 1.0):
        said, (_, certificates[one, scale]) = said_by(gradient, one, scale)
        again, (_, certificates[other, scale]) = said_by(gradient, other, scale)
        assert said == again == [odenet.UselessGradientWarning] * (scale == 1)
    for scale in (1.0, 0.01):
        said, (_, compiled) = said_by(jax.jit(gradient, static_argnums=0), make(), scale)
        assert said == [odenet.UselessGradientWarning] * (scale == 1)
        np.testing.assert_allclose([certificates[each, scale] for each in (one, other)], compiled, rtol=1e-5)
    assert certificates[one, 0.01] < 0.1 < 0.5 < certificates[one, 1.0]


def test_a_solve_inside_of_a_field_says_it_of_its_own_network():
    def outer(inner):
        def field(t, y):
            return jax.grad(lambda w: (solve(inner, Y0, odenet.Depth(w, "piecewise"), **CHOICES).y1 ** 2).sum())(y)

        return lambda y: solve(field, y, steps=1, solver="euler").y1.sum()

    inners = network(), network()
    for each, times in ((inners[0], 1), (inners[1], 1), (inners[0], 0), (inners[1], 0)):
        said, _ = said_by(lambda inner, scale: outer(inner)(scale * W), each, 0.15)
        assert said == [odenet.GradientWarning] * times


CHOICES = {"solver": "euler", "gradient": "discrete-adjoint"}
