"""How well a network does on images that it does not learn from."""

from __future__ import annotations

import numpy as np

from odenet._backend.trainer import Trainer
from odenet._jobs.descent.batches import Batches


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
