"""The checks of `odenet check`: the gradient methods of one network, by one backend, against an exact reference."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from odenet._backend import registry as _registry
from odenet._backend.interface import Backend
from odenet._backend.sample import Sample
from odenet._errors import InputError
from odenet._gradients.names import Backprop
from odenet._gradients.record import Gradient
from odenet._jobs.cells.grid import GridPlan
from odenet._jobs.data.digits import batch
from odenet._solvers.names import AnySolver
from odenet.doctor.checkup import RATE, STEPS, See, diagnose
from odenet.doctor.diagnosis import Diagnosis
from odenet.doctor.examination import Examination
from odenet.doctor.plan import Plan
from odenet.doctor.planning import plan as choose

TOLERANCE = 1e-2
"""Tolerance of the recommended method, where none is given."""


@dataclass(frozen=True)
class CellCheck:
    """The gradient methods of one network, by one backend.

    Args:
        backend, solver, depth: what was checked, by name.
        gradients: the methods.
        diagnosis: against exact backprop in float64; None where nothing could be checked.
        skipped: why not: the backend is not installed, or none can give the reference.
        choice: the plan for the network, or why there is none; None where it was not asked for.
    """

    backend: str
    solver: AnySolver
    depth: int
    gradients: tuple[Gradient, ...]
    diagnosis: Diagnosis | None = None
    skipped: str | None = None
    choice: Plan | InputError | None = None

    def __str__(self) -> str:
        return f"{self.backend} {self.solver.label} N={self.depth}"

    @property
    def examinations(self) -> tuple[Examination, ...]:
        """One a method, those that were skipped, too."""
        if self.diagnosis is not None:
            return self.diagnosis.examinations
        label = self.solver.label
        return tuple(Examination(method, label, offered=False, trouble=self.skipped) for method in self.gradients)


def checks(
    plan: GridPlan,
    weights: Mapping[str, np.ndarray] | None = None,
    tolerance: float = TOLERANCE,
    *,
    planned: bool = False,
    memory: int | None = None,
) -> Iterator[CellCheck]:
    """One check a backend, solver and depth of the plan.

    Args:
        plan: what to check, and on what network.
        weights: named arrays; None for the plan's own random ones.
        tolerance: of the recommended method.
        planned: whether time and memory are measured, too, and one is chosen: see `odenet.plan`.
        memory: of that plan.

    Raises:
        InputError: weights that are not those of the plan's network.
        OdenetError: exact backprop fails.
    """
    data = batch(plan.batch, plan.seed)
    references: dict[tuple[str, int], _Examined] = {}
    for name in plan.backends:
        entry = _registry.entry(name)
        for solver in plan.solvers:
            for depth in plan.depths:
                check = functools.partial(CellCheck, name, solver, depth, plan.gradients)
                reference = plan.reference(solver)
                if not entry.networks or not entry.available or reference is None:
                    why = "not offered: the backend has no networks"
                    if entry.networks:
                        why = "no reference" if entry.available else f"not available: {entry.install}"
                    yield check(skipped=why)
                    continue
                spec = plan.spec(solver, depth)
                named = dict(weights) if weights is not None else spec.init(plan.seed, plan.start)
                spec.check(named)
                examined = functools.partial(_Examined, plan, spec, named, solver, data)
                if (solver.label, depth) not in references:
                    references[solver.label, depth] = examined(reference, "float64")
                own = examined(name, plan.dtype)
                diagnosis = diagnose(
                    own.see,
                    plan.gradients,
                    tolerance=tolerance,
                    backend=name,
                    offers=entry.offers,
                    refer=references[solver.label, depth].see,
                    reference=f"exact backprop in float64 by {reference}",
                    later=own.later,
                )
                choice = own.plan(memory, tolerance) if planned else None
                yield check(diagnosis=diagnosis, choice=choice)


class _Examined:
    """A network of the plan in a backend and a number type, and the gradients seen so far."""

    def __init__(
        self,
        plan: GridPlan,
        spec: Any,
        weights: dict[str, np.ndarray],
        solver: AnySolver,
        data: Any,
        name: str,
        dtype: str,
    ) -> None:
        self.name = name
        self.backend: Backend = _registry.backend(name)
        self.data = data
        self.choices: dict[str, Any] = {"dtype": dtype, "device": plan.device}
        with self.backend.prepare(**self.choices):
            self.model = self.backend.build(spec, weights, solver=solver, gradient=Backprop(), **self.choices)
        self.samples: dict[tuple[Gradient, bool], Sample] = {}

    def see(self, method: Gradient, reversible: bool) -> Sample:
        """The gradient of a method. Exact ones are kept: several backends are compared with them."""
        key = (method, reversible)
        if key not in self.samples:
            with self.backend.prepare(**self.choices):
                sample = self.backend.examine(self.model, self.data, None, method, reversible=reversible)
            if not isinstance(method, Backprop):
                return sample
            self.samples[key] = sample
        return self.samples[key]

    def later(self) -> See:
        """The same of a copy after a few steps of training."""
        with self.backend.prepare(**self.choices):
            copy = self.backend.trained(self.model, self.data, None, STEPS, RATE)

        def see(method: Gradient, reversible: bool) -> Sample:
            with self.backend.prepare(**self.choices):
                return self.backend.examine(copy, self.data, None, method, reversible=reversible)

        return see

    def plan(self, memory: int | None, tolerance: float) -> Plan | InputError:
        """The plan for this network; or the error that says why there is none."""
        backend: Any = self.name
        with self.backend.prepare(**self.choices):
            try:
                return choose(self.model, self.data, memory, tolerance, backend=backend)
            except InputError as error:
                return error
