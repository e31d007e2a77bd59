"""The memory-free gradient in the third stage of a ResNet-101, with steps of 1/N and of 1 (figure 3b).

Over 250 lines: one claim: its cells, what is measured in each, the figure and eight verdicts.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from odenet._gradients.names import Backprop, DiscreteAdjoint, Gradient
from odenet._jobs.reproduce.controls import thresholds
from odenet._jobs.reproduce.drawing import COLOURS
from odenet._jobs.reproduce.network import BACKPROP, CORRECTED, METHODS, PAPER, errors
from odenet._jobs.reproduce.reproduction import CurveCell, Point, Reproduction, Settings, values
from odenet._jobs.reproduce.training import Recipe, guessing, network, sample, train
from odenet._jobs.reproduce.verdict import Verdict, as_good, below
from odenet._nets.spec import Norm

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOSS, ERROR, GUESSING, CERTIFICATE = (
    "training loss of the last epoch",
    "test error",
    "error of guessing",
    "largest certificate",
)
EVAL, COUNTED, COUNTED_CORRECTED = "paper with eval", "paper, counted twice more", "corrected, counted twice more"
ITERATED, ANCHORED = "4 iterations", "anchors every 2"
SCALED, PLAIN = "steps of 1/N", "steps of 1"
_GRADIENTS: dict[str, Gradient] = {
    PAPER: METHODS[PAPER],
    CORRECTED: METHODS[CORRECTED],
    ITERATED: DiscreteAdjoint(iterations=4),
    ANCHORED: DiscreteAdjoint(anchors=2),
}


@dataclass(frozen=True)
class Training:
    """How a network is scaled and trained.

    Args:
        gradient: of its third stage.
        norm: of its convolutions.
    """

    gradient: Gradient
    norm: Norm = "batch"


WAYS = {
    BACKPROP: Training(Backprop()),
    PAPER: Training(_GRADIENTS[PAPER]),
    CORRECTED: Training(_GRADIENTS[CORRECTED]),
    EVAL: Training(_GRADIENTS[PAPER], "batch-eval-backward"),
    COUNTED: Training(_GRADIENTS[PAPER], "batch-counting-backward"),
    COUNTED_CORRECTED: Training(_GRADIENTS[CORRECTED], "batch-counting-backward"),
}
_FAULTY = (EVAL, COUNTED, COUNTED_CORRECTED)


def curve(way: str, steps: str) -> str:
    """The name of a network that is trained in that way, with those steps."""
    return f"{way}, {steps}"


CURVES = {curve(way, steps): (way, steps) for steps in (SCALED, PLAIN) for way in WAYS}
BLOCKS = 22  # steps of the third stage: the first of its 23 blocks gives it its size
_BEFORE, _AFTER = (3, 4), (3,)
_FEW = (1,)  # blocks of the other stages in a quick run
LIMITS = thresholds("adjoint-failure")
_QUICK = Recipe(images=800, test=None, epochs=4, batch=50, lr=0.1, schedule="constant", augment=False)
_REDUCED = Recipe(
    images=3200, test=2000, epochs=3, batch=64, lr=0.1, schedule="constant", weight_decay=1e-4, augment=False
)
_PAPER = Recipe(images=None, test=None, epochs=102, batch=256, lr=0.1, schedule="step", weight_decay=1e-4)


def error_of(method: str) -> str:
    """The quantity that is the error of a method's gradient, on a network that backpropagation made."""
    return f"gradient error, {method}"


def certificate_of(method: str) -> str:
    """The quantity that is its certificate."""
    return f"certificate of that, {method}"


def cells(choices: Settings) -> tuple[CurveCell, ...]:
    """The one depth that ResNet-101 has. What reads running statistics in its backward pass is a network of
    torch only."""
    candidates = choices.cells(list(CURVES), [BLOCKS], seeds=choices.sized(1, 3, 1))
    return tuple(cell for cell in candidates if cell.backend == "torch" or CURVES[cell.curve][0] not in _FAULTY)


