"""The adjoints: gradient methods that go back in depth from the last state and rebuild the others.

Over 250 lines, most of them docstrings: two records, each with what its certificate means.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from odenet._check import tolerance_or_none, whole, within, yes_or_no
from odenet._errors import GradientError, InputError, shown
from odenet._gradients.record import Cost, Gradient
from odenet._literals import SolverName
from odenet._names import choice
from odenet._solvers.names import AnySolver, solver
from odenet._solvers.runge_kutta import Solver

_UNDOES_NOTHING = (
    "take gradient='checkpoint', which undoes nothing; or smaller steps, anchors, a larger limit or tolerance"
)
_PREDICTORS = ("reverse", "extrapolate")


@dataclass(frozen=True)
class DiscreteAdjoint(Gradient):
    """Solve backwards: reconstruct y[n] from y[n+1], and take the exact VJP of step n at the reconstructed point.

    Sander, Ablin and Peyre 2022, section 4.1, and beyond: the VJP's own forward pass at the predicted point z gives
    D(z), and `y[n] = y[n+1] - D(z)` is one order closer to the true state than z was, at no cost.

    Args:
        correct: take that correction (the default); False is the paper's method.
        iterations: evaluations of the increment that predict z: one reversed step, then `iterations - 1` times
            `z <- y[n+1] - D(z)`. Each gains an order while h Lip(f) < 1.
        predictor: "reverse", the reversed step of the paper; or "extrapolate": z = y[n+1] minus an increment that is
            extrapolated from those of the steps after n, without evaluating f. The first `order` steps of the backward
            pass, which have too few increments for that, are reversed, with `order - 1` iterations.
        order: of the extrapolation, 1 to 4: the number of increments that it uses. The error is O(N^-(order+1)) where
            weights are smooth in depth, and O(1/N) where they are not.
        anchors: keep every K-th state exactly, and continue from it: the VJP of its step is exact and needs no
            prediction. None keeps none.
        tolerance: repeat `z <- y[n+1] - D(z)` in each step until the residual |y[n+1] - z - D(z)| / |y[n+1]| of every
            row is at most this; a GradientError if `limit` evaluations do not reach it, or if the certificate, which
            includes the accumulated error of all steps, is larger. Transfers a number to the host in torch.
        limit: the largest number of evaluations per step, with `tolerance`.
    """

    correct: bool = True
    iterations: int = 1
    predictor: str = "reverse"
    order: int = 2
    anchors: int | None = None
    tolerance: float | None = None
    limit: int = 32

    name = "discrete-adjoint"
    summary = "rebuild each state from the next by running the solver backwards; memory independent of depth"
    exactness = "O(h^p), one order better corrected"
    formula = ("N s", "(m+1) N s", "N s", "1")
    variants: ClassVar = {
        "predictor=extrapolate": ("N s", "(N+k max(1,k-1)) s", "N s", "1"),
        "anchors=K": ("N s", "(N+m (N-(N-1)//K)) s", "N s", "1+(N-1)//K"),
        "tolerance=T": ("N s", "(L+1) N s", "N s", "1"),
    }
    notable = ("correct=no", "iterations=2", "predictor=extrapolate")
    certifies = True

    def __post_init__(self) -> None:
        yes_or_no("correct", self.correct)
        whole("iterations", self.iterations)
        object.__setattr__(self, "predictor", choice("predictor", self.predictor, _PREDICTORS))
        whole("order", self.order, 1, 4)
        if self.anchors is not None:
            whole("anchors", self.anchors)
        whole("limit", self.limit)
        if self.order != 2 and not self.extrapolates:
            raise InputError(
                f"order={self.order} of discrete-adjoint without extrapolation", "predictor=extrapolate with order"
            )
        if self.limit != 32 and self.tolerance is None:
            raise InputError(f"limit={self.limit} of discrete-adjoint without a tolerance", "limit with tolerance=")
        tolerance_or_none(self.tolerance)

    @property
    def extrapolates(self) -> bool:
        """Whether increments are continued, rather than steps reversed."""
        return self.predictor == "extrapolate"

    @property
    def continued(self) -> tuple[float, ...]:
        """Weights of D[n+1], D[n+2], ... in the extrapolated D[n]: a polynomial through them (Newton, Gregory)."""
        return {1: (1.0,), 2: (2.0, -1.0), 3: (3.0, -3.0, 1.0), 4: (4.0, -6.0, 4.0, -1.0)}[self.order]

    @property
    def startup(self) -> int:
        """Evaluations of the increment that predict z in each of the first `order` steps, extrapolating."""
        return max(1, self.order - 1, self.iterations)

    def stuck(self, step: str, residual: str) -> GradientError:
        """The error of a step that cannot be undone to the tolerance.

        Args:
            step: which, in words.
            residual: what was reached, in words: "went from 1e-2 to 1e-3".
        """
        return GradientError(
            f"{step} cannot be undone to tolerance={self.tolerance}: after {self.limit} evaluations the residual "
            f"{residual}",
            "steps with h Lip(f) < 1, whose inversion by iteration converges",
            _UNDOES_NOTHING,
        )

    def grown(self, reached: str) -> GradientError:
        """The error of a solve whose states miss the tolerance although each step met it.

        Args:
            reached: the certificate, in words.
        """
        return GradientError(
            f"rebuilt states are off by {reached} with tolerance={self.tolerance}, although each step was "
            "undone to that: the remaining errors grow in the backward pass",
            "networks whose reversed steps amplify errors little",
            _UNDOES_NOTHING,
        )

    def offered(self, solver: AnySolver) -> bool:
        """Methods whose increments odenet takes itself."""
        return isinstance(solver, Solver)

    def anchored(self, steps: int) -> tuple[int, ...]:
        """The indices of the states kept as anchors."""
        return () if self.anchors is None else tuple(range(self.anchors, steps, self.anchors))

    def cost(self, solver: AnySolver, steps: int) -> Cost:
        """With `tolerance`, `f_backward` is the most it can be."""
        evaluations, anchored = solver.evaluations(steps), self.anchored(steps)
        early = steps - self.order if self.extrapolates else 0
        later = self.startup if self.extrapolates else self.iterations
        known = set(anchored)
        predicted = sum(later if n >= early else self.iterations - 1 for n in range(steps) if n not in known)
        if self.tolerance is not None:
            predicted = max(predicted, self.limit * (steps - len(anchored)))
        assert isinstance(solver, Solver)  # a pair that is offered
        return Cost(evaluations, (predicted + steps) * solver.stages, evaluations, 1 + len(anchored))

    def estimate(self, certificate: float | None, steps: int) -> float | None:
        """The certificate, which includes the accumulated error at the end of the backward pass."""
        return certificate


@dataclass(frozen=True)
class ContinuousAdjoint(Gradient):
    """Solve the adjoint ODE `a' = -(df/dy)^T a` backwards together with y: the gradient of the limit, not the network.

    Pontryagin 1962; Chen et al. 2018, appendix B. It is O(h^p) away from the network's own gradient, which is a
    result to look at and not an error of the implementation.

    With equal steps its certificate (`Stats.certificate`) says how far: what the backward pass added over a step is
    compared with the exact VJP of that step of the network, at the rebuilt state and with the costate that arrives at
    the end of the step. Two steps are: the first, and of the others the one in which the forward pass moved the state
    furthest, beside its size (that of a large block, or around a moment when the field is fast). The certificate is
    the relative difference of the change of the costate or of the gradient of the weights, whichever is larger, and on
    top of it a third of the relative error of the rebuilt y[0] (a few sums of its rows are kept to know it by): both
    steps are compared at states as they were rebuilt. That takes two
    VJPs of a step more, and keeps no state; in torch, where blocks of several kinds alternate, the first step of each
    kind is compared, up to four, and one of the others. Where the backward pass has a step count of its own, the
    comparison is over two of the `segment`s, whose ends both grids have, and the states between are kept while it
    runs; where these have more than 16 steps, the rebuilt y[0] alone is compared.

    Where f jumps, as where two to four numbers are normalised together, two steps tell little: the whole gradient is
    compared with that of the discrete adjoint, and a third of the certificate of that counts, too. It takes three
    evaluations and a VJP of each step, and the memory of a second costate and of second gradients of weights.

    Of adaptive solves, rtol and atol bound the error of a backward step, and not how far y, as integrated back, drifts.
    Where y is known, at t0 and at the times that were kept, `a^T df/dy` and `a^T df/dw` are compared with those at what
    was integrated back: what their difference makes of the costate, or of the gradient of the weights, is the
    certificate, or what the steps leave of the costate, if that is more (`odenet.kit.LocalError`). It takes one to
    three VJPs of the field more, a few times in a backward pass. Where f jumps, the certificate is the relative error
    of the whole gradient beside the exact one of the accepted steps, which run again from 16 kept states.

    Args:
        solver: of the backward solve, a Runge-Kutta method; None takes that of the forward solve.
        steps: of the backward solve; None takes as many as the forward solve.
        interpolate: read y from the kept forward states (between them, the cubic Hermite interpolant) instead of
            integrating it back: stable where y' = f is not stable backwards. The backward solve then has the forward
            solve's steps. Not for adaptive solves.
        rtol, atol: tolerances of the backward solve of an adaptive solve, for y and its adjoint; None takes those of
            the forward solve. For the adjoint, atol is in units of the adjoint's size, the root of its mean square: c
            times the loss has c times the gradient.
        seminorm: leave the gradient of the weights out of the error that the backward steps follow: it is a
            quadrature, whose errors do not spread (Kidger, Chen, Lyons 2021). False includes it.
    """

    solver: SolverName | Solver | None = None
    steps: int | None = None
    interpolate: bool = False
    rtol: float | None = None
    atol: float | None = None
    seminorm: bool = True

    name = "continuous-adjoint"
    summary = "solve the adjoint ODE backwards; the gradient of the limit ODE"
    exactness = "of the ODE: O(h^p) from the network's"
    formula = ("N s", "M s' + 2 (2 d-1) s", "M s' + 2 d s", "1")
    variants: ClassVar = {"interpolate=yes": ("N s", "N (s'+i) + 2 s", "N s' + 2 s", "N+1")}
    certifies = True

    def __post_init__(self) -> None:
        if self.solver is not None and not isinstance(solver(self.solver), Solver):
            raise InputError(f"solver={shown(self.solver)} of the continuous adjoint", "an explicit Runge-Kutta method")
        if self.steps is not None:
            whole("steps", self.steps, of="the continuous adjoint")
        yes_or_no("interpolate", self.interpolate)
        yes_or_no("seminorm", self.seminorm)
        for key in ("rtol", "atol"):
            value = getattr(self, key)
            if value is not None:
                within(key, value, 0.0, least=True, of="the continuous adjoint")

    def backward(self, forward: AnySolver, steps: int) -> tuple[Solver, int]:
        """Solver and step count of the backward solve."""
        record = solver(self.solver) if self.solver is not None else forward
        assert isinstance(record, Solver)  # a pair that is offered
        return record, self.steps or steps

    def segment(self, steps: int) -> tuple[int, int]:
        """The steps of the forward and of the backward solve between two neighbouring times that both grids have;
        none of either where that is too far to keep the states between."""
        backward_steps = self.steps or steps
        common = math.gcd(steps, backward_steps)
        compared = steps // common
        return (compared, backward_steps // common) if compared <= _MOST_COMPARED else (0, 0)

    def compared(self, steps: int) -> int:
        """How many such segments are compared: the first, and of the others the one that moves the state furthest."""
        length, _ = self.segment(steps)
        return min(2, steps // length) if length else 0

    def between(self, forward: AnySolver) -> bool:
        """Whether a backward step reads y between two kept states."""
        back, _ = self.backward(forward, 1)
        return self.interpolate and any(0 < node < 1 for node in back.tableau.c[: back.stages])

    def cost(self, solver: AnySolver, steps: int) -> Cost:
        back, backward_steps = self.backward(solver, steps)
        evaluations = backward_steps * back.stages
        slopes = backward_steps if self.between(solver) else 0  # at the start of each step
        states = steps + 1 if self.interpolate else 1
        length, _ = self.segment(steps)
        segments = self.compared(steps)
        assert isinstance(solver, Solver)  # a pair that is offered
        return Cost(
            solver.evaluations(steps),
            evaluations + slopes + segments * (2 * length - 1) * solver.stages,
            evaluations + segments * length * solver.stages,
            states,
            look=solver.stages,
        )

    def estimate(self, certificate: float | None, steps: int) -> float | None:
        """The certificate: the error of the gradient of the first step, where y has drifted furthest, or of the step
        that moves y furthest, or of that drift; of an adaptive solve what the drift makes of the whole gradient."""
        return certificate


_MOST_COMPARED = 16
"""Steps of the forward solve whose gradient is compared with the exact one: their states are kept."""
