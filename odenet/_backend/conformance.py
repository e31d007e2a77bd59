"""What every backend is held to, whoever wrote it: what it says that it does is right, the rest is refused.

Each check compares the backend with arithmetic done here in NumPy, or with an exact solution. Fields are of `+ - * /`
alone, so that they run on arrays of any framework.
Over 250 lines: one list of checks, which share the field, the weights and the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from odenet import _tree
from odenet._backend.entry import BackendEntry
from odenet._backend.registry import backend, entry
from odenet._backend.solve import solve, value_and_grad
from odenet._errors import DeviceUnavailableError, DtypeError, StateError, UnsupportedError
from odenet._gradients.names import GRADIENTS
from odenet._gradients.record import Gradient
from odenet._nets.spec import NetSpec
from odenet._problem.depth import Depth
from odenet._problem.grid import Grid
from odenet._solvers.family import AnySolver
from odenet._solvers.names import ALL_SOLVERS
from odenet._solvers.names import solver as solver_named
from odenet._solvers.reversible import ReversibleSolver
from odenet._solvers.runge_kutta import Solver
from odenet._solvers.step import Leaves, add, increment, positions

if TYPE_CHECKING:
    import numpy as np

ROUNDING = 1e-12  # of values in float64 that differ by the order of sums
STEPS = 8


@dataclass(frozen=True)
class Check:
    """One thing that a backend is held to. Calling it raises AssertionError where it does not hold.

    Args:
        name: what is checked, for the reports of a test runner.
        run: the check.
    """

    name: str
    run: Callable[[], None]

    def __call__(self) -> None:
        self.run()

    def __str__(self) -> str:
        return self.name


def conformance(name: str) -> tuple[Check, ...]:
    """The checks of a backend, from what its entry says that it offers. In a pytest of your own:

        @pytest.mark.parametrize("check", odenet.kit.conformance("mine"), ids=str)
        def test_conformance(check):
            check()

    Args:
        name: of a known backend whose framework is installed.

    Raises:
        UnknownNameError, BackendUnavailableError: there is no such backend here.
    """
    known = entry(name)
    known.load()
    return tuple(_checks(known))


def _checks(known: BackendEntry) -> Iterator[Check]:
    yield Check("devices and number types", partial(_prepares, known))
    yield Check("what it does for each gradient method can be loaded", partial(_loads, known))
    for label, record in ALL_SOLVERS.items():
        methods = [kind() for kind in GRADIENTS.values()]
        if not any(known.offers(record, method) for method in methods):
            yield Check(f"refuses {label} with equal steps", partial(_refuses, known, record, False))
        elif isinstance(record, (Solver, ReversibleSolver)):
            yield Check(f"equal steps of {label}", partial(_steps, known, record))
        if not any(known.offers(record, method, adaptive=True) for method in methods):
            yield Check(f"refuses {label} with tolerances", partial(_refuses, known, record, True))
        else:
            yield Check(f"tolerances of {label}", partial(_tolerances, known, record))
    fixed = [record for record in ALL_SOLVERS.values() if label_of(known, record)]
    if fixed:
        for direction in ("forward", "backward", "nowhere"):
            yield Check(f"times that go {direction}", partial(_times, known, label_of(known, fixed[0]), direction))
        yield Check("slopes of another shape are refused", partial(_slopes, known, label_of(known, fixed[0])))
    for kind in GRADIENTS.values():
        method = kind()
        mine = [record for record in fixed if known.offers(record, method)]
        if mine:
            yield Check(f"gradient {kind.name} of {mine[0].label}", partial(_gradient, known, method, mine[0]))
        adaptive = [record for record in ALL_SOLVERS.values() if known.offers(record, method, adaptive=True)]
        if adaptive:
            solver = next((record for record in adaptive if record.name == "dopri5"), adaptive[0])
            yield Check(f"gradient {kind.name} with tolerances", partial(_adaptive_gradient, known, method, solver))
    yield Check("networks" if known.networks else "refuses networks", partial(_networks, known))


def label_of(known: BackendEntry, record: AnySolver) -> str:
    """The solver's label if the backend takes its equal steps, and odenet knows them; else nothing."""
    offered = any(known.offers(record, kind()) for kind in GRADIENTS.values())
    return record.label if offered and isinstance(record, (Solver, ReversibleSolver)) else ""


