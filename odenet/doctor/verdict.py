"""The doctor's words: which method to take, and why."""

from __future__ import annotations

import math

from odenet._gradients.adjoints import DiscreteAdjoint
from odenet._gradients.exact import Checkpoint
from odenet._report.units import error
from odenet.doctor.examination import Examination, Examinations
from odenet.doctor.recommendation import (
    contractive,
    evaluations,
    extrapolates,
    iterations,
    lasting,
    missed,
    of_ode,
    recommended,
    smooth,
    watched,
    within,
)

KINKS = 10.0
"""How many times its estimate an error must be for the certificate to be called too good."""
MANY = 10
"""Iterations beyond which they are no saving any more."""


def verdict(record: Examinations) -> str:
    """A few sentences, made from the numbers."""
    best = recommended(record)
    sentences = [_repeatable(record), _silent(record)]
    if best is not None and best.memory == 0:
        sentences += [_take(record, best), _why(record, best), _passed_over(record, best), *_remarks(record, best)]
    else:
        sentences += [_take_checkpoint(record, best), _missed(record), _why_not(record)]
    return " ".join(sentence for sentence in (*sentences, record.training, _worse(record)) if sentence)


def _silent(record: Examinations) -> str:
    if not record.silent:
        return ""
    return (
        "Every gradient of the layers is zero, so that the error of a method that rebuilds states cannot be seen here "
        "(a head or scales that start at zero?): examine again after some training."
    )


def _worse(record: Examinations) -> str:
    """The sentence on a correction that increases the error; empty where it does not."""
    once, paper = (record.of(DiscreteAdjoint(correct=correct).label) for correct in (True, False))
    if once is None or paper is None or once.gradient_error is None or paper.gradient_error is None:
        return ""
    if not once.gradient_error > paper.gradient_error > record.tolerance:
        return ""
    return (
        f"The correction makes it worse here ({error(once.gradient_error)} against {error(paper.gradient_error)}): "
        "h Lip(f) is above 1, where neither is of use."
    )


def _repeatable(record: Examinations) -> str:
    again = record.of("backprop")
    # a few thousand roundings, of sums in another order
    if again is None or again.gradient_error is None or again.gradient_error <= 1e4 * record.rounding:
        return ""
    return (
        f"Backprop itself is {error(again.gradient_error)} off {record.reference}, so that no smaller error can be "
        "seen here: look for blocks that do not give the same for the same."
    )


def _take(record: Examinations, best: Examination) -> str:
    later = "" if best.later is None else f" ({error(best.later)} after a few steps of training)"
    text = (
        f"Take {best.label}: its gradient is {error(best.gradient_error)} off backprop's{later}, within the tolerance "
        f"of {error(record.tolerance)}"
    )
    if best.cost is None:
        return f"{text}, and the memory it needs does not grow with depth."
    keeps = f"{best.cost.states} state{'s' if best.cost.states > 1 else ''}"
    more = f"for {best.cost.f_backward} more evaluations of f"
    return f"{text}; it keeps {keeps} instead of {_all_states(record)}, {more}."


def _why(record: Examinations, best: Examination) -> str:
    """The reason for a method whose memory does not grow with depth."""
    if extrapolates(best):
        state = "smooth" if smooth(record) else "not smooth"
        return f"It continues increments in depth, and the weights are {state} there: {_size(record)}."
    if not watched(best):
        return "It has no certificate to tell when it is off by more."
    if of_ode(best):
        return "It is another gradient, of the ODE, and its certificate looks at two steps alone."
    if contractive(record) is None:
        return ""
    if contractive(record):
        return f"The steps are contractive: a second iteration brings the certificate {_down(record)}."
    return (
        f"But some step is not contractive: a second iteration brings the certificate {_down(record)}. Should the "
        "error grow in training, the way out is checkpoint."
    )


def _passed_over(record: Examinations, best: Examination) -> str:
    """The method that costs less and was not taken: one, the first there is to say something about."""
    cheaper = [e for e in record.examinations if not e.another and e.memory == 0 and evaluations(e) < evaluations(best)]
    for other in cheaper:
        if extrapolates(other) and not other.meets(record.tolerance) and other.gradient_error is not None:
            state = "although the weights are" if smooth(record) else "since the weights are not"
            off = f"{error(other.gradient_error)} off"
            return f"{other.label} costs less, and is {off}, {state} smooth in depth: {_size(record)}."
        if other in within(record) and not lasting(record, other):
            why = "the weights are not smooth in depth, where it gains nothing from more layers: " + _size(record)
            if not watched(other):
                why = "it has no certificate to tell when it no longer is"
            elif of_ode(other):
                why = "it is another gradient, of the ODE, and its certificate looks at two steps alone"
            return f"{other.label} costs less and is within it now ({error(other.gradient_error)}), but {why}."
    return ""


