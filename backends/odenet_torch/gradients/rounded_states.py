"""Checkpointing with states in few bits: each increment is kept as whole numbers times a scale a row.

The code is that of differential quantisation (Cutler 1952, US patent 2605361): the forward pass keeps the rounded chain
`z[n+1] = z[n] + Q(y[n+1] - z[n])`, z[0] = y[0], and the backward pass takes the same increments off z[N]. What one
increment loses is in the next one, so that z[n] is off by the rounding of one increment, however many steps follow.

Where a step makes a row less than half as large as its increment, which would be rounded too coarsely for it, the chain
of that row restarts: the row itself is kept in the increment's place, z[n+1] = Q(y[n+1]), and its scale is negative.
Going back, z[n] is then made from y[0] on by what is kept, without f: sums of n increments.

Where f jumps, an error of the states tells little of that of the gradient (`odenet_torch.field.jumps`): each VJP is
taken again, where the state is moved by as much as rounding may have moved it, and the certificate is what that
changes.

Where f sees y rounded to 16 bits and nothing but y (a state of half precision, and one stage), that is kept instead.

Over 250 lines: what is kept, how it is decoded, and what it does to gradients are of one form.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from odenet import Checkpoint, Problem, Stats
from odenet.kit import Leaves as AnyLeaves
from odenet.kit import add, scattered, subtract
from odenet_torch.field.state import Leaves
from odenet_torch.gradients import checkpoint
from odenet_torch.gradients.adjoint import Adjoint, SavedStates, mark, read, standing, vjp, zeros
from odenet_torch.gradients.certificate import StepErrors, certify, jumping, sized_rows
from odenet_torch.gradients.compared_steps import magnitude
from odenet_torch.gradients.known_ends import KnownEnds, Rounded
from odenet_torch.gradients.stages import Steps
from odenet_torch.gradients.sums import Parts, Sums
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

        def by(n: int, i: int, kept: Tensor) -> Tensor:
            return _rounded(kept, codes[i], scales[i], n)

        def like(leaves: Leaves) -> Leaves:
            return tuple([_like(leaf, first) for leaf, first in zip(leaves, y0, strict=True)])

        def nearby(n: int) -> Leaves:
            moved = _moved(z, codes, scales, n)
            return run.after(n, like(z if moved is None else moved))

        jumps, change = jumping(run), _Change(sums, run.layout.device)
        known = KnownEnds(run, self.stats, like(z), rounded=Rounded(by, nearby, jumps))
        g = gradients.get(run.grid.steps) or zeros(y0)
        for n in reversed(range(run.grid.steps)):
            z = tuple(map(_before, z, codes, scales, [n] * len(z)))
            if n in restarted:
                z = tuple(map(_otherwise, z, starts, codes, scales, [n] * len(z)))
            y = like(z) if n else y0
            moved = _moved(z, codes, scales, n) if n in jumps else None
            if moved is None:
                g = checkpoint.Recomputation.step(run, n, y, g, gradients.get(n), sums, known, y)
            else:
                other = _pulled(run, n, like(moved), g)
                here = _pulled(run, n, y, g, known)
                sums.add(*here[1:])
                change.add(run, here, other)
                g = add(here[0], gradients[n]) if n in gradients else here[0]
            known.keep(n, y)
            yield n
        known.over()
        self.certified(run, self.error(z, y0, ends, errors), change if jumps else None, known.strayed)
        return g

    def error(self, z: Leaves, y0: Leaves, ends: Leaves, errors: Leaves) -> Tensor:
        """What the forward pass knows, and how far rounding has carried the backward pass from y0."""
        error = torch.zeros((), dtype=torch.float64, device=y0[0].device)
        for leaf, first, end, known in zip(z, y0, ends, errors, strict=True):
            start, axes = _real(first), rows(self.method, first)
            drift = relative(leaf - start, sized_rows(start, end, axes), axes)
            error = torch.maximum(error, (known + drift).to(error.dtype))
        return error

    def certified(self, run: Run, certificate: Tensor, change: _Change | None, strayed: Sequence[Tensor] = ()) -> None:
        """Leave the certificate in the stats, and say it if it is large.

        Args:
            run: the forward solve.
            certificate: the largest error of a state.
            change: what moving the states changes, where f jumps.
            strayed: by what parts steps have missed their ends there.

        Raises:
            GradientError: it is over the tolerance.
        """
        if change is not None:
            # between two states that are a part e apart lies a part e of all jumps; on which side of these a state is,
            # is a matter of chance, whose error is the root of their part: more than a change that may have met none
            parts = [certificate.sqrt(), change.relative(), *strayed]
            certificate = torch.stack([part.to(certificate) for part in parts]).amax()
        errors, tolerance = StepErrors(run), self.method.tolerance
        errors.add(certificate, -1)
        worst = certify(self.stats, self.alarm if tolerance is None else None, errors, "rounded states")
        if tolerance is not None and not (reached := float(worst)) <= tolerance:
            raise self.method.off(reached)


_Pulled = tuple[Leaves, Sequence[Tensor], Sequence[Tensor | None]]
"""The costate before a step, the tensors that it reads, and what it adds to their gradients."""


def _pulled(run: Run, n: int, y: Leaves, g: AnyLeaves, known: KnownEnds | None = None) -> _Pulled:
    since = mark(run)
    at, explicit, stand = standing(run, n, y)
    with torch.enable_grad():
        d, outputs, cotangents = run.piece(n, at, stand, g)
    if known is not None and known.knows(n):
        known.reached(n, y, add(y, tuple(leaf.detach() for leaf in d)))
    part, weights, by_weights = vjp(read(run, n), n, outputs, at, explicit, stand, cotangents, since)
    return add(g, part), weights, by_weights


class _Change:
    """How much states that were moved have changed the backward pass: sums of squares over its steps.

    Args:
        sums: of the backward pass, of which those of weights that no lower step reads may be handed on before its end.
        device: of the state.
    """

    def __init__(self, sums: Sums, device: torch.device) -> None:
        self.sums = sums
        self.of_costate = self.of_weights = torch.zeros((), dtype=torch.float64, device=device)
        self.sizes: dict[Any, Tensor] = {}
        """The squares of the gradients of weights, as far as they have come."""

    def add(self, run: Run, here: _Pulled, moved: _Pulled) -> None:
        """One step more: what it makes of its costate, and what from where the state was moved to."""
        (costate, weights, by_weights), (other, others, by_others) = here, moved
        costates = _square(costate, self.of_costate)
        self.of_costate = self.of_costate + _part(_square(subtract(other, costate), costates), costates)
        parts: Parts = {}
        self.sums.collect(parts, others, by_others)
        self.sums.collect(parts, weights, by_weights, -1.0)
        self.of_weights = self.of_weights + _square(parts.values(), self.of_weights)
        for weight in weights:
            if (total := self.sums.total(weight)) is not None:
                self.sizes[self.sums.place(weight)] = _square((total,), self.of_weights)

    def relative(self) -> Tensor:
        """The relative error of the gradients that a change of this size is, of y0's or of all weights'."""
        sizes = sum(self.sizes.values(), torch.zeros_like(self.of_weights))
        return torch.maximum(self.of_costate, _part(self.of_weights, sizes)).sqrt()


def _part(square: Tensor, of: Tensor) -> Tensor:
    return torch.where(of > 0, square / of, 0.0)


def _square(leaves: Iterable[Tensor], like: Tensor) -> Tensor:
    return magnitude(leaves, like.device).square()


def _moved(z: Leaves, codes: Leaves, scales: Leaves, n: int) -> Leaves | None:
    """The rounded leaves before step n, each number moved as if by chance by up to twice what it may have been rounded
    by. None where none was: at t0, and where leaves are kept whole."""
    if not n or all(code.is_floating_point() for code in codes):
        return None
    moved, place = [], 0
    for leaf, code, scale in zip(z, codes, scales, strict=True):
        if not code.is_floating_point():
            # no random numbers are drawn for it, which the user's would be others after
            places = torch.arange(place, place + leaf.numel(), device=leaf.device) + n * _APART
            by = scattered(places).reshape(leaf.shape).to(leaf.dtype) / 2**30 - 1
            leaf = leaf + by * scale[n - 1].to(leaf.dtype).abs()
        moved.append(leaf)
        place += leaf.numel()
    return tuple(moved)


_APART = 0x9E3779B1
"""Places of one step are that far from those of the next."""


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


def _rounded(kept: Tensor, codes: Tensor, scales: Tensor, n: int) -> Tensor:
    """By how much a leaf after step n, or a sample of it, may be off together with that before it."""
    if codes.is_floating_point():
        return torch.finfo(codes.dtype).eps * torch.linalg.vector_norm(kept)
    units = scales[max(n - 1, 0) : n + 1].square().expand(-1, *codes.shape[1:]).sum(dtype=torch.float64)
    return (units * kept.numel() / max(codes[n].numel(), 1)).sqrt()


def _real(leaf: Tensor) -> Tensor:
    return torch.view_as_real(leaf.resolve_conj()) if leaf.is_complex() else leaf


def _like(leaf: Tensor, first: Tensor) -> Tensor:
    return torch.view_as_complex(leaf.contiguous()) if first.is_complex() else leaf


def fixed(problem: Problem, stats: Stats) -> Solve:
    """A solve in equal steps whose gradient is by checkpointing, of whole states or of rounded ones."""
    method = problem.gradient
    assert isinstance(method, Checkpoint)
    return checkpoint.fixed(problem, stats) if method.bits is None else RoundedStates(method, stats).solve
