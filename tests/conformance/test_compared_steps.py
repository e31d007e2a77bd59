"""The certificate of the continuous adjoint: gradients of two steps against the exact ones, in every backend."""

from __future__ import annotations

import warnings
from typing import Any

import cases
import jax
import numpy as np
import pytest
from quick import quick

import odenet
from odenet import GradientWarning
from odenet._errors import UselessGradientWarning
from odenet._gradients.certified import quiet

CONTINUOUS = "continuous-adjoint"


def solved(backend: str, field: Any, y0: Any, weights: Any = None, loss: Any = None, **choices: Any) -> Any:
    """The gradient by y0 and weights in one vector, and the certificate."""
    with quiet():
        _, found, solution = odenet.value_and_grad(
            loss or (lambda s: (s.y1 * s.y1).sum() * 0.5), field, y0, weights, backend=backend, **choices
        )
    tree = found.y0 if weights is None else (found.y0, found.weights)
    return cases.flat(backend, tree), solution.stats.certificate


def blocks(backend: str, kind: str, scale: float) -> Any:
    """The field of a block of width 16, of which `scale` is the size of what it adds."""
    tanh = cases.tanh(backend)

    def field(t: Any, y: Any, w: Any) -> Any:
        u = y @ w["a"] + w["c"]
        u = tanh(u) if kind == "tanh" else (u + abs(u)) * 0.5
        return scale * (u @ w["b"])

    return field


def network(kind: str, layers: int, seed: int) -> tuple[Any, np.ndarray]:
    """Independent layers and a batch of states."""
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((2, layers, 16, 16)) / 4
    return {"a": 1.5 * a, "b": b, "c": rng.standard_normal((layers, 16)) / 4}, rng.standard_normal((24, 16))


# step counts and sizes of steps whose errors go from about one down to a few hundredths, and a small one
SIZES = {"euler": ((4, 0.5), (16, 0.15)), "heun": ((4, 1.0), (16, 0.25)), "rk4": ((4, 1.0), (16, 0.2))}
PROPERTY = [
    (backend, solver, kind, shared)
    for backend in cases.BACKENDS
    for solver in SIZES
    for kind in ("tanh", "relu")
    for shared in (False, True)
    if backend != "jax" or (kind == "tanh") is shared or solver in ("heun", "rk4")
]
# shared weights on JAX: test_states_that_drift_away_are_seen_though_the_first_step_looks_right
QUICK = [*(case for case in PROPERTY if case[0] == "torch"), ("jax", "euler", "relu", False)]


@pytest.mark.parametrize(("backend", "solver", "kind", "shared"), quick(PROPERTY, QUICK))
def test_it_is_the_size_of_the_error_of_the_whole_gradient(backend, solver, kind, shared):
    """From a third of it to four times it: the state of the first step is the one that has drifted furthest, and the
    change of the costate is compared by itself, though it may hardly count beside the gradient of the weights."""
    for seed, (steps, h) in enumerate(SIZES[solver]):
        weights, y0 = network(kind, 1 if shared else steps, seed)
        depth = {name: leaf[0] for name, leaf in weights.items()} if shared else odenet.Depth(weights, "piecewise")
        choices: dict[str, Any] = {"t1": steps * h, "steps": steps, "solver": solver}
        with odenet.backend(backend).prepare("float64", "cpu"):
            field = blocks(backend, kind, 1.0)
            exact, none = solved(backend, field, y0, depth, **choices)
            found, certificate = solved(backend, field, y0, depth, gradient=CONTINUOUS, **choices)
        assert none is None
        error = cases.relative(found, exact)
        if error > 0.03:
            assert error / 3 < certificate < 4 * error, (error, certificate)
        else:
            assert certificate < 0.15, (error, certificate)  # a kink that two compared steps have


LARGE = [("euler", "piecewise", ""), ("heun", "linear", ""), ("euler", "piecewise", ":steps=16")]


