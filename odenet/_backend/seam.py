"""The seam. A backend is asked for what the user wants done, never for array operations."""

from __future__ import annotations

import importlib
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from odenet._errors import BackendUnavailableError, UnsupportedError
from odenet._gradients.names import GRADIENTS, Gradient
from odenet._problem.solution import Solution
from odenet._solvers.delegated import DelegatedSolver, offering
from odenet._solvers.names import AnySolver, own_solvers

if TYPE_CHECKING:
    import numpy as np

    from odenet._backend.sample import Sample
    from odenet._backend.trainer import Trainer
    from odenet._nets.spec import NetSpec
    from odenet._problem.problem import Problem

Arrays = Mapping[str, "np.ndarray"]


@dataclass(frozen=True)
class Gradients:
    """Gradients of a loss of a solution.

    Args:
        y0: a tree like y0.
        weights: a tree like the weights (that of `Depth.tree` where a Depth was given); None without weights.
    """

    y0: Any
    weights: Any


@dataclass(frozen=True)
class Evaluation:
    """One forward and backward pass of a network on a batch, as NumPy.

    Args:
        loss: mean cross-entropy over the batch (half the mean squared error for a network without classes).
        outputs: logits or final states, shape (batch, ...).
        gradients: by name of weight.
        certificate: the reconstruction residual, where the gradient method has one.
    """

    loss: float
    outputs: np.ndarray
    gradients: dict[str, np.ndarray]
    certificate: float | None


@dataclass(frozen=True)
class Measurement:
    """What a forward and a backward pass take, on this machine.

    Args:
        forward_seconds: median seconds of the loss alone.
        step_seconds: median seconds of loss and gradient.
        compile_seconds: compilation of both, 0 where nothing is compiled.
        peak_bytes: most bytes alive at once for loss and gradient, beyond weights and batch.
        peak_bytes_method: how that was counted.
        f_forward, f_backward, vjp: field evaluations and VJPs, as in `Cost`, counted in a run of the same solver,
            gradient method and depth.
    """

    forward_seconds: float
    step_seconds: float
    compile_seconds: float
    peak_bytes: int
    peak_bytes_method: str
    f_forward: int
    f_backward: int
    vjp: int


class Backend(ABC):
    """What a framework has to do for odenet. One instance serves a process; it holds no state."""

    @abstractmethod
    def solve(self, problem: Problem) -> Solution:
        """The solution, differentiable by the framework's own means with the problem's gradient method."""

    @abstractmethod
    def value_and_grad(self, loss: Callable[[Solution], Any], problem: Problem) -> tuple[Any, Gradients, Solution]:
        """A scalar loss of the solution, its gradients, and the solution with its certificate."""

    @abstractmethod
    def build(
        self,
        spec: NetSpec,
        weights: Arrays,
        *,
        solver: AnySolver,
        gradient: Gradient,
        dtype: str = "float32",
        device: str = "cpu",
    ) -> Any:
        """The network of a spec with these weights: a callable of the framework, batch of inputs to outputs."""

    @abstractmethod
    def read(self, model: Any) -> dict[str, np.ndarray]:
        """The weights of a network that `build` made, by name."""

    @abstractmethod
    def evaluate(self, model: Any, inputs: np.ndarray, targets: np.ndarray) -> Evaluation:
        """Loss, outputs and gradients of a network on a batch."""

    @abstractmethod
    def examine(
        self, model: Any, batch: Any, loss: Callable[..., Any] | None, gradient: Gradient, *, reversible: bool = False
    ) -> Sample:
        """One gradient of a model of the framework's own, with that method in the place of its own.

        The model is left exactly as it was, and so are random states: every method sees the same dropout masks.

        Args:
            model: a module that is or contains a ResidualStack, a NeuralODE or an OdeNet.
            batch: its input, or a pair (input, target). NumPy arrays are converted.
            loss: `loss(outputs, target)`, or `loss(outputs)` where there is no target; None for cross-entropy (class
                numbers as target), half the mean squared difference, or half the mean square (no target).
            gradient: the method, of every solve in the model.
            reversible: solve by `reversible:NAME` in the place of each Runge-Kutta method: another network.

        Raises:
            InputError: a model without a solve or without parameters, or a loss that is no real scalar.
        """

    @abstractmethod
    def measure(self, model: Any, inputs: np.ndarray, targets: np.ndarray, repeats: int = 3) -> Measurement:
        """Time, memory and counts of loss and gradient on a batch, after a warm-up."""

    def trainer(
        self, model: Any, *, momentum: float, weight_decay: float, rates: Mapping[str, float] | None = None
    ) -> Trainer:
        """A network that `build` made, to be trained: see `Trainer`. The model given is not changed.

        Args:
            model: what to train a copy of.
            momentum, weight_decay: of the update.
            rates: factors of the rate by how the names of weights begin, the longest beginning counts: `{"": 1.0}`
                by default. Weights whose names begin in no such way stay as they are.

        Raises:
            InputError: no weight is left to be trained, a beginning of no weight, or a factor that is not above 0.
            UnsupportedError: this backend solves, and does not train.
        """
        raise UnsupportedError(
            f"{type(self).__name__} does not train networks", "the backends torch and jax", "take --backend torch"
        )

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function of trees of arrays to such trees, as the framework runs it fastest when it is called often."""
        return function

    @abstractmethod
    def to_numpy(self, leaf: Any) -> np.ndarray:
        """One of the framework's arrays as NumPy, on the host (half precision as float32)."""

    @abstractmethod
    def prepare(self, dtype: str, device: str) -> AbstractContextManager[None]:
        """A context in which arrays of that number type can be made, and are made on that device.

        Raises:
            DtypeError: a number type that the framework does not have.
            DeviceUnavailableError: a device that it does not see.
        """

    @abstractmethod
    def devices(self) -> tuple[str, ...]:
        """Names of the devices that the framework sees, `cpu` first."""


