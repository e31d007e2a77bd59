"""A network with tied weights, untied and then fine-tuned in its deep stage without stored activations (table 2)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from odenet._gradients.names import Backprop
from odenet._jobs.reproduce.controls import thresholds
from odenet._jobs.reproduce.drawing import COLOURS
from odenet._jobs.reproduce.network import BACKPROP, BLOCKS, METHODS, PAPER
from odenet._jobs.reproduce.reproduction import CurveCell, Point, Reproduction, Settings, values
from odenet._jobs.reproduce.training import Recipe, network, train
from odenet._jobs.reproduce.verdict import Verdict, as_good, below, smaller
from odenet._nets.spec import NetSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BEFORE, AFTER = "test error before", "test error after"
LOSS_BEFORE, LOSS_AFTER = "training loss before", "training loss after"
BYTES, CERTIFICATE = "peak bytes of a step", "largest certificate"
TIED = "tied"
"""The control: the same epochs by backpropagation, with weights that stay tied."""
CURVES = {**METHODS, TIED: METHODS[BACKPROP]}
_MEMORY_FREE = tuple(name for name in METHODS if name != BACKPROP)
LIMITS = thresholds("fine-tune")
_QUICK = Recipe(images=600, test=None, epochs=4, batch=50, lr=0.03), 5
_REDUCED = Recipe(images=2000, test=5000, epochs=6, batch=50, lr=0.03), 4
_PAPER = Recipe(images=None, test=None, epochs=200, batch=128, lr=0.1), 50
_GENTLY = 0.3  # the rate of fine-tuning over that of training; the blocks' is times N, for gradients of size 1/N


@dataclass(frozen=True)
class Tied:
    """What fine-tuning starts from.

    Args:
        spec, weights: of the network with one block for all steps.
        error: on the test images.
        loss: mean cross-entropy of the last epoch.
    """

    spec: NetSpec
    weights: dict[str, np.ndarray]
    error: float
    loss: float


def cells(choices: Settings) -> tuple[CurveCell, ...]:
    """One depth of the deep stage: 32 blocks."""
    depth = choices.sized(16, 32, 32) if choices.depth is None else choices.depth
    return choices.cells(list(CURVES), [depth], seeds=choices.sized(2, 3, 5))


def measure(cell: CurveCell, choices: Settings) -> tuple[Point, ...]:
    """Fine-tune the deep stage; all methods start from the same network."""
    start = _tied(cell.backend, cell.seed, cell.depth, choices)
    if not math.isfinite(start.loss):
        return tuple(cell.point(name, math.nan) for name in (BEFORE, AFTER, LOSS_BEFORE, LOSS_AFTER, BYTES))
    recipe, epochs = choices.sized(_QUICK, _REDUCED, _PAPER)
    spec = replace(start.spec, along="piecewise")
    # a block's gradient has a factor of 1/N, and that of a tied block is the sum of N of them
    untied = spec, spec.untied(start.weights), float(cell.depth)
    spec, weights, faster = untied if cell.curve != TIED else (start.spec, start.weights, 1.0)
    done = train(
        cell,
        choices,
        spec,
        replace(recipe, epochs=epochs, lr=_GENTLY * recipe.lr),
        solver="euler",
        gradient=CURVES[cell.curve],
        weights=weights,
        rates={BLOCKS: faster},
    )
    quantities = {
        BEFORE: start.error,
        AFTER: done.error,
        LOSS_BEFORE: start.loss,
        LOSS_AFTER: done.epochs[-1].loss,
    }
    if (most := done.trainer.peak_bytes()) is not None:
        quantities[BYTES] = float(most)
    if done.certificate is not None:
        quantities[CERTIFICATE] = done.certificate
    return tuple(cell.point(name, value) for name, value in quantities.items())


@lru_cache(maxsize=2)
def _tied(backend: str, seed: int, depth: int, choices: Settings) -> Tied:
    """Train with one block for all steps, by backpropagation."""
    spec = network(
        choices,
        "conv",
        depth,
        choices.sized(16, 32, 256),
        along="shared",
        before=choices.sized((1,), (1, 1), (4, 4)),
        after=choices.sized((1,), (), (4,)),
        grid=2,
    )
    cell = CurveCell(backend, seed, "tied", depth)
    recipe, _ = choices.sized(_QUICK, _REDUCED, _PAPER)
    done = train(cell, choices, spec, recipe, solver="euler", gradient=Backprop(), weights=spec.init(seed))
    return Tied(spec, done.weights, done.error, done.epochs[-1].loss)


def draw(points: Sequence[Point], figure: Figure) -> None:
    """Errors before and after, losses, and memory."""
    error, loss, memory = figure.subplots(1, 3)
    for axes, before, after, label, factor in (
        (error, BEFORE, AFTER, "test error, %", 100.0),
        (loss, LOSS_BEFORE, LOSS_AFTER, "training loss", 1.0),
    ):
        for place, curve in enumerate(CURVES):
            pairs = zip(_all(points, curve, before), _all(points, curve, after), strict=True)
            for start, end in pairs:
                axes.plot([place - 0.2, place + 0.2], [factor * start, factor * end], "o-", color=COLOURS[place])
        axes.set_xticks(range(len(CURVES)), list(CURVES))
        axes.set(ylabel=label)
    error.set_title("Tied (left), untied and fine-tuned (right)")
    loss.set_title("The same, each line a seed")
    for place, curve in enumerate(CURVES):
        peaks = _all(points, curve, BYTES)
        memory.bar(place, statistics.median(peaks) / 2**20 if peaks else 0, color=COLOURS[place])
    memory.set_xticks(range(len(CURVES)), list(CURVES))
    memory.set(ylabel="MiB")
    memory.set_title("Peak memory of a step")


def verdicts(points: Sequence[Point]) -> tuple[Verdict, ...]:
    """That fine-tuning helps, by more than training on does, as well without stored activations, for less memory."""
    before, after = ({curve: values(points, curve, name) for curve in CURVES} for name in (BEFORE, AFTER))
    loss = {curve: values(points, curve, LOSS_AFTER) for curve in CURVES}
    exact = values(points, BACKPROP, BYTES)
    return (
        *(
            smaller(
                f"{curve}: fine-tuning lowers the training loss",
                loss[curve],
                values(points, curve, LOSS_BEFORE),
                LIMITS["lower"],
            )
            for curve in _MEMORY_FREE
        ),
        *(
            smaller(f"{curve}: fine-tuning lowers the test error", after[curve], before[curve], LIMITS["lower"])
            for curve in _MEMORY_FREE
        ),
        *(
            smaller(f"paper: {quantity} is lower than after as many epochs with tied weights", untied, tied, 1.0)
            for quantity, untied, tied in (
                ("the training loss", loss[PAPER], loss[TIED]),
                ("the test error", after[PAPER], after[TIED]),
            )
        ),
        *(
            as_good(
                f"{curve}: the test error after fine-tuning is that of backpropagation",
                after[curve],
                after[BACKPROP],
                LIMITS["margin"],
                bad={"no fine-tuning, which is a gradient of 0": before[curve]},
            )
            for curve in _MEMORY_FREE
        ),
        *(
            below(f"{curve}: in half the memory", values(points, curve, BYTES), exact, LIMITS["memory"])
            for curve in _MEMORY_FREE
        ),
    )


def _all(points: Sequence[Point], curve: str, quantity: str) -> list[float]:
    return [value for of_seeds in values(points, curve, quantity).values() for value in of_seeds]


REPRODUCTION = Reproduction(
    "fine-tune",
    "Table 2: a network whose deep stage has tied weights is trained, its weights are untied, and the deep stage alone "
    "is fine-tuned with the memory-free gradient: the test error falls. A control trains on with tied weights.",
    "Blocks conv-norm-ReLU-conv-norm in several stages, with GroupNorm in the place of BatchNorm; the deep stage has "
    "32 blocks (quick: 16), scaled by 1/N. Tied training is by backpropagation: "
    f"quick {_QUICK[0]}; reduced {_REDUCED[0]}; paper {_PAPER[0]}. Fine-tuning has {_QUICK[1]}, {_REDUCED[1]} and "
    f"{_PAPER[1]} epochs with 0.3 of the rate, times N. Without --data, digits in the place of CIFAR-10.",
    cells,
    measure,
    draw,
    verdicts,
    (13.0, 4.5),
)
