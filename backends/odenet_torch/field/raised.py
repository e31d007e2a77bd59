"""What a field raises comes out as it is: a StopIteration, too.

The loops over steps are generators, and so is torch's checkpoint: Python has a StopIteration that leaves a generator
become a RuntimeError of its own (PEP 479), by which nobody knows what the field has raised.
"""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from torch.utils import checkpoint

Arguments = ParamSpec("Arguments")
Value = TypeVar("Value")
_OURS = "odenet_torch."


def as_raised(function: Callable[Arguments, Value]) -> Callable[Arguments, Value]:
    """A function that raises what a field has raised inside of it."""

    @functools.wraps(function)
    def call(*arguments: Arguments.args, **named: Arguments.kwargs) -> Value:
        try:
            return function(*arguments, **named)
        except RuntimeError as error:
            stop = stopped(error)
            if stop is None:
                raise
        raise stop

    return call


def stopped(error: BaseException) -> StopIteration | None:
    """The StopIteration that a generator of ours, or torch's checkpoint, has turned into an error; None for errors that
    are the field's own, as where that iterates over generators."""
    stop = error.__cause__
    if type(error) is not RuntimeError or not isinstance(stop, StopIteration):
        return None
    *_, (last, _) = traceback.walk_tb(error.__traceback__)
    known = last.f_code.co_filename == checkpoint.__file__ or last.f_globals.get("__name__", "").startswith(_OURS)
    return stop if known else None


def leaves_a_checkpoint(error: Exception) -> bool:
    """Whether it is no error, but the way in which torch's checkpoint ends what it runs again once all is saved."""
    return type(error).__module__ == checkpoint.__name__ and "Stop" in type(error).__name__
