"""Fills the measured numbers of docs/performance.md from benchmarks/results: `python -m benchmarks.performance`.

A row of a table there ends with where its number is from, as in `` `small_steps[mode=eager; solver=euler].ratio` ``:
the file, the entries that tell the row of it, and the column. The number stands in the cell before.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
RESULTS = Path(__file__).parent / "results"
ROW = re.compile(r"^(\|.*\|) [^|]* \| `(\w+)\[([^\]]*)\]\.([^`]+)` \|$", re.MULTILINE)


def number(file: str, entries: str, column: str) -> str:
    """The one of a results file.

    Raises:
        LookupError: no row of it, or several.
    """
    wanted = dict(entry.strip().split("=", 1) for entry in entries.split(";"))
    rows = json.loads((RESULTS / f"{file}.json").read_text(encoding="utf-8"))["rows"]
    found = [row for row in rows if all(str(row.get(key)) == value for key, value in wanted.items())]
    if len(found) != 1 or column not in found[0]:
        raise LookupError(f"{len(found)} rows of {file}.json with {wanted}, of which {column!r} is asked")
    value = found[0][column]
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def filled(page: str) -> str:
    """The page with the numbers of the results."""
    return ROW.sub(lambda m: f"{m[1]} {number(m[2], m[3], m[4])} | `{m[2]}[{m[3]}].{m[4]}` |", page)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
