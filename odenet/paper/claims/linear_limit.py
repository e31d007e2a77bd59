"""Deep linear ResNets under gradient flow stay smooth in depth, and tend to a Neural ODE (section 3, figure 2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

import odenet
from odenet import Depth, _registry
from odenet._theory import smoothness
from odenet.paper.reproduction import Cell, Choices, Point, Reproduction, values
from odenet.paper.verdict import Verdict, below, falls, falls_throughout, stays

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 4
RATE = 0.1  # of descent, times N: 100 steps are the gradient flow's time 10
STEPS, QUICK_STEPS = 100, 80
SMOOTH, ROUGH = "smooth start", "rough start"
LOSS, SMOOTHNESS, STATES, WEIGHTS, ENTRY = "loss", "smoothness", "distance of states", "distance of weights", "weight"
FINAL, LARGEST = "loss at the end", "largest smoothness"  # over training, relative to what it began with


@dataclass(frozen=True)
class Moment:
    """A network in training.

    Args:
        step: of descent.
        loss: before that step.
        weights: shape (N, WIDTH, WIDTH).
        states: from the unit matrix on, shape (N + 1, WIDTH, WIDTH).
    """

    step: int
    loss: float
    weights: np.ndarray
    states: np.ndarray


def cells(choices: Choices) -> tuple[Cell, ...]:
    """N = 4 to 64."""
    return choices.cells([SMOOTH, ROUGH], choices.depths(4, 64, quick=32))


def measure(cell: Cell, choices: Choices) -> tuple[Point, ...]:
    """Train, and compare with the limit at each moment that is looked at."""
    steps = QUICK_STEPS if choices.quick else STEPS
    deepest = cells(choices)[-1].depth
    moments = train(cell, steps)
    found = []
    for now, limit in zip(moments, _limit(cell.backend, cell.seed, deepest, steps), strict=True):
        stride = len(limit.weights) // cell.depth
        apart = {
            LOSS: now.loss,
            SMOOTHNESS: smoothness(Depth(now.weights, "piecewise")),
            STATES: _largest(now.states - limit.states[::stride]),
            WEIGHTS: _largest(now.weights - limit.weights[::stride]),
        }
        found += [cell.point(quantity, value, now.step) for quantity, value in apart.items()]
        if cell.seed == 0 and cell.depth == deepest:
            found += [cell.point(ENTRY, w[0, 1], now.step, layer) for layer, w in enumerate(now.weights)]
    for quantity in (STATES, WEIGHTS):
        found.append(cell.point(quantity, max(each.value for each in found if each.quantity == quantity)))
    smooth = [each.value for each in found if each.quantity == SMOOTHNESS]
    return (
        *found,
        cell.point(SMOOTHNESS, max(smooth)),
        cell.point(LARGEST, max(smooth) / smooth[0]),
        _end(cell, moments),
    )


def train(cell: Cell, steps: int) -> list[Moment]:
    """Gradient descent on `|W - B|²/2`, W = (1 + w[N-1]/N) ... (1 + w[0]/N), with the rate times N: eleven moments."""
    return list(_training(cell, steps))


def _training(cell: Cell, steps: int) -> Iterable[Moment]:
    n = cell.depth
    backend = _registry.backend(cell.backend)
    weights, target = _start(cell)
    compiled = _gradient(cell.backend)
    with backend.prepare("float64", "cpu"):
        for step in range(steps + 1):
            loss, slopes, states = map(backend.to_numpy, compiled(np.eye(WIDTH), target, weights))
            if step % (steps // 10) == 0:
                yield Moment(step, float(loss), weights, states)
            weights = weights - RATE * n * slopes


@cache
def _gradient(backend: str) -> Callable[[Any, Any, Any], Any]:
    """Loss, gradient and states; compiled once for each depth.

    The target rides along as a state that stands still: the loss sees arrays of the framework alone.
    """

    def gradient(unit: Any, aim: Any, w: Any) -> Any:
        loss, slopes, solution = odenet.value_and_grad(
            lambda solution: ((solution.ys[0][-1] - solution.ys[1][-1]) ** 2).sum() / 2,
            lambda t, y, w: (y[0] @ w, 0 * y[1]),
            (unit, aim),
            Depth(w, "piecewise"),
            solver="euler",
            gradient="backprop",
            ts="all",
            backend=backend,
        )
        return loss, slopes.weights, solution.ys[0]

    return _registry.backend(backend).compiled(gradient)


def _start(cell: Cell) -> tuple[np.ndarray, np.ndarray]:
    """Weights and target: `w(s)` smooth in depth, with independent noise on the layers of a rough start."""
    generator = np.random.default_rng([cell.seed, 4])
    first, second, goal = (generator.standard_normal((WIDTH, WIDTH)) / WIDTH**0.5 for _ in range(3))
    s = (np.pi / 2 * np.arange(cell.depth) / cell.depth).reshape(-1, 1, 1)
    weights = 0.5 * (np.cos(s) * first + np.sin(s) * second)
    if cell.curve == ROUGH:
        noise = np.random.default_rng([cell.seed, 5, cell.depth])
        weights = weights + 0.5 * noise.standard_normal(weights.shape) / WIDTH**0.5
    return weights, np.eye(WIDTH) + 0.5 * goal


@lru_cache(maxsize=4)
def _limit(backend: str, seed: int, deepest: int, steps: int) -> tuple[Moment, ...]:
    """N to infinity, from twice and four times the deepest network: what both have of O(1/N) is taken away."""
    once, twice = (train(Cell(backend, seed, SMOOTH, k * deepest), steps) for k in (2, 4))
    return tuple(
        Moment(
            one.step,
            2 * two.loss - one.loss,
            2 * two.weights[::2] - one.weights,
            2 * two.states[::2] - one.states,
        )
        for one, two in zip(once, twice, strict=True)
    )


def _end(cell: Cell, moments: Sequence[Moment]) -> Point:
    return cell.point(FINAL, moments[-1].loss / moments[0].loss)


def _largest(differences: np.ndarray) -> float:
    return float(np.linalg.norm(differences, axis=(1, 2)).max())


def draw(points: Sequence[Point], figure: Figure) -> None:
    """Loss, smoothness and distance, and the weights over depth (figure 2)."""
    from odenet.paper.drawing import COLOURS, finish, over_depth, slope

    panels = figure.subplots(2, 2)
    loss, smooth, apart, over = panels.ravel()
    deepest = max(each.depth for each in points)
    steps = sorted({each.step for each in points if each.step is not None})
    for index, curve in enumerate((SMOOTH, ROUGH)):
        middle = [np.median(values(points, curve, LOSS, step).get(deepest, [np.nan])) for step in steps]
        loss.semilogy(steps, middle, color=COLOURS[index], label=f"{curve}, N={deepest}")
        over_depth(smooth, values(points, curve, SMOOTHNESS), curve, index)
        over_depth(apart, values(points, curve, STATES), f"states, {curve}", index)
        over_depth(apart, values(points, curve, WEIGHTS), f"weights, {curve}", index, "--")
        for place, step in enumerate(steps[i * (len(steps) - 1) // 3] for i in range(4)):
            entries = {each.layer or 0: each.value for each in points if _is_entry(each, curve, step)}
            shade = 0.25 + 0.25 * place
            label = f"{curve}, step {step}" if index == 0 else None
            over.plot(list(entries), list(entries.values()), color=COLOURS[index], alpha=shade, label=label)
    loss.set(xlabel="step of training", ylabel="loss")
    loss.set_title("Loss")
    loss.legend()
    slope(apart, values(points, SMOOTH, STATES), 1, "1/N")
    finish(smooth, "N max |w[n+1] - w[n]|", "Smoothness: largest over training")
    finish(apart, "largest over training", "Distance to the limit")
    over.set(xlabel="layer n", ylabel="w[n], row 0, column 1")
    over.set_title(f"Weights over depth, N={deepest}")
    over.legend()


def _is_entry(point: Point, curve: str, step: int) -> bool:
    return (point.quantity, point.curve, point.step) == (ENTRY, curve, step)


def verdicts(points: Sequence[Point]) -> tuple[Verdict, ...]:
    """What holds from a smooth start, and fails from a rough one."""
    one = {n: [1.0] * len(each) for n, each in values(points, SMOOTH, FINAL).items()}
    steps = sorted({each.step for each in points if each.step is not None})
    return (
        below("smooth start: the loss falls to a hundredth", values(points, SMOOTH, FINAL), one, 0.01),
        stays("smooth start: N max |w[n+1] - w[n]| over training does not grow with N", _smooth(points, SMOOTH), 0.2),
        below("smooth start: it grows at most to twice its start", values(points, SMOOTH, LARGEST), one, 2),
        *(
            verdict
            for quantity, first in ((STATES, 0), (WEIGHTS, 1))  # the weights start on the limit
            for verdict in (
                falls(
                    f"smooth start: the {quantity} to the limit falls as 1/N", values(points, SMOOTH, quantity), 1, 0.2
                ),
                falls_throughout(
                    f"smooth start: the {quantity} falls as 1/N at each moment of training",
                    {step: values(points, SMOOTH, quantity, step) for step in steps[first:]},
                    1,
                    0.2,
                ),
            )
        ),
        falls("rough start: N max |w[n+1] - w[n]| grows as N", _smooth(points, ROUGH), -1, 0.3),
        stays("rough start: the weights do not tend to the limit", values(points, ROUGH, WEIGHTS), 0.3),
    )


def _smooth(points: Sequence[Point], curve: str) -> dict[int, list[float]]:
    return values(points, curve, SMOOTHNESS)


REPRODUCTION = Reproduction(
    "linear-limit",
    "Section 3: a deep linear ResNet that starts smooth in depth and near its target stays smooth under gradient flow, "
    "its loss tends to 0, and it tends to a Neural ODE as 1/N, uniformly over training. From a start that is not "
    "smooth it does not become smooth (figure 2 shows weights over depth).",
    "Linear ResNets of width 4, float64, whitened inputs (the unit matrix), gradient descent with its rate times N. "
    "The limit is extrapolated over depth from networks of twice and four times the largest N. A rough start is the "
    "smooth one with independent noise on each layer.",
    cells,
    measure,
    draw,
    verdicts,
    (11.0, 8.0),
)
