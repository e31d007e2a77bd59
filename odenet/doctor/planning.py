"""`odenet.plan` and `odenet.audit`: measure gradient methods on a model, choose one, and look at it again later."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from odenet._backend import registry as _registry
from odenet._backend.entry import BackendEntry
from odenet._backend.sample import Choices, Profile
from odenet._check import several, whole, within
from odenet._errors import InputError, shown
from odenet._gradients.auto import Auto, exact
from odenet._gradients.names import gradient
from odenet._gradients.record import Gradient
from odenet._literals import BackendName, GradientName
from odenet._solvers.names import AnySolver
from odenet.doctor.auditor import ROOM, Audit, Auditor
from odenet.doctor.candidates import candidates, reference
from odenet.doctor.plan import Plan, completed


def plan(
    model: Any,
    batch: Any,
    memory: int | None = None,
    tolerance: float | None = None,
    loss: Callable[..., Any] | None = None,
    *,
    gradients: Iterable[GradientName | Gradient] | None = None,
    backend: BackendName | None = None,
    repeats: int = 3,
) -> Plan:
    """Measure gradient methods on a model and a batch, and choose the fastest that is good enough.

    Of each method, in the place of the model's own: seconds of loss and gradient, the most bytes alive at once, and the
    error of its gradient against exact checkpointing with the same random numbers. Nothing of the model is changed:
    its methods, parameters and their `.grad`, buffers, training flags, random states. A model in training mode is
    measured in it. What a method is off by changes in training, most of all in the first steps: `gradient="auto"`
    audits what was chosen.

    Args:
        model: a torch.nn.Module or an equinox.Module, called with one argument, that is or contains a ResidualStack, a
            NeuralODE, an OdeNet or layers that were converted. All of these get the same method at a time.
        batch: its input, or a pair (input, target), of the size that will be trained with.
        memory: bytes that loss and gradient may take beyond weights and batch, gradients included; None for no limit,
            where backprop is mostly the fastest. Where the model's method is `Auto`, None is what that says.
        tolerance: the relative error that the gradient may have: of the weights of each solve, and of all others, each
            for itself. None is 1e-2, or what the model's `Auto` says.
        loss: as for `odenet.check_gradients`.
        gradients: names or records; None tries what the backend offers.
        backend: "torch" or "jax"; left out it follows from the model.
        repeats: rounds of timing; the median counts.

    Returns:
        A `Plan`: print it; `plan.gradient` is the method, `plan.apply(model)` the model with it.

    Raises:
        InputError: no method fits memory and tolerance (the least that is possible, and what needs it); a model
            without a solve; a memory or tolerance that cannot be used.
        OdenetError: exact checkpointing fails.
    """
    whole("repeats", repeats)
    entry, choices = _looked(model, backend)
    wish = _wish(choices)
    memory = memory if memory is not None or wish is None else wish.memory
    if tolerance is None:
        tolerance = 1e-2 if wish is None else ROOM * wish.tolerance
    Auto(tolerance=tolerance, memory=memory)  # checks both
    solvers, steps, adaptive = _solves(choices)
    if gradients is None:
        methods = candidates(entry, solvers, steps, adaptive=adaptive)
    else:
        methods = tuple(dict.fromkeys(gradient(name) for name in several("gradients", gradients, Gradient)))
        if not methods or any(isinstance(method, Auto) for method in methods):
            raise InputError(f"gradients={shown(gradients)} of a plan", "at least one method, and not auto")
        for method in methods:
            for solver in solvers:
                entry.require(solver, method, adaptive=adaptive)
    exactly = reference(entry, solvers, adaptive=adaptive)
    loaded = _registry.backend(entry.name)
    profiles = loaded.profile(model, batch, loss, methods, reference=exactly, memory=memory, repeats=repeats)
    common = (", ".join(dict.fromkeys(solver.label for solver in solvers)), steps, profiles.dtype)
    rest = (tolerance, memory, exactly.label, profiles.counted, profiles.zero)

    def again(methods: Sequence[Gradient]) -> Sequence[Profile]:
        return loaded.profile(model, batch, loss, methods, reference=exactly, repeats=1).rows

    return completed(profiles.rows, memory, again, lambda rows: Plan(entry.name, *common, rows, *rest))


class Audited(NamedTuple):
    """What `audit` returns.

    Args:
        model: with a more exact method where that had to be; else as it was.
        audit: what was found; None where an exact method is in use, or the exact gradient is zero or not finite.
    """

    model: Any
    audit: Audit | None


def audit(
    model: Any,
    batch: Any,
    tolerance: float | None = None,
    loss: Callable[..., Any] | None = None,
    *,
    gradients: Iterable[GradientName | Gradient] | None = None,
    backend: BackendName | None = None,
) -> Audited:
    """Compare the gradient method of a model with the exact gradient on a batch, and move to another one if it must be.

    For a training loop of JAX, outside of jit, every hundred steps or so:

        model, found = odenet.audit(model, (x, y), loss=loss)

    Args:
        model: as for `plan`, all of whose solves have one method: what `plan.apply` returned.
        batch, loss, backend: as for `plan`.
        gradients: what may be moved to, as for `plan`.
        tolerance: see `plan`; None takes that of the model's `Auto`, or 1e-2.

    Returns:
        The model, and the audit; unpack it. Where the error is above the tolerance, the model is one with the fastest
        method that meets half of it on this batch (a GradientWarning says so), and programs of it are compiled anew.

    Raises:
        InputError: solves with different methods, or with none so far.
    """
    if tolerance is not None:
        within("tolerance", tolerance, 0.0, 1.0, below=True)
    entry, choices = _looked(model, backend)
    methods = {choice.gradient for choice in choices.values()}
    if len(methods) > 1:
        labels = ", ".join(sorted(method.label for method in methods))
        raise InputError(f"a model whose solves have the methods {labels}", "one method in all", "call plan.apply")
    (method,) = methods
    tolerated = 1e-2 if tolerance is None else tolerance
    wish = method if isinstance(method, Auto) else Auto(method=method, tolerance=tolerated)
    if tolerance is not None:
        wish = Auto(tolerance, wish.audit, wish.memory, wish.method)
    now = wish.chosen
    if exact(now):
        return Audited(model, None)
    solvers, steps, adaptive = _solves(choices)
    del steps
    loaded, exactly = _registry.backend(entry.name), reference(entry, solvers, adaptive=adaptive)
    profiles = loaded.profile(model, batch, loss, (now,), reference=exactly, repeats=0)
    if profiles.zero:
        return Audited(model, None)
    auditor = Auditor(wish)

    def planned() -> Plan:
        return plan(model, batch, wish.memory, ROOM * wish.tolerance, loss, gradients=gradients, backend=backend)

    auditor.judge(profiles.rows[0], planned)
    assert auditor.method is not None
    return Audited(model if auditor.method == now else loaded.with_gradient(model, auditor.method), auditor.audits[-1])


def _looked(model: Any, backend: BackendName | None) -> tuple[BackendEntry, dict[str, Choices]]:
    entry = _registry.entry(backend) if backend is not None else _registry.entry_for([model])
    return entry, _registry.backend(entry.name).choices(model)


def _solves(choices: dict[str, Choices]) -> tuple[tuple[AnySolver, ...], int, bool]:
    """The solvers, the most steps, and whether a solve is adaptive."""
    solvers = tuple(dict.fromkeys(choice.solver for choice in choices.values()))
    adaptive = any(choice.steps is None for choice in choices.values())
    return solvers, max(choice.steps or _ADAPTIVE for choice in choices.values()), adaptive


_ADAPTIVE = 16
"""Steps that an adaptive solve is taken to have, where a variant of a method depends on them."""


def _wish(choices: dict[str, Choices]) -> Auto | None:
    return next((choice.gradient for choice in choices.values() if isinstance(choice.gradient, Auto)), None)
