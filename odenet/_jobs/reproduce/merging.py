"""Parts of reproductions, measured on their own, as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from odenet._errors import InputError
from odenet._files import require_writable
from odenet._jobs.cells.resume import changes
from odenet._jobs.cells.run import keep_earlier
from odenet._jobs.reproduce.command import judge
from odenet._jobs.reproduce.reproduction import CurveCell, Point, reproductions
from odenet._jobs.reproduce.results import FILES, JSON, ReproductionPoints, read
from odenet._names import lookup
from odenet._report.machine import joined


def merge(folders: Sequence[Path], out: Path, screen: Console, messages: Console) -> int:
    """Join the points of every reproduction in these folders, and judge those that are whole.

    Returns:
        the exit status: 0, or 1 if a verdict fails or cells are left.

    Raises:
        FileError: points that cannot be read, or an `out` that cannot be written to.
        InputError: points of other choices, or of one cell with other numbers.
    """
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


def merged(parts: Mapping[Path, ReproductionPoints]) -> ReproductionPoints:
    """The points of all parts of one reproduction, each cell's once.

    Raises:
        InputError: see `merge`.
    """
    (begun, first), *others = parts.items()
    by_cell: dict[CurveCell, tuple[list[Point], Path]] = {}
    for folder, part in ((begun, first), *others):
        changed = changes(vars(first.choices), vars(part.choices))
        if changed:
            raise InputError(f"{first.name} in {folder} has other choices than in {begun}: {'; '.join(changed)}", "one")
        if part.thresholds != first.thresholds:
            raise InputError(
                f"{first.name} in {folder} was begun with other thresholds of its verdicts than in {begun}",
                "parts of one run, by one version",
                "measure the part again by the version of the others",
            )
        cells: dict[CurveCell, list[Point]] = {}
        for point in part.points:
            cells.setdefault(point.cell, []).append(point)
        for cell, points in cells.items():
            here = by_cell.setdefault(cell, (points, folder))
            if here[0] != points:
                raise InputError(
                    f"{first.name}: {cell} was measured in {here[1]} and, with other numbers, in {folder}",
                    "each cell in one part, or the same points in both",
                    "leave one of the folders out",
                )
    whole = replace(
        first,
        points=tuple(point for points, _ in by_cell.values() for point in points),
        machine=joined(part.machine for part in parts.values()),
        seconds=sum(part.seconds for part in parts.values()),
        shard=None,
    )
    return whole.in_order(reproductions()[first.name])
