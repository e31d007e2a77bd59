"""The results of a diagram on disk: results.csv for people and spreadsheets, results.json to go on from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from odenet._errors import FileError, InputError
from odenet._files import write_text
from odenet._rows import as_csv, from_json, to_json
from odenet.compare.results import CSV, JSON
from odenet.work_precision.plan import Cell, Plan
from odenet.work_precision.row import COLUMNS, Row

FORMAT = "odenet work-precision 1"


@dataclass(frozen=True)
class Results:
    """What is done of a plan.

    Args:
        plan: the diagram.
        machine: as `odenet.compare.machine.machine` tells it.
        rows: one a finished cell.
    """

    plan: Plan
    machine: Mapping[str, str]
    rows: tuple[Row, ...] = ()

    def todo(self) -> tuple[Cell, ...]:
        """Cells without a row, and those that failed, in the plan's order."""
        done = {row.key for row in self.rows if not row.failed}
        return tuple(cell for cell in self.plan.cells() if cell.key not in done)

    def missing(self) -> int:
        """How many cells of the plan have no row yet."""
        done = {row.key for row in self.rows}
        return sum(cell.key not in done for cell in self.plan.cells())

    def add(self, row: Row) -> Results:
        """With this row in its place in the plan's order."""
        by_key = {each.key: each for each in self.rows} | {row.key: row}
        return replace(self, rows=tuple(by_key[cell.key] for cell in self.plan.cells() if cell.key in by_key))

    def resumed(self, plan: Plan, machine: Mapping[str, str]) -> Results:
        """These results as the beginning of `plan` on `machine`.

        Raises:
            InputError: other options, or another machine, whose times cannot stand beside these.
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
                "the same machine and versions, since times are compared",
                "leave --resume out, or choose another --out",
            )
        return replace(self, plan=grown, machine={**self.machine, **machine})

    def write(self, folder: Path) -> None:
        """Both files, each atomically.

        Raises:
            FileError: the folder cannot be written to.
        """
        write_text(folder / JSON, self.text())
        write_text(folder / CSV, as_csv(Row, self.rows))

    def text(self) -> str:
        """All of it as JSON."""
        plain = {
            "format": FORMAT,
            "complete": self.missing() == 0,
            "plan": self.plan.to_json(),
            "machine": dict(self.machine),
            "columns": COLUMNS,
            "rows": [to_json(row) for row in self.rows],
        }
        return json.dumps(plain, indent=1, allow_nan=False) + "\n"


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
        raise FileError(f"{path} cannot be read ({error})", "a results.json that this command wrote") from error
    if not isinstance(plain, dict) or plain.get("format") != FORMAT:
        raise FileError(
            f"{path} is not in the format {FORMAT!r}",
            "a results.json that this version of odenet benchmark work-precision wrote",
            "leave --resume out, or choose another --out",
        )
    return Results(Plan.from_json(plain["plan"]), plain["machine"], tuple(from_json(Row, row) for row in plain["rows"]))
