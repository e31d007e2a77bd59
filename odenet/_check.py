"""Checks of plain options, with one wording."""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Callable
from typing import Any

from odenet._errors import InputError, shown


def whole(name: str, value: Any, least: int = 1, most: int | None = None, of: str = "") -> None:
    """Raises InputError unless the value, of that name (of what), is an int within the bounds."""
    inside = isinstance(value, int) and not isinstance(value, bool) and value >= least
    if not inside or (most is not None and value > most):
        allowed = f"at least {least}" if most is None else f"{least} to {most}"
        raise InputError(f"{name}={shown(value)}" + (f" of {of}" if of else ""), f"a whole number, {allowed}")


def yes_or_no(name: str, value: Any) -> None:
    """Raises InputError unless the value is True or False."""
    if not isinstance(value, bool):
        raise InputError(f"{name}={shown(value)}", "True or False")


def takes(function: Callable[..., Any], count: int, what: str, allowed: str) -> None:
    """Raises InputError, which calls the function `what`, unless it can be called with that many arguments."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # callables of an extension module may have none
        return
    try:
        signature.bind(*range(count))
    except TypeError as error:
        raise InputError(f"{what} takes {signature} ({error})", allowed) from None


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
    name: str, value: Any, above: float = -math.inf, most: float = math.inf, *, least: bool = False, of: str = ""
) -> float:
    """A finite real number (see `real`) as a float.

    Args:
        name: of the value.
        value: what was given.
        above, most: bounds; a finite upper one may be reached, and the lower one where `least` is true.
        least: whether the lower bound may be reached.
        of: whose value it is, for the message.

    Raises:
        InputError: it is none, or not within the bounds.
    """
    number = real(value)
    inside = number is not None and math.isfinite(number) and number <= most
    if number is None or not inside or not (number >= above if least else number > above):
        low = "" if above == -math.inf else f", at least {above:g}" if least else f" above {above:g}"
        high = "" if most == math.inf else f", at most {most:g}"
        raise InputError(f"{name}={shown(value)}" + (f" of {of}" if of else ""), f"a finite number{low}{high}")
    return number


def tolerance_or_none(value: Any) -> None:
    """Raises InputError unless it is None or a number between 0 and 1."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value is not None and not (number and 0 < value < 1):
        raise InputError(f"tolerance={shown(value)}", "a number between 0 and 1, or None")
