"""Torch solves beside those of an earlier commit, whose worktree is named by `ODENET_EARLIER` (`git worktree add PATH
COMMIT`); float32, one thread.

ratio: seconds now over seconds then, each commit in a process of its own, in time of the thread, which other processes
do not add to: of each pair of processes the median of the ratios of interleaved runs, and of these the median. The same
code has other times in each process, by where its memory lies: between, the least and the largest ratio of a pair.
least: the least time now over the least time then. Fixed steps
are training steps of 64 blocks Linear(32)-Tanh on a batch of 64; dopri5 solves an MLP on a state of 32 x 8; rows are 16
with steps of their own; the event is never met; converted are 50 residual blocks Linear-Tanh of width 64.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

TITLE = "Times beside an earlier commit"
PROCESSES, ROUNDS = 7, 9
FIXED = ("euler backprop", "euler checkpoint", "euler discrete-adjoint", "rk4 backprop", "rk4 checkpoint")
REVERSIBLE = ("alf reversible", "reversible-heun reversible", "reversible:euler reversible")


def rows(part: str = "") -> Iterator[dict[str, Any]]:
    """One row a solve whose name has this part; none where no earlier commit is named."""
    earlier = os.environ.get("ODENET_EARLIER")
    if earlier is None:
        return
    commit = subprocess.run(["git", "-C", earlier, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    roots = Path(__file__).parents[1], Path(earlier)
    seconds: dict[str, list[list[tuple[float, float]]]] = {}
    for _ in track(range(PROCESSES), "pairs of processes", console=Console(stderr=True), transient=True):
        now, then = map(_worker, roots)
        for name in json.loads(_asked(now, "names")):
            if part in name:
                pairs = [_pair(now, then, name, first=bool(turn % 2)) for turn in range(ROUNDS)]
                seconds.setdefault(name, []).append(pairs)
        for worker in (now, then):
            worker.terminate()
    for name, processes in seconds.items():
        ratios = [statistics.median(a / b for a, b in pairs) for pairs in processes]
        every = list(itertools.chain.from_iterable(processes))
        yield {
            "what": name,
            "ms": 1e3 * statistics.median(a for a, _ in every),
            "ratio": statistics.median(ratios),
            "between": f"{min(ratios):.2f} and {max(ratios):.2f}",
            "least": min(a for a, _ in every) / min(b for _, b in every),
            "earlier": commit.stdout.strip(),
        }


def _pair(now: subprocess.Popen[str], then: subprocess.Popen[str], name: str, *, first: bool) -> tuple[float, float]:
    """Seconds of a run of both, of this commit `first` or second."""
    taken = {worker: float(_asked(worker, name)) for worker in ((now, then) if first else (then, now))}
    return taken[now], taken[then]


def _worker(root: Path) -> subprocess.Popen[str]:
    """This file as a process that imports odenet from a worktree."""
    paths = os.pathsep.join(map(str, (root, root / "backends")))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )


def _asked(worker: subprocess.Popen[str], name: str) -> str:
    assert worker.stdin is not None
    assert worker.stdout is not None
    print(name, file=worker.stdin, flush=True)
    return worker.stdout.readline()


def cases() -> dict[str, Callable[[], object]]:
    """What both commits run, by name."""
    import torch
    from torch import Tensor, nn

    import odenet_torch
    from odenet import PIDController

    torch.set_num_threads(1)
    torch.manual_seed(0)
    x, blocks = torch.randn(64, 32), [nn.Sequential(nn.Linear(32, 32), nn.Tanh()) for _ in range(64)]
    every: dict[str, Callable[[], object]] = {}
    for name in (*FIXED, *REVERSIBLE):
        solver, gradient = name.split()
        net = odenet_torch.ResidualStack(blocks, solver=solver, gradient=gradient, along="piecewise")  # pyright: ignore[reportArgumentType]
        every[f"fixed steps, {name}, training"] = lambda net=net: net(x).square().mean().backward()
        if gradient == "backprop":
            every[f"fixed steps, {name}, inference"] = torch.no_grad()(lambda net=net: net(x))

    mlp, y0 = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 8)), torch.randn(32, 8)
    own: dict[str, Any] = {"solver": "dopri5", "rtol": 1e-5, "atol": 1e-5}

    def field(t: Tensor, y: Tensor) -> Tensor:
        return mlp(y)

    def solved(**more: Any) -> Tensor:
        return odenet_torch.solve(field, y0, t1=5.0, **own, **more).ys

    every["dopri5, inference"] = torch.no_grad()(solved)
    every["dopri5, event that is never met, inference"] = torch.no_grad()(
        lambda: solved(event=lambda t, y: y.sum() - 1e6)
    )
    for gradient in ("backprop", "checkpoint", "continuous-adjoint", "discrete-adjoint"):
        every[f"dopri5, {gradient}, training"] = lambda g=gradient: solved(gradient=g).square().mean().backward()

    start = torch.cat([torch.randn(16, 4), torch.logspace(-1, 1, 16).unsqueeze(1)], 1)
    of_rows = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 4))

    def rated(t: Tensor, y: Tensor) -> Tensor:
        return torch.cat([y[:, -1:] * of_rows(y[:, :-1]), torch.zeros_like(y[:, -1:])], 1)

    control = PIDController(rtol=1e-4, atol=1e-4, per_sample=True)

    def by_rows() -> Tensor:
        return odenet_torch.solve(rated, start, control=control).ys

    every["per_sample, inference"] = torch.no_grad()(by_rows)
    every["per_sample, training"] = lambda: by_rows().square().mean().backward()

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 64)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.linear(x).tanh() / 50

    wide = torch.randn(32, 64)
    for gradient in ("checkpoint", "discrete-adjoint"):
        layers = nn.Sequential(*(Residual() for _ in range(50)))
        model = odenet_torch.convert(layers, example=wide, gradient=gradient)
        every[f"converted, {gradient}, training"] = lambda m=model: m(wide).square().mean().backward()
    every["converted, evaluation"] = torch.no_grad()(lambda m=model: m.eval()(wide))  # pyright: ignore[reportPossiblyUnbound]
    return every


def main() -> None:
    """Answers with names, and with the seconds of a run of a name after two others."""
    every = cases()
    warm: set[str] = set()
    for line in sys.stdin:
        name = line.strip()
        if name == "names":
            print(json.dumps([*every]), flush=True)
            continue
        for _ in range(1 if name in warm else 4):
            every[name]()
        warm.add(name)
        begin = time.thread_time()
        every[name]()
        print(time.thread_time() - begin, flush=True)


if __name__ == "__main__":
    main()
