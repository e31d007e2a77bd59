"""Deep networks under gradient flow, and their limit over depth: what the reproductions of section 3 share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np

from odenet import theory
from odenet._backend import registry as _registry
from odenet._backend.solve import value_and_grad
from odenet._jobs.reproduce.reproduction import CurveCell, Point, values
from odenet._jobs.reproduce.verdict import Verdict, below, falls, falls_throughout, ones, stays
from odenet._problem.depth import Depth

LOSS, SMOOTHNESS, STATES, WEIGHTS = "loss", "smoothness", "distance of states", "distance of weights"
ENTRY, CHANGE = "weight", "change of weights"  # by layer, of one network
MEAN = "mean distance of weights"  # over layers
FINAL, LARGEST = "loss at the end", "largest smoothness"  # over training, relative to what it began with
RATE, LIMIT_RATE = "rate at which the loss falls", "rate of the limit"  # in a unit of time
BEFORE, AFTER = "roughness exponent at the start", "roughness exponent after training"
_LAYERS = 8  # that a roughness exponent needs
RATE_APART = "distance of the rate to that of the limit"


Limits = Mapping[str, float]
"""Thresholds by name."""


@dataclass(frozen=True)
class Start:
    """What a network begins with.

    Args:
        weights: shape (N, ...).
        inputs, target: shape (batch, width).
    """

    weights: np.ndarray
    inputs: np.ndarray
    target: np.ndarray


@dataclass(frozen=True)
class Flow:
    """Networks of one kind, of any depth, and how they are trained.

    Args:
        field: of a layer, `field(t, y, w)`.
        start: of a seed and a depth N: weights that are a smooth function of depth, near the target.
        rate: of descent, times N: 100 steps of 0.1 are the gradient flow's time 10.
        noise: of a rough start, independent in every layer and weight.
    """

    field: Callable[[Any, Any, Any], Any]
    start: Callable[[int, int], Start]
    rate: float
    noise: float


@dataclass(frozen=True)
class Moment:
    """A network in training.

    Args:
        step: of descent.
        loss: before that step.
        weights: shape (N, ...).
        states: from the inputs on, shape (N + 1, batch, width).
    """

    step: int
    loss: float
    weights: np.ndarray
    states: np.ndarray


def measure(flow: Flow, cell: CurveCell, *, rough: bool, steps: int, deepest: int, device: str) -> tuple[Point, ...]:
    """Train, and compare with the limit of smooth starts at each moment that is looked at.

    Args:
        flow: what is trained.
        cell: its seed and depth.
        rough: whether it starts with independent noise on each layer.
        steps: of descent.
        deepest: the largest N; the limit is that of networks of twice and four times as many layers.
        device: of the backend.
    """
    moments = train(flow, cell.backend, cell.seed, cell.depth, steps, rough=rough, device=device)
    points = []
    limits = _limit(flow, cell.backend, cell.seed, deepest, steps, device)
    for now, limit in zip(moments, limits, strict=True):
        stride = len(limit.weights) // cell.depth
        weights = _norms(now.weights - limit.weights[::stride])
        apart = {
            LOSS: now.loss,
            SMOOTHNESS: theory.smoothness(Depth(now.weights, "piecewise")),
            STATES: _norms(now.states - limit.states[::stride]).max(),
            WEIGHTS: weights.max(),
            MEAN: weights.mean(),
        }
        points += [cell.point(quantity, value, now.step) for quantity, value in apart.items()]
        if cell.seed == 0 and cell.depth == deepest:
            by_layer = {
                ENTRY: now.weights.reshape(cell.depth, -1)[:, 1],
                CHANGE: cell.depth * _norms(np.diff(now.weights, axis=0)),
            }
            for quantity, entries in by_layer.items():
                points += [cell.point(quantity, entry, now.step, layer) for layer, entry in enumerate(entries)]
    for quantity in (STATES, WEIGHTS, MEAN):
        points.append(cell.point(quantity, max(point.value for point in points if point.quantity == quantity)))
    smooth = [point.value for point in points if point.quantity == SMOOTHNESS]
    rate, to_be = _rate(flow, moments), _rate(flow, limits)
    return (
        *points,
        cell.point(SMOOTHNESS, max(smooth)),
        cell.point(LARGEST, max(smooth) / smooth[0] if smooth[0] else np.inf),  # of a tied start nothing is a part
        cell.point(FINAL, moments[-1].loss / moments[0].loss),
        cell.point(RATE, rate),
        cell.point(LIMIT_RATE, to_be),
        cell.point(RATE_APART, abs(rate - to_be)),
        *(
            cell.point(quantity, theory.roughness(Depth(moment.weights, "piecewise")).exponent)
            for quantity, moment in ((BEFORE, moments[0]), (AFTER, moments[-1]))
            if cell.depth >= _LAYERS
        ),
    )


def _rate(flow: Flow, moments: Sequence[Moment]) -> float:
    """The rate of `loss = c exp(-rate time)`, by least squares over the second half of training: the loss is small."""
    late = moments[len(moments) // 2 :]
    times = [flow.rate * moment.step for moment in late]
    return -float(np.polynomial.polynomial.polyfit(times, [np.log(moment.loss) for moment in late], 1)[1])


def train(
    flow: Flow, backend: str, seed: int, depth: int, steps: int, *, rough: bool = False, device: str = "cpu"
) -> list[Moment]:
    """Gradient descent on `|y[N] - target|²/2` with the rate times N: eleven moments."""
    return list(_training(flow, backend, seed, depth, steps, rough, device))


def _training(flow: Flow, name: str, seed: int, depth: int, steps: int, rough: bool, device: str) -> Iterator[Moment]:
    backend = _registry.backend(name)
    start = flow.start(seed, depth)
    weights = start.weights
    if rough:
        weights = weights + flow.noise * np.random.default_rng([seed, 5, depth]).standard_normal(weights.shape)
    compiled = _gradient(flow.field, name)
    with backend.prepare("float64", device):
        for step in range(steps + 1):
            loss, slopes, states = map(backend.to_numpy, compiled(start.inputs, start.target, weights))
            if step % (steps // 10) == 0:
                yield Moment(step, float(loss), weights, states)
            weights = weights - flow.rate * depth * slopes


@cache
def _gradient(field: Callable[[Any, Any, Any], Any], backend: str) -> Callable[[Any, Any, Any], Any]:
    """Loss, gradient and states; compiled once for each depth.

    The target rides along as a state that stands still: the loss sees arrays of the framework alone.
    """

    def gradient(inputs: Any, target: Any, w: Any) -> Any:
        loss, slopes, solution = value_and_grad(
            lambda solution: ((solution.ys[0][-1] - solution.ys[1][-1]) ** 2).sum() / 2,
            lambda t, y, w: (field(t, y[0], w), 0 * y[1]),
            (inputs, target),
            Depth(w, "piecewise"),
            solver="euler",
            gradient="backprop",
            ts="all",
            backend=_registry.entry(backend),
        )
        return loss, slopes.weights, solution.ys[0]

    return _registry.backend(backend).compiled(gradient)


@lru_cache(maxsize=4)
def _limit(flow: Flow, backend: str, seed: int, deepest: int, steps: int, device: str) -> tuple[Moment, ...]:
    """N to infinity, from twice and four times the deepest network: what both have of O(1/N) is taken away."""
    once, twice = (train(flow, backend, seed, k * deepest, steps, device=device) for k in (2, 4))
    return tuple(
        Moment(
            one.step,
            float(theory.limit([one.loss, two.loss]).value),
            theory.limit([one.weights, two.weights[::2]]).value,
            theory.limit([one.states, two.states[::2]]).value,
        )
        for one, two in zip(once, twice, strict=True)
    )


def _norms(differences: np.ndarray) -> np.ndarray:
    """The Euclidean norm of each layer's difference."""
    return np.linalg.norm(differences.reshape(len(differences), -1), axis=1)


