"""`solve` on torch: from a problem to what is done for its gradient method.

A `Way` of torch holds two functions, each of `(problem, stats)`:

- `fixed` returns `solve(run, leaves)`: the leaves at the kept times, from a `steps.fixed.Run` and those of y0;
- `adaptive` returns `solve(forward, leaves)`: the same from a `steps.adaptive.ForwardSolve`.

`stats.residual` may be set by the backward pass (`Stats.certificate`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from odenet import (
    Backprop,
    Event,
    Gradient,
    GradientName,
    Grid,
    PIDController,
    Problem,
    Solution,
    SolverName,
    Span,
    Stats,
    UnsupportedError,
)
from odenet.kit import AnySolver, Compile, StagedSolver, Way, problem, require
from odenet_torch._entry import backend
from odenet_torch.field import random_state
from odenet_torch.field.differentiating import valueless
from odenet_torch.field.dynamo import untraced
from odenet_torch.field.field import BlockField, Field, FunctionField
from odenet_torch.field.raised import as_raised, leaves_a_checkpoint
from odenet_torch.field.state import Leaves, layout, require_times
from odenet_torch.gradients import strides
from odenet_torch.steps.adaptive import solve_adaptive
from odenet_torch.steps.compiled import compilable
from odenet_torch.steps.direct import Direct, NotSettledError, forget, learn
from odenet_torch.steps.fixed import Run, Solve
from odenet_torch.steps.moving_grid import at_times, on_numbers
from odenet_torch.steps.resolution import resolved

State = TypeVar("State")


@untraced
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
    rtol: Any = None,
    atol: Any = None,
    control: PIDController | None = None,
    event: Event | Callable[[Any, Any], Any] | None = None,
    dense: bool = False,
    compile: Compile = False,
) -> Solution[State]:
    """`odenet.solve` without asking which backend: see there for the arguments."""
    return solve_problem(
        problem(
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
    )


@untraced
@as_raised
def solve_problem(ivp: Problem, field: Field | None = None, way: Way | None = None) -> Solution:
    """The solution of a problem.

    Args:
        ivp: the problem.
        field: stands for the problem's own field and weights, where a module knows better how to read its layers.
        way: what is done for its gradient method; None for what the backend does.
    """
    adaptive = isinstance(ivp.grid, Span)
    require(backend, ivp.solver, ivp.gradient, adaptive=adaptive)
    graph = recorded()
    # a graph has outputs alone: what is run once more, or looked at by value, for the backward pass has no place in it
    way = backend.way(Backprop()) if graph and not adaptive else way or backend.way(ivp.gradient)
    assert way is not None  # required above
    method = way.load(adaptive=adaptive)
    if ivp.compile is not None:
        ivp = dataclasses.replace(ivp, compile=(compilable if adaptive else strides.compilable)(ivp))
    if adaptive:
        _require_eager(graph or valueless())
        return solve_adaptive(ivp, lambda stats: method(ivp, stats), field)
    assert isinstance(ivp.grid, Grid)
    assert isinstance(ivp.solver, StagedSolver)  # of a family that this backend runs
    state_layout, leaves = layout(ivp.y0)
    state_layout = resolved(state_layout, ivp.grid.t0, ivp.grid.t1)
    require_times(state_layout.time, (ivp.grid.t0, ivp.grid.t1))
    grid, field = on_numbers(ivp.grid, field or FunctionField(ivp.field, ivp.weights))
    run = Run(field, state_layout, grid, ivp.solver)
    steps = grid.steps
    stats = Stats("torch", ivp.solver.label, ivp.gradient.label, steps, ivp.solver.evaluations(steps))
    if graph:
        ys = method(ivp, stats)(run, leaves)
    elif ivp.compile is not None:
        ys = strides.solve(ivp, run, stats, leaves)
    else:
        ys = _stepped(run, leaves, lambda: method(ivp, stats))
    if ivp.grid.spread is not None:
        picks = torch.tensor(ivp.grid.spread, device=state_layout.device)
        ys = tuple(leaf[picks] for leaf in ys)
    ys = at_times(ivp.grid, run, ys)
    ts = torch.tensor(ivp.grid.times, dtype=state_layout.time, device=state_layout.device)
    return Solution(ts, state_layout.unflatten(ys), stats)


def recorded() -> bool:
    """Whether torch.export or torch.jit.trace records a graph."""
    tracing = torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
    return tracing or getattr(torch.compiler, "is_exporting", _compiling_without_dynamo)()  # since torch 2.7


def _compiling_without_dynamo() -> bool:
    """Whether torch 2.6 exports without dynamo: what says so later says there that it compiles."""
    return torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()


def _require_eager(graph: bool) -> None:
    """Raises UnsupportedError where a graph is recorded, which would have the steps of one example for every input."""
    if graph:
        raise UnsupportedError(
            "steps that follow a tolerance in torch.export, torch.onnx, torch.jit.trace, make_fx or FakeTensorMode: "
            "how many there are depends on the values of the input, and a graph has a fixed number",
            "equal steps in what is exported",
            "give steps=N in the place of rtol and atol; odenet.solve(...).stats.accepted says how many are enough",
        )


def _stepped(run: Run, leaves: Leaves, method: Callable[[], Solve]) -> Leaves:
    """The leaves at the kept times: by direct calls of blocks that are known, or with all looks at the field."""
    direct = Direct.of(run.field, run.layout, run.grid, run.solver)
    if direct is not None:
        random = random_state.state(run.layout.device)
        try:
            ys = method()(dataclasses.replace(run, direct=direct), leaves)
            direct.guarded = True
            return ys
        except NotSettledError:
            pass
        except Exception as error:  # whatever it is: the careful loop meets it again, and says what it is
            if leaves_a_checkpoint(error):
                raise
            random_state.restore(run.layout.device, random)
            forget(direct.field)
    if isinstance(run.field, BlockField):
        _ = run.field.parameters  # read now, since it is asked for when the blocks may hold something else
    memory = run.layout.memory
    memory.suspect(run.field.functions())
    ys = method()(run, leaves)
    memory.passed()
    learn(run.field, run.layout)
    return ys
