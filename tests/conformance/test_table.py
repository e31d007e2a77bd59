"""The table of gradient methods and of what a user may ask of each: every entry equals backprop within its bound.

Leaf by leaf: a gradient that is missing, or that of another leaf, is off by about 1 there however small the leaf is.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
from cases import BACKENDS, sigmoid

import odenet
from odenet import Depth, _tree
from odenet._gradients.names import GRADIENTS
from odenet._solvers.reversible import REVERSIBLE_SOLVERS

STEPS = 8
Arrays = Mapping[str, Any]

# the largest relative error of a leaf's gradient in float64. None: exact, so up to rounding. The others are about twice
# what was measured here on the worst leaf; their orders are those of test_gradients.
METHODS: dict[tuple[str, str], float | None] = {
    ("heun", "backprop"): None,
    ("heun", "checkpoint"): None,
    ("rk4", "checkpoint:segments=3"): None,
    ("heun", "checkpoint:states=3"): None,
    ("euler", "checkpoint:memory=4K"): None,
    ("heun", "discrete-adjoint"): 1e-3,
    ("heun", "discrete-adjoint:correct=no"): 6e-3,
    ("euler", "discrete-adjoint"): 7e-2,
    ("euler", "discrete-adjoint:iterations=3"): 1e-3,
    ("euler", "discrete-adjoint:iterations=12"): 1e-11,
    ("euler", "discrete-adjoint:predictor=extrapolate:order=2"): 4e-2,
    ("heun", "discrete-adjoint:anchors=4"): 1e-3,
    ("euler", "discrete-adjoint:tolerance=1e-7"): 1e-7,
    ("rk4", "continuous-adjoint"): 2e-4,
    ("rk4", "continuous-adjoint:interpolate=yes"): 2e-4,
    ("heun", "continuous-adjoint:solver=rk4:steps=16"): 6e-2,
    ("reversible-heun", "reversible"): None,
    ("alf", "reversible"): None,
    ("reversible:heun", "reversible"): None,
}
ROUNDING = {"float64": 1e-12, "float32": 4e-6, "bfloat16": 4e-2}
EPSILON = 1e-5  # of the difference quotients that backprop itself is held to


@dataclass(frozen=True)
class Row:
    """What a user asks.

    Args:
        arrays: all that the loss is made from, by name.
        wanted: those with a gradient.
        loss: `loss(arrays, solve)`, where `solve` takes field, y0, weights and times.
        unread: wanted, but without any influence: the gradient is zero.
        dtype: of all arrays.
    """

    arrays: Callable[[], dict[str, np.ndarray]]
    wanted: tuple[str, ...]
    loss: Callable[[Arrays, Callable[..., odenet.Solution]], Any]
    unread: tuple[str, ...] = ()
    dtype: str = "float64"


def arrays(layers: int = 1) -> dict[str, np.ndarray]:
    """A state and weights; with layers, a smooth function of depth."""
    rng = np.random.default_rng(7)
    s = np.arange(layers) / 8
    shapes = {"a": (3, 3), "b": (3,), "spare": (2,)}
    found = {}
    for name, shape in shapes.items():
        one, other = rng.standard_normal((2, *shape)) / 2
        found[name] = np.multiply.outer(np.cos(s), one) + np.multiply.outer(np.sin(s), other)
        if layers == 1:
            found[name] = found[name][0]
    return found | {"y0": rng.standard_normal((2, 3)), "scale": np.asarray(0.8)}


def field(t: Any, y: Any, w: Any) -> Any:
    """Reads time, and a and b of the weights."""
    return sigmoid(y @ w["a"] + w["b"]) * (1 - t * 0.5)


def square(solution: odenet.Solution) -> Any:
    """Of every leaf at every time kept, none of them alike."""
    total = 0.0
    for i, leaf in enumerate(_tree.leaves(solution.ys)):
        total = total + (leaf * leaf * 0.5 + (1 + i) * leaf).sum()
    return total


def weights(found: Arrays, *names: str) -> dict[str, Any]:
    """A tree of those weights."""
    return {name: found[name] for name in names or ("a", "b")}


def single(found: Arrays, n: int) -> dict[str, Any]:
    """Layer n of stacked weights, as arrays of their own."""
    return {"a": found[f"a{n}"], "b": found[f"b{n}"]}


def apart(layers: int) -> dict[str, np.ndarray]:
    """`arrays` with each layer's weights as arrays of their own: a0, b0, a1 ..."""
    found = arrays(layers)
    return {f"{name}{n}": found[name][n] for name in ("a", "b") for n in range(layers)} | {"y0": found["y0"]}


