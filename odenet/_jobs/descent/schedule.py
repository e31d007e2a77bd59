"""The rate of gradient descent over a run."""

from __future__ import annotations

import math

from odenet._names import choice

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
