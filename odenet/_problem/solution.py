"""What a solve returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, TypeVar

from odenet import _tree
from odenet._errors import InputError, UnsupportedError
from odenet._gradients.names import gradient


class Result(Enum):
    """How a solve ended; the value is the message."""

    SUCCESS = "success"
    EVENT = (
        "an event ended the solve before t1: Solution.event_t is its time, and y1 the state then; of times given as ts "
        "those after it are NaN"
    )
    NONFINITE = (
        "the solution is not finite: the field grew beyond the number type, or the step is too large for it; "
        "take more steps, or look at the field near the first time that is not finite"
    )
    MAX_STEPS = (
        "max_steps were tried without reaching t1: give PIDController a larger max_steps, or looser tolerances; "
        "a field that needs ever smaller steps is stiff, and wants an implicit solver "
        "(backend diffrax, solver kvaerno5)"
    )
    STEP_TOO_SMALL = (
        "the step size vanished beside t: the field has a jump or a singularity there (name jumps with jump_t), or "
        "the tolerances are below the rounding of the number type"
    )
    IMPLICIT = (
        "the equations of an implicit step could not be solved: take smaller steps (a smaller first_step or max_step, "
        "tighter tolerances), or look for a jump in the field"
    )
    EVENT_NAN = (
        "an event's condition is NaN, so that it is not known whether it has changed: let it return a number wherever "
        "the solve comes, its limit where there is one, and outside of its domain one of the sign that counts there"
    )

    @property
    def happened(self) -> str:
        """How the solve ended, in a few words."""
        return self.value.partition(": ")[0]

    @property
    def remedy(self) -> str:
        """What it means and what to do; empty where there is nothing to do."""
        return self.value.partition(": ")[2]


@dataclass
class Stats:
    """What a solve did.

    Args:
        backend, solver, gradient: by name, as used.
        steps: of the forward solve.
        f_evaluations: of the field in the forward solve.
        rejected: steps of an adaptive solve that were tried again with a smaller size; `steps` are those accepted.
        residual: set by a backward pass that knows of an error; see `certificate`.
    """

    backend: str
    solver: str
    gradient: str
    steps: Any
    f_evaluations: Any
    residual: Any = None
    rejected: Any = 0

    @property
    def accepted(self) -> Any:
        """The steps that were accepted: all of them, unless the solve is adaptive."""
        return self.steps

    @property
    def certificate(self) -> float | None:
        """The largest relative error of a reconstructed state that is known in the backward pass, over steps and rows.

        A row is a sample, or a position in a sequence or an image. In each step the error is the residual
        `|y[n+1] - z - D(z)| / |y[n+1]|` of the predicted state z, whose forward step should give y[n+1]. Where the
        exact state is known (at t0, at anchors and at saved times), it is the whole error of the reconstructed state.
        Above 0.1 there is a `GradientWarning`, too. NaN where states are not finite; None before a backward pass, or
        for a gradient method that reconstructs no states. With `checkpoint:bits=8` it is the largest relative error of
        a row of a stored state; with `continuous-adjoint` in equal steps the relative error of the first step's
        gradient, compared with the exact one of that step, or a third of the error of y(t0); of fields that
        jump, of the whole gradient, compared with the discrete adjoint's (`ContinuousAdjoint`).
        """
        residual = self.residual
        return None if residual is None else _on_host(lambda: float(residual), "Stats.certificate", "Stats.residual")

    @property
    def gradient_error_estimate(self) -> float | None:
        """The relative error `||g - g_backprop|| / ||g_backprop||` to expect of the whole gradient.

        It comes from the certificate alone (see `Gradient.estimate`) and is no bound: what was observed is in
        docs/how-to/diagnose-gradients.md. None where there is no certificate.
        """
        certificate = self.certificate
        return None if certificate is None else gradient(self.gradient).estimate(certificate, self.steps)


State = TypeVar("State")
Value = TypeVar("Value")


def _on_host(read: Callable[[], Value], name: str, remedy: str) -> Value:
    """What `read` returns.

    Raises:
        UnsupportedError: inside of `jax.jit`, `jax.vmap` or another transformation, where there are no numbers yet.
    """
    try:
        return read()
    except (TypeError, RuntimeError) as error:  # what frameworks say of an array that is traced
        raise UnsupportedError(
            f"{name} where the solution is traced (jax.jit, jax.vmap, torch.func)",
            "asking what such a function returned",
            f"within it, {remedy}",
        ) from error


@dataclass
class Solution(Generic[State]):
    """The solution of a solve. `Solution[Tensor]`, say, is that of a state that is one tensor.

    Args:
        ts: times kept, shape (T,), in the state's real number type (float32 for half precision).
        ys: the state's tree, each leaf with a leading time axis of length T. Where an event ended the solve before some
            of the times that were given as `ts`, NaN there (the state at the event: leave out ts, or `at(event_t)`
            with dense=True).
        stats: what it took.
        outcome: of an adaptive solve, the place of its result in `Result` (an array of them for several solves).
        event_t: when an event ended the solve, a scalar like `ts`; NaN where none has been met (`outcome` tells
            which rows of several), None without an event that was asked for.
        interpolant: what `at` evaluates, with dense=True.
    """

    ts: Any
    ys: State
    stats: Stats
    outcome: Any = None
    event_t: Any = None
    interpolant: Callable[[Any], State] | None = None

    @property
    def y1(self) -> State:
        """The state at the last time kept; of several solves (`jax.vmap`), each one's along the first axis.

        Raises:
            UnsupportedError: a solution of shapes alone, as `jax.eval_shape` returns it.
        """
        solves = (slice(None),) * (len(getattr(self.ts, "shape", (0,))) - 1)
        try:
            return _tree.map(lambda leaf: leaf[(*solves, -1)], self.ys)
        except TypeError as error:
            kinds = ", ".join(sorted({type(leaf).__name__ for leaf in _tree.leaves(self.ys)}))
            raise UnsupportedError(
                f"Solution.y1 of a solution whose leaves are no arrays ({kinds})",
                "a solution of arrays",
                "let the function itself return y1, as in jax.eval_shape(lambda y0: odenet.solve(...).y1, y0)",
            ) from error

    @property
    def result(self) -> Result:
        """How the solve ended (the worst of several). Looked up when asked, since it reads numbers on the host.

        Raises:
            UnsupportedError: inside of `jax.jit`, `jax.vmap` or another transformation, where there are no numbers yet.
        """
        return _on_host(
            self._result, "Solution.result", "Solution.outcome is the place of the result in odenet.Result, as an array"
        )

    def _result(self) -> Result:
        codes = list(Result)
        ended = Result.SUCCESS
        if self.outcome is not None:
            ended = codes[int(self.outcome.max()) if hasattr(self.outcome, "max") else int(self.outcome)]
        if ended not in (Result.SUCCESS, Result.EVENT):
            return ended
        # after an event there is no solution: NaN at the times that it did not reach
        lost = ended is Result.EVENT
        finite = all(
            bool(((leaf - leaf == 0) | (leaf != leaf) if lost else leaf - leaf == 0).all())
            for leaf in _tree.leaves(self.ys)
        )
        return ended if finite else Result.NONFINITE

    def at(self, t: Any) -> State:
        """The state at any time of an adaptive solve with dense=True.

        Args:
            t: a number, or an array of times of any shape, which becomes the leading shape of the leaves.

        Raises:
            InputError: a solve without dense=True, or a time that it does not hold.
        """
        if self.interpolant is None:
            raise InputError("Solution.at of a solve without dense output", "an adaptive solve with dense=True")
        return self.interpolant(t)
