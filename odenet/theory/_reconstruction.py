"""The states that the discrete adjoint recovers: the recovery as a solver, and its error (section 4 of the paper)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from odenet import _tree
from odenet._backend import registry as _registry
from odenet._backend.solve import solve
from odenet._check import instance
from odenet._errors import InputError
from odenet._gradients.adjoints import DiscreteAdjoint
from odenet._gradients.names import gradient
from odenet._literals import BackendName
from odenet._problem.depth import Depth
from odenet._solvers.runge_kutta import Solver
from odenet._solvers.tableau import Tableau
from odenet.theory._linearised import Linearised, constant_given, growth, nudge, row
from odenet.theory._linearised import lipschitz as estimated
from odenet.theory._network import ByStep, Network, along_depth, at_points, layers_at, network, sizes


def way_back(solver: Solver, method: DiscreteAdjoint) -> Solver:
    """The discrete adjoint's recovery of y[n] from y[n+1], as an explicit Runge-Kutta method.

    One step of it from y[n+1], backward in time, over the same step's weights, is what `method` recovers: the reversed
    step `z = y - D_n^reversed(y)`, then `z <- y - D_n(z)` for each further iteration, and once more for the
    correction. Each evaluates the solver's stages at a point that is y plus known multiples of earlier stages, which is
    what a Runge-Kutta method is. So any backend recovers all states by a solve from t1 to t0, with `reversed_depth`.

    Args:
        solver: of the forward solve.
        method: reversed steps only (`predictor="reverse"`), without tolerance and anchors.

    Raises:
        InputError: a method whose recovery depends on more than y[n+1].
    """
    instance("solver", solver, Solver, "a record of a Runge-Kutta method, as in odenet.solver('euler')")
    instance("method", method, DiscreteAdjoint, "a record, as in odenet.DiscreteAdjoint()")
    evaluations = increments(method)
    forward = solver.tableau
    rows = [list(stage) for stage in forward.a]
    z = list(forward.b)  # the point reached, as multiples of all stages so far, in steps of size -h
    for _ in range(evaluations - 1):
        start = len(rows)
        for stage in forward.a:  # z + h sum a k: forward, hence minus
            inner = [-entry for entry in stage]
            rows.append([*z, *[0.0] * (start - len(z)), *inner])
        z = [*[0.0] * start, *forward.b]
    tableau = Tableau(tuple(map(tuple, rows)), tuple(z), tuple(float(sum(entries)) for entries in rows), 1)
    name = f"{solver.name} back by {method.label}"
    return Solver(name, tableau, "recovered states", "Sander, Ablin and Peyre 2022, section 4.1")


def reversed_depth(depth: Depth) -> Depth:
    """The same weights in reverse order, for a solve from t1 to t0."""
    along_depth(depth)
    return depth if depth.kind == "shared" else layers_at(depth, range(depth.layers)[::-1], depth.kind)


def increments(method: DiscreteAdjoint) -> int:
    """How often `method` evaluates the increment of a step to recover the state before it: each gains an order.

    Raises:
        InputError: a method whose recovery depends on more than y[n+1].
    """
    if method.extrapolates or method.tolerance is not None or method.anchors is not None:
        raise InputError(
            f"{method.label} as a Runge-Kutta method", "discrete-adjoint with iterations= and correct= alone"
        )
    return method.iterations + method.correct


@dataclass(frozen=True)
class Reconstruction(ByStep):
    """By how much the discrete adjoint's recovered states will be off, in units of the state.

    Euclidean norms: of each sample (the largest is taken) or of the whole state. All of it is to leading order in h,
    for fields that are smooth in the state: exact as N grows, and within a factor of two where h L is below a tenth.

    Args:
        by_step: predicted `|z[n] - y[n]|`, shape (N + 1,); 0 at n = N, where the recovery starts.
        order: p of `O(1/N**p)`: 1 for the paper's form, and one more for the correction and for each iteration.
        lipschitz: L, a lower estimate unless it was given.
        local: `max |J**p f|`: h**(p+1) times it is lost in a step.
        bound: `h**p max |J**p f| (e^(L T) - 1) / L`, T = |t1 - t0|: what these losses add up to at most.
    """

    order: int
    lipschitz: float
    local: float
    bound: float

    def at(self, steps: int) -> float:
        """The largest error to expect of a network of that many steps through the same function of depth."""
        return self.largest * (self.steps / steps) ** self.order


def reconstruction(
    field: Callable[..., Any],
    y0: Any,
    weights: Any,
    method: str | DiscreteAdjoint = "discrete-adjoint",
    *,
    t0: float = 0.0,
    t1: float = 1.0,
    steps: int | None = None,
    lipschitz: float | None = None,
    batched: bool = False,
    backend: BackendName | None = None,
    device: str = "cpu",
) -> Reconstruction:
    """What a ResNet's (Euler's) discrete adjoint will recover its states with, predicted without going back.

    The recovery is `z[n] = z[n+1] - h f(z[n+1], w[n])`, in the paper's form (`correct=False`). A step of it from the
    true y[n+1] misses y[n] by `-h² J f`, since it evaluates f at the wrong end; each further evaluation, an iteration
    or the correction, multiplies that by `-h J`, J being the Jacobian of the field by y[n]. Going back, what is lost
    obeys `e[n] = (1 - h J) e[n+1] + (-1)**p h**(p+1) J**p f`, which is what is summed here.

    Of a ResidualStack with Euler's method: `reconstruction(stack.field, x, stack.depth, stack.gradient, t0=stack.t0,
    t1=stack.t1)`.

    Args:
        field, y0, weights, t0, t1, steps, batched, backend, device: as in `distance`.
        method: the discrete adjoint, by name or as a record: reversed steps, without tolerance and anchors.
        lipschitz: L of the field in the state, for the bound; None estimates it.

    Raises:
        InputError: another gradient method, or a discrete adjoint whose recovery depends on more than y[n+1]; else as
            `distance`.

    Source: Sander, Ablin and Peyre 2022, section 4.1, of whose bound this is the leading term; the correction and the
    iteration are odenet's.
    """
    named = gradient(method)
    if not isinstance(named, DiscreteAdjoint):
        raise InputError(f"the recovered states of {named.label}", "a discrete adjoint, which recovers them")
    order = increments(named)
    constant_given(lipschitz)
    net = network(field, y0, weights, t0=t0, t1=t1, steps=steps, backend=backend, device=device, batched=batched)
    states = net.trajectory(net.depth, "euler", net.steps)[:-1]
    points = Linearised(net, at_points(net.depth, net.steps, net.steps), states, net.step)
    lost = points.slopes()
    for _ in range(order):
        lost = points.push(lost)
    constant = lipschitz if lipschitz is not None else estimated(net, net.depth, states)
    local = float(sizes(lost).max())
    span = abs(net.t1 - net.t0)
    errors = _summed(net, points, lost if order % 2 == 0 else -lost)
    return Reconstruction(
        abs(net.step) ** order * sizes(errors),
        order,
        constant,
        local,
        abs(net.step) ** order * local * growth(constant, span),
    )


def _summed(net: Network, points: Linearised, lost: np.ndarray) -> np.ndarray:
    """e / h**p of all steps: Euler's method backward in time for `e' = J e - lost`, J by central differences."""
    size = float(np.abs(lost).max(initial=0.0)) or 1.0  # e of about 1, whatever is lost
    reach, step, field = nudge(points.states), net.step, net.field

    def slope(t: Any, e: Any, layer: Any) -> Any:
        def f(sign: int) -> Any:  # at the start of the step, from whose end it is asked for
            return field(t - step, _tree.map(lambda y, e: y + sign * reach * e, layer["y"], e), layer["w"])

        change = _tree.map(lambda ahead, behind: (ahead - behind) / (2 * reach), f(1), f(-1))
        return _tree.map(lambda moved, lost: moved - lost, change, layer["lost"])

    trees = {"y": net.tree(points.states), "lost": net.tree(lost / size)}
    depth = points.depth
    if depth.stacked:
        layers = Depth({"w": depth.tree, **trees}, "piecewise")
    else:
        parts = [{name: row(tree, n) for name, tree in trees.items()} for n in range(net.steps)]
        layers = Depth.each([{"w": w, **part} for w, part in zip(depth.tree, parts, strict=True)])
    with net.prepared() as backend:
        solution = solve(
            slope,
            _tree.map(np.zeros_like, net.y0),
            reversed_depth(layers),
            t0=net.t1,
            t1=net.t0,
            solver="euler",
            ts="all",
            backend=_registry.entry(net.backend),
        )
        return size * net.flat(_tree.map(backend.to_numpy, solution.ys))[::-1]
