"""How figures look: colours by gradient method, markers by backend, names for legends."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK = "#1b2027"  # text, axes and backprop; the HTML report replaces it by the colour of its text
GREY = "#8a9099"

# Okabe and Ito 2008: told apart by colour-blind people, and on white as on black paper
_COLOURS = {
    "backprop": INK,
    "discrete-adjoint": "#0072B2",
    "discrete-adjoint:correct=no": "#D55E00",
    "continuous-adjoint": "#009E73",
}
SPARE = ("#CC79A7", "#E69F00", "#56B4E9", "#A6761D", "#7570B3", "#B8A800")
_MARKERS: tuple[dict[str, Any], ...] = (
    {"marker": "o", "markersize": 9.5, "fillstyle": "none", "markeredgewidth": 1.7, "linestyle": "-", "linewidth": 1.7},
    {"marker": "x", "markersize": 5.5, "markeredgewidth": 1.9, "linestyle": "--", "linewidth": 1.0},
    {"marker": "s", "markersize": 9.5, "fillstyle": "none", "markeredgewidth": 1.3, "linestyle": ":", "linewidth": 1.3},
    {"marker": "+", "markersize": 7.5, "markeredgewidth": 1.7, "linestyle": "-.", "linewidth": 1.0},
)
RC: Any = {  # of every figure; matplotlib's type for this is a private literal
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.labelsize": 11,
    "legend.fontsize": 9.5,
    "axes.edgecolor": GREY,
    "axes.facecolor": "none",
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GREY,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "svg.hashsalt": "odenet",  # the same results give the same file
}


def colours(gradients: Iterable[str]) -> dict[str, str]:
    """A colour for each gradient label; well-known ones have theirs in every figure."""
    names = list(dict.fromkeys(gradients))
    others = [name for name in names if name not in _COLOURS]
    return {name: _COLOURS.get(name) or SPARE[others.index(name) % len(SPARE)] for name in names}


def markers(backends: Sequence[str]) -> dict[str, dict[str, Any]]:
    """How each backend's points and lines are drawn: rings, with crosses inside where the next one coincides."""
    return {name: _MARKERS[index % len(_MARKERS)] for index, name in enumerate(backends)}


def name(gradient: str) -> str:
    """A gradient label as a legend says it."""
    known = {
        "discrete-adjoint": "discrete adjoint, corrected",
        "discrete-adjoint:correct=no": "discrete adjoint (paper)",
        "continuous-adjoint": "continuous adjoint",
    }
    if gradient in known:
        return known[gradient]
    plain, *options = gradient.split(":")
    return ", ".join((plain.replace("-", " ") if options else plain, *options))


def depth_axis(axes: Axes, depths: Sequence[int]) -> None:
    """N on a logarithmic scale with one tick a depth measured (every second if they are many)."""
    axes.set_xscale("log", base=2)
    step = -(-len(depths) // 8)
    axes.set_xticks(depths[::step], [str(depth) for depth in depths[::step]])
    axes.minorticks_off()
    axes.set_xlabel("depth N (steps)")
