"""Fields and states that every backend can run: arithmetic on leaves alone, and `tanh` looked up by backend."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

import odenet
from odenet import _tree
from odenet._solvers.step import add, increment

BACKENDS = tuple(name for name, found in odenet.known().items() if found.array_modules)  # the native ones
TANH = {"torch": "torch", "jax": "jax.numpy"}


def tanh(backend: str) -> Callable[[Any], Any]:
    """A framework's own tanh."""
    return importlib.import_module(TANH[backend]).tanh


def sigmoid(u: Any) -> Any:
    """A smooth bounded nonlinearity from arithmetic alone."""
    return u / (1 + u * u)


def numpy_leaves(backend: str, tree: Any) -> list[np.ndarray]:
    """The leaves as NumPy."""
    return [odenet.backend(backend).to_numpy(leaf) for leaf in _tree.leaves(tree)]


def flat(backend: str, tree: Any) -> np.ndarray:
    """All leaves in one vector."""
    return np.concatenate([leaf.ravel() for leaf in numpy_leaves(backend, tree)])


def relative(one: np.ndarray, other: np.ndarray) -> float:
    """|one - other| / |other|, Euclidean."""
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


def reference(
    field: Callable[..., Any], y0: Any, depth: odenet.Depth | None, solver: str, steps: int, t1: float = 1.0
) -> list[np.ndarray]:
    """y(t1) in NumPy by a loop written here: what every backend must agree with."""
    tableau = odenet.SOLVERS[solver].tableau
    leaves, unflatten = _tree.flatten(y0)
    y = tuple(np.asarray(leaf) for leaf in leaves)
    for n in range(steps):

        def stage(i: int, at: tuple[Any, ...], n: int = n) -> tuple[Any, ...]:
            t = np.float64(t1 * (n + tableau.c[i]) / steps)
            state = unflatten(at)
            if depth is None:
                return tuple(_tree.leaves(field(t, state)))
            layer, start, span = depth.place(n, steps)
            return tuple(_tree.leaves(field(t, state, depth.between(layer, start + span * tableau.c[i]))))

        y = add(y, increment(tableau, stage, y, t1 / steps))
    return list(y)


# one state of every kind: a matrix, a complex vector, a scalar, in nested dicts and tuples


def mixed_state() -> Any:
    """A nested tree of float64 and complex128 leaves of several shapes."""
    rng = np.random.default_rng(1)
    return {
        "matrix": rng.standard_normal((3, 4)),
        "pair": (rng.standard_normal(5) + 1j * rng.standard_normal(5), np.asarray(rng.standard_normal())),
    }


def mixed_weights(layers: int) -> Any:
    """Weights for `mixed_field`, one smooth function of depth."""
    rng = np.random.default_rng(2)
    s = np.arange(layers) / layers
    a, b = rng.standard_normal((2, 4, 4))
    return {
        "a": np.cos(s)[:, None, None] * a + np.sin(s)[:, None, None] * b,
        "c": (1 + s)[:, None] * (rng.standard_normal(5) + 1j * rng.standard_normal(5)),
        "s": [0.3 + s * s],
    }


def mixed_field(t: Any, y: Any, w: Any) -> Any:
    """A field that couples the leaves of `mixed_state` and reads the time."""
    matrix, (vector, scalar) = y["matrix"], y["pair"]
    return {
        "matrix": sigmoid(matrix @ w["a"] + t * scalar),
        "pair": (1j * w["c"] * vector + scalar * vector, sigmoid(scalar * w["s"][0] - t) + matrix.sum() * 0.01),
    }


# the tanh network of docs/mathematics.md, whose weights are one smooth function of depth


def independent_network(nodes: int) -> tuple[Any, np.ndarray]:
    """The same laws with every layer drawn on its own: weights that are not smooth in depth."""
    rng = np.random.default_rng(0)
    weights = {"a": rng.standard_normal((nodes, 16, 16)) * 3 / 4, "b": rng.standard_normal((nodes, 16)) / 2}
    return weights, rng.standard_normal((8, 16))


def smooth_network(steps: int, nodes: int) -> tuple[Any, np.ndarray]:
    """Weights at `nodes` depths n / steps, and a batch of states; width 16, batch 8, seed 0."""
    rng = np.random.default_rng(0)
    matrices = rng.standard_normal((2, 16, 16)) * 3 / 4
    biases = rng.standard_normal((2, 16)) / 2
    angle = 1.5 * np.pi * np.arange(nodes) / steps
    c, s = np.cos(angle), np.sin(angle)
    weights = {
        "a": c[:, None, None] * matrices[0] + s[:, None, None] * matrices[1],
        "b": c[:, None] * biases[0] + s[:, None] * biases[1],
    }
    return weights, rng.standard_normal((8, 16))


def network_gradient(
    backend: str, solver: str, method: str, steps: int, start: str = "smooth"
) -> tuple[np.ndarray, odenet.Stats]:
    """Gradient of |y(1)|^2 / 2 by y0 and all weights of the tanh network; Euler has piecewise layers, others linear."""
    nonlinearity = tanh(backend)
    kind, nodes = ("piecewise", steps) if solver == "euler" else ("linear", steps + 1)
    weights, y0 = smooth_network(steps, nodes) if start == "smooth" else independent_network(nodes)
    _, found, solution = odenet.value_and_grad(
        lambda s: (s.y1 * s.y1).sum() * 0.5,
        lambda t, y, w: nonlinearity(y @ w["a"].T + w["b"]),
        y0,
        odenet.Depth(weights, kind),  # pyright: ignore[reportArgumentType]
        solver=solver,
        gradient=method,
        backend=backend,
    )
    return flat(backend, (found.y0, found.weights)), solution.stats
