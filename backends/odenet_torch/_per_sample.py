"""A batch in which each row has steps of its own: one loop for all, in which rows that are done stand still."""

from __future__ import annotations

from odenet import Problem, Solution
from odenet_torch._state import Layout, Leaves


def solve_rows(made: Problem, given: Layout, leaves: Leaves) -> Solution:
    """..."""
    raise NotImplementedError
