"""A backend of NumPy whose gradients are wrong by a known amount, so that jobs are tested without a framework."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from odenet import Backend, BackendEntry, Evaluation, Measurement, Part, Sample
from odenet._backend import registry as _registry
from odenet._backend.sample import places
from odenet._gradients.names import GRADIENTS, Backprop, Way
from odenet._solvers.names import made_reversible

ORDERS = {"discrete-adjoint": 2.0, "discrete-adjoint:correct=no": 1.0, "continuous-adjoint": 1.0}


@dataclass
class FakeBackend(Backend):
    """The gradient's relative error is `0.5 N**-order`, with the orders above; backprop is exact.

    Args:
        before: called with the model before it is measured; what it raises, the cell raises.
        measured: (solver, gradient, depth) of every model measured.
        scale: of the outputs, 1 + a difference from other backends.
    """

    before: Callable[[Any], object] = lambda model: None
    measured: list[tuple[str, str, int]] = field(default_factory=list)
    scale: float = 1.0

    def solve(self, problem: Any) -> Any:
        raise NotImplementedError

    def value_and_grad(self, loss: Any, problem: Any) -> Any:
        raise NotImplementedError

    def build(self, spec: Any, weights: Any, *, solver: Any, gradient: Any, dtype: str = "", device: str = "") -> Any:
        spec.check(weights)
        return SimpleNamespace(spec=spec, solver=solver, gradient=gradient, weights=weights)

    def read(self, model: Any) -> dict[str, np.ndarray]:
        return dict(model.weights)

    def evaluate(self, model: Any, inputs: np.ndarray, targets: np.ndarray) -> Evaluation:
        generator = np.random.default_rng(7)
        true = {name: generator.standard_normal(shape) for name, shape in model.spec.shapes().items()}
        wrong = {name: generator.standard_normal(value.shape) for name, value in true.items()}
        order = ORDERS.get(model.gradient.label)
        size = 0.0 if order is None else 0.5 * model.spec.depth**-order
        size *= _norm(true) / _norm(wrong)
        gradients = {name: value + size * wrong[name] for name, value in true.items()}
        outputs = self.scale * np.ones((len(inputs), 10))
        return Evaluation(1.5, outputs, gradients, None if order is None else size)

    def examine(self, model: Any, batch: Any, loss: Any, gradient: Any, *, reversible: bool = False) -> Sample:
        solver = made_reversible(model.solver) if reversible else model.solver
        found = self.evaluate(SimpleNamespace(**vars(model) | {"gradient": gradient, "solver": solver}), *batch)
        spec = model.spec
        part = Part("", solver, spec.depth, spec.along, places(spec), found.certificate)
        return Sample(found.loss, found.gradients, model.weights, (part,), "float64")

    def measure(self, model: Any, inputs: np.ndarray, targets: np.ndarray, repeats: int = 3) -> Measurement:
        self.before(model)
        self.measured.append((model.solver.name, model.gradient.label, model.spec.depth))
        cost = model.gradient.cost(model.solver, model.spec.depth)
        peak = 1000 * (model.spec.depth if model.gradient.name == "backprop" else 1)
        return Measurement(0.01, 0.03, 0.0, peak, "made up", cost.f_forward, cost.f_backward, cost.vjp)

    def to_numpy(self, leaf: Any) -> np.ndarray:
        return np.asarray(leaf)

    def prepare(self, dtype: str, device: str) -> AbstractContextManager[None]:
        return nullcontext()

    def devices(self) -> tuple[str, ...]:
        return ("cpu",)


@dataclass(frozen=True)
class FakeEntry(BackendEntry):
    """An entry whose backend is an object at hand."""

    made: Any = None

    def load(self) -> Backend:
        return self.made


def _norm(arrays: dict[str, np.ndarray]) -> float:
    return float(np.sqrt(sum((array**2).sum() for array in arrays.values())))


def _entry(name: str, made: Any, **options: Any) -> FakeEntry:
    common: dict[str, Any] = {"framework": "numpy", "install": f"pip install {name}", "made": made, "networks": True}
    common |= {"methods": dict.fromkeys(GRADIENTS.own.values(), Way("numpy:nothing", "numpy:nothing"))}
    common |= {"families": ("runge-kutta", "reversible"), "adaptive_families": ("runge-kutta",)}
    return FakeEntry(name=name, implementation="", **common | options)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeBackend]:
    """The backend called `fake`. Beside it are `other`, `poor` (backprop only) and `absent` (not installed)."""
    made = FakeBackend()
    entries = {
        "fake": _entry("fake", made),
        "other": _entry("other", FakeBackend(scale=1 + 1e-9)),
        "poor": _entry("poor", FakeBackend(), methods={Backprop: Way("numpy:nothing")}),
        "absent": _entry("absent", None, framework="a_framework_that_nobody_has"),
    }
    monkeypatch.setattr(_registry, "known", lambda: entries)
    _registry.forget()
    yield made
    _registry.forget()
