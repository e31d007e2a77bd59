"""The results of a job over cells on disk: results.csv for people and spreadsheets, results.json to go on from."""

from __future__ import annotations

import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

from odenet._backend.entry import BackendEntry
from odenet._check import instance, path, within
from odenet._errors import InputError
from odenet._files import rename, write_text
from odenet._gradients.record import Gradient
from odenet._jobs.cells import resume as _resume
from odenet._jobs.cells.plan import DTYPES, CellPlan, KeyedCell, Shard
from odenet._names import choice
from odenet._report.machine import SEVERAL
from odenet._report.rows import as_csv, check_columns, columns, from_json, to_json
from odenet._solvers.names import AnySolver

OK = "ok"
NOT_OFFERED = "not offered"
NOT_AVAILABLE = "not available"


def not_run(entry: BackendEntry, solver: AnySolver, gradient: Gradient, *, adaptive: bool = False) -> str | None:
    """Why a backend cannot measure a cell, as the status of its row; None where it can be tried."""
    if not entry.offers(solver, gradient, adaptive=adaptive):
        return f"{NOT_OFFERED} by {entry.name}"
    if not entry.available:
        return f"{NOT_AVAILABLE}: {entry.framework} is not installed; {entry.install}"
    return None


class CellRow(ABC):
    """What one cell gave. Each job has its own, a frozen dataclass whose fields are the columns of results.csv."""

    status: str

    def __post_init__(self) -> None:
        check_columns(self)
        dtype = getattr(self, "dtype", "")  # which not every job has
        if dtype:
            choice("number type", dtype, DTYPES)

    @property
    @abstractmethod
    def key(self) -> Hashable:
        """The cell that the row belongs to, as names."""

    @property
    def ok(self) -> bool:
        """Whether the cell was measured."""
        return self.status == OK

    @property
    def skipped(self) -> bool:
        """Whether there was nothing to run."""
        return self.status.startswith((NOT_OFFERED, NOT_AVAILABLE))

    @property
    def failed(self) -> bool:
        """Whether the cell was tried and ended with an error (a solve that was given up is no error)."""
        return self.status != OK and not self.skipped


CSV, JSON = "results.csv", "results.json"
AnyPlan = TypeVar("AnyPlan", bound=CellPlan)
AnyRow = TypeVar("AnyRow", bound=CellRow)