@pytest.mark.parametrize(
    ("backend", "solver", "kind", "option"),
    quick(
        [(backend, *case) for backend in cases.BACKENDS for case in LARGE],
        [*(("torch", *case) for case in LARGE), *(("jax", *case) for case in LARGE[1:])],
    ),
    indirect=["backend"],
)
def test_one_large_block_is_seen_wherever_it_is(backend, solver, kind, option):
    """The first step, whose block is small, knows nothing of it."""
    weights, y0 = network("tanh", 8 + (kind == "linear"), 5)
    field = blocks(backend, "tanh", 0.2)
    choices: dict[str, Any] = {"steps": 8, "solver": solver}
    for place in (0, 1, 4, 7):
        scale = np.ones((len(weights["b"]), 1, 1))
        scale[place] = 30.0
        depth = odenet.Depth({**weights, "b": scale * weights["b"]}, kind)
        exact, _ = solved(backend, field, y0, depth, **choices)
        found, certificate = solved(backend, field, y0, depth, gradient=CONTINUOUS + option, **choices)
        error = cases.relative(found, exact)
        assert error > 0.1
        assert error / 3 < certificate < 10 * error, (place, error, certificate)
    _, certificate = solved(backend, field, y0, odenet.Depth(weights, kind), gradient=CONTINUOUS, **choices)
    assert certificate < 0.1


def test_it_is_the_same_number_wherever_it_is_read(backend):
    """By the doctor and by `evaluate`, which say nothing, and in training, which warns."""
    spec, loaded = odenet.NetSpec("mlp", 6, 4, 4, (4,), 3), odenet.backend(backend)
    weights = spec.init(0)
    large = {name: leaf * 40 if name.startswith("block.4.linear2") else leaf for name, leaf in weights.items()}
    batch = np.random.default_rng(2).standard_normal((5, 4)), np.array([0, 2, 1, 1, 0])
    with loaded.prepare("float64", "cpu"), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        net = loaded.build(
            spec, large, gradient=odenet.gradient(CONTINUOUS), solver=odenet.solver("euler"), dtype="float64"
        )
        measured = odenet.check_gradients(net, batch, gradients=CONTINUOUS).examinations[0].certificate
        evaluated = loaded.evaluate(net, *batch).certificate
        assert not said
        trained = loaded.trainer(net, momentum=0.0, weight_decay=0.0).step(*batch, 0.0).certificate
        if backend == "jax":
            jax.effects_barrier()
    assert measured > 0.1
    assert [evaluated, trained] == pytest.approx([measured] * 2, rel=1e-9)
    assert [w.message.certificate for w in said] == pytest.approx([measured], rel=1e-6)  # JAX may tell it in float32


def by_hand(solver: str, z: float, steps: int) -> float:
    """The certificate of `y' = w y`, one number, for steps of z = h w: all of it is in the weight's gradient, that of a
    step at a state as it was rebuilt, and a third of what that is off by."""
    forth = {"euler": 1 + z, "heun": 1 + z + z * z / 2}[solver]
    back = {"euler": 1 - z, "heun": 1 - z + z * z / 2}[solver]  # y[0] of y[1]
    exact = {"euler": back, "heun": (1 + z) * back}[solver]  # dD/dw at y[0], in h y[1]
    added = {"euler": 1.0, "heun": (1 + (1 - z) * (1 + z)) / 2}[solver]  # the stages' a y
    drift = abs((forth * back) ** steps - 1) / max(1.0, 0.1 * abs(forth) ** steps)
    return abs(exact - added) / abs(exact) + drift / 3


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_its_value_for_a_linear_field_by_hand(backend, solver):
    for steps, w in ((1, 0.5), (5, -1.7)):
        _, certificate = solved(
            backend,
            lambda t, y, w: w * y,
            np.array([2.0]),
            np.array(w),
            steps=steps,
            solver=solver,
            gradient=CONTINUOUS,
        )
        assert certificate == pytest.approx(by_hand(solver, w / steps, steps), rel=1e-12)


def test_a_bias_alone_whose_gradient_hides_what_the_costate_is_off_by(thorough):
    """The bias' gradient of a step is exact for the costate at its end, and much larger than the costate's change."""
    tanh = cases.tanh(thorough)
    y0 = 0.3 + np.linspace(-0.2, 0.2, 64)[:, None]

    def field(t: Any, y: Any, w: Any) -> Any:
        return w + tanh(2.0 * y)

    choices: dict[str, Any] = {"steps": 3, "t1": 1.5, "solver": "euler", "loss": lambda s: s.y1.sum()}
    exact, _ = solved(thorough, field, y0, np.array([0.2]), **choices)
    found, certificate = solved(thorough, field, y0, np.array([0.2]), gradient=CONTINUOUS, **choices)
    assert cases.relative(found, exact) > 0.1
    assert certificate > 0.1


