"""Every tableau has the order that it claims and no more, and a typing error in any coefficient is caught."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.polynomial import Polynomial

from odenet import SOLVERS, Tableau, TableauError, UnknownNameError, solver
from odenet._solvers.step import increment, positions
from odenet._solvers.tableau import order_defect, trees

EVERY = pytest.mark.parametrize("name", SOLVERS)
ROUNDED = {"tsit5", "dopri8"}  # published as decimals or rounded ratios
RATIONAL = pytest.mark.parametrize("name", [name for name in SOLVERS if name not in ROUNDED])
CLASSICAL = ("euler", "heun", "midpoint", "ralston", "kutta3", "ssprk3", "bosh3", "rk4", "rk38")  # p stages, order p


def exact(number):
    """The one ratio of small numbers that rounds to this float."""
    ratio = Fraction(number).limit_denominator(10**6)
    assert float(ratio) == number
    return ratio


def exactly(tableau, weights):
    return [[exact(entry) for entry in row] for row in tableau.a], [exact(weight) for weight in weights]


def test_rooted_trees_are_as_many_as_there_are():
    """Sequence A000081 of the OEIS."""
    assert [len(trees(n)) for n in range(1, 9)] == [1, 1, 2, 4, 9, 20, 48, 115]
    assert all(len(set(trees(n))) == len(trees(n)) for n in range(1, 9))


@RATIONAL
def test_the_claimed_order_holds_exactly_and_the_next_does_not(name):
    tableau = SOLVERS[name].tableau
    a, b = exactly(tableau, tableau.b)
    assert all(order_defect(a, b, p) == 0 for p in range(1, tableau.order + 1))
    assert order_defect(a, b, tableau.order + 1) > 1e-6
    if tableau.b_low is not None:
        a, b = exactly(tableau, tableau.b_low)
        assert all(order_defect(a, b, p) == 0 for p in range(1, tableau.order_low + 1))
        assert order_defect(a, b, tableau.order_low + 1) > 1e-6


@pytest.mark.parametrize("name", sorted(ROUNDED))
def test_the_claimed_order_of_rounded_coefficients_holds_up_to_rounding_and_the_next_does_not(name):
    tableau = SOLVERS[name].tableau
    for weights, order in ((tableau.b, tableau.order), (tableau.b_low, tableau.order_low)):
        assert max(order_defect(tableau.a, weights, p) for p in range(1, order + 1)) < 1e-12
        assert order_defect(tableau.a, weights, order + 1) > 1e-6


@EVERY
def test_rows_sum_to_their_nodes(name):
    tableau = SOLVERS[name].tableau
    assert [math.fsum(row) for row in tableau.a] == pytest.approx(tableau.c, abs=1e-12)
    assert math.fsum(tableau.b) == pytest.approx(1, abs=1e-12)


@EVERY
def test_a_typing_error_in_any_coefficient_is_caught(name):
    """Also where the nodes are summed from the wrong rows, so that the row sums hold: the order conditions see it."""
    good = SOLVERS[name].tableau
    entries = [(i, j) for i, row in enumerate(good.a) for j, entry in enumerate(row) if entry]
    for i, j in entries:
        row = [*good.a[i]]
        row[j] *= 1.001
        a = (*good.a[:i], tuple(row), *good.a[i + 1 :])
        with pytest.raises(TableauError, match="sums to"):
            dataclasses.replace(good, a=a)
        with pytest.raises(TableauError, match="misses an order condition"):
            dataclasses.replace(good, a=a, c=tuple(map(sum, a)))
    for kind in ("b", "b_low"):
        weights = getattr(good, kind) or ()
        for i in [i for i, weight in enumerate(weights) if weight]:
            wrong = tuple(weight * 1.001 if i == j else weight for j, weight in enumerate(weights))
            with pytest.raises(TableauError, match=f"{kind} claims order"):
                dataclasses.replace(good, **{kind: wrong})


@EVERY
def test_a_higher_order_cannot_be_claimed(name):
    good = SOLVERS[name].tableau
    with pytest.raises(TableauError, match=rf"claims order {good.order + 1} but misses .* of order {good.order + 1}"):
        dataclasses.replace(good, order=good.order + 1)


def test_a_swapped_pair_of_coefficients_is_caught():
    """The typing error of a well-known library's test suite: rk4's weights in another order pass a sum of one."""
    rk4 = SOLVERS["rk4"].tableau
    with pytest.raises(TableauError, match="order 2"):
        dataclasses.replace(rk4, b=(rk4.b[1], rk4.b[0], *rk4.b[2:]))


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"b": (), "a": (), "c": ()}, "at least one"),
        ({"c": (0.0,)}, "c 1 entries"),
        ({"a": ((), (1.0, 0.0))}, "explicit methods only"),
        ({"b_low": None}, "both or neither"),
        ({"b_low": (1.0,)}, "1 entries"),
    ],
)
def test_shapes_that_make_no_tableau(given, match):
    with pytest.raises(TableauError, match=match):
        dataclasses.replace(SOLVERS["heun"].tableau, **given)


def test_first_same_as_last_is_known_at_definition():
    assert {name for name, found in SOLVERS.items() if found.tableau.fsal} == {"bosh3", "dopri5", "tsit5"}


def test_stages_that_no_fixed_step_needs_are_not_counted():
    stages = {name: (found.tableau.stages, found.stages) for name, found in SOLVERS.items()}
    assert stages["bosh3"] == (4, 3)
    assert stages["dopri5"] == stages["tsit5"] == (7, 6)
    assert stages["dopri8"] == (13, 13)
    assert all(SOLVERS[name].stages == SOLVERS[name].order for name in CLASSICAL)


@EVERY
def test_only_the_counted_stages_are_evaluated(name):
    tableau, calls = SOLVERS[name].tableau, []

    def stage(i, y):
        calls.append(i)
        return y

    increment(tableau, stage, (1.0,), 0.1)
    assert calls == list(range(SOLVERS[name].stages))


def test_a_solver_is_found_by_name_alias_or_record():
    own = dataclasses.replace(SOLVERS["heun"], name="mine")
    assert solver("RK4") is SOLVERS["rk4"]
    assert {alias: solver(alias).name for alias in ("resnet", "heunnet")} == {"resnet": "euler", "heunnet": "heun"}
    assert solver(own) is own
    with pytest.raises(UnknownNameError, match="take heun"):
        solver("huen")


@pytest.mark.parametrize("name", CLASSICAL)
def test_on_a_linear_field_the_step_is_the_truncated_exponential(name):
    """y' = z y with h = 1 and y0 = 1, as a polynomial in z: sum_k z^k / k! up to the order."""
    (d,) = increment(SOLVERS[name].tableau, lambda i, y: (Polynomial([0, 1]) * y[0],), (Polynomial([1.0]),), 1.0)
    order = SOLVERS[name].order
    assert d.trim(1e-14).coef == pytest.approx([0, *(1 / math.factorial(k) for k in range(1, order + 1))], abs=1e-14)


