"""Figure 4 where training goes far: all images of CIFAR-10, and a network with stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from odenet._jobs.reproduce.claims.depth_accuracy import (
    ERROR,
    RESNET,
    RESNET_CORRECTED,
    RESNET_PAPER,
    closes,
    gaps,
    trained,
)
from odenet._jobs.reproduce.claims.depth_accuracy import draw as draw_curves
from odenet._jobs.reproduce.controls import thresholds
from odenet._jobs.reproduce.drawing import finish, over_depth
from odenet._jobs.reproduce.reproduction import CurveCell, Point, Reproduction, Settings, values
from odenet._jobs.reproduce.training import Recipe, network
from odenet._jobs.reproduce.verdict import OverSeeds, Verdict, below, ones

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CURVES = (RESNET, RESNET_PAPER, RESNET_CORRECTED)
LONGER = "ResNet, backprop, twice the epochs"
LIMITS = thresholds("all-images")
_QUICK = Recipe(images=600, test=None, epochs=10, batch=50, lr=0.1)
_REDUCED = Recipe(images=None, test=None, epochs=20, batch=128, lr=0.1)
_PAPER = Recipe(images=None, test=None, epochs=90, batch=128, lr=0.1)


def cells(choices: Settings) -> tuple[CurveCell, ...]:
    """N = 2 and 4, where the paper's gradient fails in a shallow network; 2 to 16 at the paper's scale. In a quick run
    backpropagation alone: in so few steps no method loses anything."""
    depths = choices.sized((2, 4), (2, 4), (2, 4, 8, 16))
    return choices.cells(choices.sized((RESNET,), (*CURVES, LONGER), CURVES), depths, seeds=choices.sized(2, 1, 3))


def measure(cell: CurveCell, choices: Settings) -> tuple[Point, ...]:
    """Train from the same weights with the same batches, whatever the gradient method of the deep stage."""
    width = choices.sized(16, 64, 64)
    spec = network(choices, "conv", cell.depth, width, before=(1, 1), activated=True, norm="batch")
    recipe = choices.sized(_QUICK, _REDUCED, _PAPER)
    if cell.curve != LONGER:
        return trained(cell, choices, spec, recipe, float(cell.depth))
    longer = trained(replace(cell, curve=RESNET), choices, spec, replace(recipe, epochs=2 * recipe.epochs), cell.depth)
    return tuple(replace(point, curve=LONGER) for point in longer)


def draw(points: Sequence[Point], figure: Figure) -> None:
    """As in `depth_accuracy`, with the longer training beside."""
    draw_curves(points, figure)
    axes = figure.axes[0]
    over_depth(axes, values(points, LONGER, ERROR), LONGER, 0, ":")
    finish(axes, "test error", "Test error over depth")
    axes.set_yscale("linear")


def verdicts(points: Sequence[Point]) -> tuple[Verdict, ...]:
    """Whether training went far, whether the shallowest network loses accuracy, and a deeper one less."""
    error, lost = {curve: values(points, curve, ERROR) for curve in CURVES}, gaps(points, RESNET_PAPER)
    far = _far(RESNET, error[RESNET])
    if not lost:  # a quick run
        return (far,)
    shallow = min(lost)
    longer = values(points, LONGER, ERROR)
    return (
        far,
        *((_far(LONGER, longer),) if longer else ()),
        below(
            "ResNet, paper: the shallowest network loses accuracy",
            {n: of_seeds for n, of_seeds in error[RESNET].items() if n == shallow},
            error[RESNET_PAPER],
            LIMITS["loses"],
        ),
        closes(lost, LIMITS["closes"]),
    )


def _far(curve: str, error: OverSeeds) -> Verdict:
    return below(f"{curve}: the test error is under {100 * LIMITS['error']:g} %", error, ones(error), LIMITS["error"])


REPRODUCTION = Reproduction(
    "all-images",
    "Figure 4: with the memory-free gradient a shallow ResNet loses accuracy, and a deeper one less; here with all "
    "images, so that backpropagation gets to errors of a usual network.",
    "A stem 3x3 and two ordinary residual stages of 16 and 32 channels before the deep one of 64 channels on 8x8 (N "
    "blocks conv-BatchNorm-ReLU-conv-BatchNorm, scaled by 1/N, the last normalisations starting at 0), then the mean "
    "over the image; only the deep stage has the gradient method of the curve. Each curve starts from the same weights "
    "and sees the same batches, SGD with momentum 0.9; the rate of the blocks is times N. "
    f"Quick: 16 channels, {_QUICK}. Reduced: {_REDUCED}, one seed, and backpropagation once more with twice the "
    f"epochs. Paper: {_PAPER}. Without --data, digits in the place of CIFAR-10.",
    cells,
    measure,
    draw,
    verdicts,
    (12.0, 5.0),
)
