"""Telling a person how a run goes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress

from odenet._jobs.train.checkpoint import Epoch
from odenet._report.terminal import progress_bar
from odenet._report.units import error, seconds, size


class EpochProgress:
    """Says how the steps of an epoch go (a bar, on a terminal), and how each epoch ended (a line, everywhere)."""

    def __init__(self, console: Console, epochs: int, steps: int, bar: Progress | None) -> None:
        self._console, self._epochs, self._steps, self._bar = console, epochs, steps, bar
        self._task = bar.add_task("", total=steps) if bar is not None else None

    def step(self, epoch: int, done: int, loss: float, accuracy: float) -> None:
        """A step of an epoch is done; loss and accuracy are means over the epoch so far."""
        if self._bar is not None and self._task is not None:
            text = f"epoch {epoch}/{self._epochs}  loss {loss:.4f}  accuracy {percent(accuracy)}"
            self._bar.update(self._task, completed=done, description=text)

    def finished(self, row: Epoch, best: bool) -> None:
        """An epoch is over and on disk."""
        text = f"epoch {row.epoch:>{len(str(self._epochs))}}/{self._epochs}  {line(row)}{'  best' if best else ''}"
        self._console.print(text, markup=False)
        if self._bar is not None and self._task is not None:
            self._bar.reset(self._task, total=self._steps)


@contextmanager
def watch(console: Console, epochs: int, steps: int) -> Iterator[EpochProgress]:
    """An `EpochProgress` over a run; on anything but a terminal it prints a line an epoch and nothing else."""
    with progress_bar(console, refresh_per_second=4) as bar:
        yield EpochProgress(console, epochs, steps, bar)


def line(row: Epoch) -> str:
    """A line that says how an epoch went."""
    parts = [
        f"rate {row.lr:.3g}",
        f"loss {row.train_loss:.4f}",
        f"accuracy {percent(row.train_accuracy)}",
        f"validation {row.validation_loss:.4f} {percent(row.validation_accuracy)}",
        *([f"certificate {error(row.certificate)}"] if row.certificate is not None else []),
        *([f"memory {size(row.peak_bytes)}"] if row.peak_bytes is not None else []),
        seconds(row.seconds),
    ]
    return "  ".join(parts)


def percent(part: float) -> str:
    """A fraction as a percentage, such as `97.2 %`."""
    return f"{100 * part:.1f} %"
