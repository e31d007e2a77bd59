"""`gradient="auto"`: passes that are exact, in whose backward pass other methods are measured on the very same batch.

The exact backward pass is that of checkpointing. It knows y0, the weights and the cotangent of the loss, so that
another method can be run there on the same pass: its solve is begun anew from y0, with the random state and the buffers
of the forward pass, and leaves nothing behind. What is returned is the exact gradient.

Over 250 lines: one backward pass, in which each method is begun anew, measured and judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from odenet import (
    Auditor,
    Backprop,
    Checkpoint,
    Gradient,
    Plan,
    Problem,
    Profile,
    ReversibleSolver,
    Solution,
    Span,
    Stats,
)
from odenet.kit import Leaves as AnyLeaves
from odenet.kit import Way, tree_leaves
from odenet_torch._entry import backend
from odenet_torch.field.differentiating import several_at_once
from odenet_torch.field.field import Field, FunctionField
from odenet_torch.field.state import Leaves
from odenet_torch.gradients import accepted_steps
from odenet_torch.gradients.adjoint import Adjoint, SavedStates, Sums
from odenet_torch.gradients.checkpoint import Recomputation
from odenet_torch.gradients.profiles import Groups, measurable, profiles
from odenet_torch.gradients.repeated_pass import ForwardSnapshot, Make, RepeatedPass
from odenet_torch.gradients.solve import solve_problem
from odenet_torch.gradients.stages import advance
from odenet_torch.steps.adaptive import Back
from odenet_torch.steps.fixed import Run, Solve

_READ = 16
"""On a device whose numbers are waited for, the certificate is read after every 16th pass."""


def solve_auto(auditor: Auditor, make: Make, field: Field | None, last: Stats | None) -> Solution:
    """A solve by what was chosen, or an exact one in whose backward pass is planned or audited.

    Args:
        auditor: of the module.
        make: the problem, with a gradient method.
        field: as for `solve_problem`.
        last: of the solve before this one.
    """
    if not torch.is_grad_enabled():
        return solve_problem(make(Backprop()), field)  # the loop alone
    residual = None if last is None else last.residual
    if residual is not None and not several() and (residual.device.type == "cpu" or auditor.passes % _READ == 0):
        auditor.certified(float(residual))
    if auditor.due:
        problem = make(Backprop())
        whole_field = field or FunctionField(problem.field, problem.weights)
        exact = auditor.exact(problem.grid.steps if not isinstance(problem.grid, Span) else 1)
        heard = AuditedPass(auditor, make, whole_field, ForwardSnapshot.of(problem, whole_field))
        way = Way(heard.fixed, heard.adaptive)
        # the backward pass that measures takes steps of y alone, and a reversible solver carries more than y
        alone = exact.offered(problem.solver) and not isinstance(problem.solver, ReversibleSolver)
        return solve_problem(make(exact if alone else Backprop()), whole_field, way)
    assert auditor.method is not None  # not due
    solution = solve_problem(make(auditor.method), field)
    for leaf in tree_leaves(solution.ys):
        if leaf.requires_grad:
            leaf.register_hook(_Counted(auditor))
            break
    return solution


@dataclass(frozen=True)
class _Counted:
    """Called with a cotangent: a backward pass."""

    auditor: Auditor

    def __call__(self, _: Tensor) -> None:
        self.auditor.counted()


class AuditedPass:
    """An exact pass, whose backward pass plans or audits.

    Args:
        auditor: what is told.
        make: the problem, with a gradient method.
        field: of the problem.
        before: the forward pass.
    """

    def __init__(self, auditor: Auditor, make: Make, field: Field, before: ForwardSnapshot) -> None:
        self.auditor, self.make, self.field, self.before = auditor, make, field, before

    def fixed(self, problem: Problem, stats: Stats) -> Solve:
        """A solve in equal steps whose gradient is checked against the exact one."""
        return self._adjoint(problem, stats).solve

    def adaptive(self, problem: Problem, stats: Stats) -> Back:
        """The backward pass over accepted steps whose gradient is checked against the exact one."""
        adjoint = self._adjoint(problem, stats)
        return lambda forward, y0: accepted_steps.solve(adjoint, forward, y0)

    def _adjoint(self, problem: Problem, stats: Stats) -> Adjoint:
        if isinstance(problem.gradient, Checkpoint):
            return AuditedRecomputation(problem.gradient, stats, self)
        return AuditedBackprop(stats, self)

    def heard(self, run: Run, y0: Leaves, gradients: dict[int, AnyLeaves], g: Leaves, sums: Sums) -> Tensor | None:
        """Plan or audit; afterwards the pass is counted.

        Args:
            run: the solve.
            y0: where it began.
            gradients: of the loss with respect to the states that were returned, by index.
            g, sums: the exact gradient, with respect to y0 and the weights.

        Returns:
            The certificate of the method audited, where it has one.
        """
        auditor = self.auditor
        try:
            if not auditor.due:  # another pass of the same backward pass was first
                return None
            if several_at_once(g):  # which cannot be measured; a later pass is
                return None
            trial = RepeatedPass(self.make, self.field, self.before, run, y0, gradients)
            exact = trial.groups(g, [sums.so_far(tensor) for tensor in trial.tensors])
            if not agreed([float(measurable(exact))], least=True)[0]:
                auditor.unmeasurable()
                return None
            if auditor.method is None:
                auditor.planned(self._plan(trial, exact))
                return None
            (row,), _ = profiles([auditor.method], trial, exact, y0[0].device, repeats=0)
            (row,) = shared((row,))
            auditor.judge(row, lambda: self._plan(trial, exact))
            return None if row.certificate is None else torch.tensor(row.certificate, dtype=run.layout.time)
        finally:
            auditor.counted()

    def _plan(self, trial: RepeatedPass, exact: Groups) -> Plan:
        auditor, problem = self.auditor, self.make(Backprop())
        methods = auditor.candidates(backend, problem.solver, trial.steps, adaptive=isinstance(problem.grid, Span))
        dtype = str(trial.y0[0].dtype).removeprefix("torch.")

        def measured(methods: Sequence[Gradient], memory: int | None, repeats: int) -> tuple[Sequence[Profile], str]:
            rows, counted = profiles(methods, trial, exact, self.before.device, memory=memory, repeats=repeats)
            return shared(rows), counted

        limit = None if several() else auditor.auto.memory  # all processes run all of each method
        where = ("torch", problem.solver, trial.steps, dtype)
        return auditor.plan_of(where, measured(methods, limit, 3), lambda stopped: measured(stopped, None, 1)[0])


class AuditedRecomputation(Recomputation):
    """Checkpointing that tells a `AuditedPass` what it found."""

    def __init__(self, method: Checkpoint, stats: Stats, heard: AuditedPass) -> None:
        super().__init__(method, stats)
        self.heard = heard

    def solve(self, run: Run, y0: Leaves) -> Leaves:
        """By a backward pass of our own, which alone sees the cotangents and the gradient."""
        return Adjoint.solve(self, run, y0)

    def back(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, run: Run, saved: SavedStates, gradients: dict[int, AnyLeaves], sums: Sums
    ) -> Leaves:
        y0 = saved.states[0]
        g = advance(super().back(run, saved, gradients, sums))  # all at once: what is compared is the whole gradient
        assert g is not None  # it went to the start
        self.stats.residual = self.heard.heard(run, y0, gradients, g, sums)
        return g


class AuditedBackprop(Adjoint):
    """For solvers that do not go with checkpointing: backprop from y0, all of it in the backward pass."""

    by_steps = False

    def __init__(self, stats: Stats, heard: AuditedPass) -> None:
        super().__init__(stats)
        self.heard = heard

    def keeps(self, run: Run) -> Any:
        return (0, run.grid.steps)

    def back(self, run: Run, saved: SavedStates, gradients: dict[int, AnyLeaves], sums: Sums) -> Leaves:
        y0 = saved.states[0]
        heard = self.heard
        trial = RepeatedPass(heard.make, heard.field, heard.before, run, y0, gradients)
        gradients_of, _ = trial(Backprop())
        sums.add(trial.tensors, gradients_of["weights"])
        by_input = iter(gradients_of["input"])
        needed = [leaf.requires_grad for leaf in tree_leaves(self.heard.make(Backprop()).y0)]
        g = tuple(
            torch.zeros_like(y) if part is None else part.to(y.dtype)
            for y, part in zip(y0, (next(by_input) if need else None for need in needed), strict=True)
        )
        self.stats.residual = self.heard.heard(run, y0, gradients, g, sums)
        return g


def shared(rows: tuple[Profile, ...]) -> tuple[Profile, ...]:
    """The rows as all processes of a training agree on them: the largest numbers of any."""
    if not several():
        return rows
    names = ("seconds", "peak_bytes", "gradient_error", "certificate")
    gone = float("-inf")
    numbers = [gone if (value := getattr(row, name)) is None else float(value) for row in rows for name in names]
    numbers += [float(row.trouble is not None) for row in rows]
    largest = agreed(numbers)
    agreed_rows = []
    for i, row in enumerate(rows):
        values = {
            name: None if value == gone else value
            for name, value in zip(names, largest[i * len(names) : (i + 1) * len(names)], strict=True)
        }
        peak = values["peak_bytes"]
        failed = bool(largest[len(rows) * len(names) + i])
        trouble = row.trouble or ("it failed in another process" if failed else None)
        agreed_rows.append(
            Profile(row.gradient, **{**values, "peak_bytes": None if peak is None else int(peak)}, trouble=trouble)
        )
    return tuple(agreed_rows)


def several() -> bool:
    """Whether this is one of several processes of a training."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def agreed(numbers: list[float], *, least: bool = False) -> list[float]:
    """The largest of each number over all processes (NaN where one has it), or the least.

    All processes of the default group have to come here, as they have to for the gradients of data parallelism.
    """
    if not several():
        return numbers
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
    sent = torch.tensor(numbers, dtype=torch.float64, device=device)
    unknown = sent.isnan().to(torch.float64)
    sent = sent.nan_to_num(nan=0.0, posinf=float("inf"), neginf=float("-inf"))
    dist.all_reduce(sent, op=dist.ReduceOp.MIN if least else dist.ReduceOp.MAX)
    dist.all_reduce(unknown, op=dist.ReduceOp.MAX)
    return [float("nan") if nan else value for value, nan in zip(sent.tolist(), unknown.tolist(), strict=True)]
