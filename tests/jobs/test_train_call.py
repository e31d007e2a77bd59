"""`odenet.train`: the job of the command, with data and optimisers as objects."""

from __future__ import annotations

import dataclasses
import inspect
from functools import partial

import numpy as np
import pytest
from quick import quick

import odenet
from odenet._jobs.train.plan import TrainingPlan

torch = pytest.importorskip("torch")
optax = pytest.importorskip("optax")

SMALL = {"net": "mlp", "depth": 2, "width": 4, "epochs": 2, "batch": 16, "augment": False, "quiet": True}
LABELS = np.arange(60) % 3
IMAGES = np.random.default_rng(0).normal(LABELS[:, None, None], 0.3, (60, 4, 4)).astype(np.float32)


class Pairs(torch.utils.data.Dataset):
    def __len__(self):
        return len(LABELS)

    def __getitem__(self, index):
        return IMAGES[index], int(LABELS[index])


DATA = {
    "arrays": lambda: (IMAGES, LABELS),
    "dataset": Pairs,
    "tensors": lambda: torch.utils.data.TensorDataset(torch.from_numpy(IMAGES), torch.from_numpy(LABELS)),
    "loader": lambda: torch.utils.data.DataLoader(Pairs(), batch_size=7, shuffle=True),
}
OPTIMIZERS = {
    "class": (torch.optim.AdamW, "torch"),
    "partial": (partial(partial(torch.optim.SGD, lr=0.3), lr=0.05, momentum=0.9), "torch"),
    "optax": (partial(optax.adamw, learning_rate=1e-2), "jax"),
    "transformation": (optax.adam(1e-2), "jax"),
}


def test_options_and_defaults_are_those_of_the_command():
    signature = {
        name: parameter.default
        for name, parameter in inspect.signature(odenet.train).parameters.items()
        if name not in ("out", "resume", "quiet")
    }
    assert signature == {field.name: field.default for field in dataclasses.fields(TrainingPlan)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run of the arrays."""
    return odenet.train((IMAGES, LABELS), out=tmp_path_factory.mktemp("whole"), **SMALL)


@pytest.mark.parametrize("kind", DATA)
def test_data_in_any_form_gives_the_same_run(kind, whole, tmp_path):
    run = odenet.train(DATA[kind](), out=tmp_path / "one", **SMALL)
    assert [row.train_loss for row in run.rows] == [row.train_loss for row in whole.rows]
    assert run.test == whole.test
    assert run.test.images == 12
    assert all(np.array_equal(weight, whole.weights[name]) for name, weight in run.weights.items())


@pytest.mark.parametrize("kind", quick(OPTIMIZERS, [kind for kind in OPTIMIZERS if kind != "optax"]))
def test_an_optimiser_as_an_object_is_the_one_of_its_import_path(kind, tmp_path):
    optimizer, backend = OPTIMIZERS[kind]
    run = odenet.train((IMAGES, LABELS), optimizer=optimizer, backend=backend, out=tmp_path / "one", **SMALL)
    path = {
        "class": "torch.optim:AdamW",
        "partial": "torch.optim:SGD,lr=0.05,momentum=0.9",
        "optax": "optax:adamw,learning_rate=1e-2",
        "transformation": "optax:adam,learning_rate=1e-2",
    }[kind]
    named = odenet.train((IMAGES, LABELS), optimizer=path, backend=backend, out=tmp_path / "two", **SMALL)
    assert [row.train_loss for row in run.rows] == [row.train_loss for row in named.rows]


def test_a_run_is_resumed_and_other_options_are_refused(tmp_path, monkeypatch):
    from odenet._jobs.train import job

    options = {**SMALL, "epochs": 3, "optimizer": partial(torch.optim.AdamW, lr=1e-2)}
    whole = odenet.train((IMAGES, LABELS), out=tmp_path / "whole", **options)
    epoch = job._epoch

    def interrupted(trainer, plan, number, *rest):
        if number == 2:
            raise KeyboardInterrupt
        return epoch(trainer, plan, number, *rest)

    monkeypatch.setattr(job, "_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        odenet.train((IMAGES, LABELS), out=tmp_path / "run", **options)
    monkeypatch.undo()
    with pytest.raises(odenet.FileError, match="resume=True"):
        odenet.train((IMAGES, LABELS), out=tmp_path / "run", **options)
    other = {**options, "optimizer": partial(torch.optim.AdamW, lr=2e-2)}
    with pytest.raises(odenet.InputError, match="optimizer"):
        odenet.train((IMAGES, LABELS), out=tmp_path / "run", resume=True, **other)
    with pytest.raises(odenet.InputError, match="other images"):
        odenet.train((IMAGES + 1, LABELS), out=tmp_path / "run", resume=True, **options)
    run = odenet.train((IMAGES, LABELS), out=tmp_path / "run", resume=True, **options)
    assert [row.train_loss for row in run.rows] == [row.train_loss for row in whole.rows]
    assert all(np.array_equal(weight, whole.weights[name]) for name, weight in run.weights.items())


def test_results_show_themselves_and_build_the_network_again(tmp_path):
    run = odenet.train((IMAGES, LABELS), out=tmp_path, **SMALL)
    assert "test accuracy" in repr(run)
    assert list(run.to_dataframe()["epoch"]) == [1, 2]
    assert len(run.plot().axes) == 2
    choices = {"solver": odenet.solver("euler"), "gradient": odenet.gradient("backprop")}
    model = odenet.backend("torch").build(run.network, run.weights, **choices)
    assert model(torch.zeros(5, 1, 4, 4)).shape == (5, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": 3}, "is a int"),
        ({"data": "digits", "optimizer": partial(torch.optim.SGD, 3)}, "by position"),
        ({"data": "digits", "optimizer": 3}, "optimizer of type int"),
        ({"data": (IMAGES, LABELS), "data_dir": "x"}, "a directory or a size"),
        ({"data": (IMAGES, LABELS), "lr": 0.2, "optimizer": torch.optim.Adam}, "does not read it"),
    ],
)
def test_bad_input_is_an_error_of_ours(options, message, tmp_path):
    with pytest.raises(odenet.InputError, match=message):
        odenet.train(options.pop("data"), out=tmp_path, **SMALL, **options)
