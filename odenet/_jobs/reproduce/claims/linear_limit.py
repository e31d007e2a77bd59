"""Deep linear ResNets under gradient flow stay smooth in depth, and tend to a Neural ODE (section 3, figure 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from odenet._jobs.reproduce import flow
from odenet._jobs.reproduce.controls import thresholds
from odenet._jobs.reproduce.drawing import draw_flow, draw_weights
from odenet._jobs.reproduce.flow import LIMIT_RATE, RATE, RATE_APART, SMOOTHNESS, STATES, WEIGHTS, Flow, Start
from odenet._jobs.reproduce.reproduction import CurveCell, Point, Reproduction, Settings, values
from odenet._jobs.reproduce.verdict import Verdict, below, falls

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 4
LIMITS = thresholds("linear-limit")
SMOOTH, ROUGH = "smooth start", "rough start"


def field(t: Any, y: Any, w: Any) -> Any:
    """`y w`: the last state is a product, W = (1 + w[0]/N) ... (1 + w[N-1]/N)."""
    return y @ w


def start(seed: int, depth: int) -> Start:
    """`w(s)` smooth in depth, whitened inputs (the unit matrix), and a target not far from it."""
    generator = np.random.default_rng([seed, 4])
    first, second, goal = (generator.standard_normal((WIDTH, WIDTH)) / WIDTH**0.5 for _ in range(3))
    s = (np.pi / 2 * np.arange(depth) / depth).reshape(-1, 1, 1)
    unit = np.eye(WIDTH)
    return Start(0.5 * (np.cos(s) * first + np.sin(s) * second), unit, unit + 0.5 * goal)


LINEAR = Flow(field, start, rate=0.1, noise=0.5 / WIDTH**0.5)


def cells(choices: Settings) -> tuple[CurveCell, ...]:
    """The cells of the claim, of depths N = 4 to 64."""
    return choices.cells([SMOOTH, ROUGH], choices.depths(4, 64, quick=32))


def measure(cell: CurveCell, choices: Settings) -> tuple[Point, ...]:
    """Train the network of the cell, and compare it with the limit over depth."""
    return flow.measure(
        LINEAR,
        cell,
        rough=cell.curve == ROUGH,
        steps=choices.sized(80, 100, 100),
        deepest=cells(choices)[-1].depth,
        device=choices.device,
    )


def draw(points: Sequence[Point], figure: Figure) -> None:
    """Loss, smoothness and distance, and the weights over depth (figure 2)."""
    left = draw_flow(points, figure, (SMOOTH, ROUGH))
    draw_weights(points, left, (SMOOTH, ROUGH))


def verdicts(points: Sequence[Point]) -> tuple[Verdict, ...]:
    """What holds from a smooth start, and fails from a rough one."""
    return (
        flow.trained(points, SMOOTH, LIMITS),
        *flow.stays_smooth(points, SMOOTH, LIMITS),
        *flow.tends(points, SMOOTH, STATES, LIMITS),
        *flow.tends(points, SMOOTH, WEIGHTS, LIMITS),
        falls(
            f"{SMOOTH}: what a layer adds changes from layer to layer by O(1/N²), over all of training",
            {n: [value / n**2 for value in some] for n, some in values(points, SMOOTH, SMOOTHNESS).items()},
            LIMITS["layer_order"],
            LIMITS["layer_tolerance"],
        ),
        below(
            f"{SMOOTH}: the loss falls exponentially in time, at {LIMITS['rate']:g} of the limit's rate or more",
            values(points, SMOOTH, LIMIT_RATE),
            values(points, SMOOTH, RATE),
            1 / LIMITS["rate"],
        ),
        falls(
            f"{SMOOTH}: the rate tends to the limit's as 1/N",
            values(points, SMOOTH, RATE_APART),
            LIMITS["rate_order"],
            LIMITS["rate_tolerance"],
        ),
        *flow.stays_rough(points, ROUGH, LIMITS),
    )


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
