"""An initial value problem as torchdiffeq states it: the state is one tensor, of tuples the leaves in a row.

Over 250 lines: each of torchdiffeq's arguments is read, checked and put into one tensor here and nowhere else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from odenet import DtypeError, GridError, InputError, NonFiniteError, StateError
from odenet.kit import called, real, shown, takes
from odenet_torch.drop_in.recording import Recording
from odenet_torch.field.arguments import require_arguments
from odenet_torch.field.differentiating import listed, no_values, reading_values, record
from odenet_torch.field.half_precision import Reads
from odenet_torch.field.not_dense import not_dense, require_dense
from odenet_torch.field.state import NUMBERS, Layout, Leaves, layout
from odenet_torch.field.written_on import version
from odenet_torch.steps.events import signed, untouched, wrote_on
from odenet_torch.steps.resolution import coarse, explained

Norm = Callable[[Any], Any]


@dataclass(frozen=True)
class OdeintProblem:
    """`y' = f(t, y)`, `y(t[0]) = y0`.

    Args:
        func: `func(t, y)`, of a tensor or a tuple of tensors.
        shapes: of the tuple's entries; None for a state that is one tensor.
        y0: the state, flat where it is a tuple.
        t: times, on the device of y0.
        times: the same as floats.
        event_fn: `event_fn(t, y)`, whose change of sign ends the solve.
        recording: what evaluations draw, for a backward pass; None where there is none.
        reads: of a module's parameters, where autograd adds up their gradients.
        wide: whether func is called with times in double beside a state in single precision, which cannot tell them
            apart.
        original: the caller's func, where `func` stands for it.
    """

    func: Callable[[Tensor, Any], Any]
    shapes: tuple[torch.Size, ...] | None
    y0: Tensor
    t: Tensor
    times: tuple[float, ...]
    event_fn: Callable[[Tensor, Any], Tensor] | None
    recording: Recording | None = None
    reads: Reads | None = None
    wide: bool = False
    original: Callable[[Tensor, Any], Any] | None = None

    @property
    def direction(self) -> float:
        """The direction of time, 1 or -1."""
        return -1.0 if self.times[-1] < self.times[0] else 1.0

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        """The slope, in the shape and number type of y.

        Raises:
            StateError: the function returned another shape, or other entries than the tuple's.
        """
        kind = torch.float64 if self.wide else y.dtype
        if t.dtype is not kind and t.dtype is not (kind := self.time_kind(y)):
            t = t.to(kind)
        value = self._slope(t, y) if self.recording is None else self.recording.evaluate(lambda: self._slope(t, y))
        if value.dtype is not y.dtype and (y.is_complex() or not value.is_complex()):
            value = value.to(y.dtype)  # torchdiffeq widens and narrows in silence
        return value

    def time_kind(self, y: Tensor) -> torch.dtype:
        """The number type of the times that func and event_fn are called with, beside a state."""
        return torch.float64 if self.wide else y.real.dtype

    def layout(self) -> tuple[Layout, Leaves]:
        """The layout of y0, with times of that type, and its leaves as carried."""
        own, leaves = layout(self.y0)
        return dataclasses.replace(own, time=torch.float64) if self.wide else own, leaves

    def _slope(self, t: Tensor, y: Tensor) -> Tensor:
        if not self.wide:
            return self._value(t, y)
        with self.explained():
            return self._value(t, y)

    def explained(self) -> contextlib.AbstractContextManager[None]:
        """Inside, a func that cannot be called with times in double is told why it was.

        Raises:
            GridError: it cannot.
        """
        return explained(self.times[0]) if self.wide else contextlib.nullcontext()

    def _value(self, t: Tensor, y: Tensor) -> Tensor:
        state = y if self.shapes is None else self.unpacked(y)
        try:
            if self.reads is None:
                value = self.func(t, state)
            else:
                value = self.reads.evaluate(lambda _: self.func(t, state), (), self.func)
        except RuntimeError as error:
            value = record(error, self.func, t, state)
        self.require_slope(value, y)
        if self.shapes is None:
            return value
        try:
            return torch.cat([part.reshape(-1) for part in value])
        except (RuntimeError, TypeError):
            require_dense(value, "a slope that func returned")
            raise

    def require_slope(self, value: Any, y: Tensor) -> None:
        """Raises StateError unless this is a slope for the state y."""
        if self.shapes is None:
            if not isinstance(value, Tensor) or value.is_nested or value.shape != y.shape:
                raise StateError(
                    f"func returned {described(value)} for a state that is {described(y)}",
                    "a slope of the state's own shape, as a tensor",
                    "expand it where one number stands for all, as in slope.expand_as(y)",
                )
            return
        right = isinstance(value, (tuple, list)) and len(value) == len(self.shapes)
        if not right or any(
            not isinstance(part, Tensor) or part.is_nested or part.shape != shape
            for part, shape in zip(value, self.shapes, strict=True)
        ):
            raise StateError(
                f"func returned {described(value)} for a state that is {described(self.unpacked(y))}",
                "a tuple of slopes, each of the shape of its entry of the state",
            )

    def event(self, t: Any, y: Tensor) -> Tensor:
        """The conditions on time and state, numbers or booleans, in a row.

        Raises:
            StateError: the function returned something else.
        """
        assert self.event_fn is not None
        time = torch.as_tensor(t, device=y.device).to(self.time_kind(y))
        value = called(self.event_fn, (time, self.unpacked(y)), "event_fn", "a function event_fn(t, y)")
        try:
            row = torch.as_tensor(value).reshape(-1)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            row = None
        if row is None or row.is_complex() or row.is_meta or not len(row):
            raise StateError(
                f"event_fn returned {shown(value)}", "real numbers or booleans: one, or a tensor of at least one"
            )
        return row

    def signs(self, t: float, y: Tensor) -> list[float]:
        """Of the conditions; 1 and -1 for true and false.

        Raises:
            NonFiniteError: one of them is NaN.
        """
        with torch.no_grad():
            before, values = version(y), signed(self.event(t, y))
            if version(y) != before:
                raise wrote_on("event_fn")
            signs = torch.where(values != values, torch.nan, values.sign()).tolist()
        if any(sign != sign for sign in signs):
            raise NonFiniteError(f"event_fn is {values.tolist()} at t={t:.8g}", "numbers, or booleans")
        return signs

    def first_signs(self) -> list[float]:
        """`signs` where the solve begins.

        Raises:
            StateError: the function writes on its state.
        """
        return untouched(lambda y: self.signs(self.times[0], y[0]), (self.y0,), "event_fn")

    def unpacked(self, y: Tensor) -> Any:
        """A state as it was given: the tensor, or the tuple; with the leading axes that y has."""
        if self.shapes is None:
            return y
        return parts(y, self.shapes)


def parts(y: Tensor, shapes: Sequence[torch.Size]) -> tuple[Tensor, ...]:
    """The entries of a state that lie in a row, with the leading axes that y has."""
    pairs = zip(y.split([shape.numel() for shape in shapes], dim=-1), shapes, strict=True)
    return tuple([part.reshape((*y.shape[:-1], *shape)) for part, shape in pairs])


def described(value: Any) -> str:
    """A state or a slope, for a message."""
    if fault := not_dense(value):
        return f"a tensor {fault}"
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, (tuple, list)):
        parts = [
            not_dense(part) or str(tuple(part.shape)) if isinstance(part, Tensor) else type(part).__name__
            for part in value
        ]
        return f"a {type(value).__name__} of {', '.join(parts) or 'nothing'}"
    return f"a {type(value).__name__}"


def _without_values(tensor: Tensor) -> str | None:
    """Where the values of a tensor are that is not dense, or has none; None for one that is and has."""
    if is_lazy(tensor):
        return "that has no shape yet, a parameter of a lazy module"
    return "on the meta device, without values" if tensor.is_meta else not_dense(tensor)


def flow(
    func: Callable[[Tensor, Any], Any], y0: Any, t: Any, event_fn: Callable[[Tensor, Any], Tensor] | None = None
) -> OdeintProblem:
    """A checked flow.

    Raises:
        InputError: func or event_fn is no function.
        StateError: y0 is neither a tensor nor a tuple of tensors, or one without values.
        GridError, DtypeError: times that are no one-dimensional tensor of floats, or neither increase nor decrease.
    """
    if not callable(func):
        raise InputError(f"func is a {type(func).__name__}", "a function func(t, y)")
    if isinstance(func, nn.Module):
        require_arguments(func, "ty", {}, "func", "a function func(t, y)")
    else:
        takes(func, 2, "func", "a function func(t, y)")
    if event_fn is not None and not callable(event_fn):
        raise InputError(f"event_fn is a {type(event_fn).__name__}", "a function event_fn(t, y), or None")
    shapes = None
    for leaf in y0 if isinstance(y0, tuple) else (y0,):
        if isinstance(leaf, Tensor) and (storage := _without_values(leaf)) is not None:
            raise StateError(f"y0 has a tensor {storage}", "dense tensors with values")
        if isinstance(leaf, Tensor) and leaf.dtype not in NUMBERS:
            kinds = ", ".join(str(kind).removeprefix("torch.") for kind in NUMBERS)
            raise DtypeError(f"y0 has a tensor of {leaf.dtype}", kinds, "convert it, as in y0.to(torch.float32)")
    if not isinstance(y0, Tensor):
        if not isinstance(y0, tuple) or not y0 or not all(isinstance(leaf, Tensor) for leaf in y0):
            raise StateError(f"y0 is a {type(y0).__name__}", "a tensor, or a tuple of tensors")
        shapes = tuple(leaf.shape for leaf in y0)
        y0 = torch.cat([leaf.reshape(-1) for leaf in y0])
    if not isinstance(t, Tensor):
        raise GridError(f"t is a {type(t).__name__}", "a one-dimensional tensor of times")
    if not t.is_floating_point():
        raise DtypeError(f"t is {t.dtype}", "a tensor of floats", "t.to(torch.float32)")
    if (storage := _without_values(t)) is not None:
        raise GridError(f"t is {storage}", "a dense tensor of times")
    if t.ndim != 1 or not len(t):
        raise GridError(f"t has shape {tuple(t.shape)}", "a one-dimensional tensor of times")
    with reading_values("times of torchdiffeq's calls", "NeuralODE or odenet.solve with t0, t1 and steps=N"):
        times = tuple(listed(t))
    if not all(isinstance(time, float) for time in times):  # symbols of an export
        raise no_values("times of torchdiffeq's calls", "NeuralODE or odenet.solve with t0, t1 and steps=N")
    if not all(map(math.isfinite, times)):
        raise GridError(f"t={shown(list(times))}", "finite times")
    ahead = {late > early for early, late in itertools.pairwise(times)}
    if len(ahead) > 1 or any(early == late for early, late in itertools.pairwise(times)):
        raise GridError(f"t={list(times)}", "times that strictly increase, or strictly decrease")
    if event_fn is not None and len(times) != 2:
        raise GridError(f"{len(times)} times with event_fn", "t0, and a second time that tells the direction")
    if t.device != y0.device:
        warnings.warn("t is not on the same device as y0. Coercing to y0.device.", stacklevel=4)
        t = t.to(y0.device)
    # up to an event nobody knows how far it is: as torchdiffeq, a unit of time
    end = times[0] + 1.0 if event_fn is not None else times[-1]
    wide = y0.real.dtype is torch.float32 and len(times) > 1 and coarse(torch.float32, times[0], end)
    if torch.is_grad_enabled() and y0.is_inference():  # which takes part in no graph
        y0 = y0.clone()
    return OdeintProblem(func, shapes, y0, t, times, event_fn, wide=wide)


def tolerance(name: str, value: Any, flow: OdeintProblem) -> float | Tensor:
    """A tolerance as a number, or as one number an entry of the state.

    Raises:
        InputError: it needs a gradient, has not one entry for each of the state's, or is no number of at least 0.
    """
    if isinstance(value, (int, float)) or not isinstance(value, Iterable):
        return _number(name, value)
    if isinstance(value, Tensor) and value.requires_grad:
        raise InputError(f"{name} needs a gradient", "a tolerance that needs none", f"{name}.detach()")
    if isinstance(value, (str, bytes, Mapping)):
        raise InputError(f"{name}={shown(value)}", _TOLERANCE)
    if fault := not_dense(value):
        raise InputError(f"{name} is a tensor {fault}", _TOLERANCE)
    if flow.shapes is not None and getattr(value, "ndim", 1):
        bounds = list(value)
        if len(bounds) != len(flow.shapes):
            raise InputError(f"{name} has {len(bounds)} entries for {len(flow.shapes)} of y0", "one for each")
        sizes = [shape.numel() for shape in flow.shapes]
        return spread([_entries(name, bound, (n,)) for bound, n in zip(bounds, sizes, strict=True)], sizes, flow.y0)
    if getattr(value, "shape", None) == ():
        return _number(name, value)
    return _entries(name, value, flow.y0.shape).to(flow.y0.device)


_TOLERANCE = "numbers of at least 0: one, or a tensor that broadcasts to y0, or for a tuple one for each of its entries"


def _number(name: str, value: Any) -> float:
    number = real(value)
    if number is None or not 0 <= number < math.inf:
        raise InputError(f"{name}={shown(value)}", _TOLERANCE)
    return number


def _entries(name: str, value: Any, shape: Sequence[int]) -> Tensor:
    """A tolerance that broadcasts to a shape."""
    if fault := not_dense(value):
        raise InputError(f"{name} is a tensor {fault}", _TOLERANCE)
    try:
        bounds = torch.as_tensor(value).detach()
        torch.broadcast_to(bounds, tuple(shape))
        usable = bounds.dtype is not torch.bool and not bounds.is_complex() and not bounds.is_meta
        if usable and bool(((bounds >= 0) & torch.isfinite(bounds)).all()):
            return bounds
    except (TypeError, ValueError, RuntimeError, OverflowError):
        pass
    raise InputError(f"{name}={shown(value)} for entries of shape {tuple(shape)}", _TOLERANCE)


def spread(values: Sequence[Any], sizes: Sequence[int], like: Tensor) -> Tensor:
    """Each value as often as its size, in a row."""
    kind = {"dtype": like.real.dtype, "device": like.device}
    return torch.cat([torch.as_tensor(v, **kind).expand(n) for v, n in zip(values, sizes, strict=True)])


def state_norm(norm: Norm | None, flow: OdeintProblem) -> str | Norm:
    """That of scaled errors: the root mean square; of tuples the largest of their entries."""
    if flow.shapes is None:
        return norm or "rms"
    if norm is None:
        return lambda y: mixed(flow.unpacked(y))
    return lambda y: norm(flow.unpacked(y))


def mixed(leaves: Sequence[Tensor]) -> Tensor:
    """The largest root mean square of a leaf."""
    return torch.stack([rms(leaf).double() for leaf in leaves]).amax()


def rms(leaf: Tensor) -> Tensor:
    """The root mean square of a tensor's entries."""
    return torch.linalg.vector_norm(leaf) / max(leaf.numel(), 1) ** 0.5
