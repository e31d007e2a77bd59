"""Trees of any framework's arrays as NumPy on the host, where the theory's arithmetic is done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from odenet import _tree
from odenet._backend import registry as _registry
from odenet._check import instance
from odenet._problem.depth import Depth, Kind, _is_array


def along_depth(depth: Any) -> None:
    """Raises InputError unless these are weights along depth."""
    instance("depth", depth, Depth, "an odenet.Depth, as the `depth` of a ResidualStack is")


def as_numpy(leaf: Any) -> Any:
    """An array of any known framework as NumPy, without its gradient; what has no shape as it is."""
    if isinstance(leaf, np.ndarray) or not _is_array(leaf):
        return leaf
    owner = next((entry for entry in _registry.known().values() if entry.owns(leaf)), None)
    return np.asarray(leaf) if owner is None else _registry.backend(owner.name).to_numpy(leaf)


def on_host(depth: Depth) -> Depth:
    """The same weights along depth as NumPy."""
    return Depth(_tree.map(as_numpy, depth.tree), depth.kind, depth.stacked)


def rows(depth: Depth) -> np.ndarray:
    """All arrays of all layers, shape (layers, entries of one)."""
    return np.stack([vector(depth.at(n)) for n in range(depth.layers)])


def vector(tree: Any) -> np.ndarray:
    """The arrays of a tree as one vector."""
    arrays = [np.ravel(leaf) for leaf in _tree.leaves(tree) if _is_array(leaf)]
    return np.concatenate(arrays) if arrays else np.zeros(0)


def layers_at(depth: Depth, places: Sequence[int], kind: Kind) -> Depth:
    """The layers (or nodes) at these places, in this order, as weights of that kind."""
    if not depth.stacked:
        return Depth(tuple(depth.tree[place] for place in places), kind, stacked=False)
    index = np.array(places)
    return Depth(_tree.map(lambda leaf: leaf[index] if _is_array(leaf) else leaf, depth.tree), kind)
