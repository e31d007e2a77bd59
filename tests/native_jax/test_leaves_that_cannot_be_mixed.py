"""Integers, booleans and random keys in blocks and along depth: they have no straight line between them."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import odenet
from odenet import Depth
from odenet_jax import ResidualStack


class Block(eqx.Module):
    """A block that reads an entry of its input by number, and adds noise of a key of its own."""

    weight: jax.Array
    places: jax.Array
    sign: jax.Array
    key: jax.Array

    def __call__(self, x):
        noise = 0.3 * jax.random.normal(self.key, x.shape)
        return jnp.where(self.sign, 1, -1) * jnp.tanh(self.weight * x[self.places]) + noise


PLACES = ([1, 0], [1, 1], [0, 1])
START = np.array([1.0, 0.5])


def made():
    """Three blocks, which differ in all of their leaves."""
    return [
        Block(jnp.array([0.3, -0.6]) * (n + 1), jnp.array(places), jnp.array([n == 1, n != 2]), jax.random.key(n))
        for n, places in enumerate(PLACES)
    ]


def heun(blocks, y):
    """Steps of Heun's method that read block n at their start and block n+1 at their end."""
    h = 1 / (len(blocks) - 1)
    for here, there in itertools.pairwise(blocks):
        slope = here(y)
        y = y + h / 2 * (slope + there(y + h * slope))
    return y


def euler(blocks, y):
    for block in blocks:
        y = y + block(y) / len(blocks)
    return y


def gradient_of(model, call):
    return eqx.filter_grad(lambda model: (call(model, jnp.asarray(START)) ** 2).sum())(model)


@pytest.mark.parametrize(
    ("gradient", "tolerance"),
    [
        ("checkpoint", 1e-12),
        ("discrete-adjoint", 0.02),
        pytest.param("backprop", 1e-12, marks=pytest.mark.slow),
    ],
)
def test_heun_reads_the_next_block_whole(gradient, tolerance, x64):
    """They were those of block n at the end of step n, too: 0.43 off with integers, 0.12 with keys."""
    blocks, order = made(), (0, 1, 2) * 3
    stack = ResidualStack([blocks[n] for n in order], solver="heun", gradient=gradient)
    plain = lambda blocks, y: heun([blocks[n] for n in order], y)  # noqa: E731
    np.testing.assert_allclose(stack(START), plain(blocks, START), rtol=1e-13)
    right = jnp.stack([block.weight for block in gradient_of(blocks, plain)])
    off = gradient_of(stack, lambda stack, y: stack(y)).blocks.weight - right
    assert float(jnp.abs(off).max()) <= tolerance * float(jnp.abs(right).max())


@pytest.mark.parametrize("gradient", ["backprop", "checkpoint"])
def test_where_an_interval_is_cut_the_next_node_holds_from_the_last_part_s_end(gradient, x64):
    rise, sign, parts = np.array([1.0, 2.0, 4.0]), np.array([1, -1, 2]), 3
    nodes = [n / parts for n in range(2 * parts + 1)]
    values = [np.interp(node, [0, 1, 2], rise) * sign[int(node + 1e-9)] for node in nodes]
    exact = sum((one + other) / 2 for one, other in itertools.pairwise(values)) / (2 * parts)
    solution = odenet.solve(
        lambda t, y, w: w["rise"] * w["sign"] + 0 * y,
        jnp.array(0.0),
        Depth({"rise": jnp.array(rise), "sign": jnp.array(sign)}, "linear"),
        steps=2 * parts,
        solver="heun",
        gradient=gradient,
    )
    assert float(solution.y1) == pytest.approx(exact, rel=1e-14)


def test_an_adaptive_solve_reads_up_to_a_node_what_held_before_it(x64):
    """Of an ODE, what holds in an interval holds to its end: 1.5 / 2 - 3 / 2 over the two intervals."""
    weights = Depth({"rise": jnp.array([1.0, 2.0, 4.0]), "sign": jnp.array([1, -1, 2])}, "linear")
    solution = odenet.solve(
        lambda t, y, w: w["rise"] * w["sign"] + 0 * y, jnp.array(0.0), weights, rtol=1e-8, atol=1e-8
    )
    assert float(solution.y1) == pytest.approx(-0.75, rel=1e-6)


def test_a_block_with_a_key_may_stand_at_several_places(x64):
    """It was an error of JAX, which has no number type for keys to be converted to."""
    blocks, order = made()[:2], (0, 1, 0)
    stack = ResidualStack([blocks[n] for n in order], gradient="checkpoint")
    plain = gradient_of(blocks, lambda blocks, y: euler([blocks[n] for n in order], y))
    np.testing.assert_allclose(stack(START), euler([blocks[n] for n in order], START), rtol=1e-13)
    np.testing.assert_allclose(
        gradient_of(stack, lambda stack, y: stack(y)).blocks.weight,
        jnp.stack([block.weight for block in plain]),
        rtol=1e-12,
    )
