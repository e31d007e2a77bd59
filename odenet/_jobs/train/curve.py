"""The figure of a run: loss, accuracy and certificate over epochs."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from odenet._files import write_atomically
from odenet._jobs.train.checkpoint import TrainingRun
from odenet._report.figures import rc, render
from odenet._report.style import GREY, INK, SPARE

_TRAIN, _VALIDATION, _TEST = INK, "#0072B2", "#D55E00"


def write_curve(run: TrainingRun, folder: Path) -> list[Path]:
    """Write curve.png and curve.svg, atomically.

    Raises:
        FileError: the folder cannot be written to.
    """
    figure = curve(run)
    paths = []
    for kind in ("png", "svg"):
        content = render(figure, kind)
        paths.append(write_atomically(folder / f"curve.{kind}", lambda file, content=content: file.write(content)))
    return paths


def curve(run: TrainingRun) -> Figure:
    """The figure; the accuracy on the test images is one point, at the epoch that the validation images chose."""
    rows = run.rows
    epochs = [row.epoch for row in rows]
    certified = any(row.certificate is not None for row in rows)
    with matplotlib.rc_context(rc()):
        figure = Figure(figsize=(10.4 + 4.6 * certified, 4.4), layout="constrained")
        FigureCanvasAgg(figure)
        panels: list[Axes] = list(figure.subplots(1, 2 + certified, squeeze=False)[0])
        losses, accuracies = panels[:2]
        losses.plot(epochs, [row.train_loss for row in rows], "-o", markersize=3, color=_TRAIN, label="training")
        losses.plot(
            epochs, [row.validation_loss for row in rows], "--s", markersize=3, color=_VALIDATION, label="validation"
        )
        losses.set_ylim(bottom=0.0)
        losses.set_title("Loss (cross-entropy)")
        accuracies.plot(
            epochs, [row.train_accuracy for row in rows], "-o", markersize=3, color=_TRAIN, label="training"
        )
        accuracies.plot(
            epochs,
            [row.validation_accuracy for row in rows],
            "--s",
            markersize=3,
            color=_VALIDATION,
            label="validation",
        )
        if run.test is not None:
            text = f"test: {100 * run.test.accuracy:.1f} %"
            accuracies.plot([run.test.epoch], [run.test.accuracy], "*", markersize=13, color=_TEST, label=text)
        accuracies.yaxis.set_major_formatter(PercentFormatter(1.0))
        accuracies.set_ylim(0.0, 1.02)
        accuracies.set_title("Accuracy")
        if certified:
            found = [(row.epoch, row.certificate) for row in rows if row.certificate]
            panels[2].plot([x for x, _ in found], [y for _, y in found], "-o", markersize=3, color=SPARE[0])
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
