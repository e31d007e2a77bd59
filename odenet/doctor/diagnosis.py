"""The doctor's diagnosis: every examination of a model, what follows from them, and its tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from odenet._report.units import aligned, error
from odenet.doctor.examination import OUTSIDE, Examination, Examinations
from odenet.doctor.recommendation import recommended
from odenet.doctor.verdict import verdict

if TYPE_CHECKING:
    from rich.console import Group

    from odenet._report.terminal import Table


@dataclass(frozen=True)
class Diagnosis(Examinations):
    """Every gradient method on a model, what speaks for and against them, and which one to take.

    `print(diagnosis)` shows the table and the verdict; `rich.print(diagnosis)` the tables by layer, too.

    Args:
        backend: by name.
        dtype: the coarsest number type of the model's parameters.
        reference: what the gradients are compared with, in words.
        parts: the solves in the model.
        examinations: one a method, in the order asked for.
        tolerance: the relative error of the whole gradient that the recommended method may have.
        contraction: the factor by which a second iteration of the discrete adjoint brings the certificate down, about
            h Lip(f), the largest of all solves; None where it was not examined, or is rounding.
        smoothness: `N max |w[n+1] - w[n]| / |w|` in depth, w being all weights of a layer and |w| the root mean
            square over layers, the largest of all solves; 0 for shared weights, None for layers of different shapes.
        training: what the weights after a few steps of training say, or why that is not known, in words.
        silent: whether every gradient of the layers is zero, so that nothing can be said of its error.
    """

    @property
    def recommended(self) -> Examination | None:
        """The cheapest method that meets the tolerance, see `odenet.doctor.recommendation`; None if none does."""
        return recommended(self)

    @property
    def verdict(self) -> str:
        """Which method to take, and why, in a few sentences."""
        return verdict(self)

    def __str__(self) -> str:
        return f"{text(self)}\n\n{self.verdict}"

    def __rich__(self) -> Group:
        """For `rich.print`: the tables and the verdict."""
        from rich.console import Group
        from rich.text import Text

        return Group(*tables(self), Text(self.verdict))

    def to_json(self) -> dict[str, Any]:
        """Plain data; numbers that are not finite are left as they are."""
        best = self.recommended
        return {
            "backend": self.backend,
            "dtype": self.dtype,
            "reference": self.reference,
            "solvers": {part.name or "model": part.solver.label for part in self.parts},
            "steps": self.steps,
            "tolerance": self.tolerance,
            "contraction": self.contraction,
            "smoothness": self.smoothness,
            "training": self.training,
            "silent": self.silent,
            "recommended": None if best is None else best.label,
            "verdict": self.verdict,
            "examinations": [examination.to_json() for examination in self.examinations],
        }


MOST = 16
"""Layers shown in a table; the record has all."""
HEADS = (
    "gradient method", ">error", ">1 - cos", ">certificate", ">estimate", ">f forward", ">f back", ">VJP", ">states", ""
)  # fmt: skip
LEGEND = (
    "error: relative, of the whole gradient, by norm. estimate: of it, from the certificate alone. f, VJP, states: by "
    "the cost model."
)


def tables(record: Examinations, where: str = "", *, weights: bool = False) -> list[Table]:
    """The methods, then their errors by layer, then, if asked for, by weight.

    Args:
        record: what was examined.
        where: in front of the titles.
        weights: whether parameters have a table, too.
    """
    from odenet._report.terminal import table

    where = where or title(record)
    shown_tables = [table(f"{where}: gradient methods against {record.reference}", HEADS, rows(record), LEGEND)]
    done = [examination for examination in record.examinations if examination.trouble is None]
    if not done:
        return shown_tables
    heads = [">" + examination.label.replace(":", "\n:").replace(" on ", "\non ") for examination in done]
    labels = list(done[0].by_layer)
    layers = [label for label in labels if label != OUTSIDE]
    if len(layers) > 1:
        picked = [layers[n] for n in shown(len(layers))]
        caption = f"{len(picked)} of {len(layers)} layers" if len(picked) < len(layers) else ""
        for quantity, pick in _BY_LAYER.items():
            places = [*picked, *labels[len(layers) :]]
            body = [(label, *(error(pick(examination).get(label)) for examination in done)) for label in places]
            shown_tables.append(table(f"{where}: {quantity} by layer along depth", [">layer", *heads], body, caption))
    if weights:
        body = [(name, *(error(examination.by_weight.get(name)) for examination in done)) for name in done[0].by_weight]
        shown_tables.append(table(f"{where}: relative error by weight", ["weight", *heads], body))
    return shown_tables


_BY_LAYER: Mapping[str, Callable[[Examination], Mapping[str, float]]] = {
    "relative error": lambda examination: examination.by_layer,
    "1 - cos": lambda examination: examination.cosine_by_layer,
}


def rows(record: Examinations) -> list[list[str]]:
    """A row of cells for each method, under `HEADS`."""
    best = recommended(record)
    lines = []
    for examination in record.examinations:
        cost = examination.cost
        counts = (cost.f_forward, cost.f_backward, cost.vjp, cost.kept) if cost is not None else (None,) * 4
        numbers = (
            examination.gradient_error,
            examination.cosine_distance,
            examination.certificate,
            examination.estimate,
        )
        note = examination.trouble or ("recommended" if examination is best else "")
        shown_counts = ["–" if count is None or examination.trouble else str(count) for count in counts]
        lines.append([examination.label, *(error(number) for number in numbers), *shown_counts, note])
    return lines


def text(record: Examinations) -> str:
    """The table of methods in plain text."""
    body = [[head.removeprefix(">") for head in HEADS], *rows(record)]
    return "\n".join([f"{title(record)}: gradient methods against {record.reference}", "", *aligned(body)])


def title(record: Examinations) -> str:
    """A line that says what was examined."""
    solvers = ", ".join(dict.fromkeys(f"{part.solver.label} N={part.steps}" for part in record.parts))
    return f"{record.backend} {solvers} {record.dtype}"


def shown(layers: int) -> list[int]:
    """Which layers a table shows: all, or evenly spread ones with the first and the last."""
    count = min(layers, MOST)
    return sorted({round(k * (layers - 1) / max(count - 1, 1)) for k in range(count)})