def swapped(t: Any, y: Any, w: Any) -> Any:
    """A field of a nested state, whose leaves read each other."""
    p, (q, s) = y["p"], y["qs"]
    return {"p": sigmoid(q @ w["a"]) + w["b"], "qs": (sigmoid(p) * s, 0.1 * p.sum() - s * t)}


def kind(kind: str, layers: int, **times: Any) -> Row:
    """Weights of that kind along depth."""
    return Row(
        lambda: arrays(layers),
        ("y0", "a", "b"),
        lambda found, solve: square(solve(field, found["y0"], Depth(weights(found), kind), **times)),  # pyright: ignore
    )


PIECEWISE = kind("piecewise", 4)
ROWS: dict[str, Row] = {
    "shared": kind("shared", 1),
    "piecewise": kind("piecewise", 8),
    "piecewise, two steps a layer": PIECEWISE,
    "linear": kind("linear", 9),
    "linear, four steps an interval": kind("linear", 3),
    "several times": kind("piecewise", 4, ts=[0.0, 0.25, 0.5, 0.5, 1.0]),
    "all times": kind("linear", 5, ts="all"),
    "backward in time": kind("piecewise", 4, t0=1.0, t1=0.25, ts=[1.0, 0.625, 0.25]),
    "no time": Row(
        arrays,
        ("y0", "a", "b"),
        lambda found, solve: square(solve(field, found["y0"], weights(found), t0=0.5, t1=0.5)),
        unread=("a", "b"),
    ),
    "tied": Row(
        lambda: apart(2),
        ("y0", "a0", "b0", "a1", "b1"),
        lambda found, solve: square(
            solve(field, found["y0"], Depth.each([single(found, n) for n in (0, 1, 0, 0, 1, 0, 0, 0)]))
        ),
    ),
    "tied within a layer": Row(
        arrays,
        ("y0", "a"),
        lambda found, solve: square(
            solve(
                lambda t, y, w: sigmoid(y @ w["one"]) - sigmoid(y @ w["two"].T),
                found["y0"],
                {"one": found["a"], "two": found["a"]},
            )
        ),
    ),
    "frozen leaf": Row(
        lambda: arrays(4),
        ("y0", "b"),
        lambda found, solve: square(solve(field, found["y0"], Depth(weights(found), "piecewise"))),
    ),
    "frozen layers": Row(
        lambda: apart(4),
        ("y0", "a1", "b3"),
        lambda found, solve: square(solve(field, found["y0"], Depth.each([single(found, n) for n in range(4)]))),
    ),
    "all frozen": Row(
        lambda: arrays(4),
        ("y0",),
        lambda found, solve: square(solve(field, found["y0"], Depth(weights(found), "piecewise"))),
    ),
    "unused": Row(
        lambda: arrays(4),
        ("y0", "a", "b", "spare"),
        lambda found, solve: square(solve(field, found["y0"], Depth(weights(found, "a", "b", "spare"), "piecewise"))),
        unread=("spare",),
    ),
    "extra argument": Row(
        lambda: arrays(4),
        ("y0", "a", "b", "scale"),
        lambda found, solve: square(
            solve(lambda t, y, w: found["scale"] * field(t, y, w), found["y0"], Depth(weights(found), "piecewise"))
        ),
    ),
    "read in two ways": Row(  # handed over, and closed over
        lambda: apart(2),
        ("y0", "a0", "b0"),
        lambda found, solve: square(
            solve(lambda t, y, w: sigmoid(y @ w["a"] + found["b0"]) @ found["a0"], found["y0"], single(found, 0))
        ),
    ),
    "under two names": Row(
        lambda: arrays(4),
        ("y0", "a"),
        lambda found, solve: square(
            solve(
                lambda t, y, w: sigmoid(y @ w["one"]) - sigmoid(y @ w["two"].T),
                found["y0"],
                Depth({"one": found["a"], "two": found["a"]}, "piecewise"),
            )
        ),
    ),
    "state and weight": Row(
        lambda: {"y0": arrays()["a"]},
        ("y0",),
        lambda found, solve: square(solve(lambda t, y, w: sigmoid(y @ w), found["y0"], found["y0"])),
    ),
    "nothing but an extra argument": Row(
        arrays,
        ("scale",),
        lambda found, solve: square(solve(lambda t, y: sigmoid(found["scale"] * y) - t, found["y0"])),
    ),
    "tuple output": Row(
        lambda: arrays(4),
        ("y0", "scale", "a", "b"),
        lambda found, solve: square(
            solve(
                lambda t, y, w: (sigmoid(y[0] @ w["a"]) * y[1], y[1] - sigmoid(y[0] + w["b"]).sum() * 0.1),
                (found["y0"], found["scale"]),
                Depth(weights(found), "piecewise"),
                ts=[0.5, 1.0],
            )
        ),
    ),
    "one output of a tuple": Row(
        lambda: arrays(4),
        ("y0", "scale", "a", "b"),
        lambda found, solve: (
            solve(
                lambda t, y, w: (sigmoid(y[0] @ w["a"]) * y[1], y[1] - sigmoid(y[0] + w["b"]).sum() * 0.1),
                (found["y0"], found["scale"]),
                Depth(weights(found), "piecewise"),
            ).y1[1]
            ** 2
        ).sum(),
    ),
    "tree": Row(
        lambda: arrays(5),
        ("y0", "scale", "a", "b"),
        lambda found, solve: square(
            solve(
                swapped,
                {"p": found["y0"], "qs": (found["y0"] * 0.5, found["scale"])},
                Depth(weights(found), "linear"),
                ts=[0.0, 0.5, 1.0],
            )
        ),
    ),
    "y0 without grad": Row(
        lambda: arrays(4),
        ("a", "b"),
        lambda found, solve: square(solve(field, found["y0"], Depth(weights(found), "piecewise"), ts="all")),
    ),
    "a field that reads no state": Row(
        arrays,
        ("y0", "b"),
        lambda found, solve: square(
            solve(lambda t, y, w: 0 * y + sigmoid(w["b"]) * t, found["y0"], weights(found, "b"))
        ),
    ),
    "a field that reads no weights": Row(
        arrays,
        ("y0", "b"),
        lambda found, solve: square(solve(lambda t, y, w: sigmoid(y), found["y0"], weights(found, "b"))),
        unread=("b",),
    ),
    "everything": Row(
        lambda: apart(3) | {"spare": np.ones(2), "scale": np.asarray(0.8), "unused": np.ones(3)},
        ("y0", "scale", "a0", "b0", "b1", "spare", "unused"),
        lambda found, solve: square(
            solve(
                lambda t, y, w: _tree.map(lambda k: found["scale"] * k, swapped(t, y, w)),
                {"p": found["y0"], "qs": (found["y0"] * 0.5, found["scale"])},
                Depth.each([single(found, n) | {"spare": found["spare"]} for n in (0, 1, 0, 2)]),
                t0=1.0,
                t1=0.25,
                ts=[1.0, 0.625, 0.25],
            )
        ),
        unread=("spare", "unused"),
    ),
    "float32": dataclasses.replace(PIECEWISE, dtype="float32"),
    "bfloat16": dataclasses.replace(PIECEWISE, dtype="bfloat16"),
}


