"""`odenet.theory`: estimates against what is known exactly, predictions against what is measured."""

from __future__ import annotations

import importlib.util
import itertools

import numpy as np
import pytest
from quick import quick

import odenet
from odenet import SOLVERS, Depth, DepthError, DiscreteAdjoint, InputError, _tree
from odenet._backend import registry as _registry
from odenet._jobs.reproduce.claims import distance as claim
from odenet._jobs.reproduce.network import field, smooth_weights, states
from odenet._jobs.reproduce.reproduction import CurveCell, Settings
from odenet.theory import distance, limit, reconstruction, reversed_depth, smoothness, way_back

NATIVE = [name for name, entry in _registry.available().items() if entry.array_modules]
LIGHT = NATIVE[-1] if NATIVE else ""  # torch, which compiles nothing
PAPER = DiscreteAdjoint(correct=False)

if not NATIVE:
    pytest.skip("no backend", allow_module_level=True)


def layers(n, seed=0):
    return Depth(smooth_weights(seed, np.arange(n) / n), "piecewise")


def recovered(method, y0, depth, backend):
    """By how much the states recovered from the last one are off, step by step."""
    verbs = _registry.backend(backend)
    choices = {"ts": "all", "backend": backend}
    with verbs.prepare("float64", "cpu"):
        there = verbs.to_numpy(odenet.solve(field, y0, depth, solver="euler", **choices).ys)
        reverse = way_back(SOLVERS["euler"], method)
        back = odenet.solve(field, there[-1], reversed_depth(depth), t0=1.0, t1=0.0, solver=reverse, **choices).ys
        return np.linalg.norm(verbs.to_numpy(back)[::-1] - there, axis=2).max(axis=1)


@pytest.mark.parametrize(("iterations", "correct"), [(1, False), (1, True), (2, True), (3, False)])
def test_the_way_back_of_euler_is_the_recursion(iterations, correct):
    """One step of the Runge-Kutta method against `z = y - h f(y)`, `z <- y - h f(z)` written out."""
    solver = way_back(SOLVERS["euler"], DiscreteAdjoint(iterations=iterations, correct=correct))
    y, h, slope = 0.7, 0.1, np.tanh
    stages = []
    for row in solver.tableau.a:
        stages.append(slope(y - h * sum(a * k for a, k in zip(row, stages, strict=True))))
    found = y - h * sum(b * k for b, k in zip(solver.tableau.b, stages, strict=True))
    z = y
    for _ in range(iterations + correct):
        z = y - h * slope(z)
    assert found == pytest.approx(z, abs=1e-15)


def test_the_way_back_of_heun_is_the_recursion():
    """With a field that depends on time, so that the stages' places within the step count."""
    back = way_back(SOLVERS["heun"], DiscreteAdjoint()).tableau

    def slope(t, y):
        return np.tanh(y) + t

    def increment(t, y, h):
        first = slope(t, y)
        return h / 2 * (first + slope(t + h, y + h * first))

    t, y, h, stages = 0.4, 0.7, 0.1, []
    for c, row in zip(back.c, back.a, strict=True):
        stages.append(slope(t - c * h, y - h * sum(a * k for a, k in zip(row, stages, strict=True))))
    found = y - h * sum(b * k for b, k in zip(back.b, stages, strict=True))
    z = y + increment(t, y, -h)
    assert found == pytest.approx(y - increment(t - h, z, h), abs=1e-15)


def test_the_way_back_refuses_what_it_cannot_say():
    for method in (
        DiscreteAdjoint(predictor="extrapolate"),
        DiscreteAdjoint(tolerance=1e-6),
        DiscreteAdjoint(anchors=2),
    ):
        with pytest.raises(InputError, match="Runge-Kutta"):
            way_back(SOLVERS["euler"], method)


def test_smoothness_is_that_of_the_function():
    """Of w(s) = sin(s) it tends to the largest |w'| = 1; refined weights keep it, independent ones do not."""
    for n in (64, 256):
        assert smoothness(Depth({"w": np.sin(np.arange(n) / n)}, "piecewise")) == pytest.approx(1, abs=2 / n)
    nodes = Depth({"w": np.array([0.0, 1.0, 0.5])}, "linear")
    assert smoothness(nodes.refine(4)) == pytest.approx(smoothness(nodes))
    with pytest.raises(InputError, match="single layer"):
        smoothness(Depth({"w": np.zeros(3)}))


