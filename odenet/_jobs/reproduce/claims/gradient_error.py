"""How far the memory-free gradient is from backpropagation's, on trained networks (figure 3c, in a light form)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from odenet._jobs.reproduce.controls import thresholds
from odenet._jobs.reproduce.drawing import COLOURS, finish, over_depth
from odenet._jobs.reproduce.network import (
    BLOCKS,
    CORRECTED,
    EXTRAPOLATED,
    HEUNNET,
    METHODS,
    NETS,
    PAPER,
    RESNET,
    DigitsNetwork,
)
from odenet._jobs.reproduce.reproduction import CurveCell, Point, Reproduction, Settings, values
from odenet._jobs.reproduce.verdict import OverSeeds, Verdict, falls_at_least, from_depth, smaller

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_METHODS = {name: METHODS[name] for name in (PAPER, CORRECTED, EXTRAPOLATED)}
LOSS, ACCURACY, SMOOTHNESS = "loss at the end", "accuracy on what it was trained on", "smoothness"
LIMITS = thresholds("gradient-error")
_DEEP = int(LIMITS["correction_from_depth"])
_BASE = 32  # steps of the network that is made into others
_STEPS = (25, 50, 50)  # of training: quick, reduced, paper


def resampled(net: str) -> str:
    """The curve of networks of all depths that one trained network was made into, as in the authors' code."""
    return f"{net}, one network"


def cells(choices: Settings) -> tuple[CurveCell, ...]:
    """The cells of the claim, of depths N = 4 to 64."""
    curves = [*NETS, *map(resampled, NETS)]
    return choices.cells(curves, choices.depths(4, 64, quick=32), seeds=choices.sized(5, 8, 8))


def measure(cell: CurveCell, choices: Settings) -> tuple[Point, ...]:
    """Train by backpropagation, then take one gradient by each method."""
    if cell.curve not in NETS:
        return _of_one_network(cell, choices)
    network = DigitsNetwork(cell.backend, choices.device, *NETS[cell.curve], cell.depth, cell.seed)
    descended = network.descend(network.spec.init(cell.seed), choices.sized(*_STEPS))
    points = [
        cell.point(LOSS, descended.loss),
        cell.point(ACCURACY, descended.accuracy),
        cell.point(SMOOTHNESS, network.smoothness(descended.weights)),
    ]
    for name, errors in network.errors(descended.weights, _METHODS).items():
        points.append(cell.point(name, errors.whole))
        points += [cell.point(name, error, layer=layer) for layer, error in enumerate(errors.by_layer)]
    return tuple(points)


def _of_one_network(cell: CurveCell, choices: Settings) -> tuple[Point, ...]:
    """The errors of a network of this depth whose layer i is layer `i base / N` of a trained one of `_BASE` steps."""
    solver, along = NETS[cell.curve.split(", ")[0]]
    network = DigitsNetwork(cell.backend, choices.device, solver, along, cell.depth, cell.seed)
    weights = _base(replace(network, depth=_BASE), choices.sized(*_STEPS))
    layers = cell.depth + (along == "linear")
    places = np.arange(layers) * _BASE // cell.depth
    picked = {name: w[places] if name.startswith(BLOCKS) else w for name, w in weights.items()}
    errors = network.errors(picked, _METHODS)
    return tuple(cell.point(name, error.whole) for name, error in errors.items())


@lru_cache(maxsize=4)
def _base(network: DigitsNetwork, steps: int) -> Mapping[str, np.ndarray]:
    return network.descend(network.spec.init(network.seed), steps).weights


def draw(points: Sequence[Point], figure: Figure) -> None:
    """Over depth, and by layer in the deepest network."""
    over, one, by_layer = figure.subplots(1, 3)
    deepest = max(point.depth for point in points)
    for line, curve in (("-", RESNET), ("--", HEUNNET)):
        for index, method in enumerate(_METHODS):
            over_depth(over, values(points, curve, method), f"{curve}, {method}", index, line)
            over_depth(one, values(points, resampled(curve), method), f"{curve}, {method}", index, line)
            layers = _layers(points, curve, method, deepest)
            medians = [np.median(values(points, curve, method, layer=layer)[deepest]) for layer in layers]
            by_layer.semilogy(layers, medians, line, color=COLOURS[index], label=f"{curve}, {method}")
    finish(over, "relative error of the gradient of all blocks", "Over depth, trained networks")
    finish(one, "", f"Over depth, one network of N={_BASE} made into others")
    by_layer.set(xlabel="layer", ylabel="relative error of its gradient")
    by_layer.set_title(f"By layer, N={deepest}")


def _layers(points: Sequence[Point], curve: str, method: str, depth: int) -> list[int]:
    mine = [point for point in points if (point.curve, point.quantity, point.depth) == (curve, method, depth)]
    return sorted({point.layer for point in mine if point.layer is not None})


def verdicts(points: Sequence[Point]) -> tuple[Verdict, ...]:
    """Who is nearer, and that depth helps."""
    error = {(curve, method): values(points, curve, method) for curve in NETS for method in _METHODS}
    resnet, heunnet = error[RESNET, PAPER], error[HEUNNET, PAPER]
    part = LIMITS["fewer_layers"]
    return (
        *(
            falls_at_least(
                f"{curve}, {PAPER}: the error falls with depth", error[curve, PAPER], LIMITS[f"{name}_order"]
            )
            for curve, name in ((RESNET, "resnet"), (HEUNNET, "heunnet"))
        ),
        smaller("HeunNet's error is below ResNet's (paper)", heunnet, resnet, bad={"ResNet's own": resnet}),
        *(
            falls_at_least(
                f"{curve}, {PAPER}, one trained network made into others: the error falls with depth",
                values(points, resampled(curve), PAPER),
                LIMITS[f"{name}_order"],
            )
            for curve, name in ((RESNET, "one_resnet"), (HEUNNET, "one_heunnet"))
        ),
        smaller(
            f"HeunNet needs fewer layers: with {part:g} N its gradient is as near as a ResNet's with N (paper)",
            _of_part(heunnet, part),
            from_depth(resnet, min(_of_part(heunnet, part), default=1)),
            bad={"a ResNet of as few": _of_part(resnet, part)},
        ),
        *(
            smaller(
                f"{curve}: the correction helps from N={_DEEP} on",
                from_depth(error[curve, CORRECTED], _DEEP),
                error[curve, PAPER],
            )
            for curve in NETS
        ),
    )


def _of_part(over_seeds: OverSeeds, part: float) -> dict[int, Sequence[float]]:
    """By N, what a network of that part of the layers has, where there is one."""
    return {n: over_seeds[int(part * n)] for n in over_seeds if part * n in over_seeds}


REPRODUCTION = Reproduction(
    "gradient-error",
    "Figure 3c: on trained networks the relative error of the memory-free gradient falls with depth, and HeunNet's is "
    "far below ResNet's.",
    "A light form: digits in the place of CIFAR-10, and blocks w2 relu(w1 y + b1) + b2 of width 32 in the place of "
    "convolutions; float64, weights that start smooth in depth, 50 steps (25 in a quick run) of SGD with momentum by "
    "backpropagation on batches of 64. Then one gradient of a batch by each method, against backpropagation's. The "
    f"correction and the extrapolation are this library's. As in the authors' code, a trained network of N = {_BASE} "
    "is also made into those of all depths, layer i / N from the layer at that part of the depth; unlike there, an "
    "error is a ratio of norms, and not of their squares.",
    cells,
    measure,
    draw,
    verdicts,
    (15.0, 5.0),
)
