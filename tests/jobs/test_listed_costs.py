"""What `odenet list` says below its table of the costs with reversible solvers."""

from __future__ import annotations

import pytest

import odenet
from odenet._jobs.list import _COST
from odenet._solvers.names import REVERSIBLE_SOLVERS, TWO_STEP_SOLVERS
from odenet._solvers.reversible import ReversibleSolver

SOLVERS: tuple[ReversibleSolver, ...] = (*REVERSIBLE_SOLVERS.values(), *TWO_STEP_SOLVERS.values())
N = 12


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: solver.label)
def test_what_is_said_of_reversible_solvers(solver: ReversibleSolver) -> None:
    e, c = (1 if solver.name in ("reversible-heun", "alf") else 0), (3 if solver.name == "reversible-heun" else 2)
    assert "e before the first (1 for reversible-heun and alf, else 0)" in _COST
    assert "c times the states (3 for reversible-heun, else 2)" in _COST
    s = solver.stages
    kept = odenet.Checkpoint().cost(solver, N)
    assert (kept.f_forward, kept.f_backward, kept.vjp, kept.states) == (N * s + e, N * s, N * s + e, c * N)
    assert odenet.Checkpoint(segments=3).cost(solver, N).states == 3 * c
    plain = odenet.Backprop().cost(solver, N)
    assert (plain.f_forward, plain.f_backward, plain.vjp) == (N * s + e, 0, N * s + e)
    for refused in (odenet.Checkpoint(states=3), odenet.Checkpoint(memory=10**6), odenet.Checkpoint(bits=8)):
        assert not refused.offered(solver)
    undone = odenet.Reversible().cost(solver, N)
    assert (undone.f_forward, undone.states) == (N * s + e, 2)
    assert undone.rounded == (N if solver.name == "bdia" else 0)
    assert solver.name != "bdia" or solver.side_bits == 2
