"""A backend before it is loaded: what it is called and what it can do, as data."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from odenet._backend.interface import Backend
from odenet._errors import BackendUnavailableError, InputError, UnsupportedError
from odenet._gradients.names import GRADIENTS, foreign_way
from odenet._gradients.record import Gradient, Way
from odenet._solvers.family import AnySolver
from odenet._solvers.names import ALL_SOLVERS


@dataclass(frozen=True)
class BackendEntry:
    """A backend before it is loaded: plain data, so that knowing it costs no import of its framework.

    What it can do is said here and nowhere else: what is left out is not offered.

    Args:
        name: what a user calls it.
        framework: import name of the framework.
        install: the command that makes it available.
        implementation: "module:Class" of its `Backend`.
        array_modules: top-level modules whose array types it owns; this is how `solve` finds it from y0.
        methods: what it does for each gradient method that it offers.
        families: of solvers whose every method it runs with equal steps, those of other packages included:
            "runge-kutta", "reversible", "delegated", or one of your own.
        adaptive_families: the same with tolerances, for the methods that estimate their error.
        solvers: names of further solvers, with equal steps.
        adaptive: names of further solvers, with tolerances.
        networks: whether it builds networks of a `NetSpec` and examines modules.
        compiles: whether its solves compile their steps where they are asked to (`compile=True`).
        environment: variables that a job of the command line sets, where they are unset, before the framework is
            imported.
        base: another backend, whose arrays it takes. Such a backend is used where it is named, and owns no arrays.

    Raises:
        InputError: methods that are not `Way`s by class of gradient method.
    """

    name: str
    framework: str
    install: str
    implementation: str
    array_modules: tuple[str, ...] = ()
    methods: Mapping[type[Gradient], Way] = field(default_factory=dict)
    families: tuple[str, ...] = ()
    adaptive_families: tuple[str, ...] = ()
    solvers: tuple[str, ...] = ()
    adaptive: tuple[str, ...] = ()
    networks: bool = False
    compiles: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    base: BackendEntry | None = None

    def __post_init__(self) -> None:
        for kind, way in self.methods.items():
            if not (isinstance(kind, type) and issubclass(kind, Gradient) and isinstance(way, Way)):
                raise InputError(
                    f"methods of backend {self.name} with {kind!r}: {way!r}",
                    "classes of gradient methods, and a Way for each",
                )

    @property
    def available(self) -> bool:
        """Whether the framework is installed, and that of `base`. They are looked for, not imported."""
        installed = importlib.util.find_spec(self.framework) is not None
        return installed and (self.base is None or self.base.available)

    def owns(self, leaf: object) -> bool:
        """Whether an array is of this backend's framework."""
        return any(kind.__module__.partition(".")[0] in self.array_modules for kind in type(leaf).__mro__)

    def way(self, gradient: Gradient | type[Gradient]) -> Way | None:
        """What it does for a gradient method, its own or one that another package brought; None: nothing."""
        kind = gradient if isinstance(gradient, type) else type(gradient)
        return self.methods.get(kind) or foreign_way(kind, self.name)

    def method(self, gradient: Gradient, *, adaptive: bool = False) -> Callable[..., Any]:
        """The function of a gradient method that is offered (see `require`), with equal steps or with tolerances."""
        way = self.way(gradient)
        assert way is not None
        return way.load(adaptive=adaptive)

    def refuse(self, features: Mapping[str, bool]) -> None:
        """Raises UnsupportedError for the first feature, by name, that is asked for: this backend has none of them."""
        for feature, asked in features.items():
            if asked:
                others = "" if self.base is None else f"take backend={self.base.name!r}"
                raise UnsupportedError(f"{feature} on backend {self.name}", "the defaults", others)

    @property
    def gradients(self) -> tuple[str, ...]:
        """Names of the gradient methods that it offers."""
        return tuple(name for name, kind in GRADIENTS.items() if self.way(kind) is not None)

    def runs(self, *, adaptive: bool = False) -> tuple[str, ...]:
        """Names of the solvers that it offers, with equal steps or with tolerances."""
        return tuple(name for name, record in ALL_SOLVERS.items() if self._runs(record, adaptive))

    def offers(self, solver: AnySolver, gradient: Gradient, *, adaptive: bool = False) -> bool:
        """Whether this pair can be solved here, with equal steps or with tolerances."""
        return not any(self.lacks(solver, gradient, adaptive=adaptive))

    def lacks(self, solver: AnySolver, gradient: Gradient, *, adaptive: bool = False) -> Iterator[str]:
        """What of the pair is not offered, in words."""
        steps = "tolerances" if adaptive else "equal steps"
        if not self._runs(solver, adaptive):
            yield f"solver {solver.label} with {steps}"
        way = self.way(gradient)
        if way is None or (adaptive and way.adaptive is None):
            yield f"gradient {gradient.label}{'' if way is None else f' with {steps}'}"
        elif way.options is not None and (more := sorted(set(gradient.changed) - set(way.options))):
            yield f"option {', '.join(more)} of gradient {gradient.name}"
        elif (
            adaptive
            and way.adaptive_options is not None
            and (more := sorted(set(gradient.changed) - set(way.adaptive_options)))
        ):
            yield f"option {', '.join(more)} of gradient {gradient.name} with {steps}"
        if not gradient.offered(solver):
            yield f"gradient {gradient.label} of solver {solver.label}"

    def require(self, solver: AnySolver, gradient: Gradient, *, adaptive: bool = False) -> None:
        """Raises UnsupportedError with what is offered, unless the pair is."""
        missing = list(self.lacks(solver, gradient, adaptive=adaptive))
        if not missing:
            return
        steps = "tolerances" if adaptive else "equal steps"
        offered = [kind for kind in GRADIENTS.values() if (way := self.way(kind)) and (way.adaptive or not adaptive)]
        raise UnsupportedError(
            f"backend {self.name} does not offer {' and '.join(missing)}",
            f"with {steps}: solvers {', '.join(self.runs(adaptive=adaptive)) or 'none'}; "
            f"gradients {', '.join(self._spelled(kind) for kind in offered) or 'none'} "
            "(reversible with a reversible solver, the adjoints with a Runge-Kutta method; checkpoint of a reversible "
            "solver without options or with segments=K)",
            "choose one of these, or another backend (`odenet list backends`)",
        )

    def load(self) -> Backend:
        """The backend itself; imports the framework.

        Raises:
            BackendUnavailableError: the framework is not installed.
        """
        if not self.available:
            raise BackendUnavailableError(
                f"backend {self.name} is known but not available: {self.framework} "
                f"{'is' if self.base is None else f'or {self.base.name}, on which it stands, is'} not installed",
                "an installed framework",
                self.install,
            )
        module, _, name = self.implementation.partition(":")
        try:
            return getattr(importlib.import_module(module), name)()
        except Exception as error:  # a framework that is installed but broken may fail in any way
            raise BackendUnavailableError(
                f"backend {self.name} is installed but {self.implementation} cannot be loaded ({error})",
                "a framework that imports",
                f"try `python -c 'import {self.framework}'`, and {self.install}",
            ) from error

    def _runs(self, solver: AnySolver, adaptive: bool) -> bool:
        names, families = (self.adaptive, self.adaptive_families) if adaptive else (self.solvers, self.families)
        return solver.name in names or (solver.family in families and (solver.estimates_error or not adaptive))

    def _spelled(self, kind: type[Gradient]) -> str:
        way = self.way(kind)
        if way is None or way.options is None:
            return kind.name
        return f"{kind.name} (options {', '.join(way.options) or 'none'})"
