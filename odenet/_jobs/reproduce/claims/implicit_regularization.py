"""Networks that start on a Neural ODE and train to a global minimum (Marion, Wu, Sander and Biau, ICLR 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from odenet._jobs.reproduce import flow
from odenet._jobs.reproduce.controls import thresholds
from odenet._jobs.reproduce.drawing import draw_flow, finish, over_depth
from odenet._jobs.reproduce.flow import AFTER, BEFORE, STATES, WEIGHTS, Flow, Start
from odenet._jobs.reproduce.network import tanh
from odenet._jobs.reproduce.reproduction import CurveCell, Point, Reproduction, Settings, values
from odenet._jobs.reproduce.verdict import Verdict, near

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TIED, INDEPENDENT = "tied start", "independent start"
LIMITS = thresholds("implicit-regularization")
WIDTH, HIDDEN, BATCH = 4, 16, 4
"""As many hidden units as inputs times width: the overparameterisation that the convergence theorem asks for."""


def field(t: Any, y: Any, w: Any) -> Any:
    """`tanh(y u) vᵀ / sqrt(hidden)`, w being u and v: shape (2, width, hidden)."""
    return tanh(y @ w[0]) @ w[1].T / HIDDEN**0.5


def start(seed: int, depth: int) -> Start:
    """The same weights in every layer, with v = 0: the identity; and a map to learn."""
    generator = np.random.default_rng([seed, 10])
    first = np.stack([generator.standard_normal((WIDTH, HIDDEN)) / WIDTH**0.5, np.zeros((WIDTH, HIDDEN))])
    inputs = generator.standard_normal((BATCH, WIDTH))
    turned, _ = np.linalg.qr(generator.standard_normal((WIDTH, WIDTH)))
    return Start(np.repeat(first[None], depth, axis=0), inputs, inputs @ (np.eye(WIDTH) + turned) / 2)


FLOW = Flow(field, start, rate=0.25, noise=1.0)


def cells(choices: Settings) -> tuple[CurveCell, ...]:
    """The cells of the claim, of depths L = 8 to 64."""
    return choices.cells([TIED, INDEPENDENT], choices.depths(8, 64, quick=32), seeds=choices.sized(3, 5, 5))


def measure(cell: CurveCell, choices: Settings) -> tuple[Point, ...]:
    """Train the network of the cell, and compare it with the limit over depth."""
    return flow.measure(
        FLOW,
        cell,
        rough=cell.curve == INDEPENDENT,
        steps=choices.sized(100, 200, 200),
        deepest=cells(choices)[-1].depth,
        device=choices.device,
    )


def draw(points: Sequence[Point], figure: Figure) -> None:
    """Loss, smoothness and distance, and the exponent before and after."""
    left = draw_flow(points, figure, (TIED, INDEPENDENT))
    for index, curve in enumerate((TIED, INDEPENDENT)):
        for line, quantity in ((":", BEFORE), ("-", AFTER)):
            over_depth(left, values(points, curve, quantity), f"{curve}, {quantity.split()[-1]}", index, line)
    finish(left, "exponent H of |w[n+k] - w[n]|", "Roughness of the weights along depth")
    left.set_yscale("linear")


def verdicts(points: Sequence[Point]) -> tuple[Verdict, ...]:
    """A start on a Neural ODE stays on one to the global minimum, and another does not come to one."""
    tolerance = LIMITS["exponent_tolerance"]
    return (
        flow.trained(points, TIED, LIMITS),
        *flow.tends(points, TIED, STATES, LIMITS),
        *flow.tends(points, TIED, WEIGHTS, LIMITS),
        near(f"{TIED}: after training weights are smooth in depth", values(points, TIED, AFTER), 1, tolerance),
        flow.trained(points, INDEPENDENT, LIMITS),
        near(
            f"{INDEPENDENT}: after training layers are as independent as before",
            values(points, INDEPENDENT, AFTER),
            0,
            tolerance,
        ),
        *flow.stays_rough(points, INDEPENDENT, LIMITS),
    )


REPRODUCTION = Reproduction(
    "implicit-regularization",
    "Marion, Wu, Sander and Biau (ICLR 2024): a nonlinear ResNet that starts as the discretization of a Neural ODE, as "
    "with tied weights, stays one in training by gradient flow, and tends to one as its depth grows; with enough units "
    "in a layer, linear in the samples, the flow goes to a global minimum, and the limit interpolates the data. From "
    "independent layers it does not become one.",
    f"ResNets y + tanh(y u) vᵀ / (L sqrt(m)) of width {WIDTH} with m = {HIDDEN} units, a batch of {BATCH}, float64; u "
    "is the same in all layers and v is 0. Gradient descent with its rate times L as in linear-limit, with the same "
    "extrapolated limit. An independent start has noise of variance 1 on each layer's weights.",
    cells,
    measure,
    draw,
    verdicts,
    (11.0, 8.0),
)
