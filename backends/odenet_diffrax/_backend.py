"""The verbs of the diffrax backend: those of JAX, but for what takes steps, which is `diffeqsolve`."""

from __future__ import annotations

import dataclasses
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
from jax import Array, lax

from odenet import ContinuousAdjoint, Gradient, Grid, NetSpec, Problem, Sample, Solution, Span, Stats, UnsupportedError
from odenet.kit import AnySolver, Arrays
from odenet_diffrax import backend
from odenet_diffrax._adaptive import solve_span
from odenet_diffrax._field import LayerArguments, in_layer
from odenet_diffrax._solvers import coded, diffrax_solver, evaluations
from odenet_jax._backend import JaxBackend
from odenet_jax.field.field import Field, Weights
from odenet_jax.field.field import field as field_along
from odenet_jax.field.state import Layout, Leaves, layout
from odenet_jax.nets.modules import OdeNet


def solve_problem(ivp: Problem) -> Solution:
    """The solution of a problem.

    Raises:
        UnsupportedError: what diffrax has not.
        SolveError: an adaptive solve could not go on.
    """
    state_layout, leaves = layout(ivp.y0)
    if any(jnp.issubdtype(kind, jnp.complexfloating) for kind in state_layout.carried):
        raise UnsupportedError(
            "a complex state on backend diffrax, which warns that it may solve it incorrectly",
            "real states",
            "split it into real and imaginary part, or take backend='jax'",
        )
    field, weights = field_along(ivp.field, ivp.weights)
    if isinstance(ivp.gradient, ContinuousAdjoint):  # theirs sees args alone
        example = jnp.zeros((), state_layout.time), state_layout.call(leaves)
        field, weights = field.hoist(weights, *example)
        other = {str(leaf.dtype) for leaf in (*weights.inexact, *weights.closed)} - {str(state_layout.time)}
        if other:
            raise UnsupportedError(
                f"weights of {', '.join(other)} for a state of {state_layout.time} with BacksolveAdjoint, which mixes "
                "them up",
                f"weights of {state_layout.time}",
                "convert them, or take gradient='backprop'",
            )
    if isinstance(ivp.grid, Span):
        return solve_span(ivp, ivp.grid, field, weights, state_layout, leaves)
    return _solve_grid(ivp, ivp.grid, field, weights, state_layout, leaves)


