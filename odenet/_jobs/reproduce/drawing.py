"""What the figures share: medians with quartiles over seeds, on logarithmic axes; and those of networks under gradient
flow: loss, smoothness, distance to the limit, weights over depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from odenet._jobs.reproduce.flow import CHANGE, ENTRY, LOSS, SMOOTHNESS, STATES, WEIGHTS
from odenet._jobs.reproduce.reproduction import Point, values
from odenet._jobs.reproduce.verdict import OverSeeds
from odenet._report.style import INK, SPARE, depth_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


COLOURS = ("#D55E00", "#0072B2", "#009E73", *SPARE)
_MARKERS = "osD^v"


def over_depth(axes: Axes, over_seeds: OverSeeds, label: str, index: int, line: str = "-") -> None:
    """A line of medians over N, with a band from quartile to quartile."""
    if not over_seeds:
        return
    depths = sorted(over_seeds)
    low, middle, high = (np.array([np.quantile(over_seeds[n], q) for n in depths]) for q in (0.25, 0.5, 0.75))
    colour = COLOURS[index % len(COLOURS)]
    shape = _MARKERS[index % len(_MARKERS)]
    axes.loglog(depths, middle, line, color=colour, marker=shape, markersize=5, linewidth=1.6, label=label)
    axes.fill_between(depths, low, high, color=colour, alpha=0.2, linewidth=0)


def slope(axes: Axes, over_seeds: OverSeeds, order: float, label: str) -> None:
    """A thin line `c N**-order` beside the medians, to compare slopes with."""
    if not over_seeds:
        return
    depths = np.array(sorted(over_seeds), dtype=float)
    start = float(np.median(over_seeds[int(depths[0])]))
    axes.loglog(depths, 1.6 * start * (depths / depths[0]) ** -order, ":", color=INK, linewidth=1, label=label)


def finish(axes: Axes, quantity: str, title: str) -> None:
    """Labels, a tick for the depths measured, a key."""
    depths = sorted({int(x) for line in axes.get_lines() for x in np.asarray(line.get_xdata())})
    axes.set(ylabel=quantity)
    axes.set_title(title)
    if depths:
        depth_axis(axes, depths)
        axes.legend()


def draw_flow(points: Sequence[Point], figure: Figure, curves: Sequence[str]) -> Axes:
    """Loss, smoothness and distance to the limit, and the axes that are left for what is seen over depth.

    Args:
        points, figure: as of a `Reproduction`.
        curves: all of them; the first is the one that a slope of 1/N is drawn beside.
    """
    loss, smooth, apart, left = figure.subplots(2, 2).ravel()
    deepest, steps = _deepest(points), _steps(points)
    for index, curve in enumerate(curves):
        middle = [np.median(values(points, curve, LOSS, step).get(deepest, [np.nan])) for step in steps]
        loss.semilogy(steps, middle, color=COLOURS[index], label=f"{curve}, N={deepest}")
        over_depth(smooth, values(points, curve, SMOOTHNESS), curve, index)
        named = len(curves) < 3 or index == 0  # many have the colours of the panel beside this one
        over_depth(apart, values(points, curve, STATES), f"states, {curve}" if named else "_", index)
        over_depth(apart, values(points, curve, WEIGHTS), f"weights, {curve}" if named else "_", index, "--")
    loss.set(xlabel="step of training", ylabel="loss")
    loss.set_title("Loss")
    loss.legend()
    slope(apart, values(points, curves[0], STATES), 1, "1/N")
    finish(smooth, "N max |w[n+1] - w[n]|", "Smoothness: largest over training")
    finish(apart, "largest over training", "Distance to the limit")
    return left


def draw_weights(points: Sequence[Point], axes: Axes, curves: Sequence[str]) -> None:
    """One entry of the weights over depth, at four moments (figure 2 of the paper)."""
    steps = _steps(points)
    for index, curve in enumerate(curves):
        for place, step in enumerate(steps[i * (len(steps) - 1) // 3] for i in range(4)):
            layers, entries = _over_layers(points, curve, ENTRY, step)
            label = f"{curve}, step {step}" if index == 0 else None
            axes.plot(layers, entries, color=COLOURS[index], alpha=0.25 + 0.25 * place, label=label)
    axes.set(xlabel="layer n", ylabel="w[n], row 0, column 1")
    axes.set_title(f"Weights over depth, N={_deepest(points)}")
    axes.legend()


def draw_changes(points: Sequence[Point], axes: Axes, curves: Sequence[str]) -> None:
    """How much weights change from layer to layer, at the start and at the end: where they are not smooth."""
    steps = _steps(points)
    for index, curve in enumerate(curves):
        for step, line in ((steps[0], ":"), (steps[-1], "-")):
            layers, changes = _over_layers(points, curve, CHANGE, step)
            axes.plot(layers, changes, line, color=COLOURS[index], label=f"{curve}, step {step}")
    axes.set(xlabel="layer n", ylabel="N |w[n+1] - w[n]|")
    axes.set_title(f"Smoothness by layer, N={_deepest(points)}")
    axes.legend()


def _over_layers(points: Sequence[Point], curve: str, quantity: str, step: int) -> tuple[list[int], list[float]]:
    mine = [point for point in points if (point.curve, point.quantity, point.step) == (curve, quantity, step)]
    return [point.layer or 0 for point in mine], [point.value for point in mine]


def _deepest(points: Sequence[Point]) -> int:
    return max(point.depth for point in points)


def _steps(points: Sequence[Point]) -> list[int]:
    return sorted({point.step for point in points if point.step is not None})
