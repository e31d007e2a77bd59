"""The rows of a comparison gathered into curves over depth: what tables, figures and sentences are made from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from odenet._jobs.compare.results import MeasuredGradient
from odenet._report.fit import ROUNDING, Fit, fit


@dataclass(frozen=True)
class Curve:
    """One solver, gradient method and backend over all depths measured.

    Args:
        solver, gradient, backend: names, the gradient as a flag spells it.
        rows: by depth, those that were measured.
        fit: of the gradient error; None where it is rounding, or too few depths were measured.
        exact: whether the gradient error is rounding at every depth.
    """

    solver: str
    gradient: str
    backend: str
    rows: Mapping[int, MeasuredGradient]
    fit: Fit | None
    exact: bool

    @property
    def first(self) -> MeasuredGradient:
        """The row of the smallest depth."""
        return self.rows[min(self.rows)]

    @property
    def last(self) -> MeasuredGradient:
        """The row of the largest depth."""
        return self.rows[max(self.rows)]

    @property
    def memory_growth(self) -> float | None:
        """Peak bytes at the largest depth over those at the smallest; None with less than two depths."""
        first, last = self.first.peak_bytes, self.last.peak_bytes
        return last / first if first and last and len(self.rows) > 1 else None

    @property
    def order(self) -> str:
        """The fitted order for a table."""
        return "exact" if self.exact else str(self.fit) if self.fit else "–"


def curves(rows: Iterable[MeasuredGradient]) -> list[Curve]:
    """Every curve with at least one measured depth, by solver, then gradient, then backend, as first met."""
    groups: dict[tuple[str, str, str], dict[int, MeasuredGradient]] = {}
    for row in rows:
        if row.ok:
            groups.setdefault((row.solver, row.gradient, row.backend), {})[row.depth] = row
    places = [list(dict.fromkeys(key[i] for key in groups)) for i in range(3)]
    ordered = sorted(groups, key=lambda key: tuple(place.index(name) for place, name in zip(places, key, strict=True)))
    return [_curve(*key, dict(sorted(groups[key].items()))) for key in ordered]


def _curve(solver: str, gradient: str, backend: str, rows: dict[int, MeasuredGradient]) -> Curve:
    rounding = ROUNDING[next(iter(rows.values())).dtype]
    errors = {depth: row.gradient_error for depth, row in rows.items() if row.gradient_error is not None}
    fitted = fit(list(errors), errors.values(), rounding)
    exact = bool(errors) and all(error <= rounding for error in errors.values())
    return Curve(solver, gradient, backend, rows, fitted, exact)
