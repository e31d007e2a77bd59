"""The grid that an adaptive solve chose, and the field along it."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from odenet import Span
from odenet_torch.field.field import Field, Stand
from odenet_torch.steps.size_control import beside


@dataclass
class Accepted:
    """The grid that an adaptive solve chose, growing as it goes on: what `odenet.Grid` is to equal steps.

    Args:
        layers: times of the boundaries between layers of weights that change with depth, both ends included.
        jumps: times where the field jumps.
        time_type: of the times that the field is called with.
        nodes: ends of the steps.
        places: of the outputs: step and position in it, position 0 being its start exactly.
    """

    layers: tuple[float, ...]
    jumps: frozenset[float]
    time_type: torch.dtype
    nodes: list[float]
    places: list[tuple[int, float]] = dataclasses.field(default_factory=list)

    @property
    def count(self) -> int:
        """How many layers there are."""
        return len(self.layers) - 1

    @property
    def steps(self) -> int:
        """How many steps were accepted."""
        return len(self.nodes) - 1

    @property
    def kept(self) -> tuple[int, ...]:
        """The indices of the states that are outputs."""
        return tuple(sorted({n for n, position in self.places if not position}))

    def size(self, n: int) -> float:
        """The size of a step, negative where time decreases."""
        return self.nodes[n + 1] - self.nodes[n]

    def time(self, n: int, position: float = 0.0) -> float:
        """Time at `position` in [0, 1] within step n, on the step's side of a jump."""
        start, end = self.nodes[n], self.nodes[n + 1]
        if position in (0.0, 1.0):
            t, other = (start, end) if position == 0 else (end, start)
            return beside(t, other, self.time_type) if t in self.jumps else t
        return start + (end - start) * position

    def place(self, time: float) -> tuple[int, float]:
        """Layer and position in it at a time."""
        first, last = self.layers[0], self.layers[-1]
        if len(self.layers) == 2:
            return 0, (time - first) / (last - first) if last != first else 0.0
        sign = 1 if last >= first else -1
        m = bisect.bisect_right([sign * t for t in self.layers], sign * time) - 1
        m = max(0, min(m, len(self.layers) - 2))
        first, last = self.layers[m : m + 2]
        return m, min(1.0, max(0.0, (time - first) / (last - first)))


class AcceptedField(Field):
    """A field whose layers divide [t0, t1], read by the steps of an adaptive solve.

    Args:
        field: with its layers counted as steps of equal size.
        grid: the steps, as they are accepted.
    """

    def __init__(self, field: Field, grid: Accepted) -> None:
        self.field = field
        self.grid = grid
        self.count = grid.count
        self.depth, self.shared = field.depth, field.shared

    def capture(self, tensors: Iterable[Tensor]) -> None:
        self.field.capture(tensors)

    def __call__(self, t: Tensor, y: Any, n: int, position: float, steps: int, stand: Stand | None = None) -> Any:
        return self.field(t, y, *self.grid.place(self.grid.time(n, position)), self.count, stand)

    def at(self, t: Tensor, time: float, y: Any, stand: Stand | None = None) -> Any:
        """The slope of the field at a time."""
        return self.field(t, y, *self.grid.place(time), self.count, stand)

    def recorded(self, device: torch.device, steps: int | None) -> None:
        self.field.recorded(device, None)
        self.reads = self.field.reads

    def layer(self, n: int) -> int:
        """The layer of weights that step n reads."""
        if self.count == 1 or n >= self.grid.steps:
            return 0
        return self.grid.place((self.grid.nodes[n] + self.grid.nodes[n + 1]) / 2)[0]

    def explicit(self, n: int, steps: int) -> tuple[Tensor, ...]:
        return self.field.explicit(self.layer(n), self.count)

    def read(self, n: int, steps: int) -> tuple[Tensor, ...]:
        return self.field.read(self.layer(n), self.count)

    def functions(self) -> Iterable[Any]:
        return self.field.functions()

    def everything(self, steps: int) -> tuple[Tensor, ...]:
        return self.field.everything(self.count)

    def home(self, tensor: Tensor) -> tuple[Tensor, int | None]:
        return self.field.home(tensor)

    def apart(self) -> AcceptedField:
        return AcceptedField(self.field.apart(), self.grid)

    def modules(self, n: int, position: float, steps: int) -> Sequence[tuple[str, nn.Module]]:
        return self.field.modules(self.layer(n), 0.0, self.count)

    def roots(self, n: int, position: float, steps: int) -> Sequence[tuple[str, Any]]:
        return self.field.roots(self.layer(n), 0.0, self.count)

    def handed(self, n: int, steps: int) -> Iterable[Tensor]:
        return self.field.handed(self.layer(n), self.count)

    def settle(self, ns: Iterable[int], steps: int) -> None:
        self.field.settle(range(self.count), self.count)


def stops_of(
    span: Span, t0: float, t1: float, layers: Sequence[float], jumping: bool
) -> tuple[list[float], frozenset[float]]:
    """Times that steps end at, in the order of the solve, and those where the field jumps.

    Args:
        span: with `step_t` and `jump_t`.
        t0, t1: ends of the solve.
        layers: boundaries of the layers.
        jumping: whether the field jumps at these.
    """
    sign = 1 if t1 >= t0 else -1
    inner = {*span.stops, *layers[1:-1]}
    jumps = frozenset({*span.control.jump_t, *(layers[1:-1] if jumping else ())})
    times = sorted((t for t in inner if sign * t0 < sign * t < sign * t1), key=lambda t: sign * t)
    return [*times, t1], jumps
