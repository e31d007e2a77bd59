"""A plan's choice, its reasons and its table, and what an auditor does with audits: numbers alone, no framework."""

from __future__ import annotations

import copy
import json
import math
import warnings

import pytest

import odenet
from odenet import Audit, Auditor, Auto, Backprop, Checkpoint, DiscreteAdjoint, GradientWarning, Plan, Profile
from odenet.doctor.candidates import candidates, few_states, reference

ADJOINT, TWICE = DiscreteAdjoint(), DiscreteAdjoint(iterations=2)
ROWS = (
    Profile(Backprop(), 1.0, 1000, 0.0),
    Profile(Checkpoint(), 2.0, 500, 1e-16),
    Profile(few_states(64), 3.0, 200, 1e-16),
    Profile(ADJOINT, 1.5, 100, 5e-3, 1e-2),
    Profile(TWICE, 1.8, 100, 1e-4, 1e-3),
)


def plan(rows=ROWS, **choices):
    return Plan("torch", "euler", 64, "float64", rows, **choices)


@pytest.mark.parametrize(
    ("memory", "tolerance", "chosen"),
    [
        (None, 1e-2, Backprop()),
        (1000, 1e-2, Backprop()),
        (999, 1e-2, ADJOINT),
        (999, 1e-3, TWICE),
        (999, 1e-5, Checkpoint()),
        (300, 1e-5, few_states(64)),
        (100, 1e-3, TWICE),
    ],
)
def test_the_fastest_that_fits_memory_and_tolerance_is_chosen(memory, tolerance, chosen):
    made = plan(memory=memory, tolerance=tolerance)
    assert made.gradient == chosen
    assert made.chosen.fits(memory)
    assert all(row.gradient == chosen or made.reason(row) for row in made.profiles)


def test_of_those_about_as_fast_the_most_exact_is_chosen():
    rows = (Profile(ADJOINT, 1.0, 100, 5e-3), Profile(Checkpoint(), 1.04, 100, 0.0))
    assert plan(rows).gradient == Checkpoint()


@pytest.mark.parametrize("memory", [0.5, 99, -1])
def test_memory_that_cannot_be_met_is_an_error_with_the_least_that_is_possible(memory):
    with pytest.raises(odenet.InputError, match=r"at least 100 bytes .*, which discrete-adjoint:iterations=2 needs"):
        plan(memory=memory, tolerance=1e-3)


def test_the_least_memory_is_that_of_a_method_within_the_tolerance():
    with pytest.raises(odenet.InputError, match=r"iterations=2 is 1\.0e-04 off.*at least 200 bytes.*states=7"):
        plan(memory=100, tolerance=1e-5)


def test_a_tolerance_that_no_method_meets_says_what_was_reached():
    rows = (Profile(ADJOINT, 1.0, 100, 5e-3), Profile(TWICE, trouble="it failed"))
    with pytest.raises(odenet.InputError, match=r"discrete-adjoint reached 5\.0e-03 \(.*it failed\)"):
        plan(rows, tolerance=1e-4)


def test_zero_gradients_choose_an_exact_method_and_say_so():
    rows = tuple(Profile(row.gradient, row.seconds, row.peak_bytes) for row in ROWS)
    made = plan(rows, memory=600, zero=True)
    assert made.gradient == Checkpoint()
    assert "no other method can be measured" in made.verdict.replace("\n", " ")


def test_where_only_exact_methods_qualify_the_verdict_says_what_the_others_reached():
    assert "None but exact methods meet it" in plan(memory=999, tolerance=1e-5).verdict
    off = tuple(Profile(r.gradient, r.seconds, r.peak_bytes, math.nan) for r in ROWS if r.gradient in (ADJOINT, TWICE))
    assert plan((*ROWS[:3], *off), memory=999).gradient == Checkpoint()  # NaN is within nothing


def test_the_table_fits_80_columns_and_says_who_lost_and_why():
    rows = (
        *ROWS,
        Profile(DiscreteAdjoint(iterations=2, anchors=16), 1.234e-6, 123456789, 1.2e-12),
        Profile(DiscreteAdjoint(predictor="extrapolate"), 1.0, 100, 0.3),
        Profile(Checkpoint(segments=8), peak_bytes=1000, trouble="it was stopped where it had taken 1000 bytes"),
        Profile(Checkpoint(states=1), trouble="RuntimeError: it broke"),
    )
    made = plan(rows, memory=999, tolerance=1e-2)
    table = str(made).splitlines()
    assert max(map(len, table)) <= 80
    notes = {line.split()[0]: line.split()[-1] for line in table[2 : 4 + len(rows)] if line}
    assert notes["discrete-adjoint"] == "chosen"
    assert notes["backprop"] == "memory"
    assert notes["discrete-adjoint:predictor=extrapolate"] == "error"
    assert notes["checkpoint"] == "slower"
    assert "failed" in str(made)
    assert made.verdict in made._repr_html_().replace("&#x27;", "'")
    plain = json.loads(json.dumps(made.to_dict()))
    assert plain["chosen"] == "discrete-adjoint"
    assert [row["gradient"] for row in plain["profiles"]] == [row.label for row in rows]


