"""Trainers of the backends give the same weights, and a resumed run bitwise those of an uninterrupted one."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import odenet
from odenet._backend.trainer import Trainer, learning
from odenet._jobs.data.images import moments
from odenet._jobs.data.sets import image_set
from odenet._jobs.descent import Batches, split
from odenet._jobs.train import job
from odenet._jobs.train.checkpoint import TrainingRun, read
from odenet._jobs.train.plan import TrainingPlan

NATIVE = ("torch", "jax")
STEPS = 50
SMALL = TrainingPlan(
    net="mlp", depth=2, width=6, solver="heun", epochs=3, batch=16, dtype="float64", gradient="discrete-adjoint"
)
SPEC = SMALL.spec(image_set("digits"))  # one for most tests: JAX compiles for each network, batch and number type anew
CONV = odenet.NetSpec("conv", 3, 8, along="linear", grid=2)  # groups of one channel under one mean: no gradient


def trainer(
    name: str, spec: odenet.NetSpec, gradient: str = "backprop", rates: Mapping[str, float] | None = None
) -> Trainer:
    """Of a network with the spec's weights of seed 0."""
    backend = odenet.backend(name)
    choices: dict[str, Any] = {
        "solver": odenet.solver("heun"),
        "gradient": odenet.gradient(gradient),
        "dtype": "float64",
    }
    with backend.prepare("float64", "cpu"):
        model = backend.build(spec, spec.init(0), **choices)
        return backend.trainer(model, momentum=0.9, weight_decay=5e-4, rates=rates)


def batches() -> Batches:
    """Of digits, augmented."""
    images = image_set("digits")
    parts = split(images.train, 0.1, None, 0)
    return Batches(parts.train, 16, *moments(parts.train), "float64", 0, augment=True)


def losses(name: str, spec: odenet.NetSpec, gradient: str) -> tuple[list[float], list[float]]:
    """Of the first 50 steps, and certificates."""
    made = trainer(name, spec, gradient=gradient)
    steps = [made.step(x, y, 0.05) for (x, y), _ in zip(batches().shuffled(1), range(STEPS), strict=False)]
    assert len(steps) == STEPS
    return [step.loss for step in steps], [step.certificate for step in steps if step.certificate is not None]


@pytest.mark.parametrize(
    ("spec", "gradient"),
    [
        pytest.param(SPEC, "discrete-adjoint", id="mlp-discrete-adjoint"),
        pytest.param(CONV, "discrete-adjoint", id="conv-discrete-adjoint", marks=pytest.mark.slow),
        pytest.param(CONV, "backprop", id="conv-backprop", marks=pytest.mark.slow),
    ],
)
def test_torch_and_jax_agree_in_the_loss_of_fifty_steps(spec: odenet.NetSpec, gradient: str) -> None:
    one, other = (losses(name, spec, gradient) for name in NATIVE)
    assert len(set(one[0])) == STEPS
    assert np.abs(np.subtract(one[0], other[0])).max() < 1e-8
    assert np.allclose(one[1], other[1], rtol=1e-6)
    assert (len(one[1]) == STEPS) == (gradient == "discrete-adjoint")


@pytest.mark.parametrize("name", NATIVE)
def test_a_step_is_that_of_torch_s_own_optimiser(name: str) -> None:
    import torch

    made = trainer(name, SPEC)
    backend = odenet.backend("torch")
    model = backend.build(
        SPEC, SPEC.init(0), solver=odenet.solver("heun"), gradient=odenet.gradient("backprop"), dtype="float64"
    )
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9, weight_decay=5e-4)
    for (x, y), lr in zip(batches().shuffled(1), (0.1, 0.1, 0.01, 0.001), strict=False):
        optimiser.param_groups[0]["lr"] = lr
        optimiser.zero_grad()
        outputs = model(torch.tensor(x))
        loss = torch.nn.functional.cross_entropy(outputs, torch.tensor(y))
        loss.backward()
        optimiser.step()
        step = made.step(x, y, lr)
        assert step.loss == pytest.approx(loss.item(), rel=1e-12)
        assert step.correct == int((outputs.argmax(1).numpy() == y).sum())
    state = made.state()
    for key, weight in backend.read(model).items():
        assert np.abs(state[f"weight.{key}"] - weight).max() < 1e-12, key
    assert np.abs(made.predict(x) - model(torch.tensor(x)).detach().numpy()).max() < 1e-12


