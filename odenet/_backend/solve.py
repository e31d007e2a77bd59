"""`odenet.solve`: checks, picks the backend, calls it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from odenet import _tree
from odenet._backend.entry import BackendEntry
from odenet._backend.interface import Backend, Gradients
from odenet._backend.registry import ENTRY_CHECKS, backend, entry, entry_for, owner, require
from odenet._backend.registry import backend as load
from odenet._check import takes
from odenet._errors import InputError, UnsupportedError
from odenet._gradients.names import Gradient
from odenet._literals import BackendName, GradientName, SolverName
from odenet._problem.depth import Depth
from odenet._problem.problem import Compile, Problem, problem
from odenet._problem.solution import Solution
from odenet._problem.span import Event, Span
from odenet._solvers.controller import PIDController
from odenet._solvers.names import AnySolver

State = TypeVar("State")


def solve(
    field: Callable[[Any, Any, Any], Any] | Callable[[Any, Any], Any],
    y0: State,
    weights: Any = None,
    *,
    t0: Any = 0.0,
    t1: Any = 1.0,
    steps: int | None = None,
    ts: Any = None,
    solver: SolverName | AnySolver | None = None,
    gradient: GradientName | Gradient = "backprop",
    backend: BackendName | BackendEntry | None = None,
    rtol: Any = None,
    atol: Any = None,
    control: PIDController | None = None,
    event: Event | Callable[[Any, Any], Any] | None = None,
    dense: bool = False,
    compile: Compile = False,
) -> Solution[State]:
    """Solve `y' = field(t, y, w)` from y(t0) = y0 to t1: in `steps` equal steps, or to a tolerance.

    Args:
        field: `field(t, y, w)` with a scalar time, the state and the weights at that depth; it returns a tree like y.
            Without weights `field(t, y)`: in torch an nn.Module or a closure over its parameters, in JAX a closure.
        y0: the state at t0: an array of any shape or a tree of them (tuple, list, dict). float32, float64, complex; a
            half-precision state is carried in float32 between field evaluations and returned as it came.
        weights: a tree, the same at all depths, or a `Depth`.
        t0, t1: times; `t1 < t0` solves backward. With tolerances they (and `ts`) may be scalars of the framework that
            need a gradient, which is that of the ODE: `dL/dt1 = dL/dy(t1) f(t1, y(t1))`. In torch they may with equal
            steps, too: the derivative by t0 and t1 is then that of the steps themselves, by their size.
        steps: whole number; left out it is that of the layers (or intervals) of `weights`.
        ts: which times to keep: None for t1 alone, "all", or times: on the grid with equal steps, anywhere between t0
            and t1 with tolerances.
        solver: a name or alias (`odenet list solvers`) or a `Solver`; left out it is euler, with tolerances dopri5.
        gradient: a name with options (`odenet list gradients`) or a record such as `DiscreteAdjoint(correct=False)`.
        backend: "torch", "jax" or another (`odenet list backends`); left out it follows from the arrays in y0 (or in
            the weights, if y0 is numbers).
        rtol, atol: tolerances: one of them, or `control`, makes the solve adaptive. The other defaults to that of
            `PIDController`.
        control: everything else about step sizes.
        event: an `Event`, or its condition(t, y), that ends an adaptive solve where it changes sign.
        dense: keep what `Solution.at(t)` needs to evaluate the solution at any time. Adaptive solves only.
        compile: compile the steps, once for a field and a shape of state, and with equal steps their backward pass;
            True, or a mapping of options (`{"backend": "inductor"}`). torch only; adaptive solves with backprop or
            without gradients. In JAX take `jax.jit`.

    Returns:
        Solution with `ts`, time-major `ys`, `y1`, `stats` and `result`.

    Raises:
        InputError: an argument cannot be used (see `odenet._errors` for the classes).
        UnsupportedError: the backend does not offer this solver with this gradient.
        BackendUnavailableError: the backend's framework is not installed.
        SolveError: an adaptive solve could not go on; `PIDController(throw=False)` returns what there is.
    """
    for check in ENTRY_CHECKS:
        check()
    _require_own_times(backend, (y0, weights), {"t0": t0, "t1": t1, "ts": ts})
    ivp = problem(
        field,
        y0,
        weights,
        t0=t0,
        t1=t1,
        steps=steps,
        ts=ts,
        solver=solver,
        gradient=gradient,
        rtol=rtol,
        atol=atol,
        control=control,
        event=event,
        dense=dense,
        compile=compile,
    )
    return _backend(ivp, backend).solve(ivp)


def value_and_grad(
    loss: Callable[[Solution[State]], Any],
    field: Callable[[Any, Any, Any], Any] | Callable[[Any, Any], Any],
    y0: State,
    weights: Any = None,
    *,
    t0: Any = 0.0,
    t1: Any = 1.0,
    steps: int | None = None,
    ts: Any = None,
    solver: SolverName | AnySolver | None = None,
    gradient: GradientName | Gradient = "backprop",
    backend: BackendName | BackendEntry | None = None,
    rtol: Any = None,
    atol: Any = None,
    control: PIDController | None = None,
    event: Event | Callable[[Any, Any], Any] | None = None,
    dense: bool = False,
    compile: Compile = False,
) -> tuple[Any, Gradients[State, Any], Solution[State]]:
    """A scalar loss of a solution and its gradients, the same way in every backend.

    Args:
        loss: `loss(solution)`, a real scalar of the framework.
        field, y0, weights, t0, t1, steps, ts, solver, gradient, backend, rtol, atol, control, event, dense, compile:
            as in `solve`.

    Returns:
        The loss, `Gradients(y0, weights)` and the solution, whose `stats.certificate` measures the error of the states
        that the gradient method reconstructed.

    Raises:
        OdenetError: as `solve` does.
        GradientError: a gradient could not be given truthfully.
    """
    for check in ENTRY_CHECKS:
        check()
    if not callable(loss):
        raise InputError(f"loss is a {type(loss).__name__}", "a callable loss(solution) that returns a real scalar")
    takes(loss, 1, "loss", "a loss that can be called as loss(solution)")
    _require_own_times(backend, (y0, weights), {"t0": t0, "t1": t1, "ts": ts})
    ivp = problem(
        field,
        y0,
        weights,
        t0=t0,
        t1=t1,
        steps=steps,
        ts=ts,
        solver=solver,
        gradient=gradient,
        rtol=rtol,
        atol=atol,
        control=control,
        event=event,
        dense=dense,
        compile=compile,
    )
    return _backend(ivp, backend).value_and_grad(loss, ivp)


def _require_own_times(named: str | BackendEntry | None, trees: tuple[Any, Any], times: dict[str, Any]) -> None:
    """Raises InputError where a time needs a gradient that the backend cannot give: that of another framework."""
    for name, value in times.items():
        values = value if isinstance(value, (list, tuple)) else [value]
        moving = [time for time in values if getattr(time, "requires_grad", False)]
        if not moving:
            continue
        y0, weights = trees
        tree = weights.tree if isinstance(weights, Depth) else weights
        record = _entry((y0, tree), named)
        if other := owner(moving[0], besides=record):
            raise InputError(
                f"{name} is an array of {other.framework} that needs a gradient, and the backend is {record.name}",
                f"times of {record.framework}, or numbers",
                f"take {name}.detach(), or backend={other.name!r}",
            )


def _entry(trees: Iterable[Any], named: str | BackendEntry | None) -> BackendEntry:
    return entry_for(trees) if named is None else named if isinstance(named, BackendEntry) else entry(named)


def _backend(ivp: Problem, named: str | BackendEntry | None) -> Backend:
    trees = {"y0": ivp.y0, "weights": ivp.weights.tree if isinstance(ivp.weights, Depth) else None}
    record = _entry(trees.values(), named)
    require(record, ivp.solver, ivp.gradient, adaptive=isinstance(ivp.grid, Span))
    if ivp.compile is not None and not record.compiles:
        raise UnsupportedError(
            f"compile with backend {record.name}",
            "backend torch",
            "leave out compile; a solve in JAX is compiled whole by jax.jit around it",
        )
    for argument, tree in trees.items():
        for path, leaf in _tree.paths(tree):
            if other := owner(leaf, besides=record):
                raise InputError(
                    f"{argument} {path} is an array of {other.framework}, and the backend is {record.name}",
                    f"arrays of {record.framework} or NumPy, and numbers",
                    f"convert it, or take backend={other.name!r}",
                )
    return load(record)


Model = TypeVar("Model")


def unconvert(model: Model) -> Model:
    """A converted model with its own layers again: the same parameters, as they are trained by now.

    Args:
        model: one that `odenet_torch.convert` or `odenet_jax.convert` has converted, or parts of which were. It is
            changed in place, but for a model of equinox; one that was not converted is left as it is.

    Returns:
        The model; in the place of one of equinox, another one.

    Raises:
        ConversionError: a layer whose class was changed since it was converted, as by FSDP. UnsupportedError: a model
            of a backend that converts none.
    """
    return backend(entry_for([model]).name).unconvert(model)