@dataclass(frozen=True)
class BackendEntry:
    """A backend before it is loaded: plain data, so that knowing it costs no import of its framework.

    Args:
        name: what a user calls it.
        framework: import name of the framework.
        install: the command that makes it available.
        implementation: "module:Class" of its `Backend`.
        array_modules: top-level modules whose array types it owns; this is how `solve` finds it from y0.
        solvers: names of the solvers it offers with equal steps; None for every explicit Runge-Kutta method, yours
            included, and every reversible one.
        gradients: names of the gradient methods it offers.
        adaptive: names of the solvers it offers with tolerances; None for every explicit Runge-Kutta method that
            estimates its error, () for none.
        options: of gradient methods, the names of those it has; None for all.
        base: another backend, whose arrays it takes. Such a backend is used where it is named, and owns no arrays.
    """

    name: str
    framework: str
    install: str
    implementation: str
    array_modules: tuple[str, ...]
    solvers: tuple[str, ...] | None = None
    gradients: tuple[str, ...] = tuple(GRADIENTS)
    adaptive: tuple[str, ...] | None = None
    options: tuple[str, ...] | None = None
    base: str | None = None

    @property
    def available(self) -> bool:
        """Whether the framework is installed, and that of `base`. They are looked for, not imported."""
        if importlib.util.find_spec(self.framework) is None:
            return False
        if self.base is None:
            return True
        from odenet._backend.registry import known  # above this module

        return self.base in known() and known()[self.base].available

    def owns(self, leaf: Any) -> bool:
        """Whether an array is of this backend's framework."""
        return any(kind.__module__.partition(".")[0] in self.array_modules for kind in type(leaf).__mro__)

    def offers(self, solver: AnySolver, gradient: Gradient, *, adaptive: bool = False) -> bool:
        """Whether this pair can be solved here, with equal steps or with tolerances."""
        names = self.adaptive if adaptive else self.solvers
        offered = solver.name in names if names is not None else not isinstance(solver, DelegatedSolver)
        has = self.options is None or set(gradient.changed) <= set(self.options)
        return offered and has and gradient.name in self.gradients and gradient.offered(solver)

    def require(self, solver: AnySolver, gradient: Gradient, *, adaptive: bool = False) -> None:
        """Raises UnsupportedError with what is offered, unless the pair is."""
        if self.offers(solver, gradient, adaptive=adaptive):
            return
        names = self.adaptive if adaptive else self.solvers
        kinds = ", ".join(own_solvers() if names is None else names) or "none"
        options = "" if self.options is None else f" (options {', '.join(self.options) or 'none'})"
        elsewhere = isinstance(solver, DelegatedSolver) and ", ".join(offering(solver.name))
        raise UnsupportedError(
            f"backend {self.name} does not offer solver {solver.label} with gradient {gradient.label} and "
            f"{'tolerances' if adaptive else 'equal steps'}",
            f"solvers {kinds}; gradients {', '.join(self.gradients)}{options} "
            "(reversible with a reversible solver, the others but backprop with a Runge-Kutta method)",
            f"take backend={elsewhere}, which has that solver"
            if elsewhere
            else "choose one of these, or another backend (`odenet list backends`)",
        )

    def load(self) -> Backend:
        """The backend itself; imports the framework.

        Raises:
            BackendUnavailableError: the framework is not installed.
        """
        if not self.available:
            raise BackendUnavailableError(
                f"backend {self.name} is known but not available: {self.framework} "
                f"{'is' if self.base is None else f'or {self.base}, on which it stands, is'} not installed",
                "an installed framework",
                self.install,
            )
        module, _, name = self.implementation.partition(":")
        try:
            return getattr(importlib.import_module(module), name)()
        except Exception as error:  # a framework that is installed but broken may fail in any way
            raise BackendUnavailableError(
                f"backend {self.name} is installed but {self.implementation} cannot be loaded ({error})",
                "a framework that imports",
                f"try `python -c 'import {self.framework}'`, and {self.install}",
            ) from error
