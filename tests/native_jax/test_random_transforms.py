"""Solves drawn at random, each under a transformation of JAX, beside a loop written by hand and differentiated by JAX.

What is drawn: the state's tree and number type, weights along depth or shared and among them whole numbers, solver,
gradient, kept times, direction of time, equal or adaptive steps, and the transformation.
"""

from __future__ import annotations

import random
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from odenet import Depth
from odenet_jax import solve

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("x64")]
STEPS = 4
NODES: dict[str, tuple[list[list[float]], list[float]]] = {  # of each stage the weights of those before it; then of all
    "euler": ([[]], [1.0]),
    "midpoint": ([[], [0.5]], [0.0, 1.0]),
    "heun": ([[], [1.0]], [0.5, 0.5]),
    "rk4": ([[], [0.5], [0.0, 0.5], [0.0, 0.0, 1.0]], [1 / 6, 1 / 3, 1 / 3, 1 / 6]),
}
FINE = 64  # steps of the reference of an adaptive solve
MODES = ["plain", "jit", "rows", "rows inside", "scan", "recomputed", "branch", "map", "one device"]


def field(t: Any, y: Any, w: Any) -> Any:
    out = jnp.tanh(y["a"] @ w["a"]) * w["b"] + 0.2 * jnp.sin(3 * t) - 0.1 * w["count"] * y["a"]
    return {"a": out, **({"b": -y["b"] * w["b"] + 0.3j * y["b"]} if "b" in y else {})}


def by_hand(solver: str, y: Any, layers: Any, t0: float, t1: float, steps: int) -> Any:
    """The states at all times, stacked."""
    (rows, weights), h, count = NODES[solver], (t1 - t0) / steps, len(layers["b"])

    def step(y: Any, n: Any) -> tuple[Any, Any]:
        w = jax.tree.map(lambda leaf: leaf[n * count // steps], layers)
        slopes: list[Any] = []
        for row in rows:
            slopes.append(field(t0 + h * (n + sum(row)), sum_of(y, h, row, slopes), w))
        after = sum_of(y, h, weights, slopes)
        return after, after

    states = lax.scan(step, y, jnp.arange(steps))[1]
    return jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), y, states)


def sum_of(y: Any, h: float, weights: list[float], slopes: list[Any]) -> Any:
    for weight, slope in zip(weights, slopes, strict=True):
        y = jax.tree.map(lambda leaf, k, by=h * weight: leaf + by * k, y, slope)
    return y


def size(states: Any) -> Any:
    return sum(jnp.sum(jnp.abs(leaf) ** 2) for leaf in jax.tree.leaves(states))


@pytest.mark.parametrize("seed", range(24))
def test_a_transformed_solve_is_that_of_a_loop_by_hand(seed):
    draw = random.Random(seed)
    solver, mode = draw.choice(list(NODES)), MODES[seed % len(MODES)]
    adaptive, layers, tree = draw.random() < 0.3, draw.random() < 0.5, draw.random() < 0.5
    t0, t1 = draw.choice([(0.0, 1.0), (1.5, 0.2)])
    gradient = draw.choice(["backprop", "checkpoint", "checkpoint:segments=2", "discrete-adjoint:iterations=40"])
    kept = draw.random() < 0.5
    rng = np.random.default_rng(seed)
    count = STEPS if layers and not adaptive else 1
    weights = {"a": jnp.asarray(rng.standard_normal((count, 3, 3)) / 3), "b": jnp.asarray(0.3 + rng.random(count))}
    counts = jnp.asarray(rng.integers(1, 3, count), jnp.int32)
    rows = jnp.asarray(rng.standard_normal((4, 3)))

    def state(x: Any) -> Any:
        return {"a": x, **({"b": x[:2] * (1 + 0.5j)} if tree else {})}

    def ours(x: Any, w: Any) -> Any:
        w = {**w, "count": counts}
        depth = Depth(w, "piecewise") if count > 1 else jax.tree.map(lambda leaf: leaf[0], w)
        grid = {"rtol": 1e-9, "atol": 1e-11, "solver": "dopri5"} if adaptive else {"steps": STEPS, "solver": solver}
        method = gradient.split(":")[0] if adaptive else gradient
        ts = [t0, (t0 + t1) / 2, t1] if kept else None
        return size(solve(field, state(x), depth, t0=t0, t1=t1, ts=ts, gradient=method, **grid).ys)

    def reference(x: Any, w: Any) -> Any:
        w, steps = {**w, "count": counts}, FINE if adaptive else STEPS
        states = by_hand("rk4" if adaptive else solver, state(x), w, t0, t1, steps)
        kept_rows = jnp.asarray([0, steps // 2, steps] if kept else [steps])
        return size(jax.tree.map(lambda leaf: leaf[kept_rows], states))

    both = jax.value_and_grad(ours, (0, 1))
    expected = jax.jit(jax.vmap(jax.value_and_grad(reference, (0, 1)), (0, None)))(rows, weights)
    if mode in ("plain", "jit"):
        once = jax.jit(both) if mode == "jit" else both
        found, expected = once(rows[0], weights), jax.tree.map(lambda leaf: leaf[0], expected)
    elif mode == "rows":
        found = jax.jit(jax.vmap(both, (0, None)))(rows, weights)
    elif mode == "map":
        found = lax.map(lambda x: both(x, weights), rows)
    elif mode == "one device":
        mesh, spec = jax.make_mesh((1,), ("i",), (jax.sharding.AxisType.Auto,)), jax.sharding.PartitionSpec
        over = jax.shard_map(jax.vmap(both, (0, None)), mesh=mesh, in_specs=(spec("i"), spec()), out_specs=spec("i"))
        found = jax.jit(over)(rows, jax.tree.map(jnp.asarray, weights))
    else:

        def whole(rows: Any, w: Any) -> Any:
            if mode == "scan":
                return lax.scan(lambda total, x: (total + ours(x, w), None), jnp.zeros(()), rows)[0]
            if mode == "branch":
                one = jax.vmap(lambda x: lax.cond(x[0] > 0, lambda: ours(x, w), lambda: 1.0 * ours(x, w)))
            else:
                one = jax.vmap(lambda x: (jax.checkpoint(ours) if mode == "recomputed" else ours)(x, w))
            return jnp.sum(one(rows))

        found = jax.jit(jax.value_and_grad(whole, (0, 1)))(rows, weights)
        value, (of_rows, of_weights) = expected
        expected = value.sum(), (of_rows, jax.tree.map(lambda leaf: leaf.sum(0), of_weights))
    rtol = 1e-6 if adaptive else 1e-9
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=rtol, atol=rtol)
