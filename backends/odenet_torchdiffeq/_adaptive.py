"""From a problem to a call of torchdiffeq, with tolerances."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torchdiffeq
from torch import Tensor

from odenet import (
    ContinuousAdjoint,
    PIDController,
    Problem,
    Result,
    Solution,
    SolveError,
    Span,
    Stats,
)
from odenet.kit import tree_leaves
from odenet_torch.field.field import FunctionField
from odenet_torch.field.state import Layout, Leaves
from odenet_torchdiffeq import backend
from odenet_torchdiffeq._field import OnSpan

ADAPTIVE = {"heun": "adaptive_heun", "fehlberg2": "fehlberg2", "bosh3": "bosh3", "dopri5": "dopri5", "dopri8": "dopri8"}
"""Their name of each of our solvers."""

_ENDS = {"max_num_steps": Result.MAX_STEPS, "underflow": Result.STEP_TOO_SMALL, "non-finite": Result.NONFINITE}
_EVENT_NAN = "an event's condition is NaN"
_ENDS[_EVENT_NAN] = Result.EVENT_NAN
"""The beginnings of torchdiffeq's assertion messages, and the results that they mean."""


def solve_span(ivp: Problem, span: Span, field: FunctionField, state_layout: Layout, leaves: Leaves) -> Solution:
    """The solution of an adaptive problem.

    Raises:
        UnsupportedError: what torchdiffeq has not.
        SolveError: torchdiffeq gave up.
    """
    _require(span)
    t0, t1 = (float(time.detach() if isinstance(time, Tensor) else time) for time in (span.t0, span.t1))
    sign, adjoint = (-1 if t1 < t0 else 1), isinstance(ivp.gradient, ContinuousAdjoint)
    system = OnSpan(field, state_layout, sign, span, t0, t1, adjoint)
    times = [span.t1] if span.ts is None else list(span.ts)
    ts = torch.stack([_time(time, state_layout) for time in times])
    start = _time(span.t0, state_layout)
    taus = [sign * float(time) for time in torch.cat([start[None], ts]).detach()]
    interface = _interface(ivp, span.control, system, state_layout, leaves, taus)
    y0 = leaves[0] if len(leaves) == 1 else leaves
    event_t: Tensor | None = None
    ended, ends = Result.SUCCESS, leaves
    try:
        if span.event is not None:
            event_t, ends = _until(interface, system, span, y0, sign * start, sign * t1)
        if event_t is not None:
            ended, ts = Result.EVENT, (sign * event_t)[None]
            ys: Leaves = tuple(leaf[-1:] for leaf in system.leaves(ends))
        else:
            ys = _at(interface, system, y0, sign * start, sign * ts)
    except AssertionError as error:
        ended = next((end for word, end in _ENDS.items() if str(error).startswith(word)), None)
        if ended is None:
            raise
        if span.control.throw:
            raise SolveError(f"the solve ended: {ended.value} (torchdiffeq: {str(error)[:80]})") from error
        ys = tuple(leaf.detach().expand(len(ts), *leaf.shape) * torch.nan for leaf in leaves)
    stats = Stats("torchdiffeq", ivp.solver.label, ivp.gradient.label, system.accepted, system.evaluations)
    stats.rejected = system.rejected
    tree = state_layout.unflatten([state_layout.returned(leaf, i) for i, leaf in enumerate(ys)])
    event_time = None if event_t is None else sign * event_t
    return Solution(ts, tree, stats, list(Result).index(ended), event_time)


def _require(span: Span) -> None:
    """Raises UnsupportedError for what torchdiffeq has not."""
    control, event = span.control, span.event
    backend.refuse(
        {
            "dense=True": span.dense,
            "ts='all'": span.every,
            "per_sample=True": control.per_sample,
            "pcoeff, dcoeff or another icoeff": (control.pcoeff, control.icoeff, control.dcoeff) != (0, 1, 0),
            "an event together with ts": event is not None and span.ts is not None,
            "the direction of an event": event is not None and event.direction != 0,
            "the tolerance of an event (which is atol)": event is not None and event.tolerance is not None,
        }
    )


