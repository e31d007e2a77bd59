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
    Checkpoint,
    ContinuousAdjoint,
    Cost,
    DiscreteAdjoint,
    InputError,
    Reversible,
    UnknownNameError,
    gradient,
    solver,
)
from odenet._gradients.exact import WORKING
from odenet._solvers.bdia import BDIA, TwoStepMidpoint
from odenet._solvers.coupling import Hamiltonian, Leapfrog
from odenet._solvers.reversible import AsynchronousLeapfrog, Coupled, ReversibleHeun
from odenet._solvers.two_step import Momentum

counts = st.integers(1, 10**6)
records = st.one_of(
    st.just(Backprop()),
    st.builds(Checkpoint),
    st.builds(Checkpoint, segments=counts),
    st.builds(Checkpoint, states=st.integers(1, 300)),
    st.builds(Checkpoint, memory=counts),
    st.just(Reversible()),
    *(
        st.builds(
            DiscreteAdjoint,
            correct=st.booleans(),
            iterations=st.integers(1, 50),
            anchors=st.none() | counts,
            **extrapolated,
            **settled,
        )
        for extrapolated in ({}, {"predictor": st.just("extrapolate"), "order": st.integers(1, 4)})
        for settled in ({}, {"tolerance": st.floats(1e-16, 1, exclude_max=True), "limit": counts})
    ),
    st.builds(
        ContinuousAdjoint,
        solver=st.none() | st.sampled_from(list(SOLVERS)),
        steps=st.none() | st.integers(1, 512),
        interpolate=st.booleans(),
    ),
)
solvers = st.sampled_from(list(SOLVERS.values()))
reversible = st.one_of(
    st.sampled_from([ReversibleHeun(), AsynchronousLeapfrog()]),
    st.builds(Coupled, solvers, st.none() | st.floats(1e-3, 1)),
    st.builds(
        BDIA,
        gamma=st.sampled_from([0.5, -0.5, 0.25, -0.125]),
        bits=st.none() | st.integers(1, 48),
        guard=st.booleans(),
        seed=st.none() | st.integers(0, 2**31 - 1),
        shared=st.booleans(),
    ),
    *(
        st.builds(kind, bits=st.none() | st.integers(1, 48), guard=st.booleans())
        for kind in (TwoStepMidpoint, Hamiltonian, Leapfrog)
    ),
    st.builds(Momentum, gamma=st.floats(0, 1, exclude_min=True, exclude_max=True)),
)


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


@pytest.mark.parametrize(
    ("text", "bytes"), [("4096", 4096), ("512K", 2**19), ("64M", 2**26), ("1.5G", 3 * 2**29), ("2kib", 2048), ("8b", 8)]
)
def test_memory_is_spelt_in_bytes_and_powers_of_1024(text, bytes):
    assert gradient(f"checkpoint:memory={text}") == Checkpoint(memory=bytes)


def test_spelling_is_forgiven_and_aliases_are_known():
    assert gradient("Discrete_Adjoint:Iterations=2") == DiscreteAdjoint(iterations=2)
    assert gradient("checkpointing:Segments=4") == Checkpoint(segments=4)
    assert solver("MALI") == solver("asynchronous_leapfrog") == AsynchronousLeapfrog()
    assert solver("revheun") == ReversibleHeun()
    assert solver("reversible:heunnet:Coupling=0.5") == Coupled(SOLVERS["heun"], 0.5)
    assert gradient("adjoint") == ContinuousAdjoint()
    assert gradient("continuous-adjoint:solver=heunnet:steps=8") == ContinuousAdjoint("heunnet", 8)


@given(reversible)
def test_a_label_spells_its_reversible_solver(record):
    assert solver(record.label) == record
    assert solver(record) is record
    assert record.reversible
    assert Reversible().offered(record)
    assert Backprop().offered(record)
    assert Checkpoint().offered(record)
    assert Checkpoint(segments=2).offered(record)
    refused = (Checkpoint(states=2), Checkpoint(bits=8), Checkpoint(memory=64), DiscreteAdjoint(), ContinuousAdjoint())
    assert not any(method.offered(record) for method in refused)


