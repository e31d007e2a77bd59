"""Every test problem's field runs unchanged in every backend, and gives what the core's own step gives on NumPy."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from click.testing import CliRunner
from quick import quick

import odenet
from odenet import _tree
from odenet._jobs.solve.command import command
from odenet._solvers.step import add, increment
from odenet._test_problems.named import PROBLEMS
from odenet._test_problems.reference import arrays, field_of, relative_error

STEPS = 8
BACKENDS = ["torch", "jax"]


@pytest.fixture(params=BACKENDS)
def backend(request):
    """Its name; a framework that is missing is a failure here, not a skip."""
    odenet.backend(request.param)
    return request.param


def by_numpy(problem, t1, dtype):
    tableau, h = odenet.solver("heun").tableau, (t1 - problem.t0) / STEPS
    leaves, build = _tree.flatten(arrays(problem.y0, dtype))
    y, field = tuple(leaves), field_of(problem, dtype)
    for n in range(STEPS):

        def stage(i, at, n=n):
            time = np.asarray(problem.t0 + (n + tableau.c[i]) * h, dtype)
            return tuple(_tree.leaves(field(time, build(at))))

        y = add(y, increment(tableau, stage, y, h))
    return build(y)


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_field_gives_the_same_in_every_backend(backend, name):
    problem, dtype = PROBLEMS[name], "float64"
    # steps small enough for all of them
    t1 = problem.t0 + (problem.t1 - problem.t0) * STEPS / problem.steps * (1e-6 if problem.stiff else 1)
    framework = odenet.backend(backend)
    with framework.prepare(dtype, "cpu"):
        y0 = arrays(problem.y0, dtype)
        weights = arrays(problem.weights, dtype)
        found = odenet.solve(problem.field, y0, weights, t1=t1, steps=STEPS, solver="heun", backend=backend)
        state = _tree.map(framework.to_numpy, found.y1)
    expected = by_numpy(problem, t1, dtype)
    assert relative_error(state, expected) < 1e-14
    assert [leaf.dtype for leaf in _tree.leaves(state)] == [np.asarray(leaf).dtype for leaf in _tree.leaves(expected)]


RUNS = list(itertools.product(BACKENDS, ("float32", "float64")))  # each draws its figure, which takes longest


@pytest.mark.parametrize(
    ("backend", "dtype"), quick(RUNS, [("torch", "float32"), ("jax", "float64")]), indirect=["backend"]
)
def test_the_solve_command_runs_by_it(backend, dtype, tmp_path):
    path = tmp_path / "runs.json"
    arguments = ["rotation", "--backend", backend, "--depth", "16,32", "--dtype", dtype]
    result = CliRunner().invoke(
        command, [*arguments, "--json", str(path), "--plot", str(tmp_path / "a.png")], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    whole = json.loads(path.read_text())
    assert whole["orders"][0]["fitted_order"] == pytest.approx(4, abs=0.1)
    assert [run["dtype"] for run in whole["runs"]] == [dtype, dtype]
    assert (tmp_path / "a.png").stat().st_size > 0


def test_the_list_command_names_its_devices(backend):
    from odenet._jobs.list import backends

    (row,) = [row for row in backends() if row["name"] == backend]
    assert row["devices"][0] == "cpu"
    assert row["version"]
    assert row["trouble"] is None