def _solve_grid(
    ivp: Problem, grid: Grid, field: Field, weights: Weights, state_layout: Layout, leaves: Leaves
) -> Solution:
    layers, solver = field.intervals, diffrax_solver(ivp.solver, state_layout.time, adaptive=False)
    stats = Stats("diffrax", ivp.solver.label, ivp.gradient.label, grid.steps, None)
    stats.f_evaluations = evaluations(solver, grid.steps, layers)
    times = jnp.asarray(grid.times, state_layout.time)
    if grid.t0 == grid.t1:
        ys = [jnp.broadcast_to(leaf, (len(grid.saved), *leaf.shape)) for leaf in leaves]
        return Solution(times, state_layout.unflatten([state_layout.returned(y, i) for i, y in enumerate(ys)]), stats)
    count, length = grid.steps // layers, (grid.t1 - grid.t0) / layers
    term = diffrax.ODETerm(in_layer(field, state_layout, length))
    adjoint = backend.method(ivp.gradient)(ivp, layers, count, length, state_layout.time)
    ends = (count,) if grid.final_only else tuple(range(1, count + 1))
    if layers == 1 and not grid.final_only:
        ends = tuple(n for n in grid.kept if n) or (count,)
    marks = None if ends == (count,) else _marks(ends, count, length, state_layout)
    save = diffrax.SubSaveAt(t1=marks is None, ts=marks)
    carries = isinstance(solver, diffrax.ReversibleHeun) and layers > 1

    def through(carry: tuple[Leaves, Any, Array], at: tuple[Array, Any]) -> tuple[Any, Leaves]:
        y, state, code = carry
        n, slot = at
        start = grid.t0 + (grid.t1 - grid.t0) * (n / layers)
        result = diffrax.diffeqsolve(
            term,
            solver,
            0.0,
            length,
            length / count,
            y,
            LayerArguments(start, slot, weights),
            saveat=diffrax.SaveAt(subs=save, solver_state=carries),
            stepsize_controller=diffrax.ConstantStepSize(),
            adjoint=adjoint,
            max_steps=count,
            throw=False,
            solver_state=state,
        )
        ys: Any = result.ys
        last = tuple(leaf[-1] for leaf in ys)
        return (last, result.solver_state if carries else None, jnp.maximum(code, coded(result.result))), ys

    steps = jnp.arange(layers, dtype=state_layout.time)
    slots = field.slots(weights, layers)
    first = jax.tree.map(lambda leaf: leaf[0], slots)
    zero = jnp.zeros((), state_layout.time)
    state = solver.init(term, zero, zero, leaves, LayerArguments(grid.t0 + zero, first, weights)) if carries else None
    begin = leaves, state, jnp.int32(0)
    if layers == 1:
        (_, _, code), rows = through(begin, (steps[0], first))
    else:
        (last, _, code), rows = lax.scan(through, begin, (steps, slots))
        rows = tuple(leaf.reshape(-1, *leaf.shape[2:]) for leaf in rows)
        if grid.final_only:
            rows = tuple(leaf[None] for leaf in last)
    met = [0, *(ends if layers == 1 else range(1, grid.steps + 1))]
    ys = []
    for i, (start, leaf) in enumerate(zip(leaves, rows, strict=True)):
        if not grid.final_only:
            leaf = jnp.concatenate([start[None], leaf])[jnp.asarray([met.index(n) for n in grid.saved])]
        ys.append(state_layout.returned(leaf, i))
    implicit = isinstance(solver, diffrax.AbstractImplicitSolver)  # an explicit one does its steps, whatever they give
    return Solution(times, state_layout.unflatten(ys), stats, code if implicit else None)


def _marks(ends: tuple[int, ...], count: int, length: float, state_layout: Layout) -> Array:
    """Ends of steps, rounded as `ConstantStepSize` rounds them."""
    steps = jnp.asarray(ends, state_layout.time) / jnp.asarray(count, state_layout.time)
    return jnp.asarray(length, state_layout.time) * steps


class DiffraxNet(OdeNet):
    """As `odenet_jax.OdeNet`, but for who takes the steps."""

    __init__ = OdeNet.__init__  # equinox would make one of the fields

    def solve(self, ivp: Problem, probe: Array | None, context: Any) -> tuple[Solution, Any]:
        """The same solve by diffrax, in which there is nothing to probe.

        Raises:
            UnsupportedError: batch normalisation in training, whose running statistics diffrax would not hand on.
        """
        if context is not None:
            raise UnsupportedError(
                f"{type(self).__name__} with norm='batch' in training",
                "norm='group' or 'none'; norm='batch' on backends torch and jax",
            )
        return solve_problem(ivp), None


class DiffraxBackend(JaxBackend):
    """odenet's verbs on diffrax. Networks, measurements and devices are those of odenet_jax."""

    network = DiffraxNet

    def solve(self, problem: Problem) -> Solution:
        return solve_problem(problem)

    def _probed(self, problem: Problem, probe: Array) -> Solution:
        """There is nothing to probe; diffrax's dense output does not leave a traced function."""
        return dataclasses.replace(solve_problem(problem), interpolant=None)

    def build(self, spec: NetSpec, weights: Arrays, *, solver: AnySolver, gradient: Gradient, **where: str) -> OdeNet:
        backend.require(solver, gradient)
        return super().build(spec, weights, solver=solver, gradient=gradient, **where)

    def examine(self, model: Any, batch: Any, loss: Any, gradient: Gradient, *, reversible: bool = False) -> Sample:
        """Not offered: a module of odenet_jax takes its own steps.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError("examining a module on backend diffrax", "backend='jax'")
