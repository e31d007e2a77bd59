"""How a backend carries out a gradient method, as data that loads no framework."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from odenet._errors import BackendUnavailableError
from odenet._gradients.record import Gradient


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
