"""The interface of a backend. It is asked for what the user wants done, never for array operations.

Over 250 lines: one class says all that a backend may be asked for, with shapes and errors of each request.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from odenet._errors import DeviceUnavailableError, DtypeError, UnsupportedError, shown
from odenet._gradients.record import Gradient
from odenet._problem.solution import Solution
from odenet._solvers.family import AnySolver

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from odenet._backend.imported import Imported
    from odenet._backend.sample import Choices, Profiles, Sample
    from odenet._backend.trainer import Trainer
    from odenet._nets.spec import NetSpec
    from odenet._problem.problem import Problem

Arrays = Mapping[str, "np.ndarray"]


State = TypeVar("State")
Weights = TypeVar("Weights")


@dataclass(frozen=True)
class Gradients(Generic[State, Weights]):
    """Gradients of a loss of a solution.

    Args:
        y0: a tree like y0.
        weights: a tree like the weights (that of `Depth.tree` where a Depth was given); None without weights.
    """

    y0: State
    weights: Weights


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
        compile_seconds: compilation of both, 0 where nothing is compiled. A program that an earlier job compiled
            (`Backend.keep_programs`) has the seconds that it took then; None where nobody knows them.
        peak_bytes: most bytes alive at once for loss and gradient, beyond weights and batch.
        peak_bytes_method: how that was counted.
        f_forward, f_backward, vjp: field evaluations and VJPs, as in `Cost`, counted in a run of the same solver,
            gradient method and depth.
            JAX 0.5 leaves what counts out of loops that it differentiates itself: there f_backward is too small with
            backprop and with checkpoint in segments (even negative). JAX 0.6 and later count right.
    """

    forward_seconds: float
    step_seconds: float
    compile_seconds: float | None
    peak_bytes: int
    peak_bytes_method: str
    f_forward: int
    f_backward: int
    vjp: int


class Backend(ABC):
    """What a framework has to do for odenet. One instance serves a process; it holds no state.

    The verbs for networks (`build`, `read`, `evaluate`, `examine`, `choices`, `with_gradient`, `profile`, `measure`,
    `trainer`) are for a backend whose entry says `networks=True`; another leaves them out.
    """

    framework: ClassVar[str] = ""
    """As errors name it."""
    dtypes: ClassVar[tuple[str, ...]] = ()
    """The number types that it has."""

    @abstractmethod
    def solve(self, problem: Problem) -> Solution:
        """The solution, differentiable by the framework's own means with the problem's gradient method."""

    @abstractmethod
    def value_and_grad(self, loss: Callable[[Solution], Any], problem: Problem) -> tuple[Any, Gradients, Solution]:
        """A scalar loss of the solution, its gradients, and the solution with its certificate."""

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
        raise _no_networks(self)

    def read(self, model: Any) -> dict[str, np.ndarray]:
        """The weights and running statistics of a network that `build` made, by name."""
        raise _no_networks(self)

    def evaluate(self, model: Any, inputs: np.ndarray, targets: np.ndarray) -> Evaluation:
        """Loss, outputs and gradients of a network on a batch, which running statistics do not count; batch
        normalisation is by the batch."""
        raise _no_networks(self)

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
        raise _no_networks(self)

    def choices(self, model: Any) -> dict[str, Choices]:
        """How each solve in a model is done, by its path in the model ("" for the model itself).

        Raises:
            InputError: a model without a solve.
        """
        raise _no_networks(self)

    def with_gradient(self, model: Any, gradient: Gradient) -> Any:
        """The model with that method in every solve; where the method was `Auto`, `Auto` with that method.

        Returns:
            The model itself where modules can be changed, else a copy.
        """
        raise _no_networks(self)

    def profile(
        self,
        model: Any,
        batch: Any,
        loss: Callable[..., Any] | None,
        gradients: Sequence[Gradient],
        *,
        reference: Gradient,
        memory: int | None = None,
        repeats: int = 3,
    ) -> Profiles:
        """Time, memory and gradient error of methods, each in the place of the model's own, on one batch.

        The model is left exactly as it was, and all methods draw the same random numbers.

        Args:
            model, batch, loss: as for `examine`.
            gradients: the methods.
            reference: the exact method that their gradients are compared with.
            memory: bytes; a method that needs more is stopped where that can be told, and not timed.
            repeats: rounds of timing; 0 leaves time and memory out.

        Raises:
            OdenetError: the reference fails.
        """
        raise _no_networks(self)

    def trained(self, model: Any, batch: Any, loss: Callable[..., Any] | None, steps: int, rate: float) -> Any:
        """A copy of a model after a few steps of Adam on a batch by exact gradients; the model is left as it was.

        Args:
            model, batch, loss: as of `examine`.
            steps, rate: of Adam.
        """
        raise _no_networks(self)

    def unconvert(self, model: Any) -> Any:
        """A converted model with its own layers again: see `odenet.unconvert`."""
        raise UnsupportedError(
            f"unconvert with {type(self).__name__}, which converts no models",
            "models that odenet_torch.convert or odenet_jax.convert has converted",
        )

    def measure(self, model: Any, inputs: np.ndarray, targets: np.ndarray, repeats: int = 3) -> Measurement:
        """Time, memory and counts of loss and gradient on a batch, after a warm-up."""
        raise _no_networks(self)

    def trainer(
        self,
        model: Any,
        *,
        momentum: float,
        weight_decay: float,
        rates: Mapping[str, float] | None = None,
        optimizer: Imported | None = None,
    ) -> Trainer:
        """A network that `build` made, to be trained: see `Trainer`. The model given is not changed.

        Args:
            model: what to train a copy of.
            momentum, weight_decay: of the update.
            rates: factors of the rate by how the names of weights begin, the longest beginning counts: `{"": 1.0}`
                by default. Weights whose names begin in no such way stay as they are.
            optimizer: the framework's own, in the place of gradient descent with momentum; `momentum` and
                `weight_decay` are then not read.

        Raises:
            InputError: no weight is left to be trained, a beginning of no weight, a factor that is not above 0, or an
                optimiser that is none of this framework's.
            UnsupportedError: this backend solves, and does not train.
        """
        raise UnsupportedError(
            f"{type(self).__name__} does not train networks", "the backends torch and jax", "take --backend torch"
        )

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function of trees of arrays to such trees, as the framework runs it fastest when it is called often."""
        return function

    def keep_programs(self, folder: Path) -> None:  # noqa: B027 (nothing is compiled, unless a backend says otherwise)
        """Keep compiled programs in a folder from now on, and take those that are there: for jobs, which ask for it.

        Only a program of the same computation, framework, flags and kind of processor is taken.

        Raises:
            FileError: it cannot be written to.
        """

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

    def require_place(self, dtype: str, device: str) -> None:
        """Raises DtypeError or DeviceUnavailableError unless the framework has the number type and sees the device."""
        if not isinstance(dtype, str) or dtype not in self.dtypes:
            raise DtypeError(f"dtype {shown(dtype)}", ", ".join(self.dtypes))
        devices = self.devices()
        if not isinstance(device, str) or device not in devices:
            raise DeviceUnavailableError(
                f"{self.framework} sees no device {shown(device)}", ", ".join(devices), "see `odenet list backends`"
            )


def _no_networks(backend: Backend) -> UnsupportedError:
    return UnsupportedError(
        f"networks and modules with {type(backend).__name__}, which solves and does nothing else",
        "solve and value_and_grad",
        "take a backend with networks, such as torch or jax (`odenet list backends`)",
    )
