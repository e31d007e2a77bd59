"""A module that solves, and whose gradient method may be `auto`."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from odenet import Audit, Auditor, Auto, Gradient, Plan, Problem, Solution, Stats
from odenet_torch.field.field import Field
from odenet_torch.gradients.audited import solve_auto
from odenet_torch.gradients.solve import solve_problem


class Watched(nn.Module):
    """Remembers what was planned and audited; plain data, which is copied and pickled with it."""

    gradient: Gradient
    stats: Stats | None

    def __init__(self) -> None:
        super().__init__()
        self._auditor: Auditor | None = None

    @property
    def plan(self) -> Plan | None:
        """With `gradient="auto"`: the last plan, made on the first backward pass; None before it."""
        return None if self._auditor is None else self._auditor.plan

    @property
    def audits(self) -> tuple[Audit, ...]:
        """With `gradient="auto"`: what was found, in order; `plan` says what was chosen first."""
        return () if self._auditor is None else self._auditor.audits

    @property
    def auditor(self) -> Auditor | None:
        """With `gradient="auto"`: what chooses and audits; None with another method."""
        if not isinstance(self.gradient, Auto):
            return None
        if self._auditor is None or self._auditor.auto != self.gradient:
            self._auditor = Auditor(self.gradient)
        return self._auditor

    def _solution(self, make: Callable[[Gradient], Problem], field: Field | None = None) -> Solution:
        """The solution of the problem that `make` makes with a gradient method."""
        auditor = self.auditor
        if auditor is None:
            solution = solve_problem(make(self.gradient), field)
        else:
            solution = solve_auto(auditor, make, field, self.stats)
        self.stats = solution.stats
        return solution
