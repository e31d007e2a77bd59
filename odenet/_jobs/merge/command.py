"""`odenet merge`."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from odenet._errors import FileError, InputError
from odenet._files import require_writable
from odenet._jobs.cells.results import JSON, set_aside
from odenet._jobs.cells.resume import LARGEST
from odenet._jobs.cells.run import GO_ON, CellJob, say_paths
from odenet._jobs.merge.rows import merged
from odenet._report.terminal import console

_NAMED = 5  # cells that are named of those that are left


JOBS = {
    "odenet compare 1": "odenet._jobs.compare.command:JOB",
    "odenet work-precision 1": "odenet._jobs.benchmark.command:JOB",
    "odenet train seeds 1": "odenet._jobs.train.seeds:JOB",
}
"""The `CellJob` of each format of results, as "module:name": it is imported when a folder has such results."""
REPRODUCE = "odenet._jobs.reproduce.merging:merge"


@click.command("merge", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path, file_okay=False))
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Folder of the merged results.")
@click.pass_context
def command(context: click.Context, folders: tuple[Path, ...], out: Path) -> None:
    """Join the parts of a job that --shard divided: of compare, benchmark, reproduce, or train --seeds.

    The merged results contain every row once. Parts with different settings are refused, and so are two measurements of
    one cell. Missing cells are named; the job's own command runs them, with --resume and the --out of the merged
    results. Exit status: 0, or 1 if cells are missing or failed.

    \b
    Examples:
      odenet compare --shard 1/2 --out part1
      odenet compare --shard 2/2 --out part2
      odenet merge part1 part2 -o results/compare
    """
    context.exit(merge(tuple(dict.fromkeys(folders)), out, console(), console(stderr=True)))


def merge(folders: Sequence[Path], out: Path, screen: Console, messages: Console) -> int:
    """Join results in folders, show them, and write them with their report.

    Returns:
        the exit status.

    Raises:
        FileError: a folder without results, or an `out` that cannot be written to.
        InputError: results that do not belong together.
    """
    kinds = {folder: _kind(folder) for folder in folders}
    (first, kind), *others = kinds.items()
    for folder, other in others:
        if other != kind:
            raise InputError(f"{folder} has results of {other}, and {first} of {kind}", "results of one job")
    if kind == "odenet reproduce":
        return _named(REPRODUCE)(folders, out, screen, messages)
    job: CellJob[Any] = _named(JOBS[kind])
    parts = {folder: job.results.read(folder) for folder in folders}
    whole = merged(parts)
    require_writable(out)
    if job.carry is not None:
        whole = job.carry(whole, parts, out)
    if out.resolve() not in {folder.resolve() for folder in folders}:
        say_paths(messages, "kept the earlier results as", set_aside(out))
    whole.write(out)
    job.show(whole, screen)
    say_paths(messages, f"{len(whole.rows)} rows of {len(folders)} folders; wrote", job.write(whole, out))
    missing = whole.left()
    if missing:
        some = ", ".join(map(str, missing[:_NAMED])) + (", ..." if len(missing) > _NAMED else "")
        messages.print(f"{len(missing)} cells are left ({some}); {GO_ON} --out {out}", markup=False)
    return 1 if missing or any(row.failed for row in whole.rows) or not any(row.ok for row in whole.rows) else 0


def _kind(folder: Path) -> str:
    """Which job left results here, by the format that they name."""
    path = folder / JSON
    if path.is_file():
        try:
            if path.stat().st_size > LARGEST:
                raise ValueError(f"it has more than {LARGEST} bytes")
            plain = json.loads(path.read_text(encoding="utf-8"))
            form = plain.get("format") if isinstance(plain, dict) else None
        except (OSError, ValueError, RecursionError) as error:
            raise FileError(f"{path} cannot be read ({error})", "a results.json that odenet wrote") from error
        if form not in JOBS:
            raise FileError(f"{path} is in the format {form!r}", f"one of {', '.join(JOBS)}")
        return form
    if any(folder.glob("*/points.json")):
        return "odenet reproduce"
    raise FileError(
        f"{folder} has no results.json, and no folders of reproductions",
        "folders that odenet compare, benchmark, reproduce or train --seeds wrote",
    )


def _named(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
