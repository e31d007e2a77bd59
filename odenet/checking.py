"""`odenet check`: every gradient method of a named network against exact backprop, by weight and by layer."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.table import Table

from odenet import _registry
from odenet._backend import Evaluation
from odenet._files import write_text
from odenet._tables import console, table
from odenet._weights import load_weights
from odenet.compare.difference import cosine_distance, flat, relative
from odenet.compare.flags import grid_flags, network_flags, plan_of
from odenet.compare.grid import Cell, Plan
from odenet.compare.machine import machine
from odenet.compare.measure import exact
from odenet.compare.results import require_writable
from odenet.compare.units import error
from odenet.data.digits import batch

_MOST = 16  # layers shown in a table; the JSON file has all


@dataclass(frozen=True)
class Check:
    """One gradient method against exact backprop in float64.

    Args:
        backend, solver, gradient, depth: what was checked.
        skipped: why it was not: the backend does not offer it, or is not installed; else None.
        gradient_error: `||g - r|| / ||r||` of the whole gradient.
        cosine_distance: 1 - cos of the angle between g and r.
        certificate: the reconstruction residual, where the method has one.
        by_weight: the relative error of each weight's gradient by name.
        by_layer: the relative error of the blocks' gradient in each layer (or node) along depth; empty for shared
            weights.
    """

    backend: str
    solver: str
    gradient: str
    depth: int
    skipped: str | None = None
    gradient_error: float | None = None
    cosine_distance: float | None = None
    certificate: float | None = None
    by_weight: Mapping[str, float] | None = None
    by_layer: Sequence[float] = ()

    def within(self, tolerance: float) -> bool:
        """Whether the whole gradient's relative error is a number that is not above `tolerance`."""
        return self.skipped is not None or (self.gradient_error is not None and self.gradient_error <= tolerance)


def checks(plan: Plan, weights: Mapping[str, np.ndarray] | None = None) -> Iterator[Check]:
    """One check a cell of the plan.

    Args:
        plan: what to check, and on what network.
        weights: named arrays; None for the plan's own random ones.

    Raises:
        InputError: weights that are not those of the plan's network.
        OdenetError: whatever a backend says about a cell that it offers.
    """
    inputs, labels = batch(plan.batch, plan.seed)
    references: dict[tuple[str, int], Evaluation] = {}
    for cell in plan.cells():
        names: dict[str, Any] = dict(zip(("backend", "solver", "gradient", "depth"), cell.key, strict=True))
        entry = _registry.entry(cell.backend)
        name = plan.reference(cell.solver)
        if not entry.offers(cell.solver, cell.gradient):
            yield Check(**names, skipped="not offered")
            continue
        if not entry.available or name is None:
            missing = entry if not entry.available else None
            yield Check(**names, skipped=f"not available: {missing.install}" if missing else "no reference")
            continue
        spec = plan.spec(cell.solver, cell.depth)
        named = dict(weights) if weights is not None else spec.init(plan.seed, plan.start)
        spec.check(named)
        place = cell.solver.label, cell.depth
        if place not in references:
            references[place] = exact(name, spec, named, cell.solver, plan.device, inputs, labels)
        found = _evaluate(cell, plan, named, inputs, labels)
        yield _compare(names, found, references[place], stacked=spec.along != "shared")


def _evaluate(
    cell: Cell, plan: Plan, weights: dict[str, np.ndarray], inputs: np.ndarray, labels: np.ndarray
) -> Evaluation:
    backend, spec = _registry.backend(cell.backend), plan.spec(cell.solver, cell.depth)
    choices: dict[str, Any] = {"dtype": plan.dtype, "device": plan.device}
    with backend.prepare(plan.dtype, plan.device):
        model = backend.build(spec, weights, solver=cell.solver, gradient=cell.gradient, **choices)
        return backend.evaluate(model, inputs, labels)


