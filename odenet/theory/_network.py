"""A network as the theory sees it: a field with weights along depth, and its trajectories. Trees of any framework's
arrays become NumPy on the host, where the theory's arithmetic is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from odenet import _tree
from odenet._backend import registry as _registry
from odenet._backend.solve import solve
from odenet._check import instance, whole, within, yes_or_no
from odenet._errors import InputError
from odenet._problem.depth import Depth, Kind, _is_array
from odenet._solvers.names import AnySolver
from odenet._solvers.names import solver as solver_named


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


@dataclass(frozen=True)
class Network:
    """What the theory's tools are given.

    Args:
        field: `field(t, y, w)`.
        y0: a tree of NumPy arrays.
        depth: weights along depth, NumPy.
        steps: their number N.
        t0, t1: times.
        backend: by which it is solved, by name.
        device: on which.
        batched: whether the first axis of y0 is one of samples, each with a trajectory of its own.
    """

    field: Callable[..., Any]
    y0: Any
    depth: Depth
    steps: int
    t0: float
    t1: float
    backend: str
    device: str
    batched: bool

    @property
    def step(self) -> float:
        """The step size h."""
        return (self.t1 - self.t0) / self.steps

    @property
    def dtype(self) -> np.dtype[Any]:
        """The number type of the state; of several the widest."""
        return np.result_type(*_tree.leaves(self.y0))

    @property
    def samples(self) -> int:
        """How many trajectories there are."""
        return len(_tree.leaves(self.y0)[0]) if self.batched else 1

    @contextmanager
    def prepared(self) -> Iterator[_registry.Backend]:
        """The backend, ready for these arrays."""
        backend = _registry.backend(self.backend)
        with backend.prepare(self.dtype.name, self.device):
            yield backend

    def trajectory(self, depth: Depth, solver: str | AnySolver, steps: int) -> np.ndarray:
        """All states of a solve from y0, as `flat` has them: shape (steps + 1, samples, entries of one)."""
        with self.prepared() as backend:
            solution = solve(
                self.field,
                self.y0,
                depth,
                t0=self.t0,
                t1=self.t1,
                steps=steps,
                solver=solver_named(solver),
                ts="all",
                backend=_registry.entry(self.backend),
            )
            return self.flat(_tree.map(backend.to_numpy, solution.ys))

    def flat(self, states: Any) -> np.ndarray:
        """A tree of states with a leading axis as one array, shape (points, samples, entries of one)."""
        leaves = _tree.leaves(states)
        points, samples = len(leaves[0]), self.samples
        return np.concatenate([np.reshape(leaf, (points, samples, -1)) for leaf in leaves], axis=2)

    def tree(self, flat: np.ndarray) -> Any:
        """The inverse of `flat`: a tree like y0 whose leaves have a leading axis."""
        leaves, unflatten = _tree.flatten(self.y0)
        ends = np.cumsum([leaf.size // self.samples for leaf in leaves])[:-1]
        parts = np.split(flat, ends, axis=2)
        return unflatten(
            [
                np.reshape(part, (len(flat), *leaf.shape)).astype(leaf.dtype)
                for part, leaf in zip(parts, leaves, strict=True)
            ]
        )


def network(
    field: Callable[..., Any],
    y0: Any,
    weights: Any,
    *,
    t0: float,
    t1: float,
    steps: int | None,
    backend: str | None,
    device: str,
    batched: bool,
) -> Network:
    """The network of these, checked, with its arrays on the host."""
    yes_or_no("batched", batched)
    first, last = (within(key, time) for key, time in (("t0", t0), ("t1", t1)))
    if steps is not None:
        whole("steps", steps)
    depth = weights if isinstance(weights, Depth) else Depth(weights)
    name = (_registry.entry_for([y0, depth.tree]) if backend is None else _registry.entry(backend)).name
    count = depth.intervals if steps is None else steps
    if count is None:
        raise InputError("weights that are the same at all depths, without steps", "steps=N")
    if depth.kind == "piecewise" and count != depth.layers:
        raise InputError(
            f"steps={count} with {depth.layers} piecewise layers",
            "one step a layer",
            "leave steps out; a layer that is met several times is no smooth function of depth",
        )
    depth.factor(count)
    state = _tree.map(lambda leaf: np.asarray(as_numpy(leaf)), y0)
    if first == last:
        raise InputError(f"t0={t0} and t1={t1}, between which a network has no steps", "two different times")
    if not _tree.leaves(state) or any(leaf.dtype.kind != "f" for leaf in _tree.leaves(state)):
        raise InputError("a state with numbers that are not real", "real floating-point arrays")
    sizes = {np.shape(leaf)[:1] for leaf in _tree.leaves(state)}
    if batched and (len(sizes) != 1 or () in sizes):
        raise InputError("a batched state whose leaves have no first axis of one length", "one axis of samples first")
    return Network(field, state, on_host(depth), count, first, last, name, device, batched)


def continued(depth: Depth) -> Depth:
    """The Neural ODE's weights: straight lines between those of the layers, which stand at the starts of steps.

    The last layer's hold to the end: it has no neighbour there, and of what is smooth one step is O(1/N²).
    """
    if depth.kind != "piecewise":
        return depth
    return layers_at(depth, [*range(depth.layers), depth.layers - 1], "linear")


def at_points(depth: Depth, points: int, steps: int) -> Depth:
    """The weights at the first `points` (steps or steps + 1) ends of `steps` equal steps: a layer for each."""
    fitted = depth.fit(steps)
    if fitted.kind == "shared":
        return Depth.each([fitted.tree] * points)
    return layers_at(fitted, range(points), "piecewise")


def every(depth: Depth, stride: int) -> Depth:
    """The piecewise layers 0, stride, 2 stride, ..."""
    return layers_at(depth, range(0, depth.layers, stride), "piecewise")


@dataclass(frozen=True)
class ByStep:
    """A size at the end of every step.

    Args:
        by_step: shape (N + 1,), the first at t0.
    """

    by_step: np.ndarray

    @property
    def steps(self) -> int:
        """The number of steps N."""
        return len(self.by_step) - 1

    @property
    def largest(self) -> float:
        """The largest over all steps."""
        return float(self.by_step.max())


def sizes(states: np.ndarray) -> np.ndarray:
    """The Euclidean norm at each point, the largest over samples.

    Args:
        states: shape (points, samples, entries of one).
    """
    return np.linalg.norm(states, axis=2).max(axis=1)
