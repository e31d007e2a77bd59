"""Rows of several parts as one plan's: none lost, none counted twice."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from odenet._errors import InputError
from odenet._jobs.cells.results import CellResults
from odenet._report.machine import joined
from odenet._report.rows import to_json


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