def _prepares(known: BackendEntry) -> None:
    loaded = backend(known.name)
    assert loaded.devices()[0] == "cpu", f"devices() begins with {loaded.devices()[0]}"
    with loaded.prepare("float64", "cpu"):
        pass
    for dtype, device, error in (("float63", "cpu", DtypeError), ("float64", "toaster:7", DeviceUnavailableError)):
        try:
            with loaded.prepare(dtype, device):
                raise AssertionError(f"prepare({dtype!r}, {device!r}) raised nothing")
        except error:
            pass


def _loads(known: BackendEntry) -> None:
    for name in known.gradients:
        way = known.way(GRADIENTS[name])
        assert way is not None
        assert callable(way.load()), f"what {known.name} does for {name} cannot be called"
        assert way.adaptive is None or callable(way.load(adaptive=True))


def _refuses(known: BackendEntry, record: AnySolver, adaptive: bool) -> None:
    choices: dict[str, Any] = {"rtol": 1e-3} if adaptive else {"steps": 4}
    try:
        solve(lambda t, y: -y, 1.0, solver=record, backend=known, **choices)
    except UnsupportedError:
        return
    raise AssertionError(f"{known.name} solved by {record.label}, which it does not offer")


def _field(t: Any, y: Any, w: Any) -> Any:
    u = y["a"] * w["scale"] + t * y["b"][0]
    return {"a": u / (1 + u * u), "b": (y["a"].sum() * 0.1 - y["b"][0] * w["rate"],)}


def _state() -> Any:
    import numpy as np

    return {"a": np.linspace(-1.0, 1.5, 6).reshape(2, 3), "b": (np.array(0.7),)}


def _weights(record: AnySolver, steps: int) -> Depth:
    """Smooth in depth: layers for Euler's method, nodes for the others."""
    import numpy as np

    kind, count = ("piecewise", steps) if record.name == "euler" else ("linear", steps + 1)
    s = np.arange(count) / steps
    return Depth({"scale": (1 + 0.5 * np.sin(2 * s))[:, None] * np.array([1.0, -0.7, 0.4]), "rate": 1 + s * s}, kind)  # pyright: ignore[reportArgumentType]


class _Forth:
    """f on NumPy arrays along depth, at the places where a solver reads it."""

    def __init__(self, record: Solver | ReversibleSolver, y0: Any, depth: Depth, grid: Grid) -> None:
        self.record, self.depth, self.grid = record, depth, grid
        self.leaves, self.unflatten = _tree.flatten(y0)

    def slope(self, n: int, position: float, y: Leaves) -> Leaves:
        layer, start, span = self.depth.place(n, self.grid.steps)
        weights = self.depth.between(layer, start + span * position)
        return tuple(_tree.leaves(_field(self.grid.time(n, position), self.unflatten(y), weights)))

    def increment(self, n: int, y: Leaves, *, reverse: bool = False) -> Leaves:
        places = positions(self.record.increments, reverse)
        h = -self.grid.h if reverse else self.grid.h
        return increment(self.record.increments, lambda i, at: self.slope(n, places[i], at), y, h)

    def rounded(self, y: Leaves, shift: float = 0.0) -> Leaves:
        import numpy as np

        return tuple(np.round(leaf + shift) for leaf in y)

    def of_samples(self, number: Callable[[Any], Any], y: Leaves) -> Leaves:
        import numpy as np

        numbers = [number(np.arange(len(leaf) if leaf.ndim else 1)).astype(leaf.dtype) for leaf in y]
        return tuple(
            a.reshape([-1] + [1] * (leaf.ndim - 1) if leaf.ndim else []) for a, leaf in zip(numbers, y, strict=True)
        )

    def states(self) -> list[Leaves]:
        """After each step, y0 first."""
        y = tuple(self.leaves)
        states = [y]
        if isinstance(self.record, Solver):
            for n in range(self.grid.steps):
                y = add(y, self.increment(n, y))
                states.append(y)
            return states
        carried = self.record.start(self, self.grid.h, y)
        for n in range(self.grid.steps):
            carried = self.record.step(self, n, self.grid.h, self.grid.steps, carried)
            states.append(carried[0])
        return states


def _numpy(known: BackendEntry, tree: Any) -> list[np.ndarray]:
    loaded = backend(known.name)
    return [loaded.to_numpy(leaf) for leaf in _tree.leaves(tree)]