def _interface(
    ivp: Problem, control: PIDController, system: OnSpan, state_layout: Layout, leaves: Leaves, taus: list[float]
) -> Callable[..., Any]:
    """`odeint` or `odeint_adjoint` with all their options."""
    jumps = sorted({*system.ends, *(system.sign * t for t in control.jump_t)})
    stops = sorted({*taus, *(system.sign * t for t in control.step_t)} - set(jumps))
    options: dict[str, Any] = {
        "norm": _norm(control.norm, state_layout, len(leaves) == 1),
        "min_step": control.min_step or 0.0,
        "max_step": torch.inf if control.max_step is None else control.max_step,
        "max_num_steps": control.max_steps,
        "safety": control.safety or 0.9,  # its own
        "ifactor": control.factor_max,
        "dfactor": control.factor_min,
    }
    for name, times in (("step_t", stops), ("jump_t", jumps)):
        if times:
            options[name] = torch.tensor(times, dtype=torch.float64, device=state_layout.device)
    rtol, atol = (_tolerance(value, leaves) for value in (control.rtol, control.atol))
    first = {} if control.first_step is None else {"first_step": control.first_step}
    kinds = {"rtol": rtol, "atol": atol, "method": ADAPTIVE[ivp.solver.name], "options": options | first}
    tensors = functools.partial(system.parameters, _time(taus[0], state_layout), leaves, system.intervals)
    return backend.method(ivp.gradient, adaptive=True)(ivp, kinds, tensors)


def _at(interface: Callable[..., Any], system: OnSpan, y0: Any, start: Tensor, taus: Tensor) -> Leaves:
    """The state at times that may repeat, or be t0, which torchdiffeq allows of none."""
    values = [float(tau) for tau in torch.cat([start[None], taus]).detach()]
    order = sorted(set(values))
    places = [values.index(tau) for tau in order]
    met = torch.cat([start[None], taus])[places]
    states = system.leaves(y0) if len(order) == 1 else system.leaves(interface(system, y0, met))
    if len(order) == 1:
        states = tuple(leaf[None] for leaf in states)
    picks = [order.index(tau) for tau in values[1:]]
    return tuple(leaf[picks] for leaf in states)


def _until(
    interface: Callable[..., Any], system: OnSpan, span: Span, y0: Any, start: Tensor, end: float
) -> tuple[Tensor | None, Any]:
    """Time and states of the event; None where there is none before t1.

    torchdiffeq goes on until there is one: t1 is made an event, too.
    """
    assert span.event is not None
    event = span.event

    def event_or_end(tau: Tensor, y: Any) -> Tensor:
        leaves = system.leaves(y)
        at = system.layout.call(leaves)
        value = event.entries(system.sign * tau, at, torch.as_tensor, numbers_on="torchdiffeq")
        if bool(value.isnan().any()):  # which torchdiffeq would follow to its largest number of steps
            raise AssertionError(_EVENT_NAN)
        return torch.cat([value.reshape(-1).to(leaves[0].abs()), (end - tau).reshape(1).to(leaves[0].abs())])

    event_t, states = torchdiffeq.odeint_event(system, y0, start, event_fn=event_or_end, odeint_interface=interface)
    y1 = tuple(leaf[-1] for leaf in system.leaves(states))
    beside = event_or_end(event_t, y1[0] if isinstance(y0, Tensor) else y1).detach().abs()
    return (None, None) if beside[-1] <= beside[:-1].min() else (event_t, states)


def _time(value: Any, state_layout: Layout) -> Tensor:
    """A time as a tensor that keeps its gradient."""
    return torch.as_tensor(value, dtype=state_layout.time, device=state_layout.device)


def _tolerance(value: Any, leaves: Leaves) -> Any:
    """As torchdiffeq takes it: a number, a tensor like the state, or a tuple with one a leaf."""
    tolerances = tree_leaves(value)
    if len(tolerances) == 1 and not isinstance(tolerances[0], (Tensor,)):
        return tolerances[0]
    if len(leaves) == 1:
        return torch.as_tensor(tolerances[0], device=leaves[0].device)
    if len(tolerances) == 1:
        tolerances = tolerances * len(leaves)
    return tuple(
        torch.as_tensor(tolerance, device=leaf.device).expand(leaf.shape).reshape(-1)
        for tolerance, leaf in zip(tolerances, leaves, strict=True)
    )


def _norm(norm: Any, state_layout: Layout, single: bool) -> Callable[[Any], Any]:
    """The norm of a tensor, or of a tuple where the state is one."""

    def rms(y: Any) -> Tensor:
        parts = [leaf.abs().square() for leaf in ((y,) if single else y)]
        return (sum(part.sum() for part in parts) / sum(part.numel() for part in parts)).sqrt()  # pyright: ignore

    def mixed(y: Any) -> Tensor:
        return torch.stack([leaf.abs().square().mean().sqrt() for leaf in ((y,) if single else y)]).max()

    def largest(y: Any) -> Tensor:
        return torch.stack([leaf.abs().max() for leaf in ((y,) if single else y)]).max()

    if callable(norm):
        return lambda y: norm(state_layout.call((y,) if single else tuple(y)))
    return {"rms": rms, "mixed": mixed, "max": largest}[norm]
