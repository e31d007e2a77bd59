"""The field of a `NetSpec`'s blocks, and what stands before and behind them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import Array

from odenet import NetSpec
from odenet.kit import Unit, units
from odenet_jax.nets.convolution import convolve, convolve_in_loop, group_norm, largest

Weights = Mapping[str, Array]
_ACTIVATIONS = {"relu": jax.nn.relu, "tanh": jnp.tanh}


def field(spec: NetSpec) -> Callable[[Array, Array, Weights], Array]:
    """The field f(t, y, w) of a spec's blocks."""
    activation = _ACTIVATIONS[spec.activation]

    def linear(t: Array, y: Array, w: Weights) -> Array:
        return y @ w["weight"].T

    def mlp(t: Array, y: Array, w: Weights) -> Array:
        hidden = activation(y @ w["linear1.weight"].T + w["linear1.bias"])
        return hidden @ w["linear2.weight"].T + w["linear2.bias"]

    def images(t: Array, y: Array, w: Weights) -> Array:
        return _branch(spec, y, w, 1)

    return {"linear": linear, "mlp": mlp}.get(spec.block, images)


def enter(spec: NetSpec, weights: Weights, x: Array) -> Array:
    """The first state of a batch of inputs."""
    if not spec.of_images:
        return x @ weights["stem.weight"].T + weights["stem.bias"]
    kernel, stride, padding = spec.stem
    y = convolve(x, weights["stem.weight"], stride, padding) + weights["stem.bias"][:, None, None]
    if spec.ends_stem:
        y = _ACTIVATIONS[spec.activation](_norm(spec, y, _inside(weights, "stem."), "norm."))
    if kernel == 7:
        y = largest(y, 3, 2, 1)
    for unit in units(spec)[0]:
        y = _residual(spec, unit, y, weights)
    return y


def leave(spec: NetSpec, weights: Weights, y: Array) -> Array:
    """Logits of a batch of final states."""
    for unit in units(spec)[1]:
        y = _residual(spec, unit, y, weights)
    if spec.of_images:
        batch, width, *image = y.shape
        parts = [side for size in image for side in (spec.grid, size // spec.grid)]
        y = y.reshape(batch, width, *parts).mean((3, 5)).reshape(batch, -1)
    return y @ weights["head.weight"].T + weights["head.bias"]


def _residual(spec: NetSpec, unit: Unit, y: Array, weights: Weights) -> Array:
    w = _inside(weights, unit.name)
    branch = _branch(spec, y, w, unit.stride)
    if not unit.projects:
        return y + branch
    projected = _biased(convolve(y, w["project.weight"], unit.stride, 0), w, "project.bias")
    return _norm(spec, projected, w, "project.norm.") + branch


def _branch(spec: NetSpec, y: Array, w: Weights, stride: int) -> Array:
    """f of convolutional blocks; the first of the largest kernels has the stride."""
    count = 3 if spec.block == "bottleneck" else 2
    for i in range(1, count + 1):
        weight = w[f"conv{i}.weight"]
        strided = stride > 1 and i == count - 1
        y = convolve(y, weight, stride, weight.shape[-1] // 2) if strided else convolve_in_loop(y, weight)
        y = _norm(spec, _biased(y, w, f"conv{i}.bias"), w, f"norm{i}.")
        if i < count:
            y = _ACTIVATIONS[spec.activation](y)
    return y


def _biased(y: Array, w: Weights, name: str) -> Array:
    return y + w[name][:, None, None] if name in w else y


def _norm(spec: NetSpec, y: Array, w: Weights, name: str) -> Array:
    if spec.norm == "none":
        return y
    return group_norm(y, w[f"{name}weight"], w[f"{name}bias"])


def _inside(weights: Weights, start: str) -> Weights:
    return {name.removeprefix(start): w for name, w in weights.items() if name.startswith(start)}
