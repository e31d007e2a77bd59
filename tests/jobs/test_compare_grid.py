import dataclasses
import json
from dataclasses import replace

import numpy as np
import pytest

from odenet import BackendUnavailableError, DepthError, FileError, GradientError, InputError, gradient, solver
from odenet._backend import registry as _registry
from odenet._jobs.cells.grid import GridPlan
from odenet._jobs.cells.results import OK
from odenet._jobs.compare.measure import _of_model, measure
from odenet._jobs.compare.results import COLUMNS, MeasuredGradient
from odenet._report.difference import cosine_distance, largest, relative
from odenet._report.rows import from_json, to_json
from odenet._report.units import factor, seconds, size

pytestmark = pytest.mark.usefixtures("fake")


def plan(**changes):
    base = {"backends": ("fake",), "solvers": (solver("euler"), solver("heun")), "depths": (2, 4, 8), "batch": 4}
    return GridPlan(**base | {"width": 4} | changes)


def test_the_default_plan_is_the_main_job():
    made = GridPlan(backends=("fake", "other"))
    assert len(made.cells()) == 2 * 3 * 4 * len(made.depths)
    assert [each.name for each in made.solvers] == ["euler", "heun", "rk4"]
    assert (min(made.depths), max(made.depths)) == (4, 64)


def test_backends_are_run_one_after_the_other():
    names = [cell.backend for cell in plan(backends=("other", "fake")).cells()]
    assert names == sorted(names, reverse=True)


def test_auto_gives_a_resnet_its_blocks_and_a_heunnet_its_nodes():
    made = plan()
    assert made.spec(solver("euler"), 8).layers == 8
    assert made.spec(solver("heun"), 8).layers == 9
    assert plan(along="linear").spec(solver("euler"), 8).layers == 9


def test_a_plan_survives_json():
    made = plan(gradients=(gradient("discrete-adjoint:iterations=2"),), start="zero", dtype="float32")
    assert GridPlan.from_json(json.loads(json.dumps(made.to_json()))) == made


@pytest.mark.parametrize("broken", [{"solvers": ["no"]}, {"gradients": ["no"]}, {"depths": None}, {"width": "wide"}])
def test_a_plan_that_odenet_did_not_write(broken):
    with pytest.raises(FileError, match="plan"):
        GridPlan.from_json(plan().to_json() | broken)
    with pytest.raises(FileError, match="plan"):
        GridPlan.from_json({name: 1 for name in broken})


def test_a_resumed_plan_keeps_the_earlier_grid():
    grown = plan(depths=(16,), solvers=(solver("rk4"),)).continued_from(plan())
    assert grown.depths == (2, 4, 8, 16)
    assert {each.name for each in grown.solvers} == {"euler", "heun", "rk4"}


@pytest.mark.parametrize("changed", [{"seed": 1}, {"width": 8}, {"batch": 5}, {"dtype": "float32"}, {"repeats": 2}])
def test_other_settings_cannot_be_resumed(changed):
    name = next(iter(changed))
    with pytest.raises(InputError, match=rf"other settings: {name} was"):
        plan(**changed).continued_from(plan())


def test_another_reference_cannot_be_resumed():
    with pytest.raises(InputError, match="reference of euler came from fake and would come from other"):
        plan(backends=("other", "fake")).continued_from(plan())


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"backends": ()}, "without backends"),
        ({"depths": ()}, "without depths"),
        ({"batch": 0}, "batch=0"),
        ({"repeats": True}, "repeats=True"),
        ({"backends": ("nobody",)}, "nobody"),
        ({"along": "sideways"}, "sideways"),
        ({"dtype": "float16"}, "float16"),
        ({"width": 6}, "norm='group'.*multiples of 4"),
        ({"depths": (0,)}, "depth=0"),
    ],
)
def test_a_plan_that_cannot_be_run(changed, words):
    with pytest.raises(InputError, match=words):
        plan(**changed)


def test_the_reference_is_the_first_backend_that_can_give_it():
    assert plan(backends=("absent", "poor", "fake")).reference(solver("heun")) == "poor"
    with pytest.raises(BackendUnavailableError, match="pip install absent"):
        plan(backends=("absent",)).require_a_backend()


def test_pairs_that_are_not_offered_and_backends_that_are_absent_have_rows():
    made = plan(backends=("fake", "poor", "absent"), depths=(2,), solvers=(solver("euler"),))
    rows = {row.key: row for row in measure(made, made.cells())}
    assert len(rows) == 12
    assert rows["poor", "euler", "backprop", 2].ok
    assert rows["poor", "euler", "discrete-adjoint", 2].status == "not offered by poor"
    assert "pip install absent" in rows["absent", "euler", "backprop", 2].status
    assert not any(row.failed for row in rows.values())


@pytest.mark.parametrize("error", [GradientError("lost"), DepthError("deep"), RuntimeError("out of memory")])
def test_a_cell_that_fails_is_recorded_and_the_run_goes_on(fake, error):
    def fail(model):
        if model.spec.depth == 4:
            raise error

    fake.before = fail
    made = plan(solvers=(solver("euler"),), gradients=(gradient("backprop"),))
    rows = list(measure(made, made.cells()))
    assert [row.ok for row in rows] == [True, False, True]
    assert rows[1].failed
    assert str(error) in rows[1].status


