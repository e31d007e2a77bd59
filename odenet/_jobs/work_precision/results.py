"""The results of a diagram, see `odenet._jobs.cells.results`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from odenet._jobs.cells.results import CellResults
from odenet._jobs.work_precision.plan import SolvePlan
from odenet._jobs.work_precision.row import AdaptiveSolve


@final
@dataclass(frozen=True)
class WorkPrecision(CellResults[SolvePlan, AdaptiveSolve]):
    """What is done of a diagram."""

    form: ClassVar = "odenet work-precision 1"
    command: ClassVar = "odenet benchmark work-precision"
    plan_kind: ClassVar = SolvePlan
    row_kind: ClassVar = AdaptiveSolve
