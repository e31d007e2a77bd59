"""A recovery that evaluates f not at all: how exact, and how much lighter than the paper's (this library's own)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from odenet._backend import registry as _registry
from odenet._backend.sample import seconds
from odenet._gradients.names import DiscreteAdjoint, Gradient
from odenet._jobs.data.digits import batch
from odenet._jobs.reproduce.controls import thresholds
from odenet._jobs.reproduce.drawing import INK, finish, over_depth
from odenet._jobs.reproduce.network import CORRECTED, METHODS, NETS, PAPER, DigitsNetwork, built
from odenet._jobs.reproduce.reproduction import CurveCell, Point, Reproduction, Settings, values
from odenet._jobs.reproduce.verdict import OverSeeds, Verdict, below, from_depth, ones, smaller
from odenet._nets.spec import NetSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UNTIED, INDEPENDENT, COST = "tied, then untied", "independent", "cost"
FIRST, SECOND = "extrapolate 1", "extrapolate 2"
_METHODS: dict[str, Gradient] = {
    PAPER: METHODS[PAPER],
    CORRECTED: METHODS[CORRECTED],
    FIRST: DiscreteAdjoint(predictor="extrapolate", order=1),
    SECOND: DiscreteAdjoint(predictor="extrapolate", order=2),
}
EVALUATIONS, VJPS, TIME = "evaluations of f a step, backward", "VJPs a step", "time, extrapolate 2 relative to paper"
ACCURACY, SMOOTHNESS = "accuracy on what it was trained on", "smoothness"

LIMITS = thresholds("lighter")
_DEEP = int(LIMITS["from_depth"])
_STEPS = (15, 50, 50)  # quick, reduced, paper
_ROUNDS = (4, 15, 15)


@dataclass(frozen=True)
class _TimedSize:
    """The convolutional network whose seconds are compared: f is most of the work there, as in the paper's."""

    width: int
    batch: int

    def spec(self, depth: int, along: Any) -> NetSpec:
        return NetSpec("conv", depth, width=self.width, along=along)


_SIZES = (_TimedSize(8, 16), _TimedSize(8, 16), _TimedSize(64, 128))  # quick, reduced, paper


def cells(choices: Settings) -> tuple[CurveCell, ...]:
    """N = 8 to 64, costs from 16; three seeds unless more are asked for."""
    curves = [_curve(net, kind) for net in NETS for kind in (UNTIED, INDEPENDENT, COST)]
    every = choices.cells(curves, choices.depths(8, 64, quick=32), seeds=3)
    return tuple(cell for cell in every if cell.depth >= _DEEP or not cell.curve.endswith(COST))


def _curve(net: str, kind: str) -> str:
    return f"{net}: {kind}"


def measure(cell: CurveCell, choices: Settings) -> tuple[Point, ...]:
    """The errors of all methods on one trained network, or what they cost."""
    net, kind = cell.curve.split(": ")
    return (_cost if kind == COST else _errors)(cell, choices, net, kind)


def _errors(cell: CurveCell, choices: Settings, net: str, start: str) -> tuple[Point, ...]:
    """Train by backpropagation, then take one gradient by each method."""
    network = DigitsNetwork(cell.backend, choices.device, *NETS[net], cell.depth, cell.seed)
    steps = choices.sized(*_STEPS)
    if start == UNTIED:
        tied = network.tied.descend(network.tied.spec.init(cell.seed), steps)
        first = network.spec.untied(tied.weights)
    else:
        first = network.spec.init(cell.seed, "independent")
    trained = network.descend(first, steps)
    errors = network.errors(trained.weights, _METHODS)
    return (
        *(cell.point(name, error.whole) for name, error in errors.items()),
        cell.point(ACCURACY, trained.accuracy),
        cell.point(SMOOTHNESS, network.smoothness(trained.weights)),
    )


def _cost(cell: CurveCell, choices: Settings, net: str, kind: str) -> tuple[Point, ...]:
    """Counts, and seconds of loss and gradient: by turns, as a busy machine has fast and slow spells."""
    solver, along = NETS[net]
    size = choices.sized(*_SIZES)
    spec = size.spec(cell.depth, along)
    backend, weights, examples = _registry.backend(cell.backend), spec.init(cell.seed), batch(size.batch, cell.seed)

    def once(method: Gradient) -> Any:
        model = built(cell.backend, choices.device, spec, weights, solver, method)
        return lambda: backend.evaluate(model, *examples)

    functions = [once(_METHODS[name]) for name in (PAPER, SECOND)]
    rounds = [seconds(functions, 0) for _ in range(1 + choices.sized(*_ROUNDS))][1:]  # the first is the warm-up
    points = [cell.point(TIME, statistics.median(lighter / paper for paper, lighter in rounds))]
    for name, method in _METHODS.items():
        evaluations, vjps = _counts(cell.backend, choices.device, solver, along, method, cell.depth)
        points.append(cell.point(f"{name}: {EVALUATIONS}", evaluations / cell.depth))
        points.append(cell.point(f"{name}: {VJPS}", vjps / cell.depth))
    return tuple(points)


@cache
def _counts(backend: str, device: str, solver: str, along: Any, method: Gradient, depth: int) -> tuple[int, int]:
    """Evaluations and VJPs of the backward pass: neither seed nor size changes them, so a small network is counted."""
    spec = NetSpec("mlp", depth, width=4, hidden=4, along=along)
    model = built(backend, device, spec, spec.init(), solver, method)
    measured = _registry.backend(backend).measure(model, *batch(1), repeats=0)
    return measured.f_backward, measured.vjp