def measure(cell: CurveCell, choices: Settings) -> tuple[Point, ...]:
    """Train; then, of the networks that backpropagation made, the errors of the other gradients."""
    name, steps = CURVES[cell.curve]
    way, recipe = WAYS[name], choices.sized(_QUICK, _REDUCED, _PAPER)
    spec = network(
        choices,
        "bottleneck",
        BLOCKS,
        choices.sized(32, 64, 1024),
        before=choices.sized(_FEW, (), _BEFORE),
        after=choices.sized(_FEW, (), _AFTER),
        activated=True,
        norm=way.norm,
        horizon=1.0 if steps == SCALED else float(BLOCKS),
    )
    start = spec.init(cell.seed, "independent")
    done = train(cell, choices, spec, recipe, solver="euler", gradient=way.gradient, weights=start)
    points = [
        cell.point(LOSS, done.epochs[-1].loss),
        cell.point(ERROR, done.error),
        cell.point(GUESSING, guessing(choices)),
    ]
    if done.certificate is not None and math.isfinite(done.certificate):
        points.append(cell.point(CERTIFICATE, done.certificate))
    if isinstance(way.gradient, Backprop) and done.finished:
        batch = sample(choices, recipe, cell.seed)
        apart = errors(cell.backend, choices.device, spec, done.weights, "euler", batch, _GRADIENTS)
        for method, difference in apart.items():
            points.append(cell.point(error_of(method), difference.whole))
            points.append(cell.point(certificate_of(method), difference.certificate or 0.0))
    return tuple(points)


def draw(points: Sequence[Point], figure: Figure) -> None:
    """Test errors and certificates of training, and what a certificate says of the gradient's error."""
    error, certificate, apart = figure.subplots(1, 3)
    _by_way(error, points, ERROR)
    error.axhline(100 * max((p.value for p in points if p.quantity == GUESSING), default=1.0), color="#888888", ls=":")
    error.set_title("After training: each seed, and medians")
    error.legend()
    _by_way(certificate, points, CERTIFICATE)
    certificate.set(yscale="log")
    certificate.set_title("Largest certificate of training")
    _errors_and_certificates(apart, points)


def _by_way(axes: Axes, points: Sequence[Point], quantity: str) -> None:
    factor = 100 if quantity == ERROR else 1
    for index, steps in enumerate((SCALED, PLAIN)):
        for place, way in enumerate(WAYS):
            of_seeds = [factor * v for v in values(points, curve(way, steps), quantity).get(BLOCKS, [])]
            if not of_seeds:
                continue
            x = place + 0.3 * index - 0.15
            label = steps if way == PAPER else None
            axes.bar(x, statistics.median(of_seeds), 0.28, color=COLOURS[index], alpha=0.5, label=label)
            axes.plot([x] * len(of_seeds), of_seeds, "o", color=COLOURS[index], markersize=4)
    axes.set_xticks(range(len(WAYS)), list(WAYS), rotation=25, ha="right")
    axes.set(ylabel=f"{quantity} (%)" if quantity == ERROR else quantity)


def _errors_and_certificates(axes: Axes, points: Sequence[Point]) -> None:
    for marker, steps in (("s", SCALED), ("o", PLAIN)):
        for index, name in enumerate(_GRADIENTS, 1):
            trained = curve(BACKPROP, steps)
            pair = (values(points, trained, quantity) for quantity in (certificate_of(name), error_of(name)))
            residuals, apart = (over_depth.get(BLOCKS, []) for over_depth in pair)
            axes.loglog(residuals, apart, marker, color=COLOURS[index], label=f"{name}, {steps}")
    axes.set(xlabel="certificate", ylabel="relative error of the gradient")
    axes.set_title("After training by backpropagation")
    axes.legend(fontsize="small")


