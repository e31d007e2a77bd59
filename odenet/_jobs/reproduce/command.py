"""`odenet reproduce`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from odenet._backend import registry as _registry
from odenet._errors import BackendUnavailableError, InputError
from odenet._files import require_writable
from odenet._jobs import flags as _flags
from odenet._jobs.cells.programs import keep_programs
from odenet._jobs.cells.progress import watch
from odenet._jobs.cells.run import GO_ON
from odenet._jobs.reproduce.reproduction import SCALES, Choices, Reproduction, reproductions
from odenet._jobs.reproduce.results import ReproductionPoints, read
from odenet._jobs.reproduce.thresholds import thresholds
from odenet._names import lookup
from odenet._report.machine import machine
from odenet._report.terminal import console, table


@click.command("reproduce", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", nargs=-1, metavar="[NAME... | all]")
@_flags.backends("torch")
@click.option("--seeds", type=_flags.Whole(1), show_default="of each", help="How many seeds, from 0.")
@click.option(
    "--depth",
    type=_flags.Whole(32),
    show_default="of each",
    help="Largest depth; each goes up to it by doubling.",
)
@click.option(
    "--scale",
    type=click.Choice(SCALES),
    show_default="reduced on a CPU, paper on other devices",
    help="How large: for a look, for minutes on a CPU, or as in the paper.",
)
@click.option("--quick", is_flag=True, help="The same as --scale quick.")
@_flags.device()
@click.option(
    "--data",
    type=click.Path(file_okay=False),
    show_default="embedded digits",
    help="Images to train on: where cifar-10-batches-py, or train and val, are.",
)
@_flags.out("results/reproduce", "Folder of the report, with a folder for each name.")
@_flags.resume("Go on from the points in --out: only missing cells are run.")
@click.pass_context
def command(context: click.Context, names: tuple[str, ...], out: Path, resume: bool, **options: Any) -> None:
    """Reproduce figures of Sander, Ablin and Peyre (NeurIPS 2022); without a NAME, list them.

    Each has a figure, its points and their quartiles over seeds as CSV, and verdicts: the paper's claims held against
    the numbers, with an interval over seeds, and with the same test on data that must fail it and on data that must
    not. What too few seeds leave undecided is said to be. All of it is in one page, report.html. Ctrl-C keeps what is
    done. Exit status: 0, 1 if a verdict fails, 130 after Ctrl-C.

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
        rows = [(each.name, each.claim) for each in reproductions().values()]
        console().print(table("Reproductions", ("name", "what the paper says"), rows))
        return
    every = reproductions()
    chosen = tuple(every.values()) if "all" in names else tuple(lookup("reproduction", name, every) for name in names)
    choices = Choices(backends, scale=scale, **options)
    for name in backends:
        if not _registry.entry(name).available:
            entry = _registry.entry(name)
            raise BackendUnavailableError(f"backend {name} is not available", "an installed backend", entry.install)
    keep_programs()
    context.exit(reproduce(chosen, choices, out, resume, console(), console(stderr=True)))


def reproduce(
    chosen: tuple[Reproduction, ...], choices: Choices, out: Path, resume: bool, screen: Console, messages: Console
) -> int:
    """Run reproductions and show their verdicts.

    Args:
        chosen: which.
        choices: how.
        out: folder of the report.
        resume: whether to go on from what is there.
        screen: for the verdicts.
        messages: for progress and where the files are.

    Returns:
        the exit status: 0; 1 if a verdict fails or its test is blind; 130 if the run was interrupted.

    Raises:
        FileError: `out` cannot be written to, or holds points that cannot be resumed.
        InputError: the points there have other choices.
    """
    require_writable(out)
    here = machine(choices.backends)
    if choices.data is not None:
        from odenet._jobs.reproduce.training import chosen as chosen_images

        here = {**here, "images": chosen_images(choices).origin}
        messages.print(f"images: {here['images']}", markup=False)
    done: list[Finished] = []
    for each in dict.fromkeys(chosen):
        folder = out / each.name
        earlier = read(folder) if resume else None
        if earlier is None:
            results = ReproductionPoints(each.name, choices, here, thresholds=thresholds(each.name))
        else:
            results = earlier.resumed(choices, here)
        try:
            for grown in _run(each, results, messages):
                results = grown
                results.write(folder)
        except KeyboardInterrupt:  # no verdict: an order of half the depths is none
            messages.print(f"interrupted; {GO_ON}", markup=False)
            return 130
        from odenet._jobs.reproduce.report import (  # matplotlib takes a second
            Finished,
            verdict_table,
            write_one,
            write_page,
        )

        done.append(Finished(each, results))
        screen.print(verdict_table(done[-1]))
        for change in done[-1].changes:
            screen.print(change, markup=False)
        paths = write_one(done[-1], folder)
        page = write_page(done, here, out)  # after each, so that a long run can be read as it goes
        messages.print(f"wrote {paths[0]}, {page}", markup=False)
    from odenet._jobs.reproduce.report import tally

    screen.print(tally([verdict for each in done for verdict in each.every]), markup=False)
    return 1 if any(each.failed for each in done) else 0


def _run(reproduction: Reproduction, results: ReproductionPoints, messages: Console) -> Iterator[ReproductionPoints]:
    """The results after each missing cell."""
    cells = results.todo(reproduction)
    with watch(messages, cells) as progress:
        for cell in cells:
            start = time.perf_counter()
            points = reproduction.measure(cell, results.choices)
            results = results.add(points, time.perf_counter() - start)
            yield results
            progress.finished(f"{points[0].quantity} {points[0].value:.2e}")
    yield results