def draw(points: Sequence[Point], figure: Figure) -> None:
    """Errors where weights are smooth in depth and where they are not, and seconds."""
    panels = figure.subplots(1, 3)
    for line, net in (("-", "ResNet"), ("--", "HeunNet")):
        for index, method in enumerate(_METHODS):
            label = method if net == "ResNet" else f"_{method}"  # matplotlib leaves out what begins so
            for axes, start in zip(panels, (UNTIED, INDEPENDENT), strict=False):
                over_depth(axes, values(points, _curve(net, start), method), label, index, line)
        cost = _curve(net, COST)
        over_depth(panels[2], values(points, cost, TIME), f"{net}, time", 3, line)
        own, paper = (values(points, cost, f"{tableau}: {EVALUATIONS}") for tableau in (SECOND, PAPER))
        over_depth(panels[2], _relative(own, paper), f"{net}, evaluations of f backward", 4, line)
    finish(panels[0], "relative error of the gradient of all blocks", "Tied, then untied")
    finish(panels[1], "", "Independent start")
    finish(panels[2], "relative to the paper's method", "Cost of extrapolate 2")
    panels[2].set_yscale("linear")
    panels[2].set_ylim(0, 1.1)
    panels[2].axhline(1, color=INK, linewidth=1)
    panels[2].margins(x=0.05)
    figure.suptitle("solid: ResNet, dashed: HeunNet", fontsize=10)


def _relative(some: OverSeeds, others: OverSeeds) -> dict[int, list[float]]:
    return {n: [a / b for a, b in zip(some[n], others[n], strict=True)] for n in some}


def verdicts(points: Sequence[Point]) -> tuple[Verdict, ...]:
    """Lighter, nearer where weights are smooth in depth, and not where they are not."""
    error = {
        (net, start, method): values(points, _curve(net, start), method)
        for net in NETS
        for start in (UNTIED, INDEPENDENT)
        for method in _METHODS
    }
    smooth = {method: error["ResNet", UNTIED, method] for method in _METHODS}
    rough = {method: error["ResNet", INDEPENDENT, method] for method in _METHODS}
    heun = {method: error["HeunNet", UNTIED, method] for method in _METHODS}
    return (
        *(_lighter(points, net) for net in NETS),
        *(_faster(points, net) for net in NETS),
        smaller(
            f"ResNet, {UNTIED}: nearer than the paper's from N={_DEEP} on",
            from_depth(smooth[SECOND], _DEEP),
            smooth[PAPER],
        ),
        smaller(
            f"ResNet, {UNTIED}: nearer than the corrected, too, from N={_DEEP} on",
            from_depth(smooth[SECOND], _DEEP),
            smooth[CORRECTED],
        ),
        smaller(
            f"ResNet, {INDEPENDENT}: the paper's is nearer from N={_DEEP} on",
            from_depth(rough[PAPER], _DEEP),
            rough[SECOND],
        ),
        smaller(
            f"ResNet, {INDEPENDENT}: order 2 is no better than order 1, from N={_DEEP} on",
            from_depth(rough[FIRST], _DEEP),
            rough[SECOND],
        ),
        smaller(
            f"HeunNet, {UNTIED}: the paper's is nearer from N={_DEEP} on", from_depth(heun[PAPER], _DEEP), heun[SECOND]
        ),
    )


def _lighter(points: Sequence[Point], net: str) -> Verdict:
    own, paper = (values(points, _curve(net, COST), f"{tableau}: {EVALUATIONS}") for tableau in (SECOND, PAPER))
    return below(
        f"{net}: N s evaluations of f backward in the place of 2 N s, but for the first steps, from N={_DEEP} on",
        from_depth(own, _DEEP),
        paper,
        LIMITS["evaluations"],
    )


def _faster(points: Sequence[Point], net: str) -> Verdict:
    """Time of loss and gradient: each seed's own geometric mean over N, as depth does not change the ratio."""
    times = values(points, _curve(net, COST), TIME)
    seeds = [list(of_seed) for of_seed in zip(*times.values(), strict=True)]
    means = {max(times, default=1): [math.exp(statistics.mean(map(math.log, of_seed))) for of_seed in seeds]}
    return smaller(f"{net}: faster than the paper's", means, ones(means), LIMITS["time"])


REPRODUCTION = Reproduction(
    "lighter",
    "Beyond the paper, whose recovery of a state costs an evaluation of f for each stage: continue the increments of "
    "the steps already undone to predict the next one, which costs none.",
    "Relative error of the gradient of all blocks against backpropagation's, on networks trained by it: digits and "
    "blocks w2 relu(w1 y + b1) + b2 of width 32, float64, 50 steps (15 in a quick run) of SGD with momentum on batches "
    "of 64. Either one block for all depths is trained first, and then as long untied, as in the paper's fine-tuning; "
    "or blocks start independent. Evaluations and VJPs are counted. Time is that of loss and gradient of the "
    "convolutional network, float32 on digits (width 8, batch 16; at the paper's scale width 64, batch 128): the two "
    "methods take turns in one process, and the median of each turn's ratio is taken. The extrapolation continues one "
    "increment (order 1) or two (order 2), with the free correction.",
    cells,
    measure,
    draw,
    verdicts,
    (14.0, 5.0),
)
