"""What a reproduction is: small cells, each measured on its own, a figure and verdicts from all of them."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal, TypeVar

from odenet._errors import InputError
from odenet._jobs.reproduce import claims
from odenet._jobs.reproduce.verdict import Verdict
from odenet._names import choice
from odenet._report.rows import column

if TYPE_CHECKING:
    from matplotlib.figure import Figure


Scale = Literal["quick", "reduced", "paper"]
SCALES: tuple[Scale, ...] = ("quick", "reduced", "paper")
T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """What a user chooses of a reproduction.

    Args:
        backends: names of native backends; each is measured, and judged, on its own.
        seeds: how many, seeds 0 to seeds - 1; None takes the reproduction's own.
        depth: the largest depth; None takes the reproduction's own.
        scale: "quick" for a look, "reduced" for what a CPU does in minutes, "paper" for the paper's size.
        device: where networks are trained and measured, as `odenet list backends` names it.
        data: directory of CIFAR-10's official layout, or of an image folder; None trains on the embedded digits.

    Raises:
        InputError: no seed, a depth that leaves too few points for an order, or an unknown scale.
    """

    backends: tuple[str, ...]
    seeds: int | None = None
    depth: int | None = None
    scale: Scale = "reduced"
    device: str = "cpu"
    data: str | None = None

    def __post_init__(self) -> None:
        choice("scale", self.scale, SCALES)
        if self.seeds is not None and self.seeds < 1:
            raise InputError(f"seeds={self.seeds} of a reproduction", "at least 1")
        if self.depth is not None and self.depth < 32:
            raise InputError(
                f"depth={self.depth} of a reproduction", "at least 32", "leave --depth out, or take --quick"
            )

    @property
    def quick(self) -> bool:
        """Whether this is for a look only."""
        return self.scale == "quick"

    def sized(self, quick: T, reduced: T, paper: T) -> T:
        """The one of these that is for the scale."""
        return {"quick": quick, "reduced": reduced, "paper": paper}[self.scale]

    def depths(self, first: int, last: int, quick: int) -> tuple[int, ...]:
        """Powers of two from `first` to `last`; to `quick` in a quick run, to the depth chosen if there is one."""
        most = self.depth or (quick if self.quick else last)
        return tuple(2**k for k in range(first.bit_length() - 1, most.bit_length()))

    def cells(self, curves: Sequence[str], depths: Sequence[int], seeds: int = 5) -> tuple[CurveCell, ...]:
        """All of them: seed by seed, so that an interrupted run has whole curves.

        Args:
            curves, depths: of each seed and backend.
            seeds: how many where the user does not say.
        """
        return tuple(
            CurveCell(backend, seed, curve, depth)
            for seed in range(self.seeds or seeds)
            for backend in self.backends
            for curve in curves
            for depth in depths
        )


@dataclass(frozen=True)
class CurveCell:
    """The unit of measurement: a curve at one depth, for one backend and seed."""

    backend: str
    seed: int
    curve: str
    depth: int

    def __str__(self) -> str:
        return f"{self.curve} N={self.depth} seed={self.seed} {self.backend}"

    def point(self, quantity: str, value: float, step: int | None = None, layer: int | None = None) -> Point:
        """A number that this cell found."""
        return Point(self.backend, self.seed, self.curve, self.depth, quantity, step, layer, float(value))


@dataclass(frozen=True)
class Point:
    """One number: a row of points.csv."""

    backend: str = column("who solved")
    seed: int = column("of weights and data")
    curve: str = column("which network or method")
    depth: int = column("steps N")
    quantity: str = column("what the value is")
    step: int | None = column("step of training; empty where nothing is trained, or over all steps")
    layer: int | None = column("layer, from 0; empty for the whole network")
    value: float = column("the number")

    @property
    def cell(self) -> CurveCell:
        """The cell that the point was measured in."""
        return CurveCell(self.backend, self.seed, self.curve, self.depth)


@dataclass(frozen=True)
class Reproduction:
    """One figure or statement of the paper.

    Args:
        name: what the command calls it.
        claim: what the paper says, and where.
        method: what is done here, with its size and how that differs from the paper's.
        cells: what is measured.
        measure: one cell.
        draw: the figure of the points, onto an empty one.
        verdicts: what the points of one backend say of the claim; every one can fail.
        size: of the figure, in inches.
    """

    name: str
    claim: str
    method: str
    cells: Callable[[Settings], tuple[CurveCell, ...]]
    measure: Callable[[CurveCell, Settings], tuple[Point, ...]]
    draw: Callable[[Sequence[Point], Figure], None]
    verdicts: Callable[[Sequence[Point]], tuple[Verdict, ...]]
    size: tuple[float, float] = (8.0, 5.0)


@cache
def reproductions() -> dict[str, Reproduction]:
    """Every reproduction by name: those that the files in `claims` define."""
    modules = [
        importlib.import_module(f"{claims.__name__}.{module_info.name}")
        for module_info in pkgutil.iter_modules(claims.__path__)
    ]
    return {module.REPRODUCTION.name: module.REPRODUCTION for module in modules}


def values(
    points: Sequence[Point], curve: str, quantity: str, step: int | None = None, layer: int | None = None
) -> dict[int, list[float]]:
    """By depth, from shallow to deep, the values over seeds."""
    by_depth: dict[int, list[float]] = {}
    for point in sorted(points, key=lambda point: (point.depth, point.seed)):
        if (point.curve, point.quantity, point.step, point.layer) == (curve, quantity, step, layer):
            by_depth.setdefault(point.depth, []).append(point.value)
    return by_depth
