"""torchdiffeq's options as ours: the controller of adaptive methods, and the grid of the others."""

from __future__ import annotations

import contextlib
import difflib
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odenet import InputError, PIDController, StateError, UnknownNameError
from odenet.kit import real, shown, within, yes_or_no
from odenet_torch.drop_in.flow import OdeintProblem, state_norm, tolerance
from odenet_torch.drop_in.methods import ADAPTIVE
from odenet_torch.field.written_on import writes
from odenet_torch.steps.size_control import StepCallbacks

Options = Mapping[str, Any]
_FACTORS = {
    "safety": ("safety", 0.0, 1.0),
    "ifactor": ("factor_max", 1.0, math.inf),
    "dfactor": ("factor_min", 0.0, 1.0),
}
"""Our name of each, and its bounds."""
_SIZES = ("first_step", "min_step", "max_step")
_ADAPTIVE = {*_FACTORS, *_SIZES, "norm", "step_t", "jump_t", "max_num_steps", "dtype"}
_FIXED = {"norm", "step_size", "grid_constructor", "interp", "perturb"}
_ELSEWHERE = {"max_order", "max_iters", "implicit", "solver"}
"""The options of the methods that torchdiffeq itself runs."""
_MOST = 2**31 - 1
_EVENT_STEPS = 20_000  # up to an event, where max_num_steps does not say otherwise
_CALLBACKS = ("callback_step", "callback_accept_step", "callback_reject_step")


@dataclass(frozen=True)
class Spacing:
    """Where a method without an error estimate steps.

    Args:
        step_size: of all steps but the last; None steps from time to time.
        grid_constructor: `grid_constructor(func, y0, t)` to all ends of steps.
        interp: "linear" or "cubic": of times between these.
        perturb: whether the field is evaluated next to both ends of a step, inside of it.
        precision: of the time of an event.
    """

    step_size: float | None
    grid_constructor: Callable[[Any, Tensor, Tensor], Tensor] | None
    interp: str
    perturb: bool
    precision: float


def control(method: str, options: Options, flow: OdeintProblem, rtol: Any, atol: Any) -> PIDController:
    """That of an adaptive method. Options of other methods are warned of.

    Raises:
        InputError: an option that cannot be used, or that no method has.
    """
    _look(method, options, _ADAPTIVE)
    settings: dict[str, Any] = {"safety": 0.9}
    for name, (ours, above, most) in _FACTORS.items():
        if (value := options.get(name)) is not None:
            settings[ours] = within(name, value, above, most, of=f"the options of {method}")
    for name in _SIZES:
        value = options.get(name)
        unbounded = (name == "max_step" and real(value) == math.inf) or (name == "min_step" and real(value) == 0)
        if value is not None and not unbounded:
            settings[name] = within(name, value, 0.0, of=f"the options of {method}")
    for name in ("step_t", "jump_t"):
        if (value := options.get(name)) is not None:
            settings[name] = _times(name, value)
    discontinuities = [*settings.get("step_t", ()), *settings.get("jump_t", ())]
    if len(set(discontinuities)) < len(discontinuities):
        raise InputError(
            f"step_t and jump_t repeat one of {sorted(discontinuities)}", "times that are different from each other"
        )
    # an event that never comes would let the solve go on for ever
    most = options.get("max_num_steps", _MOST if flow.event_fn is None else _EVENT_STEPS)
    count = real(most)
    if count is None or not 1 <= count <= _MOST or count != int(count):
        raise InputError(f"max_num_steps={shown(most)} of the options of {method}", f"a whole number, 1 to {_MOST}")
    kind = options.get("dtype")
    if kind is not None and not (isinstance(kind, torch.dtype) and kind.is_floating_point):
        raise InputError(f"dtype={shown(kind)} of the options of {method}", "a floating-point torch.dtype")
    rtol, atol = tolerance("rtol", rtol, flow), tolerance("atol", atol, flow)
    # there, so many between one time and the next
    steps = int(count) * max(len(flow.times) - 1, 1)
    return PIDController(rtol, atol, state_norm(options.get("norm"), flow), max_steps=steps, **settings)


def _times(name: str, value: Any) -> list[float]:
    """An option that is one time or several, as a list."""
    try:
        several = value.reshape(-1).tolist() if hasattr(value, "tolist") else value
    except (TypeError, ValueError, RuntimeError):  # on the meta device, or traced
        several = [None]
    listed = list(several) if isinstance(several, Iterable) and not isinstance(several, (str, bytes, Mapping)) else None
    numbers = [real(time) for time in ([value] if listed is None else listed)]
    times = [time for time in numbers if time is not None and math.isfinite(time)]
    if len(times) < len(numbers):
        raise InputError(f"{name}={shown(value)}", "finite times: a number, a list, or a one-dimensional tensor")
    return times


