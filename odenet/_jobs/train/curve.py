"""The figure of a run: loss, accuracy and certificate over epochs."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from odenet._jobs.train.checkpoint import TrainingRun
from odenet._report.figures import canvas, write_figures
from odenet._report.style import GREY, INK, RC, SPARE

_TEST = "#D55E00"
_PARTS = (("train", "training", "-o", INK), ("validation", "validation", "--s", "#0072B2"))
"""Which images: as the columns are called, as the legend calls them, and how their lines are drawn."""


def write_curve(run: TrainingRun, folder: Path) -> list[Path]:
    """Write curve.png and curve.svg, atomically.

    Raises:
        FileError: the folder cannot be written to.
    """
    return write_figures({"curve": curve(run)}, folder)[0]


def curve(run: TrainingRun) -> Figure:
    """The figure; the accuracy on the test images is one point, at the epoch that the validation images chose."""
    rows = run.rows
    epochs = [row.epoch for row in rows]
    certified = any(row.certificate is not None for row in rows)
    with matplotlib.rc_context(RC):
        figure = canvas(10.4 + 4.6 * certified, 4.4)
        panels: list[Axes] = list(figure.subplots(1, 2 + certified, squeeze=False)[0])
        losses, accuracies = panels[:2]
        for axes, quantity, title in (
            (losses, "loss", "Loss (cross-entropy)"),
            (accuracies, "accuracy", "Accuracy"),
        ):
            for part, name, style, colour in _PARTS:
                values = [getattr(row, f"{part}_{quantity}") for row in rows]
                axes.plot(epochs, values, style, markersize=3, color=colour, label=name)
            axes.set_title(title)
        losses.set_ylim(bottom=0.0)
        if run.test is not None:
            text = f"test: {100 * run.test.accuracy:.1f} %"
            accuracies.plot([run.test.epoch], [run.test.accuracy], "*", markersize=13, color=_TEST, label=text)
        accuracies.yaxis.set_major_formatter(PercentFormatter(1.0))
        accuracies.set_ylim(0.0, 1.02)
        if certified:
            points = [(row.epoch, row.certificate) for row in rows if row.certificate]
            panels[2].plot([x for x, _ in points], [y for _, y in points], "-o", markersize=3, color=SPARE[0])
            panels[2].set_yscale("log")
            panels[2].set_title("Certificate (largest of an epoch)")
        for axes in panels:
            axes.axvline(run.best, color=GREY, linewidth=0.9, linestyle=":")
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        for axes in panels[:2]:
            axes.legend()
        plan = run.plan
        title = f"{plan.data}: {plan.net}, {plan.solver}, {plan.gradient}, N={plan.depth}, {plan.backend}"
        figure.suptitle(title, fontsize=13, fontweight="bold", color=INK)
    return figure