def test_states_that_drift_away_are_seen_though_the_first_step_looks_right(backend):
    """Of layers that expand, states that are integrated back end far from where they began, and the step there is a
    step of another state: it compares well, and the gradient is off by a sixth."""
    weights, y0 = network("relu", 1, 0)
    shared = {name: leaf[0] for name, leaf in weights.items()}
    choices: dict[str, Any] = {"steps": 16, "t1": 4.0, "solver": "heun"}
    field = blocks(backend, "relu", 1.0)
    exact, _ = solved(backend, field, y0, shared, **choices)
    found, certificate = solved(backend, field, y0, shared, gradient=CONTINUOUS, **choices)
    error = cases.relative(found, exact)
    assert error > 0.1
    assert error / 3 < certificate < 4 * error
    # and a state at zero, from which none is far, is held against where it goes
    nothing, certificate = solved(backend, lambda t, y, w: w, np.zeros(3), np.ones(3), steps=4, gradient=CONTINUOUS)
    assert np.isfinite(nothing).all()
    assert certificate < 1e-6


def test_nothing_to_be_wrong_in_is_zero(backend):
    choices: dict[str, Any] = {"steps": 3, "gradient": CONTINUOUS}
    tanh = cases.tanh(backend)
    y0 = np.array([[0.3, -0.2]])
    assert solved(backend, lambda t, y, w: tanh(y * w), y0, np.ones(2), lambda s: (0 * s.y1).sum(), **choices)[1] == 0
    assert solved(backend, lambda t, y, w: 0 * y * w, y0, np.ones(2), **choices)[1] == 0
    # no weights, and a costate that no step changes
    assert solved(backend, lambda t, y: 0 * y + 1.0, y0, **choices)[1] == 0
    # a sum that steps keep: what they change it by is rounding, of which there is no share to be off by. The state at
    # t0 is known, or its drift would count
    flipped = (lambda y: y[:, ::-1]) if backend == "jax" else (lambda y: y.flip(1))
    assert solved(
        backend, lambda t, y: tanh(y) - tanh(flipped(y)), y0, None, lambda s: s.y1.sum(), ts=[0.0, 1.0], **choices
    )[1] < 1e-3  # fmt: skip
    # a field without weights of its own is judged by the costate
    assert solved(backend, lambda t, y: 3.0 * tanh(3.0 * y), y0, **choices)[1] > 0.1


def test_it_does_not_depend_on_the_size_of_the_loss(backend):
    tanh = cases.tanh(backend)
    values = [
        solved(
            backend, lambda t, y, w: tanh(w * y), np.ones((1, 2), np.float32), np.ones((), np.float32),
            lambda s, size=size: (s.y1 * size).sum(), steps=3, gradient=CONTINUOUS,
        )[1]
        for size in (1e-30, 1.0, 1e18)
    ]  # fmt: skip
    assert values[1] > 0.01
    assert values == pytest.approx([values[1]] * 3, rel=1e-4)


@pytest.mark.parametrize("option", ["", ":interpolate=yes", ":solver=rk4"])
def test_trees_and_complex_leaves(thorough, option):
    def loss(s: Any) -> Any:
        vector = s.y1["pair"][0]
        return (s.y1["matrix"] ** 2).sum() + (vector * vector.conj()).real.sum() + s.y1["pair"][1]

    choices: dict[str, Any] = {"steps": 4, "t1": 0.4, "solver": "heun", "loss": loss}
    depth = odenet.Depth(cases.mixed_weights(5), "linear")
    exact, _ = solved(thorough, cases.mixed_field, cases.mixed_state(), depth, **choices)
    found, certificate = solved(
        thorough, cases.mixed_field, cases.mixed_state(), depth, gradient=CONTINUOUS + option, **choices
    )
    error = np.linalg.norm(found - exact) / np.linalg.norm(exact)
    assert 0 < certificate < max(10 * error, 0.1)


