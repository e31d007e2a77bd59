"""The constants in the paper's bounds, estimated along a trajectory: the field's Lipschitz constant, and x''."""

from __future__ import annotations

import math

import numpy as np

from odenet._check import within
from odenet._problem.depth import Depth
from odenet.theory._linearised import Linearised
from odenet.theory._network import Network, at_points, continued, every

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
