"""The test problems: each field, its solution and its invariants are held to one another. What DETEST and the stiff
problems are held to beside that is in test_detest.py."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from odenet import SOLVERS, UnknownNameError, _tree
from odenet._solvers.step import add, increment
from odenet._test_problems.named import ARENSTORF, PROBLEMS, problem_named
from odenet._test_problems.reference import arrays, field_of, numerical, reference, relative_error

EVERY = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
QUICK = {name: problem for name, problem in PROBLEMS.items() if not problem.stiff}
CLOSED = {name: problem for name, problem in PROBLEMS.items() if problem.solution is not None}
CLOSED_FORM = pytest.mark.parametrize("problem", CLOSED.values(), ids=CLOSED)
PERIODIC = {name: problem for name, problem in PROBLEMS.items() if problem.period is not None}


def run(problem, solver, steps, y0=None):
    """The core's own step in a plain loop."""
    leaves, build = _tree.flatten(arrays(problem.y0) if y0 is None else y0)
    field = field_of(problem)
    y, h, tableau = tuple(leaves), (problem.t1 - problem.t0) / steps, SOLVERS[solver].tableau
    for n in range(steps):

        def stage(i, at, t=problem.t0 + n * h):
            return tuple(_tree.leaves(field(t + tableau.c[i] * h, build(at))))

        y = add(y, increment(tableau, stage, y, h))
    return build(y)


def worst(one, other):
    """The largest difference of two arrays, relative where they are larger than 1."""
    return float(np.max(np.abs(one - other) / (1 + np.abs(other))))


def times(problem, count=5):
    return [problem.t0 + (problem.t1 - problem.t0) * (k + 0.5) / count for k in range(count)]


def test_every_kind_of_problem_is_there():
    kinds = {type(problem.y0) for problem in PROBLEMS.values()}
    assert len(PROBLEMS) >= 15
    assert kinds >= {float, complex, list, tuple, dict}
    assert {problem.autonomous for problem in PROBLEMS.values()} == {True, False}


def test_a_name_is_forgiven_its_case_and_underscores():
    assert problem_named("Lotka_Volterra") is PROBLEMS["lotka-volterra"]


def test_an_unknown_name_is_answered_with_a_near_one():
    with pytest.raises(UnknownNameError, match="take kepler"):
        problem_named("keplr")


@EVERY
def test_a_record_is_complete(problem):
    assert problem.summary
    assert problem.source
    assert problem.t1 > problem.t0
    assert problem.steps % 16 == 0
    assert problem.depths[-1] == problem.steps
    assert all(late == 2 * early for early, late in itertools.pairwise(problem.depths))


@CLOSED_FORM
def test_the_closed_form_starts_at_y0(problem):
    start, y0 = arrays(problem.solution(problem.t0)), arrays(problem.y0)
    assert _tree.same_shape(start, y0)
    for one, other in zip(_tree.leaves(start), _tree.leaves(y0), strict=True):
        assert one == pytest.approx(other, abs=1e-14)


@CLOSED_FORM
def test_the_closed_form_solves_the_equation(problem):
    """Its derivative, by a difference of fourth order, is the field."""
    d, field = 2e-4, field_of(problem)
    for t in times(problem):
        at = {k: arrays(problem.solution(t + k * d)) for k in (-2, -1, 0, 1, 2)}
        slope = _tree.map(lambda a, b, c, e: (a - 8 * b + 8 * c - e) / (12 * d), at[-2], at[-1], at[1], at[2])
        assert max(map(worst, _tree.leaves(slope), _tree.leaves(field(t, at[0])))) < 1e-9


@CLOSED_FORM
def test_the_closed_form_is_what_scipy_finds(problem):
    for t, state in zip(times(problem, 3), numerical(problem, times(problem, 3)), strict=True):
        exact = arrays(problem.solution(t))  # beside which a solution that dies out keeps the absolute tolerance
        assert max(map(worst, _tree.leaves(state), _tree.leaves(exact))) < 3e-11


@pytest.mark.parametrize("problem", QUICK.values(), ids=QUICK)
def test_the_reference_says_how_good_it_is(problem):
    found = reference(problem)
    assert (found.uncertainty == 0) == (problem.solution is not None)
    assert found.uncertainty < 1e-8
    assert _tree.same_shape(found.state, arrays(problem.y0))


@pytest.mark.parametrize("name", [name for name in QUICK if name not in ("arenstorf", "detest-d5")])
def test_the_core_step_converges_to_the_reference(name):
    """rk4 and SciPy's code share nothing: order 4 towards its solution proves both and the field."""
    problem = PROBLEMS[name]
    truth = reference(problem).state
    coarse, fine = (relative_error(run(problem, "rk4", steps), truth) for steps in problem.depths[-2:])
    assert fine < 1e-6
    assert 3.6 < math.log2(coarse / fine) < 4.5


@pytest.mark.slow  # that the orbit closes is held to SciPy's code below
def test_the_arenstorf_orbit_closes_with_a_method_of_order_eight():
    """rk4 would need far more steps. Python floats for the state: they are ten times as fast as NumPy's."""
    assert relative_error(run(ARENSTORF, "dopri8", 12288, ARENSTORF.y0), ARENSTORF.y0) < 1e-4


