"""The memory-free gradient where steps are not scaled: the third stage of a ResNet-101 (figure 3b)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from odenet._gradients.names import Backprop, DiscreteAdjoint, Gradient
from odenet._jobs.reproduce.drawing import COLOURS
from odenet._jobs.reproduce.errors import errors
from odenet._jobs.reproduce.methods import BACKPROP, CORRECTED, METHODS, PAPER
from odenet._jobs.reproduce.reproduction import Choices, CurveCell, Point, Reproduction, values
from odenet._jobs.reproduce.training import Recipe, network, sample, train
from odenet._jobs.reproduce.verdict import Verdict, below

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOSS, LAST_LOSS, ERROR, CERTIFICATE = "training loss", "training loss of the last epoch", "test error", "certificate"
ITERATED, ANCHORED, SCALED = "4 iterations", "anchors every 2", "backprop, scaled by 1/N"
_METHODS: dict[str, Gradient] = {
    PAPER: METHODS[PAPER],
    CORRECTED: METHODS[CORRECTED],
    ITERATED: DiscreteAdjoint(iterations=4),
    ANCHORED: DiscreteAdjoint(anchors=2),
}
CURVES: dict[str, Gradient] = {BACKPROP: Backprop(), **_METHODS, SCALED: Backprop()}
BLOCKS = 22  # steps of the third stage: the first of its 23 blocks gives it its size
_BEFORE, _AFTER = (3, 4), (3,)
_QUICK = Recipe(images=800, test=None, epochs=8, batch=50, lr=0.02, augment=False)
_REDUCED = Recipe(images=1000, test=None, epochs=15, batch=50, lr=0.03, augment=False)
_PAPER = Recipe(images=None, test=None, epochs=100, batch=256, lr=0.1, schedule="step", weight_decay=1e-4)


def error_of(method: str) -> str:
    """The quantity that is the error of a method's gradient, on the network of the curve."""
    return f"gradient error, {method}"


def certificate_of(method: str) -> str:
    """The quantity that is its certificate."""
    return f"certificate of that, {method}"


def cells(choices: Choices) -> tuple[CurveCell, ...]:
    """The one depth that ResNet-101 has."""
    return choices.cells(list(CURVES), [BLOCKS], seeds=choices.sized(1, 3, 1))


def measure(cell: CurveCell, choices: Choices) -> tuple[Point, ...]:
    """Train; then, of the networks that backpropagation made, the errors of the other gradients."""
    recipe = choices.sized(_QUICK, _REDUCED, _PAPER)
    spec = network(
        choices,
        "bottleneck",
        BLOCKS,
        choices.sized(64, 64, 1024),
        before=_BEFORE,
        after=_AFTER,
        horizon=1.0 if cell.curve == SCALED else float(BLOCKS),
    )
    method = CURVES[cell.curve]
    start = spec.init(cell.seed, choices.sized("independent", "independent", "zero"))
    done = train(cell, choices, spec, recipe, solver="euler", gradient=method, weights=start)
    found = [cell.point(LAST_LOSS, done.epochs[-1].loss), cell.point(ERROR, done.error)]
    for number, epoch in enumerate(done.epochs, 1):
        found.append(cell.point(LOSS, epoch.loss, number))
        if epoch.certificate is not None:
            found.append(cell.point(CERTIFICATE, epoch.certificate, number))
    if isinstance(method, Backprop) and done.finished:
        batch = sample(choices, recipe, cell.seed)
        apart = errors(cell.backend, choices.device, spec, done.weights, "euler", batch, _METHODS)
        for name, each in apart.items():
            found.append(cell.point(error_of(name), each.whole))
            found.append(cell.point(certificate_of(name), each.certificate or 0.0))
    return tuple(found)


def draw(points: Sequence[Point], figure: Figure) -> None:
    """Training, its certificates, and what a certificate says of the gradient's error."""
    loss, certificate, apart = figure.subplots(1, 3)
    _over_epochs(loss, points, LOSS)
    loss.set_title("Training loss")
    loss.legend()
    _over_epochs(certificate, points, CERTIFICATE)
    certificate.set_title("Certificate: largest of each epoch")
    _errors_and_certificates(apart, points)


