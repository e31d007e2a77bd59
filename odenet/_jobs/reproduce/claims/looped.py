"""Beyond the paper: a transformer block in a loop is an autonomous ODE, trained without stored activations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from odenet import theory
from odenet._backend import registry as _registry
from odenet._backend.solve import value_and_grad
from odenet._gradients.certified import quiet
from odenet._jobs.data.sets import CHARACTERS, lines
from odenet._jobs.reproduce.controls import thresholds
from odenet._jobs.reproduce.drawing import finish, over_depth, slope
from odenet._jobs.reproduce.network import BACKPROP, CORRECTED, METHODS, PAPER, tanh
from odenet._jobs.reproduce.reproduction import CurveCell, Point, Reproduction, Settings, values
from odenet._jobs.reproduce.verdict import Verdict, as_good, falls, smaller
from odenet._problem.depth import Depth
from odenet._report.difference import flat, relative

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Weights = dict[str, np.ndarray]

ERROR, BEFORE = "share of next characters not guessed", "the same before training"
APART = "distance of the loss to that of more and more loops"
CURVES = {name: METHODS[name] for name in (BACKPROP, PAPER, CORRECTED)}
LIMITS = thresholds("looped")
WIDTH, HIDDEN, LENGTH, BATCH = 32, 64, 24, 16
TRAINED = 8  # loops in training; the trained block is then looped more and less often
_SPAN = 4.0  # t1: steps of 1/2 in training
_RATE, _STEPS = 0.01, (60, 300, 300)
_TEST = 16  # batches


def field(t: Any, state: Any, w: Any) -> Any:
    """Causal attention of one head beside two layers with tanh, both of the normalised state; the rest stands still."""
    y, target, readout = state
    unit = _normal(y)
    scores = (unit @ w["q"]) @ (unit @ w["k"]).swapaxes(-1, -2) / WIDTH**0.5
    likely = np.e ** (20 * tanh(scores / 20)) * w["past"]  # bounded, so that no exponential overflows
    mixed = (likely / likely.sum(-1, keepdims=True)) @ (unit @ w["v"])
    return mixed @ w["o"] + tanh(unit @ w["in"]) @ w["out"], 0 * target, 0 * readout


def _normal(y: Any) -> Any:
    return y * ((y * y).sum(-1, keepdims=True) / WIDTH + 1e-6) ** -0.5


def _probabilities(y: Any, readout: Any) -> Any:
    likely = np.e ** (20 * tanh(_normal(y) @ readout / 20))
    return likely / likely.sum(-1, keepdims=True)


def _loss(solution: Any) -> Any:
    """Brier's score, a proper one that needs no logarithm: the squared distance of probabilities to what came."""
    y, target, readout = solution.y1
    return ((_probabilities(y, readout) - target) ** 2).sum() / (BATCH * LENGTH)


def start(seed: int) -> Weights:
    """Random weights: the block's, an embedding of characters and of places, and what reads characters off."""
    generator = np.random.default_rng([seed, 11])
    shapes = {
        "q": (WIDTH, WIDTH), "k": (WIDTH, WIDTH), "v": (WIDTH, WIDTH), "o": (WIDTH, WIDTH),
        "in": (WIDTH, HIDDEN), "out": (HIDDEN, WIDTH),
        "readout": (WIDTH, len(CHARACTERS)), "characters": (len(CHARACTERS), WIDTH), "places": (LENGTH, WIDTH),
    }  # fmt: skip
    weights = {name: generator.standard_normal(shape) / shape[0] ** 0.5 for name, shape in shapes.items()}
    return weights | {"characters": generator.standard_normal(shapes["characters"]), "places": 0.3 * weights["places"]}


