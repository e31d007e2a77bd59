"""Bytes that a gradient needs beside its inputs and outputs, at N = 10 and N = 1000 steps.

float64, width 16, batch 32.

jax: XLA's planned temporaries (`memory_analysis().temp_size_in_bytes`). torch: the most bytes of live tensor storages,
less those of the gradient that is returned, and the bytes alive between the forward and the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

import odenet
from odenet_torch.verbs.measure import LiveBytes

TITLE = "Memory in depth"
DEPTHS = (10, 1000)
METHODS = (
    ("euler", "backprop"),
    ("euler", "checkpoint"),
    ("euler", "checkpoint:states=8"),
    ("euler", "checkpoint:memory=128K"),
    ("euler", "discrete-adjoint"),
    ("euler", "discrete-adjoint:correct=no"),
    ("euler", "discrete-adjoint:predictor=extrapolate"),
    ("euler", "discrete-adjoint:anchors=100"),
    ("euler", "continuous-adjoint"),
    ("heun", "backprop"),
    ("heun", "discrete-adjoint"),
    ("heun", "continuous-adjoint"),
    ("reversible-heun", "reversible"),
    ("alf", "reversible"),
    ("reversible:euler", "reversible"),
)


def rows() -> Iterator[dict[str, Any]]:
    """One row a backend, kind of weights, solver and method."""
    for kind in ("shared", "piecewise", "linear"):
        for solver, method in METHODS:
            found = [jax_bytes(kind, solver, method, n) for n in DEPTHS]
            yield row("jax", "XLA temporaries", kind, solver, method, found)
            live, kept = zip(*(torch_bytes(kind, solver, method, n) for n in DEPTHS), strict=True)
            yield row("torch", "most alive, less the gradient", kind, solver, method, live)
            yield row("torch", "kept from forward to backward", kind, solver, method, kept)


def row(backend: str, what: str, kind: str, solver: str, method: str, found: Any) -> dict[str, Any]:
    """A row with the growth from the small to the large depth."""
    head = {"backend": backend, "bytes": what, "weights": kind, "solver": solver, "gradient": method}
    return head | {f"N={n}": value for n, value in zip(DEPTHS, found, strict=True)} | {"ratio": found[1] / found[0]}


def weights(kind: str, steps: int) -> dict[str, np.ndarray]:
    """Weights of f = tanh(y a + b)."""
    layers = {"shared": (), "piecewise": (steps,), "linear": (steps + 1,)}[kind]
    rng = np.random.default_rng(0)
    return {"a": rng.standard_normal((*layers, 16, 16)) / 4, "b": rng.standard_normal((*layers, 16)) / 4}


def jax_bytes(kind: str, solver: str, method: str, steps: int) -> int:
    """XLA's temporaries for the gradient of |y(1)|^2 by y0 and weights."""

    def loss(y0: Any, w: Any) -> Any:
        depth = odenet.Depth(w, kind)  # pyright: ignore[reportArgumentType]
        field = lambda t, y, w: jnp.tanh(y @ w["a"] + w["b"])  # noqa: E731
        return (odenet.solve(field, y0, depth, steps=steps, solver=solver, gradient=method).y1 ** 2).sum()

    given = jax.tree.map(jnp.asarray, (np.ones((32, 16)), weights(kind, steps)))
    return jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*given).compile().memory_analysis().temp_size_in_bytes


def torch_bytes(kind: str, solver: str, method: str, steps: int) -> tuple[int, int]:
    """Peak of live bytes beside the gradient, and bytes kept from the forward to the backward pass."""
    w = {name: torch.tensor(array, requires_grad=True) for name, array in weights(kind, steps).items()}
    y0 = torch.ones(32, 16, dtype=torch.float64, requires_grad=True)
    depth = odenet.Depth(w, kind)  # pyright: ignore[reportArgumentType]
    with LiveBytes() as live:
        field = lambda t, y, w: torch.tanh(y @ w["a"] + w["b"])  # noqa: E731
        y1 = odenet.solve(field, y0, depth, steps=steps, solver=solver, gradient=method).y1
        kept = live.live
        torch.autograd.grad((y1**2).sum(), [y0, *w.values()])
    gradient = sum(leaf.nbytes for leaf in w.values())
    return live.peak - (gradient if kind != "shared" else 0), kept
