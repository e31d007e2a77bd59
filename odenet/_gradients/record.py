"""What a gradient method is (its options, name and cost), and how a backend carries it out, as data."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from odenet._errors import BackendUnavailableError
from odenet._solvers.names import AnySolver


@dataclass(frozen=True)
class Cost:
    """What one gradient costs, for N steps of a solver of s stages.

    Args:
        f_forward: field evaluations of the forward pass.
        f_backward: field evaluations of the backward pass beside those that the VJPs contain in backprop.
        vjp: vector-Jacobian products of the field.
        states: states of the size of y kept between forward and backward pass.
        rounded: states kept beside these in fewer bits.
        look: field evaluations that the backward pass may have beyond `f_backward`, where a state is missed by more
            than rounding: they tell what its steps back are off by from a field that has changed.
    """

    f_forward: int
    f_backward: int
    vjp: int
    states: int
    rounded: int = 0
    look: int = 0

    @property
    def kept(self) -> str:
        """The states kept, in words."""
        return f"{self.states} + {self.rounded} rounded" if self.rounded else str(self.states)


@dataclass(frozen=True)
class Gradient:
    """A gradient method. Its fields are its options; `label` is the spelling that a flag takes."""

    name: ClassVar[str]
    summary: ClassVar[str]
    exactness: ClassVar[str]
    formula: ClassVar[tuple[str, str, str, str]]
    """f forward, f backward, VJPs and states kept, as text for tables."""
    variants: ClassVar[Mapping[str, tuple[str, str, str, str]]] = {}
    """The same with an option, by how a flag spells it."""
    notable: ClassVar[tuple[str, ...]] = ()
    """Options worth a look beside the default, as a flag spells them."""
    certifies: ClassVar[bool] = False
    """Whether a backward pass leaves a certificate (see `Stats.certificate`), in equal steps at least."""

    @property
    def label(self) -> str:
        """The name and the options that are not at their default."""
        return ":".join([self.name, *(f"{name}={_spell(getattr(self, name))}" for name in self.changed)])

    @property
    def changed(self) -> tuple[str, ...]:
        """Names of the options that are not at their default."""
        return tuple(field.name for field in dataclasses.fields(self) if getattr(self, field.name) != field.default)

    def offered(self, solver: AnySolver) -> bool:
        """Whether this method can differentiate a solve by that solver."""
        return solver.family != "reversible"

    def certified(self, *, adaptive: bool) -> bool:
        """Whether a backward pass leaves a certificate, over equal steps or over those of a tolerance."""
        return self.certifies

    def cost(self, solver: AnySolver, steps: int) -> Cost:
        """The closed form that the conformance tests hold the counters to."""
        raise NotImplementedError

    def estimate(self, certificate: float | None, steps: int) -> float | None:
        """The relative error to expect of the whole gradient, from what a backward pass knows anyway.

        Observed ratios of the true error to it are in docs/how-to/diagnose-gradients.md.

        Args:
            certificate: the reconstruction residual, see `Stats.certificate`; None before a backward pass.
            steps: of the solve.

        Returns:
            The estimate; None where the certificate does not tell.
        """
        return None


def _spell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else getattr(value, "label", str(value))


@dataclass(frozen=True)
class Way:
    """What a backend does for a gradient method, with equal steps and with tolerances.

    Each is a function or, so that nothing has to be imported before it is used, "module:name" of one. What it takes
    and returns is the backend's own convention: see `odenet_torch.gradients.solve`, `odenet_jax.gradients.solve`.

    Args:
        fixed: with equal steps.
        adaptive: with tolerances; None where that is not offered.
        options: names of the method's options that are offered; None for all.
        adaptive_options: of these, names of the options that are offered with tolerances; None for all.
    """

    fixed: str | Callable[..., Any]
    adaptive: str | Callable[..., Any] | None = None
    options: tuple[str, ...] | None = None
    adaptive_options: tuple[str, ...] | None = None

    def load(self, *, adaptive: bool = False) -> Callable[..., Any]:
        """The function.

        Raises:
            BackendUnavailableError: its module cannot be imported, or has no such name.
        """
        where = self.adaptive if adaptive else self.fixed
        assert where is not None  # a choice that is offered
        if not isinstance(where, str):
            return where
        module, _, name = where.partition(":")
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise BackendUnavailableError(
                f"{where}, which carries out a gradient method, cannot be loaded ({error})",
                '"module:name" of a function',
                "repair the package that announces it",
            ) from error


@dataclass(frozen=True)
class Method:
    """A gradient method of another package: what an entry point of the group `odenet.gradients` names.

    Args:
        gradient: the record.
        ways: what each backend does for it, by name of backend.
    """

    gradient: type[Gradient]
    ways: Mapping[str, Way] = field(default_factory=dict)
