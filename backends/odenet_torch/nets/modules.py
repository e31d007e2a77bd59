"""Networks: residual stacks of any modules, neural ODEs, and the networks of a `NetSpec`.

Over 250 lines, most of them docstrings, so that the three networks stand in one file as they do for JAX.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch import Tensor, nn

from odenet import (
    Auto,
    Backprop,
    Depth,
    DeviceUnavailableError,
    DiscreteAdjoint,
    DtypeError,
    Gradient,
    GradientName,
    InputError,
    NetSpec,
    PIDController,
    Problem,
    Solution,
    SolverName,
    Stats,
    UnsupportedError,
)
from odenet.kit import (
    BACKWARD_FAULTS,
    AnySolver,
    Compile,
    Kind,
    compiling,
    instance,
    kind_of_blocks,
    problem,
    require_one_grid,
    several,
    shown,
    staged,
)
from odenet.kit import gradient as gradient_named
from odenet.kit import solver as solver_named
from odenet_torch.field.dynamo import require_breaks
from odenet_torch.field.field import BlockField, Field
from odenet_torch.gradients.solve import recorded, solve_problem
from odenet_torch.nets.blocks import Weights, enter, field, leave
from odenet_torch.nets.counting import CountingField
from odenet_torch.nets.watched import Watched

if TYPE_CHECKING:
    import numpy as np


@torch.compiler.disable
def _call(method: Callable[..., Any], *arguments: Any) -> Any:
    return method(*arguments)


def _uncompiled(method: Callable[..., Any], *arguments: Any) -> Any:
    if torch.compiler.is_dynamo_compiling():
        require_breaks()
    return _call(method, *arguments)


class _Solved(Watched):
    """A module whose forward pass is a solve, and which remembers what that took."""

    def __init__(self, solver: SolverName | AnySolver, gradient: GradientName | Gradient, t0: float, t1: float) -> None:
        super().__init__()
        self.solver = solver_named(solver)
        self.gradient = gradient_named(gradient)
        self.t0, self.t1 = t0, t1
        self.stats: Stats | None = None
        self.compiled: Mapping[str, Any] | None = None
        """Choices of how steps are compiled; None: they are not."""

    def _choices_of_compiler(self) -> Compile:
        """Raises UnsupportedError for a gradient method that is chosen as it goes, and compared with others."""
        if self.compiled is None:
            return False
        if isinstance(self.gradient, Auto):
            raise UnsupportedError(
                f"compile with gradient {self.gradient.label!r}, which audits methods step by step",
                "a gradient method",
                "leave out compile until `plan` says which method it takes, and give that",
            )
        return self.compiled

    @property
    def certificate(self) -> float | None:
        """The reconstruction residual of the last backward pass; None where there was none (see `Stats`)."""
        return None if self.stats is None else self.stats.certificate

    def extra_repr(self) -> str:
        """The choices of the module, which `print` shows."""
        chosen = getattr(self.auditor, "method", None)
        now = "" if chosen is None else f" ({chosen.label})"
        return f"solver={self.solver.label}, gradient={self.gradient.label}{now}, t0={self.t0}, t1={self.t1}"


class ResidualStack(_Solved):
    """Residual blocks `x -> f(x)` as the layers of a solver: with Euler, `x <- x + h f_n(x)`, h = (t1 - t0) / steps.

    Args:
        blocks: modules that keep the shape of their input. A module may stand at several places.
        solver: a name or record. Euler gives a ResNet, Heun a HeunNet.
        gradient: a name or record.
        along: "piecewise": N blocks are N steps. "linear": parameters are interpolated between blocks, so that N blocks
            are N-1 steps; step n of Heun reads blocks n and n+1. None takes "piecewise" for Euler, else "linear".
        t0, t1: times; the default scales each of N steps by 1/N. `t1=len(blocks)` is the plain ResNet, h = 1.
        compile: its steps, as in `odenet.solve`; the method `compile` is for the blocks alone.

    Shapes: any tensor (or tree of tensors) in, the same shapes out. Further arguments go to every block; tensors
    among them get their gradients.

    Raises:
        InputError: no blocks, something that is no module, or different blocks to be interpolated.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        *,
        solver: SolverName | AnySolver = "euler",
        gradient: GradientName | Gradient = "backprop",
        along: Literal["piecewise", "linear"] | None = None,
        t0: float = 0.0,
        t1: float = 1.0,
        compile: Compile = False,
    ) -> None:
        super().__init__(solver, gradient, t0, t1)
        self.compiled = compiling(compile)
        blocks = several("blocks", blocks)
        if not all(isinstance(block, nn.Module) for block in blocks):
            raise InputError(f"blocks of {', '.join(type(block).__name__ for block in blocks)}", "torch.nn.Modules")
        self.along: Kind = kind_of_blocks(along, staged(self.solver, "a ResidualStack").stages)
        self.blocks = nn.ModuleList(blocks)
        depth = Depth.each(blocks, self.along)  # checks their number
        if depth.kind == "linear" and any(_structure(block) != _structure(blocks[0]) for block in blocks):
            raise InputError(
                f"{len(blocks)} blocks of different structures, to be interpolated",
                "blocks of one class whose parameters have the same names and shapes",
                "take along='piecewise'",
            )

    @property
    def depth(self) -> Depth:
        """The parameters of the blocks along depth, by name and without gradients, for `odenet.theory`."""
        return Depth.each([{n: p.detach() for n, p in b.named_parameters()} for b in self.blocks], self.along)

    @property
    def field(self) -> Callable[[Any, Any, Weights], Any]:
        """`f(t, y, w)` of the stack, w being a layer of `depth`: `odenet.solve` of both is what the stack does.

        Raises:
            InputError: blocks that differ in more than their parameters, or that have buffers.
        """
        first = self.blocks[0]
        if not self._alike():
            raise InputError(
                f"{len(self.blocks)} blocks that differ in more than their parameters",
                "blocks of one structure, without buffers",
                "odenet.solve takes any function of a layer as field, and Depth.each of any layers",
            )
        return lambda t, y, w: torch.func.functional_call(first, dict(w), (y,))

    def _alike(self) -> bool:
        """Whether blocks differ in their parameters alone."""
        return len({str(block) for block in self.blocks}) == 1 and not list(self.blocks.buffers())

    def __dir__(self) -> list[str]:
        """Without `field` where there is none: torch.jit.trace reads all that is named here."""
        return [name for name in super().__dir__() if name != "field" or self._alike()]

    def forward(self, x: Any, *arguments: Any, **named: Any) -> Any:
        """The state after the last block."""
        compiling = torch.compiler.is_compiling() and not recorded()  # torch.export is said to compile, too
        return _uncompiled(self._solved, x, arguments, named, compiling)

    def compile(self, *arguments: Any, **choices: Any) -> None:
        """Compile the blocks, each on its own, in place; arguments as in `torch.compile`.

        Equal blocks share what is compiled: one graph with and one without gradients, for any number of them. The loop
        and the backward pass remain Python, so that compilation takes no longer for a deeper network.
        """
        for block in {id(block): block for block in self.blocks}.values():
            block.compile(*arguments, **choices)

    def _solved(self, x: Any, arguments: Any, named: Any, compiling: bool) -> Any:
        if compiling and not any(block._compiled_call_impl for block in self.blocks):
            warnings.warn(
                "torch.compile does not look into a ResidualStack: call compile() of the stack, which compiles its "
                "blocks",
                stacklevel=2,
            )
        field = BlockField(list(self.blocks), self.along, (arguments, named))

        def make(gradient: Gradient) -> Problem:
            choices: dict[str, Any] = {"t0": self.t0, "t1": self.t1, "solver": self.solver, "gradient": gradient}
            choices["compile"] = self._choices_of_compiler()
            return problem(_unused, x, field.depth, **choices)

        return self._solution(make, field).y1


