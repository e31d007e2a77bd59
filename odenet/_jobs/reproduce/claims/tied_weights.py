"""ResNets with one block for all depths: smooth in depth by construction (figure 3a)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from odenet._jobs.reproduce.controls import thresholds
from odenet._jobs.reproduce.drawing import finish, over_depth, slope
from odenet._jobs.reproduce.network import BACKPROP, CORRECTED, METHODS, PAPER, errors
from odenet._jobs.reproduce.reproduction import CurveCell, Point, Reproduction, Settings, values
from odenet._jobs.reproduce.training import Recipe, guessing, sample, small_network, train
from odenet._jobs.reproduce.verdict import Verdict, as_good, falls, no_worse, smaller

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ERROR, GUESSING = "test error", "error of guessing"
GRADIENT_PAPER, GRADIENT_CORRECTED = "gradient error, paper", "gradient error, corrected"
FROZEN = "blocks that do not learn"
CURVES = {BACKPROP: METHODS[BACKPROP], PAPER: METHODS[PAPER], FROZEN: METHODS[BACKPROP]}
"""The last is a control: a gradient of 0 for the blocks, which no verdict may call as good."""
_METHODS = {GRADIENT_PAPER: METHODS[PAPER], GRADIENT_CORRECTED: METHODS[CORRECTED]}
_OTHERS = ("stem.", "head.")  # how names of weights begin that are none of the blocks'
LIMITS = thresholds("tied-weights")
_QUICK = Recipe(images=600, test=None, epochs=3, batch=50, lr=0.1)
_REDUCED = Recipe(images=2000, test=2000, epochs=5, batch=50, lr=0.1)
_PAPER = Recipe(images=None, test=None, epochs=200, batch=128, lr=0.1)


def cells(choices: Settings) -> tuple[CurveCell, ...]:
    """N = 4 to 64; the control at the deepest, where the claim is made."""
    depths = choices.depths(4, 64, quick=32)
    every = choices.cells(list(CURVES), depths, seeds=choices.sized(2, 3, 5))
    return tuple(cell for cell in every if cell.curve != FROZEN or cell.depth == depths[-1])


def measure(cell: CurveCell, choices: Settings) -> tuple[Point, ...]:
    """Train; of the network that backpropagation made, the errors of other gradients."""
    recipe = choices.sized(_QUICK, _REDUCED, _PAPER)
    spec = small_network(choices, cell.depth, "shared")
    method = CURVES[cell.curve]
    rates = {start: 1.0 for start in _OTHERS} if cell.curve == FROZEN else None
    start = spec.init(cell.seed)
    done = train(cell, choices, spec, recipe, solver="euler", gradient=method, weights=start, rates=rates)
    points = [cell.point(ERROR, done.error), cell.point(GUESSING, guessing(choices))]
    if cell.curve == BACKPROP and done.finished:
        batch = sample(choices, recipe, cell.seed)
        apart = errors(cell.backend, choices.device, spec, done.weights, "euler", batch, _METHODS)
        points += [cell.point(name, error.whole) for name, error in apart.items()]
    return tuple(points)


def draw(points: Sequence[Point], figure: Figure) -> None:
    """Test errors and gradient errors over depth."""
    error, apart = figure.subplots(1, 2)
    for index, curve in enumerate((BACKPROP, PAPER)):
        over_depth(error, values(points, curve, ERROR), curve, index, "-" if index == 0 else "--")
    finish(error, "test error", "Tied weights: test error over depth")
    error.set_yscale("linear")
    for index, quantity in enumerate(_METHODS, 1):
        over_depth(apart, values(points, BACKPROP, quantity), quantity.removeprefix("gradient error, "), index)
    slope(apart, values(points, BACKPROP, GRADIENT_PAPER), 1, "1/N")
    finish(apart, "relative error of the gradient", "Gradient of the trained networks")


def verdicts(points: Sequence[Point]) -> tuple[Verdict, ...]:
    """That depth neither harms the network nor, in the end, the memory-free gradient."""
    exact, paper, frozen = (values(points, curve, ERROR) for curve in CURVES)
    gradients = {name: values(points, BACKPROP, name) for name in _METHODS}
    deepest = max(exact, default=1)
    margin, more = LIMITS["margin"], LIMITS["deep_margin"]
    return (
        smaller("every network has learnt", exact, values(points, BACKPROP, GUESSING), LIMITS["learnt"]),
        no_worse(
            "tied weights train at any depth: the deepest network is as good as the shallowest",
            {n: of_seeds for n, of_seeds in exact.items() if n == deepest},
            {deepest: exact.get(min(exact, default=1), [])},
            more,
        ),
        falls(
            "the error of the paper's gradient falls as 1/N",
            gradients[GRADIENT_PAPER],
            LIMITS["order"],
            LIMITS["tolerance"],
        ),
        smaller("the corrected gradient is nearer", gradients[GRADIENT_CORRECTED], gradients[GRADIENT_PAPER]),
        as_good(
            "the deepest network is as good when it is trained without stored activations (paper)",
            paper,
            exact,
            margin,
            deepest,
            {FROZEN: frozen},
        ),
    )


REPRODUCTION = Reproduction(
    "tied-weights",
    "Figure 3a and section 4: a ResNet with the same weights at all depths is smooth in depth; it trains at any depth, "
    "and the memory-free gradient's error falls as 1/N.",
    "The small network of depth-accuracy with one block for all N steps, scaled by 1/N (the paper has four stages of "
    f"such blocks). Quick: 8 channels, {_QUICK}. Reduced: {_REDUCED}. Paper: {_PAPER}. Gradient errors are of a batch "
    "of 64, in float64, relative to backpropagation's. Without --data, digits in the place of CIFAR-10.",
    cells,
    measure,
    draw,
    verdicts,
    (12.0, 5.0),
)
