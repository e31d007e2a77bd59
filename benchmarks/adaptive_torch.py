"""torch's dopri5 without gradients beside torchdiffeq and torchode, on an MLP field, float32.

ratio: seconds of a solve over the seconds of as many bare evaluations of f as it made, medians of the ratios of
interleaved runs in one process, in time of the thread, which other processes do not add to. Bare evaluations are those
of the eager f in every row. odenet compiled is `compile=True`. torchdiffeq is at its default, with times in float32,
and with f compiled by `torch.compile` beside that. The first solve is that of a new process, compilation included.
goal: what was asked for.

Tensor operations a step are those beyond f's own, and host reads a step those of the whole solve over the steps it
tried, both counted by a dispatch mode, which sees nothing of compiled code. torchode steps each sample by itself and is
given the whole batch as one (a single controller would be its `batch=1`), compiled by nothing, as its README's first
example; it is left out where it is not installed (`pip install --no-deps torchode torchtyping typeguard==2.13.3`).
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch._inductor.config
import torchdiffeq
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import odenet_torch
from odenet import PIDController

TITLE = "Adaptive solves on torch"
TOLERANCE = 1e-6
GOALS = {("odenet", 8): 1.8, ("odenet", 64): 1.15, ("odenet, compiled", 8): 1.35, ("odenet, compiled", 64): 1.0}
SIZES = ((32, 8, 32, 40.0), (256, 64, 256, 10.0))


class Mlp(nn.Module):
    """y' = W2 tanh(W1 y + b1) + b2."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """The slope."""
        return self.two(torch.tanh(self.one(y)))


class Counting(nn.Module):
    """A field, counting its evaluations."""

    def __init__(self, field: Mlp) -> None:
        super().__init__()
        self.field, self.evaluations = field, 0

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """The slope."""
        self.evaluations += 1
        return self.field(t, y)


class Operations(TorchDispatchMode):
    """Counts operations, and those that read a number on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.count = self.reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count and run."""
        self.count += 1
        self.reads += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)
        return func(*args, **(kwargs or {}))


def rows() -> Iterator[dict[str, Any]]:
    """One row a library and a size."""
    torch.set_num_threads(1)
    torch._inductor.config.force_disable_caches = True  # else the first solve would be that of an earlier run
    for batch, width, hidden, horizon in SIZES:
        torch.manual_seed(0)
        field, y0 = Mlp(width, hidden), torch.randn(batch, width)
        found = libraries(field, y0, horizon)
        firsts = {name: waited(solve) for name, solve in found.items()}
        counting = Counting(field)
        counts = {name: counted(counting, solve) for name, solve in libraries(counting, y0, horizon).items()}
        counts |= {name: (counts[name.partition(",")[0]][0], None, None) for name in found if "compiled" in name}
        ratios: dict[str, list[float]] = {name: [] for name in found}
        for _ in range(21):
            for name, solve in found.items():
                ratios[name].append(seconds(solve) / seconds(bare(field, y0, counts[name][0])))
        for name in found:
            evaluations, operations, reads = counts[name]
            steps = (evaluations - 2) / 6
            yield {
                "library": name,
                "batch x width, hidden": f"{batch} x {width}, {hidden}",
                "evaluations": evaluations,
                "steps tried": steps,
                "seconds over those of f": statistics.median(ratios[name]),
                "goal": GOALS.get((name, width), ""),
                "operations a step": "" if operations is None else operations / steps,
                "host reads a step": "" if reads is None else reads / steps,
                "first solve, s": firsts[name],
            }


def libraries(field: nn.Module, y0: Tensor, horizon: float) -> dict[str, Callable[[], object]]:
    """A solve by each."""
    control = PIDController(max_steps=100_000)
    times = torch.tensor([0.0, horizon])
    tolerances = {"rtol": TOLERANCE, "atol": TOLERANCE}
    own = {"t1": horizon, "solver": "dopri5", "control": control, **tolerances}
    theirs = {"method": "dopri5", "options": {"dtype": torch.float32}, **tolerances}
    found: dict[str, Callable[[], object]] = {
        "odenet": lambda: odenet_torch.solve(field, y0, **own),
        "torchdiffeq": lambda: torchdiffeq.odeint(field, y0, times, method="dopri5", **tolerances),
        "torchdiffeq, float32 times": lambda: torchdiffeq.odeint(field, y0, times, **theirs),
    }
    if not isinstance(field, Counting):
        faster = torch.compile(field)
        found["odenet, compiled"] = lambda: odenet_torch.solve(field, y0, compile=True, **own)
        found["torchdiffeq, f compiled"] = lambda: torchdiffeq.odeint(faster, y0, times, **theirs)
    if importlib.util.find_spec("torchode") is not None:
        import torchode

        term = torchode.ODETerm(lambda t, y: field(t, y.view_as(y0)).reshape(1, -1))
        solver = torchode.AutoDiffAdjoint(
            torchode.Dopri5(term=term), torchode.IntegralController(atol=TOLERANCE, rtol=TOLERANCE, term=term)
        )
        problem = torchode.InitialValueProblem(
            y0=y0.reshape(1, -1), t_start=torch.zeros(1), t_end=torch.full((1,), horizon)
        )
        found["torchode"] = lambda: solver.solve(problem)
    return found


def bare(field: nn.Module, y0: Tensor, count: int) -> Callable[[], object]:
    """That many evaluations of f."""
    t = torch.zeros(())

    def run() -> None:
        for _ in range(count):
            field(t, y0)

    return run


def seconds(run: Callable[[], object]) -> float:
    """Of one call without gradients."""
    with torch.no_grad():
        run()  # what another library has left in the processor's caches is not this one's cost
        start = time.thread_time()
        run()
        return time.thread_time() - start


def waited(run: Callable[[], object]) -> float:
    """Seconds on the clock of a call without gradients."""
    start = time.perf_counter()
    with torch.no_grad():
        run()
    return time.perf_counter() - start


def counted(field: Counting, solve: Callable[[], object]) -> tuple[int, int, int]:
    """Evaluations of f, operations beyond them, and host reads."""
    with torch.no_grad():
        solve()
        field.evaluations = 0
        with Operations() as whole:
            solve()
        evaluations = field.evaluations
        with Operations() as own:
            bare(field, torch.zeros(1, field.field.one.in_features), evaluations)()
    return evaluations, whole.count - own.count, whole.reads
