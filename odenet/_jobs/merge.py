"""`odenet merge`: parts of a job, measured on their own, as one."""

from __future__ import annotations

import importlib
import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from odenet._errors import FileError, InputError
from odenet._files import require_writable
from odenet._jobs.cells.results import JSON, CellResults
from odenet._jobs.cells.resume import LARGEST
from odenet._jobs.cells.run import GO_ON, CellJob, keep_earlier, say_paths
from odenet._jobs.groups import WITH_SHORT_HELP
from odenet._jobs.output import FilePath
from odenet._report.machine import joined
from odenet._report.rows import to_json
from odenet._report.terminal import console

_NAMED = 5  # cells that are named of those that are left


JOBS = {
    "odenet compare 1": "odenet._jobs.compare.command:JOB",
    "odenet work-precision 1": "odenet._jobs.benchmark:JOB",
    "odenet train seeds 1": "odenet._jobs.train.seeds:JOB",
}
"""The `CellJob` of each format of results, as "module:name": it is imported when a folder has such results."""
REPRODUCE = "odenet._jobs.reproduce.command:merge"


@click.command("merge", short_help="Join the parts of a job that --shard divided.", context_settings=WITH_SHORT_HELP)
@click.argument("folders", nargs=-1, required=True, type=FilePath(file_okay=False))
@click.option("-o", "--out", type=FilePath(file_okay=False), required=True, help="Folder of the merged results.")
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
        keep_earlier(messages, out)
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


def merged(parts: Mapping[Path, CellResults[Any, Any]]) -> CellResults[Any, Any]:
    """All parts as one.

    A row that stands in several parts counts once. Of a cell that failed in one part and was measured in another the
    measurement counts.

    Args:
        parts: by the folder that each comes from; of one kind.

    Raises:
        InputError: parts with other settings; or two measurements of a cell, of which neither is known to be the right
            one.
    """
    (_, first), *others = parts.items()
    plan = first.plan
    for _, part in others:
        plan = part.plan.continued_from(plan)
    rows: dict[Hashable, tuple[Any, Path]] = {}
    for folder, part in parts.items():
        for row in part.rows:
            here = rows.get(row.key)
            if here is not None and here[0].ok and row.ok and to_json(here[0]) != to_json(row):
                raise conflict(row.key, here[1], folder)
            if here is None or _rank(row) > _rank(here[0]):
                rows[row.key] = row, folder
    whole = replace(
        first,
        plan=plan,
        machine=joined(part.machine for part in parts.values()),
        rows=(),
        seconds=sum(part.seconds for part in parts.values()),
        shard=None,
    )
    for row, _ in rows.values():
        whole = whole.add(row)
    if len(whole.rows) != len(rows):
        raise InputError(f"{len(rows) - len(whole.rows)} rows of cells that no plan has", "rows of the plans")
    return whole


def conflict(key: Any, one: Path, other: Path) -> InputError:
    """The error of a cell that was measured twice, with other numbers."""
    name = " ".join(map(str, key)) if isinstance(key, tuple) else key
    return InputError(
        f"{name} was measured in {one} and, with other numbers, in {other}",
        "each cell in one part, or the same row in both",
        "leave one of the folders out, or measure again with --shard",
    )


def _rank(row: Any) -> int:
    return 2 if row.ok else 1 if row.failed else 0