@given(solvers)
def test_a_runge_kutta_method_is_not_reversible(record):
    assert not Reversible().offered(record)
    assert all(kind().offered(record) for kind in GRADIENTS.values() if kind is not Reversible)


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
        (lambda: ContinuousAdjoint(solver="alf"), InputError, "solver='alf' of the continuous adjoint.*Runge-Kutta"),
        (lambda: ContinuousAdjoint(interpolate=1), InputError, "interpolate=1.*True or False"),
        (lambda: Checkpoint(segments=0), InputError, "segments=0.*at least 1"),
        (lambda: Checkpoint(states=2.0), InputError, r"states=2\.0"),
        (lambda: Checkpoint(memory=True), InputError, "memory=True"),
        (lambda: Checkpoint(2, 3, 4), InputError, "segments=2 and states=3 and memory=4.*one of"),
        (lambda: gradient("checkpoint:memory=many"), InputError, "'many' is no amount of memory.*512K"),
        (lambda: gradient("checkpoint:memory=1e999G"), InputError, "'1e999G' is no amount of memory"),
        (lambda: Checkpoint(memory=1000).cost(SOLVERS["euler"], 4), InputError, "memory=1000.*segments=K or states=K"),
        (lambda: Checkpoint(memory=1000).affordable(200, 100), InputError, "memory=1000 bytes.*at least 1900 bytes"),
        (lambda: DiscreteAdjoint(order=5), InputError, "order=5.*1 to 4"),
        (lambda: DiscreteAdjoint(anchors=0), InputError, "anchors=0.*at least 1"),
        (lambda: DiscreteAdjoint(tolerance=1), InputError, "tolerance=1.*between 0 and 1"),
        (lambda: DiscreteAdjoint(tolerance="1e-3"), InputError, "tolerance='1e-3'"),
        (lambda: DiscreteAdjoint(limit=0), InputError, "limit=0"),
        (lambda: DiscreteAdjoint(limit=5), InputError, "limit=5.*without a tolerance"),
        (lambda: gradient("discrete-adjoint:order=3"), InputError, "order=3.*without extrapolation"),
        (lambda: gradient("discrete-adjoint:correct=no:Correct=no"), InputError, "correct twice"),
        (lambda: solver("reversible:rk5"), UnknownNameError, "to be made reversible called 'rk5'.*take rk4"),
        (lambda: solver("reversible:reversible"), UnknownNameError, "to be made reversible called 'reversible'"),
        (lambda: solver("reversible:heun:coupling=1.5"), InputError, r"coupling=1\.5.*\(0, 1\]"),
        (lambda: solver("reversible:heun:coupling"), InputError, "option 'coupling'.*coupling=0.99"),
        (lambda: solver("heun:coupling=0.9"), InputError, "solver 'heun:coupling=0.9'.*reversible:SOLVER"),
        (lambda: Coupled(coupling=True), InputError, "coupling=True"),
    ],
)
def test_what_makes_no_gradient_method(make, error, match):
    with pytest.raises(error, match=match):
        make()


