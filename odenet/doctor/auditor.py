"""What watches the gradient method of a solve in training: when to audit it, what an audit means, what to move to."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from odenet._backend.entry import BackendEntry
from odenet._backend.sample import Profile
from odenet._errors import GradientWarning
from odenet._gradients.auto import Auto, exact
from odenet._gradients.exact import Checkpoint
from odenet._gradients.record import Gradient
from odenet._report.units import error
from odenet._solvers.names import AnySolver
from odenet.doctor.candidates import candidates, checkpoints, few_states
from odenet.doctor.plan import Plan, completed

LOG = logging.getLogger("odenet")
LOG.addHandler(logging.NullHandler())  # who configures no logging is told by the warning alone
MOVED = "from now on the gradient is by"
"""How a warning that a method was left goes on."""
ROOM = 0.5
"""Fraction of the tolerance that a chosen method has to meet, since weights change until the next audit."""


@dataclass(frozen=True)
class Audit:
    """One comparison of a gradient method with the exact gradient, on a batch of training.

    Args:
        passes: backward passes before it.
        gradient: the method compared.
        gradient_error: relative, of the weights of the solve or of its input, whichever is larger.
        tolerance: what it may be.
        moved_to: the method taken from then on, where that is another one.
    """

    passes: int
    gradient: Gradient
    gradient_error: float
    tolerance: float
    moved_to: Gradient | None = None


class Auditor:
    """Remembers the plan, the audits and the present method of one solve. Plain data: it is copied and pickled.

    Args:
        auto: what is wished.
    """

    def __init__(self, auto: Auto) -> None:
        self.auto = auto
        self.plan: Plan | None = None
        self.audits: tuple[Audit, ...] = ()
        self.method = auto.method
        self.passes = 0
        self.chosen_at = self.next = 0
        self.certified_error: tuple[float, float] | None = None  # certificate and error at the last audit
        self.left: frozenset[Gradient] = frozenset()
        self.logged = False

    def exact(self, steps: int) -> Gradient:
        """The exact method for the passes that plan and audit: the fastest known to fit, or one that keeps little."""
        fitting = [] if self.plan is None else [row.gradient for row in self.plan.by_speed if checkpoints(row.gradient)]
        if fitting:
            return fitting[0]
        return Checkpoint() if self.auto.memory is None else few_states(steps)

    @property
    def due(self) -> bool:
        """Whether the next pass has to be exact, to plan or to audit in it."""
        return self.method is None or (not exact(self.method) and self.passes >= self.next)

    def candidates(self, entry: BackendEntry, solver: AnySolver, steps: int, *, adaptive: bool) -> tuple[Gradient, ...]:
        """The methods to be measured for a plan; see `odenet.doctor.candidates`."""
        return candidates(entry, (solver,), steps, adaptive=adaptive)

    def plan_of(
        self,
        where: tuple[str, AnySolver, int, str],
        measured: tuple[Sequence[Profile], str],
        again: Callable[[Sequence[Gradient]], Sequence[Profile]],
    ) -> Plan:
        """The plan of what was measured, with a tolerance that leaves `ROOM`.

        Args:
            where: backend, solver, steps and number type.
            measured: rows, and how bytes were counted.
            again: see `completed`.

        Raises:
            InputError: no method fits the memory, or none that is exact, without which nothing could be audited.
        """
        backend, solver, steps, dtype = where
        rows, counted = measured
        tolerance, memory = ROOM * self.auto.tolerance, self.auto.memory
        fixed = (backend, solver.label, steps, dtype)

        def make(rows: tuple[Profile, ...]) -> Plan:
            return Plan(*fixed, rows, tolerance, memory, "the exact gradient of the same pass", counted)

        plan = completed(rows, memory, again, make)
        if not any(exact(row.gradient) for row in plan.qualified):
            only = tuple(row for row in plan.profiles if exact(row.gradient))
            completed(only, memory, again, make)
        return plan

    def counted(self) -> None:
        """One more backward pass came to its end."""
        self.passes += 1

    def certified(self, certificate: float | None) -> None:
        """What a backward pass told of itself: where it tells of too large an error, the next pass is audited.

        The error of a corrected reconstruction grows like the square of its certificate.
        """
        if self.certified_error is None or certificate is None:
            return
        before, off = self.certified_error
        ratio = certificate / before
        if not off * max(ratio, ratio**2) <= self.auto.tolerance:  # so, too, where it is NaN
            self.next = self.passes

    def unmeasurable(self) -> None:
        """The exact gradient of this pass was zero or not finite: the next one is exact, too."""
        if not self.logged:
            self.logged = True
            LOG.info(
                "gradient=auto: the exact gradient is zero or not finite, so that no method's error can be measured; "
                "passes are exact (%s) until it is not",
                "checkpoint",
            )

    def planned(self, plan: Plan) -> None:
        """Take the method that a plan chose."""
        self.plan = plan
        self._take(plan.gradient)
        LOG.info("gradient=auto: %s", plan.verdict)

    def judge(self, profile: Profile, planned: Callable[[], Plan]) -> None:
        """What an audit found.

        Args:
            profile: of the present method.
            planned: makes a plan on the same batch, with a tolerance that leaves `ROOM`.
        """
        assert self.method is not None
        method, off = self.method, _number(profile.gradient_error)
        if off <= self.auto.tolerance:
            self.audits = (*self.audits, Audit(self.passes, method, off, self.auto.tolerance))
            self._again(profile)
            return
        self.left |= {method}
        self.plan = planned()
        others = (row.gradient for row in self.plan.qualified if row.gradient not in self.left)
        self._take(next(others, self.exact(self.plan.steps)))
        self.audits = (*self.audits, Audit(self.passes, method, off, self.auto.tolerance, self.method))
        when = f" after {self.passes} backward passes" if self.passes else ""
        text = (
            f"{method.label} is {error(off)} off the exact gradient{when}, more than {error(self.auto.tolerance)}: "
            f"{MOVED} {self.method.label}"
        )
        LOG.warning("%s", text)
        warnings.warn(GradientWarning(text, certificate=off, gradient=method.label), stacklevel=2)

    def _take(self, method: Gradient) -> None:
        self.method = method
        self.chosen_at, self.next = self.passes, self.passes + 1
        self.certified_error = None

    def _again(self, profile: Profile) -> None:
        """The next audit: as many passes from now as there were since the choice, up to `audit`."""
        self.next = self.passes + min(max(self.passes - self.chosen_at, 1), self.auto.audit)
        certificate, off = profile.certificate, profile.gradient_error
        known = certificate and off and math.isfinite(certificate) and math.isfinite(off)
        self.certified_error = (certificate, off) if known and certificate and off else None


def _number(value: float | None) -> float:
    return math.nan if value is None else value
