"""Training a network of a `NetSpec`."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from odenet.kit import OPTIMIZER, VELOCITY, WEIGHT, Imported, Trainer, TrainingStep, checked_state, learning
from odenet_torch.nets.modules import OdeNet
from odenet_torch.verbs.batch import mean_loss, on
from odenet_torch.verbs.measure import peak_bytes
from odenet_torch.verbs.optimizer import ChosenOptimizer


class GradientDescent(Trainer):
    """Gradient descent with momentum, or an optimiser of torch's, see `Trainer`.

    Args:
        model: what to train; a copy of it is trained.
        momentum, weight_decay: of the update.
        rates: factors of the rate by how names of weights begin; None for 1, of all.
        optimizer: what makes the optimiser; None for gradient descent with momentum.
    """

    def __init__(
        self,
        model: OdeNet,
        momentum: float,
        weight_decay: float,
        rates: Mapping[str, float] | None = None,
        optimizer: Imported | None = None,
    ) -> None:
        self.model = copy.deepcopy(model)
        self.momentum, self.weight_decay = momentum, weight_decay
        self.model.train()
        self.weights = dict(self.model.named_parameters())
        self.arrays = self.weights | dict(self.model.named_buffers())
        self.factors = learning(self.weights, rates)
        self.learning = {name: self.weights[name] for name in self.factors}
        for name, weight in self.weights.items():
            weight.requires_grad_(name in self.learning)
        self.optimizer = None if optimizer is None else ChosenOptimizer(optimizer, self.learning, self.factors)
        self.velocities = (
            {name: torch.zeros_like(weight) for name, weight in self.weights.items()} if self.optimizer is None else {}
        )
        self._peak: int | None = None

    def begin_pass(self) -> None:
        self.model.train()

    def step(self, inputs: np.ndarray, targets: np.ndarray, lr: float) -> TrainingStep:
        """The first step that is one alone is watched for its memory, which changes no number."""
        self.model.spec.check_batch(inputs, targets)
        x, y = on(next(iter(self.weights.values())), (inputs, np.asarray(targets, np.int64)))
        auditor = self.model.auditor
        planning = auditor is not None and auditor.method is None  # it measures others beside its own
        if planning or (self._peak is not None and x.device.type != "cuda"):
            return self._step(x, y, lr)
        taken: list[TrainingStep] = []
        peak, _ = peak_bytes(lambda: taken.append(self._step(x, y, lr)), x.device)
        self._peak = max(peak, self._peak or 0)
        return taken[0]

    def _step(self, x: Tensor, y: Tensor, lr: float) -> TrainingStep:
        # cuDNN may else choose an algorithm by a race, or add in the order in which threads end
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
            outputs = self.model(x)
            loss = mean_loss(outputs, y)
            gradients = torch.autograd.grad(loss, list(self.learning.values()), allow_unused=True)
        with torch.no_grad():
            correct = (outputs.argmax(1) == y).sum()
        if self.optimizer is None:
            self._descend(gradients, lr)
        else:
            self.optimizer.step(gradients, lr)
        return TrainingStep(loss.item(), int(correct.item()), self.model.certificate)

    @torch.no_grad()
    def _descend(self, gradients: tuple[Tensor | None, ...], lr: float) -> None:
        for (name, weight), gradient in zip(self.learning.items(), gradients, strict=True):
            push = weight * self.weight_decay if gradient is None else gradient.add(weight, alpha=self.weight_decay)
            velocity = self.velocities[name].mul_(self.momentum).add_(push)
            weight.sub_(velocity, alpha=lr * self.factors[name])

    @torch.no_grad()
    def predict(self, inputs: np.ndarray) -> np.ndarray:
        self.model.eval()
        try:
            with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
                return self.model(on(next(iter(self.weights.values())), inputs)).cpu().numpy()
        finally:
            self.model.train()

    def state(self) -> dict[str, np.ndarray]:
        memory = {} if self.optimizer is None else self.optimizer.state()
        return {
            start + name: tensor.detach().cpu().numpy().copy()
            for start, tensors in ((WEIGHT, self.arrays), (VELOCITY, self.velocities))
            for name, tensor in tensors.items()
        } | {OPTIMIZER + name: array for name, array in memory.items()}

    @torch.no_grad()
    def load(self, state: Mapping[str, np.ndarray]) -> None:
        arrays = checked_state(self.model.spec, state, VELOCITY if self.optimizer is None else OPTIMIZER)
        if self.optimizer is not None:
            self.optimizer.load(arrays[OPTIMIZER])
        for start, tensors in ((WEIGHT, self.arrays), (VELOCITY, self.velocities)):
            for name, tensor in tensors.items():
                tensor.copy_(torch.from_numpy(np.array(arrays[start][name])))

    def peak_bytes(self) -> int | None:
        """The peak of the first step on a CPU, of all steps on CUDA."""
        return self._peak