def _close(actual: Any, expected: Any, tolerance: float, quantity: str) -> None:
    import numpy as np

    size = max(float(np.abs(expected).max()), 1e-300)
    error = float(np.abs(np.asarray(actual) - np.asarray(expected)).max()) / size
    assert error <= tolerance, f"{quantity} is {error:.1e} off, and may be {tolerance:.0e}"


def _steps(known: BackendEntry, record: Solver | ReversibleSolver) -> None:
    import numpy as np

    y0, depth, t1 = _state(), _weights(record, STEPS), 1.5
    truth = _Forth(record, y0, depth, Grid(0.0, t1, STEPS, (STEPS,))).states()
    with backend(known.name).prepare("float64", "cpu"):
        solution = solve(_field, y0, depth, t1=t1, ts="all", solver=record, backend=known)
        ts, ys = backend(known.name).to_numpy(solution.ts), _numpy(known, solution.ys)
    _close(ts, np.arange(STEPS + 1) * t1 / STEPS, ROUNDING, "ts")
    for column, leaf in zip(zip(*truth, strict=True), ys, strict=True):
        assert leaf.shape == np.stack(column).shape, f"ys of shape {leaf.shape}, time first"
        _close(leaf, np.stack(column), ROUNDING, f"a state by {record.label}")
    stats = solution.stats
    assert (stats.backend, stats.solver, int(stats.steps)) == (known.name, record.label, STEPS)


def _tolerances(known: BackendEntry, record: AnySolver) -> None:
    import numpy as np

    y0 = np.array([1.0, 2.0])
    with backend(known.name).prepare("float64", "cpu"):
        solution = solve(lambda t, y: -(t * y), y0, t1=1.5, rtol=1e-6, atol=1e-8, solver=record, backend=known)
        (y1,) = _numpy(known, solution.y1)
    _close(y1, y0 * np.exp(-(1.5**2) / 2), 1e-3, f"y(t1) by {record.label} with rtol=1e-6")


def _times(known: BackendEntry, label: str, direction: str) -> None:
    import numpy as np

    t0, t1 = {"forward": (0.5, 1.0), "backward": (1.0, 0.5), "nowhere": (0.5, 0.5)}[direction]
    with backend(known.name).prepare("float64", "cpu"):
        solution = solve(lambda t, y: -(t * y), 1.0, t0=t0, t1=t1, steps=512, solver=solver_named(label), backend=known)
        (y1,) = _numpy(known, solution.y1)
    _close(y1, np.exp((t0**2 - t1**2) / 2), 1e-2, f"y(t1) from t0={t0} to t1={t1}")


def _slopes(known: BackendEntry, label: str) -> None:
    import numpy as np

    with backend(known.name).prepare("float64", "cpu"):
        try:
            solve(lambda t, y: y[:1], np.ones(3), steps=2, solver=solver_named(label), backend=known)
        except StateError:
            return
    raise AssertionError("a slope of shape (1,) for a state of shape (3,) was accepted")


def _loss(solution: Any) -> Any:
    return (solution.y1["a"] * solution.y1["a"]).sum() + solution.y1["b"][0] * 2


def _relative_error(known: BackendEntry, method: Gradient, record: AnySolver, steps: int) -> float | None:
    """Relative error of the gradient, against central differences of a loop in NumPy; None where it is refused."""
    import numpy as np

    y0, depth = _state(), _weights(record, steps)
    with backend(known.name).prepare("float64", "cpu"):
        try:
            _, gradients, _ = value_and_grad(_loss, _field, y0, depth, solver=record, gradient=method, backend=known)
        except UnsupportedError:
            return None
        mine = np.concatenate([g.ravel() for g in _numpy(known, (gradients.y0, gradients.weights))])
    leaves, unflatten = _tree.flatten((y0, depth.tree))

    def value(place: tuple[int, int], by: float) -> float:
        moved = [np.array(leaf, float) for leaf in leaves]
        moved[place[0]].reshape(-1)[place[1]] += by
        start, tree = unflatten(moved)
        assert isinstance(record, (Solver, ReversibleSolver))
        grid = Grid(0.0, 1.0, steps, (steps,))
        last = _Forth(record, start, Depth(tree, depth.kind), grid).states()[-1]
        a, b = last
        return float((a * a).sum() + b * 2)

    eps = 1e-6
    places = [(i, j) for i, leaf in enumerate(leaves) for j in range(np.size(leaf))]
    true = np.array([(value(place, eps) - value(place, -eps)) / (2 * eps) for place in places])
    return float(np.linalg.norm(mine - true) / np.linalg.norm(true))