def _over_epochs(axes: Axes, points: Sequence[Point], quantity: str) -> None:
    epochs = sorted({each.step for each in points if each.step is not None})
    for index, curve in enumerate(CURVES):
        found = [(n, values(points, curve, quantity, n).get(BLOCKS, [])) for n in epochs]
        middle = [(n, statistics.median(each)) for n, each in found if each]
        if middle:
            axes.semilogy(*zip(*middle, strict=True), color=COLOURS[index], label=curve)
    axes.set(xlabel="epoch", ylabel=quantity)


def _errors_and_certificates(axes: Axes, points: Sequence[Point]) -> None:
    for marker, curve in (("o", BACKPROP), ("s", SCALED)):
        for index, name in enumerate(_METHODS, 1):
            pair = (values(points, curve, quantity) for quantity in (certificate_of(name), error_of(name)))
            residuals, apart = (each.get(BLOCKS, []) for each in pair)
            label = f"{name}{', scaled' if curve == SCALED else ''}"
            axes.loglog(residuals, apart, marker, color=COLOURS[index], label=label)
    axes.set(xlabel="certificate", ylabel="relative error of the gradient")
    axes.set_title("After training by backpropagation")
    axes.legend(fontsize="small")


def verdicts(points: Sequence[Point]) -> tuple[Verdict, ...]:
    """What fails, what helps, and what says so."""
    exact = values(points, BACKPROP, LAST_LOSS)
    error = {(curve, name): values(points, curve, error_of(name)) for curve in (BACKPROP, SCALED) for name in _METHODS}
    tenth = {n: [0.1] * len(each) for n, each in exact.items()}
    paper = error[BACKPROP, PAPER]
    residual, scaled = (values(points, curve, certificate_of(PAPER)) for curve in (BACKPROP, SCALED))
    return (
        below("backpropagation trains it: the loss falls to a tenth", exact, values(points, BACKPROP, LOSS, 1), 0.1),
        below("paper: the gradient is wrong by a tenth or more, unscaled", tenth, paper),
        below(
            "paper: training ends at a loss that is higher by a tenth or more, unscaled",
            exact,
            _failed_is_infinite(values(points, PAPER, LAST_LOSS)),
            1 / 1.1,
        ),
        below("scaled by 1/N, the same network has a fifth of that gradient error", error[SCALED, PAPER], paper, 0.2),
        below("4 iterations: a quarter of the paper's gradient error", error[BACKPROP, ITERATED], paper, 0.25),
        below("anchors every 2: three quarters of the paper's gradient error", error[BACKPROP, ANCHORED], paper, 0.75),
        below("the certificate is five times as large, unscaled", scaled, residual, 0.2),
    )


def _failed_is_infinite(losses: dict[int, list[float]]) -> dict[int, list[float]]:
    """A loss that is no number any more is the largest."""
    return {n: [math.inf if math.isnan(each) else each for each in some] for n, some in losses.items()}


REPRODUCTION = Reproduction(
    "adjoint-failure",
    "Figure 3b: with a ResNet-101, whose blocks are not scaled by 1/N, the memory-free gradient (used in the third "
    "stage, of 23 blocks) fails to train.",
    "ResNet-101's stages of 3, 4, 23 and 3 bottleneck blocks, without the ReLU behind each sum and with GroupNorm in "
    "the place of BatchNorm; the memory-free gradient is used in the 22 equal blocks of the third stage, where each is "
    f"a step of 1. Quick: 64 channels there in the place of 1024, {_QUICK}; reduced: {_REDUCED}; blocks start at "
    f"random. Paper: 1024 channels, {_PAPER}, the last normalisations start at 0, on an image folder given by --data. "
    "Gradient errors are of a batch of 64, in float64. Without --data, digits in the place of ImageNet.",
    cells,
    measure,
    draw,
    verdicts,
    (15.0, 4.8),
)