def test_candidates_are_what_the_backend_offers():
    entry = odenet.known()["torch"]
    euler = (odenet.solver("euler"),)
    found = candidates(entry, euler, 64)
    assert {Backprop(), Checkpoint(), Checkpoint(segments=8), few_states(64), ADJOINT, TWICE} <= set(found)
    assert not any(method.name == "continuous-adjoint" for method in found)
    assert reference(entry, euler) == Checkpoint()
    reversible = (odenet.solver("reversible-heun"),)
    assert {method.name for method in candidates(entry, reversible, 64)} == {"backprop", "checkpoint", "reversible"}
    assert few_states(64) not in candidates(entry, reversible, 64)
    assert reference(entry, reversible) == Checkpoint()
    adaptive = candidates(entry, (odenet.solver("dopri5"),), 16, adaptive=True)
    assert Checkpoint() in adaptive
    assert DiscreteAdjoint(predictor="extrapolate") not in adaptive


@pytest.mark.parametrize(
    ("text", "record"),
    [
        ("auto", Auto()),
        ("auto:tolerance=1e-3,audit=50,memory=64M", Auto(1e-3, 50, 64 * 2**20)),
        ("AUTO:audit=50:memory=2K", Auto(audit=50, memory=2048)),
    ],
)
def test_names_of_auto(text, record):
    assert odenet.gradient(text) == record
    assert odenet.gradient(record.label) == record


@pytest.mark.parametrize(
    "choices", [{"tolerance": 0}, {"tolerance": 1.0}, {"tolerance": True}, {"audit": 0}, {"memory": 0}]
)
def test_options_of_auto_that_cannot_be_used(choices):
    with pytest.raises(odenet.InputError, match="auto"):
        Auto(**choices)


def test_auto_cannot_be_chosen_by_itself():
    with pytest.raises(odenet.InputError):
        Auto(method=Auto())
    with pytest.raises(odenet.InputError):
        odenet.gradient("auto:method=checkpoint")
    assert "auto" not in odenet.GRADIENTS  # no method: none of the tables has it


def planned(memory=999):
    """What an auditor is handed by a pass that can be measured."""
    return plan(memory=memory, tolerance=0.5e-2)


def test_an_auditor_leaves_a_method_for_good():
    auditor = Auditor(Auto(memory=999))
    assert auditor.due
    auditor.planned(planned())
    auditor.counted()
    assert auditor.method == ADJOINT
    assert auditor.due
    auditor.judge(Profile(ADJOINT, gradient_error=2e-3, certificate=1e-2), planned)
    assert auditor.audits == (Audit(1, ADJOINT, 2e-3, 1e-2),)
    for error, next_one in ((2e-2, TWICE), (math.nan, Checkpoint())):
        with pytest.warns(GradientWarning, match="from now on"):
            auditor.judge(Profile(auditor.method, gradient_error=error), planned)
        assert auditor.method == auditor.audits[-1].moved_to == next_one
    assert not auditor.due  # an exact method needs no audit


def test_a_certificate_that_grows_makes_an_audit_due():
    auditor = Auditor(Auto(method=ADJOINT))
    auditor.judge(Profile(ADJOINT, gradient_error=1e-3, certificate=1e-2), planned)
    auditor.counted()
    auditor.next = 1000
    auditor.certified(2e-2)  # four times the error
    assert not auditor.due
    auditor.certified(4e-2)  # sixteen times
    assert auditor.due
    auditor.next = 1000
    auditor.certified(math.nan)
    assert auditor.due


def test_audits_of_a_long_training_take_less_than_two_in_a_hundred_passes():
    auditor = Auditor(Auto(method=ADJOINT))
    audits = 0
    for _ in range(2000):
        if auditor.due:
            audits += 1
            auditor.judge(Profile(ADJOINT, gradient_error=1e-3), planned)
        auditor.counted()
    assert audits < 20


def test_an_auditor_is_plain_data():
    auditor = Auditor(Auto())
    auditor.planned(planned())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        auditor.judge(Profile(auditor.method, gradient_error=1.0), planned)
    assert vars(copy.deepcopy(auditor)) == vars(auditor)
