"""`auto`: no gradient method, but the wish to have one chosen, watched, and left when it is no longer good enough."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from odenet._check import whole, within
from odenet._errors import InputError, UnsupportedError, shown
from odenet._gradients.exact import Backprop, Checkpoint
from odenet._gradients.record import Cost, Gradient
from odenet._solvers.names import AnySolver


@dataclass(frozen=True)
class Auto(Gradient):
    """Let the fastest method be chosen that fits the memory and whose gradient is within the tolerance.

    In torch the first backward pass is exact, and measures every method beside it (`module.plan`); every `audit` passes
    one pass is exact again, and the method's gradient is compared with it (`module.audits`). A method that is off by
    more than the tolerance is left for a more exact one, for good. In JAX `odenet.plan` and `odenet.audit` do that,
    outside of jit.

    Args:
        tolerance: the relative error `||g - r|| / ||r||` that the gradient g may have at an audit, r being the exact
            one: of all weights of the solve, and of its input, each for itself. A method is chosen if it meets half of
            it, which leaves room for what changes in training.
        audit: backward passes from one audit to the next. After a choice the first ones come sooner: after 1, 2, 4, 8
            ... passes.
        memory: bytes that one solve may take forward and back, beyond its weights and its input, gradients included;
            None for no limit, where backprop, which needs most, is mostly the fastest.
        method: what was chosen before; None plans on the first backward pass.

    Raises:
        InputError: a tolerance outside (0, 1), or numbers that are no whole ones above 0.
    """

    tolerance: float = 1e-2
    audit: int = 200
    memory: int | None = dataclasses.field(default=None, metadata={"unit": "bytes"})
    method: Gradient | None = dataclasses.field(default=None, metadata={"flag": False})

    name = "auto"
    summary = "plan on the first batch, audit in training, and move to a more exact method when needed"
    exactness = "within the tolerance at every audit"
    formula = ("N s", "by choice", "N s", "by choice")

    def __post_init__(self) -> None:
        within("tolerance", self.tolerance, 0.0, 1.0, below=True, of="auto")
        whole("audit", self.audit, of="auto")
        if self.memory is not None:
            whole("memory", self.memory, of="auto")
        if self.method is not None and (not isinstance(self.method, Gradient) or isinstance(self.method, Auto)):
            raise InputError(f"method={shown(self.method)} of auto", "a record of a gradient method, or None")

    @property
    def changed(self) -> tuple[str, ...]:
        """Names of the options that are not at their default; what was chosen is not one of them."""
        return tuple(name for name in super().changed if name != "method")

    @property
    def chosen(self) -> Gradient:
        """The method.

        Raises:
            UnsupportedError: none was chosen so far.
        """
        if self.method is None:
            raise UnsupportedError(
                f"gradient={self.label!r} where no method was chosen so far",
                "a module of odenet_torch that is trained, which plans on its first backward pass",
                "call odenet.plan(model, batch) outside of jit and take plan.apply(model), or plan.gradient",
            )
        return self.method

    @property
    def certifies(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether what was chosen leaves a certificate."""
        return self.method is not None and self.method.certifies

    def certified(self, *, adaptive: bool) -> bool:
        return self.method is not None and self.method.certified(adaptive=adaptive)

    def offered(self, solver: AnySolver) -> bool:
        """Whatever is chosen is offered."""
        return self.method is None or self.method.offered(solver)

    def cost(self, solver: AnySolver, steps: int) -> Cost:
        """That of what was chosen.

        Raises:
            UnsupportedError: nothing was.
        """
        return self.chosen.cost(solver, steps)

    def estimate(self, certificate: float | None, steps: int) -> float | None:
        """That of what was chosen."""
        return None if self.method is None else self.method.estimate(certificate, steps)


def decided(gradient: Gradient) -> Gradient:
    """The method itself; of `Auto`, what was chosen.

    Raises:
        UnsupportedError: nothing was chosen so far.
    """
    return gradient.chosen if isinstance(gradient, Auto) else gradient


def exact(gradient: Gradient) -> bool:
    """Whether a method gives the network's own gradient, whatever the network does: it rebuilds no state."""
    if isinstance(gradient, Auto):
        return gradient.method is not None and exact(gradient.method)
    return isinstance(gradient, Backprop) or (isinstance(gradient, Checkpoint) and "bits" not in gradient.changed)
