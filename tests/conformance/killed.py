"""Kill runs of `odenet train` with SIGKILL and go on with them: `python killed.py FOLDER TIMES SEED`.

A process of its own, which loads torch and the digits once and forks: a run then takes a fraction of a second. Prints
one line a run, and ends with status 1 if one did not end in the very bits of a run that nobody killed.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

import numpy as np
from rich.console import Console

import odenet
from odenet._jobs.data.sets import image_set
from odenet._jobs.train import curve, job
from odenet._jobs.train.checkpoint import read
from odenet._jobs.train.plan import TrainingPlan

PLAN = TrainingPlan(net="mlp", depth=2, width=4, epochs=3, batch=32, limit_train=72, gradient="discrete-adjoint")


def child(out: Path, boundary: tuple[str, int] | None = None) -> int:
    """Go on with the run in a process of its own, which kills itself at a boundary: before the n-th call of a kind."""
    pid = os.fork()
    if pid:
        return pid
    try:
        if boundary is not None:
            name, left = boundary
            true = getattr(os, name)

            def counted(*arguments, **named):
                nonlocal left
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return true(*arguments, **named)

            setattr(os, name, counted)
        os._exit(job.train(PLAN, out, resume=(out / "run.json").exists(), messages=Console(quiet=True)))
    except BaseException:
        traceback.print_exc()
        os._exit(70)


def ended(pid: int) -> bool:
    """Wait for a process: True if it came to its end, False if it was killed."""
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return False
    if os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit("a run failed")
    return True


def epoch(out: Path) -> int:
    """The last whole epoch on disk."""
    run = read(out)
    return run.epoch if run else 0


def final(out: Path):
    """All that a run leaves, but for times."""
    run = read(out)
    assert run is not None
    rows = [dataclasses.replace(row, seconds=0.0, finished=0.0) for row in run.rows]
    arrays = run.state(out, run.epoch) | odenet.load_weights(out / "weights.npz")
    return rows, run.test, {name: (str(array.dtype), array.tobytes()) for name, array in arrays.items()}


def main(folder: Path, times: int, seed: int) -> None:
    """Kill that many runs at random moments, and as many at the boundaries between one file and the next."""
    curve.write_curve = lambda run, out: [out / "curve.png"]  # takes longer than all the rest
    odenet.backend("torch")
    image_set("digits")
    began = time.perf_counter()
    ended(child(folder / "whole"))
    taken = time.perf_counter() - began
    whole = final(folder / "whole")
    rng = np.random.default_rng(seed)
    wrong = 0
    for number in range(2 * times):
        out, kills, lost = folder / f"run-{number}", 0, 0
        at_random = number < times
        while kills == 0:  # a run that was faster than its killer is none: once more
            shutil.rmtree(out, ignore_errors=True)
            for attempt in range(3):
                before = epoch(out)
                # each epoch syncs and renames three files; a run that goes on deletes some, too
                boundary = (str(rng.choice(["replace", "fsync", "unlink"])), int(rng.integers(0, 10)))
                pid = child(out, None if at_random else boundary)
                if at_random:
                    time.sleep(rng.uniform(0.0, taken))
                    os.kill(pid, signal.SIGKILL)
                whole_run = ended(pid)
                if at_random and attempt == 0:  # follows how busy the machine is: a fifth of the runs escape
                    taken *= 0.8 if whole_run else 1.05
                if whole_run:
                    break
                kills += 1
                lost += epoch(out) < before
        ended(child(out))
        same = final(out) == whole
        leftovers = [path.name for path in out.iterdir() if path.name.startswith(".")]
        wrong += not same or lost > 0 or bool(leftovers)
        how = "at random" if at_random else "at a boundary"
        print(
            f"{number}: killed {kills} times {how}, {'equal' if same else 'DIFFERENT'}, lost {lost}, left {leftovers}"
        )
    print(f"{2 * times} runs, {wrong} wrong")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