@EVERY
def test_on_a_linear_field_the_step_agrees_with_the_exponential_up_to_the_order(name):
    (d,) = increment(SOLVERS[name].tableau, lambda i, y: (Polynomial([0, 1]) * y[0],), (Polynomial([1.0]),), 1.0)
    found = d.coef[1 : SOLVERS[name].order + 1]
    assert found == pytest.approx([1 / math.factorial(k) for k in range(1, len(found) + 1)], abs=1e-11)


@EVERY
def test_a_field_of_time_alone_is_integrated_exactly_below_the_order(name):
    tableau = SOLVERS[name].tableau
    for degree in range(tableau.order):
        (d,) = increment(tableau, lambda i, y, degree=degree: (tableau.c[i] ** degree,), (0.0,), 1.0)
        assert d == pytest.approx(1 / (degree + 1), abs=1e-12)


small = st.floats(-2, 2, allow_subnormal=False)
vectors = st.lists(small, min_size=3, max_size=3).map(np.array)
names = st.sampled_from(list(SOLVERS))


@given(names, vectors, vectors, small, small, st.integers(0, 5))
def test_the_increment_of_a_linear_field_is_linear(name, one, other, a, b, seed):
    matrix = np.random.default_rng(seed).standard_normal((3, 3))

    def d(y):
        return increment(SOLVERS[name].tableau, lambda i, at: (matrix @ at[0],), (y,), 0.3)[0]

    assert d(a * one + b * other) == pytest.approx(a * d(one) + b * d(other), rel=1e-9, abs=1e-11)


