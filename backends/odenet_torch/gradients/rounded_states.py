"""Checkpointing with states in few bits: each increment is kept as whole numbers times a scale a row.

The code is that of differential quantisation (Cutler 1952, US patent 2605361): the forward pass keeps the rounded chain
`z[n+1] = z[n] + Q(y[n+1] - z[n])`, z[0] = y[0], and the backward pass takes the same increments off z[N]. What one
increment loses is in the next one, so that z[n] is off by the rounding of one increment, however many steps follow.

Where a step makes a row less than half as large as its increment, which would be rounded too coarsely for it, the chain
of that row restarts: the row itself is kept in the increment's place, z[n+1] = Q(y[n+1]), and its scale is negative.
Going back, z[n] is then made from y[0] on by what is kept, without f: sums of n increments.

Where f sees y rounded to 16 bits and nothing but y (a state of half precision, and one stage), that is kept instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from odenet import Checkpoint, Problem, Stats
from odenet.kit import Leaves as AnyLeaves
from odenet_torch.field.state import Leaves
from odenet_torch.gradients import checkpoint
from odenet_torch.gradients.adjoint import Adjoint, SavedStates, zeros
from odenet_torch.gradients.certificate import jumping, sized_rows
from odenet_torch.gradients.stages import Steps
from odenet_torch.gradients.sums import Sums
from odenet_torch.steps.fixed import Run, Solve, loop

_KINDS = {8: torch.int8, 16: torch.int16}


class Chain:
    """One leaf of the state as a chain of rounded increments.

    Args:
        method: one with bits.
        y0: the leaf at t0.
        steps: how many increments will follow.
    """

    def __init__(self, method: Checkpoint, y0: Tensor, steps: int) -> None:
        assert method.bits is not None
        self.most = 2 ** (method.bits - 1) - 1
        self.z, self.rows = _real(y0), rows(method, y0)
        # of a scale in 8 bits no more than a part in 500 is lost, and the rounded chain is made with what is left
        short = method.bits == 8 and self.z.dtype == torch.float32
        kind, device = torch.bfloat16 if short else self.z.dtype, y0.device
        shape = (steps, *self.z.shape[: self.z.ndim - len(self.rows)], *(1 for _ in self.rows))
        self.codes = torch.empty((steps, *self.z.shape), dtype=_KINDS[method.bits], device=device)
        self.scales = torch.empty(shape, dtype=kind, device=device)
        self.error = torch.zeros((), dtype=self.z.dtype, device=device)

    def take(self, n: int, y: Tensor) -> None:
        """Keep the increment of step n, which ends at y."""
        y = _real(y)
        if n:
            self.error = torch.maximum(self.error, self.known)
        lost = y - self.z
        of_lost, of_y = (torch.linalg.vector_norm(x, math.inf, self.rows, keepdim=True) for x in (lost, y))
        restart = 2 * of_y < of_lost
        scale = torch.where(restart, of_y, of_lost).div_(self.most).clamp_min_(torch.finfo(y.dtype).tiny)
        self.scales[n] = torch.where(restart, -scale, scale)
        unit = self.scales[n].to(y.dtype).abs()
        # NaN and infinity stay in the scale
        code = (torch.where(restart, y, lost) / unit).round_().clamp_(-self.most, self.most)
        self.codes[n] = code
        self.z = torch.where(restart, 0, self.z) + code.mul_(unit)
        self.known = relative(y - self.z, y, self.rows)  # of the next step's VJP; none is taken at the last state


class HalfPrecisionChain:
    """One leaf of the state as f sees it, with the same attributes and calls as a chain.

    Args:
        y0: the leaf at t0, in the number type that it is carried in.
        kind: the number type that f sees, of 16 bits.
        steps: how many increments will follow.
    """

    def __init__(self, y0: Tensor, kind: torch.dtype, steps: int) -> None:
        self.z = y0
        self.codes = torch.empty((steps, *y0.shape), dtype=kind, device=y0.device)
        self.scales = torch.empty((steps, 0), dtype=kind, device=y0.device)
        self.error = torch.zeros((), dtype=y0.dtype, device=y0.device)

    def take(self, n: int, y: Tensor) -> None:
        """Keep the leaf that step n starts at; it ends at y."""
        self.codes[n] = self.z
        self.z = y


class RoundedStates(Adjoint):
    """Back from the rounded state at the end, an increment at a time."""

    def __init__(self, method: Checkpoint, stats: Stats) -> None:
        super().__init__(stats)
        self.method = method

    def keeps(self, run: Run) -> Iterable[int]:
        return (0,)

    def forth(self, run: Run, y0: Leaves) -> tuple[dict[int, Leaves], tuple[Leaves, ...]]:
        halves = self.method.bits == 16 and run.solver.stages == 1
        chains = [
            HalfPrecisionChain(leaf, kind, run.grid.steps)
            if halves and kind.itemsize == 2
            else Chain(self.method, leaf, run.grid.steps)
            for leaf, kind in zip(y0, run.layout.dtypes, strict=True)
        ]

        def on_step(n: int, y: Leaves) -> None:
            for chain, leaf in zip(chains, y, strict=True):
                chain.take(n, leaf)

        states, _ = loop(run, y0, self.keeps(run), on_step)
        columns = [(chain.z, chain.codes, chain.scales, chain.error) for chain in chains]
        return states, tuple(zip(*columns, strict=True))

    def back(self, run: Run, saved: SavedStates, gradients: dict[int, AnyLeaves], sums: Sums) -> Steps:
        ends, codes, scales, errors = saved.pair
        y0, z = saved.states[0], ends
        starts = tuple(_real(leaf) for leaf in y0)
        restarted = restarts(scales)
        g = gradients.get(run.grid.steps) or zeros(y0)
        for n in reversed(range(run.grid.steps)):
            z = tuple(map(_before, z, codes, scales, [n] * len(z)))
            if n in restarted:
                z = tuple(map(_otherwise, z, starts, codes, scales, [n] * len(z)))
            y = tuple(_like(leaf, first) for leaf, first in zip(z, y0, strict=True)) if n else y0
            g = checkpoint.Recomputation.step(run, n, y, g, gradients.get(n), sums)
            yield n
        self.stats.residual = self.certified(z, y0, ends, errors, bool(jumping(run))).to(run.layout.time)
        return g

    def certified(self, z: Leaves, y0: Leaves, ends: Leaves, errors: Leaves, jumps: bool) -> Tensor:
        """The certificate: what the forward pass knows, and how far rounding has carried the backward pass from y0.

        Where f jumps, a part e of all jumps lies between two states that are a part e apart. On which side of these a
        state is, is a matter of chance, whose error is the root of their part.

        Raises:
            GradientError: it is over the tolerance.
        """
        certificate = torch.zeros((), dtype=torch.float64, device=y0[0].device)
        for leaf, first, end, error in zip(z, y0, ends, errors, strict=True):
            start, axes = _real(first), rows(self.method, first)
            drift = relative(leaf - start, sized_rows(start, end, axes), axes)
            certificate = torch.maximum(certificate, (error + drift).to(certificate.dtype))
        certificate = certificate.sqrt() if jumps else certificate
        tolerance = self.method.tolerance
        if tolerance is not None and not (reached := float(certificate)) <= tolerance:
            raise self.method.off(reached)
        return certificate


def rows(method: Checkpoint, leaf: Tensor) -> tuple[int, ...]:
    """The axes of a leaf's rows; real and imaginary part of a number, which make one axis more, are of one row."""
    return tuple(range(-method.row(leaf.shape) - leaf.is_complex(), 0))


