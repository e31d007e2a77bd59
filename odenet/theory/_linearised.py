"""A field and its Jacobian at many points of a trajectory at once, by solves of a backend alone; and by these the
constants in the paper's bounds, estimated along the trajectory: the field's Lipschitz constant, and x''.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from odenet import _tree
from odenet._backend import registry as _registry
from odenet._backend.solve import solve, value_and_grad
from odenet._check import within
from odenet._problem.depth import Depth
from odenet.theory._network import Network, as_numpy, at_points, continued, every


@dataclass(frozen=True)
class Linearised:
    """`f(t[n], y[n], w[n])` and its Jacobian by y at P given points.

    A solve whose state forgets itself in every step evaluates all points in one go: with the slope `(v - s) / h`,
    Euler's next state is v. The points travel with the weights, as leaves of a layer.

    Args:
        network: whose field it is.
        depth: the weights at the points: P piecewise layers, NumPy.
        states: y[n], shape (P, samples, entries).
        step: t[n] = t0 + n step.
    """

    network: Network
    depth: Depth
    states: np.ndarray
    step: float

    def slopes(self) -> np.ndarray:
        """f, shape (P, samples, entries)."""
        return self._flat(self._value(*self._arguments(np.zeros_like(self.states))))

    def push(self, vectors: np.ndarray) -> np.ndarray:
        """`J v` at every point, by central differences: relative error about eps^(2/3) where f is smooth.

        Args:
            vectors: shape (P, samples, entries).
        """
        size = np.linalg.norm(vectors, axis=2, keepdims=True)
        reach = nudge(self.states)
        unit = np.divide(vectors, size, out=np.zeros_like(vectors), where=size > 0)
        return self._flat(self._difference(*self._arguments(reach * unit))) * size / (2 * reach)

    def pull(self, vectors: np.ndarray) -> np.ndarray:
        """`Jᵀ u` at every point, by the backend's own gradient.

        Args:
            vectors: shape (P, samples, entries).
        """
        products = self._transposed(*self._arguments(vectors))
        if not self.depth.stacked:
            products = _tree.map(lambda *leaves: np.stack([as_numpy(leaf) for leaf in leaves]), *products)
        return self._flat(products) / self.step

    @cached_property
    def _value(self) -> Callable[..., Any]:
        return self._visiting(lambda f, leaf: f(leaf["y"]))

    @cached_property
    def _difference(self) -> Callable[..., Any]:
        def difference(f: Callable[..., Any], leaf: Any) -> Any:
            ahead, behind = (_tree.map(op, leaf["y"], leaf["v"]) for op in (operator.add, operator.sub))
            return _tree.map(operator.sub, f(ahead), f(behind))

        return self._visiting(difference)

    @cached_property
    def _transposed(self) -> Callable[..., Any]:
        """The gradient by y of the sum of `h f(y) v`, over points and entries; of single layers a list."""

        def transposed(start: Any, layers: Depth) -> Any:
            _, gradients, _ = value_and_grad(
                lambda solution: sum(leaf[-1].sum() for leaf in _tree.leaves(solution.ys)),
                lambda t, s, leaf: _tree.map(operator.mul, self.network.field(t, leaf["y"], leaf["w"]), leaf["v"]),
                start,
                layers,
                **self._choices,
            )
            return gradients.weights["y"] if layers.stacked else [layer["y"] for layer in gradients.weights]

        return self._compiled(transposed)

    def _visiting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """All values of `function(f, leaf)`, f being that of the point's time and weights."""

        def visiting(start: Any, layers: Depth) -> Any:
            def field(t: Any, s: Any, leaf: Any) -> Any:
                value = function(lambda y: self.network.field(t, y, leaf["w"]), leaf)
                return _tree.map(lambda new, old: (new - old) / self.step, value, s)

            solution = solve(field, start, layers, ts="all", **self._choices)
            return _tree.map(lambda leaf: leaf[1:], solution.ys)

        return self._compiled(visiting)

    @property
    def _choices(self) -> dict[str, Any]:
        start = self.network.t0
        end = start + len(self.states) * self.step  # one step for each, the last one's included
        return {"t0": start, "t1": end, "solver": "euler", "backend": self.network.backend}

    def _compiled(self, function: Callable[[Any, Depth], Any]) -> Callable[..., Any]:
        """`function(start, layers)` as one of arrays alone: what else stands in a tree of weights cannot be traced."""
        leaves, unflatten = _tree.flatten(self._layers(self.states).tree)

        def of_arrays(start: Any, arrays: list[Any]) -> Any:
            remaining = iter(arrays)
            tree = unflatten([next(remaining) if isinstance(leaf, np.ndarray) else leaf for leaf in leaves])
            return function(start, Depth(tree, "piecewise", self.depth.stacked))

        compiled = _registry.backend(self.network.backend).compiled(of_arrays)

        def run(start: Any, arrays: list[Any]) -> Any:
            with self.network.prepared() as backend:
                return _tree.map(backend.to_numpy, compiled(start, arrays))

        return run

    def _arguments(self, vectors: np.ndarray) -> tuple[Any, list[Any]]:
        leaves = _tree.leaves(self._layers(vectors).tree)
        start = _tree.map(np.zeros_like, self.network.y0)
        return start, [leaf for leaf in leaves if isinstance(leaf, np.ndarray)]

    def _layers(self, vectors: np.ndarray) -> Depth:
        states, vectors = self.network.tree(self.states), self.network.tree(vectors)
        if self.depth.stacked:
            return Depth({"w": self.depth.tree, "y": states, "v": vectors}, "piecewise")
        return Depth.each([{"w": w, "y": row(states, n), "v": row(vectors, n)} for n, w in enumerate(self.depth.tree)])

    def _flat(self, states: Any) -> np.ndarray:
        return self.network.flat(states)