def _compare(names: dict[str, Any], found: Evaluation, reference: Evaluation, stacked: bool) -> Check:
    mine, true = found.gradients, reference.gradients
    blocks = sorted(name for name in true if name.startswith("block.")) if stacked else []
    layers = len(true[blocks[0]]) if blocks else 0
    return Check(
        **names,
        gradient_error=relative(flat(mine), flat(true)),
        cosine_distance=cosine_distance(flat(mine), flat(true)),
        certificate=found.certificate,
        by_weight={name: relative(np.asarray(mine[name], np.float64), true[name]) for name in true},
        by_layer=[
            relative(flat({name: mine[name][n] for name in blocks}), flat({name: true[name][n] for name in blocks}))
            for n in range(layers)
        ],
    )


def tables(found: Sequence[Check]) -> list[Table]:
    """Two tables a backend, solver and depth: by weight, and by layer; gradient methods are the columns."""
    made = []
    groups: dict[tuple[str, str, int], list[Check]] = {}
    for check in found:
        if check.skipped is None:
            groups.setdefault((check.backend, check.solver, check.depth), []).append(check)
    for (backend, solver, depth), mine in groups.items():
        heads = [f">{check.gradient}" for check in mine]
        where = f"{backend} {solver} N={depth}"
        whole = [
            ("whole gradient", *(error(check.gradient_error) for check in mine)),
            ("cosine distance", *(error(check.cosine_distance) for check in mine)),
            ("certificate", *(error(check.certificate) for check in mine)),
        ]
        names = mine[0].by_weight or {}
        weights = [(name, *(error((check.by_weight or {}).get(name)) for check in mine)) for name in names]
        title = f"{where}: relative error of the gradient against exact backprop in float64, by weight"
        made.append(table(title, ["weight", *heads], [*whole, *weights]))
        if layers := len(mine[0].by_layer):
            rows = [(str(n), *(error(check.by_layer[n]) for check in mine)) for n in shown(layers)]
            caption = f"{len(rows)} of {layers} layers; --json has all" if len(rows) < layers else ""
            made.append(table(f"{where}: by layer along depth", [">layer", *heads], rows, caption))
    return made


def shown(layers: int) -> list[int]:
    """Which layers a table shows: all, or evenly spread ones with the first and the last."""
    count = min(layers, _MOST)
    return sorted({round(k * (layers - 1) / max(count - 1, 1)) for k in range(count)})


@click.command("check", context_settings={"help_option_names": ["-h", "--help"]})
@grid_flags(depth="16", solver="euler")
@network_flags
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    help="Named weights (.safetensors or .npz) of the network; --start and --seed make random ones.",
)
@click.option(
    "--tolerance", type=click.FloatRange(min=0), help="Exit with 1 if a whole gradient's relative error is above this."
)
@click.option("--json", "target", type=click.Path(path_type=Path), help="Write everything to this file.")
@click.pass_context
def command(
    context: click.Context, weights: Path | None, tolerance: float | None, target: Path | None, **options: Any
) -> None:
    """Check the gradient methods of a network against exact backprop in float64, by weight and by layer.

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
        require_writable(target.parent)  # found out now, rather than after the work
    found = list(checks(plan, named))
    screen, messages = console(), console(stderr=True)
    for made in tables(found):
        screen.print(made)
    for check in found:
        if check.skipped is not None:
            _print(messages, f"{_where(check)}: {check.skipped}")
    if target is not None:
        write_text(target, _json(plan, weights, found))
        _print(messages, f"wrote {target}")
    bad = [check for check in found if tolerance is not None and not check.within(tolerance)]
    for check in bad:
        _print(messages, f"{_where(check)}: gradient error {error(check.gradient_error)} is above {tolerance}")
    context.exit(1 if bad else 0)


def _print(messages: Any, text: str) -> None:
    messages.print(text, markup=False, soft_wrap=True)


def _where(check: Check) -> str:
    return f"{check.backend} {check.solver} {check.gradient} N={check.depth}"


def _json(plan: Plan, weights: Path | None, found: Iterable[Check]) -> str:
    whole = {
        "format": "odenet check 1",
        "plan": plan.to_json(),
        "weights": None if weights is None else str(weights),
        "machine": machine(plan.backends),
        "checks": [_plain(asdict(check)) for check in found],
    }
    return json.dumps(whole, indent=1, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    """JSON has no infinity and no NaN: they become strings."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