def relative(defect: Tensor, y: Tensor, axes: tuple[int, ...]) -> Tensor:
    """The largest |defect| / |y| of a row, Euclidean; 0 where there is no row."""
    if not y.numel():
        return y.new_zeros((), dtype=y.abs().dtype)
    sizes = torch.linalg.vector_norm(y, dim=axes) if axes else y.abs()
    wrong = torch.linalg.vector_norm(defect, dim=axes) if axes else defect.abs()
    return (wrong / sizes.clamp_min(torch.finfo(y.dtype).tiny)).amax()


def restarts(scales: Leaves) -> set[int]:
    """The steps in which the chain of a row restarted; read on the host, once."""
    restarted = torch.stack(
        [(scale < 0).reshape(len(scale), math.prod(scale.shape[1:])).any(1) for scale in scales]
    ).any(0)
    return set(restarted.nonzero().flatten().tolist())


def _before(z: Tensor, codes: Tensor, scales: Tensor, n: int) -> Tensor:
    """The rounded leaf before step n, from that after it."""
    return codes[n].to(z.dtype) if codes.is_floating_point() else z - codes[n] * scales[n].to(z.dtype)


def _otherwise(z: Tensor, start: Tensor, codes: Tensor, scales: Tensor, n: int) -> Tensor:
    """The same, where the chains of some rows restarted in step n: what was before it is made from t0 on."""
    if codes.is_floating_point():
        return z
    there = start
    for code, kept in zip(codes[:n], scales[:n].to(z.dtype), strict=True):
        there = torch.where(kept < 0, 0, there) + code * kept.abs()
    return torch.where(scales[n] < 0, there, z)


def _real(leaf: Tensor) -> Tensor:
    return torch.view_as_real(leaf.resolve_conj()) if leaf.is_complex() else leaf


def _like(leaf: Tensor, first: Tensor) -> Tensor:
    return torch.view_as_complex(leaf.contiguous()) if first.is_complex() else leaf


def fixed(problem: Problem, stats: Stats) -> Solve:
    """A solve in equal steps whose gradient is by checkpointing, of whole states or of rounded ones."""
    method = problem.gradient
    assert isinstance(method, Checkpoint)
    return checkpoint.fixed(problem, stats) if method.bits is None else RoundedStates(method, stats).solve
