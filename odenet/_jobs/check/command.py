"""`odenet check`: every gradient method of a named network against exact backprop, and the doctor's verdict."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from odenet._backend import registry as _registry
from odenet._backend.sample import Sample
from odenet._backend.seam import Backend
from odenet._files import require_target, write_text
from odenet._gradients.names import Backprop
from odenet._gradients.record import Gradient
from odenet._jobs import flags as _flags
from odenet._jobs.cells.flags import grid_flags, network_flags, plan_of
from odenet._jobs.cells.grid import Plan
from odenet._jobs.data.digits import batch
from odenet._jobs.output import OutputFile, say_written
from odenet._jobs.output import screen as screen_for
from odenet._nets.weights import load_weights
from odenet._report.machine import machine
from odenet._report.rows import plain
from odenet._report.terminal import console
from odenet._report.units import error
from odenet._solvers.names import AnySolver
from odenet._solvers.names import solver as solver_named
from odenet.doctor.checkup import diagnose
from odenet.doctor.diagnosis import Diagnosis
from odenet.doctor.examination import OUTSIDE, Examination
from odenet.doctor.tables import tables

TOLERANCE = 1e-2
"""Of the recommended method, where none is given."""
DEFAULT = Plan(solvers=(solver_named("euler"),), depths=(16,))


@dataclass(frozen=True)
class Check:
    """The gradient methods of one network, by one backend.

    Args:
        backend, solver, depth: what was checked, by name.
        gradients: the methods.
        diagnosis: against exact backprop in float64; None where nothing could be checked.
        skipped: why not: the backend is not installed, or none can give the reference.
    """

    backend: str
    solver: AnySolver
    depth: int
    gradients: tuple[Gradient, ...]
    diagnosis: Diagnosis | None = None
    skipped: str | None = None

    def __str__(self) -> str:
        return f"{self.backend} {self.solver.label} N={self.depth}"

    @property
    def examinations(self) -> tuple[Examination, ...]:
        """One a method, those that were skipped, too."""
        if self.diagnosis is not None:
            return self.diagnosis.examinations
        label = self.solver.label
        return tuple(Examination(each, label, offered=False, trouble=self.skipped) for each in self.gradients)


def checks(
    plan: Plan, weights: Mapping[str, np.ndarray] | None = None, tolerance: float = TOLERANCE
) -> Iterator[Check]:
    """One check a backend, solver and depth of the plan.

    Args:
        plan: what to check, and on what network.
        weights: named arrays; None for the plan's own random ones.
        tolerance: of the recommended method.

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
                made = functools.partial(Check, name, solver, depth, plan.gradients)
                reference = plan.reference(solver)
                if not entry.networks or not entry.available or reference is None:
                    why = "not offered: the backend has no networks"
                    if entry.networks:
                        why = "no reference" if entry.available else f"not available: {entry.install}"
                    yield made(skipped=why)
                    continue
                spec = plan.spec(solver, depth)
                named = dict(weights) if weights is not None else spec.init(plan.seed, plan.start)
                spec.check(named)
                examined = functools.partial(_Examined, plan, spec, named, solver, data)
                if (solver.label, depth) not in references:
                    references[solver.label, depth] = examined(reference, "float64")
                diagnosis = diagnose(
                    examined(name, plan.dtype).see,
                    plan.gradients,
                    tolerance=tolerance,
                    backend=name,
                    offers=entry.offers,
                    refer=references[solver.label, depth].see,
                    reference=f"exact backprop in float64 by {reference}",
                )
                yield made(diagnosis=diagnosis)


class _Examined:
    """A network of the plan in a backend and a number type, and the gradients seen so far."""

    def __init__(
        self, plan: Plan, spec: Any, weights: dict[str, np.ndarray], solver: AnySolver, data: Any, name: str, dtype: str
    ) -> None:
        self.backend: Backend = _registry.backend(name)
        self.data = data
        self.choices: dict[str, Any] = {"dtype": dtype, "device": plan.device}
        with self.backend.prepare(**self.choices):
            self.model = self.backend.build(spec, weights, solver=solver, gradient=Backprop(), **self.choices)
        self.seen: dict[tuple[Gradient, bool], Sample] = {}

    def see(self, method: Gradient, reversible: bool) -> Sample:
        """See `odenet.doctor.checkup.See`. Exact gradients are kept: several backends are compared with them."""
        key = (method, reversible)
        if key not in self.seen:
            with self.backend.prepare(**self.choices):
                sample = self.backend.examine(self.model, self.data, None, method, reversible=reversible)
            if not isinstance(method, Backprop):
                return sample
            self.seen[key] = sample
        return self.seen[key]


