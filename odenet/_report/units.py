"""Numbers as a person reads them, alone and in rows."""

from __future__ import annotations

import math
from collections.abc import Sequence


def error(value: float | None) -> str:
    """Two digits and a power of ten; an exact zero is `0`."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    return f"{value:.1e}" if math.isfinite(value) else str(value)


def seconds(value: float | None) -> str:
    """µs, ms or s with three digits."""
    if value is None:
        return "–"
    for scale, unit in ((1.0, "s"), (1e-3, "ms")):
        if abs(value) >= scale:
            return f"{_three(value / scale)} {unit}"
    return f"{_three(value * 1e6)} µs"


def size(value: float | None) -> str:
    """B, KiB, MiB or GiB with three digits."""
    if value is None:
        return "–"
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if value >= 1024**power:
            return f"{_three(value / 1024**power)} {unit}"
    return f"{value:.0f} B"


def factor(value: float | None) -> str:
    """A ratio as it is printed, such as `×3.20`."""
    return "–" if value is None else f"×{_three(value)}"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines of plain text: names on the left, numbers to the right, and a note as it is."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = ((row[0].ljust(widths[0]), *map(str.rjust, row[1:-1], widths[1:-1]), row[-1]) for row in rows)
    return ["  ".join(line).rstrip() for line in cells]


def _three(value: float) -> str:
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}" if 1 <= abs(value) < 1000 else f"{value:.3g}"
