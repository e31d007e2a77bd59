"""`odenet check`: every gradient method of a named network against exact backprop, and the doctor's verdict."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from odenet._errors import InputError
from odenet._files import require_target, write_text
from odenet._gradients.names import in_bytes
from odenet._jobs import flags as _flags
from odenet._jobs.cells.flags import grid_flags, network_flags, plan_of
from odenet._jobs.cells.grid import GridPlan
from odenet._jobs.check.checks import TOLERANCE, CellCheck, checks
from odenet._jobs.groups import WITH_SHORT_HELP
from odenet._jobs.output import FilePath, OutputFile, say_written
from odenet._jobs.output import screen as screen_for
from odenet._nets.weights import load_weights
from odenet._report.machine import machine
from odenet._report.rows import plain
from odenet._report.terminal import console
from odenet._report.units import error
from odenet._solvers.names import solver as solver_named
from odenet.doctor.diagnosis import Diagnosis, tables
from odenet.doctor.examination import OUTSIDE, Examination

DEFAULT = GridPlan(solvers=(solver_named("euler"),), depths=(16,))


@click.command("check", short_help="Check gradient methods, by weight and by layer.", context_settings=WITH_SHORT_HELP)
@grid_flags(DEFAULT)
@network_flags(DEFAULT)
@click.option(
    "--weights",
    type=FilePath(dir_okay=False),
    help="File of named weights (.safetensors or .npz) of the network. Without it, random ones by --start and --seed.",
)
@click.option(
    "--tolerance",
    type=_flags.Real(min=0),
    help=f"Exit with 1 if a gradient's relative error is above this. Without it, the verdict uses {TOLERANCE:g}.",
)
@click.option("--plan/--no-plan", "planned", help="Measure time and memory, too, and choose a method, as odenet.plan.")
@click.option("--memory", help="For the plan: memory limit of a loss and its gradient, as in 64M.")
@click.option("--json", "target", type=OutputFile(), help="Write everything to this file; - is stdout.")
@click.pass_context
def command(
    context: click.Context,
    weights: Path | None,
    tolerance: float | None,
    planned: bool,
    memory: str | None,
    target: Path | None,
    **options: Any,
) -> None:
    """Check the gradient methods of a network against exact backprop in float64, by layer and by weight.

    The verdict says which method to take, and why. Inexact methods are also examined on a copy after a few training
    steps. `reversible` needs a reversible solver: for a Runge-Kutta method it is checked on the network of
    reversible:NAME, against backprop of that network.

    \b
    Examples:
      odenet check --depth 64 --gradient all
      odenet check --solver heun --block mlp --activation tanh --backend jax --json check.json
      odenet check --depth 64 --gradient all --memory 16M
      odenet check --weights trained.safetensors --depth 32 --tolerance 1e-3
    """
    _flags.require_read(context, options["block"])
    plan = plan_of(options)
    plan.require_a_backend()
    plan.require_a_device()
    named = load_weights(weights) if weights is not None else None
    if memory is not None and context.get_parameter_source("planned") is ParameterSource.COMMANDLINE and not planned:
        raise click.UsageError("--no-plan with --memory, which is a limit for the plan: take one of them")
    if target is not None:
        require_target(target)  # found out now, rather than after the work
    screen, messages = screen_for(target), console(stderr=True)
    results = []
    limit = None if memory is None else in_bytes(memory)
    chosen = {"planned": planned or memory is not None, "memory": limit}
    for check in checks(plan, named, TOLERANCE if tolerance is None else tolerance, **chosen):
        results.append(check)
        for diagnosis_table in tables(check.diagnosis, str(check), weights=True) if check.diagnosis is not None else ():
            screen.print(diagnosis_table)
    bad = False
    for check in results:
        if check.diagnosis is not None:
            _print(screen, f"{check}: {check.diagnosis.verdict}\n")
        if isinstance(check.choice, InputError):
            bad = True
            _print(messages, f"{check}: {check.choice}")
        elif check.choice is not None:
            _print(screen, f"{check.choice}\n")
    for check in results:
        for examination in check.examinations:
            text = examination.trouble
            if text is None and tolerance is not None and not examination.meets(tolerance):
                now = examination.gradient_error is not None and examination.gradient_error <= tolerance
                number, when = (
                    (examination.later, " after a few steps of training") if now else (examination.gradient_error, "")
                )
                text = f"gradient error {error(number)}{when} is above {tolerance}"
            bad |= text is not None and examination.offered
            if text is not None:
                _print(messages, f"{check.backend} {check.solver.label} {examination.label} N={check.depth}: {text}")
    if target is not None:
        write_text(target, _json(plan, weights, results))
        say_written(target)
    context.exit(1 if bad else 0)


def _print(messages: Any, text: str) -> None:
    messages.print(text, markup=False, soft_wrap=True)


def _json(plan: GridPlan, weights: Path | None, results: Sequence[CellCheck]) -> str:
    whole = {
        "format": "odenet check 1",
        "plan": plan.to_json(),
        "weights": None if weights is None else str(weights),
        "machine": machine(plan.backends),
        "checks": [_row(check, examination) for check in results for examination in check.examinations],
        "plans": [
            {"backend": check.backend, "solver": check.solver.label, "depth": check.depth} | check.choice.to_dict()
            for check in results
            if check.choice is not None and not isinstance(check.choice, InputError)
        ],
        "diagnoses": [_diagnosis(check, check.diagnosis) for check in results if check.diagnosis is not None],
    }
    return json.dumps(plain(whole), indent=1, allow_nan=False) + "\n"


_NUMBERS = ("gradient_error", "later", "cosine_distance", "certificate", "estimate", "cost")


def _row(check: CellCheck, examination: Examination) -> dict[str, Any]:
    layers = [label for label in examination.by_layer if label not in (OUTSIDE, "shared")]
    record = examination.to_json()
    return {
        "backend": check.backend,
        "solver": check.solver.label,
        "gradient": examination.gradient.label,
        "depth": check.depth,
        "examined_on": examination.solver,
        "skipped": None if examination.offered else examination.trouble,
        "failed": examination.trouble if examination.offered else None,
        **{key: record[key] for key in _NUMBERS},
        "by_weight": record["by_weight"] or None,
        "by_layer": [examination.by_layer[label] for label in layers],
        "cosine_by_layer": [examination.cosine_by_layer[label] for label in layers],
    }


def _diagnosis(check: CellCheck, diagnosis: Diagnosis) -> dict[str, Any]:
    record = diagnosis.to_json()
    keys = ("reference", "dtype", "tolerance", "contraction", "smoothness", "training", "silent")
    keys += ("recommended", "verdict")
    place = {"backend": check.backend, "solver": check.solver.label, "depth": check.depth}
    return place | {key: record[key] for key in keys}
