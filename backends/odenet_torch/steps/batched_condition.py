"""An event's condition at many places of a step in one call: `torch.vmap` of conditions that are arithmetic.

A condition is looked at in eight places of each step, whose calls would cost as much as the step. They can be one call
where it does nothing but compute: no branches, nothing that it writes or keeps, no names but numbers, tensors and torch
with its functions. That is read from its byte code, once. The first batch is compared with calls one by one; what torch
cannot batch, or has another value, is called one by one from then on.
"""

from __future__ import annotations

import builtins
import dis
import functools
import inspect
import types
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from odenet_torch.field.written_on import version
from odenet_torch.steps.size_control import moments

_functorch: Any = getattr(torch._C, "_functorch", None)
# what `torch.vmap` is made of, which is nobody's promise: without one of them conditions are called one by one
_NEEDED = (
    "_vmap_increment_nesting",
    "_vmap_decrement_nesting",
    "_add_batch_dim",
    "_remove_batch_dim",
    "maybe_get_level",
)
_CAN_BATCH = all(hasattr(_functorch, name) for name in _NEEDED)
# of Python 3.11 to 3.14: reads of names and constants, operations, calls of attributes, and values put together
_PLAIN = frozenset(
    """BINARY_OP BINARY_SLICE BINARY_SUBSCR BUILD_LIST BUILD_SLICE BUILD_TUPLE CACHE CALL CALL_KW COMPARE_OP
    COPY_FREE_VARS KW_NAMES LOAD_ATTR LOAD_CONST LOAD_DEREF LOAD_FAST LOAD_FAST_BORROW
    LOAD_FAST_BORROW_LOAD_FAST_BORROW LOAD_FAST_CHECK LOAD_FAST_LOAD_FAST LOAD_GLOBAL LOAD_METHOD LOAD_SMALL_INT NOP
    PRECALL PUSH_NULL RESUME RETURN_CONST RETURN_VALUE STORE_FAST STORE_FAST_LOAD_FAST UNARY_INVERT UNARY_NEGATIVE
    UNPACK_SEQUENCE""".split()
)
_WAITING = 8  # steps whose looks are put off, at most
_ENTRIES = 1 << 17  # of their states, which are in memory together
_CLOSE = 1e-4  # roundings of a batch, as part of its largest value
_OTHER = inspect.CO_VARARGS | inspect.CO_VARKEYWORDS | inspect.CO_GENERATOR | inspect.CO_COROUTINE
_NUMBERS = frozenset((bool, int, float))
_OF_TORCH = frozenset(("linalg", "stack", "cat", "pi"))  # beside what a tensor has, too
_NOT_ARITHMETIC = frozenset(("backward", "register_hook", "retain_grad"))


@dataclass
class _Code:
    """What is known of the byte code of conditions.

    Args:
        names: the global names that it reads; None where it does something else than arithmetic.
        reads_time: whether it reads its first argument.
        agrees: whether the values of a batch were those of single calls; None before there was one.
    """

    names: frozenset[str] | None
    reads_time: bool
    agrees: bool | None = None


def arithmetic(condition: Any) -> bool:
    """Whether a condition is seen to do nothing but compute, of its arguments, numbers and tensors."""
    if type(condition) is not types.FunctionType or condition.__defaults__ or condition.__kwdefaults__:
        return False
    code = _known(condition.__code__)
    if code.names is None or not _CAN_BATCH or code.agrees is False:
        return False
    own = condition.__globals__
    try:
        values = [cell.cell_contents for cell in condition.__closure__ or ()]
        values += [own[name] if name in own else getattr(builtins, name) for name in code.names]
    except (ValueError, AttributeError):  # not assigned
        return False
    return all(map(_harmless, values))


def _harmless(value: Any) -> bool:
    return type(value) in _NUMBERS or type(value) in (Tensor, nn.Parameter) or value is torch or value is abs


@functools.lru_cache(256)
def _known(code: types.CodeType) -> _Code:
    names = _global_names(code)
    return _Code(names, names is not None and _reads_time(code))


def _global_names(code: types.CodeType) -> frozenset[str] | None:
    """The global names that code reads; None where it does something else than arithmetic."""
    names: set[str] = set()
    for instruction in dis.get_instructions(code):
        name = instruction.argval
        match instruction.opname:
            case "LOAD_GLOBAL":
                names.add(name)
            case "LOAD_ATTR" | "LOAD_METHOD":
                of_tensors = hasattr(Tensor, name) and not name.endswith("_") and name not in _NOT_ARITHMETIC
                if not (of_tensors or name in _OF_TORCH):
                    return None
            case "BINARY_OP":
                if instruction.argrepr.endswith("="):
                    return None
        if instruction.opname not in _PLAIN:
            return None
    # an argument `out=` is among the constants; generators and coroutines are not called as functions are
    words = [word for c in code.co_consts for word in (c if isinstance(c, tuple) else (c,))]
    simple = (
        code.co_argcount == 2 and not code.co_kwonlyargcount and not code.co_cellvars and code.co_flags & 0x2AC == 0
    )
    return frozenset(names) if simple and "out" not in words else None


def _reads_time(code: types.CodeType) -> bool:
    """Whether code reads its first argument."""
    time, names = code.co_varnames[0], [instruction.argval for instruction in dis.get_instructions(code)]
    return any(time == name or (isinstance(name, tuple) and time in name) for name in names)


