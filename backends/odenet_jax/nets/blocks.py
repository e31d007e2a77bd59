"""The field of a `NetSpec`'s blocks, and what stands before and behind them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import Array, lax

from odenet import NetSpec
from odenet.kit import NORM_MOMENTUM, Unit, units
from odenet_jax.nets.convolution import batch_norm, by_statistics, convolve, convolve_in_loop, group_norm, largest

Weights = Mapping[str, Array]
Normalise = Callable[[NetSpec, Array, Weights, str], Array]
"""A normalisation, called with a network, an image, weights, and the prefix of its own weights' names."""
_ACTIVATIONS = {"relu": jax.nn.relu, "tanh": jnp.tanh}


def field(spec: NetSpec) -> Callable[[Array, Array, Weights], Array]:
    """The field f(t, y, w) of a spec's blocks, without batch normalisation."""
    activation = _ACTIVATIONS[spec.activation]

    def linear(t: Array, y: Array, w: Weights) -> Array:
        return y @ w["weight"].T

    def mlp(t: Array, y: Array, w: Weights) -> Array:
        hidden = activation(y @ w["linear1.weight"].T + w["linear1.bias"])
        return hidden @ w["linear2.weight"].T + w["linear2.bias"]

    def images(t: Array, y: Array, w: Weights) -> Array:
        return branch(spec, y, w, 1, _norm)

    return {"linear": linear, "mlp": mlp}.get(spec.block, images)


def enter(spec: NetSpec, weights: Weights, x: Array, normalise: Ordinary) -> Array:
    """The first state of a batch of inputs."""
    if not spec.of_images:
        return x @ weights["stem.weight"].T + weights["stem.bias"]
    kernel, stride, padding = spec.stem
    y = convolve(x, weights["stem.weight"], stride, padding) + weights["stem.bias"][:, None, None]
    if spec.ends_stem:
        y = _ACTIVATIONS[spec.activation](normalise(spec, y, weights, "stem.norm."))
    if kernel == 7:
        y = largest(y, 3, 2, 1)
    for unit in units(spec)[0]:
        y = _residual(spec, unit, y, weights, normalise)
    return y


def leave(spec: NetSpec, weights: Weights, y: Array, normalise: Ordinary) -> Array:
    """Logits of a batch of final states."""
    for unit in units(spec)[1]:
        y = _residual(spec, unit, y, weights, normalise)
    if spec.of_images:
        batch, width, *image = y.shape
        parts = [side for size in image for side in (spec.grid, size // spec.grid)]
        y = y.reshape(batch, width, *parts).mean((3, 5)).reshape(batch, -1)
    return y @ weights["head.weight"].T + weights["head.bias"]


def _residual(spec: NetSpec, unit: Unit, y: Array, w: Weights, normalise: Normalise) -> Array:
    slope = branch(spec, y, w, unit.stride, normalise, unit.name)
    if not unit.projects:
        return y + slope
    project = f"{unit.name}project."
    projected = _biased(convolve(y, w[f"{project}weight"], unit.stride, 0), w, f"{project}bias")
    return normalise(spec, projected, w, f"{project}norm.") + slope


def branch(spec: NetSpec, y: Array, w: Weights, stride: int, normalise: Normalise, start: str = "") -> Array:
    """f of convolutional blocks; the first of the largest kernels has the stride.

    Args:
        spec, y, w: of the network.
        stride: of the block.
        normalise: behind each convolution.
        start: how the names of the block's weights begin.
    """
    count = 3 if spec.block == "bottleneck" else 2
    for i in range(1, count + 1):
        weight = w[f"{start}conv{i}.weight"]
        strided = stride > 1 and i == count - 1
        y = convolve(y, weight, stride, weight.shape[-1] // 2) if strided else convolve_in_loop(y, weight)
        y = normalise(spec, _biased(y, w, f"{start}conv{i}.bias"), w, f"{start}norm{i}.")
        if i < count:
            y = _ACTIVATIONS[spec.activation](y)
    return y


def _biased(y: Array, w: Weights, name: str) -> Array:
    return y + w[name][:, None, None] if name in w else y


def _norm(spec: NetSpec, y: Array, w: Weights, name: str) -> Array:
    if spec.norm == "none":
        return y
    return group_norm(y, w[f"{name}weight"], w[f"{name}bias"])


class Ordinary:
    """Normalisation of what is evaluated once in a pass, and never run again by a gradient method.

    Args:
        training: whether batches are normalised by themselves.

    Attributes:
        moved: the running statistics that were met in training, as they are after the pass, by name.
    """

    def __init__(self, training: bool) -> None:
        self.training = training
        self.moved: dict[str, Array] = {}

    def __call__(self, spec: NetSpec, y: Array, w: Weights, name: str) -> Array:
        """The normalised image."""
        if not spec.batch_normalised:
            return _norm(spec, y, w, name)
        if not self.training:
            return by_running(spec, y, w, name)
        y, batch_statistics = batch_norm(y, w[f"{name}weight"], w[f"{name}bias"])
        for kind, now in zip(("running_mean", "running_var"), batch_statistics, strict=True):
            running = lax.stop_gradient(w[f"{name}{kind}"])
            self.moved[f"{name}{kind}"] = running + NORM_MOMENTUM * (now - running)
        return y


def by_running(spec: NetSpec, y: Array, w: Weights, name: str) -> Array:
    """By the running statistics among the weights, which have no gradient."""
    mean, variance = (lax.stop_gradient(w[f"{name}{kind}"]) for kind in ("running_mean", "running_var"))
    return by_statistics(y, mean, variance, w[f"{name}weight"], w[f"{name}bias"])
