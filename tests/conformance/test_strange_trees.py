"""Trees, leaves and times that are none: an error of odenet, and what is solved afterwards is solved as ever."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import odenet
import odenet_jax
from odenet import Depth, DtypeError, InputError, StateError

ONES = {"jax": jnp.ones, "torch": torch.ones}


class Holding(eqx.Module):
    scale: jax.Array
    inside: list

    def __call__(self, x, *more):
        return self.scale * x


def in_list(leaf):
    tree = [leaf]
    tree.append(tree)
    return tree


def in_dict(leaf):
    tree = {"a": leaf}
    tree["b"] = (tree,)
    return tree


@pytest.mark.parametrize("make", [in_list, in_dict])
@pytest.mark.parametrize("backend", ONES)
def test_a_container_that_holds_itself_is_refused(backend, make):
    ones = ONES[backend](2)
    tree = make(ones)
    for call in (
        lambda: odenet.solve(lambda t, y: y, tree, steps=2),
        lambda: odenet.solve(lambda t, y, w: y, ones, tree, steps=2),
        lambda: odenet.solve(lambda t, y, w: y, ones, Depth.each([tree, tree])),
        lambda: odenet.solve(lambda t, y: y, ones, steps=2, ts=in_list(0.5)),
        lambda: odenet.solve(lambda t, y: y, ones, rtol=1e-3, atol=tree),
    ):
        with pytest.raises(StateError, match="holds itself"):
            call()
    with pytest.raises(StateError, match="the field returned"):
        odenet.solve(lambda t, y: tree, ones, steps=2)
    shared = [ones]  # the same container twice is no cycle
    ((once,), (again,)) = odenet.solve(lambda t, y: y, [shared, shared], steps=2).y1
    assert once.tolist() == again.tolist() == [2.25, 2.25]


@pytest.mark.parametrize("make", [in_list, in_dict])
def test_a_module_of_equinox_that_holds_such_a_container_is_refused(make):
    """They were RecursionErrors of JAX, after which nothing of JAX worked. So is what is nested too deep."""
    block = Holding(jnp.ones(()), [])
    block.inside.append(make(1.0))
    stack = odenet_jax.ResidualStack([Holding(jnp.ones(()), [])])
    for call in (
        lambda: odenet_jax.ResidualStack([block, block]),
        lambda: odenet.solve(lambda t, y, w: y, jnp.ones(2), block, steps=2),
        lambda: odenet.solve(lambda t, y, w: y, jnp.ones(2), Depth.each([block, block])),
        lambda: odenet_jax.NeuralODE(block, steps=2)(jnp.ones(2)),
        lambda: odenet.check_gradients(block, np.ones((2, 2))),
        lambda: odenet.plan(block, np.ones((2, 2))),
        lambda: odenet_jax.convert(Holding(jnp.ones(()), []), example=block.inside),
        lambda: odenet_jax.convert(block, example=jnp.ones(2)),
        lambda: odenet_jax.unconvert(block),
        lambda: odenet_jax.certified_value_and_grad(lambda model, probe: 0.0)(block),
    ):
        with pytest.raises(StateError, match="holds itself"):
            call()
    deep = 1.0
    for _ in range(20_000):
        deep = [deep]
    with pytest.raises(StateError, match="nested too deep"):
        odenet.solve(lambda t, y, w: y, jnp.ones(2), deep, steps=2)
    assert stack(jnp.ones(2)).tolist() == [2.0, 2.0]


@pytest.mark.parametrize("t", ["0.5", ["0.5"], True, [True], np.datetime64("2020-01-01")], ids=str)
@pytest.mark.parametrize("backend", ONES)
def test_what_is_no_time_is_refused(backend, t):
    solution = odenet.solve(lambda t, y: -y, ONES[backend](2), rtol=1e-3, dense=True)
    with pytest.raises(InputError, match="an array of them"):
        solution.at(t)


def test_leaves_that_are_no_arrays_of_jax():
    gone = jnp.ones(2)
    gone.delete()
    for leaf, error in (
        (gone, StateError),
        (np.zeros(2, np.longdouble), DtypeError),
        (np.zeros(2, "f4,f4"), DtypeError),
    ):
        for call in (
            lambda leaf=leaf: odenet.solve(lambda t, y: y, leaf, steps=2, backend="jax"),
            lambda leaf=leaf: odenet.solve(lambda t, y, w: y, jnp.ones(2), leaf, steps=2),
            lambda leaf=leaf: odenet.solve(lambda t, y, w: y, jnp.ones(2), Depth.each([leaf, leaf])),
        ):
            with pytest.raises(error, match=r"deleted|cannot become an array|is an array of"):
                call()


@pytest.mark.parametrize("gradient", ["backprop", "checkpoint", "discrete-adjoint"])
def test_integers_and_keys_stay_what_they_are(gradient):
    def field(t, y, w):
        assert w["n"].dtype == jnp.int32
        assert jnp.issubdtype(w["key"].dtype, jax.dtypes.prng_key)
        return -0.1 * w["n"] * y * w["s"]

    weights = {"n": jnp.int32(2), "key": jax.random.key(0), "s": jnp.ones(2)}
    found = jax.grad(
        lambda w: odenet.solve(field, jnp.ones(2), w, steps=4, gradient=gradient).y1.sum(), allow_int=True
    )(weights)
    assert found["n"].dtype == found["key"].dtype == jax.dtypes.float0
    np.testing.assert_allclose(found["s"], -0.2 * 0.95**3, rtol=1e-2)  # the adjoint of 4 steps is approximate
