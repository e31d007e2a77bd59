"""One epoch of a run, as a row of log.csv."""

from __future__ import annotations

from dataclasses import dataclass

from odenet._report.rows import column


@dataclass(frozen=True)
class Epoch:
    """What an epoch came to; each field is a column, with its meaning in the metadata."""

    epoch: int = column("number of the epoch, from 1", 0)
    lr: float = column("rate of gradient descent; factor of the rate of an optimizer of the framework's", 0.0)
    train_loss: float = column("mean cross-entropy over the steps of the epoch, each before its update", 0.0)
    train_accuracy: float = column("part of the (augmented) training images that were classified right", 0.0)
    validation_loss: float = column("mean cross-entropy over the validation images, after the epoch", 0.0)
    validation_accuracy: float = column("part of the validation images classified right, after the epoch", 0.0)
    certificate: float | None = column("largest reconstruction residual of a step; none where there is none")
    peak_bytes: int | None = column("most bytes alive at once in a step, beyond weights and batch")
    seconds: float = column("seconds of the epoch", 0.0)
    finished: float = column("when it ended, seconds since 1970", 0.0)

    @property
    def merit(self) -> tuple[float, float]:
        """What the best epoch has most of: validation accuracy and, of equal ones, the smaller loss."""
        return self.validation_accuracy, -self.validation_loss


def best(rows: tuple[Epoch, ...]) -> int:
    """The epoch whose weights are kept: the first of the best on the validation images. The test set has no say."""
    return max(rows, key=lambda row: (row.merit, -row.epoch)).epoch
