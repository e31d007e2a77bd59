"""Test error of ResNets and HeunNets trained with and without stored activations (figure 4)."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from odenet._gradients.names import Backprop, DiscreteAdjoint, Gradient
from odenet._jobs.reproduce.controls import thresholds
from odenet._jobs.reproduce.drawing import COLOURS, finish, over_depth
from odenet._jobs.reproduce.network import errors
from odenet._jobs.reproduce.reproduction import CurveCell, Point, Reproduction, Settings, values
from odenet._jobs.reproduce.training import Recipe, guessing, sample, small_network, train
from odenet._jobs.reproduce.verdict import OverSeeds, Verdict, as_good, below, medians, points_above

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from odenet._nets.spec import NetSpec

ERROR, GUESSING, LOSS, CERTIFICATE, GRADIENT = (
    "test error",
    "error of guessing",
    "training loss of the last epoch",
    "largest certificate",
    "error of the paper's gradient after training",
)
RESNET, RESNET_PAPER, RESNET_CORRECTED = "ResNet, backprop", "ResNet, paper", "ResNet, corrected"
HEUNNET, HEUNNET_PAPER = "HeunNet, backprop", "HeunNet, paper"
CURVES: dict[str, tuple[str, Gradient]] = {
    RESNET: ("euler", Backprop()),
    RESNET_PAPER: ("euler", DiscreteAdjoint(correct=False)),
    RESNET_CORRECTED: ("euler", DiscreteAdjoint()),
    HEUNNET: ("heun", Backprop()),
    HEUNNET_PAPER: ("heun", DiscreteAdjoint(correct=False)),
}
_REFERENCE = {RESNET_PAPER: RESNET, RESNET_CORRECTED: RESNET, HEUNNET_PAPER: HEUNNET}
LIMITS = thresholds("depth-accuracy")
_QUICK = Recipe(images=600, test=None, epochs=3, batch=50, lr=0.1)
_REDUCED = Recipe(images=10_000, test=None, epochs=15, batch=128, lr=0.1)  # 1170 steps
_PAPER = Recipe(images=None, test=None, epochs=90, batch=128, lr=0.1, schedule="step")


def cells(choices: Settings) -> tuple[CurveCell, ...]:
    """N = 4 and 16 for a look, 2 to 16 in a reduced run, and 2 to 64 at the paper's scale, from shallow to deep."""
    depths = choices.sized((4, 16), (2, 4, 8, 16), (2, 4, 8, 16, 32, 64))
    if choices.depth is not None:
        depths = choices.depths(depths[0], depths[-1], quick=16)
    candidates = choices.cells(list(CURVES), depths, seeds=choices.sized(2, 3, 5))
    # a shallow network takes a tenth of the time of a deep one
    return tuple(sorted(candidates, key=lambda cell: cell.depth))


def measure(cell: CurveCell, choices: Settings) -> tuple[Point, ...]:
    """Train from the same weights with the same batches, whatever the gradient method; then, of the networks that
    backpropagation made, the error of the paper's gradient."""
    along = "piecewise" if CURVES[cell.curve][0] == "euler" else "linear"
    spec, recipe = small_network(choices, cell.depth, along, "batch"), choices.sized(_QUICK, _REDUCED, _PAPER)
    # a block's gradient has a factor of 1/N: with the rate times N all depths learn alike (section 3)
    return trained(cell, choices, spec, recipe, choices.sized(float(cell.depth), float(cell.depth), 1.0))


def trained(cell: CurveCell, choices: Settings, spec: NetSpec, recipe: Recipe, rate: float) -> tuple[Point, ...]:
    """The points of a network trained by the solver and gradient of its curve; `rate` multiplies that of its blocks."""
    solver, gradient = CURVES[cell.curve]
    done = train(
        cell,
        choices,
        spec,
        recipe,
        solver=solver,
        gradient=gradient,
        weights=spec.init(cell.seed, "zero"),
        rates={"": 1.0, "block.": rate},
    )
    points = [
        cell.point(ERROR, done.error),
        cell.point(GUESSING, guessing(choices)),
        cell.point(LOSS, done.epochs[-1].loss),
    ]
    if done.certificate is not None:
        points.append(cell.point(CERTIFICATE, done.certificate))
    if isinstance(gradient, Backprop) and done.finished:
        batch, method = sample(choices, recipe, cell.seed), {GRADIENT: DiscreteAdjoint(correct=False)}
        apart = errors(cell.backend, choices.device, spec, done.weights, solver, batch, method)
        points.append(cell.point(GRADIENT, apart[GRADIENT].whole))
    return tuple(points)


