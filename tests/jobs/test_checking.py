import io
import json

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

from odenet import FileError, GradientError, InputError, OdenetError, gradient, save_weights, solver
from odenet._jobs.cells.grid import GridPlan
from odenet._jobs.check.command import checks, command
from odenet.doctor.diagnosis import shown, tables

SMALL = ["--backend", "fake", "--depth", "8", "--batch", "4", "--width", "4"]


def plan(**changes):
    base = {"backends": ("fake",), "solvers": (solver("euler"),), "depths": (8,), "batch": 4, "width": 4}
    return GridPlan(**base | changes)


def run(*more):
    return CliRunner().invoke(command, [*SMALL, *more])


def examined(made):
    """The one check of a plan, and its examinations by label."""
    (check,) = checks(made)
    return check, {each.label: each for each in check.examinations}


@pytest.mark.parametrize(("name", "layers"), [("euler", 8), ("heun", 9)])
def test_every_weight_and_every_layer_has_its_error(fake, name, layers):
    made = plan(solvers=(solver(name),))
    check, found = examined(made)
    paper = found["discrete-adjoint:correct=no"]
    assert paper.gradient_error == pytest.approx(0.5 / 8)
    assert set(paper.by_weight) == set(made.spec(solver(name), 8).shapes())
    assert list(paper.by_layer) == [*map(str, range(layers)), "outside"] == list(paper.cosine_by_layer)
    assert np.median(list(paper.by_layer.values())) == pytest.approx(0.5 / 8, rel=0.3)
    assert paper.certificate == pytest.approx(0.5 / 8, rel=0.5)
    assert found["backprop"].gradient_error == 0
    assert set(found["backprop"].by_layer.values()) == {0.0}
    assert check.diagnosis.recommended is found["discrete-adjoint"]


def test_the_error_of_the_whole_is_made_of_those_of_the_parts(fake):
    """One layer is wrong, and it alone is blamed."""
    evaluate = fake.evaluate

    def wrong_in_layer_5(model, *batch):
        found = evaluate(model, *batch)
        if model.gradient.label == "discrete-adjoint":
            found.gradients.update(evaluate_exact(model, *batch))
            found.gradients["block.conv1.weight"][5] *= 2
        return found

    def evaluate_exact(model, *batch):
        exact = type(model)(**vars(model))
        exact.gradient = plan().gradients[0]
        return evaluate(exact, *batch).gradients

    fake.evaluate = wrong_in_layer_5
    wrong = examined(plan())[1]["discrete-adjoint"]
    assert [label for label, error in wrong.by_layer.items() if error > 0] == ["5"]
    assert [name for name, error in wrong.by_weight.items() if error > 0] == ["block.conv1.weight"]


def test_tied_weights_are_one_group_without_layers(fake):
    check, found = examined(plan(along="shared"))
    assert all(list(each.by_layer) == ["shared", "outside"] for each in found.values())
    assert len(tables(check.diagnosis)) == 1


def test_tables_name_weights_layers_and_methods(fake):
    screen = Console(width=200, record=True, file=io.StringIO())
    check, _ = examined(plan(depths=(40,)))
    for made in tables(check.diagnosis, str(check), weights=True):
        screen.print(made)
    text = screen.export_text()
    for word in ("block.conv2.weight", "discrete-adjoint:correct=no", "certificate", "16 of 40 layers", "N=40"):
        assert word in text


def test_reversible_is_checked_on_the_reversible_network_against_its_own_backprop(fake):
    """Heun's own gradient differs from that of reversible:heun, which must not count as an error of `reversible`."""
    evaluate = fake.evaluate

    def by_solver(model, *batch):
        found = evaluate(model, *batch)
        if model.solver.reversible:
            found.gradients.update({name: 3 * value for name, value in found.gradients.items()})
        return found

    fake.evaluate = by_solver
    _, found = examined(plan(solvers=(solver("heun"),), gradients=tuple(map(gradient, ("backprop", "reversible")))))
    assert found["reversible on reversible:heun"].gradient_error == 0
    assert found["backprop"].gradient_error == 0


@pytest.mark.parametrize(("layers", "count"), [(1, 1), (2, 2), (16, 16), (17, 16), (129, 16)])
def test_shown_layers_have_the_first_and_the_last(layers, count):
    found = shown(layers)
    assert len(found) == count
    assert (found[0], found[-1]) == (0, layers - 1)