def solve(backend: str, solver: str, method: str) -> Callable[..., odenet.Solution]:
    """`odenet.solve` with these choices made."""
    choices: dict[str, Any] = {"solver": solver, "gradient": method, "backend": backend}
    return lambda *given, **times: odenet.solve(*given, **{"steps": STEPS, **times}, **choices)


def gradients(backend: str, row: Row, solver: str, method: str) -> dict[str, np.ndarray]:
    """Of a row's loss, by name, in float64."""
    return {"torch": _torch, "jax": _jax}[backend](row, solve(backend, solver, method))


def _torch(row: Row, solve: Callable[..., odenet.Solution]) -> dict[str, np.ndarray]:
    torch = importlib.import_module("torch")
    kind = getattr(torch, row.dtype)
    found = {name: torch.tensor(x, dtype=kind, requires_grad=name in row.wanted) for name, x in row.arrays().items()}
    got = torch.autograd.grad(row.loss(found, solve), [found[name] for name in row.wanted], allow_unused=True)
    zero = {name: np.zeros(found[name].shape) for name in row.wanted}
    return {name: zero[name] if g is None else g.double().numpy() for name, g in zip(row.wanted, got, strict=True)}


def _jax(row: Row, solve: Callable[..., odenet.Solution]) -> dict[str, np.ndarray]:
    jax, jnp = (importlib.import_module(name) for name in ("jax", "jax.numpy"))
    found = {name: jnp.asarray(x, row.dtype) for name, x in row.arrays().items()}
    wanted = {name: found[name] for name in row.wanted}
    got = jax.jit(jax.grad(lambda wanted: row.loss(found | wanted, solve)))(wanted)  # one program, not one an operation
    return {name: np.asarray(g, np.float64) for name, g in got.items()}