@pytest.mark.parametrize("steps", [8, 2, 12, 3])
def test_other_steps_back_are_compared_where_both_grids_meet_first(thorough, steps):
    """4 steps forward and 8, 2, 12 or 3 back: over 1, 2, 1 or all 4 steps. y(t0) is kept, so that over all steps the
    certificate is of the whole gradient."""
    field, (weights, y0) = blocks(thorough, "tanh", 1.0), network("tanh", 1, 3)
    shared = {name: leaf[0] for name, leaf in weights.items()}
    choices: dict[str, Any] = {"steps": 4, "t1": 2.0, "solver": "euler"}
    if steps != 3:
        choices |= {"ts": [0.0, 2.0]} if steps != 2 else {}
    exact, _ = solved(thorough, field, y0, shared, **choices)
    found, certificate = solved(thorough, field, y0, shared, gradient=f"{CONTINUOUS}:steps={steps}", **choices)
    error = cases.relative(found, exact)
    assert error > 0.03
    assert error / 3 < certificate < 4 * error


def test_where_the_grids_meet_too_late_the_rebuilt_state_alone_is_compared(backend):
    """20 steps forward and 19 back: the states between are not kept, and y(t0) as it was rebuilt is off by 0.03."""
    tanh, y0, w = cases.tanh(backend), np.array([[0.4, -0.3, 0.8]]), np.array([1.5])
    choices: dict[str, Any] = {"steps": 20, "t1": 2.0, "solver": "euler"}
    exact, _ = solved(backend, lambda t, y, w: tanh(w * y), y0, w, **choices)
    gradient = f"{CONTINUOUS}:steps=19"
    found, certificate = solved(backend, lambda t, y, w: tanh(w * y), y0, w, gradient=gradient, **choices)
    assert cases.relative(found, exact) / 10 < certificate < 3 * cases.relative(found, exact)


def test_over_the_whole_solve_it_is_the_error_of_the_gradient(backend):
    """3 steps back for 4 forward, from and to states that are known."""
    tanh = cases.tanh(backend)
    y0, w = np.array([[0.4, -0.3, 0.8]]), np.array([0.9])
    choices: dict[str, Any] = {"steps": 4, "t1": 2.0, "solver": "euler", "ts": [0.0, 2.0]}

    def loss(s: Any) -> Any:
        return (s.ys[1] * s.ys[1]).sum() * 0.5

    exact, _ = solved(backend, lambda t, y, w: tanh(w * y), y0, w, loss, **choices)
    found, certificate = solved(
        backend, lambda t, y, w: tanh(w * y), y0, w, loss, gradient=f"{CONTINUOUS}:steps=3", **choices
    )
    with odenet.backend(backend).prepare("float64", "cpu"):
        end = cases.flat(backend, odenet.solve(lambda t, y, w: tanh(w * y), y0, w, backend=backend, **choices).y1)
    change = cases.relative(found[:3] - end, exact[:3] - end)
    assert certificate == pytest.approx(max(change, abs(found[3] / exact[3] - 1)), rel=1e-9)


def test_what_is_off_is_said_once_and_what_is_useless_each_time(backend):
    with odenet.backend(backend).prepare("float64", "cpu"):
        for w, kinds in ((1.5, [GradientWarning]), (3.2, [UselessGradientWarning] * 2), (0.2, [])):

            def field(t: Any, y: Any, w: Any) -> Any:
                return w * y

            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                for _ in range(2):
                    odenet.value_and_grad(
                        lambda s: s.y1.sum(), field, np.ones(2), np.array(w), steps=8, backend=backend,
                        gradient=CONTINUOUS,
                    )  # fmt: skip
            assert [type(warning.message) for warning in said] == kinds, w
            for warning in said:
                assert isinstance(warning.message, GradientWarning)
                assert warning.message.certificate == pytest.approx(by_hand("euler", w / 8, 8), rel=1e-9)
                assert 0 <= warning.message.step < 8  # steps that are all alike
                words = (
                    "gradient of that step",
                    "integrated back",
                    "exact one of the discrete network",
                    "through 8 steps of euler",
                )
                assert all(word in str(warning.message) for word in (*words, "more steps", "'checkpoint'"))


