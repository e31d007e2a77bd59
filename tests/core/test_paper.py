"""`odenet reproduce`: what is measured is what the mathematics says, and every verdict can fail."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from odenet import FileError, InputError, _registry
from odenet.paper import claims, flow, verdict
from odenet.paper.claims import distance, gradient_error, lighter, linear_limit, memory, nonlinear_limit, reconstruction
from odenet.paper.command import command
from odenet.paper.network import field, smooth_weights, states
from odenet.paper.reproduction import Cell, Choices, Point, reproductions, values
from odenet.paper.results import POINTS, SUMMARY, Results, quartiles, read

NATIVE = [name for name, entry in _registry.available().items() if entry.array_modules]
CHOICES = Choices(("torch",), seeds=2, scale="quick")
CONSTANTS = {1: 3.0, 2: 2.0}  # of the lines drawn by `made`, by seed


def made(shapes, depths=(4, 8, 16, 32, 64, 128, 256)):
    """Points `c N**-order` for (curve, quantity, step) -> order, with a c for each seed."""
    return [
        Point("torch", seed, curve, n, quantity, step, None, factor * c * float(n) ** -order)
        for (curve, quantity, step), (order, factor) in shapes.items()
        for n in depths
        for seed, c in CONSTANTS.items()
    ]


def right_reconstruction():
    return {(curve, reconstruction.ERROR, None): (each[3], 1e-2) for curve, each in reconstruction.METHODS.items()}


def right_distance():
    found = {}
    for curve, order in ((distance.SMOOTH, 1), (distance.ROUGH, 0)):
        found[curve, distance.DISTANCE, None] = (order, 1.0)
        found[curve, distance.BOUND, None] = (order, 5.0)
        found[curve, distance.REFINEMENT, None] = (order, 1e-6)
    return found


def right_linear_limit():
    smooth, rough = linear_limit.SMOOTH, linear_limit.ROUGH
    found = {
        (smooth, flow.FINAL, None): (0, 1e-3),
        (smooth, flow.LARGEST, None): (0, 0.5),
        (smooth, flow.SMOOTHNESS, None): (0, 1.0),
        (rough, flow.SMOOTHNESS, None): (-1, 1.0),
        (rough, flow.WEIGHTS, None): (0, 1.0),
    }
    for quantity in (flow.STATES, flow.WEIGHTS):
        for step in (None, 0, 10, 20):
            found[smooth, quantity, step] = (1, 1.0)
    return found


def right_nonlinear_limit():
    tanh, relu = nonlinear_limit.TANH, nonlinear_limit.RELU
    found = {
        (tanh, flow.FINAL, None): (0, 1e-3),
        (tanh, flow.LARGEST, None): (0, 0.5),
        (tanh, flow.SMOOTHNESS, None): (0, 1.0),
        (relu, flow.FINAL, None): (0, 1e-3),
        (relu, flow.SMOOTHNESS, None): (-0.5, 1.0),
    }
    for rough in (nonlinear_limit.ROUGH_TANH, nonlinear_limit.ROUGH_RELU):
        found |= {(rough, flow.SMOOTHNESS, None): (-1, 1.0), (rough, flow.WEIGHTS, None): (0, 1.0)}
    for curve, quantity in ((tanh, flow.STATES), (tanh, flow.WEIGHTS), (relu, flow.STATES), (relu, flow.MEAN)):
        for step in (None, 0, 10, 20):
            found[curve, quantity, step] = (1, 1.0)
    return found


def right_gradient_error():
    found = {}
    for curve, order in ((gradient_error.RESNET, 1), (gradient_error.HEUNNET, 3)):
        found[curve, gradient_error.PAPER, None] = (order, 1e-2)
        found[curve, gradient_error.CORRECTED, None] = (order, 1e-3)
    return found


def right_memory():
    found = {}
    for net in memory.NETS:
        for method, order in ((memory.BACKPROP, -1), (memory.CHECKPOINT, -0.5), (memory.ADJOINT, 0)):
            found[f"{net}, {method}", memory.TIED, None] = (order, 1e6)
        found[f"{net}, {memory.ADJOINT}", memory.UNTIED, None] = (0, 1e6)
    return found


def right_lighter():
    untied, independent = lighter.UNTIED, lighter.INDEPENDENT
    found = {
        (f"ResNet: {untied}", lighter.PAPER, None): (1, 1e-2),
        (f"ResNet: {untied}", lighter.CORRECTED, None): (2, 1e-2),
        (f"ResNet: {untied}", lighter.SECOND, None): (3, 1e-2),
        (f"ResNet: {independent}", lighter.PAPER, None): (1, 1e-3),
        (f"ResNet: {independent}", lighter.FIRST, None): (1, 1e-2),
        (f"ResNet: {independent}", lighter.SECOND, None): (1, 2e-2),
        (f"HeunNet: {untied}", lighter.PAPER, None): (3, 1e-2),
        (f"HeunNet: {untied}", lighter.SECOND, None): (3, 1e-1),
    }
    for net in lighter.NETS:
        cost = f"{net}: {lighter.COST}"
        found[cost, lighter.TIME, None] = (0, 0.25)
        found[cost, f"{lighter.PAPER}: {lighter.EVALUATIONS}", None] = (0, 2.0)
        found[cost, f"{lighter.SECOND}: {lighter.EVALUATIONS}", None] = (0, 1.0)
    return found


RIGHT = {
    "reconstruction": right_reconstruction,
    "distance": right_distance,
    "linear-limit": right_linear_limit,
    "nonlinear-limit": right_nonlinear_limit,
    "gradient-error": right_gradient_error,
    "memory": right_memory,
    "lighter": right_lighter,
}


def test_every_file_is_a_reproduction():
    files = {path.stem for path in Path(claims.__path__[0]).glob("*.py")} - {"__init__"}
    assert {name.replace("-", "_") for name in reproductions()} == files
    assert set(RIGHT) == set(reproductions()), "a new reproduction needs data that its verdicts pass and fail"


@pytest.mark.parametrize("name", RIGHT)
def test_verdicts_pass_what_the_paper_says(name):
    found = reproductions()[name].verdicts(made(RIGHT[name]()))
    assert found
    assert all(each.passed for each in found), [each for each in found if not each.passed]


@pytest.mark.parametrize("name", RIGHT)
def test_every_verdict_can_fail(name):
    """Each verdict fails for some wrong data: of a curve with another order, or a hundred times as large or small."""
    right, judge = RIGHT[name](), reproductions()[name].verdicts
    passed = {each.claim for each in judge(made(right))}
    failed = set()
    for key, (order, factor) in right.items():
        orders = ((order + 1, factor), (order - 1, factor), (0, factor))
        for wrong in (*orders, (order, 100 * factor), (order, 1e-4 * factor)):
            failed |= {each.claim for each in judge(made({**right, key: wrong})) if not each.passed}
    assert failed == passed


@pytest.mark.parametrize("name", RIGHT)
def test_no_data_is_no_success(name):
    assert not any(each.passed for each in reproductions()[name].verdicts([]))


def test_a_slope_that_is_no_line_is_no_order():
    bent = {n: [1 / n * (2 if n in (8, 64) else 1)] for n in (4, 8, 16, 32, 64)}
    assert verdict.falls("", {n: [1 / n] for n in bent}, 1, 0.3).passed
    assert not verdict.falls("", bent, 1, 0.3).passed
    assert not verdict.falls("", {n: [float("nan")] for n in bent}, 1, 0.3).passed
    assert verdict.below("", {4: [0.5, 0.0]}, {4: [1.0, 0.0]}).passed
    assert not verdict.below("", {4: [0.5, float("nan")]}, {4: [1.0, 1.0]}).passed
    assert not verdict.below("", {4: [0.5, 0.5]}, {4: [1.0, 0.0]}).passed


@pytest.mark.parametrize("backend", NATIVE)
def test_reconstruction_is_the_loop_written_here(backend):
    n = 8
    weights, y = smooth_weights(3, np.arange(n) / n), states(3)
    ys = [y]
    for layer in range(n):
        ys.append(ys[-1] + field(0, ys[-1], {name: w[layer] for name, w in weights.items()}) / n)
    z, worst = ys[-1], 0.0
    for layer in reversed(range(n)):
        z = z - field(0, z, {name: w[layer] for name, w in weights.items()}) / n
        worst = max(worst, np.linalg.norm(z - ys[layer]) / np.linalg.norm(ys[layer]))
    (point,) = reconstruction.measure(Cell(backend, 3, "Euler, paper", n), CHOICES)
    assert point.value == pytest.approx(worst, rel=1e-9)


def test_the_distance_is_below_its_bound_and_halves():
    found = {n: distance.measure(Cell(NATIVE[0], 0, distance.SMOOTH, n), CHOICES) for n in (8, 16)}
    apart = {n: {each.quantity: each.value for each in points} for n, points in found.items()}
    assert apart[8][distance.DISTANCE] / apart[16][distance.DISTANCE] == pytest.approx(2, abs=0.1)
    assert all(each[distance.DISTANCE] < each[distance.BOUND] for each in apart.values())


def test_the_bound_of_a_known_field():
    """Without bias and with a = 0, tanh(0) = 0: nothing moves, and the bound knows."""
    still = {"a": np.full((3, 2, 2), 1e-9) * np.eye(2), "b": np.zeros((3, 2))}
    assert distance.bound(still, np.ones((5, 1, 2))) == pytest.approx(0, abs=1e-8)
    rising = {"a": still["a"], "b": np.array([[0.0, 0.0], [0.1, 0.0], [0.2, 0.0]])}  # x'' = b' = 0.2 at s = 0
    assert distance.bound(rising, np.zeros((5, 1, 2))) == pytest.approx(0.2 / (2 * 2), rel=1e-6)


@pytest.mark.skipif("torch" not in NATIVE, reason="counted by torch")
def test_the_discrete_adjoint_keeps_nothing_of_a_block():
    """What a block more needs is its gradient, by the discrete adjoint; by backprop, at least its activations, too."""
    small, deep = 4, 8  # with fewer blocks, most is alive in the head
    block = 4 * (2 * (8 * 8 * 3 * 3) + 4 * 8)  # bytes: two convolutions, two norms
    state = 4 * (4 * 8 * 8 * 8)
    found = {}
    for method in (memory.BACKPROP, memory.ADJOINT):
        for n in (small, deep):
            points = memory.measure(Cell("torch", 0, f"ResNet, {method}", n), CHOICES)
            found[method, n] = {each.quantity: each.value for each in points}
    gradients = [found[memory.ADJOINT, n][memory.GRADIENT] for n in (small, deep)]
    assert gradients[1] - gradients[0] == (deep - small) * block
    for quantity in (memory.TIED, memory.UNTIED):
        grown = {method: found[method, deep][quantity] - found[method, small][quantity] for method, _ in found}
        assert grown[memory.ADJOINT] < state
        assert grown[memory.BACKPROP] > (deep - small) * state
    assert found[memory.ADJOINT, deep][memory.EVALUATIONS] == 2


def test_backends_train_alike():
    if len(NATIVE) < 2:
        pytest.skip("one backend")
    ends = [flow.train(linear_limit.LINEAR, name, seed=0, depth=4, steps=10)[-1] for name in NATIVE]
    for end in ends[1:]:
        assert end.loss == pytest.approx(ends[0].loss, rel=1e-10)
        assert np.allclose(end.weights, ends[0].weights, rtol=1e-10)


def test_quartiles_are_over_seeds():
    points = [
        Point("torch", seed, "c", 4, "q", None, None, value) for seed, value in enumerate((1.0, 2.0, 3.0, 4.0, 5.0))
    ]
    (row,) = quartiles(points)
    assert (row.seeds, row.lower_quartile, row.median, row.upper_quartile) == (5, 2, 3, 4)
    assert quartiles(points[:1])[0].median == 1


def test_choices():
    assert Choices(("torch",), depth=64).depths(2, 4096, 16) == (2, 4, 8, 16, 32, 64)
    assert Choices(("torch",), scale="quick").depths(4, 4096, 16) == (4, 8, 16)
    assert Choices(("torch",)).depths(4, 64, 16)[-1] == 64
    for wrong in ({"seeds": 0}, {"depth": 16}):
        with pytest.raises(InputError):
            Choices(("torch",), **wrong)


def test_results_go_on_and_refuse_others(tmp_path):
    each = reproductions()["reconstruction"]
    choices = Choices(("torch",), seeds=1, scale="quick")
    first, *_ = each.cells(choices)
    Results(each.name, choices, {}).add([first.point(reconstruction.ERROR, 0.5)], 1.0).write(tmp_path)
    again = read(tmp_path)
    assert again is not None
    assert again.resumed(replace(choices, seeds=2), {}).todo(each)[0] != first
    assert first not in again.todo(each)
    with pytest.raises(InputError, match="scale=quick"):
        again.resumed(replace(choices, scale="reduced"), {})
    (tmp_path / "points.json").write_text("{}")
    with pytest.raises(FileError):
        read(tmp_path)
    assert read(tmp_path / "nothing") is None


@pytest.mark.skipif("torch" not in NATIVE, reason="run by torch")
def test_the_command(tmp_path, monkeypatch):
    runner = CliRunner()
    assert "linear-limit" in runner.invoke(command, []).output
    monkeypatch.setattr(
        "odenet.paper.reproduction.Choices.depths", lambda self, first, last, quick: (16, 32, 64)
    )  # shallow: the figure and the files are what is looked at
    arguments = ["reconstruction", "--seeds", "2", "--out", str(tmp_path)]
    done = runner.invoke(command, arguments)
    assert done.exit_code == 0, done.output
    folder = tmp_path / "reconstruction"
    assert (folder / "reconstruction.png").read_bytes().startswith(b"\x89PNG")
    assert all(each["passed"] for each in json.loads((folder / "verdicts.json").read_text())["verdicts"])
    rows = list(csv.DictReader((folder / SUMMARY).read_text().splitlines()))
    assert len(rows) == 15
    assert {row["seeds"] for row in rows} == {"2"}
    page = (tmp_path / "report.html").read_text()
    assert "Euler, corrected" in page
    assert "<svg" in page
    before = (folder / POINTS).read_text()
    assert runner.invoke(command, [*arguments, "--resume"]).exit_code == 0
    assert (folder / POINTS).read_text() == before
    plain = json.loads((folder / "points.json").read_text())
    for point in plain["points"]:
        point["value"] = 1e-3  # wrong data on disk: the verdicts of the command fail, and so does it
    (folder / "points.json").write_text(json.dumps(plain))
    failed = runner.invoke(command, [*arguments, "--resume"])
    assert failed.exit_code == 1
    assert "FAILS" in failed.output
    assert values(read(folder).points, "Euler, paper", reconstruction.ERROR)[16] == [1e-3, 1e-3]


def test_an_interrupted_run_keeps_what_is_done(tmp_path, monkeypatch):
    each = reproductions()["reconstruction"]
    calls = []

    def measure(cell, choices):
        calls.append(cell)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return (cell.point(reconstruction.ERROR, 1.0),)

    monkeypatch.setattr("odenet.paper.command.reproductions", lambda: {each.name: replace(each, measure=measure)})
    done = CliRunner().invoke(
        command, [each.name, "--quick", "--seeds", "1", "--backend", NATIVE[0], "--out", str(tmp_path)]
    )
    assert done.exit_code == 130
    assert len(read(tmp_path / each.name).points) == 2
