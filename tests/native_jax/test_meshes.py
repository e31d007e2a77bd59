"""Data parallelism: what a solve over a mesh of devices gives is what it gives on one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest


@pytest.mark.skipif(not hasattr(jax.sharding, "AxisType"), reason="this JAX has no explicit meshes")
@pytest.mark.parametrize("which", ["few", pytest.param("all", marks=pytest.mark.slow)])
def test_two_devices_give_what_one_gives(which):
    script = Path(__file__).with_name("_meshes.py")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, str(script), which], capture_output=True, text=True, env=environment)
    assert run.stdout.splitlines() == ["OK"], run.stdout + run.stderr[-2000:]
