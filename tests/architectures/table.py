"""The tables of docs/architectures.md, as the results file has them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "architectures.json"
PAGE = ROOT / "docs" / "architectures.md"
_BEGIN, _END = "<!-- {} begins: written by make test-architectures -->", "<!-- {} ends -->"
Row = Mapping[str, Any]


def written(page: str, rows: Sequence[Row]) -> str:
    """The page with the tables of these results."""
    for name, table in (("counts", counts(rows)), ("networks", networks(rows))):
        begin, end = _BEGIN.format(name), _END.format(name)
        before, rest = page.split(begin)
        page = f"{before}{begin}\n{table}\n{end}{rest.split(end)[1]}"
    return page


def counts(rows: Sequence[Row]) -> str:
    """How often each verdict was given, a line a method and state."""
    names = ("method", "state", "accurate", "accurate, with a warning", "inaccurate, with a warning", "refused")
    names += ("inaccurate without a warning",)
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for method, state in dict.fromkeys((row["method"], row["state"]) for row in rows):
        mine = [row for row in rows if (row["method"], row["state"]) == (method, state)]
        verdicts = Counter(row["verdict"] for row in mine)
        alarms = sum(row["verdict"] == "right" and _warned(row) for row in mine)
        silent = sum(verdicts[bad] for bad in ("wrong in silence", "said wrongly", "crashed"))
        numbers = (verdicts["right"] - alarms, alarms, verdicts["said"], verdicts["refused"], silent)
        lines.append(f"| `{method}` | {state} | " + " | ".join(map(str, numbers)) + " |")
    return "\n".join(lines)


def networks(rows: Sequence[Row]) -> str:
    """A line a network: at the start, and trained."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    lines = ["| network | from | " + " | ".join(f"`{method}`" for method in methods) + " |"]
    lines.append("|" + "---|" * (len(methods) + 2))
    for network in dict.fromkeys(row["network"] for row in rows):
        mine = [row for row in rows if row["network"] == network]
        cells = [_cells([row for row in mine if row["method"] == method]) for method in methods]
        lines.append(f"| {network} | {mine[0]['package']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cells(rows: Sequence[Row]) -> str:
    cells = list(map(_cell, rows))
    return cells[0] if len(set(cells)) == 1 else ", ".join(cells)


def _cell(row: Row) -> str:
    if row["verdict"] in ("right", "said"):
        return _number(row["error"]) + (f" (warned {_number(row['said'])})" if _warned(row) else "")
    return row["verdict"]


def _warned(row: Row) -> bool:
    return row["said"] == row["said"]


def _number(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}" if value < 0.1 else f"{value:.2g}"
