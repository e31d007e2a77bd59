"""`odenet reproduce`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from rich.console import Console

from odenet._backend import registry as _registry
from odenet._errors import BackendUnavailableError, InputError
from odenet._files import require_writable
from odenet._jobs import flags as _flags
from odenet._jobs.cells.programs import keep_programs
from odenet._jobs.cells.resume import OwnFile, nothing_there
from odenet._jobs.cells.run import BEGIN, GO_ON, JobOptions, keep_earlier, measured, watch
from odenet._jobs.groups import WITH_SHORT_HELP
from odenet._jobs.output import FilePath
from odenet._jobs.reproduce.controls import thresholds
from odenet._jobs.reproduce.reproduction import SCALES, CurveCell, Point, Reproduction, Settings, reproductions
from odenet._jobs.reproduce.results import FILES, JSON, ReproductionPoints, merged, read
from odenet._names import lookup
from odenet._report.machine import joined, machine
from odenet._report.terminal import table


@click.command(
    "reproduce", short_help="Reproduce the figures of a paper, with verdicts.", context_settings=WITH_SHORT_HELP
)
@click.argument("names", nargs=-1, metavar="[NAME... | all]")
@_flags.backends("torch")
@click.option("--seeds", type=_flags.Whole(1), show_default="by reproduction", help="Number of seeds, from 0 on.")
@click.option(
    "--depth",
    type=_flags.Whole(32),
    show_default="by reproduction",
    help="Largest depth; depths double up to it.",
)
@click.option(
    "--scale",
    type=click.Choice(SCALES),
    show_default="reduced on a CPU, paper on other devices",
    help="Size: a short trial, minutes on a CPU, or the size of the paper.",
)
@click.option("--quick", is_flag=True, help="The same as --scale quick.")
@_flags.device()
@click.option(
    "--data",
    type=FilePath(str, file_okay=False),
    show_default="embedded digits",
    help="Images to train on: a folder that contains cifar-10-batches-py, or train and val.",
)
@_flags.job(
    "results/reproduce",
    "Folder of the report, with a folder for each name. Points of an earlier run are kept there as points.previous.*.",
    "Continue from the points in --out: only missing cells are run.",
)
@click.pass_context
def command(context: click.Context, job: JobOptions, names: tuple[str, ...], **options: Any) -> None:
    """Reproduce figures of Sander, Ablin and Peyre (NeurIPS 2022); without a NAME, list them.

    Each has a figure, its points and their quartiles over seeds as CSV, and verdicts. A verdict tests a claim of the
    paper by an interval over seeds; the same test is run on control data that must fail it and that must pass it. With
    too few seeds a verdict is undecided. report.html contains everything. Ctrl-C keeps the finished cells. Exit
    status: 0, 1 if a verdict fails, 130 after Ctrl-C.

    \b
    Examples:
      odenet reproduce
      odenet reproduce reconstruction --depth 32768
      odenet reproduce linear-limit distance --backend torch,jax --seeds 3
      odenet reproduce all --quick
      odenet reproduce depth-accuracy --data DIR --device cuda
    """
    backends = options.pop("backend")
    scale, quick = options.pop("scale"), options.pop("quick")
    if quick and scale not in (None, "quick"):
        raise InputError(f"--quick with --scale {scale}", "one of them")
    if scale is None:
        scale = "quick" if quick else "reduced" if options["device"] == "cpu" else "paper"
    if not names or names == ("list",):
        typed = [name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
        if typed and not names:
            raise click.UsageError("which reproduction? Name some, or all; `odenet reproduce` lists them")
        rows = [(reproduction.name, reproduction.claim) for reproduction in reproductions().values()]
        job.screen.print(table("Reproductions", ("name", "what the paper says"), rows))
        return
    every = reproductions()
    named = tuple(lookup("reproduction", name, every) for name in names if name != "all")
    chosen = tuple(every.values()) if "all" in names else named
    choices = Settings(backends, scale=scale, **options)
    for name in backends:
        if not _registry.entry(name).available:
            entry = _registry.entry(name)
            raise BackendUnavailableError(f"backend {name} is not available", "an installed backend", entry.install)
    keep_programs()
    context.exit(reproduce(chosen, choices, job))


def reproduce(chosen: tuple[Reproduction, ...], choices: Settings, options: JobOptions) -> int:
    """Run reproductions and show their verdicts.

    Args:
        chosen: which.
        choices: how.
        options: of the job; a shard is a part of each of them, and is not judged.

    Returns:
        the exit status: 0; 1 if a verdict fails, its test is blind, or cells are left; 130 if the run was interrupted.

    Raises:
        FileError: `out` cannot be written to, holds points that cannot be resumed, or has none to resume.
        InputError: the points there have other choices.
    """
    out, resume, shard, messages = options.out, options.resume, options.shard, options.messages
    if resume and not any((out / reproduction.name / JSON).exists() for reproduction in chosen):
        raise nothing_there(out, JSON, "no folder of these reproductions")
    require_writable(out)
    passed = True
    here = machine(choices.backends)
    if choices.data is not None:
        from odenet._jobs.reproduce.training import chosen as chosen_images

        here = {**here, "images": chosen_images(choices).origin}
        messages.print(f"images: {here['images']}", markup=False)
    done: list[ReproductionPoints] = []
    for reproduction in dict.fromkeys(chosen):
        folder = out / reproduction.name
        earlier = read(folder) if resume else None
        fresh = ReproductionPoints(
            reproduction.name, choices, here, thresholds=thresholds(reproduction.name), shard=shard
        )
        results = fresh if earlier is None else earlier.resumed(choices, here, shard)
        own = OwnFile(folder / JSON)
        try:
            for grown in _run(reproduction, results, options):
                begun, results = bool(results.points), grown.in_order(reproduction)
                own.write(partial(_write, results, folder, messages, not begun))
        except KeyboardInterrupt:  # no verdict: an order of half the depths is none
            saved = results.points or len(done)
            messages.print(f"interrupted; {GO_ON if saved else BEGIN}", markup=False)
            return 130
        done.append(results)
        from odenet._jobs.reproduce.report import judge  # matplotlib takes a second

        if not judge(done, out, options.screen, messages):
            passed = False
    return 0 if passed else 1


def _write(results: ReproductionPoints, folder: Path, messages: Console, first: bool) -> None:
    """Write points; before the first of a new run, rename those of an earlier one."""
    if first:
        keep_earlier(messages, folder, FILES)
    results.write(folder)


def merge(folders: Sequence[Path], out: Path, screen: Console, messages: Console) -> int:
    """Join the points of every reproduction in these folders, and judge those that are whole.

    Returns:
        the exit status: 0, or 1 if a verdict fails or cells are left.

    Raises:
        FileError: points that cannot be read, or an `out` that cannot be written to.
        InputError: points of other choices, or of one cell with other numbers.
    """
    from odenet._jobs.reproduce.report import judge

    parts: dict[str, dict[Path, ReproductionPoints]] = {}
    for folder in folders:
        for path in sorted(folder.glob(f"*/{JSON}")):
            points = read(path.parent)
            if points is not None:
                parts.setdefault(lookup("reproduction", points.name, reproductions()).name, {})[folder] = points
    every = {name: merged(shards) for name, shards in parts.items()}
    require_writable(out)
    passed, done = True, []
    for name, points in every.items():
        if out.resolve() not in {folder.resolve() for folder in folders}:
            keep_earlier(messages, out / name, FILES)
        points.write(out / name)
        done.append(points)
        passed &= judge(done, out, screen, messages)
    return 0 if passed else 1


def _run(reproduction: Reproduction, results: ReproductionPoints, options: JobOptions) -> Iterator[ReproductionPoints]:
    """The results after each missing cell."""
    cells = results.todo(reproduction)
    plan = _Cells(reproduction.name, results.choices)
    last = time.perf_counter()
    with (
        measured(points_of, plan, cells, options) as (groups, machines),
        watch(options.messages, cells) as progress,
    ):
        for points in groups:
            now = time.perf_counter()
            results, last = results.add(points, now - last), now
            if machines:
                results = replace(results, machine=joined([results.machine, *machines]))
            yield results
            progress.finished(points[0].cell, f"{points[0].quantity} {points[0].value:.2e}")
    yield results


@dataclass(frozen=True)
class _Cells:
    """What a worker needs to know of a reproduction."""

    name: str
    choices: Settings

    @property
    def backends(self) -> tuple[str, ...]:
        return self.choices.backends

    def units(self, cells: Sequence[CurveCell]) -> list[tuple[CurveCell, ...]]:
        return [(cell,) for cell in cells]


def points_of(plan: _Cells, cells: Sequence[CurveCell]) -> Iterator[tuple[Point, ...]]:
    """The points of each cell."""
    reproduction = reproductions()[plan.name]
    for cell in cells:
        yield reproduction.measure(cell, plan.choices)
