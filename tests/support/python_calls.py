"""Counts of what a program does in Python, which no other load on a machine changes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


def python_calls(run: Callable[[], object]) -> int:
    """Calls of functions of Python's while it runs."""
    count = 0

    def note(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
    return count
