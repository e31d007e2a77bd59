"""Which cells are compared, and on what network and data."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from odenet._backend import registry as _registry
from odenet._check import instance, whole
from odenet._gradients.names import Backprop, Gradient, gradient
from odenet._jobs.cells.plan import CellPlan
from odenet._jobs.cells.resume import reading
from odenet._names import choice
from odenet._nets.spec import ALONG, BLOCKS, STARTS, UNREAD, Block, NetSpec, Norm, Start
from odenet._solvers.names import AnySolver, solver

Along = Literal["auto", "piecewise", "linear", "shared"]
Key = tuple[str, str, str, int]
ALONG_BY_SOLVER = ("auto", *ALONG)


def along_for(along: str, solver: str) -> Any:
    """How weights go along depth: "auto" is "piecewise" for euler (a ResNet), and "linear" for every other solver."""
    return along if along != "auto" else "piecewise" if solver == "euler" else "linear"


@dataclass(frozen=True)
class Cell:
    """One entry of the grid: this network depth, solved and differentiated in this way by this backend."""

    backend: str
    solver: AnySolver
    gradient: Gradient
    depth: int

    @property
    def key(self) -> Key:
        """The cell as names, which is how a row on disk is recognised."""
        return self.backend, self.solver.label, self.gradient.label, self.depth

    def __str__(self) -> str:
        return f"{self.backend} {self.solver.label} {self.gradient.label} N={self.depth}"


@dataclass(frozen=True)
class GridPlan(CellPlan):
    """All options of a comparison.

    Args:
        backends: names of known backends. The first that offers a solver with backprop, and whose framework is
            installed, gives the float64 reference of that solver.
        solvers, gradients: records.
        depths: numbers of steps N.
        dtype: "float32" or "float64" of the cells; the reference is float64 always.
        device: as the backends name it.
        seed: of the weights and of the batch.
        batch: number of images.
        block, width, norm, activation: of the network, see `NetSpec`. An mlp block has `width` hidden features.
        start: of the weights, see `NetSpec.init`. "smooth" weights have a limit as N grows, so that orders in N exist.
        network: a whole spec in the place of block, width, norm and activation; depth and weights along depth are the
            plan's.
        along: weights along depth; "auto" takes "piecewise" for euler (a ResNet of N blocks) and "linear" for every
            other solver (HeunNet reads w[n] and w[n+1]: N steps between N+1 nodes).
        repeats: how often each cell is timed; the median counts.

    Raises:
        InputError: an option that cannot be used, here or by `NetSpec`.
    """

    grid: ClassVar = ("backends", "solvers", "gradients", "depths")
    records: ClassVar = {"solvers": ("label", solver), "gradients": ("label", gradient)}

    backends: tuple[str, ...] = ("torch", "jax")
    solvers: tuple[AnySolver, ...] = tuple(solver(name) for name in ("euler", "heun", "rk4"))
    gradients: tuple[Gradient, ...] = tuple(
        gradient(label)
        for label in ("backprop", "discrete-adjoint", "discrete-adjoint:correct=no", "continuous-adjoint")
    )
    depths: tuple[int, ...] = (4, 16, 64)
    dtype: Literal["float32", "float64"] = "float64"
    device: str = "cpu"
    seed: int = 0
    batch: int = 10
    block: Block = "conv"
    width: int = 16
    norm: Norm = "group"
    activation: Literal["relu", "tanh"] = "relu"
    start: Start = "smooth"
    along: Along = "auto"
    repeats: int = 3
    network: NetSpec | None = None

    def __post_init__(self) -> None:
        self.check("a comparison")
        instance("network", self.network, (NetSpec, type(None)), "a NetSpec, or None")
        choice("kind of block", self.block, BLOCKS)
        choice("kind of weights along depth", self.along, ALONG_BY_SOLVER)
        choice("start of the weights", self.start, STARTS)
        for name, least in (("batch", 1), ("repeats", 1), ("seed", 0)):
            whole(name, getattr(self, name), least, of="a comparison")
        for depth in self.depths:
            self.spec(self.solvers[0], depth)

    def spec(self, solver: AnySolver, depth: int) -> NetSpec:
        """The network of a cell. It does not depend on backend or gradient method, so that these can be compared."""
        along = along_for(self.along, solver.name)
        if self.network is not None:
            return dataclasses.replace(self.network, depth=depth, along=along)
        return NetSpec(
            block=self.block,
            depth=depth,
            width=self.width,
            hidden=self.width,
            norm=self.norm,
            activation=NetSpec.activation if "activation" in UNREAD[self.block] else self.activation,
            along=along,
        )

    def cells(self) -> tuple[Cell, ...]:
        """Every cell, in the order in which they are run.

        One backend after the other: the threads of two frameworks do not disturb each other's times, and the first is
        timed before the second is even imported. Within a backend the cells that share a reference follow each other.
        """
        return tuple(
            Cell(backend, solver, gradient, depth)
            for backend in self.backends
            for solver in self.solvers
            for depth in self.depths
            for gradient in self.gradients
        )

    def units(self, cells: Sequence[Any]) -> list[tuple[Any, ...]]:
        """Those of one backend, solver and depth together: they share a reference."""
        groups = itertools.groupby(cells, lambda cell: (cell.backend, cell.solver.label, cell.depth))
        return [tuple(group) for _, group in groups]

    def references(self, solver: AnySolver) -> tuple[str, ...]:
        """The backends that can give the exact float64 gradient with which all are compared, in the plan's order."""
        entries = [_registry.entry(name) for name in self.backends]
        return tuple(
            entry.name for entry in entries if entry.networks and entry.available and entry.offers(solver, Backprop())
        )

    def reference(self, solver: AnySolver) -> str | None:
        """The first of them; None if there is none."""
        return next(iter(self.references(solver)), None)

    def to_json(self) -> dict[str, Any]:
        """Plain data: names instead of records, and the reference backend of each solver."""
        network = self.network and dataclasses.asdict(self.network)
        references = {solver.label: self.reference(solver) for solver in self.solvers}
        return super().to_json() | {"network": network, "reference": references}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Self:
        """The plan that `to_json` wrote."""
        with reading("the plan in these results", "a plan that odenet wrote"):
            network = plain.get("network")
            spec = None if network is None else NetSpec(**network)
        return super().from_json({**plain, "network": spec})

    def changed_from(self, old: GridPlan) -> list[str]:
        """Another network, data, number type or reference, in words."""
        return super().changed_from(old) + [
            f"the reference of {record.name} came from {old.reference(record)} "
            f"and would come from {self.reference(record)}"
            for record in self.solvers
            if record in old.solvers and old.reference(record) != self.reference(record)
        ]

    def in_order(self) -> Self:
        """With depths that go up."""
        return dataclasses.replace(self, depths=tuple(sorted(self.depths)))
