"""What the figures share: medians with quartiles over seeds, on logarithmic axes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from odenet._jobs.reproduce.verdict import OverSeeds
from odenet._report.style import INK, SPARE, depth_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
