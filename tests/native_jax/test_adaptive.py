"""Adaptive solves: step-size control, outputs anywhere, events, and gradients over the steps that were accepted."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import odenet
from odenet import Depth, Event, GradientError, InputError, PIDController, Result, SolveError, UnsupportedError
from odenet._solvers.interpolant import interpolant
from odenet._solvers.names import solver as solver_named
from odenet._solvers.step import add, increment
from odenet_jax import NeuralODE, solve

pytestmark = pytest.mark.usefixtures("x64")
WIDTH = 3
TIMES = (0.0, 0.3, 0.31, 1.0, 1.0, 2.5, 3.0)


def waiting(*cases):
    """Cases whose programs wait for `make test-slow`."""
    return [pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow) for case in cases]


EXACT = ("backprop", "checkpoint", "checkpoint:states=2", "checkpoint:segments=3")
METHODS = (*EXACT, "discrete-adjoint:iterations=6", "continuous-adjoint:rtol=1e-9:atol=1e-11")


def field(t, y, w):
    return jnp.tanh(y @ w["a"]) * jnp.cos(t) + jnp.sin(3 * t) * w["b"]


def weights():
    return {"a": 0.5 * jax.random.normal(jax.random.key(0), (WIDTH, WIDTH)), "b": jnp.full(WIDTH, 0.1)}


def start():
    return jnp.array([1.0, -0.5, 0.25])


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def distance(one, other):
    return np.linalg.norm(flat(one) - flat(other)) / np.linalg.norm(flat(other))


def score(ys):
    return jnp.sum(jnp.sin(ys * jnp.arange(1, len(ys) + 1)[:, None]))


class TestSteps:
    @pytest.mark.parametrize("solver", ["bosh3", *waiting("heun", "fehlberg2", "dopri5", "tsit5", "dopri8")])
    def test_errors_follow_the_tolerance(self, solver):
        exact = np.array([np.cos(2.0), -np.sin(2.0)])
        found = [
            solve(lambda t, y: jnp.stack([y[1], -y[0]]), jnp.array([1.0, 0.0]), t1=2.0, solver=solver, rtol=r, atol=r)
            for r in (1e-4, 1e-6)
        ]
        errors = [np.abs(solution.y1 - exact).max() for solution in found]
        assert errors[1] < min(1e-3, errors[0] / 5)

    def test_evaluations_are_those_of_the_steps(self):
        for solver, first_same_as_last in (("dopri5", True), ("heun", False)):
            stats = solve(lambda t, y: jnp.where(t < 1.3, y, -y), start(), t1=3.0, solver=solver, rtol=1e-4).stats
            tried, stages = stats.accepted + stats.rejected, solver_named(solver).tableau.stages
            ends = 0 if first_same_as_last else stats.accepted - 1
            assert stats.f_evaluations == 2 + tried * (stages - 1) + ends
            assert stats.rejected > 0

    def test_backward_in_time_and_no_time(self):
        there = solve(field, start(), weights(), t1=3.0, rtol=1e-9, atol=1e-11).y1
        back = solve(field, there, weights(), t0=3.0, t1=0.0, rtol=1e-9, atol=1e-11).y1
        np.testing.assert_allclose(back, start(), atol=1e-8)
        assert (solve(field, start(), weights(), t0=1.0, t1=1.0, rtol=1e-3).y1 == start()).all()

    def test_steps_end_at_stops_and_on_each_side_of_a_jump(self):
        def jumping(t, y):
            return jnp.where(t < 1.0, 1.0, -2.0) * jnp.ones_like(y)

        blind = solve(jumping, start(), t1=2.0, rtol=1e-6)
        told = solve(jumping, start(), t1=2.0, ts="all", control=PIDController(jump_t=[1.0], step_t=[0.25]))
        assert {0.25, 1.0} <= set(np.asarray(told.ts))
        np.testing.assert_allclose(told.y1, start() - 1, atol=1e-14)
        assert told.stats.rejected == 0 < blind.stats.rejected

    def test_steps_within_bounds(self):
        control = PIDController(max_step=0.05, first_step=0.01, rtol=1e-3)
        sizes = np.diff(solve(field, start(), weights(), ts="all", control=control).ts)
        assert sizes[0] == 0.01
        assert sizes.max() < 0.05 + 1e-12
        forced = solve(field, start(), weights(), t1=3.0, ts="all", control=PIDController(rtol=1e-12, min_step=0.1))
        assert np.diff(forced.ts)[:-1].min() > 0.1 - 1e-12

    def test_tolerances_by_leaf_and_element(self):
        def apart(t, y):
            return {"a": -y["a"], "b": (jnp.cos(20 * t) * jnp.ones(2),)}

        y0 = {"a": jnp.ones(2), "b": (jnp.zeros(2),)}
        tight = solve(apart, y0, rtol=1e-8, atol=1e-8)
        loose = solve(apart, y0, rtol=1e-8, atol={"a": 1e-8, "b": (jnp.array([1.0, 2.0]),)})
        assert loose.stats.steps < tight.stats.steps / 2
        with pytest.raises(InputError, match="leaf of shape"):
            solve(apart, y0, rtol={"a": jnp.ones(3), "b": (1e-3,)})
        with pytest.raises(InputError, match="tree of 1 leaves"):
            solve(apart, y0, rtol=[1e-3])

    @pytest.mark.parametrize("norm", ["mixed", *waiting("rms", "max", lambda y: jnp.abs(y).max())])
    def test_norms(self, norm):
        found = solve(field, start(), weights(), control=PIDController(norm=norm))
        np.testing.assert_allclose(found.y1, solve(field, start(), weights(), rtol=1e-10, atol=1e-12).y1, atol=1e-6)

    @pytest.mark.slow
    def test_number_types(self):
        half = solve(lambda t, y: -y, jnp.ones(2, jnp.bfloat16), rtol=1e-5)
        assert half.ys.dtype == jnp.bfloat16
        assert half.ts.dtype == jnp.float32
        turned = solve(lambda t, y: 1j * y, jnp.ones(2, jnp.complex64), rtol=1e-5)
        assert turned.ys.dtype == jnp.complex64
        np.testing.assert_allclose(turned.y1, np.exp(1j) * np.ones(2), atol=1e-4)
        both = solve(lambda t, y: (-y[0], y[1]), (jnp.ones(2, jnp.float32), jnp.ones(2)), rtol=1e-5)
        assert [leaf.dtype for leaf in both.ys] == [jnp.float32, jnp.float64]

    @pytest.mark.parametrize("kind", [*waiting("piecewise"), "linear"])
    def test_weights_along_depth_divide_the_time(self, kind):
        tree = {key: jnp.stack([leaf * (1 + 0.3 * i) for i in range(4)]) for key, leaf in weights().items()}
        count = 4 if kind == "piecewise" else 3
        found = solve(field, start(), Depth(tree, kind), t1=2.0, ts="all", rtol=1e-9, atol=1e-11)
        fixed = solve(field, start(), Depth(tree, kind), t1=2.0, steps=count * 256, solver="rk4")
        np.testing.assert_allclose(found.y1, fixed.y1, atol=1e-8)
        bounds = 2.0 * np.arange(count + 1) / count
        assert all(np.abs(found.ts - bound).min() < 1e-15 for bound in bounds)


class TestEnds:
    def test_a_solve_that_cannot_go_on(self):
        stiff = PIDController(max_steps=20)
        with pytest.raises(SolveError, match="max_steps were tried") as raised:
            solve(lambda t, y: -1e4 * (y - jnp.cos(t)), jnp.ones(1), control=stiff)
        assert "kvaerno5" in raised.value.remedy
        with pytest.raises(SolveError, match="not finite"):
            solve(lambda t, y: y / 0.0, jnp.ones(1), rtol=1e-3)
        with pytest.raises(SolveError, match="vanished"):
            solve(lambda t, y: jnp.where(t < 0.5, 1.0, jnp.nan) * y, jnp.ones(1), rtol=1e-3)

    def test_what_there_is(self):
        control = PIDController(throw=False, max_steps=50)
        for solution in (
            solve(lambda t, y: y**2, jnp.ones(1), t1=2.0, ts=[0.5, 1.5], control=control),
            jax.jit(lambda y: solve(lambda t, y: y**2, y, t1=2.0, ts=[0.5, 1.5], control=control))(jnp.ones(1)),
        ):
            assert solution.result is Result.MAX_STEPS
            assert solution.stats.steps + solution.stats.rejected == 50
            np.testing.assert_allclose(solution.ys[0], [2.0], atol=1e-4)
            assert np.isnan(solution.ys[1]).all()

    def test_no_per_sample_steps(self):
        with pytest.raises(UnsupportedError, match="vmap"):
            solve(field, start(), weights(), control=PIDController(per_sample=True))


class TestOutputs:
    @pytest.mark.parametrize("solver", ["dopri5", *waiting("heun", "bosh3", "tsit5", "dopri8")])
    def test_the_order_of_dense_output(self, solver):
        order = interpolant(solver_named(solver).tableau).order
        y0, errors, counts = jnp.array([1.0, 0.0]), [], (8, 32)
        middles = jnp.linspace(0.0, 2.0, 257)
        for count in counts:  # all steps of one size
            control = PIDController(1e9, 1e9, first_step=2.0 / count, max_step=2.0 / count)
            found = solve(lambda t, y: jnp.stack([y[1], -y[0]]), y0, t1=2.0, ts=middles, solver=solver, control=control)
            assert found.stats.steps == count
            errors.append(np.abs(found.ys - np.stack([np.cos(middles), -np.sin(middles)], 1)).max())
        assert np.polyfit(np.log(counts), -np.log(errors), 1)[0] > order - 0.35

    def test_kept_times(self):
        choices: dict[str, Any] = {"t1": 3.0, "rtol": 1e-6, "atol": 1e-8}
        found = solve(field, start(), weights(), ts=TIMES, **choices)
        assert found.ys.shape == (len(TIMES), WIDTH)
        assert (found.ys[0] == start()).all()
        np.testing.assert_allclose(found.ys[-1], solve(field, start(), weights(), **choices).y1, rtol=1e-10)
        assert (found.ys[3] == found.ys[4]).all()
        truth = solve(field, start(), weights(), t1=3.0, ts=TIMES, rtol=1e-11, atol=1e-12).ys
        np.testing.assert_allclose(found.ys, truth, atol=1e-4)

    def test_every_step(self):
        found = solve(field, start(), weights(), ts="all", rtol=1e-5)
        assert len(found.ts) == len(found.ys) == found.stats.steps + 1
        with pytest.raises(InputError, match=r"jax\.jit"):
            jax.jit(lambda y0: solve(field, y0, weights(), ts="all", rtol=1e-5).ys)(start())

    @pytest.mark.slow
    def test_evaluating_a_solution(self):
        control = PIDController(1e-6, 1e-8, max_steps=64)
        times = jnp.array([[0.1, 1.3], [2.0, 3.0]])
        kept = solve(field, start(), weights(), t1=3.0, ts=times.ravel(), control=control).ys.reshape(2, 2, WIDTH)
        found = solve(field, start(), weights(), t1=3.0, dense=True, control=control)
        np.testing.assert_allclose(found.at(times), kept, rtol=1e-13)
        with pytest.raises(InputError, match="times between"):
            found.at(3.5)
        compiled = jax.jit(lambda y0: solve(field, y0, weights(), t1=3.0, dense=True, control=control))(start())
        np.testing.assert_allclose(compiled.at(times), kept, rtol=1e-13)
        assert int(compiled.stats.steps) == found.stats.steps

        def scored(y0, dense):
            if dense:
                return score(solve(field, y0, weights(), t1=3.0, dense=True, control=control).at(times.ravel()))
            return score(solve(field, y0, weights(), t1=3.0, ts=times.ravel(), control=control).ys)

        gradient = jax.jit(jax.grad(scored), static_argnums=1)
        np.testing.assert_allclose(gradient(start(), True), gradient(start(), False), rtol=1e-12)


class TestGradients:
    @pytest.mark.parametrize(
        ("solver", "methods"),
        [("bosh3", EXACT[::2]), *waiting(*((solver, EXACT) for solver in ("bosh3", "heun", "dopri5")))],
    )
    def test_exact_over_the_accepted_steps(self, solver, methods):
        tableau, control = solver_named(solver).tableau, PIDController(1e-4, 1e-6)
        nodes = solve(field, start(), weights(), t1=3.0, ts="all", solver=solver, control=control).ts

        def replayed(y0, w):
            def step(y, ends):
                t, t1 = ends
                d = increment(tableau, lambda i, at: (field(t + tableau.c[i] * (t1 - t), at[0], w),), y, t1 - t)
                return add(y, d), None

            return score(jax.lax.scan(step, (y0,), (nodes[:-1], nodes[1:]))[0][0][None])

        truth = jax.jit(jax.grad(replayed, argnums=(0, 1)))(start(), weights())
        for method in methods:

            def loss(y0, w, method=method):
                return score(solve(field, y0, w, t1=3.0, solver=solver, gradient=method, control=control).ys)

            assert distance(jax.jit(jax.grad(loss, argnums=(0, 1)))(start(), weights()), truth) < 1e-12

    @pytest.mark.parametrize(
        ("method", "kind"),
        [
            ("discrete-adjoint:iterations=6", "piecewise"),
            *waiting(*((method, kind) for method in METHODS for kind in ("shared", "piecewise", "linear"))),
        ],
    )
    def test_against_finite_differences(self, method, kind):
        tree = weights()
        if kind != "shared":
            tree = {key: jnp.stack([leaf * (1 + 0.2 * i) for i in range(3)]) for key, leaf in tree.items()}

        @jax.jit
        def loss(y0, tree):
            choices = {"t1": 3.0, "ts": TIMES, "rtol": 1e-10, "atol": 1e-12}
            return score(solve(field, y0, Depth(tree, kind), gradient=method, **choices).ys)

        found = jax.jit(jax.grad(loss, argnums=(0, 1)))(start(), tree)
        direction = jax.tree.map(lambda leaf: jnp.cos(jnp.arange(leaf.size, dtype=float)).reshape(leaf.shape), found)

        def moved(by):
            return loss(*jax.tree.map(lambda leaf, d: leaf + by * d, (start(), tree), direction))

        expected = (8 * (moved(1e-4) - moved(-1e-4)) - (moved(2e-4) - moved(-2e-4))) / 12e-4
        assert abs(flat(found) @ flat(direction) - expected) < 1e-5 * abs(expected)

    @pytest.mark.slow
    def test_more_steps_than_states_are_kept(self):
        def loss(y0, w, method):
            control = PIDController(1e-6, 1e-8, max_step=0.005)
            return score(solve(field, y0, w, t1=3.0, solver="bosh3", gradient=method, control=control).ys)

        gradient = jax.jit(jax.grad(loss, argnums=(0, 1)), static_argnums=2)
        found = [
            gradient(start(), weights(), method)
            for method in ("backprop", "checkpoint:states=1", "checkpoint:states=7")
        ]
        near = gradient(start(), weights(), "discrete-adjoint:iterations=4")
        assert distance(found[1], found[0]) < 1e-12
        assert distance(found[2], found[0]) < 1e-12
        assert distance(near, found[0]) < 1e-10

    @pytest.mark.slow
    def test_the_discrete_adjoint_and_its_certificate(self):
        def gradients(method):
            choices = {"t1": 3.0, "rtol": 1e-4, "atol": 1e-6, "solver": "bosh3"}
            return odenet.value_and_grad(lambda s: score(s.ys), field, start(), weights(), gradient=method, **choices)

        _, exact, _ = gradients("backprop")
        errors = []
        for method in ("correct=no", "iterations=1", "iterations=4", "anchors=3", "tolerance=1e-10"):
            _, found, solution = gradients(f"discrete-adjoint:{method}")
            errors.append(distance((found.y0, found.weights), (exact.y0, exact.weights)))
            assert 0 < (solution.stats.certificate or 0) < 1e-2
        assert errors[1] < errors[0]
        assert errors[2] < errors[1] / 10
        assert errors[3] < 2 * errors[1]
        assert errors[4] < 1e-8

    @pytest.mark.slow
    def test_the_continuous_adjoint_follows_its_own_tolerances(self):
        def gradient(method):
            def loss(y0, w):
                return score(solve(field, y0, w, t1=3.0, rtol=1e-9, atol=1e-11, gradient=method).ys)

            return jax.jit(jax.grad(loss, argnums=(0, 1)))(start(), weights())

        exact = gradient("backprop")
        choices = ("rtol=1e-3:atol=1e-3", "rtol=1e-6:atol=1e-6", "rtol=1e-6:atol=1e-6:seminorm=no")
        loose, tight, whole = (distance(gradient(f"continuous-adjoint:{choice}"), exact) for choice in choices)
        assert tight < loose / 10
        assert tight < 1e-4
        assert whole < 1e-4

    @pytest.mark.slow
    def test_what_the_continuous_adjoint_cannot(self):
        def loss(y0, **choices):
            solution = solve(
                field, y0, weights(), t1=3.0, gradient="continuous-adjoint:rtol=1e-13:atol=1e-15", **choices
            )
            return jnp.sum(solution.at(1.0) if choices.get("dense") else solution.y1)

        with pytest.raises(UnsupportedError, match=r"Solution\.at"):
            jax.grad(lambda y0: loss(y0, rtol=1e-6, dense=True))(start())
        with pytest.raises(GradientError, match="max_steps"):
            jax.grad(lambda y0: loss(y0, control=PIDController(1e-5, max_steps=30)))(start())

    @pytest.mark.parametrize("method", waiting("backprop", "discrete-adjoint", "continuous-adjoint"))
    def test_times(self, method):
        choices = {"rtol": 1e-10, "atol": 1e-12, "gradient": method}

        @jax.jit
        def ends(t0, t1):
            return score(solve(field, start(), weights(), t0=t0, t1=t1, **choices).ys)

        @jax.jit
        def outputs(ts):
            return score(solve(field, start(), weights(), t0=0.1, t1=4.0, ts=ts, **choices).ys)

        def both(times):
            return ends(times[0], times[1])

        for function, times in ((both, jnp.array([0.1, 3.0])), (outputs, jnp.array([0.5, 1.0, 3.0]))):
            found = jax.grad(function)(times)
            shifts = 1e-5 * jnp.eye(len(times))
            expected = [(function(times + shift) - function(times - shift)) / 2e-5 for shift in shifts]
            np.testing.assert_allclose(found, expected, atol=1e-6)

    def test_times_of_weights_along_depth(self):
        layers = Depth({key: jnp.stack([leaf, leaf]) for key, leaf in weights().items()}, "piecewise")
        with pytest.raises(UnsupportedError, match="t0 or t1"):
            jax.grad(lambda t1: jnp.sum(solve(field, start(), layers, t1=t1, rtol=1e-3).y1))(1.0)

    def test_neural_ode(self):
        def model(**choices):
            return NeuralODE(lambda t, y: jnp.sin(y) * jnp.cos(t), **choices)

        fine = model(steps=200)(start())
        np.testing.assert_allclose(model(rtol=1e-9, atol=1e-11)(start()), fine, atol=1e-8)
        with pytest.raises(InputError, match="steps"):
            model(steps=4, rtol=1e-3)


class TestEvents:
    @pytest.mark.parametrize("method", ["backprop", *waiting("discrete-adjoint", "continuous-adjoint")])
    def test_a_falling_ball(self, method):
        def fall(height, gravity):
            def ball(t, y, gravity):
                return jnp.stack([y[1], -gravity])

            y0 = jnp.stack([height, jnp.zeros_like(height)])
            event = Event(lambda t, y: y[0], direction=-1)
            return solve(ball, y0, gravity, t1=10.0, rtol=1e-9, atol=1e-9, event=event, gradient=method)

        solution = fall(jnp.array(3.0), jnp.array(9.81))
        assert solution.result is Result.EVENT
        assert solution.ts == solution.event_t
        assert abs(solution.event_t - np.sqrt(6 / 9.81)) < 1e-12

        def ends(height, gravity):
            found = fall(height, gravity)
            return jnp.stack([found.event_t, found.y1[1]])

        def truth(height, gravity):
            return jnp.stack([jnp.sqrt(2 * height / gravity), -jnp.sqrt(2 * height * gravity)])

        def gradients(of, *given):
            """Of both ends, by one forward pass."""
            _, back = jax.vjp(of, *given)
            return [back(cotangent) for cotangent in jnp.eye(2)]

        gradients = jax.jit(gradients, static_argnums=0)
        found, expected = (gradients(of, jnp.array(3.0), jnp.array(9.81)) for of in (ends, truth))
        np.testing.assert_allclose(found, expected, rtol=1e-7)

    @pytest.mark.slow
    def test_the_first_of_several_and_their_direction(self):
        def wave(**choices):
            return solve(lambda t, y: jnp.stack([y[1], -y[0]]), jnp.array([0.0, 1.0]), t1=10.0, rtol=1e-9, **choices)

        both = wave(event=lambda t, y: jnp.stack([y[0] - 0.5, y[1] - 0.5]), ts=[0.1, 0.3, 2.0])
        assert abs(both.event_t - np.pi / 6) < 1e-6
        assert np.isfinite(both.ys[:2]).all()
        assert np.isnan(both.ys[2]).all()
        falling = wave(event=Event(lambda t, y: y[0] - 0.5, direction=-1))
        assert abs(falling.event_t - 5 * np.pi / 6) < 1e-6
        rising = wave(event=Event(lambda t, y: y[1], direction=1))
        assert abs(rising.event_t - 3 * np.pi / 2) < 1e-6
        never = wave(event=lambda t, y: y[0] - 2.0)
        assert never.result is Result.SUCCESS
        assert np.isnan(never.event_t)

    def test_a_row_whose_condition_is_nan_is_nan_and_leaves_the_others_as_they_are(self):
        def time(level, t1):
            rises = solve(
                lambda t, y: jnp.ones(1), jnp.zeros(1), t1=t1, rtol=1e-6, event=lambda t, y: jnp.log(level) + y[0]
            )
            return rises.y1[0] + rises.event_t, (rises.outcome, rises.event_t)

        levels = jnp.array([0.5, -1.0, 0.25])
        found = jax.jit(jax.vmap(jax.value_and_grad(time, has_aux=True), (0, None)))(levels, 2.0)
        (value, (outcome, t)), slope = found
        assert [list(Result)[i] for i in outcome] == [Result.EVENT, Result.EVENT_NAN, Result.EVENT]
        of_row = -jnp.log(levels)
        np.testing.assert_allclose(t, of_row, rtol=1e-8)
        np.testing.assert_allclose(value, 2 * of_row, rtol=1e-8)
        np.testing.assert_allclose(slope, jnp.where(levels < 0, jnp.nan, -2 / levels), rtol=1e-8)

    @pytest.mark.slow
    def test_a_condition_that_reads_what_needs_a_gradient(self):
        def time(level):
            y0 = jnp.array([0.0])
            return solve(lambda t, y: jnp.ones(1), y0, t1=4.0, rtol=1e-6, event=lambda t, y: y[0] - level**2).event_t

        assert abs(jax.jit(jax.grad(time))(1.5) - 3.0) < 1e-10


class TestTransforms:
    @pytest.mark.slow
    @pytest.mark.parametrize("method", ["backprop", "checkpoint:states=2", "discrete-adjoint", "continuous-adjoint"])
    def test_rows_of_a_batch_have_steps_of_their_own(self, method):
        rows = jax.random.normal(jax.random.key(3), (4, WIDTH)) * jnp.array([1.0, 3.0, 0.1, 10.0])[:, None]

        def solution(y0, w):
            return solve(field, y0, w, t1=3.0, ts=TIMES, rtol=1e-6, atol=1e-8, gradient=method)

        def loss(y0, w):
            return jnp.sum(solution(y0, w).ys ** 2)

        alone = [jax.jit(jax.grad(loss, argnums=(0, 1)))(row, weights()) for row in rows]
        of_each = jax.jit(jax.vmap(jax.grad(loss), (0, None)))(rows, weights())
        of_all, shared = jax.jit(jax.grad(lambda rows, w: jnp.sum(jax.vmap(loss, (0, None))(rows, w)), argnums=(0, 1)))(
            rows, weights()
        )
        for found in (of_each, of_all):
            assert distance(found, jnp.stack([g for g, _ in alone])) < 1e-11
        assert distance(shared, jax.tree.map(lambda *each: sum(each), *(w for _, w in alone))) < 1e-11
        many = jax.vmap(solution, (0, None))(rows, weights())
        assert many.stats.steps.shape == (4,)
        assert len(set(many.stats.f_evaluations.tolist())) > 1
        assert many.result is Result.SUCCESS
