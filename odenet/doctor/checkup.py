"""Running every gradient method on a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from odenet._check import several, within
from odenet._errors import InputError, OdenetError, in_words
from odenet._gradients.adjoints import DiscreteAdjoint
from odenet._gradients.exact import Backprop, Checkpoint, Reversible
from odenet._gradients.names import gradient, menu
from odenet._gradients.record import Cost, Gradient
from odenet._literals import BackendName, GradientName
from odenet._solvers.names import AnySolver, made_reversible
from odenet.doctor.diagnosis import Diagnosis
from odenet.doctor.examination import ROUNDING, Examination

if TYPE_CHECKING:
    from odenet._backend.sample import Part, Sample

See = Callable[[Gradient, bool], "Sample"]
"""A gradient of the model by that method; True for the network that its solvers become as reversible ones."""

STEPS, RATE = 10, 1e-2
"""Steps and learning rate of Adam on a copy, after which zero-initialised scales and heads pass gradients on."""

_FAILURES = (OdenetError, RuntimeError, MemoryError)


def check_gradients(
    model: Any,
    batch: Any,
    *,
    loss: Callable[..., Any] | None = None,
    gradients: Iterable[GradientName | Gradient] | None = None,
    tolerance: float = 1e-2,
    backend: BackendName | None = None,
) -> Diagnosis:
    """Compare every gradient method with exact backprop on your model and batch, and say which one to take.

    Each method runs once forward and back on the batch, in the model's number type and on its device. The model is
    left exactly as it was: its gradient method, parameters and their `.grad`, buffers, training flags, random states.

    Args:
        model: a torch.nn.Module or an equinox.Module, called with one argument, that is or contains a ResidualStack, a
            NeuralODE or an OdeNet. All of these in it are given the same method at a time.
        batch: its input, or a pair (input, target). A small one is enough, and has to fit with backprop.
        loss: `loss(outputs, target)`, a real scalar of the framework; `loss(outputs)` where the batch is no pair. None
            for half the mean square of the outputs, or of their difference to a target of the same shape;
            cross-entropy for outputs (batch, classes) with class numbers (batch,) as target.
        gradients: names or records; None takes every method and the variants worth a look.
        tolerance: the relative error of the whole gradient that the recommended method may have.
        backend: "torch" or "jax"; left out it follows from the model.

    Returns:
        A `Diagnosis`: one `Examination` a method, `recommended`, `verdict`; print it.

    Raises:
        InputError: a model without any of these modules, a batch without a loss, a tolerance that is no number.
        OdenetError: backprop, which all are compared with, fails.
    """
    from odenet._backend import registry as _registry

    entry = _registry.entry(backend) if backend is not None else _registry.entry_for([model])
    within("tolerance", tolerance, 0.0)
    methods = [gradient(name) for name in several("gradients", menu() if gradients is None else gradients, Gradient)]
    if not methods:
        raise InputError("gradients=[] of a check", "at least one method, or None for all")
    loaded = _registry.backend(entry.name)

    def see(method: Gradient, reversible: bool) -> Sample:
        return loaded.examine(model, batch, loss, method, reversible=reversible)

    def later() -> See:
        copy = loaded.trained(model, batch, loss, STEPS, RATE)
        return lambda method, reversible: loaded.examine(copy, batch, loss, method, reversible=reversible)

    return diagnose(see, methods, tolerance=tolerance, backend=entry.name, offers=entry.offers, later=later)


def diagnose(
    see: See,
    gradients: Iterable[Gradient],
    *,
    tolerance: float,
    backend: str,
    offers: Callable[[AnySolver, Gradient], bool],
    refer: See | None = None,
    reference: str = "",
    later: Callable[[], See] | None = None,
) -> Diagnosis:
    """Examine one model by each of these methods.

    Args:
        see: runs a method on the model.
        gradients: the methods.
        tolerance: see `check_gradients`.
        backend: by name.
        offers: whether the backend can differentiate a solver by a method.
        refer: gives the exact gradient; None takes the model's own by backprop.
        reference: what that is, in words.
        later: gives the same as `see` on a copy of the model after a few steps of training.

    Raises:
        OdenetError: the exact gradient cannot be had.
    """
    from odenet.doctor.comparison import smoothness

    truth = (refer or see)(Backprop(), False)
    references = {False: truth}
    examinations: list[Examination] = []
    solved: dict[Gradient, tuple[Part, ...]] = {}
    dtype = truth.dtype
    for method in gradients:
        another = _needs_another(method, truth.parts)
        solvers = [made_reversible(part.solver) if another else part.solver for part in truth.parts]
        label = ", ".join(dict.fromkeys(solver.label for solver in solvers))
        if not all(offers(solver, method) for solver in solvers):
            examinations.append(Examination(method, label, another, offered=False, trouble="not offered"))
            continue
        try:
            if another not in references:
                references[another] = (refer or see)(Backprop(), another)
            sample = see(method, another)
        except _FAILURES as error:
            examinations.append(Examination(method, label, another, trouble=in_words(error)))
            continue
        dtype = sample.dtype
        examinations.append(_examination(method, label, another, sample, references[another]))
        if not another:
            solved[method] = sample.parts
    silent = _silent(truth)
    training = "It was not examined after a few steps of training."
    if later is not None:
        examinations, training, silent = _trained(later, examinations, tolerance, silent)
    return Diagnosis(
        backend,
        dtype,
        reference or f"backprop in {dtype}",
        truth.parts,
        tuple(examinations),
        tolerance,
        _contraction(solved, dtype),
        smoothness(truth),
        training,
        silent,
    )


def _trained(
    later: Callable[[], See], examinations: list[Examination], tolerance: float, silent: bool
) -> tuple[list[Examination], str, bool]:
    """The same examinations with the errors after a few steps of training, what to say of these, and `silent`."""
    inexact = [
        row
        for row in examinations
        if row.meets(tolerance) and not row.another and not isinstance(row.gradient, (Backprop, Checkpoint, Reversible))
    ]
    if not inexact:
        return examinations, "", silent
    from odenet.doctor.comparison import compare

    try:
        see = later()
        truth = see(Backprop(), False)
        errors = {row.gradient: compare(see(row.gradient, False), truth)["gradient_error"] for row in inexact}
    except Exception as error:  # a loss, or a class that cannot be copied, of somebody else's
        why = f"{type(error).__name__}: {error}".partition("\n")[0]
        return examinations, f"It could not be examined after a few steps of training ({why}).", silent
    if not math.isfinite(truth.loss):
        return examinations, f"After {STEPS} steps of Adam the loss is not finite: that says nothing.", silent
    examined = [replace(row, later=errors.get(row.gradient)) for row in examinations]
    lost = [row.label for row in examined if row.later is not None and not row.later <= tolerance]
    words = f"{', '.join(lost)} met it only before training: after {STEPS} steps of Adam on a copy " if lost else ""
    if lost:
        words += "the error is " + ", ".join(f"{row.later:.1e}" for row in examined if row.label in lost) + "."
    return examined, words, _silent(truth)


def _silent(truth: Sample) -> bool:
    """Whether no layer of a solve has a gradient that is not zero."""
    names = {name for part in truth.parts for layer in part.layers for name, _ in layer.values()}
    return bool(names) and not any(truth.gradients[name].any() for name in names if name in truth.gradients)


def _needs_another(method: Gradient, parts: tuple[Part, ...]) -> bool:
    """Whether the method can do nothing with the model's solvers, but with what they become as reversible ones."""
    own = all(method.offered(part.solver) for part in parts)
    return not own and all(method.offered(made_reversible(part.solver)) for part in parts)


