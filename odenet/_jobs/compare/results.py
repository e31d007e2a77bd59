"""The results of a comparison: a row for each cell, see `odenet._jobs.cells.results`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from odenet._jobs.cells.grid import GridPlan
from odenet._jobs.cells.results import CellResults
from odenet._jobs.compare.row import MeasuredGradient


@dataclass(frozen=True)
class Comparison(CellResults[GridPlan, MeasuredGradient]):
    """What is done of a comparison.

    Args:
        plan, machine, rows, seconds: see `CellResults`.
    """

    form: ClassVar = "odenet compare 1"
    command: ClassVar = "odenet compare"
    plan_kind: ClassVar = GridPlan
    row_kind: ClassVar = MeasuredGradient
    compared: ClassVar = "times and memory"