@dataclass(frozen=True)
class CellResults(ABC, Generic[AnyPlan, AnyRow]):
    """What is done of a plan. Each job has its own, which says what its plan and rows are.

    Args:
        plan: what is to be done.
        machine: as `odenet._report.machine.machine` tells it.
        rows: one a finished cell.
        seconds: that the job took so far, by the clock: cells that run side by side are counted once.
        shard: the part of the plan that is this job's; None for all of it.

    Raises:
        InputError: one of them is of another type.
    """

    plan: AnyPlan
    machine: Mapping[str, str]
    rows: tuple[AnyRow, ...] = ()
    seconds: float = 0.0
    shard: Shard | None = None

    form: ClassVar[str]
    """The format, as results.json names it."""
    command: ClassVar[str]
    """The command that writes the file."""
    plan_kind: ClassVar[type[CellPlan]]
    row_kind: ClassVar[type[CellRow]]
    compared: ClassVar[str] = "times"
    """The measurements that depend on the machine, in words."""

    def __post_init__(self) -> None:
        instance("plan", self.plan, self.plan_kind, "the plan of the rows, as that of other results")
        instance("machine", self.machine, Mapping, "a dictionary that describes it")
        instance("rows", self.rows, tuple, "a tuple of rows")
        for row in self.rows:
            instance("row", row, self.row_kind, f"a {self.row_kind.__name__}, as in the rows of other results")
        within("seconds", self.seconds, 0.0, least=True)
        instance("shard", self.shard, (Shard, type(None)), "a Shard, or None")

    def cells(self) -> tuple[KeyedCell, ...]:
        """Those of the plan that are this job's, in the plan's order."""
        cells = self.plan.cells()
        if self.shard is None:
            return cells
        return tuple(itertools.chain.from_iterable(self.shard.part(self.plan.units(cells))))

    def todo(self) -> tuple[KeyedCell, ...]:
        """Cells without a row, and those that failed, in the plan's order."""
        done = {row.key for row in self.rows if not row.failed}
        return tuple(cell for cell in self.cells() if cell.key not in done)

    def left(self) -> tuple[KeyedCell, ...]:
        """This job's cells that have no row yet."""
        done = {row.key for row in self.rows}
        return tuple(cell for cell in self.cells() if cell.key not in done)

    def add(self, row: AnyRow, seconds: float = 0.0) -> Self:
        """With this row in its place in the plan's order, and the seconds that went by since the last one."""
        by_key = {earlier.key: earlier for earlier in self.rows} | {row.key: row}
        rows = tuple(by_key[cell.key] for cell in self.plan.cells() if cell.key in by_key)
        return replace(self, rows=rows, seconds=self.seconds + seconds)

    def growing(self, rows: Iterable[AnyRow]) -> Iterator[tuple[AnyRow, Self]]:
        """Each row as it is measured, and these results with all rows so far and the time that they took."""
        results, last = self, time.perf_counter()
        for row in rows:
            now = time.perf_counter()
            results, last = results.add(row, now - last), now
            yield row, results

    def resumed(self, plan: AnyPlan, machine: Mapping[str, str], shard: Shard | None = None) -> Self:
        """These results as the beginning of `plan` on `machine`.

        Raises:
            InputError: other settings, or another machine, whose times cannot stand beside these; another shard, or a
                plan of a shard that grew, so that its cells would be others'.
        """
        grown = plan.continued_from(self.plan)
        if shard != self.shard:
            raise InputError(
                f"the results to resume are {_part(self.shard)}, and this is {_part(shard)}",
                "the same part",
                "give each part an --out of its own, and join them with odenet merge",
            )
        if shard is not None and len(grown.cells()) != len(self.plan.cells()):
            raise InputError(
                f"shard {shard} of a plan that grew",
                "the plan of the other shards",
                "merge them, then add to the whole",
            )
        same = {name: value for name, value in machine.items() if value in self.machine.get(name, "").split(SEVERAL)}
        changed = _resume.changes(self.machine, {name: machine[name] for name in machine if name not in same})
        if changed:
            raise InputError(
                f"the results to resume were measured on another machine or with other versions: {'; '.join(changed)}",
                f"the same machine and versions, since {self.compared} are compared",
                _resume.START_ANEW,
            )
        return replace(self, plan=grown, machine={**machine, **self.machine})

    def to_json(self) -> dict[str, Any]:
        """Plain data, but for the format."""
        return {
            "complete": not self.left(),
            "plan": self.plan.to_json(),
            "machine": dict(self.machine),
            "seconds": self.seconds,
            "shard": None if self.shard is None else str(self.shard),
            "columns": columns(self.row_kind),
            "rows": [to_json(row) for row in self.rows],
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Self:
        """The results that `to_json` wrote."""
        rows: Any = tuple(from_json(cls.row_kind, row) for row in plain["rows"])
        plan: Any = cls.plan_kind.from_json(plain["plan"])
        shard = None if plain.get("shard") is None else Shard.read(plain["shard"])
        return cls(plan, plain["machine"], rows, float(plain.get("seconds", 0.0)), shard)

    def text(self) -> str:
        """All results as JSON."""
        return _resume.as_text(self.form, self.to_json())

    def write(self, folder: str | Path) -> None:
        """Both files, each atomically.

        Raises:
            InputError: no path. FileError: the folder cannot be written to.
        """
        folder = path("folder", folder)
        write_text(folder / JSON, self.text())
        write_text(folder / CSV, as_csv(self.row_kind, self.rows))

    @classmethod
    def read(cls, folder: str | Path) -> Self | None:
        """The results in a folder; None where there are none.

        Raises:
            InputError: no path. FileError: a results.json that this version of odenet did not write.
        """
        return _resume.read(path("folder", folder) / JSON, cls.form, cls.command, cls.from_json)


def _part(shard: Shard | None) -> str:
    return "the whole" if shard is None else f"shard {shard}"


def set_aside(folder: Path, names: Sequence[str] = (CSV, JSON)) -> list[Path]:
    """Rename earlier results to NAME.previous.*, so that a new run cannot destroy one that took hours.

    Args:
        folder: of the results.
        names: of their files.

    Returns:
        the new paths; one generation is kept.

    Raises:
        FileError: they cannot be renamed.
    """
    moved = []
    for name in names:
        file = folder / name
        target = file.with_name(f"{file.stem}.previous{file.suffix}")
        if rename(file, target):
            moved.append(target)
    return moved
