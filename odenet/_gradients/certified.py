"""What a certificate is measured by, and what is said when it is large: the same in every backend.

Over 250 lines: all the texts, which are to say the same in the same words.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeVar

from odenet._errors import GradientWarning, UselessGradientWarning
from odenet._solvers.controller import FLOATS, Arithmetic

DOUBTFUL = 0.1
"""A certificate above this is said, once for each network and method."""
KINKS = 0.65
"""How far a gradient is off where a block has kinks, as ReLU has, beside the square root of how far a rebuilt state is.

A unit on the other side of its kink has another derivative altogether, and as large a part of the units is as of the
state. Of all rows together, not of the worst one: it is all units that count. Said where that is above `DOUBTFUL`."""
USELESS = 0.5
"""A certificate above this is said in every backward pass."""
BUCKETS = 8
"""Numbers kept of a row of y0 to know it again by: the root of their mean square difference is off by a quarter."""
SHARE = 1e-3
"""What a first step changes is held against this part of what it is a change of, or more."""
DRIFT = 1 / 3
"""How far a gradient is off beside how far y(t0), as integrated back, is: the state of no other step is off by more."""
ITERATIONS_BESIDE = 2
"""Of the discrete adjoint that the continuous one is compared with where f jumps (`few_numbers`).

There no multiple of the drift will do: where pairs were normalised, gradients were off by 0.4 at drifts of 0.002. What
the discrete adjoint rebuilds is off by less, and its certificate, of which a third counts as of any state, says where
it is not. With one iteration there were more alarms without cause, and with three as many as with two."""
DRIFTED = 2
"""How often what the rebuilt y(t0) is off by counts beside what the steps of a field that jumps are off by: the states
between drift as well, and by how much is known at t0 alone."""
STATES_BESIDE = 16
"""Kept of an adaptive solve whose field jumps, to run its steps again beside the continuous adjoint."""
ALL_OF = 4
"""Known states that are compared in any case, of one backward pass over an adaptive solve."""
FURTHER = 1.5
"""Later ones are where the state is off by so many times more than in any before."""
FAR = 0.03
"""How far a state is off, relatively, whose way may have been another."""
WHOLE = -2
"""The place of an error that is of the whole gradient, over all steps; -1 is that of the state at t0."""
SMALL = 0.1
"""The least size of y(t0), in sizes of y(t1), that its error is held against: a solve may begin at zero."""

Integers = TypeVar("Integers", bound=Any)
Certified = Literal[
    "states", "kinks", "rounded states", "gradient", "first step", "step back", "way back", "drop-in back", "run again"
]
"""What an alarm is told the size of an error of: rebuilt states, those kept in few bits, the whole gradient, that of
one step, what an adaptive solve integrated back, or steps that have run again and do something else."""

_alarms: weakref.WeakKeyDictionary[Any, Alarm] = weakref.WeakKeyDictionary()
_quiet = threading.local()


def channel_axes(rank: int) -> tuple[int, ...]:
    """The axes of an array of a state that may hold the channels: what is not among them counts rows.

    One array of (channels,) or (batch, channels) has its channels last. Of a larger one nobody says whether they are
    last, as in (batch, time, channels) and in JAX's images, or second, as in torch's images (batch, channels, height,
    width): both are read, and the larger error counts. Read wrongly, lines of an image or of one channel in time stand
    for rows, in which a place that is wrong still shows.
    """
    return () if rank == 0 else (-1,) if rank < 3 else (-1, 1)


def floor(width: int) -> float:
    """The least size of a row of that many entries, in typical sizes of rows, that an error is held against.

    A class token may be a hundred times smaller than other rows, and is what the loss reads: it has its own size. A
    row of few entries may be nearly zero by chance alone, and one of many only because it is padding, or about to
    begin: what is off there is held against the other rows.
    """
    return max(0.01, 2.0 ** (1 - width))


def least_change(eps: float, steps: int, of: int) -> float:
    """The least change of the costate in its first steps that an error in it is held against, in costates.

    A thousandth of the costate in all steps together, or a hundred roundings, is no change that a loss would show.

    Args:
        eps: of the costate's number type.
        steps: how many these are.
        of: the steps of the solve.
    """
    return max(SHARE * steps / of, 100 * eps)


def lasting(drift: Any, least: Any, log: Callable[[Any], Any], arithmetic: Arithmetic = FLOATS) -> Any:
    """For which part of the way back a state has been off by about as much as it is at its end.

    What grows like exp(t) from its tolerance on is so for some three of the times in which it grows by a factor of e,
    and, where it is larger than the state itself, from there on; what did not grow may be so all the way.

    Args:
        drift: how far it is off at the end, relatively; above 0.
        least: relative tolerance.
        log, arithmetic: of these numbers.
    """
    longest = 3 * (1 + arithmetic.most(log(drift), 0.0))
    return arithmetic.least(longest / arithmetic.most(log(drift / least), 1.0), 1.0)


def signs(places: Integers) -> Integers:
    """+1 or -1 for each place, as if by chance: an integer array of either framework, and of 32 bits or more."""
    return 1 - 2 * (scattered(places) & 1)


def scattered(places: Integers) -> Integers:
    """A number of 31 bits for each place, as if by chance: see `signs`."""
    mixed = places
    for _ in range(2):
        mixed = mixed * 0x45D9F3B & 0x7FFFFFFF
        mixed = mixed ^ (mixed >> 16)
    return mixed


class Alarm:
    """Says that the gradients of one network are doubtful, or useless.

    Doubtful is said once for each method of the network, useless every time. Python shows either of them wherever its
    filters do not say otherwise, and raises them where these say "error".
    """

    def __init__(self) -> None:
        self._said: set[str] = set()

    def tell(
        self,
        certificate: float,
        gradient: str,
        solver: str,
        steps: int,
        step: int,
        layer: str = "",
        of: Certified = "states",
    ) -> None:
        """Say it if there is something to say.

        Args:
            certificate: see `Stats.certificate`; or the measured error of a gradient.
            gradient, solver: by label.
            steps: of the solve.
            step: the one that the certificate is from; -1 is the state at t0, `WHOLE` is all steps.
            layer: the class of the layer that this step evaluates, where that is known.
            of: what the number is of.
        """
        if certificate <= DOUBTFUL:
            return
        useless = not certificate <= USELESS
        method = f"{gradient} through {steps} steps of {solver}"
        if not useless:
            # steps that follow an error are others in each pass
            said = f"{gradient} of {solver}" if of in _BY_TOLERANCE else method
            if said in self._said:
                return
            self._said.add(said)
        kind = UselessGradientWarning if useless else GradientWarning
        text = _TEXTS[of](certificate, method, _place(step, steps, layer))
        place = None if step == WHOLE else step
        warning = kind(text, certificate=certificate, gradient=gradient, step=place, layer=layer)
        # without a registry of what was shown: Python would show a text once for all networks
        warnings.warn_explicit(warning, kind, "odenet", 1, registry=None)


_AT_START = "of the state at t0"
_OVER_ALL = "over all"


def _consequence(certificate: float) -> str:
    return "is useless" if certificate > USELESS else "may be off by as much"


def _message(certificate: float, method: str, where: str) -> str:
    if certificate != certificate:
        return (
            f"The certificate of {method} is NaN ({where}): states are not finite, in the forward pass or rebuilt, and "
            "neither is the gradient. What to do: check the forward pass first; if it is finite, its steps cannot "
            "be inverted: take gradient='checkpoint', which inverts none."
        )
    # within the backward pass one step's residual is known, and at t0 the whole error
    subject = "the rebuilt state" if where.startswith(_AT_START) else "a rebuilt state, or a step forward from it,"
    consequence = f"the gradient {_consequence(certificate)}"
    return (
        f"The certificate of {method} is {certificate:.2g} ({where}): {subject} has a relative error of this size, "
        f"and {consequence}. What to do: take gradient='checkpoint', which is exact; or smaller steps, more iterations "
        "where h Lip(f) < 1, or anchors. odenet.check_gradients measures the error of every method."
    )


def _kinks(certificate: float, method: str, where: str) -> str:
    return (
        f"The certificate of {method} is {certificate:.2g}: rebuilt states have a relative error of "
        f"{(certificate / KINKS) ** 2:.2g} ({where}), so that about as many units are on the other side of their kinks "
        f"(of ReLU, of a largest number), and the gradient {_consequence(certificate)}. What to do: take "
        "gradient='checkpoint', which is exact; or smaller steps, more iterations where h Lip(f) < 1, or anchors."
    )


def _rounded(certificate: float, method: str, where: str) -> str:
    if certificate != certificate:
        return (
            f"The certificate of {method} is NaN: states are not finite, and neither is the gradient. What to do: "
            "check the forward pass."
        )
    return (
        f"The certificate of {method} is {certificate:.2g}: by what states lose in few bits the gradient "
        f"{_consequence(certificate)}. What to do: take bits=16, or gradient='checkpoint', which is exact. "
        "odenet.check_gradients measures the error of every method."
    )


def _measured(error: float, method: str, where: str) -> str:
    if error != error:
        return _message(error, method, where)
    return (
        f"The relative error of the gradient by {method} is about {error:.2g}, as measured on this batch (the largest "
        f"part {where}). What to do: take gradient='checkpoint', which is exact, or more bits."
    )


_WHOLE = (
    "the field jumps, as where few numbers are normalised together, or a rule of its own clips or adds to what it is "
    "given backward, so all steps are compared, and the gradient is as far from "
)
_DRIFTED = "so far off that a step from there has a gradient that is off by as much"


def _first_step(certificate: float, method: str, where: str) -> str:
    if certificate != certificate:
        return _message(certificate, method, where)
    consequence = _consequence(certificate)
    subject = (
        "the gradient of that step, with what states are off by as integrated back, is this far, relatively, from the "
        "exact one of the discrete network"
    )
    if where.startswith(_AT_START):
        subject = f"as integrated back, it is {_DRIFTED}"
    elif where.startswith(_OVER_ALL):
        subject = f"{_WHOLE}that of the discrete adjoint, or that is itself as doubtful"
    return (
        f"The certificate of {method} is {certificate:.2g} ({where}): {subject}, and the whole gradient "
        f"{consequence}. What to do: take more steps, a solver of higher order, gradient='discrete-adjoint', or "
        "gradient='checkpoint', which is exact. odenet.check_gradients measures the error of every method."
    )


def _way_back(certificate: float, method: str, where: str) -> str:
    if certificate != certificate:
        return _message(certificate, method, where)
    subject = f"{_REBUILT}{_consequence(certificate)}"
    if where.startswith(_OVER_ALL):
        subject = f"{_WHOLE}that of the steps that were accepted"
    return (
        f"The certificate of {method} is {certificate:.2g}: {subject}. What to do: take "
        "gradient='checkpoint', which integrates nothing back; or smaller rtol and atol, or more times in ts."
    )


def _drop_in_back(certificate: float, method: str, where: str) -> str:
    subject = f"{_REBUILT}{_consequence(certificate)}; or its adjoint is small beside the tolerance, and not resolved"
    if where.startswith(_OVER_ALL):
        subject = f"{_WHOLE}that of odeint"
        if certificate == float("inf"):
            subject = "the field jumps, or has a rule of its own backward, and its steps are too many to be compared"
    if certificate != certificate:
        subject = "NaN, or the solution is: a state is not finite"
    return (
        f"The gradient of {method} is doubtful ({certificate:.2g}): {subject}. What to do: give smaller tolerances "
        "(atol holds for the adjoint, too, which is as small as the loss's gradient), or more times; or take a "
        "gradient that integrates nothing back: odenet_torch's odeint, or odenet.solve with gradient='checkpoint'."
    )


_REBUILT = (
    "a state that is known was integrated back to one where the field has other derivatives, or the steps back are too "
    "long for the costate, and the gradient by what comes before, that of y0 first of all, "
)


def _step_back(certificate: float, method: str, where: str) -> str:
    if certificate != certificate:
        return (
            f"The gradient of {method} is NaN ({where}), or the steps forward are: a state is not finite. What to do: "
            "check the forward pass first; if it is finite, take odeint, whose gradient integrates nothing back."
        )
    consequence = _consequence(certificate)
    subject = (
        f"over one step ({where}), with what states are off by as integrated back, this far from that of odeint, "
        f"relatively: {certificate:.2g}"
    )
    if where.startswith(_AT_START):
        subject = f"doubtful ({certificate:.2g}): a state, as integrated back, is {_DRIFTED}"
    elif where.startswith(_OVER_ALL):
        subject = f"doubtful ({certificate:.2g}): {_WHOLE}that of odeint"
    return (
        f"The gradient of {method} is {subject}; the whole gradient {consequence} for the network that these steps "
        "are. What to do: take odeint, whose gradient is exact; or more steps, or a method of higher order."
    )


CHANGED = (
    "look for what it reads from outside and that has changed since (a patched function, a file, a setting, a clock, a "
    "random number); call backward() before it changes; or take gradient='backprop', which runs it once"
)
"""What to do about a field that runs again as another one."""


def _run_again(certificate: float, method: str, where: str) -> str:
    if certificate != certificate:
        return _message(certificate, method, where)
    return (
        f"The field is not what it was in the forward pass: run again by {method} from a state that is known, it "
        f"misses what it added by {certificate:.2g} of that ({where}), and the gradient {_consequence(certificate)}. "
        f"What to do: {CHANGED}."
    )


_BY_TOLERANCE = {"way back", "drop-in back"}
_TEXTS: dict[Certified, Callable[[float, str, str], str]] = {
    "states": _message,
    "kinks": _kinks,
    "rounded states": _rounded,
    "gradient": _measured,
    "first step": _first_step,
    "way back": _way_back,
    "drop-in back": _drop_in_back,
    "step back": _step_back,
    "run again": _run_again,
}


def alarm(network: Any) -> Alarm | None:
    """The alarm of a network: a module, a function, or an object of which a method is the field. None where quiet."""
    if getattr(_quiet, "deep", 0):
        return None
    network = getattr(network, "__self__", network)
    try:
        return _alarms.setdefault(network, Alarm())
    except TypeError:  # neither hashed nor weakly referred to: nothing to know it again by
        return Alarm()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Solves that begin here, in this thread, have no alarm: for those who measure errors, and tell them."""
    _quiet.deep = getattr(_quiet, "deep", 0) + 1
    try:
        yield
    finally:
        _quiet.deep -= 1


def _place(step: int, steps: int, layer: str) -> str:
    """Where a certificate is from, in words."""
    if step == WHOLE:
        return f"{_OVER_ALL} {steps} steps"
    if step < 0:
        return f"{_AT_START}, after all {steps} backward steps"
    return f"in step {step} of {steps}{layer and ', '}{layer}"
