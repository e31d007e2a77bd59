"""What a compiled gradient of a deep solve keeps for the way back by two-step solvers: exact counts of XLA's plan."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest

import odenet

ROWS, WIDTH = 8, 16
STATE = ROWS * WIDTH * 4  # bytes


def temporaries(solver: str, gradient: Any, depth: int) -> int:
    """Bytes of temporaries of the gradient by y0 and weights, beside arguments and results."""

    def loss(y0: Any, weights: Any) -> Any:
        solution = odenet.solve(
            lambda t, y, w: jnp.tanh(y @ w), y0, odenet.Depth(weights, "piecewise"), solver=solver, gradient=gradient
        )
        return (solution.y1**2).sum()

    shapes = jax.ShapeDtypeStruct((ROWS, WIDTH), "float32"), jax.ShapeDtypeStruct((depth, WIDTH, WIDTH), "float32")
    return jax.jit(jax.grad(loss, (0, 1))).lower(*shapes).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(
    ("solver", "bits"),
    [("two-step-midpoint", 0), ("momentum", 0), ("bdia:seed=1", 2)],
)
def test_temporaries_do_not_grow_with_depth_but_for_the_side_information(solver: str, bits: int) -> None:
    shallow, deep = (temporaries(solver, "reversible", depth) for depth in (20, 200))
    assert deep - shallow == 180 * ROWS * WIDTH * bits // 8
    assert shallow - 20 * ROWS * WIDTH * bits // 8 < 16 * STATE
    if solver == "momentum":  # backprop's do
        shallow, deep = (temporaries(solver, "backprop", depth) for depth in (20, 200))
        assert deep - shallow >= 180 * STATE