def gradient(weights: Weights, text: np.ndarray, loops: int, curve: str, backend: str) -> tuple[float, Weights, Any]:
    """Loss, gradient by all weights, and the last state, of text of shape (BATCH, LENGTH + 1)."""
    context, target = text[:, :-1], np.eye(len(CHARACTERS))[text[:, 1:]]
    block = {name: weights[name] for name in ("q", "k", "v", "o", "in", "out")} | {"past": np.tri(LENGTH)}
    y0 = weights["characters"][context] + weights["places"]
    loaded = _registry.backend(backend)
    with quiet():  # with few loops the adjoint is far off, which is what is measured
        loss, by_block, *others = _compiled(curve, loops, backend)(y0, target, weights["readout"], block)
    by_y, by_readout, last = map(loaded.to_numpy, others)
    gradients = {name: loaded.to_numpy(by_block[name]) for name in block if name != "past"}
    characters = np.zeros_like(weights["characters"])
    np.add.at(characters, context, by_y)
    return (
        float(loaded.to_numpy(loss)),
        gradients | {"characters": characters, "places": by_y.sum(0), "readout": by_readout},
        last,
    )


@cache
def _compiled(curve: str, loops: int, backend: str) -> Callable[..., Any]:
    def both(y0: Any, target: Any, readout: Any, block: Any) -> Any:
        loss, slopes, solution = value_and_grad(
            _loss,
            field,
            (y0, target, readout),
            Depth(block),
            t1=_SPAN,
            steps=loops,
            solver="euler",
            gradient=CURVES[curve],  # and no time is kept but the last: a kept state would not have to be rebuilt
            backend=_registry.entry(backend),
        )
        return loss, slopes.weights, slopes.y0[0], slopes.y0[2], solution.y1[0]

    return _registry.backend(backend).compiled(both)


@lru_cache(maxsize=8)
def trained(backend: str, seed: int, curve: str, steps: int, device: str) -> Mapping[str, np.ndarray]:
    """Adam (Kingma and Ba 2015) on the host, by the gradient of the curve."""
    weights = start(seed)
    mean, square = ({name: np.zeros_like(w) for name, w in weights.items()} for _ in range(2))
    with _registry.backend(backend).prepare("float64", device):
        for step in range(1, steps + 1):
            text = lines("train", BATCH, LENGTH + 1, 10_000 * seed + step)
            _, slopes, _ = gradient(weights, text, TRAINED, curve, backend)
            rate = _RATE * min(1.0, 2 - 2 * step / steps)
            for name, g in slopes.items():
                mean[name] = 0.9 * mean[name] + 0.1 * g
                square[name] = 0.99 * square[name] + 0.01 * g**2
                size = np.sqrt(square[name] / (1 - 0.99**step)) + 1e-8
                weights[name] = weights[name] - rate * mean[name] / (1 - 0.9**step) / size
    return weights


def cells(choices: Settings) -> tuple[CurveCell, ...]:
    """8 loops for each gradient; of backpropagation's network 4 to 64 loops, too."""
    depths = choices.depths(4, 128, quick=64)
    every = choices.cells(list(CURVES), depths, seeds=choices.sized(3, 5, 5))
    return tuple(cell for cell in every if cell.curve == BACKPROP or cell.depth == TRAINED)


def measure(cell: CurveCell, choices: Settings) -> tuple[Point, ...]:
    """Errors on text that was not seen; of backpropagation's network, other gradients and other numbers of loops."""
    steps, deepest = choices.sized(*_STEPS), max(cell.depth for cell in cells(choices))
    weights = dict(trained(cell.backend, cell.seed, cell.curve, steps, choices.device))
    with _registry.backend(cell.backend).prepare("float64", choices.device):
        points = []
        if cell.depth == TRAINED:
            points = [
                cell.point(ERROR, _error(cell, weights)),
                cell.point(BEFORE, _error(cell, start(cell.seed))),
            ]
        if cell.curve == BACKPROP:
            text = lines("test", BATCH, LENGTH + 1, 0)
            loss, exact, _ = gradient(weights, text, cell.depth, BACKPROP, cell.backend)
            points += [cell.point(APART, abs(loss - _limit(cell.backend, cell.seed, deepest, steps, choices.device)))]
            for name in (PAPER, CORRECTED):
                _, other, _ = gradient(weights, text, cell.depth, name, cell.backend)
                points.append(cell.point(name, relative(flat(other), flat(exact))))
    return tuple(points)


