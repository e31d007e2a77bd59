"""The verbs of the torch backend.

Over 250 lines: the descriptor and all verbs of the interface stand side by side, each with its whole signature.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from odenet import (
    Backend,
    Choices,
    Depth,
    Evaluation,
    Gradient,
    Gradients,
    InputError,
    Measurement,
    NetSpec,
    Problem,
    Profiles,
    Sample,
    Solution,
)
from odenet.kit import (
    AnySolver,
    Arrays,
    Imported,
    Trainer,
    quiet,
    seconds,
    shown,
    tree_leaves,
    tree_map,
)
from odenet_torch.conversion.convert import unconvert
from odenet_torch.field.dynamo import untraced
from odenet_torch.field.state import as_tensor
from odenet_torch.gradients.solve import solve_problem
from odenet_torch.nets.modules import OdeNet
from odenet_torch.verbs import profile as profiling
from odenet_torch.verbs.batch import mean_loss, on
from odenet_torch.verbs.examine import examine, to_numpy, trained
from odenet_torch.verbs.measure import Counter, counted, finished, peak_bytes
from odenet_torch.verbs.train import GradientDescent


class TorchBackend(Backend):
    """odenet's verbs on PyTorch."""

    framework = "torch"
    dtypes = ("float64", "float32", "bfloat16", "float16", "complex64", "complex128")
    network: type[OdeNet] = OdeNet
    """What `build` makes; a backend whose steps are another library's has its own."""

    def solve(self, problem: Problem) -> Solution:
        return solve_problem(problem)

    @untraced
    def value_and_grad(self, loss: Callable[[Solution], Any], problem: Problem) -> tuple[Any, Gradients, Solution]:
        """Leaves that cannot have a gradient (integers) have None."""
        y0, y_leaves = _fresh(problem.y0)
        depth = problem.weights
        weights, w_leaves = _fresh(None if depth is None else depth.tree)
        fresh_depth = None if depth is None else Depth(weights, depth.kind, depth.stacked)
        with torch.enable_grad():
            fresh = dataclasses.replace(problem, y0=y0, weights=fresh_depth)
            solution = self.solve(fresh)
            value = loss(solution)
        if not isinstance(value, Tensor) or value.numel() != 1 or value.is_complex():
            raise InputError(f"the loss returned {shown(value)}", "a real scalar tensor")
        if len({leaf.is_meta for leaf in (*y_leaves, *w_leaves) if isinstance(leaf, Tensor)}) > 1:
            raise InputError("y0 and weights of which some are on the meta device", "all of them there, or none")
        sources = [leaf for leaf in (*y_leaves, *w_leaves) if isinstance(leaf, Tensor) and leaf.requires_grad]
        by_leaf: dict[int, Tensor | None] = {}
        if value.requires_grad:
            gradients = torch.autograd.grad(value, sources, allow_unused=True)
            by_leaf = {id(leaf): g for leaf, g in zip(sources, gradients, strict=True)}

        def gradient(leaf: Any) -> Tensor | None:
            if not (isinstance(leaf, Tensor) and leaf.requires_grad):
                return None
            g = by_leaf.get(id(leaf))
            return torch.zeros_like(leaf) if g is None else g

        plain = dataclasses.replace(solution, ys=tree_map(torch.Tensor.detach, solution.ys))
        return value.detach(), Gradients(tree_map(gradient, y0), tree_map(gradient, weights)), plain

    def build(
        self,
        spec: NetSpec,
        weights: Arrays,
        *,
        solver: AnySolver,
        gradient: Gradient,
        dtype: str = "float32",
        device: str = "cpu",
    ) -> OdeNet:
        self.require_place(dtype, device)
        kind = getattr(torch, dtype)
        return self.network(spec, weights, solver=solver, gradient=gradient, dtype=kind, device=device)

    def read(self, model: OdeNet) -> dict[str, np.ndarray]:
        return {name: self.to_numpy(p) for name, p in (*model.named_parameters(), *model.named_buffers())}

    @quiet()  # the certificate is in what it returns
    def evaluate(self, model: OdeNet, inputs: np.ndarray, targets: np.ndarray) -> Evaluation:
        x, y = _batch(model, inputs, targets)
        names, parameters = zip(*model.named_parameters(), strict=True)
        with model.uncounted():
            outputs = model(x)
            loss = mean_loss(outputs, y)
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        return Evaluation(
            loss.item(),
            self.to_numpy(outputs),
            {
                name: self.to_numpy(torch.zeros_like(p) if g is None else g)
                for name, p, g in zip(names, parameters, gradients, strict=True)
            },
            model.certificate,
        )

    def trained(self, model: Any, batch: Any, loss: Callable[..., Any] | None, steps: int, rate: float) -> Any:
        return trained(model, batch, loss, steps, rate)

    def examine(
        self,
        model: nn.Module,
        batch: Any,
        loss: Callable[..., Any] | None,
        gradient: Gradient,
        *,
        reversible: bool = False,
    ) -> Sample:
        """A model in training mode stays in it."""
        return examine(model, batch, loss, gradient, reversible)

    def choices(self, model: nn.Module) -> dict[str, Choices]:
        """The steps of layers that were converted are those of their branches."""
        return profiling.choices(model)

    def with_gradient(self, model: nn.Module, gradient: Gradient) -> nn.Module:
        """The model itself is changed."""
        return profiling.with_gradient(model, gradient)

    def profile(
        self,
        model: nn.Module,
        batch: Any,
        loss: Callable[..., Any] | None,
        gradients: Sequence[Gradient],
        *,
        reference: Gradient,
        memory: int | None = None,
        repeats: int = 3,
    ) -> Profiles:
        """A model in training mode stays in it."""
        return profiling.profile(model, batch, loss, gradients, reference, memory, repeats)

    def unconvert(self, model: nn.Module) -> nn.Module:
        return unconvert(model)

    @quiet()
    def measure(self, model: OdeNet, inputs: np.ndarray, targets: np.ndarray, repeats: int = 3) -> Measurement:
        x, y = _batch(model, inputs, targets)
        parameters = list(model.parameters())

        def forward() -> Tensor:
            return mean_loss(model(x), y)

        def step() -> object:
            return torch.autograd.grad(forward(), parameters, allow_unused=True)

        with model.uncounted():
            forward_seconds, step_seconds = seconds([finished(forward, x.device), finished(step, x.device)], repeats)
        counter, function = Counter(), model.function
        f_forward = 0

        def counted_step() -> object:
            nonlocal f_forward
            loss = forward()
            f_forward = counter.f
            return torch.autograd.grad(loss, parameters, allow_unused=True)

        try:
            vars(model)["function"] = counted(function, counter)
            with model.uncounted():
                counted_step()  # a method may look at a function once more in the first pass of its life
                counter.f = counter.vjp = 0
                peak, method = peak_bytes(counted_step, x.device)
        finally:
            vars(model)["function"] = function
        f_backward = counter.f - f_forward
        return Measurement(forward_seconds, step_seconds, 0.0, peak, method, f_forward, f_backward, counter.vjp)

    def trainer(
        self,
        model: OdeNet,
        *,
        momentum: float,
        weight_decay: float,
        rates: Mapping[str, float] | None = None,
        optimizer: Imported | None = None,
    ) -> Trainer:
        return GradientDescent(model, momentum, weight_decay, rates, optimizer)

    def to_numpy(self, leaf: Any) -> np.ndarray:
        return to_numpy(leaf)

    @contextlib.contextmanager
    def prepare(self, dtype: str, device: str) -> Iterator[None]:
        self.require_place(dtype, device)
        with torch.device(device):
            yield

    def devices(self) -> tuple[str, ...]:
        names = ["cpu"]
        if torch.cuda.is_available():
            names += ["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        if torch.backends.mps.is_available():
            names.append("mps")
        return tuple(names)


def _fresh(tree: Any) -> tuple[Any, list[Any]]:
    """The tree with tensors cut from their history and needing gradients, and its leaves. Tied leaves stay tied."""
    by_id: dict[int, Any] = {}

    def renewed(leaf: Any) -> Any:
        if isinstance(leaf, (float, complex)):
            leaf = torch.tensor(leaf, device=torch.get_default_device())
        leaf = as_tensor(leaf)
        if not isinstance(leaf, Tensor) or not (leaf.is_floating_point() or leaf.is_complex()):
            return leaf
        return leaf.detach().requires_grad_()

    fresh = tree_map(lambda leaf: by_id.setdefault(id(leaf), renewed(leaf)), tree)
    return fresh, list({id(x): x for x in tree_leaves(fresh)}.values())


def _batch(model: OdeNet, inputs: np.ndarray, targets: np.ndarray) -> tuple[Tensor, Tensor]:
    model.spec.check_batch(inputs, targets)
    kind = np.int64 if model.spec.classes is not None else np.float64
    return on(next(model.parameters()), (np.asarray(inputs, np.float64), np.asarray(targets, kind)))
