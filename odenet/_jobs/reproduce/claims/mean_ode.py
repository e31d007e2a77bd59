"""Training from independent layers: the mean ODE, and a hidden width that does not matter (Chizat 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from odenet._jobs.reproduce import flow
from odenet._jobs.reproduce.controls import thresholds
from odenet._jobs.reproduce.drawing import finish, over_depth, slope
from odenet._jobs.reproduce.flow import Flow, Start
from odenet._jobs.reproduce.network import tanh
from odenet._jobs.reproduce.reproduction import CurveCell, Point, Reproduction, Settings, values
from odenet._jobs.reproduce.verdict import Verdict, falls, near, ones, smaller

if TYPE_CHECKING:
    from matplotlib.figure import Figure

APART, LEARNT = "distance of the outputs to the limit", "loss at the end"
LIMITS = thresholds("mean-ode")
WIDTH, BATCH = 4, 8
HIDDEN = (1, 4)  # units of a layer, M
_RATE, _STEPS = 0.5, 10
_REFERENCES, _DEEPER = 8, 2  # the limit is their mean, of the widest networks of so many times the largest depth


def curve(hidden: int) -> str:
    """The name of the networks of a hidden width."""
    return f"M={hidden}"


CURVES = {curve(hidden): hidden for hidden in HIDDEN}


def field(hidden: int, t: Any, y: Any, w: Any) -> Any:
    """`tanh(y u) vᵀ / M`, w being u and v: shape (2, width, M)."""
    return tanh(y @ w[0]) @ w[1].T / hidden


def start(hidden: int, seed: int, depth: int) -> Start:
    """Independent units; inputs and target are those of all seeds, as the limit is one of these."""
    fixed = np.random.default_rng([0, 8])
    inputs = fixed.standard_normal((BATCH, WIDTH))
    turned, _ = np.linalg.qr(fixed.standard_normal((WIDTH, WIDTH)))
    weights = np.random.default_rng([seed, 9, depth, hidden]).standard_normal((depth, 2, WIDTH, hidden))
    return Start(weights, inputs, inputs @ (np.eye(WIDTH) + 0.5 * turned))


FLOWS = {
    hidden: Flow(partial(field, hidden), partial(start, hidden), rate=_RATE * hidden / BATCH, noise=0)
    for hidden in HIDDEN
}


def cells(choices: Settings) -> tuple[CurveCell, ...]:
    """L = 8 to 128; to 64 in a quick run."""
    return choices.cells(list(CURVES), choices.depths(8, 128, quick=64), seeds=choices.sized(8, 12, 12))


def measure(cell: CurveCell, choices: Settings) -> tuple[Point, ...]:
    """Train, and compare the outputs with the limit's after as many steps."""
    first, *_, last = flow.train(
        FLOWS[CURVES[cell.curve]], cell.backend, cell.seed, cell.depth, _STEPS, device=choices.device
    )
    limit = _limit(cell.backend, cells(choices)[-1].depth, choices.device)
    apart = np.linalg.norm(last.states[-1] - limit, axis=1)
    return cell.point(APART, float(np.sqrt((apart**2).mean()))), cell.point(LEARNT, last.loss / first.loss)


@lru_cache(maxsize=2)
def _limit(backend: str, deepest: int, device: str) -> np.ndarray:
    """The outputs of infinitely many units: the mean over networks that are as deep and wide as can be."""
    hidden = max(HIDDEN)
    ends = [
        flow.train(FLOWS[hidden], backend, 1000 + seed, _DEEPER * deepest, _STEPS, device=device)[-1].states[-1]
        for seed in range(_REFERENCES)
    ]
    return np.mean(ends, axis=0)


def draw(points: Sequence[Point], figure: Figure) -> None:
    """Over depth, and over the number of units in all."""
    depth, units = figure.subplots(1, 2, sharey=True)
    for index, (name, hidden) in enumerate(CURVES.items()):
        distances = values(points, name, APART)
        over_depth(depth, distances, name, index)
        over_depth(
            units, {hidden * n: of_seeds for n, of_seeds in distances.items()}, name, index, "-" if index == 0 else "--"
        )
    slope(depth, values(points, curve(1), APART), 0.5, "L^-1/2")
    finish(depth, "distance of the outputs to the limit", "Over depth L")
    finish(units, "", "Over units in all, L M")
    units.set_xlabel("L M")


def verdicts(points: Sequence[Point]) -> tuple[Verdict, ...]:
    """It learns, the rate, and that depth and hidden width are worth the same."""
    apart = {hidden: values(points, curve(hidden), APART) for hidden in HIDDEN}
    narrow, wide = min(HIDDEN), max(HIDDEN)
    same = {
        n: [a / b for a, b in zip(of_seeds, apart[narrow][n * wide // narrow], strict=False)]
        for n, of_seeds in apart[wide].items()
        if n * wide // narrow in apart[narrow]
    }
    learnt = values(points, curve(wide), LEARNT)
    return (
        smaller("the networks learn", learnt, ones(learnt), LIMITS["learnt"]),
        *(
            falls(
                f"{curve(hidden)}: after training the outputs tend to those of the limit as L^-1/2",
                apart[hidden],
                LIMITS["order"],
                LIMITS["tolerance"],
                straight=False,
            )
            for hidden in HIDDEN
        ),
        near(
            f"depth is width: the logarithm of the distance with M={wide} over that with M={narrow} and as many units",
            {n: [float(np.log(x)) for x in of_seeds] for n, of_seeds in same.items()},
            0,
            LIMITS["same"],
        ),
    )


REPRODUCTION = Reproduction(
    "mean-ode",
    "Chizat (2025): a ResNet that starts with independent layers is, in training, near one limit, the mean ODE of "
    "infinitely wide layers, whatever its own hidden width M: after a fixed number of steps its outputs are "
    "O(1/L + 1/sqrt(L M)) from it.",
    f"Networks y + tanh(y u) vᵀ / (L M) with inputs of width {WIDTH}, {BATCH} of them, float64; {_STEPS} steps of "
    "gradient descent with the rate times L M towards a linear map of the inputs. Seeds draw the start alone. The "
    f"limit is the mean of {_REFERENCES} networks of {_DEEPER} times the largest L and the largest M.",
    cells,
    measure,
    draw,
    verdicts,
    (11.0, 4.8),
)
