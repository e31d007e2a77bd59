"""Passes over batches: training steps, or loss and accuracy alone; and the rate of descent over a run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from odenet._backend.trainer import Trainer
from odenet._jobs.descent.batches import Batches
from odenet._names import choice


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


def evaluate(trainer: Trainer, batches: Batches) -> tuple[float, float]:
    """Mean cross-entropy, and the part of the images that is classified right, with the weights as they are.

    Losses are taken and added in float64 on the host, in the same way for every backend.
    """
    loss, correct, count = 0.0, 0, 0
    for inputs, labels in batches.plain():
        outputs = trainer.predict(inputs)[: len(labels)].astype(np.float64)
        loss += float(cross_entropy(outputs, labels).sum())
        correct += int((outputs.argmax(1) == labels).sum())
        count += len(labels)
    return loss / count, correct / count


def cross_entropy(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """`log(sum(exp(outputs))) - outputs[label]` of each row.

    Shapes: outputs (batch, classes), labels (batch,), result (batch,).
    """
    top = outputs.max(1)
    return top + np.log(np.exp(outputs - top[:, None]).sum(1)) - outputs[np.arange(len(labels)), labels]


SCHEDULES = ("step", "cosine", "constant")


def rate(schedule: str, lr: float, epoch: int, epochs: int) -> float:
    """The rate of a whole epoch.

    - "step": a tenth after each third of the run, as in the code of Sander, Ablin and Peyre 2022 for CIFAR-10 (90
      epochs from 0.1).
    - "cosine": `lr (1 + cos(pi n / epochs)) / 2` in epoch n of 0, 1, ... (Loshchilov and Hutter 2017, no restarts).
    - "constant": lr.

    Args:
        schedule: one of these.
        lr: at the beginning.
        epoch: from 1 to epochs.
        epochs: in the run.

    Raises:
        UnknownNameError: no such schedule.
    """
    kind = choice("schedule", schedule, SCHEDULES)
    done = epoch - 1
    if kind == "step":
        return lr * (1.0, 0.1, 0.01)[3 * done // epochs]
    if kind == "cosine":
        return 0.5 * lr * (1 + math.cos(math.pi * done / epochs))
    return lr