def row(tree: Any, n: int) -> Any:
    """The trees of point n, as arrays even where they have no axis left."""
    return _tree.map(lambda leaf: np.asarray(leaf[n]), tree)


def nudge(states: np.ndarray) -> float:
    """How far a central difference looks: where truncation and rounding are about the same."""
    scale = max(1.0, float(np.abs(states).max(initial=0.0)))
    return scale * float(np.finfo(states.dtype).eps) ** (1 / 3)


_POINTS = 32
_ITERATIONS = 50
_SETTLED = 1e-3


def lipschitz(network: Network, depth: Depth, states: np.ndarray) -> float:
    """`max |J|`, J the Jacobian of the field by the state along a trajectory: power iteration on `Jᵀ J`.

    A lower estimate of the field's Lipschitz constant: the iteration comes from below (to about 0.1 % where the largest
    singular values are apart), and the constant is a supremum over more than these points, of which it looks at no
    more than 65.

    Args:
        network: whose field it is.
        depth: weights along it, with as many steps as the network.
        states: at the ends of the steps (all but the last, or all), shape (steps or steps + 1, samples, entries).
    """
    stride = max(1, network.steps // _POINTS)
    weights = at_points(depth, len(states), network.steps)
    points = Linearised(network, every(weights, stride), states[::stride], stride * network.step)
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal(points.states.shape).astype(states.dtype)
    largest = 0.0
    for _ in range(_ITERATIONS):
        size = np.linalg.norm(vectors, axis=2, keepdims=True)
        vectors = np.divide(vectors, size, out=np.zeros_like(vectors), where=size > 0)
        moved = points.push(vectors)
        before, largest = largest, float(np.linalg.norm(moved, axis=2).max())
        if largest == 0 or abs(largest - before) <= _SETTLED * largest:
            break
        vectors = points.pull(moved)
    return largest


def second_derivative(network: Network, ode: np.ndarray, substeps: int) -> float:
    """`max |x''|` of the Neural ODE's solution, `x'' = d_s phi + d_x phi [phi]`, by differences of x' = phi.

    In each interval on its own, from both sides where the weights have a kink.

    Args:
        network: whose Neural ODE it is.
        ode: its states at `substeps` equal parts of each of N steps, shape (N substeps + 1, samples, entries).
        substeps: at least 2.
    """
    steps = network.steps * substeps
    step = network.step / substeps
    depth = at_points(continued(network.depth), steps + 1, steps)
    rates = Linearised(network, depth, ode, step).slopes()
    largest = 0.0
    for first in range(0, steps, substeps):
        second = np.gradient(rates[first : first + substeps + 1], step, axis=0, edge_order=2)
        largest = max(largest, float(np.linalg.norm(second, axis=2).max()))
    return largest


def constant_given(lipschitz: float | None) -> None:
    """Raises InputError unless it is None or a Lipschitz constant."""
    if lipschitz is not None:
        within("lipschitz", lipschitz, 0.0, least=True)


def growth(constant: float, span: float) -> float:
    """`(e^(L T) - 1) / L`: what errors of 1 in each unit of time add up to; T where L is 0."""
    try:
        return math.expm1(constant * span) / constant if constant > 0 else span
    except OverflowError:
        return math.inf