def test_reversed_depth_is_its_own_inverse():
    for depth in (
        Depth({"w": np.arange(4.0)}, "linear"),
        Depth.each([{"w": 1.0}, {"w": 2.0}]),
        Depth({"w": np.ones(2)}),
    ):
        again = reversed_depth(reversed_depth(depth))
        assert all(np.array_equal(again.at(n)["w"], depth.at(n)["w"]) for n in range(depth.layers))


def test_relative_smoothness_has_no_unit():
    depth = layers(32)
    relative = smoothness(depth, relative=True)
    assert relative == pytest.approx(np.pi / 2, rel=0.3)  # of a turn by a right angle
    twice = Depth(_tree.map(lambda leaf: 2 * leaf, depth.tree), "piecewise")
    assert smoothness(twice, relative=True) == pytest.approx(relative)
    assert smoothness(twice) == pytest.approx(2 * smoothness(depth))
    assert smoothness(Depth(np.zeros((3, 2)), "piecewise"), relative=True) == 0
    independent = Depth(np.random.default_rng(0).standard_normal((64, 100)), "piecewise")
    assert smoothness(independent, relative=True) / 64 == pytest.approx(2**0.5, rel=0.2)


def test_smoothness_is_of_layers_of_one_shape():
    each = [{"w": np.zeros(2), "activation": np.tanh}, {"w": np.full(2, 3.0), "activation": np.tanh}]
    assert smoothness(Depth.each(each)) == pytest.approx(2 * 18**0.5)  # what is no array does not count
    with pytest.raises(DepthError, match="layer 1"):
        smoothness(Depth.each([each[0], {"w": np.zeros(3), "activation": np.tanh}]))