def spacing(method: str, options: Options, rtol: Any, atol: Any, flow: OdeintProblem, prefix: str = "") -> Spacing:
    """That of a method without an error estimate. Options of other methods are warned of.

    Args:
        method: by name.
        options: of it.
        rtol, atol: of the solve; of use to the time of an event alone.
        flow: the problem.
        prefix: of the names of the tolerances.

    Raises:
        InputError: an option that cannot be used, or that no method has.
    """
    _look(method, options, _FIXED)
    size: Any = options.get("step_size")
    constructor: Any = options.get("grid_constructor")
    if size is not None and constructor is not None:
        raise InputError("step_size together with grid_constructor", "one of them")
    if constructor is not None and not callable(constructor):
        raise InputError(f"grid_constructor={shown(constructor)}", "a function of (func, y0, t) to the ends of steps")
    step_size = None if size is None else real(size)
    if size is not None and (step_size is None or not 0 < step_size < math.inf):
        raise InputError(f"step_size={shown(size)}", "a finite positive number, whatever the direction of time")
    interp = options.get("interp", "linear")
    if not isinstance(interp, str) or interp not in ("linear", "cubic"):
        raise InputError(f"interp={shown(interp)}", "'linear' or 'cubic'")
    perturb = options.get("perturb", False)
    yes_or_no("perturb", perturb)
    tolerance(f"{prefix}rtol", rtol, flow)
    precision = tolerance(f"{prefix}atol", atol, flow)
    ours: Any = constructor
    return Spacing(step_size, ours, interp, perturb, precision if isinstance(precision, float) else 0.0)


def watchers(method: str, flow: OdeintProblem, shown: Callable[..., Any], suffix: str = "") -> StepCallbacks | None:
    """What the function wants to be told of steps: its methods `callback_step`, `callback_accept_step`, ...

    Args:
        method: of the solve.
        flow: with the function.
        shown: the state, as the function is to see it, from its leaves.
        suffix: "_adjoint" for the backward pass.
    """
    callbacks = {name: getattr(flow.func, name + suffix, None) for name in _CALLBACKS}
    if not any(callbacks.values()):
        return None
    if method not in ADAPTIVE:
        ignored = {name for name in _CALLBACKS[1:] if callbacks[name] is not None}
        if ignored:
            warnings.warn(f"Solver '{method}' does not support callbacks {ignored}", stacklevel=5)
    device = flow.y0.device

    def adapted(name: str, callback: Any) -> Callable[[float, Any, float], None]:
        if callback is None:
            return lambda t, y, h: None

        def tell(t: float, y: Any, h: float) -> None:
            time, size = torch.tensor([t, abs(h)], dtype=torch.float64, device=device).unbind(0)
            with unwritten(name, y):
                callback(time, shown(*y), size)

        return tell

    return StepCallbacks(*(adapted(name + suffix, callbacks[name]) for name in _CALLBACKS))


@contextlib.contextmanager
def unwritten(name: str, y: Iterable[Tensor]) -> Iterator[None]:
    """Around a function of the caller's that is shown the state, and is not to change the solve.

    Raises:
        StateError: it wrote on the state.
    """
    before = [writes(leaf) for leaf in y]
    yield
    if [writes(leaf) for leaf in y] != before:
        raise StateError(
            f"{name} wrote on the state that it was given", f"a {name} that leaves it as it is", "work on y.clone()"
        )


def _look(method: str, options: Options, known: set[str]) -> None:
    """Warns of options that other methods have, as torchdiffeq does.

    Raises:
        InputError: of options that no method has, and of a norm that is no function.
    """
    norm = options.get("norm")
    if norm is not None and not callable(norm):
        raise InputError(f"norm={shown(norm)} of the options of {method}", "a function of a state to a number")
    unused = {name: value for name, value in options.items() if name not in known}
    if strange := [name for name in unused if name not in _ADAPTIVE | _FIXED | _ELSEWHERE]:
        near = difflib.get_close_matches(shown(strange[0]).strip("'"), sorted(known), n=2, cutoff=0.5)
        raise UnknownNameError(
            f"{method} has no option {shown(strange[0])}",
            ", ".join(sorted(known)),
            f"take {' or '.join(near)}, if that is what you meant" if near else "leave it out",
        )
    if unused:
        warnings.warn(f"{method}: Unexpected arguments {shown(unused)}", stacklevel=6)


def mapped(name: str, options: Any) -> dict[str, Any]:
    """Options as a dict; None has none.

    Raises:
        InputError: they are no mapping.
    """
    if options is not None and not isinstance(options, Mapping):
        raise InputError(f"{name}={shown(options)}", "a dict of options by name, or None")
    return dict(options or {})
