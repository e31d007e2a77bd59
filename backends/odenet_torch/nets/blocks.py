"""The field of a `NetSpec`'s blocks, and what stands before and behind them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from odenet import NetSpec
from odenet.kit import GROUPS, NORM_EPSILON, Unit, units

Weights = Mapping[str, Tensor]
_ACTIVATIONS = {"relu": F.relu, "tanh": torch.tanh}


def field(spec: NetSpec) -> Callable[[Tensor, Tensor, Weights], Tensor]:
    """The field f(t, y, w) of a spec's blocks."""
    activation = _ACTIVATIONS[spec.activation]

    def linear(t: Tensor, y: Tensor, w: Weights) -> Tensor:
        return F.linear(y, w["weight"])

    def mlp(t: Tensor, y: Tensor, w: Weights) -> Tensor:
        hidden = activation(F.linear(y, w["linear1.weight"], w["linear1.bias"]))
        return F.linear(hidden, w["linear2.weight"], w["linear2.bias"])

    def images(t: Tensor, y: Tensor, w: Weights) -> Tensor:
        return _branch(spec, y, w, 1)

    return {"linear": linear, "mlp": mlp}.get(spec.block, images)


def enter(spec: NetSpec, weights: Weights, x: Tensor) -> Tensor:
    """The first state of a batch of inputs."""
    if not spec.of_images:
        return F.linear(x, weights["stem.weight"], weights["stem.bias"])
    kernel, stride, padding = spec.stem
    y = F.conv2d(x, weights["stem.weight"], weights["stem.bias"], stride=stride, padding=padding)
    if spec.ends_stem:
        y = _ACTIVATIONS[spec.activation](_norm(spec, y, _inside(weights, "stem."), "norm."))
    if kernel == 7:
        y = F.max_pool2d(y, 3, 2, 1)
    for unit in units(spec)[0]:
        y = _residual(spec, unit, y, weights)
    return y


def leave(spec: NetSpec, weights: Weights, y: Tensor) -> Tensor:
    """Logits of a batch of final states."""
    for unit in units(spec)[1]:
        y = _residual(spec, unit, y, weights)
    if spec.of_images:
        y = F.adaptive_avg_pool2d(y, spec.grid).flatten(1) if spec.grid > 1 else y.mean((2, 3))
    return F.linear(y, weights["head.weight"], weights["head.bias"])


def _residual(spec: NetSpec, unit: Unit, y: Tensor, weights: Weights) -> Tensor:
    w = _inside(weights, unit.name)
    branch = _branch(spec, y, w, unit.stride)
    if not unit.projects:
        return y + branch
    projected = F.conv2d(y, w["project.weight"], w.get("project.bias"), stride=unit.stride)
    return _norm(spec, projected, w, "project.norm.") + branch


def _branch(spec: NetSpec, y: Tensor, w: Weights, stride: int) -> Tensor:
    """f of convolutional blocks; the first of the largest kernels has the stride."""
    count = 3 if spec.block == "bottleneck" else 2
    for i in range(1, count + 1):
        weight = w[f"conv{i}.weight"]
        step = stride if i == count - 1 else 1
        y = F.conv2d(y, weight, w.get(f"conv{i}.bias"), stride=step, padding=weight.shape[-1] // 2)
        y = _norm(spec, y, w, f"norm{i}.")
        if i < count:
            y = _ACTIVATIONS[spec.activation](y)
    return y


def _norm(spec: NetSpec, y: Tensor, w: Weights, name: str) -> Tensor:
    if spec.norm == "none":
        return y
    return F.group_norm(y, GROUPS, w[f"{name}weight"], w[f"{name}bias"], NORM_EPSILON)


def _inside(weights: Weights, start: str) -> Weights:
    return {name.removeprefix(start): w for name, w in weights.items() if name.startswith(start)}