@cache
def reference(name: str, solver: str) -> dict[str, np.ndarray]:
    """Backprop on torch, for every backend."""
    with odenet.backend("torch").prepare("float64", "cpu"):
        return gradients("torch", ROWS[name], solver, "backprop")


def error(one: np.ndarray, other: np.ndarray) -> float:
    """|one - other| / |other|; where the other is zero, so must this one be."""
    size = np.linalg.norm(other)
    return float(np.linalg.norm(one - other) / size) if size else float(one.any())


def entries() -> Iterator[Any]:
    """The table, for each backend. On JAX, where each entry is a program to be compiled, one entry of each row, and so
    at least one of each method, is in the quick suite, on torch every third, and the whole in `make test-slow`."""
    for backend in BACKENDS:
        for i, (solver, method) in enumerate(METHODS):
            for j, name in enumerate(ROWS):
                quick = (i + j) % 3 == 0 if backend == "torch" else i == (5 * j) % len(METHODS)
                marks = () if quick else (pytest.mark.slow,)
                yield pytest.param(backend, solver, method, name, marks=marks, id=f"{backend}-{solver}-{method}-{name}")


@pytest.mark.parametrize(("backend", "solver", "method", "name"), list(entries()))
def test_every_leaf_is_that_of_backprop(backend: str, solver: str, method: str, name: str) -> None:
    row, bound = ROWS[name], METHODS[solver, method]
    expected = reference(name, solver)
    with odenet.backend(backend).prepare("float64", "cpu"):
        found = gradients(backend, row, solver, method)
    assert found.keys() == set(row.wanted)
    for key in row.wanted:
        assert found[key].shape == expected[key].shape
        assert found[key].any() == expected[key].any() == (key not in row.unread), key
        assert error(found[key], expected[key]) <= max(bound or 0.0, ROUNDING[row.dtype]), key


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.dtype == "float64"])
def test_what_they_are_held_to_is_the_difference_quotient_of_every_leaf(name: str) -> None:
    """Along a random direction, which takes the forward pass alone."""
    row, run = ROWS[name], solve("torch", "rk4", "backprop")
    base, exact = row.arrays(), reference(name, "rk4")
    torch = importlib.import_module("torch")
    for key in row.wanted:
        along = np.random.default_rng(3).standard_normal(base[key].shape)
        up, down = (
            float(row.loss({k: torch.tensor(x) for k, x in moved.items()}, run))
            for moved in (base | {key: base[key] + EPSILON * along}, base | {key: base[key] - EPSILON * along})
        )
        assert (up - down) / (2 * EPSILON) == pytest.approx((exact[key] * along).sum(), rel=1e-6, abs=1e-8), key


def test_the_table_has_every_method_and_every_reversible_solver() -> None:
    assert len(ROWS) >= len(METHODS)  # see `entries`
    assert {odenet.gradient(method).name for _, method in METHODS} == set(GRADIENTS.own)
    assert {odenet.solver(solver).name for solver, method in METHODS if method == "reversible"} == set(
        REVERSIBLE_SOLVERS
    )
