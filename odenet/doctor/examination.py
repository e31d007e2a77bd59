"""What the doctor measured: one examination a gradient method, and what the model itself says."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from odenet._backend.sample import Part
from odenet._gradients.exact import Backprop
from odenet._gradients.record import Cost, Gradient

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
        later: the gradient's error on a copy after a few steps of training; None where that was not examined.
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
    by_layer: Mapping[str, float] = dataclasses.field(default_factory=dict)
    cosine_by_layer: Mapping[str, float] = dataclasses.field(default_factory=dict)
    by_weight: Mapping[str, float] = dataclasses.field(default_factory=dict)
    certificate: float | None = None
    estimate: float | None = None
    later: float | None = None
    cost: Cost | None = None
    grows: bool = True

    @property
    def label(self) -> str:
        """The method as a flag spells it, with its solver where that is not the model's own."""
        return f"{self.gradient.label} on {self.solver}" if self.another else self.gradient.label

    def meets(self, tolerance: float) -> bool:
        """Whether the whole gradient's relative error is a number of at most `tolerance`, now and after a few steps."""
        now = self.gradient_error is not None and self.gradient_error <= tolerance
        return now and (self.later is None or self.later <= tolerance)

    @property
    def memory(self) -> int:
        """0: the states kept do not grow with depth; 1: they do; 2: and every stage is kept, too (backprop)."""
        return 2 if isinstance(self.gradient, Backprop) else int(self.grows)

    def to_json(self) -> dict[str, Any]:
        """The examination as a dictionary of plain data, for JSON."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        plain["gradient"] = self.gradient.label
        plain["cost"] = None if self.cost is None else dataclasses.asdict(self.cost)
        return {key: dict(value) if isinstance(value, Mapping) else value for key, value in plain.items()}


@dataclass(frozen=True)
class Examinations:
    """Every gradient method on one model, as it was measured; `Diagnosis` says what the fields are, and concludes."""

    backend: str
    dtype: str
    reference: str
    parts: tuple[Part, ...]
    examinations: tuple[Examination, ...]
    tolerance: float = 1e-2
    contraction: float | None = None
    smoothness: float | None = None
    training: str = ""
    silent: bool = False

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
        return next((examination for examination in self.examinations if examination.label == label), None)
