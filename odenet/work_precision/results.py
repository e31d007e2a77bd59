"""The results of a diagram, see `odenet.cells.results`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from odenet.cells.results import CellResults
from odenet.work_precision.plan import Plan
from odenet.work_precision.row import Row


@final
@dataclass(frozen=True)
class Results(CellResults[Plan, Row]):
    """What is done of a diagram."""

    form: ClassVar = "odenet work-precision 1"
    command: ClassVar = "odenet benchmark work-precision"
    plan_kind: ClassVar = Plan
    row_kind: ClassVar = Row
