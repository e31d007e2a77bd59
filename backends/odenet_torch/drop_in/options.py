"""torchdiffeq's options as ours: the controller of adaptive methods, and the grid of the others."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odenet import InputError, PIDController
from odenet_torch.drop_in.flow import Flow, state_norm, tolerance
from odenet_torch.drop_in.methods import ADAPTIVE
from odenet_torch.steps.size_control import On

Options = Mapping[str, Any]
_RENAMED = {
    "safety": "safety",
    "ifactor": "factor_max",
    "dfactor": "factor_min",
    "first_step": "first_step",
    "min_step": "min_step",
    "max_step": "max_step",
}
_ADAPTIVE = {*_RENAMED, "norm", "step_t", "jump_t", "max_num_steps", "dtype"}
_FIXED = {"norm", "step_size", "grid_constructor", "interp", "perturb"}
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


def control(method: str, options: Options, flow: Flow, rtol: Any, atol: Any) -> PIDController:
    """That of an adaptive method. Unknown options are warned of."""
    _warn(method, options, _ADAPTIVE)
    found: dict[str, Any] = {"safety": 0.9}
    for name, ours in _RENAMED.items():
        value = options.get(name)
        # 0 and infinity bound nothing
        if value is not None and not (name.endswith("_step") and float(value) in (0.0, math.inf)):
            found[ours] = float(value)
    for name in ("step_t", "jump_t"):
        value = options.get(name)
        if value is not None:
            found[name] = torch.as_tensor(value).detach().reshape(-1).tolist()
    both = [*found.get("step_t", ()), *found.get("jump_t", ())]
    if len(set(both)) < len(both):
        raise InputError(f"step_t and jump_t repeat one of {sorted(both)}", "times that are different from each other")
    # there, so many between one time and the next
    most = int(options.get("max_num_steps", 2**31 - 1)) * max(len(flow.times) - 1, 1)
    rtol, atol = tolerance("rtol", rtol, flow), tolerance("atol", atol, flow)
    return PIDController(rtol, atol, state_norm(options.get("norm"), flow), max_steps=most, **found)


def spacing(method: str, options: Options, atol: Any) -> Spacing:
    """That of a method without an error estimate. Unknown options are warned of."""
    _warn(method, options, _FIXED)
    size, constructor = options.get("step_size"), options.get("grid_constructor")
    if size is not None and constructor is not None:
        raise InputError("step_size together with grid_constructor", "one of them")
    if size is not None and not float(size) > 0:
        raise InputError(f"step_size={size}", "a positive number, whatever the direction of time")
    interp = options.get("interp", "linear")
    if interp not in ("linear", "cubic"):
        raise InputError(f"interp={interp!r}", "'linear' or 'cubic'")
    precision = torch.as_tensor(atol).min().item() if not isinstance(atol, Iterable) else 0.0
    step_size = None if size is None else float(size)
    return Spacing(step_size, constructor, interp, bool(options.get("perturb", False)), precision)


def watchers(method: str, flow: Flow, shown: Callable[..., Any], suffix: str = "") -> On | None:
    """What the function wants to be told of steps: its methods `callback_step`, `callback_accept_step`, ...

    Args:
        method: of the solve.
        flow: with the function.
        shown: the state, as the function is to see it, from its leaves.
        suffix: "_adjoint" for the way back.
    """
    found = {name: getattr(flow.func, name + suffix, None) for name in _CALLBACKS}
    if not any(found.values()):
        return None
    if method not in ADAPTIVE:
        ignored = {name for name in _CALLBACKS[1:] if found[name] is not None}
        if ignored:
            warnings.warn(f"Solver '{method}' does not support callbacks {ignored}", stacklevel=4)
    device = flow.y0.device

    def told(callback: Any) -> Callable[[float, Any, float], None]:
        if callback is None:
            return lambda t, y, h: None

        def tell(t: float, y: Any, h: float) -> None:
            time, size = torch.tensor([t, abs(h)], dtype=torch.float64, device=device).unbind(0)
            callback(time, shown(*y), size)

        return tell

    return On(*(told(found[name]) for name in _CALLBACKS))


def _warn(method: str, options: Options, known: set[str]) -> None:
    unused = {name: value for name, value in options.items() if name not in known}
    if unused:
        warnings.warn(f"{method}: Unexpected arguments {unused}", stacklevel=5)