@functools.lru_cache(16)
def _zero(time: torch.dtype, device: torch.device) -> Tensor:
    return torch.zeros((), dtype=time, device=device)


class BatchedCondition:
    """An arithmetic condition, at all parts of a step in one call, or at those of several steps.

    Args:
        condition: it.
        parts: where in a step, from 0 to 1, the step's end left out.
        weights: of dense output, one row a part, and one for the step's end.
        y: a state, of one leaf.
        time: number type of times.
        alone: the same at times and states, stacked along a first axis, by a call for each: for the first batch.
    """

    def __init__(
        self,
        condition: Callable[[Any, Any], Any],
        parts: Sequence[float],
        weights: Tensor,
        y: Tensor,
        time: torch.dtype,
        alone: Callable[[Tensor, Tensor], Sequence[Tensor]],
    ) -> None:
        self.condition, self.parts, self.weights, self.alone = condition, parts, weights, alone
        self.code = _known(condition.__code__)  # pyright: ignore[reportFunctionMemberAccess]
        self.checked = self.code.agrees or False
        """Whether the values of a batch were those of single calls."""
        self.time, self.device, self.shape = time, y.device, y.shape
        # in the place of times that it does not read
        self.no_time = None if self.code.reads_time else _zero(time, y.device)
        self.most = min(_WAITING, _ENTRIES // (len(parts) * y.numel()))
        """How many steps may wait for their looks, where that is more than one."""

    def entries(self, t: float, t1: float, y: Tensor, y1: Tensor, slopes: Tensor) -> Tensor | None:
        """The condition's entries, one row a part of the step and one for its end; None where that can't be done.

        Args:
            t, t1: ends of the step.
            y, y1: the states there.
            slopes: those that dense output weighs, as rows.
        """
        h = t1 - t
        inside = torch.addmm(y.reshape(1, -1), self.weights[:-1], slopes, alpha=h)
        states = torch.cat((inside, y1.reshape(1, -1))).view(-1, *self.shape)
        times = self.no_time
        if self.checked and times is not None:
            return self._batch(times, states)
        times = moments([*[t + part * h for part in self.parts], t1], self.time, self.device)
        if self.checked:
            return self._batch(times, states)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # an operation that torch can batch by a loop alone
            value = self._batch(times, states)
        self.checked = self.code.agrees = value is not None and _same(value, self.alone(times, states))
        return value if self.checked else None

    def at(self, t: float, y: Tensor) -> Any:
        """The condition at one time and state, of one whose batches were looked at."""
        time = self.no_time
        if time is None:
            time = torch.full((), t, dtype=self.time, device=self.device)
        return self.condition(time, y)

    def within(self, steps: Sequence[tuple[float, float, Tensor, Tensor]], y: Tensor) -> Tensor | None:
        """The entries at the parts of several steps, each followed by that of its end; None as of `entries`.

        Ends are where dense output has them, which is where the steps have them but for rounding.

        Args:
            steps: one after the other, of each its ends, the state at the second, and the slopes that dense output
                weighs, as rows.
            y: where the first begins.
        """
        count, sizes = len(steps), [t1 - t for t, t1, *_ in steps]
        h = moments(sizes, self.weights.dtype, self.device).view(count, 1, 1)
        slopes = torch.stack([rows for *_, rows in steps])
        begins = torch.stack([y, *(y1 for *_, y1, _ in steps[:-1])]).view(count, 1, -1)
        states = torch.baddbmm(begins, h * self.weights, slopes).view(-1, *self.shape)
        times = self.no_time
        if times is None:
            parts = (*self.parts, 1.0)
            every = [t + part * h for (t, *_), h in zip(steps, sizes, strict=True) for part in parts]
            times = moments(every, self.time, self.device)
        return self._batch(times, states)

    def _batch(self, times: Tensor, states: Tensor) -> Tensor | None:
        value = _mapped(self.condition, times, states)
        if value is None:  # it is not tried again
            self.code.agrees = False
        return value


def _mapped(condition: Callable[[Any, Any], Any], times: Tensor, states: Tensor) -> Tensor | None:
    """What `torch.vmap(condition)(times, states)` is, in a quarter of its time; None where that fails.

    A scalar in the place of times is handed over as it is.
    """
    count, before = states.shape[0], version(states) + version(times)
    level = _functorch._vmap_increment_nesting(count, "error")
    try:
        time = _functorch._add_batch_dim(times, 0, level) if times.ndim else times
        value = condition(time, _functorch._add_batch_dim(states, 0, level))
        if type(value) is not Tensor or _functorch.maybe_get_level(value) != level:
            return None
        value = _functorch._remove_batch_dim(value, level, count, 0)
    except Exception:  # said where it is called in the usual way
        return None
    finally:
        _functorch._vmap_decrement_nesting()
    return value if version(states) + version(times) == before else None


def _same(value: Tensor, looks: Sequence[Tensor]) -> bool:
    """Whether a batch has the values of single calls, but for rounding."""
    if any(look.shape != value.shape[1:] or look.dtype is not value.dtype for look in looks) or value.is_complex():
        return False
    one, other = torch.stack([*looks]).double(), value.double()
    largest = one.nan_to_num(0.0, 0.0, 0.0).abs().amax()
    return torch.allclose(other, one, rtol=_CLOSE, atol=_CLOSE * float(largest), equal_nan=True)
