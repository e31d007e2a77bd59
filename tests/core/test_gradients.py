"""Gradient methods as records: their spelling, their options and their cost."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from odenet import (
    GRADIENTS,
    SOLVERS,
    Backprop,
    ContinuousAdjoint,
    Cost,
    DiscreteAdjoint,
    InputError,
    UnknownNameError,
    gradient,
)

counts = st.integers(1, 10**6)
records = st.one_of(
    st.just(Backprop()),
    st.builds(DiscreteAdjoint, correct=st.booleans(), iterations=counts),
    st.builds(
        ContinuousAdjoint, solver=st.none() | st.sampled_from(list(SOLVERS)), steps=st.none() | st.integers(1, 512)
    ),
)
solvers = st.sampled_from(list(SOLVERS.values()))


@given(records)
def test_a_label_spells_its_record(record):
    assert gradient(record.label) == record
    assert gradient(record) is record
    assert hash(gradient(record.label)) == hash(record)


@given(records, records)
def test_labels_are_equal_only_where_records_are(one, other):
    assert (one.label == other.label) == (one == other)


def test_a_default_method_is_labelled_by_its_name_alone():
    assert {name: kind().label for name, kind in GRADIENTS.items()} == {name: name for name in GRADIENTS}
    assert gradient("discrete-adjoint:correct=no:iterations=2").label == "discrete-adjoint:correct=no:iterations=2"


@pytest.mark.parametrize("text", ["no", "False", "false", "0", "off", "NO"])
def test_no_in_every_spelling_is_false(text):
    """A flag read with type=bool takes `False` for True."""
    assert gradient(f"discrete-adjoint:correct={text}").correct is False


@pytest.mark.parametrize("text", ["yes", "True", "true", "1", "on"])
def test_yes_in_every_spelling_is_true(text):
    assert gradient(f"discrete-adjoint:correct={text}").correct is True


def test_spelling_is_forgiven_and_aliases_are_known():
    assert gradient("Discrete_Adjoint:Iterations=2") == DiscreteAdjoint(iterations=2)
    assert gradient("adjoint") == ContinuousAdjoint()
    assert gradient("continuous-adjoint:solver=heunnet:steps=8") == ContinuousAdjoint("heunnet", 8)


def test_a_record_with_a_solver_of_its_own_can_be_labelled():
    assert ContinuousAdjoint(SOLVERS["rk4"]).label == "continuous-adjoint:solver=rk4"


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: gradient("discrete"), UnknownNameError, "called .discrete..*take discrete-adj"),
        (lambda: gradient(3), InputError, "gradient=3.*DiscreteAdjoint"),
        (lambda: gradient("discrete-adjoint:corect=no"), UnknownNameError, "'corect'.*take correct"),
        (lambda: gradient("backprop:steps=3"), UnknownNameError, "option of backprop called 'steps'"),
        (lambda: gradient("discrete-adjoint:correct"), InputError, "'correct'.*option=value"),
        (lambda: gradient("discrete-adjoint:correct=maybe"), InputError, "'maybe' is neither true nor false"),
        (lambda: gradient("discrete-adjoint:iterations=two"), InputError, "'two' is no whole number"),
        (lambda: gradient("discrete-adjoint:iterations=0"), InputError, "iterations=0.*at least 1"),
        (lambda: gradient("discrete-adjoint:predictor=revers"), UnknownNameError, "take reverse"),
        (lambda: gradient("continuous-adjoint:solver=rk5"), UnknownNameError, "take rk"),
        (lambda: DiscreteAdjoint(correct="no"), InputError, "correct='no'.*True or False"),
        (lambda: DiscreteAdjoint(iterations=True), InputError, "iterations=True"),
        (lambda: DiscreteAdjoint(iterations=1.5), InputError, "iterations=1.5"),
        (lambda: ContinuousAdjoint(steps=0), InputError, "steps=0 of the continuous adjoint"),
        (lambda: ContinuousAdjoint(steps=2.0), InputError, r"steps=2\.0"),
        (lambda: ContinuousAdjoint(solver=4), InputError, "a solver was given as 4"),
    ],
)
def test_what_makes_no_gradient_method(make, error, match):
    with pytest.raises(error, match=match):
        make()


@given(records, solvers, st.integers(1, 500), st.integers(1, 4))
def test_cost_grows_as_the_steps_do(record, solver, steps, factor):
    """Evaluations and VJPs are proportional to the steps; the adjoints keep one state whatever the depth."""
    if isinstance(record, ContinuousAdjoint):
        record = dataclasses.replace(record, steps=None)
    one, other = record.cost(solver, steps), record.cost(solver, factor * steps)
    assert other.f_forward == factor * one.f_forward == factor * steps * solver.stages
    assert (other.f_backward, other.vjp) == (factor * one.f_backward, factor * one.vjp)
    assert other.states == (factor * one.states if isinstance(record, Backprop) else 1)


@given(solvers, st.integers(1, 100))
def test_cost_of_the_methods_against_each_other(solver, steps):
    backprop, corrected = Backprop().cost(solver, steps), DiscreteAdjoint().cost(solver, steps)
    assert corrected == DiscreteAdjoint(correct=False).cost(solver, steps)  # the correction is free
    assert DiscreteAdjoint(iterations=3).cost(solver, steps).f_backward == 2 * corrected.f_backward
    assert corrected.vjp == backprop.vjp
    assert backprop == Cost(steps * solver.stages, 0, steps * solver.stages, steps)
    assert ContinuousAdjoint("euler", 7).cost(solver, steps).vjp == 7


def test_the_backward_solve_is_the_forward_one_unless_chosen():
    rk4, heun = SOLVERS["rk4"], SOLVERS["heun"]
    assert ContinuousAdjoint().backward(rk4, 8) == (rk4, 8)
    assert ContinuousAdjoint("heun", 16).backward(rk4, 8) == (heun, 16)
