"""The doctor's tables: the methods, and their errors by layer and by weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from odenet._report.units import error
from odenet.doctor.diagnosis import OUTSIDE, Diagnosis, Examination

if TYPE_CHECKING:
    from rich.table import Table

MOST = 16
"""Layers shown in a table; the record has all."""
HEADS = (
    "gradient method", ">error", ">1 - cos", ">certificate", ">estimate", ">f there", ">f back", ">VJP", ">states", ""
)  # fmt: skip
LEGEND = (
    "error: relative, of the whole gradient, by norm. estimate: of it, from the certificate alone. f, VJP, states: by "
    "the cost model."
)


def tables(found: Diagnosis, where: str = "", *, weights: bool = False) -> list[Table]:
    """The methods, then their errors by layer, then, if asked for, by weight.

    Args:
        found: by the doctor.
        where: in front of the titles.
        weights: whether parameters have a table, too.
    """
    from odenet._report.terminal import table

    where = where or title(found)
    made = [table(f"{where}: gradient methods against {found.reference}", HEADS, rows(found), LEGEND)]
    done = [each for each in found.examinations if each.trouble is None]
    if not done:
        return made
    heads = [">" + each.label.replace(":", "\n:").replace(" on ", "\non ") for each in done]
    labels = list(done[0].by_layer)
    layers = [label for label in labels if label != OUTSIDE]
    if len(layers) > 1:
        picked = [layers[n] for n in shown(len(layers))]
        caption = f"{len(picked)} of {len(layers)} layers" if len(picked) < len(layers) else ""
        for what, pick in _BY_LAYER.items():
            kept = [*picked, *labels[len(layers) :]]
            body = [(label, *(error(pick(each).get(label)) for each in done)) for label in kept]
            made.append(table(f"{where}: {what} by layer along depth", [">layer", *heads], body, caption))
    if weights:
        body = [(name, *(error(each.by_weight.get(name)) for each in done)) for name in done[0].by_weight]
        made.append(table(f"{where}: relative error by weight", ["weight", *heads], body))
    return made


_BY_LAYER: Mapping[str, Callable[[Examination], Mapping[str, float]]] = {
    "relative error": lambda each: each.by_layer,
    "1 - cos": lambda each: each.cosine_by_layer,
}


def rows(found: Diagnosis) -> list[list[str]]:
    """A row of cells for each method, under `HEADS`."""
    best = found.recommended
    made = []
    for each in found.examinations:
        cost = each.cost
        counts = (cost.f_forward, cost.f_backward, cost.vjp, cost.states) if cost is not None else (None,) * 4
        numbers = (each.gradient_error, each.cosine_distance, each.certificate, each.estimate)
        note = each.trouble or ("recommended" if each is best else "")
        shown_counts = ["–" if count is None or each.trouble else str(count) for count in counts]
        made.append([each.label, *(error(number) for number in numbers), *shown_counts, note])
    return made


def text(found: Diagnosis) -> str:
    """The table of methods in plain text."""
    body = [[head.removeprefix(">") for head in HEADS], *rows(found)]
    widths = [max(len(row[i]) for row in body) for i in range(len(HEADS) - 1)]
    lines = []
    for name, *cells, note in body:
        numbers = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        lines.append("  ".join([name.ljust(widths[0]), *numbers, note]).rstrip())
    return "\n".join([f"{title(found)}: gradient methods against {found.reference}", "", *lines])


def title(found: Diagnosis) -> str:
    """What was examined."""
    solvers = ", ".join(dict.fromkeys(f"{part.solver.label} N={part.steps}" for part in found.parts))
    return f"{found.backend} {solvers} {found.dtype}"


def shown(layers: int) -> list[int]:
    """Which layers a table shows: all, or evenly spread ones with the first and the last."""
    count = min(layers, MOST)
    return sorted({round(k * (layers - 1) / max(count - 1, 1)) for k in range(count)})
