"""The limit of a sequence over N, 2N, 4N, ...: what it has of powers of 1/N, taken away (Richardson 1911)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from odenet._check import array_of_numbers, several, whole, within
from odenet._errors import InputError
from odenet.theory._host import as_numpy

_HIGHEST = 64.0  # 2**-64 is below the rounding of float64


@dataclass(frozen=True)
class Limit:
    """The limit of a sequence as N grows.

    Args:
        value: the extrapolated array, NumPy, of the terms' shape.
        error: an estimate of the largest absolute error of an entry of `value`: how far the last elimination moved it.
            It is that of the extrapolation before the last, so it is too large where the expansion holds, and it means
            nothing where it does not (see `order`).
        order: the p that is observed in `term = limit + c / N**p`: from the last three terms, in the Euclidean norm;
            None with two terms, or where they agree to the last bit.
    """

    value: np.ndarray
    error: float
    order: float | None


def limit(terms: Sequence[Any], *, order: float | None = 1, eliminations: int | None = None) -> Limit:
    """Richardson's extrapolation of arrays at N, 2N, 4N, ... to N = infinity.

    `a(N) = a + c1 N**-p + c2 N**-(p+1) + ...` is what is assumed: one-sided methods such as Euler's have p = 1. Each
    elimination takes the next power away, and needs one more term. Quantities along depth (weights, states) are given
    where all of the networks have them: of 2N layers every second one.

    Args:
        terms: at least two arrays of one shape, from the shallowest to the deepest, of NumPy or of any known framework.
        order: p; None takes the observed one (three terms) and eliminates that power alone.
        eliminations: how many powers are taken away; None as many as there are terms to.

    Raises:
        InputError: too few terms, terms of different shapes, or an order that is not positive.

    Source: Richardson 1911; Stoer and Bulirsch, section 3.4. For ResNets, Sander, Ablin and Peyre 2022, section 3, has
    the limit; that it is approached in powers of 1/N is Euler's expansion of the error.
    """
    arrays = [np.asarray(as_numpy(term)) for term in several("terms", terms)]
    for array in arrays:
        array_of_numbers("a term", array)
    least = 2 if order is not None else 3
    if len(arrays) < least or any(array.shape != arrays[0].shape for array in arrays):
        shapes = ", ".join(str(array.shape) for array in arrays) or "none"
        raise InputError(f"terms of shapes {shapes} to be extrapolated", f"at least {least}, all of one shape")
    if order is not None:
        within("order", order, 0.0, _HIGHEST, of="an extrapolation")
    most = len(arrays) - 1 if order is not None else 1
    if eliminations is not None:
        whole("eliminations", eliminations, 1, most, "an extrapolation")
    observed = _observed(arrays)
    power = observed if order is None else order
    if power is None or not power > 0:
        raise InputError(f"terms whose observed order is {power}", "terms that converge", "give order=")
    column = arrays
    before = column[-1]
    for step in range(eliminations or most):
        before = column[-1]
        ratio = 2.0 ** (power + step)
        column = [(ratio * fine - coarse) / (ratio - 1) for coarse, fine in itertools.pairwise(column)]
    return Limit(column[-1], float(np.abs(column[-1] - before).max(initial=0.0)), observed)


def _observed(arrays: Sequence[np.ndarray]) -> float | None:
    if len(arrays) < 3:
        return None
    coarse, fine = (float(np.linalg.norm(np.ravel(b - a))) for a, b in (arrays[-3:-1], arrays[-2:]))
    return float(np.log2(coarse / fine)) if coarse > 0 and fine > 0 else None
