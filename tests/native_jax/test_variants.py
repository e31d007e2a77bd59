"""Variants of what other libraries' users report, against closed forms."""

from __future__ import annotations

import contextlib

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick

from odenet import Depth, InputError, UnsupportedError
from odenet_jax import ResidualStack, odeint, solve
from odenet_jax.field.varying import LOOPS_OF_DIVIDED_ROWS


@pytest.mark.parametrize("choices", [{"rtol": 1e-8}, {"steps": 64, "solver": "rk4"}], ids=["adaptive", "fixed"])
def test_the_last_state_of_several_solves_is_each_row_s(choices, x64):
    rows = jnp.asarray([[1.0, 0.5], [2.0, 3.0], [4.0, -1.0]])
    solutions = jax.vmap(lambda y: solve(lambda t, y: -y, y, ts=[0.0, 0.5, 1.0], **choices))(rows)
    np.testing.assert_allclose(solutions.y1, rows * np.exp(-1.0), rtol=1e-7)
    numbers = jax.eval_shape(
        lambda rows: jax.vmap(jax.vmap(lambda y: solve(lambda t, y: -y, y, **choices)))(rows).y1, rows
    )
    assert numbers.shape == rows.shape


class Block(eqx.Module):
    weight: jax.Array

    def __call__(self, y):
        return self.weight * jnp.cos(y) / 2


TIED = {
    "kept once": lambda block, y: ResidualStack([block] * 400)(y),
    "the same arrays": lambda block, y: ResidualStack([Block(block.weight) for _ in range(400)])(y),
    "each layer": lambda block, y: solve(lambda t, y, b: b(y), y, Depth.each([block] * 400), t1=1.0).y1,
}


@pytest.mark.parametrize("how", quick(TIED, ["kept once", "each layer"]))
def test_tied_blocks_of_half_precision_lose_no_more_than_one_rounding(how):
    """Added one by one, the gradients of 400 places stop at 256 of the mean one."""
    weight, y = jnp.asarray([0.5, -0.25]), jnp.asarray([1.0, 0.5])
    half = Block(weight.astype(jnp.bfloat16))
    gradient = eqx.filter_grad(lambda b: jnp.sum(TIED[how](b, y.astype(jnp.bfloat16)).astype(jnp.float32)))(half)
    exact = jax.grad(lambda w: jnp.sum(solve(lambda t, y, w: Block(w)(y), y, w, steps=400).y1))(weight)
    np.testing.assert_allclose(gradient.weight.astype(jnp.float32), exact, rtol=1e-2)


@pytest.mark.parametrize("t", ["a", 1j, np.asarray([0.5j]), jnp.asarray([0.5j]), None, [0.1, "a"], 10**400])
def test_what_is_no_time_is_refused_by_dense_output(t):
    solution = solve(lambda t, y: -y, jnp.ones(2), rtol=1e-3, dense=True)
    with pytest.raises(InputError, match=r"Solution\.at"):
        solution.at(t)


def test_a_function_of_other_arguments_is_refused_by_the_drop_in():
    for func, args in ((lambda y: -y, ()), (lambda y, t: -y, (1.0,))):
        with pytest.raises(InputError, match=r"func\(y, t, \*args\)"):
            odeint(func, jnp.ones(2), jnp.asarray([0.0, 1.0]), *args)


@pytest.mark.skipif(not hasattr(jax.sharding, "AxisType"), reason="this JAX has no explicit meshes")
def test_rows_along_a_divided_axis_of_an_explicit_mesh_are_right_or_refused():
    mesh = jax.make_mesh((1,), ("rows",), (jax.sharding.AxisType.Explicit,))
    rows = jax.device_put(jnp.asarray([1.0, 2.0]), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("rows")))
    with jax.set_mesh(mesh):
        refused = pytest.raises(UnsupportedError, match=r"jax\.vmap inside of")
        with contextlib.nullcontext() if LOOPS_OF_DIVIDED_ROWS else refused:
            last = jax.vmap(lambda y: solve(lambda t, y: -y, y, rtol=1e-5).y1)(rows)
            np.testing.assert_allclose(last, np.exp(-1.0) * np.asarray([1.0, 2.0]), rtol=1e-4)
        with pytest.raises(UnsupportedError, match=r"jax\.vmap inside of"):
            jax.vmap(lambda y: solve(lambda t, y: -y, y, rtol=1e-5, ts=[0.5, 1.0]).ys)(rows)
        with pytest.raises(UnsupportedError, match=r"jax\.vmap inside of"):
            jax.vmap(jax.grad(lambda y: solve(lambda t, y: -y, y, rtol=1e-5).y1))(rows)


@pytest.mark.skipif(not hasattr(jax.sharding, "AxisType"), reason="this JAX has no explicit meshes")
def test_rows_of_equal_steps_that_have_loops_of_their_own_are_right_or_refused_there():
    """The chain of the first row of rounded states restarts."""
    y0 = jnp.asarray([[1e-4, 0.0], [2.0, 1.0], [0.1, -3.0], [1.0, 1.0]])
    mesh = jax.make_mesh((1,), ("rows",), (jax.sharding.AxisType.Explicit,))
    rows = jax.device_put(y0, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("rows")))

    def gradients(y0, gradient):
        return jax.vmap(jax.grad(lambda y: jnp.sum(solve(attracted, y, steps=4, gradient=gradient).y1 ** 2)))(y0)

    alone = gradients(y0, "checkpoint:bits=8")
    with jax.set_mesh(mesh):
        np.testing.assert_allclose(gradients(rows, "checkpoint:bits=8"), alone, rtol=1e-5)
        with pytest.raises(UnsupportedError, match=r"tolerance=.*jax\.vmap inside of"):
            gradients(rows, "discrete-adjoint:tolerance=0.1")


def attracted(t, y):
    return jnp.tanh(1 - y)


def decay(y, **choices):
    return solve(lambda t, y: -y, y, **choices).y1


LATER = {
    "jit": lambda: jax.jit(jax.grad(lambda y: decay(y, rtol=1e-5))),
    "remat": lambda: jax.grad(jax.checkpoint(lambda y: decay(y, rtol=1e-5))),
    "kept times": lambda: jax.jit(lambda y: solve(lambda t, y: -y, y, rtol=1e-5, ts=[0.5, 1.0]).ys),
    "dense": lambda: jax.jit(lambda y: solve(lambda t, y: -y, y, rtol=1e-5, dense=True).at(1.0)),
    "drop-in": lambda: jax.jit(jax.grad(lambda y: odeint(lambda y, t: -y, y, jnp.asarray([0.0, 1.0]))[-1])),
}


@pytest.mark.skipif(not hasattr(jax.sharding, "AxisType"), reason="this JAX has no explicit meshes")
def test_so_are_those_of_a_program_that_was_there_before_its_rows():
    """JAX comes to divide them when nothing of ours runs any more: what it said was its own."""
    mesh = jax.make_mesh((1,), ("rows",), (jax.sharding.AxisType.Explicit,))
    rows = jax.device_put(jnp.asarray([1.0, 2.0]), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("rows")))
    with jax.set_mesh(mesh):
        if LOOPS_OF_DIVIDED_ROWS:
            last = jax.vmap(jax.jit(lambda y: decay(y, rtol=1e-5)))(rows)
            np.testing.assert_allclose(last, np.exp(-1.0) * np.asarray([1.0, 2.0]), rtol=1e-4)
        for program in LATER.values():
            with pytest.raises(UnsupportedError, match=r"jax\.vmap inside of"):
                jax.vmap(program())(rows)
