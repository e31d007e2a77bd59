"""The doctor's diagnosis: every examination of a model, and what follows from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from odenet.doctor.examination import Examination, Examinations
from odenet.doctor.recommendation import recommended
from odenet.doctor.tables import tables, text
from odenet.doctor.verdict import verdict

if TYPE_CHECKING:
    from rich.console import Group


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
