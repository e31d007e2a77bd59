"""The field of a `NetSpec`'s blocks, and what stands before and behind them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from odenet import NetSpec
from odenet.kit import GROUPS, NORM_EPSILON, NORM_MOMENTUM, Unit, units

Weights = Mapping[str, Tensor]
Normalise = Callable[[NetSpec, Tensor, Weights, str], Tensor]
"""A normalisation, called with a network, an image, weights, and the prefix of its own weights' names."""
_ACTIVATIONS = {"relu": F.relu, "tanh": torch.tanh}


def field(spec: NetSpec) -> Callable[[Tensor, Tensor, Weights], Tensor]:
    """The field f(t, y, w) of a spec's blocks, without batch normalisation."""
    activation = _ACTIVATIONS[spec.activation]

    def linear(t: Tensor, y: Tensor, w: Weights) -> Tensor:
        return F.linear(y, w["weight"])

    def mlp(t: Tensor, y: Tensor, w: Weights) -> Tensor:
        hidden = activation(F.linear(y, w["linear1.weight"], w["linear1.bias"]))
        return F.linear(hidden, w["linear2.weight"], w["linear2.bias"])

    def images(t: Tensor, y: Tensor, w: Weights) -> Tensor:
        return branch(spec, y, w, 1, _norm)

    return {"linear": linear, "mlp": mlp}.get(spec.block, images)


def enter(spec: NetSpec, weights: Weights, x: Tensor, training: bool) -> Tensor:
    """The first state of a batch of inputs. In training, running statistics among the weights are moved, in place."""
    if not spec.of_images:
        return F.linear(x, weights["stem.weight"], weights["stem.bias"])
    kernel, stride, padding = spec.stem
    y = F.conv2d(x, weights["stem.weight"], weights["stem.bias"], stride=stride, padding=padding)
    if spec.ends_stem:
        y = _ACTIVATIONS[spec.activation](_ordinary(training)(spec, y, weights, "stem.norm."))
    if kernel == 7:
        y = F.max_pool2d(y, 3, 2, 1)
    for unit in units(spec)[0]:
        y = _residual(spec, unit, y, weights, _ordinary(training))
    return y


def leave(spec: NetSpec, weights: Weights, y: Tensor, training: bool) -> Tensor:
    """Logits of a batch of final states; see `enter`."""
    for unit in units(spec)[1]:
        y = _residual(spec, unit, y, weights, _ordinary(training))
    if spec.of_images:
        y = F.adaptive_avg_pool2d(y, spec.grid).flatten(1) if spec.grid > 1 else y.mean((2, 3))
    return F.linear(y, weights["head.weight"], weights["head.bias"])


def _residual(spec: NetSpec, unit: Unit, y: Tensor, w: Weights, normalise: Normalise) -> Tensor:
    slope = branch(spec, y, w, unit.stride, normalise, unit.name)
    if not unit.projects:
        return y + slope
    project = f"{unit.name}project."
    projected = F.conv2d(y, w[f"{project}weight"], w.get(f"{project}bias"), stride=unit.stride)
    return normalise(spec, projected, w, f"{project}norm.") + slope


def branch(spec: NetSpec, y: Tensor, w: Weights, stride: int, normalise: Normalise, start: str = "") -> Tensor:
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
        step = stride if i == count - 1 else 1
        y = F.conv2d(y, weight, w.get(f"{start}conv{i}.bias"), stride=step, padding=weight.shape[-1] // 2)
        y = normalise(spec, y, w, f"{start}norm{i}.")
        if i < count:
            y = _ACTIVATIONS[spec.activation](y)
    return y


def _norm(spec: NetSpec, y: Tensor, w: Weights, name: str) -> Tensor:
    if spec.norm == "none":
        return y
    return F.group_norm(y, GROUPS, w[f"{name}weight"], w[f"{name}bias"], NORM_EPSILON)


def _ordinary(training: bool) -> Normalise:
    """The normalisation of layers that are evaluated once in a pass, and never again by a gradient method."""

    def normalise(spec: NetSpec, y: Tensor, w: Weights, name: str) -> Tensor:
        if not spec.batch_normalised:
            return _norm(spec, y, w, name)
        statistics = w[f"{name}running_mean"], w[f"{name}running_var"]
        learnt = w[f"{name}weight"], w[f"{name}bias"]
        return F.batch_norm(y, *statistics, *learnt, training, NORM_MOMENTUM, NORM_EPSILON)

    return normalise
