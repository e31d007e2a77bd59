"""Smoothness of weights in depth: `N max_n |w[n+1] - w[n]|` (Sander, Ablin and Peyre 2022, section 3)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from odenet._errors import InputError
from odenet._problem.depth import Depth, check_alike
from odenet.theory._host import on_host, rows


def smoothness(depth: Depth, *, relative: bool = False) -> float:
    """`N max_n |w[n+1] - w[n]|` in the Euclidean norm over all arrays of a layer.

    It is an estimate of the largest |dw/ds| over s in [0, 1]: bounded over N where weights are smooth in depth, and
    growing as N where layers have little to do with each other.

    Args:
        depth: of at least two layers, arrays of NumPy or of any known framework; N is their number (piecewise) or that
            of intervals (linear). Of a ResidualStack of either backend it is `stack.depth`.
        relative: divided by the root mean square of the layers' norms, so that it has no unit: about 1 where weights
            are smooth in depth, about 1.4 N where layers are independent. 0 if all weights are.

    Returns:
        In units of the weights (without one where relative).

    Raises:
        InputError: weights that are the same at all depths, or a single layer.
        DepthError: layers whose arrays have different shapes.

    Source: Sander, Ablin and Peyre 2022, section 3.
    """
    if depth.intervals is None or depth.layers < 2:
        raise InputError("the smoothness of weights of a single layer", "weights of at least two layers")
    if not depth.stacked:
        check_alike(depth.tree)
    change = largest_change(rows(on_host(depth)), relative=relative)
    return depth.intervals * change


def largest_change(layers: Iterable[np.ndarray], *, relative: bool = False) -> float:
    """`max_n |w[n+1] - w[n]|`, relative to the root mean square of |w[n]| if so chosen (0 if that is).

    Args:
        layers: at least two vectors of one length.
    """
    vectors = np.stack(list(layers))
    change = float(np.linalg.norm(np.diff(vectors, axis=0), axis=1).max())
    if not relative:
        return change
    size = float(np.sqrt((np.abs(vectors) ** 2).sum(axis=1).mean()))
    return change / size if size else 0.0
