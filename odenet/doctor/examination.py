"""What the doctor measured: one examination a gradient method, and what the model itself says."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from odenet._backend.sample import Part, Place, Sample
from odenet._gradients.exact import Backprop
from odenet._gradients.record import Cost, Gradient
from odenet._report.difference import cosine_distance, flat, relative
from odenet.theory._smoothness import largest_change

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


def groups(parts: tuple[Part, ...], names: Mapping[str, np.ndarray]) -> dict[str, tuple[Place, ...]]:
    """What belongs together, by label: the layers of every solve in the model, and what is outside of them."""
    by_layer: dict[str, tuple[Place, ...]] = {}
    inside: set[str] = set()
    for part in parts:
        for n, layer in enumerate(part.layers):
            places = tuple(place for place in layer.values() if place[0] in names)
            inside |= {name for name, _ in places}
            if places:
                by_layer[part.label(n)] = (*by_layer.get(part.label(n), ()), *places)
    outside = tuple((name, None) for name in names if name not in inside)
    return {**by_layer, OUTSIDE: outside} if outside else by_layer


def compare(sample: Sample, reference: Sample) -> dict[str, Any]:
    """The errors of one gradient against another: `gradient_error` and the like, by the names of `Examination`."""
    approximate, exact = sample.gradients, reference.gradients
    whole = flat(approximate), flat(exact)
    pairs = {
        label: (_gather(approximate, places), _gather(exact, places))
        for label, places in groups(reference.parts, exact).items()
    }
    return {
        "gradient_error": relative(*whole),
        "cosine_distance": cosine_distance(*whole),
        "by_layer": {label: relative(*pair) for label, pair in pairs.items()},
        "cosine_by_layer": {label: cosine_distance(*pair) for label, pair in pairs.items()},
        "by_weight": {name: relative(np.asarray(approximate[name], np.float64), exact[name]) for name in exact},
    }


def smoothness(sample: Sample) -> float | None:
    """`N max |w[n+1] - w[n]| / |w|`, the largest of all solves; see `Diagnosis`."""
    changes = []
    for part in sample.parts:
        if part.kind == "shared":
            changes.append(0.0)
        layers = [{key: _at(sample.weights, place) for key, place in layer.items()} for layer in part.layers]
        shapes = [{key: value.shape for key, value in layer.items()} for layer in layers]
        if len(layers) < 2 or any(shape != shapes[0] for shape in shapes):
            continue
        changes.append(part.steps * largest_change(map(flat, layers), relative=True))
    return max(changes, default=None)


def _at(arrays: Mapping[str, np.ndarray], place: Place) -> np.ndarray:
    name, row = place
    return arrays[name] if row is None else arrays[name][row]


def _gather(arrays: Mapping[str, np.ndarray], places: tuple[Place, ...]) -> np.ndarray:
    return flat({str(n): _at(arrays, place) for n, place in enumerate(places)})