def test_states_that_are_not_finite_are_nan(thorough):
    with warnings.catch_warnings(record=True) as said, odenet.backend(thorough).prepare("float64", "cpu"):
        warnings.simplefilter("always")
        _, _, solution = odenet.value_and_grad(
            lambda s: s.y1.sum(), lambda t, y, w: w * y * y, np.full(2, 1e200), np.ones(()), steps=3, backend=thorough,
            gradient=CONTINUOUS,
        )  # fmt: skip
    assert np.isnan(solution.stats.certificate)
    assert any("is NaN" in str(warning.message) for warning in said)


def pairs(backend: str, gain: float, rng: np.random.Generator, epsilon: float = 1e-5) -> tuple[Any, Any]:
    """A field that normalises two numbers, which are their signs then, and the weights of eight layers."""
    tanh = cases.tanh(backend)
    weights = {
        "g": 1 + 0.1 * rng.normal(size=(8, 2)),
        "b": 0.1 * rng.normal(size=(8, 2)),
        "A": rng.normal(size=(8, 2, 8)) / 2**0.5,
        "c": 0.1 * rng.normal(size=(8, 8)),
        "B": gain * rng.normal(size=(8, 8, 2)) / 8**0.5,
    }

    def field(t: Any, y: Any, w: Any) -> Any:
        centred = y - y.mean(-1)[..., None]
        normalised = centred / ((centred**2).mean(-1)[..., None] + epsilon) ** 0.5
        return tanh((normalised * w["g"] + w["b"]) @ w["A"] + w["c"]) @ w["B"]

    return field, weights


def test_two_numbers_that_are_normalised_together_have_all_steps_compared(backend):
    """A state on the other side of zero has another step: two compared steps look right, a third of the drift is 0.09,
    and the gradient is off by 0.3."""
    rng = np.random.default_rng(2043)
    gain, h = rng.choice([0.5, 1.0, 2.0]), rng.choice([1.0, 8.0]) / 8
    field, weights = pairs(backend, gain, rng)
    y0, by_y1 = rng.normal(size=(2, 4, 2))

    def loss(solution: Any) -> Any:
        return sum(float(factor) * solution.y1[place] for place, factor in np.ndenumerate(by_y1))

    choices: dict[str, Any] = {"steps": 8, "t1": 8 * h, "solver": "heun", "loss": loss}
    depth = odenet.Depth(weights, "piecewise")
    exact, _ = solved(backend, field, y0, depth, **choices)
    found, certificate = solved(backend, field, y0, depth, gradient=CONTINUOUS, **choices)
    assert cases.relative(found, exact) > 0.1
    assert certificate > 0.1


FAR = [("", "piecewise"), (":steps=6", "shared"), (":interpolate=yes", "linear")]


@pytest.mark.parametrize(
    ("backend", "option", "kind"),
    quick(
        [(b, *case) for b in cases.BACKENDS for case in FAR], [*(("torch", *case) for case in FAR), ("jax", *FAR[0])]
    ),
    indirect=["backend"],
)
def test_far_from_the_jump_it_is_the_error_of_the_whole_gradient(backend, option, kind):
    """Where the discrete adjoint rebuilds its states well: the larger of that by y0 and that by weights."""
    rng = np.random.default_rng(3)
    field, weights = pairs(backend, 1.0, rng, epsilon=0.05)
    y0 = np.array([0.4, -0.4]) + 0.2 * rng.normal(size=(4, 2))
    shared = {name: leaf[0] for name, leaf in weights.items()}
    depth = shared if kind == "shared" else odenet.Depth(weights, kind)
    choices: dict[str, Any] = {"steps": 7, "t1": 2.0, "solver": "euler"}
    if kind != "linear":  # with a state between that the loss reads
        choices |= {"steps": 8, "ts": [1.0, 2.0]}
    choices["loss"] = lambda s: (s.ys * s.ys).sum()
    exact, _ = solved(backend, field, y0, depth, **choices)
    found, certificate = solved(backend, field, y0, depth, gradient=CONTINUOUS + option, **choices)
    parts = [cases.relative(found[place], exact[place]) for place in (slice(8), slice(8, None))]
    assert max(parts) > 0.03
    assert certificate == pytest.approx(max(parts), rel=0.05)