def draw(points: Sequence[Point], figure: Figure) -> None:
    """Errors over depth, and how far each method is from backpropagation."""
    error, apart = figure.subplots(1, 2)
    styles = [style for style in _styles() if values(points, style[0], ERROR)]
    for curve, line, index in styles:
        over_depth(error, values(points, curve, ERROR), curve, index, line)
    finish(error, "test error", "Test error over depth")
    error.set_yscale("linear")
    for place, (curve, line, index) in enumerate(styles):
        if curve in _REFERENCE:
            lost = gaps(points, curve)
            places = [n * 1.05**place for n in lost]  # side by side
            middle = [statistics.mean(gap) for gap in lost.values()]
            ends = [(m - min(gap), max(gap) - m) for m, gap in zip(middle, lost.values(), strict=True)]
            apart.errorbar(
                places,
                middle,
                yerr=list(zip(*ends, strict=True)) or None,
                fmt="o",
                linestyle=line,
                color=COLOURS[index],
                capsize=3,
                label=curve,
            )
    margin = LIMITS["margin"]
    apart.axhspan(-margin, margin, color="#888888", alpha=0.15, label=f"± {margin:g} points")
    apart.set(xscale="log", xlabel="depth N", ylabel="points of test error above backpropagation's")
    depths = sorted({point.depth for point in points})
    apart.set_xticks(depths, [str(n) for n in depths])
    apart.minorticks_off()
    apart.set_title("Same weights and batches: mean and range over seeds")
    apart.legend()


def _styles() -> list[tuple[str, str, int]]:
    """Curve, line and colour: dashed for HeunNet, a colour for a method."""
    return [
        (RESNET, "-", 0),
        (RESNET_PAPER, "-", 1),
        (RESNET_CORRECTED, "-", 2),
        (HEUNNET, "--", 0),
        (HEUNNET_PAPER, "--", 1),
    ]


def gaps(points: Sequence[Point], curve: str) -> dict[int, list[float]]:
    """By depth, how many points of test error a method has more than backpropagation, seed by seed."""
    return points_above(values(points, curve, ERROR), values(points, _REFERENCE[curve], ERROR))


def verdicts(points: Sequence[Point]) -> tuple[Verdict, ...]:
    """Whether a deep network is as good without stored activations, and what a shallow one loses."""
    error = {curve: values(points, curve, ERROR) for curve in CURVES}
    lost, deep = gaps(points, RESNET_PAPER), int(LIMITS["deep"])
    return (
        *(_learns(points, curve) for curve in (RESNET, HEUNNET)),
        below(
            f"ResNet, paper: the shallowest network (N up to {LIMITS['shallow']}) loses accuracy",
            {n: of_seeds for n, of_seeds in error[RESNET].items() if n == min(lost, default=0) <= LIMITS["shallow"]},
            error[RESNET_PAPER],
            LIMITS["loses"],
        ),
        closes(lost, LIMITS["closes"]),
        *(
            as_good(
                f"{curve}: from N={deep} on the test error is that of backpropagation",
                error[curve],
                error[_REFERENCE[curve]],
                LIMITS["margin"],
                deep,
            )
            for curve in (HEUNNET_PAPER, RESNET_CORRECTED)
        ),
        below(
            "HeunNet needs fewer layers: at each depth the paper's gradient has half the error of a ResNet's or less "
            "(medians, networks that backpropagation made)",
            medians(values(points, HEUNNET, GRADIENT)),
            medians(values(points, RESNET, GRADIENT)),
            LIMITS["fewer_layers"],
        ),
    )


def closes(lost: OverSeeds, part: float) -> Verdict:
    """Whether depth mends what the paper's method loses: means over seeds of the shallowest and deepest networks."""
    mean = {n: statistics.mean(of_seeds) for n, of_seeds in lost.items()}
    shallow, deep = ([mean[end(mean)]] if len(mean) > 1 else [] for end in (min, max))
    claim = f"ResNet, paper: the deepest network loses {part:g} of what the shallowest does, or less (mean points)"
    return below(claim, {0: deep}, {0: shallow}, part)


def _learns(points: Sequence[Point], curve: str) -> Verdict:
    """Else no difference would mean anything."""
    return below(
        f"{curve}: every network has learnt",
        values(points, curve, ERROR),
        values(points, curve, GUESSING),
        LIMITS["learnt"],
    )


REPRODUCTION = Reproduction(
    "depth-accuracy",
    "Figure 4: with the memory-free gradient a shallow ResNet loses accuracy and a deep one does not; a HeunNet needs "
    "fewer layers to lose none.",
    "The authors' small network (blocks conv-BatchNorm-ReLU-conv-BatchNorm between 10x10 images of 16 channels, scaled "
    "by 1/N, the last normalisations starting at 0); each curve starts from the same weights and sees the same "
    f"batches, SGD with momentum 0.9. Quick: 8 channels, {_QUICK}. Reduced: {_REDUCED}. In both the blocks' rate is "
    f"times N. Paper: {_PAPER}. HeunNet has N + 1 blocks for N steps. Without --data, digits in the place of CIFAR-10.",
    cells,
    measure,
    draw,
    verdicts,
    (12.0, 5.0),
)