@pytest.mark.parametrize("problem", PERIODIC.values(), ids=PERIODIC)
def test_a_periodic_solution_returns_to_its_start(problem):
    (state,) = numerical(problem, [problem.t0 + problem.period])
    assert relative_error(state, arrays(problem.y0)) < 1e-9


def jacobi(y):
    x, z, vx, vz = y
    mu = 0.012277471
    moon, earth = math.hypot(x - (1 - mu), z), math.hypot(x + mu, z)
    return (vx**2 + vz**2 - x**2 - z**2) / 2 - (1 - mu) / earth - mu / moon


INVARIANTS = {
    ("rotation", "modulus"): abs,
    ("oscillator", "energy"): lambda y: y[0] ** 2 + y[1] ** 2,
    ("lotka-volterra", "Volterra's"): lambda y: (
        math.log(y["predators"]) - y["predators"] + 2 * math.log(y["prey"]) - y["prey"]
    ),
    ("duffing", "energy"): lambda y: y[1] ** 2 / 2 + y[0] ** 2 / 2 + y[0] ** 4 / 4,
    ("rigid-body", "angular momentum"): lambda y: y[0] ** 2 + y[1] ** 2,
    ("rigid-body", "energy"): lambda y: 0.51 * y[0] ** 2 + y[2] ** 2,
    ("kepler", "energy"): lambda y: (y[2] ** 2 + y[3] ** 2) / 2 - 1 / math.hypot(y[0], y[1]),
    ("kepler", "angular momentum"): lambda y: y[0] * y[3] - y[1] * y[2],
    ("arenstorf", "Jacobi's"): jacobi,
}


@pytest.mark.parametrize("case", INVARIANTS, ids=lambda case: " ".join(case))
def test_what_the_equation_keeps_is_kept(case):
    problem, value = PROBLEMS[case[0]], INVARIANTS[case]
    start = value(arrays(problem.y0))
    for state in numerical(problem, times(problem)):
        assert value(state) == pytest.approx(start, abs=1e-9, rel=1e-9)


def test_the_chain_loses_energy():
    def energy(y):
        return (y[2] ** 2 + y[3] ** 2 + y[0] ** 2 + y[1] ** 2 + (y[0] - y[1]) ** 2) / 2

    kept = [energy(state) for state in numerical(PROBLEMS["chain"], times(PROBLEMS["chain"]))]
    assert all(late < early for early, late in itertools.pairwise(kept))


@EVERY
def test_autonomous_means_that_time_does_not_matter(problem):
    y = arrays(problem.y0)
    field = field_of(problem)
    same = relative_error(field(problem.t0, y), field(problem.t0 + 0.7, y)) == 0
    assert same == problem.autonomous


@EVERY
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_field_keeps_tree_shapes_and_number_types(problem, dtype):
    y = arrays(problem.y0, dtype)
    slope = field_of(problem, dtype)(np.asarray(0.5, dtype), y)
    assert _tree.same_shape(slope, y)
    for leaf, like in zip(_tree.leaves(slope), _tree.leaves(y), strict=True):
        assert (leaf.shape, leaf.dtype) == (like.shape, like.dtype)
        assert like.dtype in (np.dtype(dtype), np.result_type(dtype, np.complex64))


class Counted:
    """An array that knows `+ - * / ** @`, indices, `.real` and `.imag`: what every framework's arrays know."""

    def __init__(self, value):
        self.value = value

    def __neg__(self):
        return Counted(-self.value)

    def __pow__(self, exponent):
        return Counted(self.value**exponent)

    def __rpow__(self, base):
        return Counted(base**self.value)

    def __getitem__(self, index):
        return Counted(self.value[index])

    @property
    def real(self):
        return Counted(self.value.real)

    @property
    def imag(self):
        return Counted(self.value.imag)


def _binary(name):
    def operate(self, other):
        result = getattr(self.value, name)(other.value if isinstance(other, Counted) else other)
        return result if result is NotImplemented else Counted(result)

    return operate


for _name in ("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "matmul"):
    setattr(Counted, f"__{_name}__", _binary(f"__{_name}__"))


@EVERY
def test_the_field_uses_arithmetic_alone(problem):
    y = arrays(problem.y0)
    weights = () if problem.weights is None else (arrays(problem.weights),)
    plain = problem.field(0.5, y, *weights)
    counted = problem.field(Counted(np.asarray(0.5)), _tree.map(Counted, y), *_tree.map(Counted, weights))
    assert relative_error(_tree.map(lambda leaf: leaf.value, counted), plain) == 0


def test_one_scale_serves_the_whole_state():
    truth = (np.asarray(100.0), np.asarray(0.0))
    assert relative_error((np.asarray(100.0), np.asarray(1.0)), truth) == pytest.approx(0.01)
    assert math.isnan(relative_error((np.asarray(100.0), np.asarray(np.inf)), truth))


def test_the_numerical_reference_goes_through_all_times():
    ts = [0.0, 0.5, 2.0]
    found = numerical(PROBLEMS["decay"], ts)
    assert [float(state) for state in found] == pytest.approx([math.exp(-t) for t in ts], rel=1e-12)
