"""Two processes on Gloo: halves of a stack in a pipeline, and `gradient="auto"` under data parallelism."""

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
def test_pipelines_and_auto_have_the_gradients_of_one_process(tmp_path):
    script, environment = Path(__file__).with_name("_stages.py"), {**os.environ, "OMP_NUM_THREADS": "1"}
    flags = ["-W", "error::UserWarning:odenet_torch", "-W", "error::UserWarning:odenet"]
    ranks = [
        subprocess.Popen(
            [sys.executable, *flags, str(script), str(rank), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(2)
    ]
    outputs = [rank.communicate(timeout=200) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], outputs[0][1][-2000:] + outputs[1][1][-2000:]
    assert all("UselessGradientWarning" not in errors for _, errors in outputs), outputs
    found = json.loads(outputs[1][0].splitlines()[-1])
    # torch 2.7 stands still in its schedule 1F1B on Gloo, with any layers
    assert len(found) == 6 + 2 + 2 * (torch.__version__ >= "2.8")
    assert max(found.values()) < 1e-13, found