@given(records, solvers, st.integers(1, 200), st.integers(1, 4))
def test_cost_grows_as_the_steps_do(record, solver, steps, factor):
    """Evaluations and VJPs are proportional to the steps, and the states kept, too, or they are a given number."""
    if isinstance(record, Reversible) or getattr(record, "memory", None) is not None:
        return
    if isinstance(record, ContinuousAdjoint):
        record = dataclasses.replace(record, steps=None)
    one, other = record.cost(solver, steps), record.cost(solver, factor * steps)
    assert other.f_forward == factor * one.f_forward == factor * steps * solver.stages
    # and those of the steps that the continuous adjoint is compared with: the first, and one of the others
    looks = [
        record.compared(n) * solver.stages if isinstance(record, ContinuousAdjoint) else 0
        for n in (steps, factor * steps)
    ]
    assert other.vjp - looks[1] == factor * (one.vjp - looks[0])
    match record:
        case Checkpoint(states=int() as states):
            assert one.states <= states + 1
            assert other.f_backward >= factor * one.f_backward
        case Checkpoint():
            assert (other.f_backward, other.states) == (
                factor * one.f_backward,
                min(record.segments or 10**9, factor * steps),
            )
        case DiscreteAdjoint():
            # the first steps of an extrapolated way are reversed, unless they start from an anchor
            reversed_once = (
                record.order * record.startup * solver.stages if record.extrapolates and record.anchors else 0
            )
            assert other.f_backward <= factor * (one.f_backward + reversed_once)
            assert record.extrapolates or record.anchors or other.f_backward == factor * one.f_backward
            assert one.states == 1 + (0 if record.anchors is None else (steps - 1) // record.anchors)
        case ContinuousAdjoint():
            assert other.f_backward - looks[1] == factor * (one.f_backward - looks[0])
            assert other.states == (factor * steps + 1 if record.interpolate else 1)
        case _:
            assert (other.f_backward, other.states) == (0, factor * one.states)


@given(solvers, st.integers(1, 60))
def test_fewer_states_cost_more_evaluations(solver, steps):
    """From one evaluation of each step again, with a state for each, to the triangle of them with one state."""
    again = [Checkpoint(states=states).cost(solver, steps).f_backward for states in range(1, steps + 2)]
    assert again == sorted(again, reverse=True)
    assert again[-1] == Checkpoint().cost(solver, steps).f_backward == steps * solver.stages
    assert again[0] == (steps * (steps - 1) // 2 - (steps - 1) + steps) * solver.stages


@given(st.integers(1, 10**6), st.integers(1, 10**4), st.integers(0, 10**6))
def test_as_many_states_as_a_budget_holds(count, state, stages):
    """One byte less holds one state less."""
    budget = stages + (WORKING + count) * state
    assert Checkpoint(memory=budget).affordable(state, stages) == count
    assert Checkpoint(memory=budget + state - 1).affordable(state, stages) == count


@given(st.integers(1, 1000), st.integers(1, 1000))
def test_segments_cover_the_steps_and_are_of_one_length_or_two(segments, steps):
    parts = Checkpoint(segments=segments).parts(steps)
    assert [n for first, end in parts for n in range(first, end)] == list(range(steps))
    lengths = {end - first for first, end in parts}
    assert len(parts) == min(segments, steps)
    assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_extrapolation_continues_polynomials(order):
    """Through k increments goes one polynomial of degree k - 1, and it is continued exactly."""
    weights = DiscreteAdjoint(predictor="extrapolate", order=order).continued
    for degree in range(order):
        assert sum(w * (n + 1) ** degree for n, w in enumerate(weights)) == 0**degree
    assert sum(w * (n + 1) ** order for n, w in enumerate(weights)) != 0


@given(reversible, st.integers(1, 50))
def test_the_way_back_of_a_reversible_solver_costs_what_the_way_there_does(solver, steps):
    cost = Reversible().cost(solver, steps)
    assert cost.f_forward == cost.f_backward == cost.vjp == solver.evaluations(steps)
    assert cost.states == 2
    assert solver.evaluations(steps) == steps * solver.stages + isinstance(
        solver, (ReversibleHeun, AsynchronousLeapfrog)
    )


@given(solvers, st.integers(1, 100))
def test_cost_of_the_methods_against_each_other(solver, steps):
    backprop, corrected = Backprop().cost(solver, steps), DiscreteAdjoint().cost(solver, steps)
    assert corrected == DiscreteAdjoint(correct=False).cost(solver, steps)  # the correction is free
    assert DiscreteAdjoint(iterations=3).cost(solver, steps).f_backward == 2 * corrected.f_backward
    assert corrected.vjp == backprop.vjp
    assert backprop == Cost(steps * solver.stages, 0, steps * solver.stages, steps)
    length, _ = ContinuousAdjoint("euler", 7).segment(steps)
    common = steps // 7 if steps % 7 == 0 else steps
    assert length == (common if common <= 16 else 0)  # no more states are kept
    segments = (2 if steps % 7 == 0 else 1) if length else 0
    assert ContinuousAdjoint("euler", 7).cost(solver, steps).vjp == 7 + segments * length * solver.stages


def test_the_backward_solve_is_the_forward_one_unless_chosen():
    rk4, heun = SOLVERS["rk4"], SOLVERS["heun"]
    assert ContinuousAdjoint().backward(rk4, 8) == (rk4, 8)
    assert ContinuousAdjoint("heun", 16).backward(rk4, 8) == (heun, 16)
