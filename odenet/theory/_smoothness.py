"""Smoothness and roughness of weights along depth (Sander, Ablin and Peyre 2022, section 3, for the former)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from odenet import _tree
from odenet._check import array_of_numbers, several, yes_or_no
from odenet._errors import InputError
from odenet._problem.depth import Depth, _is_array, check_alike
from odenet.theory._network import along_depth, on_host, rows


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
    along_depth(depth)
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

    Raises:
        InputError: something else.
    """
    yes_or_no("relative", relative)
    vectors = [np.asarray(layer) for layer in several("layers", layers)]
    if len(vectors) < 2 or any(v.ndim != 1 or v.shape != vectors[0].shape for v in vectors):
        raise InputError(f"layers of shapes {[v.shape for v in vectors][:8]}", "at least two vectors of one length")
    for vector in vectors:
        array_of_numbers("layers", vector)
    vectors = np.stack(vectors)
    change = float(np.linalg.norm(np.diff(vectors, axis=0), axis=1).max())
    if not relative:
        return change
    size = float(np.sqrt((np.abs(vectors) ** 2).sum(axis=1).mean()))
    return change / size if size else 0.0


LEAST = 8
"""Layers; of fewer there are no two lags to fit a slope through."""

_GROUPS = 16  # of entries, a slope each, whose spread makes the interval
_SHORT = 8  # lags up to an eighth of the layers: beyond, a smooth function of depth is no straight line any more
_T95 = (6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833, 1.812, 1.796, 1.782, 1.771, 1.761, 1.753)
"""Student's t at 95 %, of 1 to 15 degrees of freedom: the theory needs NumPy and nothing else."""


@dataclass(frozen=True)
class Roughness:
    """The structure function of weights along depth, `S(k) = mean |w[n+k] - w[n]|**2 ~ k**(2 H)`.

    Args:
        exponent: H, by least squares over lags 1, 2, 4, ...: 1 for a smooth function of depth, 1/2 for a random walk, 0
            for independent layers. Of a mixture it is that of the short lags.
        low, high: its 90 % interval, from the slopes of 16 groups of entries. Of fewer entries, parts of the depth
            are groups, too, which have more to do with each other: of four entries it covers in 73 to 100 % of cases,
            of a single one in 43 to 90 % (fractional Brownian motion, 16 to 256 layers).
        independent: `S(1)` over what independent layers of this variance would have: 1 where neighbours have nothing in
            common, 0 where they are equal.
        layers: how many there are.
    """

    exponent: float
    low: float
    high: float
    independent: float
    layers: int


def roughness(depth: Depth) -> Roughness:
    """How rough these weights are along depth.

    Args:
        depth: at least 8 layers, or shared weights, which are as smooth as can be. Arrays of NumPy or of any known
            framework. Each array counts as much as any other, whatever its size; those that are the same in all layers
            say nothing.

    Raises:
        InputError: fewer layers, or weights that are no finite numbers.
        DepthError: layers whose arrays have different shapes.

    Source: the variogram estimate of a path's Hölder exponent (Gneiting, Sevcikova and Percival 2012).
    """
    along_depth(depth)
    if depth.kind == "shared":
        return Roughness(1.0, 1.0, 1.0, 0.0, 1)
    if depth.layers < LEAST:
        raise InputError(f"the roughness of weights of {depth.layers} layers", f"at least {LEAST} layers")
    if not depth.stacked:
        check_alike(depth.tree)
    paths = _paths(on_host(depth))
    if not np.isfinite(paths).all():
        raise InputError("the roughness of weights that are no finite numbers", "finite weights")
    if paths.shape[1] == 0:
        return Roughness(1.0, 1.0, 1.0, 0.0, depth.layers)
    lags = [2**k for k in range(max(2, int(math.log2(len(paths) / _SHORT)) + 1))]
    changes = [np.abs(paths[lag:] - paths[:-lag]) ** 2 for lag in lags]
    slopes = [_slope(lags, [float(part.mean()) for part in group]) for group in _groups(changes)]
    exponent = _slope(lags, [float(change.mean()) for change in changes])
    half = math.inf  # of a single group nothing is known
    if len(slopes) > 1:
        half = _T95[len(slopes) - 2] * float(np.std(slopes, ddof=1)) / math.sqrt(len(slopes))
    variance = float((np.abs(paths - paths.mean(axis=0)) ** 2).sum() / (len(paths) - 1) / paths.shape[1])
    share = float(changes[0].mean()) / (2 * variance)
    return Roughness(exponent, exponent - half, exponent + half, share, depth.layers)


def _paths(depth: Depth) -> np.ndarray:
    """Every entry over depth, of arrays that change, each array in units of its own spread: shape (layers, entries)."""
    layers = [[np.ravel(leaf) for leaf in _tree.leaves(depth.at(n)) if _is_array(leaf)] for n in range(depth.layers)]
    arrays = [np.stack(leaves) for leaves in zip(*layers, strict=True)]
    arrays = [array.astype(np.result_type(array.dtype, np.float64)) for array in arrays]
    columns = [np.zeros((depth.layers, 0))]
    for array in arrays:
        spread = float(np.sqrt((np.abs(array - array.mean(axis=0)) ** 2).mean())) if array.size else 0.0
        if not spread == 0:  # NaN goes on, and is told
            columns.append(array / spread)
    return np.concatenate(columns, axis=1)


def _groups(changes: list[np.ndarray]) -> list[list[np.ndarray]]:
    """The same parts of the squared changes of every lag: of the entries, or of few entries of the depth, too."""
    entries = changes[0].shape[1]
    across = min(_GROUPS, entries)
    along = max(1, min(_GROUPS // across, len(changes[-1]) // 4))
    some = [[np.array_split(change, along)[place] for change in changes] for place in range(along)]
    columns = np.array_split(np.arange(entries), across)
    return [[part[:, column] for part in parts] for parts in some for column in columns]


def _slope(lags: list[int], means: list[float]) -> float:
    """H, half the slope of log S over log k."""
    if min(means) <= 0:
        return 1.0
    return float(np.polynomial.polynomial.polyfit(np.log(lags), np.log(means), 1)[1]) / 2