def trained(points: Sequence[Point], curve: str, limits: Limits) -> Verdict:
    """The verdict on whether the loss falls to almost 0."""
    claim = f"{curve}: the loss falls to {limits['trained']:g} of the first"
    return below(claim, values(points, curve, FINAL), ones(values(points, curve, FINAL)), limits["trained"])


def stays_smooth(points: Sequence[Point], curve: str, limits: Limits) -> tuple[Verdict, Verdict]:
    """Smoothness is bounded over N, and over training."""
    claim = f"{curve}: N max |w[n+1] - w[n]| over training does not grow with N"
    grown = f"{curve}: it grows at most to {limits['grown']:g} times its start"
    return (
        stays(claim, values(points, curve, SMOOTHNESS), limits["smoothness_tolerance"]),
        below(grown, values(points, curve, LARGEST), ones(values(points, curve, FINAL)), limits["grown"]),
    )


def tends(points: Sequence[Point], curve: str, quantity: str, limits: Limits) -> tuple[Verdict, Verdict]:
    """A distance to the limit falls as 1/N, uniformly over training, but for a start that is on the limit."""
    steps = sorted({point.step for point in points if point.step is not None})[quantity != STATES :]
    every = {step: values(points, curve, quantity, step) for step in steps}
    moments = {
        step: at_depths
        for step, at_depths in every.items()
        if any(x != 0 for of_seeds in at_depths.values() for x in of_seeds)
    }
    allowed = limits["order"], limits["tolerance"]
    return (
        falls(f"{curve}: the {quantity} to the limit falls as 1/N", values(points, curve, quantity), *allowed),
        falls_throughout(f"{curve}: the {quantity} falls as 1/N at each moment of training", moments, *allowed),
    )


def stays_rough(points: Sequence[Point], curve: str, limits: Limits) -> tuple[Verdict, Verdict]:
    """What is not smooth at the start does not become smooth."""
    claim = f"{curve}: N max |w[n+1] - w[n]| grows as N"
    weights = values(points, curve, WEIGHTS)
    return (
        falls(claim, values(points, curve, SMOOTHNESS), limits["rough_order"], limits["rough_tolerance"]),
        stays(f"{curve}: the weights do not tend to the limit of smooth starts", weights, limits["rough_tolerance"]),
    )
