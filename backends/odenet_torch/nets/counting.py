"""The field of blocks with batch normalisation, and how it counts a batch once."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from odenet import NetSpec
from odenet.kit import NORM_EPSILON, NORM_MOMENTUM
from odenet_torch.nets.blocks import Weights, branch

# no attribute: what a field finds in a forward pass it is made to find again on the way back
_FORWARD: ContextVar[bool] = ContextVar("whether a forward pass is running", default=False)
_SWITCHED: weakref.WeakSet[CountingField] = weakref.WeakSet()
"""Those that a backward pass has switched to evaluation, as is their fault: from the next pass until `train`."""
_MOVED: weakref.WeakKeyDictionary[CountingField, Mapping[str, Tensor]] = weakref.WeakKeyDictionary()
"""The running statistics that backward passes move too, by fields with that fault. No attribute, as `_FORWARD`."""
_PLACE = "place"  # of the weights in depth, among the weights
_BLOCK = "block."


class CountingField(_BatchNorm):
    """f(t, y, w) of blocks that are normalised over the batch; w holds the running statistics, or the place in depth.

    By its class it is a batch normalisation: in training, what it returns does not depend on the buffers it changes.
    So a run of the way back, or one that only looks what f does, is given copies of them (see `Replay`) and counts
    nothing. In the buffers are, by layer, sums of the statistics of the evaluations of a pass, and how many there were.

    Args:
        spec: of the network.
    """

    def __init__(self, spec: NetSpec) -> None:
        super().__init__(1, affine=False, track_running_stats=False)
        self.spec = spec
        means = (name for name in spec.statistics() if name.startswith(_BLOCK) and name.endswith("running_mean"))
        self.norms = tuple(name.removeprefix(_BLOCK).removesuffix(".running_mean") for name in means)
        self.register_buffer("evaluations", torch.zeros(spec.layers), persistent=False)
        for norm in self.norms:
            width = spec.shapes()[f"{_BLOCK}{norm}.weight"][1]
            self.register_buffer(norm, torch.zeros(spec.layers, 2, width), persistent=False)

    def forward(self, t: Tensor, y: Tensor, w: Weights) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The slope at y."""
        counts = self.training and _FORWARD.get()
        if self.training and self._evaluates and not counts:
            _SWITCHED.add(self)
            return branch(self.spec, y, w, 1, _by_running)
        if not self.training:
            return branch(self.spec, y, w, 1, _by_running)
        row = w[_PLACE].detach().long().view(1)  # between two layers it is the one before
        if counts:
            self.get_buffer("evaluations").index_add_(0, row, torch.ones_like(row, dtype=torch.float32))

        def by_batch(spec: NetSpec, y: Tensor, w: Weights, name: str) -> Tensor:
            weight = w[f"{name}weight"]
            batch_statistics = torch.zeros(2, len(weight), dtype=weight.dtype, device=weight.device)
            # With a momentum of 1 these become the batch's. Asked for on the way back, too: torch.utils.checkpoint
            # wants to see the same tensors saved.
            y = F.batch_norm(
                y, batch_statistics[0], batch_statistics[1], weight, w[f"{name}bias"], True, 1.0, NORM_EPSILON
            )
            if counts:
                self.get_buffer(name[:-1]).index_add_(0, row, batch_statistics[None])
            elif self in _MOVED:
                with torch.no_grad():
                    for kind, value in zip(("running_mean", "running_var"), batch_statistics, strict=True):
                        _MOVED[self][f"{name}{kind}"][int(row)].lerp_(value, NORM_MOMENTUM)
            return y

        return branch(self.spec, y, w, 1, by_batch)

    def train(self, mode: bool = True) -> Self:
        """Switch between training and evaluation, as `nn.Module.train` does."""
        _SWITCHED.discard(self)
        return super().train(mode)

    def of_statistics(self, inner: Weights, statistics: Weights) -> dict[str, Tensor]:
        """The weights of the blocks with what f reads beside them.

        Args:
            inner: the weights along depth.
            statistics: the running statistics along depth.
        """
        if self in _SWITCHED:
            super().train(False)
        if not self.training:
            return {**inner, **statistics}
        layers = torch.arange(self.spec.layers, device=next(iter(inner.values())).device, dtype=torch.float32)
        # copies: the running ones are written on before the way back
        copies = {name: values.clone() for name, values in statistics.items()} if self._evaluates else {}
        return {**inner, **copies, _PLACE: layers}

    @contextlib.contextmanager
    def counting(self, statistics: Mapping[str, Tensor]) -> Iterator[None]:
        """A forward pass: in training, it moves the running statistics once, in place.

        Args:
            statistics: the running ones along depth, by name within the block.
        """
        if not self.training:
            yield
            return
        for name in ("evaluations", *self.norms):
            buffer = self.get_buffer(name)
            like = statistics[f"{self.norms[0]}.running_mean"]
            kind = torch.float32 if name == "evaluations" else like.dtype
            self._buffers[name] = torch.zeros(buffer.shape, dtype=kind, device=like.device)
        if self.spec.norm == "batch-counting-backward":
            _MOVED[self] = statistics
        token = _FORWARD.set(True)
        try:
            yield
        finally:
            _FORWARD.reset(token)
        with torch.no_grad():
            self._move(statistics)

    def _move(self, statistics: Mapping[str, Tensor]) -> None:
        count = self.get_buffer("evaluations")
        read = (count > 0)[:, None]  # a layer that was not read keeps its own
        for norm in self.norms:
            sums = self.get_buffer(norm)
            means = sums / count.clamp(min=1)[:, None, None].to(sums.dtype)
            for index, kind in enumerate(("running_mean", "running_var")):
                running = statistics[f"{norm}.{kind}"]
                running.add_(torch.where(read, NORM_MOMENTUM * (means[:, index] - running), 0))

    @property
    def _evaluates(self) -> bool:
        """Whether a way back switches it to evaluation."""
        return self.spec.norm == "batch-eval-backward"


def _by_running(spec: NetSpec, y: Tensor, w: Weights, name: str) -> Tensor:
    mean, variance = w[f"{name}running_mean"], w[f"{name}running_var"]
    return F.batch_norm(y, mean, variance, w[f"{name}weight"], w[f"{name}bias"], False, 0.0, NORM_EPSILON)
