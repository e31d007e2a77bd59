"""A network is told once what is said once, however often it is called or updated, and apart from another one."""

import copy
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import odenet
from odenet_jax import NeuralODE, ResidualStack

KEYS = jax.random.split(jax.random.key(0), 4)


class Field(eqx.Module):
    linear: eqx.nn.Linear

    def __call__(self, *arguments):
        return 4 * jnp.tanh(self.linear(arguments[-1]))


def stack():
    blocks = [Field(eqx.nn.Linear(3, 3, key=key)) for key in KEYS]
    return ResidualStack(blocks, solver="euler", gradient="discrete-adjoint")


def neural_ode():
    return NeuralODE(Field(eqx.nn.Linear(3, 3, key=KEYS[0])), steps=4, solver="euler", gradient="discrete-adjoint")


def told(function, network):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = function(network, jnp.ones(3))
        jax.effects_barrier()
    return [each.category for each in said], found


@pytest.mark.parametrize("make", [stack, neural_ode])
def test_a_network_is_told_once_that_its_gradient_is_doubtful(make, monkeypatch):
    monkeypatch.setattr("odenet._gradients.certified.DOUBTFUL", 0.0)
    monkeypatch.setattr("odenet._gradients.certified.USELESS", np.inf)
    monkeypatch.setattr("odenet_jax.gradients.certificate.DOUBTFUL", 0.0)
    slope = eqx.filter_grad(lambda network, x: (network(x) ** 2).sum())
    network = make()
    said, update = told(slope, network)
    assert said == [odenet.GradientWarning]
    updated = eqx.apply_updates(network, jax.tree.map(lambda leaf: -1e-3 * leaf, update))
    for each in (network, updated, eqx.tree_at(lambda network: network, network, updated)):
        assert told(slope, each)[0] == []
    assert told(eqx.filter_jit(slope), updated)[0] == []
    for other in (make(), copy.deepcopy(network)):
        assert told(slope, other)[0] == [odenet.GradientWarning]
        assert told(slope, other)[0] == []


@pytest.mark.parametrize("make", [stack, neural_ode])
def test_networks_of_one_structure_are_one_structure_for_jax(make):
    one, other = make(), make()
    assert jax.tree.structure(one) == jax.tree.structure(other) == jax.tree.structure(copy.deepcopy(one))
    assert hash(jax.tree.structure(one)) == hash(jax.tree.structure(other))
    assert eqx.tree_equal(one, other)
    jax.tree.map(jnp.add, one, other)
    assert "nseen" not in repr(one)
