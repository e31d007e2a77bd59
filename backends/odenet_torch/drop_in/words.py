"""What goes wrong, in the words of torchdiffeq's calls: the steps below speak in those of `odenet.solve`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import ParamSpec, TypeVar

from odenet import GradientError, Result, SolveError
from odenet.kit import Wording
from odenet_torch.drop_in.flow import OdeintProblem
from odenet_torch.field.raised import as_raised
from odenet_torch.steps.adaptive import ForwardSolve
from odenet_torch.steps.size_control import lead

Arguments = ParamSpec("Arguments")
Value = TypeVar("Value")

_OURS = {"odenet", "odenet_torch", "torch", "contextlib"}
_PHRASES = (
    # whole remedies first, of which later phrases are parts
    (
        "take gradient='backprop', or with equal steps gradient='checkpoint' (every step, or segments=), where such a "
        "tensor has its gradient; make it part of the state; or detach() it",
        "take odeint, where such a tensor has its gradient; make it part of the state; or detach() it",
    ),
    (
        "call model.eval(), take steps=N (which replays them), or gradient='backprop'",
        "call func.eval(), or take odeint",
    ),
    ("pass them as weights, make the field an nn.Module, or take", "name them in adjoint_params, or take"),
    ("tensors passed as weights, and parameters", "parameters, and tensors named in adjoint_params"),
    ("pass that tensor in weights, compute it inside the field, or take", "compute that tensor inside func, or take"),
    ("give the weights (or y0) the number type you want, as in weights.to(y0.dtype)", "take func(t, y).to(y.dtype)"),
    (
        "steps=N there; a leading batch axis, with steps for all or PIDController(per_sample=True)",
        "a leading batch axis of y0; methods of fixed steps, such as rk4",
    ),
    ("solve for the whole batch at once, or take steps=N", "solve for the whole batch at once, or take method='rk4'"),
    ("write y < 0 as the number y, with direction=-1", "write y < 0 as the number y"),
    ("Solution.event_t.detach()", "event_t.detach()"),
    ("y0 (leaf)", "y0"),
    ("gradient='backprop'", "odeint"),
    ("an event's condition", "event_fn"),
    ("the field", "func"),
)


_WORDING = Wording(_PHRASES, _OURS)


def speaking(entry: str) -> AbstractContextManager[None]:
    """Inside, errors of this library name the entry that was called, and its arguments (see `Wording.speaking`)."""
    return _WORDING.speaking(entry)


def named(entry: Callable[Arguments, Value]) -> Callable[Arguments, Value]:
    """A function whose errors name it, see `speaking`."""
    run = as_raised(entry)

    @functools.wraps(entry)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Value:
        with speaking(entry.__name__):
            return run(*args, **kwargs)

    return call


def stopped(flow: OdeintProblem, forward_pass: ForwardSolve) -> SolveError:
    """The error for an adaptive solve that could not go on."""
    loop = forward_pass.loop
    assert loop.failed is not None
    most = loop.control.max_steps // max(len(flow.times) - 1, 1)
    if loop.failed is Result.MAX_STEPS and loop.tried < loop.control.max_steps:
        what = f"at that pace, and at {lead(loop.tried):.0f} times it, {most} steps would not reach t[-1]"
        remedy = "give larger rtol and atol, or a time that is nearer"
    elif loop.failed is Result.MAX_STEPS and flow.event_fn is not None:
        what = f"max_num_steps={most} were tried without an event"
        remedy = "look at the signs of event_fn; or give options={'max_num_steps': N} with a larger N"
    else:
        what, remedy = reason(loop.failed, most, "")
    return SolveError(
        f"the solve stopped at t={forward_pass.grid.nodes[-1]:.8g} after {loop.n} steps "
        f"({loop.tried - loop.n} rejected): {what}",
        remedy=remedy,
    )


def stopped_back(failed: Result, most: int, steps: int, start: float) -> GradientError:
    """The error for a backward pass that could not go on.

    Args:
        failed: how.
        most: `max_num_steps`.
        steps: those accepted.
        start: the time that they began at.
    """
    what, remedy = reason(failed, most, "adjoint_")
    return GradientError(
        f"the backward solve stopped after {steps} steps from t={start:.8g}: {what}",
        "backward solves that reach the previous time",
        f"{remedy}; or take odeint, whose gradient needs no backward solve",
    )


def reason(failed: Result, most: int, prefix: str) -> tuple[str, str]:
    """What happened, and what to do.

    Args:
        failed: how.
        most: `max_num_steps`.
        prefix: of the arguments of the backward pass.
    """
    options, tolerances = f"{prefix}options", f"{prefix}rtol and {prefix}atol"
    if failed is Result.MAX_STEPS:
        return f"max_num_steps={most} were tried between one time and the next", (
            f"give {options}={{'max_num_steps': N}} with a larger N, or larger {tolerances}; a func that needs ever "
            f"smaller steps is stiff, and wants odeint with method='implicit_adams', or 'scipy_solver' with 'BDF'"
        )
    if failed is Result.STEP_TOO_SMALL:
        return "the step size vanished beside t", (
            f"func has a jump or a singularity there (name jumps in {options}={{'jump_t': [...]}}), or {tolerances} "
            "are below the rounding of the number type of y0"
        )
    return "the solution is not finite", (
        "func grew beyond the number type, or the step is too large for it; look at func near that time, or give "
        f"{options}={{'max_step': h}}"
    )