def test_a_backend_that_fails_in_any_way_takes_no_other_results_away(fake):
    """Whichever comes first: the exact gradient then is the other's."""
    other = _registry.known()["other"].load()
    fake.build = lambda *a, **k: {}["no such key"]
    for order in (("fake", "other"), ("other", "fake")):
        made = plan(backends=order, solvers=(solver("euler"),), depths=(4,))
        status = {(row.backend, row.gradient): row.status for row in measure(made, made.cells())}
        assert {status[key] for key in status if key[0] == "fake"} == {"KeyError: 'no such key'"}
        assert {status[key] for key in status if key[0] == "other"} == {OK}
    other.measure = lambda *a, **k: 1 / 0
    assert {row.status for row in measure(made, made.cells())} == {
        "KeyError: 'no such key'",
        "ZeroDivisionError: division by zero",
    }


def test_a_backend_without_networks_has_rows_that_say_so_and_takes_no_results_away(fake, monkeypatch):
    entries = dict(_registry.known())
    entries["poor"] = dataclasses.replace(entries["other"], name="poor", networks=False)
    monkeypatch.setattr(_registry, "known", lambda: entries)
    for order in (("poor", "fake"), ("fake", "poor")):
        made = plan(backends=order, solvers=(solver("euler"),), depths=(4,))
        status = {(row.backend, row.gradient): row.status for row in measure(made, made.cells())}
        assert {status[key] for key in status if key[0] == "fake"} == {OK}
        assert {status[key] for key in status if key[0] == "poor"} == {
            "not offered by poor: it solves, and has no networks"
        }


def test_a_row_says_how_far_the_cell_is_off():
    made = plan(backends=("fake", "other"), solvers=(solver("heun"),), depths=(8,))
    rows = {row.key: row for row in measure(made, made.cells())}
    for backend in ("fake", "other"):
        paper = rows[backend, "heun", "discrete-adjoint:correct=no", 8]
        assert paper.gradient_error == pytest.approx(0.5 / 8, rel=1e-9)
        assert paper.cosine_distance == pytest.approx(0.5 * (0.5 / 8) ** 2, rel=0.1)
        assert paper.f_forward == paper.f_forward_expected == 16
        assert paper.counts_match
        assert paper.backward_seconds == pytest.approx(0.02)
        assert rows[backend, "heun", "backprop", 8].gradient_error == 0
    assert rows["other", "heun", "backprop", 8].forward_difference == pytest.approx(1e-9, rel=1e-3)


@pytest.mark.parametrize(("beyond", "same"), [(0, True), (2, True), (1, False), (4, False), (-2, False)])
def test_one_step_that_tells_whether_the_field_has_changed_is_of_the_cost_model(beyond, same):
    cost = gradient("continuous-adjoint").cost(solver("heun"), 16)
    counts = cost.f_forward, cost.f_backward + beyond, cost.vjp
    assert _of_model(counts, cost) is same
    assert _of_model(counts, replace(cost, look=0)) is (beyond == 0)


def test_numbers_that_are_not_finite_are_no_result(fake, monkeypatch):
    evaluate = fake.evaluate
    nan = np.full((4, 10), np.nan)
    row = next(measure(plan(), plan().cells()))
    monkeypatch.setattr(fake, "evaluate", lambda *a: replace(evaluate(*a), outputs=nan))
    row = next(measure(plan(), plan().cells()))
    assert row.failed
    assert "not finite: outputs" in row.status
    assert from_json(MeasuredGradient, json.loads(json.dumps(to_json(row), allow_nan=False))).status == row.status


def test_every_column_is_explained_and_survives_json():
    assert all(COLUMNS.values())
    row = MeasuredGradient(backend="a", gradient_error=float("inf"), loss=1.0)
    assert from_json(MeasuredGradient, to_json(row)) == row
    with pytest.raises(FileError, match="columns"):
        from_json(MeasuredGradient, {"backend": "a"})


def test_differences_are_measured_without_cancellation():
    u, v = np.array([1.0, 0.0]), np.array([np.cos(1e-9), np.sin(1e-9)])
    assert cosine_distance(u, v) == pytest.approx(0.5e-18, rel=1e-6)
    assert cosine_distance(3 * u, u) == 0
    assert np.isnan(cosine_distance(u, 0 * u))
    assert relative(np.array([3.0, 4.0]), np.zeros(2)) == np.inf
    assert relative(np.zeros(2), np.zeros(2)) == 0
    assert relative(np.array([1.0, 1.1]), np.ones(2)) == pytest.approx(0.1 / np.sqrt(2))
    assert largest(np.array([1.0, 3.0]), np.array([1.0, 4.0])) == 0.25


def test_units():
    assert [seconds(x) for x in (2.5e-5, 0.0123, 1.5, 75.0, -0.002, 0)] == [
        "25.0 µs",
        "12.3 ms",
        "1.50 s",
        "75.0 s",
        "-2.00 ms",
        "0 µs",
    ]
    assert [size(x) for x in (512, 2048, 3 * 2**20, 2**31)] == ["512 B", "2.00 KiB", "3.00 MiB", "2.00 GiB"]
    assert factor(12.0) == "×12.0"
    assert seconds(None) == size(None) == factor(None) == "–"