def test_a_tolerance_decides_the_exit_status(fake):
    assert run().exit_code == 0
    assert run("--tolerance", "0.07").exit_code == 0
    strict = run("--tolerance", "0.05")
    assert strict.exit_code == 1
    assert "correct=no N=8: gradient error 6.2e-02 is above 0.05" in strict.stderr
    assert "discrete-adjoint N=8" not in strict.stderr


def test_a_gradient_that_is_no_number_is_above_every_tolerance(fake):
    evaluate = fake.evaluate

    def nan(model, *batch):
        found = evaluate(model, *batch)
        if model.gradient.name == "continuous-adjoint":
            found.gradients["head.bias"] = found.gradients["head.bias"] * np.nan
        return found

    fake.evaluate = nan
    assert run("--tolerance", "1e9").exit_code == 1


def test_the_verdict_is_printed_after_the_tables(fake):
    out = run().stdout
    assert "fake euler N=8: Take discrete-adjoint: its gradient is 7.8e-03 off" in out
    assert out.index("by weight") < out.index("Take discrete-adjoint")
    assert "within the tolerance of 1.0e-01" in run("--tolerance", "0.1").stdout


def test_a_method_that_fails_is_said_and_the_others_go_on(fake):
    evaluate = fake.evaluate

    def fails(model, *batch):
        if model.gradient.name == "continuous-adjoint":
            raise GradientError("it cannot be undone")
        return evaluate(model, *batch)

    fake.evaluate = fails
    done = run()
    assert done.exit_code == 1
    assert "continuous-adjoint N=8: it cannot be undone" in done.stderr
    assert "Take discrete-adjoint" in done.stdout


def test_everything_is_written_as_json(fake, tmp_path):
    target = tmp_path / "check.json"
    assert run("--json", str(target), "--solver", "euler,heun").exit_code == 0
    plain = json.loads(target.read_text())
    assert plain["format"] == "odenet check 1"
    assert plain["plan"]["width"] == 4
    assert len(plain["checks"]) == 8
    assert len(plain["checks"][0]["by_layer"]) == 8
    assert "head.bias" in plain["checks"][0]["by_weight"]
    assert [each["solver"] for each in plain["diagnoses"]] == ["euler", "heun"]
    assert plain["diagnoses"][0]["recommended"] == "discrete-adjoint"
    assert plain["checks"][1]["estimate"] == plain["checks"][1]["certificate"]


def test_an_output_that_cannot_be_written_is_found_before_the_work(fake, tmp_path):
    (tmp_path / "file").write_text("")
    evaluated = []
    fake.evaluate = lambda *a: evaluated.append(a)
    found = run("--json", str(tmp_path / "file" / "check.json")).exception
    assert isinstance(found, FileError)
    assert evaluated == []


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_weights_come_from_a_file(fake, tmp_path, suffix):
    pytest.importorskip("safetensors")
    path = tmp_path / f"weights.{suffix}"
    weights = plan().spec(solver("euler"), 8).init(seed=3)
    save_weights(path, weights)
    built = []
    build = fake.build
    fake.build = lambda spec, weights, **choices: built.append(weights) or build(spec, weights, **choices)
    assert run("--weights", str(path)).exit_code == 0
    assert all((used[name] == value).all() for used in built for name, value in weights.items())


def test_weights_of_another_network_are_refused(fake, tmp_path):
    save_weights(tmp_path / "weights.npz", plan().spec(solver("euler"), 4).init())
    found = run("--weights", str(tmp_path / "weights.npz")).exception
    assert isinstance(found, InputError)
    assert "for this network" in str(found)
    missing = run("--weights", str(tmp_path / "none.npz")).exception
    assert isinstance(missing, FileError)


def test_what_is_not_offered_or_not_installed_is_said(fake):
    done = run("--backend", "poor,absent")
    assert done.exit_code == 0
    assert "poor euler discrete-adjoint N=8: not offered" in done.stderr
    assert "pip install absent" in done.stderr
    assert isinstance(CliRunner().invoke(command, ["--backend", "absent"]).exception, OdenetError)


def test_help_has_examples(fake):
    text = CliRunner().invoke(command, ["--help"]).output
    for word in ("--tolerance", "--weights", "--json", "Examples:"):
        assert word in text
