"""Tests that wait for the slow suite: each is among the longest, and what it tests is tested in the quick suite by
another value of its parameters, in the other backend, or through another door. One line of `waiting.txt` is the name of
one test, below `tests/`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


def waiting() -> frozenset[str]:
    """The names in `waiting.txt`."""
    return frozenset(Path(__file__).with_suffix(".txt").read_text().splitlines())


def let_wait(items: Sequence[pytest.Item], names: Collection[str]) -> None:
    """Mark the tests with these names slow.

    Args:
        items: what pytest has collected.
        names: of tests. One that its file does not have is a `pytest.UsageError` where all of the file was collected:
            a test that got another name would be back in the quick suite, and nobody would know.
    """
    of_items = {
        item.path.relative_to(TESTS).as_posix() + item.nodeid[item.nodeid.index("::") :]: item for item in items
    }
    for name in names:
        if name in of_items:
            of_items[name].add_marker(pytest.mark.slow)
    files = {name.partition("::")[0] for name in of_items}
    gone = sorted(name for name in names if name not in of_items and name.partition("::")[0] in files)
    if gone:
        raise pytest.UsageError(f"tests/support/waiting.txt names tests that there are not: {gone}")
