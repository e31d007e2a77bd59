"""One pass of gradient descent over the training images."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from odenet._backend.trainer import Trainer
from odenet._jobs.descent.batches import Batches


@dataclass(frozen=True)
class TrainingPass:
    """What an epoch's steps came to; it ends early with the first loss that is no finite number.

    Args:
        steps: how many were taken.
        loss: mean cross-entropy of their batches, each before its update; that of the last step if it is not finite.
        accuracy: part of the images classified right then.
        certificate: the largest reconstruction residual, where the gradient method has one.
    """

    steps: int
    loss: float
    accuracy: float
    certificate: float | None

    @property
    def finished(self) -> bool:
        """Whether the loss was a finite number to the end."""
        return math.isfinite(self.loss)


def training_pass(
    trainer: Trainer,
    batches: Batches,
    epoch: int,
    lr: float,
    after_step: Callable[[int, float, float], None] = lambda steps, loss, accuracy: None,
) -> TrainingPass:
    """Take a step of gradient descent on each batch of an epoch.

    Args:
        trainer: holds the network.
        batches: of the training images.
        epoch: its number, from 1; it says in which order the images come.
        lr: the rate.
        after_step: told after each step how many there were, and the mean loss and accuracy so far.
    """
    loss, correct, images, residuals = 0.0, 0, 0, []
    steps = 0
    trainer.begin_pass()
    for inputs, labels in batches.shuffled(epoch):
        step = trainer.step(inputs, labels, lr)
        steps += 1
        if not math.isfinite(step.loss):
            return TrainingPass(steps, step.loss, 0.0, None)
        loss, correct, images = loss + step.loss, correct + step.correct, images + len(labels)
        if step.certificate is not None:
            residuals.append(step.certificate)
        after_step(steps, loss / steps, correct / images)
    return TrainingPass(steps, loss / steps, correct / images, max(residuals, default=None))
