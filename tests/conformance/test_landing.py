"""Every adaptive loop lands its steps by the same rule."""

from __future__ import annotations

import numpy as np
import pytest
from cases import BACKENDS

import odenet
from odenet import PIDController


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("rows", [False, True])
def test_steps_of_a_49th_in_float32_are_49(name, rows):
    if rows and name != "torch":
        pytest.skip("steps of their own for rows are jax.vmap there")
    with odenet.backend(name).prepare("float32", "cpu"):
        control = PIDController(max_step=1 / 49, first_step=1 / 49, per_sample=rows)
        solution = odenet.solve(lambda t, y: 0 * y + 1, np.zeros((1, 1), np.float32), backend=name, control=control)
    assert int(np.max(np.asarray(solution.stats.steps))) == 49
    assert int(np.max(np.asarray(solution.stats.rejected))) == 0