class NeuralODE(_Solved):
    """`y(t1)` of `y' = field(t, y)` from y(t0) = x.

    Args:
        field: a module `field(t, y)`.
        steps: of the solver; None for an adaptive solve.
        solver, gradient: names or records; the default solver is rk4, of an adaptive solve dopri5.
        t0, t1: times.
        rtol, atol, control: of an adaptive solve, as in `odenet.solve`.
        compile: its steps, as in `odenet.solve`; the method `compile` is for the field of equal steps.

    Shapes: any tensor in, the same shape out.

    Raises:
        InputError: both steps and tolerances, or neither.
    """

    def __init__(
        self,
        field: nn.Module,
        *,
        steps: int | None = None,
        solver: SolverName | AnySolver | None = None,
        gradient: GradientName | Gradient = "backprop",
        t0: float = 0.0,
        t1: float = 1.0,
        rtol: Any = None,
        atol: Any = None,
        control: PIDController | None = None,
        compile: Compile = False,
    ) -> None:
        tolerances = {"rtol": rtol, "atol": atol, "control": control}
        require_one_grid(steps, tolerances)
        if not callable(field):
            raise InputError(f"field is a {type(field).__name__}", "a module field(t, y)")
        default = "dopri5" if steps is None else "rk4"
        super().__init__(default if solver is None else solver, gradient, t0, t1)
        self.tolerances = tolerances
        self.field = field
        self.steps = steps
        self.compiled = compiling(compile)

    def forward(self, x: Tensor) -> Tensor:
        """The state at t1."""
        return _uncompiled(self._solved, x)

    def compile(self, *arguments: Any, **choices: Any) -> None:
        """Compile the field, in place; arguments as in `torch.compile`. The loop stays Python."""
        self.field.compile(*arguments, **choices)

    def _solved(self, x: Tensor) -> Tensor:
        def make(gradient: Gradient) -> Problem:
            choices: dict[str, Any] = {"t0": self.t0, "t1": self.t1, "solver": self.solver, "gradient": gradient}
            choices["compile"] = self._choices_of_compiler()
            return problem(self.field, x, steps=self.steps, **choices, **self.tolerances)

        return self._solution(make).y1


