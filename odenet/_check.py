"""Checks of plain options, with one wording."""

from __future__ import annotations

import functools
import inspect
import math
import numbers
import os
import traceback
import types
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from odenet._errors import DtypeError, InputError, shown

_COUNTED = 2**63 - 1  # what no 64 bits hold has no use as a count, and may have more digits than Python writes


def whole(name: str, value: Any, least: int = 1, most: int = _COUNTED, of: str = "") -> None:
    """Raises InputError unless the value, of that name (of what), is an int within the bounds."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        beyond = isinstance(value, int) and value > most
        allowed = f"at least {least}" if most == _COUNTED and not beyond else f"{least} to {most}"
        raise InputError(f"{name}={shown(value)}" + (f" of {of}" if of else ""), f"a whole number, {allowed}")


def yes_or_no(name: str, value: Any) -> None:
    """Raises InputError unless the value is True or False."""
    if not isinstance(value, bool):
        raise InputError(f"{name}={shown(value)}", "True or False")


def instance(name: str, value: Any, kinds: type | tuple[type, ...], allowed: str) -> None:
    """Raises InputError unless the value is one of these kinds; `allowed` says so for people."""
    if not isinstance(value, kinds):
        raise InputError(f"{name}={shown(value)}, a {type(value).__name__}", allowed)


def array_of_numbers(name: str, array: Any) -> None:
    """Raises DtypeError for an array of NumPy that holds words or objects, which no framework has."""
    if array.dtype.kind not in "biufcV":  # V: bfloat16 and others of ml_dtypes
        raise DtypeError(f"{name} is an array of {array.dtype}", "arrays of numbers", "take x.astype(float)")
    if hasattr(array, "mask"):
        raise InputError(f"{name} is a masked array, whose mask no framework has", "plain arrays", "take x.filled(0)")


def path(name: str, value: Any) -> Path:
    """A path of a file or folder.

    Raises:
        InputError: it is no text and no path of one.
    """
    if not isinstance(value, str | os.PathLike) or not isinstance(os.fspath(value), str):
        raise InputError(f"{name}={shown(value)}, a {type(value).__name__}", "a path, as text or a pathlib.Path")
    return Path(value)


def several(name: str, value: Any, *single: type) -> list[Any]:
    """One thing or several, as a list: what is a text or of a kind in `single` is one thing.

    Raises:
        InputError: it is neither one nor a list.
    """
    if isinstance(value, (str, bytes, *single)):
        return [value]
    try:
        return list(value)
    except TypeError as error:
        if isinstance(value, Iterable) and getattr(value, "shape", None) != ():  # one that fails of itself
            raise
        raise InputError(
            f"{name}={shown(value)}, a {type(value).__name__}", f"one of the {name}, or a list of them"
        ) from error


def takes(function: Callable[..., Any], count: int, what: str, allowed: str) -> None:
    """Raises InputError, which calls the function `what`, unless it can be called with that many arguments.

    What a decorator wrote in Python takes is what it says itself: `functools.wraps` gives it the signature of what it
    wraps, which it may call with fewer arguments.
    """
    if not _plainly_takes(function, count):
        _bind(function, count, what, allowed, through=not isinstance(_code(function), types.FunctionType))


def called(function: Callable[..., Any], arguments: Sequence[Any], what: str, allowed: str) -> Any:
    """What the function returns.

    Raises:
        InputError: what it wraps cannot be called with that many arguments, and was not.
    """
    try:
        return function(*arguments)
    except TypeError as error:
        inside = getattr(_code(inspect.unwrap(_code(inspect.unwrap(function)))), "__code__", None)
        if all(frame.f_code is not inside for frame, _ in traceback.walk_tb(error.__traceback__)):
            _bind(function, len(arguments), what, allowed, through=True)
        raise


def _bind(function: Callable[..., Any], count: int, what: str, allowed: str, *, through: bool) -> None:
    try:
        signature = inspect.signature(function, follow_wrapped=through)
    except Exception:  # callables of an extension module may have none, others raise where their attributes are read
        return
    try:
        signature.bind(*range(count))
    except TypeError as error:
        raise InputError(f"{what} takes {signature} ({error})", allowed) from None


def _code(function: Any) -> Any:
    """The function of Python, or of an extension module, that runs where this is called."""
    while isinstance(function, functools.partial):
        function = function.func
    if isinstance(function, types.MethodType):
        return _code(function.__func__)
    return (
        function
        if isinstance(function, types.FunctionType)
        else inspect.getattr_static(type(function), "__call__", None)
    )


def _plainly_takes(function: Any, count: int) -> bool:
    """Whether a plain function is seen to take so many arguments, without a signature made of it: that takes as long as
    a step."""
    if type(function) is not types.FunctionType or function.__dict__:  # which may name another signature
        return False
    code, defaults = function.__code__, function.__defaults__ or ()
    most = math.inf if code.co_flags & inspect.CO_VARARGS else code.co_argcount
    named = code.co_kwonlyargcount == len(function.__kwdefaults__ or ())
    return named and code.co_argcount - len(defaults) <= count <= most


def real(value: Any) -> float | None:
    """A real number as a float, also where it is the one entry of an array; None for everything else.

    Booleans and words are no numbers here, nor is a whole number that no float holds. NaN and infinity are.
    """
    shape = getattr(value, "shape", ())
    try:
        if hasattr(value, "tolist") and math.prod(shape) == 1:
            value = value.reshape(()).tolist() if shape else value.tolist()
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            return None
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # a value that is traced, or on the meta device
        return None


def within(
    name: str,
    value: Any,
    above: float = -math.inf,
    most: float = math.inf,
    *,
    least: bool = False,
    below: bool = False,
    of: str = "",
) -> float:
    """A finite real number (see `real`) as a float.

    Args:
        name: of the value.
        value: what was given.
        above, most: bounds.
        least: whether the lower bound may be reached.
        below: whether the upper one may not.
        of: whose value it is, for the message.

    Raises:
        InputError: it is none, or not within the bounds.
    """
    number = real(value)
    inside = number is not None and math.isfinite(number) and (number < most if below else number <= most)
    if number is None or not inside or not (number >= above if least else number > above):
        low = "" if above == -math.inf else f", at least {above:g}" if least else f" above {above:g}"
        high = "" if most == math.inf else f", below {most:g}" if below else f", at most {most:g}"
        raise InputError(f"{name}={shown(value)}" + (f" of {of}" if of else ""), f"a finite number{low}{high}")
    return number


def tolerance_or_none(value: Any) -> None:
    """Raises InputError unless it is None or a number between 0 and 1."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value is not None and not (number and 0 < value < 1):
        raise InputError(f"tolerance={shown(value)}", "a number between 0 and 1, or None")