@pytest.mark.parametrize("name", NATIVE)
def test_a_state_is_all_that_a_trainer_remembers(name: str) -> None:
    one, other = trainer(name, SPEC), trainer(name, SPEC)
    examples = list(batches().shuffled(1))[:4]
    for x, y in examples[:2]:
        one.step(x, y, 0.1)
    state = one.state()
    kept = {key: array.copy() for key, array in state.items()}
    other.load(state)
    for x, y in examples[2:]:
        assert one.step(x, y, 0.1) == other.step(x, y, 0.1)
    assert all((state[key] == kept[key]).all() for key in kept), "a state is a copy"
    for key, array in one.state().items():
        assert array.dtype == np.float64
        assert array.tobytes() == other.state()[key].tobytes()
    assert (one.state()["momentum.head.weight"] != 0).any()
    assert (one.peak_bytes() or 0) > 1000
    with pytest.raises(odenet.InputError, match="without"):
        one.load({key: array for key, array in state.items() if key != "weight.head.bias"})
    with pytest.raises(odenet.InputError, match="a state of training with strange"):
        one.load(state | {"strange": np.zeros(1)})


def test_the_model_that_a_trainer_was_made_of_stays_as_it_is() -> None:
    x, y = next(batches().shuffled(1))
    for name in NATIVE:
        backend = odenet.backend(name)
        with backend.prepare("float64", "cpu"):
            choices: dict[str, Any] = {"solver": odenet.solver("heun"), "gradient": odenet.gradient("backprop")}
            model = backend.build(SPEC, SPEC.init(0), dtype="float64", **choices)
            backend.trainer(model, momentum=0.9, weight_decay=0.0).step(x, y, 1.0)
            assert all((backend.read(model)[key] == array).all() for key, array in SPEC.init(0).items())


FASTER = {"": 1.0, "block.": 3.0}
ALONE = {"block.": 3.0}


def after(name: str, rates: Mapping[str, float] | None, steps: int) -> dict[str, np.ndarray]:
    """The state some steps from the spec's weights on."""
    made = trainer(name, SPEC, rates=rates)
    for (x, y), _ in zip(batches().shuffled(1), range(steps), strict=False):
        made.step(x, y, 0.1)
    return made.state()


@pytest.mark.parametrize("name", NATIVE)
def test_rates_are_those_of_their_weights(name: str) -> None:
    start, plain, faster = after(name, None, 0), after(name, None, 1), after(name, FASTER, 1)
    for key, before in start.items():
        factor = 3 if key.startswith("weight.block.") else 1
        assert np.abs(faster[key] - before - factor * (plain[key] - before)).max() < 1e-14, key
        if key.startswith("weight."):
            assert np.abs(plain[key] - before).max() > 1e-6, key


@pytest.mark.parametrize("name", NATIVE)
def test_weights_without_a_rate_stay_as_they_are_bit_for_bit(name: str) -> None:
    """Neither gradient nor decay moves them, and they have no momentum, either."""
    start, alone, faster = after(name, None, 0), after(name, ALONE, 3), after(name, FASTER, 1)
    for key, before in start.items():
        _, inner = key.split(".", 1)
        assert (alone[key].tobytes() == before.tobytes()) != inner.startswith("block."), key
    first = after(name, ALONE, 1)
    for key in start:
        if ".block." in key:
            assert np.abs(first[key] - faster[key]).max() < 1e-14, "what stays has no part in the step of the others"


@pytest.mark.parametrize("rates", [FASTER, ALONE], ids=["faster", "alone"])
def test_torch_and_jax_agree_in_steps_of_different_rates(rates: Mapping[str, float]) -> None:
    one, other = (after(name, rates, 3) for name in NATIVE)
    for key, array in one.items():
        assert np.abs(array - other[key]).max() < 1e-12, key


@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize(
    ("rates", "said"),
    [
        ({}, r"rates={} of a training.*block\."),
        ({"blocks.": 1.0}, r"a rate of blocks.*block\."),
        ({"": 0.0}, r"a factor of 0\.0 .*above 0"),
        ({"": 1.0, "block.": -1.0}, r"a factor of -1\.0 for the rate of block\."),
        ({"block.": float("nan")}, "a factor of nan"),
        ({"": float("inf")}, "a factor of inf"),
    ],
)
def test_rates_that_train_nothing_are_refused(name: str, rates: dict[str, float], said: str) -> None:
    with pytest.raises(odenet.InputError, match=said):
        trainer(name, SPEC, rates=rates)