class OdeNet(_Solved):
    """The network of a `NetSpec`; its `state_dict` has the spec's names, running statistics among them.

    With batch normalisation, `train()` and `eval()` are those of any module.

    Args:
        spec: what to build.
        weights: by name, as NumPy arrays, with the running statistics.
        solver, gradient: names or records.
        dtype, device: of the parameters.

    Shapes: (batch, *spec.inputs) to (batch, classes), or to the state's shape without classes.
    """

    counting: CountingField | None
    function: Callable[[Tensor, Tensor, Weights], Tensor]

    def __init__(
        self,
        spec: NetSpec,
        weights: Mapping[str, np.ndarray],
        *,
        solver: SolverName | AnySolver = "euler",
        gradient: GradientName | Gradient = "backprop",
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
    ) -> None:
        instance("spec", spec, NetSpec, "an odenet.NetSpec")
        instance("dtype", dtype, torch.dtype, "a number type of torch, as torch.float32")
        if not (dtype.is_floating_point or dtype.is_complex):
            raise DtypeError(f"dtype={dtype} of a network", "torch.float32, torch.float64 or another of real numbers")
        super().__init__(solver, gradient, 0.0, spec.horizon)
        spec.check(weights)
        self.spec = spec
        counting = CountingField(spec) if spec.batch_normalised else None
        # not as a submodule: its buffers are those of one pass, and `function` may be replaced by any function
        vars(self).update(counting=counting, function=counting or field(spec))
        try:
            place = torch.device(device)
        except (TypeError, RuntimeError, ValueError) as error:
            raise DeviceUnavailableError(f"torch has no device {shown(device)}", "names such as cpu, cuda:0") from error
        for name in (*spec.shapes(), *spec.statistics()):
            tensor = torch.tensor(weights[name], dtype=dtype, device=place)
            _register(self, name.split("."), tensor if name in spec.statistics() else nn.Parameter(tensor))

    def forward(self, x: Tensor) -> Tensor:
        """Logits, or final states."""
        spec, weights = self.spec, {**dict(self.named_parameters()), **dict(self.named_buffers())}
        if self.training:
            spec.check_training(len(x))
        y = x if spec.of_images else x.flatten(1)
        if spec.classes is not None:
            y = enter(spec, weights, y, self.training)
        inner = {name.removeprefix("block."): w for name, w in weights.items() if name.startswith("block.")}
        statistics = {name: inner.pop(name) for name in list(inner) if name.rpartition(".")[2].startswith("running_")}
        if self.counting is not None:
            if spec.norm in BACKWARD_FAULTS and not isinstance(self.gradient, Backprop | DiscreteAdjoint):
                raise UnsupportedError(
                    f"norm={spec.norm!r}, a fault of one method, with gradient {self.gradient.label!r}",
                    "discrete-adjoint, and backprop, which it does not change",
                    "take norm='batch'",
                )
            inner = self.counting.of_statistics(inner, statistics)
        if spec.along == "shared":
            inner = {name: w[0] for name, w in inner.items()}
        depth, choices = Depth(inner, spec.along), {"steps": spec.depth, "t1": spec.horizon, "solver": self.solver}

        def make(gradient: Gradient) -> Problem:
            return problem(self.function, y, depth, gradient=gradient, **choices)

        with contextlib.nullcontext() if self.counting is None else self.counting.counting(statistics):
            y = self._solution(make).ys[0]
        return y if spec.classes is None else leave(spec, weights, y, self.training)

    def train(self, mode: bool = True) -> Self:
        """Switch between training and evaluation, as `nn.Module.train` does."""
        if self.counting is not None:
            self.counting.train(mode)
        return super().train(mode)

    @contextlib.contextmanager
    def uncounted(self) -> Iterator[None]:
        """Afterwards the running statistics are what they were."""
        before = [(buffer, buffer.clone()) for buffer in self.buffers()]
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in before:
                    buffer.copy_(value)

    def solve(self, ivp: Problem) -> Solution:
        """Takes the steps; a network whose steps are another library's has its own."""
        return solve_problem(ivp)

    def _solution(self, make: Callable[[Gradient], Problem], field: Field | None = None) -> Solution:
        if isinstance(self.gradient, Auto) and type(self).solve is OdeNet.solve:
            return super()._solution(make, field)
        solution = self.solve(make(self.gradient))
        self.stats = solution.stats
        return solution


def _structure(block: nn.Module) -> tuple[type, list[tuple[str, torch.Size]]]:
    return type(block), [(name, p.shape) for name, p in block.named_parameters()]


def _register(module: nn.Module, path: list[str], tensor: Tensor) -> None:
    """A parameter or buffer under nested plain modules, so that its name is the dotted path."""
    *inner, last = path
    for name in inner:
        if name not in module._modules:
            module.add_module(name, nn.Module())
        module = module.get_submodule(name)
    if isinstance(tensor, nn.Parameter):
        module.register_parameter(last, tensor)
    else:
        module.register_buffer(last, tensor)


def _unused(t: Tensor, y: Any, w: Any) -> Any:
    raise AssertionError("a ResidualStack reads its blocks by itself")