@click.command("check", context_settings={"help_option_names": ["-h", "--help"]})
@grid_flags(DEFAULT)
@network_flags(DEFAULT)
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    help="Named weights (.safetensors or .npz) of the network; --start and --seed make random ones.",
)
@click.option(
    "--tolerance",
    type=_flags.Real(min=0),
    help=f"Exit with 1 if a whole gradient's relative error is above this; the verdict takes {TOLERANCE:g} without it.",
)
@click.option("--json", "target", type=OutputFile(), help="Write everything to this file; - is stdout.")
@click.pass_context
def command(
    context: click.Context, weights: Path | None, tolerance: float | None, target: Path | None, **options: Any
) -> None:
    """Check the gradient methods of a network against exact backprop in float64, by layer and by weight.

    The verdict says which method to take, and why. `reversible` needs a reversible solver: for a Runge-Kutta method it
    is checked on the network that this becomes as reversible:NAME, against backprop of that network.

    \b
    Examples:
      odenet check --depth 64 --gradient all
      odenet check --solver heun --block mlp --activation tanh --backend jax --json check.json
      odenet check --weights trained.safetensors --depth 32 --tolerance 1e-3
    """
    plan = plan_of(options)
    plan.require_a_backend()
    named = load_weights(weights) if weights is not None else None
    if target is not None:
        require_target(target)  # found out now, rather than after the work
    screen, messages = screen_for(target), console(stderr=True)
    found = []
    for check in checks(plan, named, tolerance or TOLERANCE):
        found.append(check)
        for made in tables(check.diagnosis, str(check), weights=True) if check.diagnosis is not None else ():
            screen.print(made)
    for check in found:
        if check.diagnosis is not None:
            _print(screen, f"{check}: {check.diagnosis.verdict}\n")
    bad = False
    for check in found:
        for each in check.examinations:
            text = each.trouble
            if text is None and tolerance is not None and not each.meets(tolerance):
                text = f"gradient error {error(each.gradient_error)} is above {tolerance}"
            bad |= text is not None and each.offered
            if text is not None:
                _print(messages, f"{check.backend} {check.solver.label} {each.label} N={check.depth}: {text}")
    if target is not None:
        write_text(target, _json(plan, weights, found))
        say_written(target)
    context.exit(1 if bad else 0)


def _print(messages: Any, text: str) -> None:
    messages.print(text, markup=False, soft_wrap=True)


def _json(plan: Plan, weights: Path | None, found: Sequence[Check]) -> str:
    whole = {
        "format": "odenet check 1",
        "plan": plan.to_json(),
        "weights": None if weights is None else str(weights),
        "machine": machine(plan.backends),
        "checks": [_row(check, each) for check in found for each in check.examinations],
        "diagnoses": [_diagnosis(check, check.diagnosis) for check in found if check.diagnosis is not None],
    }
    return json.dumps(plain(whole), indent=1, allow_nan=False) + "\n"


def _row(check: Check, each: Examination) -> dict[str, Any]:
    layers = [label for label in each.by_layer if label not in (OUTSIDE, "shared")]
    record = each.to_json()
    return {
        "backend": check.backend,
        "solver": check.solver.label,
        "gradient": each.gradient.label,
        "depth": check.depth,
        "examined_on": each.solver,
        "skipped": None if each.offered else each.trouble,
        "failed": each.trouble if each.offered else None,
        **{key: record[key] for key in ("gradient_error", "cosine_distance", "certificate", "estimate", "cost")},
        "by_weight": record["by_weight"] or None,
        "by_layer": [each.by_layer[label] for label in layers],
        "cosine_by_layer": [each.cosine_by_layer[label] for label in layers],
    }


def _diagnosis(check: Check, found: Diagnosis) -> dict[str, Any]:
    record = found.to_json()
    kept = ("reference", "dtype", "tolerance", "contraction", "smoothness", "recommended", "verdict")
    place = {"backend": check.backend, "solver": check.solver.label, "depth": check.depth}
    return place | {key: record[key] for key in kept}