def _remarks(record: Examinations, best: Examination) -> list[str]:
    """Further sentences on the recommended method."""
    size, expected = best.gradient_error or 0.0, best.estimate
    if 0 < size <= 16 * record.rounding:
        return [f"What is left is rounding in {record.dtype}."]
    if expected is None or best.certificate is None:
        return []
    remarks = [f"Watch the certificate of {best.label} in training: it estimates the error as {error(expected)} now."]
    if size > KINKS * expected:
        remarks.append(f"The error is {size / expected:.0f} times that: expect it where f has kinks, as with ReLU.")
    return remarks


def _take_checkpoint(record: Examinations, best: Examination | None) -> str:
    segments = max(1, round(math.sqrt(record.steps)))
    fewer = (
        f"checkpoint:segments={segments} keeps about {segments} states a solve instead of {record.steps} for the same "
        "evaluations"
    )
    if all(Checkpoint(states=1).offered(part.solver) for part in record.parts):
        fewer += ", checkpoint:states=K as few as you like for more"
    rounded = record.of(Checkpoint(bits=8).label)
    if rounded is not None and rounded is not best and rounded.meets(record.tolerance):
        fewer += f"; {rounded.label} keeps 8 bits of each number of a state, and is {error(rounded.gradient_error)} off"
    if best is not None and isinstance(best.gradient, Checkpoint):
        off = "to the last bit" if best.gradient_error == 0 else f"up to {error(best.gradient_error)}"
        states = "" if best.cost is None else f", and keeps {best.cost.kept} states and no stages"
        return f"Take {best.label}: it is backprop's gradient {off}{states}; {fewer}."
    tried = record.of(Checkpoint().label)
    why = f" (it was examined: {tried.trouble})" if tried is not None and tried.trouble is not None else ""
    if best is not None and best.memory == 1:
        return (
            f"Take {best.label}: its gradient is {error(best.gradient_error)} off backprop's, and its memory grows "
            f"with depth. The way out that is exact is checkpoint{why}: {fewer}."
        )
    first = "Nothing but backprop meets" if best is not None else "Nothing that was examined meets"
    return f"{first} the tolerance of {error(record.tolerance)}. The way out is checkpoint{why}: {fewer}."


def _missed(record: Examinations) -> str:
    near = missed(record)
    if not near:
        return "No method whose memory does not grow with depth was examined on this solver."
    if near[0].gradient_error is None:
        return f"No method whose memory does not grow with depth came to an end: {near[0].label}: {near[0].trouble}"
    return (
        f"No method whose memory does not grow with depth is within {error(record.tolerance)}: the nearest, "
        f"{near[0].label}, is {error(near[0].gradient_error)} off."
    )


def _why_not(record: Examinations) -> str:
    """Why no method whose memory does not grow meets the tolerance."""
    if record.tolerance < 100 * record.rounding:
        return f"That is a tolerance which {record.dtype} does not resolve."
    if contractive(record) is None:
        return ""
    if not contractive(record):
        return (
            f"Some step is not contractive, or hardly so: a second iteration brings the certificate {_down(record)} "
            f"and the error {_errors(record)}. Where the residual does not fall no number of iterations helps; "
            "checkpoint undoes no step."
        )
    more = iterations(record)
    if more is None or more > MANY:
        rest = "which is too little for iterations to be worth their cost"
    else:
        rest = f"so that discrete-adjoint:iterations={more}, not examined, should meet it"
    return f"The steps are contractive: a second iteration brings the certificate {_down(record)}, {rest}."


def _down(record: Examinations) -> str:
    return f"to ×{record.contraction:.2g}"


def _errors(record: Examinations) -> str:
    once, twice = record.of("discrete-adjoint"), record.of("discrete-adjoint:iterations=2")
    assert once is not None
    assert twice is not None
    return f"from {error(once.gradient_error)} to {error(twice.gradient_error)}"


def _size(record: Examinations) -> str:
    if record.smoothness is None:
        return "layers of different shapes"
    return f"N |w[n+1] - w[n]| / |w| = {record.smoothness:.2g} at N = {record.steps}"


def _all_states(record: Examinations) -> int:
    return sum(part.steps * part.solves for part in record.parts)
