"""Two gradients of one model, compared as a whole, by layer and by parameter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from odenet._backend.sample import Part, Place, Sample
from odenet._report.difference import cosine_distance, flat, relative
from odenet.doctor.examination import OUTSIDE
from odenet.theory._smoothness import largest_change


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
