"""The field of blocks with batch normalisation, and how it counts a batch once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from odenet import NetSpec, Problem
from odenet.kit import NORM_MOMENTUM
from odenet_jax.field.replay import BlockContext, block_context
from odenet_jax.nets.blocks import Weights, branch, by_running
from odenet_jax.nets.convolution import batch_norm

_EVALUATIONS = "evaluations"
_BLOCK = "block."
Totals = dict[str, Array]
"""By layer, sums of the statistics of the evaluations of a pass by name of the normalisation, shape (layers, 2,
channels), and how many there were, shape (layers,)."""


@dataclass(frozen=True)
class CountingField:
    """f(t, y, w) by the running statistics in w; f(t, y, w, totals, key) by the batch's, which returns the totals, too.

    What a gradient method runs again is told totals as any state of blocks, and what it returns of them is dropped.

    Args:
        spec: of the network.
    """

    spec: NetSpec

    def __call__(self, t: Array, y: Array, w: Weights, totals: Totals | None = None, key: Array | None = None) -> Any:
        """The slope at y, in training with the totals after it."""
        if totals is None:
            return branch(self.spec, y, w, 1, by_running)
        batch_statistics: Totals = {_EVALUATIONS: jnp.ones_like(totals[_EVALUATIONS])}

        def by_batch(spec: NetSpec, y: Array, w: Weights, name: str) -> Array:
            y, batch_statistics[name[:-1]] = batch_norm(y, w[f"{name}weight"], w[f"{name}bias"])
            return y

        value = branch(self.spec, y, w, 1, by_batch)
        return value, {name: total + lax.stop_gradient(batch_statistics[name]) for name, total in totals.items()}

    def context(self, statistics: Mapping[str, Array], ivp: Problem) -> BlockContext:
        """What the blocks are told in a training pass: totals of nothing yet, of all layers.

        Args:
            statistics: the running ones of the network, by name.
            ivp: the problem.
        """
        spec = self.spec
        means = {name: leaf for name, leaf in statistics.items() if name.startswith(_BLOCK) and name.endswith("_mean")}
        totals = {
            name.removeprefix(_BLOCK).removesuffix(".running_mean"): jnp.zeros(
                (len(leaf), 2, leaf.shape[1]), leaf.dtype
            )
            for name, leaf in means.items()
        }
        totals[_EVALUATIONS] = jnp.zeros(spec.layers, jnp.float32)
        order = (0,) * spec.depth if spec.along == "shared" else tuple(range(spec.layers))
        context = block_context(totals, None, order, spec.along, ivp)
        assert context is not None
        return context

    def moved(self, statistics: Mapping[str, Array], totals: Totals) -> dict[str, Array]:
        """The running statistics of the blocks after a pass, by name; a layer that was not read keeps its own."""
        count = totals[_EVALUATIONS]
        read = (count > 0)[:, None]
        running_statistics: dict[str, Array] = {}
        for norm in (name for name in totals if name != _EVALUATIONS):
            means = totals[norm] / jnp.maximum(count, 1)[:, None, None].astype(totals[norm].dtype)
            for index, kind in enumerate(("running_mean", "running_var")):
                name = f"{_BLOCK}{norm}.{kind}"
                running = lax.stop_gradient(statistics[name])
                running_statistics[name] = running + jnp.where(read, NORM_MOMENTUM * (means[:, index] - running), 0)
        return running_statistics