def test_the_longest_beginning_of_a_name_counts() -> None:
    names = ("stem.bias", "block.one", "block.one.more", "head.bias")
    rates = {"block.": 2.0, "block.one.": 3.0, "head": 4}
    assert learning(names, rates) == {"block.one": 2.0, "block.one.more": 3.0, "head.bias": 4.0}
    assert learning(names, None) == dict.fromkeys(names, 1.0)


def outcome(folder: Path) -> tuple[Any, ...]:
    """All that a run leaves, but for times."""
    run = read(folder)
    assert run is not None
    rows = [replace(row, seconds=0.0, finished=0.0) for row in run.rows]
    arrays = run.state(folder, run.epoch)
    return rows, run.test, {name: array.tobytes() for name, array in arrays.items()}


@pytest.mark.parametrize("name", NATIVE)
def test_a_run_learns_and_goes_on_bit_for_bit(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("odenet._jobs.train.curve.write_curve", lambda run, folder: [folder / "curve.png"])
    plan = replace(SMALL, backend=name, limit_train=600)
    quiet = Console(quiet=True)
    assert job.train(plan, tmp_path / "whole", False, quiet) == 0
    run = read(tmp_path / "whole")
    assert run is not None
    assert run.test is not None
    assert run.test.accuracy > 0.3  # a tenth by chance
    assert run.rows[-1].train_loss < run.rows[0].train_loss

    true = TrainingRun.saved

    def stop_after_one(self: TrainingRun, *arguments: Any) -> TrainingRun:
        true(self, *arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "saved", stop_after_one)
        assert job.train(plan, tmp_path / "cut", False, quiet) == 130
    assert job.train(plan, tmp_path / "cut", True, quiet) == 0
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


def cifar10(root: Path) -> Path:
    """A small data set in the layout of CIFAR-10."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        labels = [i % 2 for i in range(10)]
        pixels = rng.integers(0, 100, (10, 3072), np.uint8) + 120 * np.array(labels, np.uint8)[:, None]
        (folder / name).write_bytes(pickle.dumps({"labels": labels, "data": pixels}, 2))
    meta = {"num_cases_per_batch": 10, "label_names": ["dark", "light"], "num_vis": 3072}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, 2))
    return root


def image_folder(root: Path) -> Path:
    """A small folder of images."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 30), ("val", 10)):
        for name, level in (("dark", 0), ("light", 120)):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(level, level + 100, (20, 24, 3), np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{i}.png")
    return root


@pytest.mark.parametrize(("data", "make"), [("cifar10", cifar10), ("folder", image_folder)])
def test_image_sets_on_disk_are_trained_on(
    data: str, make: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("odenet._jobs.train.curve.write_curve", lambda run, folder: [folder / "curve.png"])
    root = tmp_path / "data"
    root.mkdir()
    size = {"size": 16} if data == "folder" else {}
    plan = TrainingPlan(data=data, data_dir=str(make(root)), depth=1, width=4, epochs=4, batch=5, **size)
    assert job.train(plan, tmp_path / "out", False, Console(quiet=True)) == 0
    run = read(tmp_path / "out")
    assert run is not None
    assert run.test is not None
    assert run.test.accuracy > 0.9  # dark from light


def kill(folder: Path, times: int) -> str:
    """What `killed.py` says of that many runs killed at random, and as many at boundaries between files."""
    script = Path(__file__).with_name("killed.py")
    command = [sys.executable, str(script), str(folder), str(times), "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_run_that_is_killed_loses_the_epoch_it_was_in_and_nothing_else(tmp_path: Path) -> None:
    said = kill(tmp_path, 1)
    assert "2 runs, 0 wrong" in said
    assert all(map(int, re.findall(r"killed (\d)", said)))


@pytest.mark.slow
def test_a_hundred_runs_that_are_killed_end_as_one_that_was_not(tmp_path: Path) -> None:
    said = kill(tmp_path, 100)
    assert "200 runs, 0 wrong" in said
    assert all(map(int, re.findall(r"killed (\d)", said)))