@pytest.mark.parametrize("n", [32, 64, pytest.param(256, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("method", "order"), [(PAPER, 1), (DiscreteAdjoint(), 2)])
def test_the_predicted_error_is_the_measured_one(n, method, order):
    y0, depth = states(0), layers(n)
    predicted = reconstruction(field, y0, depth, method, batched=True, backend=LIGHT)
    seen = recovered(method, y0, depth, LIGHT)
    assert predicted.order == order
    assert predicted.by_step.shape == seen.shape
    assert predicted.by_step[-1] == 0
    assert predicted.largest == pytest.approx(seen.max(), rel=2 * predicted.lipschitz / n)
    assert predicted.by_step[n // 2] == pytest.approx(seen[n // 2], rel=0.1)
    assert seen.max() < predicted.bound
    if n == 32:  # what one depth says of another
        deeper = recovered(method, y0, layers(128), LIGHT).max()
        assert deeper / 1.2 < predicted.at(128) < 1.2 * deeper


@pytest.mark.parametrize("iterations", [2, 3])
def test_each_iteration_is_predicted(iterations):
    method = DiscreteAdjoint(iterations=iterations, correct=False)
    predicted = reconstruction(field, states(1), layers(32, 1), method, batched=True, backend=LIGHT)
    assert predicted.largest == pytest.approx(recovered(method, states(1), layers(32, 1), LIGHT).max(), rel=0.1)
    assert predicted.order == iterations


def test_a_linear_field_has_known_constants():
    """`y' = a y`: L is |a|, x'' is a² x, and a step of the way back loses h² a² y."""
    matrix = np.diag([-2.0, 0.5])
    n, y0 = 50, np.array([3.0, 4.0])
    choices = {"steps": n, "backend": LIGHT}
    found = distance(lambda t, y, w: y @ w, y0, matrix, **choices)
    ode = y0 * np.exp(np.linspace(0, 1, n + 1)[:, None] * np.diag(matrix))
    network = y0 * (1 + np.diag(matrix) / n) ** np.arange(n + 1)[:, None]
    assert found.lipschitz == pytest.approx(2, rel=2e-3)
    assert found.second_derivative == pytest.approx(np.linalg.norm(y0 * np.diag(matrix) ** 2), rel=1e-3)
    assert found.by_step == pytest.approx(np.linalg.norm(network - ode, axis=1), rel=1e-4, abs=1e-9)
    assert found.bound == pytest.approx(np.expm1(2) / (2 * n * 2) * found.second_derivative, rel=1e-2)
    assert found.resolved
    assert found.largest < found.bound
    assert found.steps == n
    backward = reconstruction(lambda t, y, w: y @ w, y0, matrix, PAPER, **choices)
    assert backward.local == pytest.approx(np.linalg.norm(y0 * np.diag(matrix) ** 2), rel=1e-6)


def test_the_distance_halves_and_is_below_its_bound():
    found = {n: distance(field, states(0), layers(n), batched=True, backend=LIGHT) for n in (8, 16)}
    assert found[8].largest / found[16].largest == pytest.approx(2, abs=0.2)
    largest = max(np.linalg.norm(a, 2) for a in smooth_weights(0, np.arange(16) / 16)["a"])
    for each in found.values():
        assert each.resolved
        assert each.largest < each.bound
        assert 0.5 * largest < each.lipschitz <= largest  # |tanh'| is at most 1
    known = distance(field, states(0), layers(8), batched=True, backend=LIGHT, lipschitz=largest)
    assert known.lipschitz == largest
    assert known.bound > found[8].bound


def test_the_estimates_are_near_what_is_known_of_tanh():
    """The reproduction writes x'' and L out for its own field."""
    n = 16
    seen = {
        each.quantity: each.value for each in claim.measure(CurveCell(LIGHT, 0, claim.SMOOTH, n), Settings((LIGHT,)))
    }
    nodes = smooth_weights(0, np.arange(n + 1) / n)
    known = max(np.linalg.norm(a, 2) for a in nodes["a"])
    found = distance(field, states(0), Depth(nodes, "linear"), batched=True, backend=LIGHT, lipschitz=known)
    assert found.largest == pytest.approx(seen[claim.DISTANCE], rel=1e-3)
    assert found.bound == pytest.approx(seen[claim.BOUND], rel=0.02)


@pytest.mark.skipif(len(NATIVE) < 2, reason="one backend")
@pytest.mark.parametrize(
    ("tool", "known"), [(distance, 1.0), pytest.param(reconstruction, None, marks=pytest.mark.slow)]
)
def test_backends_agree(tool, known):
    choices = {"batched": True, "lipschitz": known}
    one, other = (tool(field, states(0), layers(6), backend=name, **choices) for name in NATIVE)
    assert one.by_step == pytest.approx(other.by_step, rel=1e-6, abs=1e-12)
    assert one.lipschitz == pytest.approx(other.lipschitz, rel=1e-6)
    assert one.bound == pytest.approx(other.bound, rel=1e-6)


def test_time_and_state_may_be_anything():
    """A tree as state, a field that depends on time, other times: the same as of one array."""
    left, right = np.eye(6)[:, :3], np.eye(6)[:, 3:]
    y0 = np.random.default_rng(0).standard_normal((2, 6))
    nodes = np.linspace(1, 2, 9).reshape(-1, 1, 1)

    def pair(t, y, w):
        return {"a": -w["w"] * y["b"], "b": t * w["w"] * y["a"]}

    def whole(t, y, w):
        return t * w["w"] * (y @ w["down"]) - w["w"] * (y @ w["up"])

    same = {"down": np.stack([left @ right.T] * 9), "up": np.stack([right @ left.T] * 9), "w": nodes}
    weights = Depth({"w": nodes}, "linear"), Depth(same, "linear")
    choices = {"t0": 1.0, "t1": 3.0, "backend": LIGHT}
    for tool in (distance, reconstruction):
        one = tool(whole, y0, weights[1], batched=True, **choices)
        other = tool(pair, {"a": y0 @ left, "b": y0 @ right}, weights[0], batched=True, **choices)
        assert one.by_step == pytest.approx(other.by_step, rel=1e-6)
        assert one.bound == pytest.approx(other.bound, rel=1e-2)
        assert tool(whole, y0, weights[1], **choices).largest > one.largest  # both samples together


def test_heun_is_nearer_and_has_no_bound():
    nodes = Depth(smooth_weights(0, np.arange(17) / 16), "linear")
    found = {
        name: distance(field, states(0), nodes, solver=name, batched=True, backend=LIGHT) for name in ("euler", "heun")
    }
    assert found["heun"].bound is None
    assert found["heun"].largest < found["euler"].largest / 10


def test_what_the_tools_refuse():
    choices = {"backend": LIGHT}
    for wrong, match in (
        ({"weights": layers(8).tree["a"][0]}, "steps=N"),
        ({"weights": layers(8), "steps": 16}, "one step a layer"),
        ({"weights": layers(8), "y0": states(0) * 1j}, "real"),
    ):
        with pytest.raises(InputError, match=match):
            distance(**{"field": field, "y0": states(0), **choices, **wrong})
    with pytest.raises(InputError, match="first axis"):
        distance(field, {"a": np.ones(2), "b": np.ones(3)}, layers(8), batched=True, **choices)
    for method in ("backprop", "discrete-adjoint:anchors=2"):
        with pytest.raises(InputError):
            reconstruction(field, states(0), layers(8), method, **choices)


def test_a_limit_is_that_of_the_expansion():
    true, first, second = np.array([1.0, -2.0]), np.array([3.0, 1.0]), np.array([-1.0, 5.0])

    def term(n):
        return true + first / n + second / n**2

    assert limit([term(8), term(16), term(32)]).value == pytest.approx(true, abs=1e-12)
    two = limit([term(8), term(16)])
    assert two.order is None
    assert np.abs(two.value - true).max() < two.error
    three = limit([term(64), term(128), term(256)], eliminations=1)
    assert three.order == pytest.approx(1, abs=0.05)
    assert np.abs(three.value - true).max() < three.error


def test_the_order_of_a_limit_may_be_observed():
    terms = [2 + n**-1.5 for n in (4.0, 8.0, 16.0)]
    found = limit(terms, order=None)
    assert found.order == pytest.approx(1.5)
    assert found.value == pytest.approx(2)
    assert limit(terms[:2], order=1.5).value == pytest.approx(2)
    with pytest.raises(InputError, match="converge"):
        limit([1.0, 2.0, 4.0], order=None)


def test_what_a_limit_refuses():
    for wrong in ([1.0], [np.ones(2), np.ones(4)], []):
        with pytest.raises(InputError, match="one shape"):
            limit(wrong)
    for choices in ({"order": 0}, {"eliminations": 2}, {"eliminations": 0}):
        with pytest.raises(InputError):
            limit([1.0, 2.0], **choices)


def torch_stack(n, along):
    torch = pytest.importorskip("torch")
    from odenet_torch import ResidualStack

    torch.manual_seed(0)
    blocks = [torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Tanh()).double() for _ in range(n)]
    return ResidualStack(blocks, along=along), torch.ones(2, 3, dtype=torch.float64)


def jax_stack(n, along):
    jax = pytest.importorskip("jax")
    eqx = pytest.importorskip("equinox")
    from odenet_jax import ResidualStack

    with jax.default_device(jax.devices("cpu")[0]):
        parts = [eqx.nn.Linear(3, 3, key=key) for key in jax.random.split(jax.random.key(0), n)]
        blocks = [eqx.nn.Sequential([part, eqx.nn.Lambda(jax.numpy.tanh)]) for part in parts]
        return ResidualStack([*blocks[:-1], blocks[0]], along=along), jax.numpy.ones(3)


STACKS = {"torch": torch_stack, "jax": jax_stack}


PLACES = [(name, along) for name in STACKS if importlib.util.find_spec(name) for along in ("piecewise", "linear")]


@pytest.mark.parametrize(("backend", "along"), quick(PLACES, {*PLACES} - {("jax", "piecewise")}))
def test_a_stack_is_its_field_with_its_depth(backend, along):
    stack, x = STACKS[backend](4, along)
    read = _registry.backend(backend).to_numpy
    again = odenet.solve(stack.field, x, stack.depth, solver=stack.solver).y1
    assert read(again) == pytest.approx(read(stack(x)), rel=1e-6)
    rows = [np.concatenate([np.ravel(read(leaf)) for leaf in _arrays(stack.depth.at(n))]) for n in range(4)]
    jumps = [np.linalg.norm(after - before) for before, after in itertools.pairwise(rows)]
    assert smoothness(stack.depth) == pytest.approx(stack.depth.intervals * max(jumps), rel=1e-6)
    assert reconstruction(stack.field, x, stack.depth).order == 2


def _arrays(tree):
    return [leaf for leaf in _tree.leaves(tree) if hasattr(leaf, "shape")]


def test_a_stack_of_different_blocks_has_no_field():
    torch = pytest.importorskip("torch")
    from odenet_torch import ResidualStack

    linear, norm = torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3)
    for blocks in ([linear, torch.nn.Identity()], [norm, norm]):
        with pytest.raises(InputError, match="one structure"):
            _ = ResidualStack(blocks, along="piecewise").field
