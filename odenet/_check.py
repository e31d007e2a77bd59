"""Checks of plain options, with one wording."""

from __future__ import annotations

from typing import Any

from odenet._errors import InputError


def whole(name: str, value: Any, least: int = 1, most: int | None = None, of: str = "") -> None:
    """Raises InputError unless the value, of that name (of what), is an int within the bounds."""
    inside = isinstance(value, int) and not isinstance(value, bool) and value >= least
    if not inside or (most is not None and value > most):
        allowed = f"at least {least}" if most is None else f"{least} to {most}"
        raise InputError(f"{name}={value!r}" + (f" of {of}" if of else ""), f"a whole number, {allowed}")


def yes_or_no(name: str, value: Any) -> None:
    """Raises InputError unless the value is True or False."""
    if not isinstance(value, bool):
        raise InputError(f"{name}={value!r}", "True or False")


def tolerance_or_none(value: Any) -> None:
    """Raises InputError unless it is None or a number between 0 and 1."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value is not None and not (number and 0 < value < 1):
        raise InputError(f"tolerance={value!r}", "a number between 0 and 1, or None")
