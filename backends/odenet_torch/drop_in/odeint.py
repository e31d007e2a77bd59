"""torchdiffeq's functions over odenet's steps: a script changes its import line and nothing else.

Signatures and behaviour are those of torchdiffeq 0.2.5 (Chen 2018, github.com/rtqichen/torchdiffeq). The methods
explicit_adams, implicit_adams, fixed_adams and scipy_solver are left to an installed torchdiffeq; all others run on
odenet's own steps. Where both differ, and how: docs/how-to/migrate.md.

Over 250 lines: four functions, each with torchdiffeq's whole signature and the docstring that says what differs.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from odenet import GridError, InputError, PIDController, StateError, UnsupportedError
from odenet.kit import Compile, real, shown, yes_or_no
from odenet_torch.drop_in import adaptive, adjoint, fixed
from odenet_torch.drop_in.adaptive import Continuous
from odenet_torch.drop_in.adjoint import AdjointProblem
from odenet_torch.drop_in.compiled import choices as compiled_choices
from odenet_torch.drop_in.error import AdjointTolerance, require_norm
from odenet_torch.drop_in.events import linked
from odenet_torch.drop_in.flow import OdeintProblem, flow
from odenet_torch.drop_in.methods import ADAPTIVE, FIXED, delegated, torchdiffeq
from odenet_torch.drop_in.options import Spacing, control, mapped, spacing, watchers
from odenet_torch.drop_in.recalled_function import recalled
from odenet_torch.drop_in.recording import Recording
from odenet_torch.drop_in.separate import Separate
from odenet_torch.drop_in.words import named
from odenet_torch.field.dynamo import untraced
from odenet_torch.field.half_precision import Reads, slots
from odenet_torch.gradients.adjoint import in_forward_mode, refuse_classes, refuse_transforms

Func = Callable[[Tensor, Any], Any]
Options = Mapping[str, Any] | None
Outcome = tuple[Tensor | None, Tensor]


@untraced
@named
def odeint(
    func: Func,
    y0: Any,
    t: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: Options = None,
    event_fn: Callable[[Tensor, Any], Tensor] | None = None,
    compile: Compile = False,
) -> Any:
    """The solution of `dy/dt = func(t, y)`, `y(t[0]) = y0` at times t, differentiable by autograd through its steps.

    Args:
        func: `func(t, y)` to a slope like y. Its methods `callback_step`, `callback_accept_step` and
            `callback_reject_step`, where it has them, are called with time, state and size of each step.
        y0: a tensor, or a tuple of tensors.
        t: times, strictly increasing or decreasing; they may need a gradient.
        rtol, atol: numbers, tensors that broadcast to y0, or for a tuple one for each of its entries.
        method: dopri8, dopri5 (the default), bosh3, fehlberg2, adaptive_heun, tsit5; or with steps from time to time
            euler, midpoint, heun2, heun3, rk4; or explicit_adams, implicit_adams, fixed_adams, scipy_solver.
        options: of adaptive methods norm, first_step, min_step, max_step, step_t, jump_t, max_num_steps, safety,
            ifactor, dfactor, dtype (accepted; times are double here); of the others step_size or grid_constructor,
            interp ("linear" or "cubic"), perturb.
        event_fn: `event_fn(t, y)`: the solve ends where one of its entries changes its sign; t[1] tells its direction
            alone.
        compile: each step as one graph, as in `odenet.solve` (torchdiffeq has none of it).

    Returns:
        The state at each time, shape (len(t), *y0.shape), or a tuple of these. With `event_fn` the time of the event,
        and the state at t[0] and then.

    Raises:
        InputError: an argument cannot be used.
        SolveError: the solve could not go on (torchdiffeq: an AssertionError).
        BackendUnavailableError: a method of torchdiffeq's without torchdiffeq.
    """
    if delegated(method):
        _require_own(compile, method)
        more = {"rtol": rtol, "atol": atol, "method": method, "options": options, "event_fn": event_fn}
        own = torchdiffeq()
        return own.odeint(Separate(flow(func, y0, t, event_fn)), y0, t, **more)
    checked, chosen = flow(func, y0, t, event_fn), mapped("options", options)
    halves = (weight for *_, weight in slots(func))
    checked = dataclasses.replace(checked, reads=Reads.of(checked.y0.device, halves))
    return _returned(checked, _solver(checked, method or "dopri5", chosen, rtol, atol, compile)())


@untraced
@named
def odeint_adjoint(
    func: Func,
    y0: Any,
    t: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: Options = None,
    event_fn: Callable[[Tensor, Any], Tensor] | None = None,
    adjoint_rtol: Any = None,
    adjoint_atol: Any = None,
    adjoint_method: str | None = None,
    adjoint_options: Options = None,
    adjoint_params: Iterable[Tensor] | None = None,
    compile: Compile = False,
) -> Any:
    """`odeint` with the continuous adjoint: its memory does not grow with the number of steps.

    Args:
        func, y0, t, rtol, atol, method, options, event_fn: those of `odeint`. `func` is an nn.Module, or
            `adjoint_params` is given.
        adjoint_rtol, adjoint_atol, adjoint_method: of the backward pass; None takes those of the forward pass.
        adjoint_options: of the backward pass; None takes `options` without its norm. `norm="seminorm"` leaves the
            errors of the parameters' gradients out (Kidger, Chen, Lyons 2021); a function of (t, y, adjoint,
            *parameters) is a norm of yours.
        adjoint_params: the tensors that get a gradient beside y0 and t; None for the parameters of `func`.
        compile: each step as one graph, and each step of the backward pass, with its VJPs, as another.

    Returns:
        As `odeint`.

    Raises:
        UnsupportedError: `compile`, and func draws random numbers, writes on buffers, or reads a tensor that gets a
            gradient and is no parameter of it.
        GradientError: the backward pass could not go on. Beside those of `odeint`.
    """
    if adjoint_params is not None:
        chosen = _chosen(adjoint_params)
    elif isinstance(func, nn.Module):
        chosen = _parameters(func)
    else:
        raise InputError(
            f"func is a {type(func).__name__}, and adjoint_params are not given",
            "an nn.Module, or adjoint_params",
            "adjoint_params=() says that there are none",
        )
    back = method if adjoint_method is None else adjoint_method
    if delegated(method, back):
        _require_own(compile, method if delegated(method) else back)
        mine = {"rtol": rtol, "atol": atol, "method": method, "options": options, "event_fn": event_fn}
        theirs = {"adjoint_rtol": adjoint_rtol, "adjoint_atol": adjoint_atol, "adjoint_method": adjoint_method}
        theirs |= {"adjoint_options": adjoint_options, "adjoint_params": chosen}
        own = torchdiffeq()
        return own.odeint_adjoint(Separate(flow(func, y0, t, event_fn)), y0, t, **mine, **theirs)
    if back != method and options is not None and adjoint_options is None:
        raise InputError(f"options of {method}, and none of adjoint_method={back}", "adjoint_options beside options")
    options = mapped("options", options)
    if adjoint_options is None:
        adjoint_options = {name: value for name, value in options.items() if name != "norm"}
    adjoint_options = mapped("adjoint_options", adjoint_options)
    params = tuple(tensor for tensor in chosen if tensor.requires_grad)
    checked, again = recalled(flow(func, y0, t, event_fn))
    recording = Recording(func, checked.y0.device)
    checked = dataclasses.replace(checked, recording=recording)
    if torch.is_grad_enabled():
        refuse_transforms("odeint_adjoint", "odeint")
        refuse_classes((checked.y0,), "odeint_adjoint", "odeint")
        if in_forward_mode():
            raise UnsupportedError(
                "odeint_adjoint inside torch.autograd.forward_ad",
                "odeint there",
                "take odeint, which stores nothing for derivatives that are taken forwards",
            )
        params = recording.first(lambda: again.first(checked, params, named=adjoint_params is not None))
    chosen = compiled_choices(compile)
    names = () if chosen is None else again.names(params, recording.draws)
    back = back or "dopri5"
    rtol_back = rtol if adjoint_rtol is None else adjoint_rtol
    atol_back = atol if adjoint_atol is None else adjoint_atol
    forth = _solver(checked, method or "dopri5", options, rtol, atol, compile)
    norm = adjoint_options.get("norm")
    require_norm(norm)
    rest = {name: value for name, value in adjoint_options.items() if name != "norm"}
    if back in ADAPTIVE:
        reach = AdjointTolerance(checked, rtol_back, atol_back, norm, options.get("norm"), len(params))
        choice: PIDController | Spacing = control(back, rest, checked, 1.0, 1.0)
    else:
        reach, choice = None, spacing(back, rest, rtol_back, atol_back, checked, "adjoint_")
    on = functools.partial(watchers, back, checked, suffix="_adjoint")
    way = AdjointProblem(checked, again, forth, back, choice, reach, on, chosen, names)
    event_t, ys = adjoint.solve(way, params)
    if event_t is not None:
        event_t, _ = linked(checked, event_t, ys[-1])
    return _returned(checked, (event_t, ys))


@untraced
@named
def odeint_event(
    func: Func,
    y0: Any,
    t0: Tensor,
    *,
    event_fn: Callable[[Tensor, Any], Tensor],
    reverse_time: bool = False,
    odeint_interface: Callable[..., Any] = odeint,
    **kwargs: Any,
) -> Any:
    """The solution from t0 to the first time at which `event_fn` changes its sign, both of them differentiable.

    Args:
        func, y0: those of `odeint`.
        t0: the first time, a tensor of one entry.
        event_fn: `event_fn(t, y)`, a number or an array of which any entry may change its sign. Its own parameters
            have gradients, too.
        reverse_time: go back in time.
        odeint_interface: `odeint` or `odeint_adjoint`.
        kwargs: for that.

    Returns:
        The time of the event, and the state at t0 and then.

    Raises:
        As `odeint_interface`.
    """
    if not isinstance(t0, Tensor) or t0.numel() != 1 or not t0.is_floating_point() or t0.is_meta:
        raise GridError(f"t0={shown(t0)}", "a tensor of one floating-point entry")
    for name, function in (("event_fn", event_fn), ("odeint_interface", odeint_interface)):
        if not callable(function):
            raise InputError(f"{name} is a {type(function).__name__}", "a function")
    yes_or_no("reverse_time", reverse_time)
    start = t0.reshape(-1)
    ahead = start.detach().abs().clamp(min=1.0)  # beside a large time, 1 is rounding
    t = torch.cat([start, start.detach() + (-ahead if reverse_time else ahead)])
    event_t, states = odeint_interface(func, y0, t, event_fn=event_fn, **kwargs)
    checked = flow(func, y0, t, event_fn)
    last = states[-1] if checked.shapes is None else torch.cat([leaf[-1].reshape(-1) for leaf in states])
    event_t, last = linked(checked, event_t, last)
    if checked.shapes is None:
        return event_t, torch.cat([states[:-1], last.unsqueeze(0)])
    pairs = zip(states, checked.unpacked(last), strict=True)
    return event_t, tuple(torch.cat([leaf[:-1], end.unsqueeze(0)]) for leaf, end in pairs)


@untraced
@named
def odeint_dense(
    func: Func,
    y0: Tensor,
    t0: Any,
    t1: Any,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: Options = None,
    compile: Compile = False,
) -> Callable[[Any], Tensor]:
    """The solution from t0 to t1 as a function of time.

    Args:
        func, rtol, atol, options, compile: those of `odeint`.
        y0: a tensor.
        t0, t1: numbers, or tensors of one entry.
        method: an adaptive one (torchdiffeq: dopri5 alone).

    Returns:
        `y(t)` for times between t0 and t1, of any shape (torchdiffeq: a scalar).

    Raises:
        InputError: an argument cannot be used.
        SolveError: the solve could not go on.
    """
    if not isinstance(y0, Tensor):
        raise StateError(f"y0 is a {type(y0).__name__}", "a tensor")
    name = "dopri5" if method is None else method
    if not isinstance(name, str) or delegated(name) or name not in ADAPTIVE:
        raise InputError(f"method {shown(name)}", ", ".join(ADAPTIVE))
    ends: list[Any] = [real(t0), real(t1)]
    if any(end is None or not math.isfinite(end) for end in ends):
        raise GridError(f"t0={shown(t0)} and t1={shown(t1)}", "finite numbers, or tensors of one entry")
    t = torch.tensor(ends, dtype=torch.float64)
    checked = flow(func, y0, t.to(y0.device))
    choice, solver = control(name, mapped("options", options), checked, rtol, atol), ADAPTIVE[name]
    on = watchers(name, checked, checked.unpacked)
    forward, leaves = adaptive.forward(checked, solver, choice, on, dense=True, compile=compile)
    adaptive.run(checked, forward, leaves)
    assert forward.dense is not None
    return Continuous(solver.tableau, forward.run.layout, forward.dense.nodes, forward.dense.steps)


def _solver(
    checked: OdeintProblem, name: str, options: Mapping[str, Any], rtol: Any, atol: Any, compile: Compile = False
) -> Callable[[], Outcome]:
    """The solve by an own method, which is yet to run."""
    on = watchers(name, checked, checked.unpacked)
    if name in ADAPTIVE:
        choice = control(name, options, checked, rtol, atol)
        return lambda: adaptive.solve(checked, ADAPTIVE[name], choice, on, compile)
    spaced = spacing(name, options, rtol, atol, checked)
    return lambda: fixed.solve(checked, FIXED[name], spaced, on, compile)


def _require_own(compile: Compile, method: str | None) -> None:
    """Raises UnsupportedError where the steps of a method of torchdiffeq's are to be compiled."""
    if compile is not False:
        raise UnsupportedError(f"compile with method {method!r}", ", ".join([*ADAPTIVE, *FIXED]), "leave out compile")


def _returned(checked: OdeintProblem, outcome: Outcome) -> Any:
    event_t, ys = outcome
    return checked.unpacked(ys) if checked.event_fn is None else (event_t, checked.unpacked(ys))


def _chosen(params: Any) -> tuple[Tensor, ...]:
    """What a caller named.

    Raises:
        InputError: something else than several tensors.
    """
    several = isinstance(params, Iterable) and not isinstance(params, (Tensor, Mapping, str, bytes))
    tensors: tuple[Any, ...] = tuple(params) if several else (params,)
    if not several or not all(isinstance(param, Tensor) for param in tensors):
        raise InputError(f"adjoint_params={shown(params)}", "a tuple of tensors", "adjoint_params=() for none")
    return tensors


def _parameters(module: nn.Module) -> tuple[Tensor, ...]:
    """Those of a module; of a replica within nn.DataParallel, whose parameters are plain tensors, these."""
    if not getattr(module, "_is_replica", False):
        return tuple(module.parameters())
    values = (value for inner in module.modules() for value in vars(inner).values())
    return tuple(value for value in values if isinstance(value, Tensor) and value.requires_grad)
