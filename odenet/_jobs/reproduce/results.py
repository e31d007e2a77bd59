"""Points on disk: points.csv and summary.csv for people, points.json to go on from; and parts of them as one."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from odenet._errors import InputError
from odenet._files import write_text
from odenet._jobs.cells import resume as _resume
from odenet._jobs.cells.plan import Shard
from odenet._jobs.reproduce.reproduction import CurveCell, Point, Reproduction, Settings, reproductions
from odenet._report.machine import joined
from odenet._report.rows import as_csv, column, from_json, to_json

FORMAT = "odenet reproduce 2"
FILES = POINTS, SUMMARY, JSON = "points.csv", "summary.csv", "points.json"


@dataclass(frozen=True)
class Quartiles:
    """A quantity over seeds: a row of summary.csv."""

    backend: str = column("who solved")
    curve: str = column("which network or method")
    quantity: str = column("what the values are")
    depth: int = column("steps N")
    step: int | None = column("step of training")
    layer: int | None = column("layer, from 0")
    seeds: int = column("how many values")
    lower_quartile: float = column("of the values over seeds")
    median: float = column("of the values over seeds")
    upper_quartile: float = column("of the values over seeds")


@dataclass(frozen=True)
class ReproductionPoints:
    """What is done of a reproduction.

    Args:
        name: of the reproduction.
        choices: what was chosen.
        machine: as `odenet._report.machine.machine` tells it.
        seconds: that the cells took.
        points: of the finished cells, each cell's together.
        thresholds: of the verdicts, as they stood when the run began; None of results that do not tell.
        shard: the part of the cells that is this run's; None for all.
    """

    name: str
    choices: Settings
    machine: Mapping[str, str]
    seconds: float = 0.0
    points: tuple[Point, ...] = ()
    thresholds: Mapping[str, float] | None = None
    shard: Shard | None = None

    def todo(self, reproduction: Reproduction) -> tuple[CurveCell, ...]:
        """Cells without points, of this run's part."""
        done = {point.cell for point in self.points}
        cells = reproduction.cells(self.choices)
        return tuple(cell for cell in (self.shard.part(cells) if self.shard else cells) if cell not in done)

    @property
    def seeds(self) -> int:
        """How many there are points of."""
        return len({point.seed for point in self.points})

    def add(self, points: Iterable[Point], seconds: float) -> ReproductionPoints:
        """With what one more cell found."""
        return replace(self, points=(*self.points, *points), seconds=self.seconds + seconds)

    def in_order(self, reproduction: Reproduction) -> ReproductionPoints:
        """With points in the order of the cells, whoever was the first to be done."""
        place = {cell: number for number, cell in enumerate(reproduction.cells(self.choices))}
        points = sorted(self.points, key=lambda point: place.get(point.cell, len(place)))
        return replace(self, points=tuple(points))

    def resumed(self, choices: Settings, machine: Mapping[str, str], shard: Shard | None = None) -> ReproductionPoints:
        """These as the beginning of a run with `choices` too: seeds and backends may be added, but not in a shard.

        What was measured is never dropped: of fewer seeds or other backends than before, both are the run's.

        Raises:
            InputError: another scale, depth, device or other images, of which the points would not be comparable.
        """
        fixed = ("scale", "depth", "device", "data")
        for name in (*fixed, "seeds", "backends") if shard else fixed:
            was, now = getattr(self.choices, name), getattr(choices, name)
            if was != now:
                raise InputError(
                    f"the {self.name} to resume was run with {name}={was}, and this has {now}", f"{name}={was}"
                )
        if shard != self.shard:
            raise InputError(f"shard {shard} of a run that was of shard {self.shard}", "the same part, or an own --out")
        both, seeds = (self.choices, choices), choices.seeds
        if self.choices.seeds != seeds:
            cells = reproductions()[self.name].cells  # which know how many seeds stand for None
            seeds = max(len({cell.seed for cell in cells(one)}) for one in both)
        backends = tuple(dict.fromkeys(name for one in both for name in one.backends))
        grown = replace(choices, backends=backends, seeds=seeds)
        return replace(self, choices=grown, machine={**self.machine, **machine})

    def write(self, folder: Path) -> None:
        """All three files, each atomically.

        Raises:
            FileError: the folder cannot be written to.
        """
        plain = {
            "name": self.name,
            "choices": dataclasses.asdict(self.choices),
            "machine": dict(self.machine),
            "seconds": self.seconds,
            "thresholds": None if self.thresholds is None else dict(self.thresholds),
            "shard": None if self.shard is None else str(self.shard),
            "points": [to_json(point) for point in self.points],
        }
        _resume.write(folder / JSON, FORMAT, plain, indent=None)
        write_text(folder / POINTS, as_csv(Point, self.points))
        write_text(folder / SUMMARY, as_csv(Quartiles, quartiles(self.points)))


def read(folder: Path) -> ReproductionPoints | None:
    """The results in a folder; None where there are none.

    Raises:
        FileError: a points.json that this version of odenet did not write.
    """
    return _resume.read(folder / JSON, FORMAT, "odenet reproduce", _built)


def _built(plain: Mapping[str, Any]) -> ReproductionPoints:
    choices = Settings(**{**plain["choices"], "backends": tuple(plain["choices"]["backends"])})
    points = tuple(from_json(Point, point) for point in plain["points"])
    # results from before thresholds were recorded go on, and the report says so
    recorded = plain.get("thresholds")
    shard = None if plain.get("shard") is None else Shard.read(plain["shard"])
    seconds = float(plain["seconds"])
    return ReproductionPoints(plain["name"], choices, plain["machine"], seconds, points, recorded, shard)


def merged(parts: Mapping[Path, ReproductionPoints]) -> ReproductionPoints:
    """The points of all parts of one reproduction, each cell's once.

    Raises:
        InputError: see `merge`.
    """
    (begun, first), *others = parts.items()
    by_cell: dict[CurveCell, tuple[list[Point], Path]] = {}
    for folder, part in ((begun, first), *others):
        changed = _resume.changes(vars(first.choices), vars(part.choices))
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


def quartiles(points: Sequence[Point]) -> list[Quartiles]:
    """Over the seeds of each backend, curve, quantity, depth, step and layer, in the order of the points."""
    groups: dict[tuple[Any, ...], list[float]] = {}
    for point in points:
        key = (point.backend, point.curve, point.quantity, point.depth, point.step, point.layer)
        groups.setdefault(key, []).append(point.value)
    rows = []
    for key, values in groups.items():
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if values[1:] else values * 3
        rows.append(Quartiles(*key, seeds=len(values), lower_quartile=low, median=middle, upper_quartile=high))
    return rows
