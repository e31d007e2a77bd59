"""The results of a comparison, see `odenet._jobs.cells.results`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, final

from odenet._jobs.cells.grid import Plan
from odenet._jobs.cells.results import CellResults
from odenet._jobs.compare.row import MeasuredGradient


@final
@dataclass(frozen=True)
class Comparison(CellResults[Plan, MeasuredGradient]):
    """What is done of a comparison.

    Args:
        plan, machine, rows: see `CellResults`.
        seconds: that the run took so far, waiting for nothing.
    """

    form: ClassVar = "odenet compare 1"
    command: ClassVar = "odenet compare"
    plan_kind: ClassVar = Plan
    row_kind: ClassVar = MeasuredGradient
    compared: ClassVar = "times and memory"

    seconds: float = 0.0

    def add(self, row: MeasuredGradient) -> Self:
        """With this row in its place in the plan's order, and its seconds counted."""
        return replace(super().add(row), seconds=self.seconds + (row.cell_seconds or 0.0))

    def to_json(self) -> dict[str, Any]:
        """Plain data, but for the format."""
        return super().to_json() | {"seconds": self.seconds}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Self:
        """The results that `to_json` wrote."""
        return replace(super().from_json(plain), seconds=float(plain["seconds"]))
