"""Two processes on Gloo: halves of a stack in a pipeline, and each gradient method under data parallelism."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

NO_VIEWS = "the pipelines of torch 2.6 take no stage that returns a view, and its FSDP is not for the CPU"


@pytest.mark.skipif(torch.__version__ < "2.7", reason=NO_VIEWS)
def test_pipelines_and_data_parallelism_have_the_gradients_of_one_process(tmp_path):
    script, environment = Path(__file__).with_name("_stages.py"), {**os.environ, "OMP_NUM_THREADS": "1"}
    flags = ["-W", "error::UserWarning:odenet_torch", "-W", "error::UserWarning:odenet"]
    command = [sys.executable, *flags, str(script), str(tmp_path / "store")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "UselessGradientWarning" not in done.stderr, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    # torch 2.7 stands still in its schedule 1F1B on Gloo, with any layers
    pipelined, automatic, parallel = 6 + 2 * (torch.__version__ >= "2.8"), 2, 2 * 6 + 2
    assert len(found) == pipelined + automatic + parallel
    assert max(found.values()) < 1e-13, found
