"""The results of a comparison on disk: results.csv for people and spreadsheets, results.json to go on from."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from odenet._errors import FileError, InputError
from odenet._files import write_text
from odenet._rows import as_csv
from odenet.compare.grid import Cell, Plan
from odenet.compare.row import COLUMNS, Row

FORMAT = "odenet compare 1"
CSV, JSON = "results.csv", "results.json"


@dataclass(frozen=True)
class Results:
    """What is done of a plan.

    Args:
        plan: the comparison.
        machine: as `odenet.compare.machine.machine` tells it.
        rows: one a finished cell.
        seconds: that the run took so far, waiting for nothing.
    """

    plan: Plan
    machine: Mapping[str, str]
    rows: tuple[Row, ...] = ()
    seconds: float = 0.0

    def todo(self) -> tuple[Cell, ...]:
        """Cells without a row, and those that failed, in the plan's order."""
        done = {row.key for row in self.rows if not row.failed}
        return tuple(cell for cell in self.plan.cells() if cell.key not in done)

    def missing(self) -> int:
        """How many cells of the plan have no row yet."""
        done = {row.key for row in self.rows}
        return sum(cell.key not in done for cell in self.plan.cells())

    def add(self, row: Row) -> Results:
        """With this row in its place in the plan's order, and its seconds counted."""
        by_key = {each.key: each for each in self.rows} | {row.key: row}
        ordered = tuple(by_key[cell.key] for cell in self.plan.cells() if cell.key in by_key)
        return replace(self, rows=ordered, seconds=self.seconds + (row.cell_seconds or 0.0))

    def resumed(self, plan: Plan, machine: Mapping[str, str]) -> Results:
        """These results as the beginning of `plan` on `machine`.

        Raises:
            InputError: other settings, or another machine, whose times cannot stand beside these.
        """
        grown = plan.continued_from(self.plan)
        changed = [
            f"{name} was {self.machine[name]} and is {value}"
            for name, value in machine.items()
            if self.machine.get(name, value) != value
        ]
        if changed:
            raise InputError(
                f"the results to resume were measured on another machine or with other versions: {'; '.join(changed)}",
                "the same machine and versions, since times and memory are compared",
                "leave --resume out, or choose another --out",
            )
        return replace(self, plan=grown, machine={**self.machine, **machine})

    def write(self, folder: Path) -> None:
        """Both files, each atomically.

        Raises:
            FileError: the folder cannot be written to.
        """
        plain = {
            "format": FORMAT,
            "complete": self.missing() == 0,
            "seconds": self.seconds,
            "plan": self.plan.to_json(),
            "machine": dict(self.machine),
            "columns": COLUMNS,
            "rows": [row.to_json() for row in self.rows],
        }
        write_text(folder / JSON, json.dumps(plain, indent=1, allow_nan=False) + "\n")
        write_text(folder / CSV, as_csv(Row, self.rows))


def read(folder: Path) -> Results | None:
    """The results in a folder; None where there are none.

    Raises:
        FileError: a results.json that this version of odenet did not write.
    """
    path = folder / JSON
    try:
        plain: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise FileError(f"{path} cannot be read ({error})", "a results.json that odenet compare wrote") from error
    if not isinstance(plain, dict) or plain.get("format") != FORMAT:
        raise FileError(
            f"{path} is not in the format {FORMAT!r}",
            "a results.json that this version of odenet compare wrote",
            "leave --resume out, or choose another --out",
        )
    rows = tuple(Row.from_json(row) for row in plain["rows"])
    return Results(Plan.from_json(plain["plan"]), plain["machine"], rows, float(plain["seconds"]))


def set_aside(folder: Path) -> list[Path]:
    """Rename earlier results to results.previous.*, so that a new run cannot destroy one that took hours.

    Returns:
        the new paths; one generation is kept.

    Raises:
        FileError: they cannot be renamed.
    """
    moved = []
    for name in (CSV, JSON):
        path = folder / name
        target = path.with_name(f"{path.stem}.previous{path.suffix}")
        try:
            os.replace(path, target)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise FileError(f"{path} cannot be renamed ({error})", "a folder you may write to") from error
        moved.append(target)
    return moved


def require_writable(folder: Path) -> None:
    """Raises FileError before any work is done, if the folder cannot be made or written to."""
    probe = write_text(folder / ".writable", "")
    probe.unlink()