@given(names, vectors, small, st.floats(0.1, 3))
def test_a_step_of_h_is_a_unit_step_of_h_times_the_field(name, y, h, scale):
    tableau = SOLVERS[name].tableau
    (one,) = increment(tableau, lambda i, at: (scale * np.sin(at[0]),), (y,), h)
    (other,) = increment(tableau, lambda i, at: (h * scale * np.sin(at[0]),), (y,), 1.0)
    assert one == pytest.approx(other, rel=1e-9, abs=1e-11)


@given(names, vectors, st.integers(0, 5))
def test_a_step_does_not_depend_on_the_coordinates(name, y, seed):
    """In coordinates x = T y + s a step of x is T of the step of y: no method knows its coordinates."""
    generator = np.random.default_rng(seed)
    turn, shift = np.linalg.qr(generator.standard_normal((3, 3)))[0], generator.standard_normal(3)
    tableau = SOLVERS[name].tableau
    (one,) = increment(tableau, lambda i, at: (np.tanh(at[0]) - at[0] ** 2,), (y,), 0.1)

    def field(x):
        back = turn.T @ (x - shift)
        return turn @ (np.tanh(back) - back**2)

    (other,) = increment(tableau, lambda i, at: (field(at[0]),), (turn @ y + shift,), 0.1)
    assert other == pytest.approx(turn @ one, rel=1e-8, abs=1e-10)


@given(names, st.lists(small, min_size=2, max_size=2))
def test_leaves_are_stepped_as_one_state(name, y):
    tableau = SOLVERS[name].tableau
    one, other = increment(tableau, lambda i, at: (at[1], -at[0]), tuple(y), 0.5)
    (both,) = increment(tableau, lambda i, at: (np.array([at[0][1], -at[0][0]]),), (np.array(y),), 0.5)
    assert [one, other] == pytest.approx(both, rel=1e-12, abs=1e-14)


@EVERY
def test_a_reversed_step_reads_mirrored_places(name):
    """All but Euler's, whose one stage reads its own layer."""
    tableau = SOLVERS[name].tableau
    forward, back = positions(tableau), positions(tableau, reverse=True)
    assert len(forward) == len(back) == tableau.step_stages
    assert back == ((0.0,) if name == "euler" else tuple(1 - place for place in forward))


def test_fractions_are_kept_as_floats():
    half = Fraction(1, 2)
    made = Tableau(((), (Fraction(1),)), (half, half), (Fraction(0), Fraction(1)), 2)
    assert all(type(number) is float for number in (*made.b, *made.c, *made.a[1]))


def test_a_tableau_is_made_with_all_that_is_derived_from_it():
    """torch.compile cannot follow a property into its first evaluation, in the first solve of a process."""
    heun = Tableau(((), (1,)), (0.5, 0.5), (0, 1), 2, (1, 0), 1)
    own = vars(heun)
    assert (own["error_weights"], own["error_order"], own["fsal"]) == ((-0.5, 0.5), 2, False)
    assert (own["stages"], own["step_stages"]) == (2, 2)
