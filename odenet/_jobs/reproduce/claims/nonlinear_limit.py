"""Beyond the paper: residual networks with tanh and ReLU under gradient flow, and whether they have a limit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from odenet._jobs.reproduce import flow
from odenet._jobs.reproduce.controls import thresholds
from odenet._jobs.reproduce.drawing import draw_changes, draw_flow
from odenet._jobs.reproduce.flow import MEAN, SMOOTHNESS, STATES, WEIGHTS, Flow, Start
from odenet._jobs.reproduce.network import tanh
from odenet._jobs.reproduce.reproduction import CurveCell, Point, Reproduction, Settings, values
from odenet._jobs.reproduce.verdict import Verdict, smaller

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, BATCH = 4, 4
TANH, RELU = "tanh", "ReLU"
ROUGH_TANH, ROUGH_RELU = "tanh, rough start", "ReLU, rough start"
_SCALE, _APART = 0.7, 0.3  # of the weights, and of what the target's network has more
_TEACHER = 1024
LIMITS = thresholds("nonlinear-limit")

Activation = Callable[[Any], Any]


def relu(u: Any) -> Any:
    """ReLU of any backend's arrays, by arithmetic only."""
    return u * (u > 0)


def field(activation: Activation, t: Any, y: Any, w: Any) -> Any:
    """`activation(y w1) w2`, shapes (batch, width) and (2, width, width)."""
    return activation(y @ w[0]) @ w[1]


def start(activation: Activation, seed: int, depth: int) -> Start:
    """Weights smooth in depth, random inputs, and what a deep network with weights a little apart makes of these."""
    generator = np.random.default_rng([seed, 6])
    first, second, more = (generator.standard_normal((2, WIDTH, WIDTH)) / WIDTH**0.5 for _ in range(3))
    inputs = generator.standard_normal((BATCH, WIDTH))

    def weights(count: int, apart: float) -> np.ndarray:
        s = (np.pi / 2 * np.arange(count) / count).reshape(-1, 1, 1, 1)
        return _SCALE * (np.cos(s) * (first + apart * more) + np.sin(s) * second)

    target = inputs
    for layer in weights(_TEACHER, _APART):
        target = target + field(activation, 0, target, layer) / _TEACHER
    return Start(weights(depth, 0), inputs, target)


def _flow(activation: Activation) -> Flow:
    return Flow(partial(field, activation), partial(start, activation), rate=0.125, noise=_SCALE / WIDTH**0.5)


CURVES = {TANH: (tanh, False), RELU: (relu, False), ROUGH_TANH: (tanh, True), ROUGH_RELU: (relu, True)}
"""Activation, and whether the start is rough."""

FLOWS = {activation: _flow(activation) for activation in (tanh, relu)}


def cells(choices: Settings) -> tuple[CurveCell, ...]:
    """N = 4 to 64; three seeds of a quick run."""
    depths = choices.depths(4, choices.sized(32, 64, 256), quick=32)
    return choices.cells(list(CURVES), depths, seeds=choices.sized(3, 5, 5))


def measure(cell: CurveCell, choices: Settings) -> tuple[Point, ...]:
    """Train the network of the cell, and compare it with the limit over depth."""
    activation, rough = CURVES[cell.curve]
    return flow.measure(
        FLOWS[activation],
        cell,
        rough=rough,
        steps=choices.sized(60, 100, 100),
        deepest=cells(choices)[-1].depth,
        device=choices.device,
    )


def draw(points: Sequence[Point], figure: Figure) -> None:
    """Loss, smoothness and distance, and where in depth weights are not smooth."""
    left = draw_flow(points, figure, list(CURVES))
    draw_changes(points, left, (TANH, RELU))


def verdicts(points: Sequence[Point]) -> tuple[Verdict, ...]:
    """What holds for a smooth activation, and how much of it for one with a kink."""
    smoothness = values(points, RELU, SMOOTHNESS)
    deepest = max(smoothness, default=1)
    return (
        flow.trained(points, TANH, LIMITS),
        *flow.stays_smooth(points, TANH, LIMITS),
        *flow.tends(points, TANH, STATES, LIMITS),
        *flow.tends(points, TANH, WEIGHTS, LIMITS),
        *flow.stays_rough(points, ROUGH_TANH, LIMITS),
        flow.trained(points, RELU, LIMITS),
        *flow.tends(points, RELU, STATES, LIMITS),
        *flow.tends(points, RELU, MEAN, LIMITS),
        smaller(
            f"{RELU}: N max |w[n+1] - w[n]| over training grows with N: that of the shallowest over the deepest's",
            {deepest: smoothness.get(min(smoothness, default=1), [])} if len(smoothness) > 1 else {},
            smoothness,
            1 / LIMITS["kinks_grow"],
            bad={"the same at both": smoothness},
        ),
        *flow.stays_rough(points, ROUGH_RELU, LIMITS),
    )


REPRODUCTION = Reproduction(
    "nonlinear-limit",
    "Beyond section 3, whose authors leave nonlinear residual functions to future work: with tanh all of it holds as "
    "for linear ResNets. With ReLU the states still tend to a limit as 1/N, and the weights do on average over layers; "
    "but the gradient of a layer jumps where a sample crosses a kink, so that weights do not stay smooth in depth.",
    "ResNets y + w2 σ(w1 y) / N of width 4, a batch of 4, float64; the target is what a network of 1024 layers with "
    "other smooth weights makes of the inputs. Gradient descent with its rate times N, as in linear-limit, with the "
    "same extrapolated limit and rough starts.",
    cells,
    measure,
    draw,
    verdicts,
    (11.0, 8.0),
)