def verdicts(points: Sequence[Point]) -> tuple[Verdict, ...]:
    """What fails with which steps, what does not, and what says so."""
    by_curve = {name: values(points, name, ERROR) for name in CURVES}
    guess = {steps: values(points, curve(BACKPROP, steps), GUESSING) for steps in (SCALED, PLAIN)}
    error, residual = (
        {steps: values(points, curve(BACKPROP, steps), of(PAPER)) for steps in (SCALED, PLAIN)}
        for of in (error_of, certificate_of)
    )
    wrong = {n: [LIMITS["wrong"]] * len(of_seeds) for n, of_seeds in error[PLAIN].items()}
    iterated = values(points, curve(BACKPROP, SCALED), error_of(ITERATED))

    def exact(steps: str) -> dict[int, list[float]]:
        return by_curve[curve(BACKPROP, steps)]

    judgements = [
        *(
            below(f"backpropagation trains it, with {steps}", exact(steps), guess[steps], LIMITS["learnt"])
            for steps in (SCALED, PLAIN)
        ),
        *(
            as_good(
                f"{way}, {SCALED}: the test error is that of backpropagation",
                by_curve[curve(way, SCALED)],
                exact(SCALED),
                LIMITS["margin"],
            )
            for way in (PAPER, CORRECTED)
        ),
        below(f"paper, {PLAIN}: the gradient is wrong by a tenth or more", wrong, error[PLAIN]),
        below("steps of 1/N have a fifth of that gradient error", error[SCALED], error[PLAIN], LIMITS["scaled"]),
        below("and 4 iterations a hundredth of what is left", iterated, error[SCALED], LIMITS["iterated"]),
        below(
            "the certificate is five times as large with steps of 1",
            residual[SCALED],
            residual[PLAIN],
            LIMITS["certificate"],
        ),
    ]
    if any(by_curve[curve(way, steps)] for way in _FAULTY for steps in (SCALED, PLAIN)):  # torch only
        judgements += [
            below(
                f"{EVAL}, {steps}: it loses accuracy", exact(steps), by_curve[curve(EVAL, steps)], LIMITS["eval_fails"]
            )
            for steps in (SCALED, PLAIN)
        ]
        for way in (COUNTED, COUNTED_CORRECTED):
            counted = {steps: by_curve[curve(way, steps)] for steps in (SCALED, PLAIN)}
            text = f"{way}, {SCALED}: the test error is that of backpropagation"
            judgements.append(as_good(text, counted[SCALED], exact(SCALED), LIMITS["margin"]))
            judgements.append(
                below(f"{way}, {PLAIN}: it fails to train", exact(PLAIN), counted[PLAIN], LIMITS["fails"])
            )
        judgements.append(
            below(
                f"a part of this failure, {PLAIN}: statistics of states that the forward pass did not have",
                by_curve[curve(PAPER, PLAIN)],
                by_curve[curve(COUNTED, PLAIN)],
                LIMITS["statistics"],
            )
        )
    return tuple(judgements)


REPRODUCTION = Reproduction(
    "adjoint-failure",
    "Figure 3b: in the third stage of a ResNet-101, of 23 blocks, the memory-free gradient fails to train on ImageNet.",
    "ResNet-101's stages of 3, 4, 23 and 3 bottleneck blocks with BatchNorm, which start at random, as in the authors' "
    "code, but without the ReLUs between blocks; the memory-free gradient is used in the 22 equal blocks of the third "
    "stage. The authors' code scales these by 1/N, and its way back calls eval(), which on one device switches the "
    "blocks to running statistics until the next epoch: each of the two is done with and without. Where the backward "
    "pass runs blocks in training mode, an ordinary BatchNorm counts each batch twice more, at states that are only "
    "about those of the forward pass: with and without, too. A training that breaks down counts as guessing. "
    f"Quick: 32 channels there in the place of 1024, and one block in each of two other stages, {_QUICK}; reduced: the "
    f"22 blocks between a stem and a head, 64 channels, {_REDUCED}. Paper: {_PAPER}, on an image folder given by "
    "--data. Gradient errors are of a batch of 64, "
    "in float64. Without --data, digits in the place of ImageNet.",
    cells,
    measure,
    draw,
    verdicts,
    (15.0, 4.8),
)