def _gradient(known: BackendEntry, method: Gradient, record: AnySolver) -> None:
    error = _relative_error(known, method, record, STEPS)
    if error is None:
        return
    if method.exactness.startswith("exact"):
        assert error < 1e-8, f"{method.label}, {method.exactness}, is {error:.1e} off central differences"
        return
    finer = _relative_error(known, method, record, 4 * STEPS)
    assert finer is not None
    assert finer < max(0.6 * error, 1e-8), f"{method.label} is {error:.1e} off at N={STEPS}, and {finer:.1e} at 4 N"
    assert error < 0.5, f"{method.label} is {error:.1e} off at N={STEPS}"


def _adaptive_gradient(known: BackendEntry, method: Gradient, record: AnySolver) -> None:
    """A gradient that the method's own description calls exact is that of the ODE; others come closer with it."""
    error = _adaptive_error(known, method, record, 1e-10)
    if error is None or error < 1e-4:
        return
    exact = method.exactness.startswith("exact")
    assert not exact, f"{method.label}, {method.exactness}, is {error:.1e} off the gradient of the ODE with rtol=1e-10"
    looser = _adaptive_error(known, method, record, 1e-4)
    assert looser is not None
    assert error < 0.7 * looser, f"{method.label} is {looser:.1e} off with rtol=1e-4, and {error:.1e} with 1e-10"


def _adaptive_error(known: BackendEntry, method: Gradient, record: AnySolver, rtol: float) -> float | None:
    """Error of the gradient of `y' = -w t y`, which is known: dy(t1)/dw = -t1²/2 y(t1). None where it is refused."""
    import numpy as np

    with backend(known.name).prepare("float64", "cpu"):
        try:
            _, gradients, _ = value_and_grad(
                lambda solution: solution.y1.sum(),
                lambda t, y, w: -(w * (t * y)),
                np.array([1.0, 2.0]),
                np.array([1.0]),
                t1=1.5,
                rtol=rtol,
                atol=rtol / 100,
                solver=record,
                gradient=method,
                backend=known,
            )
        except UnsupportedError:
            return None
        mine = np.concatenate([g.ravel() for g in _numpy(known, (gradients.y0, gradients.weights))])
    decay = np.exp(-(1.5**2) / 2)
    true = np.array([decay, decay, -(1.5**2) / 2 * 3 * decay])
    return float(np.linalg.norm(mine - true) / np.linalg.norm(true))


def _networks(known: BackendEntry) -> None:
    import numpy as np

    loaded, spec = backend(known.name), NetSpec("mlp", depth=4, width=3, hidden=5, inputs=(2,), classes=3)
    inputs, labels = np.random.default_rng(0).standard_normal((4, 2)), np.array([0, 1, 2, 1])
    weights = spec.init(0)
    record = next(r for r in ALL_SOLVERS.values() if label_of(known, r) or not known.networks)
    choices: dict[str, Any] = {"solver": record, "gradient": GRADIENTS["backprop"](), "dtype": "float64"}
    with loaded.prepare("float64", "cpu"):
        try:
            model = loaded.build(spec, weights, **choices)
        except UnsupportedError:
            assert not known.networks, f"{known.name} says that it has networks, and builds none"
            return
        assert known.networks, f"{known.name} says that it has no networks, and builds one"
        read = loaded.read(model)
        assert read.keys() == weights.keys()
        for name, array in weights.items():
            _close(read[name], array, ROUNDING, f"{name}, as it was read back,")
        evaluation = loaded.evaluate(model, inputs, labels)
        assert evaluation.outputs.shape == (4, 3)
        generator = np.random.default_rng(1)
        direction = {name: generator.standard_normal(array.shape) for name, array in weights.items()}

        def loss(by: float) -> float:
            moved = {name: np.asarray(array, float) + by * direction[name] for name, array in weights.items()}
            return loaded.evaluate(loaded.build(spec, moved, **choices), inputs, labels).loss

        slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
        mine = sum(float((evaluation.gradients[name] * direction[name]).sum()) for name in direction)
        _close(mine, slope, 1e-6, "the gradient of a network's loss")
        assert loaded.measure(model, inputs, labels, 1).f_forward == record.evaluations(4)