def _error(cell: CurveCell, weights: Weights) -> float:
    wrong = []
    for piece in range(_TEST):
        text = lines("test", BATCH, LENGTH + 1, 1 + piece)
        _, _, last = gradient(weights, text, TRAINED, cell.curve, cell.backend)
        wrong.append((_probabilities(last, weights["readout"]).argmax(-1) != text[:, 1:]).mean())
    return float(np.mean(wrong))


@lru_cache(maxsize=2)
def _limit(backend: str, seed: int, deepest: int, steps: int, device: str) -> float:
    """The loss of infinitely many loops, extrapolated from twice and four times the most."""
    weights, text = dict(trained(backend, seed, BACKPROP, steps, device)), lines("test", BATCH, LENGTH + 1, 0)
    terms = [gradient(weights, text, k * deepest, BACKPROP, backend)[0] for k in (2, 4)]
    return float(theory.limit(terms).value)


def draw(points: Sequence[Point], figure: Figure) -> None:
    """Loss and gradients over loops."""
    loss, apart = figure.subplots(1, 2)
    over_depth(loss, values(points, BACKPROP, APART), "trained with 8 loops", 0)
    slope(loss, values(points, BACKPROP, APART), 1, "1/K")
    finish(loss, "distance of the loss to its limit", "A looped transformer, over loops K")
    for index, name in enumerate((PAPER, CORRECTED), 1):
        over_depth(apart, values(points, BACKPROP, name), name, index)
    slope(apart, values(points, BACKPROP, PAPER), 1, "1/K")
    finish(apart, "relative error of the gradient", "Without stored activations")


def verdicts(points: Sequence[Point]) -> tuple[Verdict, ...]:
    """It learns, it is an ODE, and its gradient needs no activations."""
    error = {curve: values(points, curve, ERROR) for curve in CURVES}
    before = values(points, BACKPROP, BEFORE)
    least = int(LIMITS["from_loops"])
    return (
        smaller("the looped block learns to guess characters", error[BACKPROP], before, LIMITS["learnt"]),
        falls(
            "looped more often than in training, its loss tends to a limit as 1/K",
            values(points, BACKPROP, APART),
            LIMITS["order"],
            LIMITS["tolerance"],
            least,
        ),
        falls(
            f"{PAPER}: the error of the memory-free gradient falls as 1/K",
            values(points, BACKPROP, PAPER),
            LIMITS["order"],
            LIMITS["tolerance"],
            least,
        ),
        falls(
            f"{CORRECTED}: the error of the memory-free gradient falls as 1/K²",
            values(points, BACKPROP, CORRECTED),
            LIMITS["corrected_order"],
            LIMITS["tolerance"],
            least,
        ),
        *(
            as_good(
                f"{curve}: trained without stored activations it guesses as well",
                error[curve],
                {n: of_seeds for n, of_seeds in error[BACKPROP].items() if n in error[curve]},
                LIMITS["margin"],
                bad={"no training, which is a gradient of 0": before},
            )
            for curve in (PAPER, CORRECTED)
        ),
    )


REPRODUCTION = Reproduction(
    "looped",
    "Beyond the paper: a transformer whose one block is looped K times, y + h f(y), is Euler's method for an "
    "autonomous ODE. Its weights are as smooth in depth as can be, so that the memory-free gradient is at its best: "
    "its error falls as 1/K, and as 1/K² with the correction; and looped more often it tends to a limit.",
    f"One block of width {WIDTH} (causal attention of one head beside two layers with tanh, of the normalised state), "
    f"looped {TRAINED} times with steps of {_SPAN / TRAINED:g} in training; pieces of {LENGTH} characters of the "
    "language reference that Python ships, the last tenth of it for the test. Adam, batches of 16; the loss is Brier's "
    f"score. Quick {_STEPS[0]} steps, else {_STEPS[1]}.",
    cells,
    measure,
    draw,
    verdicts,
    (11.0, 4.8),
)