def _examination(method: Gradient, solver: str, another: bool, sample: Sample, reference: Sample) -> Examination:
    from odenet.doctor.comparison import compare

    certificates = [part.certificate for part in sample.parts if part.certificate is not None]
    estimates = [method.estimate(part.certificate, part.steps) for part in sample.parts]
    known = [estimate for estimate in estimates if estimate is not None]
    return Examination(
        method,
        solver,
        another,
        certificate=max(certificates, default=None),
        estimate=max(known, default=None) if len(known) == len(estimates) else None,
        cost=_cost(method, sample.parts),
        grows=_grows(method, sample.parts),
        **compare(sample, reference),
    )


def _cost(method: Gradient, parts: tuple[Part, ...], times: int = 1) -> Cost | None:
    """The cost of all solves, each with `times` its steps; None where the cost model does not tell."""
    try:
        costs = [(method.cost(part.solver, times * part.steps), part.solves) for part in parts]
    except InputError:  # checkpoint with a budget of memory
        return None
    names = ("f_forward", "f_backward", "vjp", "states", "rounded")
    return Cost(*(sum(getattr(cost, name) * solves for cost, solves in costs) for name in names))


def _grows(method: Gradient, parts: tuple[Part, ...]) -> bool:
    """Whether twice the steps keep more states."""
    one, two = _cost(method, parts), _cost(method, parts, times=2)
    return one is not None and two is not None and two.states + two.rounded > one.states + one.rounded


def _contraction(solved: dict[Gradient, tuple[Part, ...]], dtype: str) -> float | None:
    """By which factor a second iteration lowers the certificate, the largest of all solves; see `Diagnosis`."""
    one, two = solved.get(DiscreteAdjoint()), solved.get(DiscreteAdjoint(iterations=2))
    if one is None or two is None:
        return None
    factors = [
        after.certificate / before.certificate
        for before, after in zip(one, two, strict=True)
        if before.certificate is not None
        and after.certificate is not None
        and before.certificate > 100 * ROUNDING.get(dtype, ROUNDING["float32"])
    ]
    return max(factors, default=None)
