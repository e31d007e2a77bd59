"""How far two sets of named arrays are apart."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def flat(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """All entries in one float64 vector, arrays in the order of their names; of complex ones both parts."""
    return np.concatenate([_real(np.ravel(arrays[name])) for name in sorted(arrays)])


def relative(value: np.ndarray, reference: np.ndarray) -> float:
    """`||value - reference|| / ||reference||` in the Euclidean norm; 0 if both are zero, infinite if only one is."""
    difference, size = _norm(value - reference), _norm(reference)
    if size == 0:
        return 0.0 if difference == 0 else np.inf
    return difference / size


def largest(value: np.ndarray, reference: np.ndarray) -> float:
    """`max |value - reference| / max |reference|`; 0 if both are zero, infinite if only the reference is."""
    difference, size = float(np.abs(value - reference).max()), float(np.abs(reference).max())
    if size == 0:
        return 0.0 if difference == 0 else np.inf
    return difference / size


def cosine_distance(value: np.ndarray, reference: np.ndarray) -> float:
    """`1 - cos` of the angle between two vectors, as half the squared distance of their unit vectors.

    Written so, it has no cancellation: an angle of 1e-6 gives 5e-13, where `1 - u.v` gives a multiple of 1e-16.
    Not a number if one of them is zero, or not finite.
    """
    one, other = _norm(value), _norm(reference)
    if one == 0 or other == 0 or not np.isfinite((one, other)).all():
        return np.nan
    return 0.5 * _norm(value / one - reference / other) ** 2


def _real(vector: np.ndarray) -> np.ndarray:
    if np.iscomplexobj(vector):
        vector = np.concatenate([np.real(vector), np.imag(vector)])
    return vector.astype(np.float64)


def _norm(value: np.ndarray) -> float:
    return float(np.linalg.norm(np.ravel(value)))
