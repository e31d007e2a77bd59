"""What the doctor found: one examination a gradient method, and what the model itself says."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from odenet._backend.sample import Part
from odenet._gradients.exact import Backprop
from odenet._gradients.record import Cost, Gradient

if TYPE_CHECKING:
    from rich.console import Group

ROUNDING = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
OUTSIDE = "outside"
"""The group of the parameters that belong to no solve."""


@dataclass(frozen=True)
class Examination:
    """One gradient method on a model, against exact backprop.

    Args:
        gradient: the method.
        solver: the solvers that it was examined with, by label.
        another: whether these are not the model's own: `reversible` is examined on the network that a Runge-Kutta
            solver becomes as `reversible:NAME`, against backprop of that network.
        offered: whether the backend offers it for these solvers.
        trouble: why there is no result: not offered, or how it failed; else None.
        gradient_error: `||g - r|| / ||r||` of the gradient g by all parameters, r being backprop's.
        cosine_distance: 1 - cos of the angle between g and r.
        by_layer, cosine_by_layer: the same by layer along depth (see `Part.label`); "outside" is what belongs to none.
        by_weight: the relative error by parameter.
        certificate: the reconstruction residual, the largest of all solves; None for a method without one.
        estimate: of the relative error, from the certificate alone (see `Gradient.estimate`).
        cost: of all solves, by the cost model; None where it depends on sizes.
        grows: whether the states kept grow with the number of steps.
    """

    gradient: Gradient
    solver: str
    another: bool = False
    offered: bool = True
    trouble: str | None = None
    gradient_error: float | None = None
    cosine_distance: float | None = None
    by_layer: Mapping[str, float] = field(default_factory=dict)
    cosine_by_layer: Mapping[str, float] = field(default_factory=dict)
    by_weight: Mapping[str, float] = field(default_factory=dict)
    certificate: float | None = None
    estimate: float | None = None
    cost: Cost | None = None
    grows: bool = True

    @property
    def label(self) -> str:
        """The method as a flag spells it, with its solver where that is not the model's own."""
        return f"{self.gradient.label} on {self.solver}" if self.another else self.gradient.label

    def meets(self, tolerance: float) -> bool:
        """Whether the whole gradient's relative error is a number of at most `tolerance`."""
        return self.gradient_error is not None and self.gradient_error <= tolerance

    @property
    def memory(self) -> int:
        """0: the states kept do not grow with depth; 1: they do; 2: and every stage is kept, too (backprop)."""
        return 2 if isinstance(self.gradient, Backprop) else int(self.grows)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        plain = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        plain["gradient"] = self.gradient.label
        plain["cost"] = None if self.cost is None else dataclasses.asdict(self.cost)
        return {key: dict(value) if isinstance(value, Mapping) else value for key, value in plain.items()}


@dataclass(frozen=True)
class Diagnosis:
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
    """

    backend: str
    dtype: str
    reference: str
    parts: tuple[Part, ...]
    examinations: tuple[Examination, ...]
    tolerance: float = 1e-2
    contraction: float | None = None
    smoothness: float | None = None

    @property
    def steps(self) -> int:
        """The most steps of a solve in the model."""
        return max(part.steps for part in self.parts)

    @property
    def rounding(self) -> float:
        """The relative rounding error of the model's number type."""
        return ROUNDING.get(self.dtype, ROUNDING["float32"])

    def of(self, label: str) -> Examination | None:
        """The examination of the method of that label; None if there is none."""
        return next((found for found in self.examinations if found.label == label), None)

    @property
    def recommended(self) -> Examination | None:
        """The cheapest method that meets the tolerance, see `odenet.doctor.recommendation`; None if none does."""
        from odenet.doctor.recommendation import recommended

        return recommended(self)

    @property
    def verdict(self) -> str:
        """Which method to take, and why, in a few sentences."""
        from odenet.doctor.verdict import verdict

        return verdict(self)

    def __str__(self) -> str:
        from odenet.doctor.tables import text

        return f"{text(self)}\n\n{self.verdict}"

    def __rich__(self) -> Group:
        """For `rich.print`: the tables and the verdict."""
        from rich.console import Group
        from rich.text import Text

        from odenet.doctor.tables import tables

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
            "recommended": None if best is None else best.label,
            "verdict": self.verdict,
            "examinations": [found.to_json() for found in self.examinations],
        }
