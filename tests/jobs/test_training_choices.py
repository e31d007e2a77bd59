"""`odenet train` with optimisers and images of the user's own, by import path."""

from __future__ import annotations

import re
import sys
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

from odenet import InputError, NonFiniteError, OdenetError, UnknownNameError, UnsupportedError, backend
from odenet._backend.imported import imported
from odenet._jobs.data.images import moments
from odenet._jobs.data.sets import image_set
from odenet._jobs.train import job
from odenet._jobs.train.checkpoint import read
from odenet._jobs.train.command import command
from odenet._jobs.train.plan import TrainingPlan
from odenet._nets.spec import NetSpec

OWN = '''
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, TensorDataset, WeightedRandomSampler

rng = np.random.default_rng(0)
labels = np.arange(60) % 3
pixels = rng.normal(size=(60, 2, 4, 4)).astype(np.float32) + labels[:, None, None, None]
arrays = pixels, labels
grey = pixels[:, 0], labels
tensors = TensorDataset(torch.from_numpy(pixels), torch.from_numpy(labels))
loader = DataLoader(tensors, batch_size=7, shuffle=True)
weighted = DataLoader(tensors, sampler=WeightedRandomSampler([1.0] * 60, 60))
collated = DataLoader(tensors, collate_fn=lambda items: items)
parts = {"train": (pixels[:40], labels[:40]), "test": tensors}
holes = {"train": arrays}
pictures = [(Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8)), i % 2) for i in range(10)]
last = np.moveaxis(np.tile(pixels, (1, 2, 2, 1))[:, :3], 1, -1), labels
halves = pixels, labels + 0.5
negative = pixels, labels - 1
endless = iter(())
nan = np.where(pixels == pixels.max(), np.nan, pixels), labels
mixed = [(np.zeros((1, 4, 4)), 0), (np.zeros((1, 4, 5)), 1), (np.zeros((1, 4, 4)), 1)]
hot = [(np.zeros((1, 4, 4)), [0, 1])] * 10
number = 3
large = (pixels * 1e9).astype(np.int64), labels
huge = pixels.astype(np.float64) * 1e200, labels


def made(count=60):
    return pixels[:count], labels[:count]


class Random(Dataset):
    def __len__(self):
        return 10

    def __getitem__(self, index):
        return torch.rand(1, 4, 4), index % 2


class Named(Random):
    classes = ["cat", "dog", "=CMD"]

    def __init__(self, value=1.0):
        self.value = value

    def __getitem__(self, index):
        return torch.full((1, 4, 4), self.value + index), index % 2


class Sgd(torch.optim.Optimizer):
    """With what tries the checkpoint: numbers of two types, and half precision, beside the state of torch."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for weight in group["params"]:
                state = self.state[weight]
                state["steps"] = state.get("steps", 0) + 1
                state["mean"] = (state.get("mean", 0) + weight.grad.double()) / 1.5
                state["short"] = weight.grad.bfloat16()
                weight.sub_((state["mean"] * group["lr"] / state["steps"] + 0.01 * state["short"]).float())


class Aside(Sgd):
    def step(self, closure=None):
        self.steps = getattr(self, "steps", 0) + 1
        super().step()


class Noisy(Sgd):
    def step(self, closure=None):
        super().step()
        torch.rand(1)


class Own(Sgd):
    def step(self, closure=None):
        super().step()
        self.param_groups[0]["lr"] *= 2


class Transformation(NamedTuple):
    init: object
    update: object


def heavy(rate=0.1, keep=0.9):
    """As optax's are written."""
    import jax
    import jax.numpy as jnp

    def init(weights):
        return {"count": 0, "mean": jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.bfloat16), weights),
                "key": jax.random.key(0)}

    def update(gradients, state, weights=None):
        mean = jax.tree.map(lambda g, m: (g + keep * m).astype(jnp.bfloat16), gradients, state["mean"])
        key, now = jax.random.split(state["key"])
        noise = 1 + 0.01 * jax.random.normal(now)
        updates = jax.tree.map(lambda m, g: -rate * noise * m.astype(g.dtype), mean, gradients)
        return updates, {"count": state["count"] + 1, "mean": mean, "key": key}

    return Transformation(init, update)


def needs_more():
    return Transformation(lambda weights: (), lambda gradients, state, weights, *, value: (gradients, state))
'''
PLAN = {"data": "owns:arrays", "net": "mlp", "depth": 2, "width": 4, "epochs": 3, "batch": 8, "augment": False}
TORCH = ["owns:Sgd,lr=0.2", "torch.optim:AdamW,lr=0.01,betas=(0.8,0.9)", "torch.optim:SGD,lr=0.1,momentum=0.9"]
TORCH += ["torch.optim:NAdam,lr=0.01", "torch.optim:ASGD,lr=0.1"]


@pytest.fixture(autouse=True)
def owns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "owns", raising=False)
    (tmp_path / "owns.py").write_text(OWN)
    # a figure takes a second; it has a test of its own
    monkeypatch.setattr("odenet._jobs.train.curve.write_curve", lambda run, folder: [folder / "curve.png"])
    yield
    sys.modules.pop("owns", None)


def run(out, resume=False, **options):
    code = job.train(TrainingPlan(**PLAN | options), out, resume, Console(quiet=True))
    return code, read(out)


def interrupted(monkeypatch, out, **options):
    """A run that is stopped in its second epoch, and gone on with."""
    real, calls = job._epoch, []

    def stop(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(job, "_epoch", stop)
        assert run(out, **options)[0] == 130
    return run(out, resume=True, **options)


def assert_equal(one, other, folders):
    assert [replace(row, seconds=0, finished=0, peak_bytes=None) for row in one.rows] == [
        replace(row, seconds=0, finished=0, peak_bytes=None) for row in other.rows
    ]
    assert one.test == other.test
    first, second = (made.state(folder, made.epoch) for made, folder in zip((one, other), folders, strict=True))
    assert first.keys() == second.keys()
    for name, array in first.items():
        assert array.dtype == second[name].dtype, name
        assert array.tobytes() == second[name].tobytes(), name
    return first


@pytest.mark.parametrize("optimizer", TORCH)
def test_a_run_with_an_optimiser_of_torch_goes_on_bit_for_bit(optimizer, tmp_path, monkeypatch):
    _, whole = run(tmp_path / "whole", optimizer=optimizer)
    _, cut = interrupted(monkeypatch, tmp_path / "cut", optimizer=optimizer)
    state = assert_equal(whole, cut, (tmp_path / "whole", tmp_path / "cut"))
    assert not [name for name in state if name.startswith("momentum.")]
    assert len([name for name in state if name.startswith("optimizer.")]) > 1
    assert [row.lr for row in whole.rows] == [1.0, 0.1, 0.01]  # factors of its own rate


@pytest.mark.parametrize(
    "optimizer", ["owns:heavy,rate=0.05", pytest.param("optax:adamw,learning_rate=1e-2", marks=pytest.mark.slow)]
)
def test_a_run_with_a_transformation_for_jax_goes_on_bit_for_bit(optimizer, tmp_path, monkeypatch):
    _, whole = run(tmp_path / "whole", optimizer=optimizer, backend="jax")
    _, cut = interrupted(monkeypatch, tmp_path / "cut", optimizer=optimizer, backend="jax")
    state = assert_equal(whole, cut, (tmp_path / "whole", tmp_path / "cut"))
    counts = [array for name, array in state.items() if name.startswith("optimizer.") and "count" in name]
    assert counts[0] == 3 * 5  # 43 images to learn from, in batches of 8


@pytest.mark.parametrize(("schedule", "lr"), [("step", 0.3), ("cosine", 0.05)])
def test_sgd_of_torch_is_the_built_in_one_with_its_rate_times_the_schedule(schedule, lr, tmp_path):
    given = f"torch.optim:SGD,lr={lr},momentum=0.9,weight_decay=5e-4"
    _, own = run(tmp_path / "own", schedule=schedule, optimizer=given, dtype="float64")
    _, built_in = run(tmp_path / "in", schedule=schedule, lr=lr, dtype="float64")
    first, second = own.state(tmp_path / "own", 3), built_in.state(tmp_path / "in", 3)
    weights = [name for name in second if name.startswith("weight.")]
    assert weights
    for name in weights:
        np.testing.assert_allclose(first[name], second[name], rtol=1e-12, atol=1e-14)


def trainer(name, optimizer, rates=None):
    spec = NetSpec(block="mlp", depth=2, width=4, hidden=4, inputs=(1, 4, 4), classes=3)
    made = backend(name)
    from odenet import gradient, solver

    options = {"solver": solver("euler"), "gradient": gradient("backprop"), "dtype": "float32", "device": "cpu"}
    model = made.build(spec, spec.init(0), **options)
    given = imported(optimizer, "optimizer")
    found = made.trainer(model, momentum=0.0, weight_decay=0.0, rates=rates, optimizer=given)
    rng = np.random.default_rng(1)
    return found, (rng.normal(size=(6, 1, 4, 4)).astype(np.float32), np.arange(6) % 3)


@pytest.mark.parametrize(("name", "optimizer"), [("torch", "torch.optim:SGD,lr=0.5"), ("jax", "owns:heavy")])
def test_factors_of_the_rate_by_name_hold_for_other_optimisers(name, optimizer):
    moves = []
    for rates in ({"head": 1.0}, {"head": 0.5}):
        found, batch = trainer(name, optimizer, rates)
        before = found.read()
        found.step(*batch, 1.0)
        moves.append({key: after - before[key] for key, after in found.read().items()})
    assert all(key.startswith("head") or not move.any() for key, move in moves[0].items())
    np.testing.assert_allclose(moves[0]["head.bias"], 2 * moves[1]["head.bias"], rtol=1e-3)
    assert moves[0]["head.bias"].any()


@pytest.mark.parametrize(
    ("name", "optimizer", "error", "said"),
    [
        ("torch", "owns:heavy", InputError, "no optimiser of torch"),
        ("torch", "torch.nn:Linear", InputError, "cannot be made"),
        ("torch", "torch.optim:AdamW,lr=-1", InputError, "Invalid learning rate"),
        ("torch", "torch.optim:AdamW,rate=1", InputError, "unexpected keyword argument 'rate'"),
        ("torch", "torch.optim:LBFGS", UnsupportedError, "closure"),
        ("torch", "torch.optim:SparseAdam", UnsupportedError, "dense gradients"),
        ("torch", "owns:Noisy", UnsupportedError, "random numbers"),
        ("torch", "owns:Own", UnsupportedError, "its own lr"),
        ("torch", "owns:Aside", UnsupportedError, "outside of its state_dict"),
        ("jax", "torch.optim:AdamW,lr=1e-3", InputError, "--backend torch"),
        ("jax", "owns:Sgd", InputError, "optax:adamw"),
        ("jax", "owns:number", InputError, "cannot be made"),
        ("jax", "owns:needs_more", UnsupportedError, "value"),
    ],
)
def test_an_optimiser_that_cannot_be_used_is_refused(name, optimizer, error, said):
    def used():
        found, batch = trainer(name, optimizer)
        found.step(*batch, 1.0)
        found.state()

    with pytest.raises(error, match=re.escape(said)):
        used()


def test_a_state_of_another_optimiser_is_refused():
    found, batch = trainer("torch", "torch.optim:SGD,lr=0.1,momentum=0.9")
    found.step(*batch, 1.0)
    plain = found.state()
    other, _ = trainer("jax", "owns:heavy")
    for start in ("momentum.x", "optimizer.count"):
        with pytest.raises(InputError):
            other.load({name: a for name, a in plain.items() if name.startswith("weight.")} | {start: np.zeros(1)})
    with pytest.raises(InputError, match="cannot go on from"):
        found.load({name: array for name, array in plain.items() if name != "optimizer.structure"})


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("torch.optim:AdmW", UnknownNameError, "take AdamW"),
        ("nowhere_at_all:thing", InputError, "pip install nowhere_at_all"),
        ("torch.optim:", InputError, "module:name"),
        ("torch.optim:AdamW,0.1", InputError, "key=value"),
        ("torch.optim:AdamW,lr=1,lr=2", InputError, "each key once"),
        ("broken:thing", InputError, "ZeroDivisionError"),
        ("absent:thing", InputError, "it imports nowhere_at_all, which is not installed"),
    ],
)
def test_a_path_that_leads_nowhere_is_refused(text, error, said, tmp_path):
    (tmp_path / "broken.py").write_text("1 / 0")
    (tmp_path / "absent.py").write_text("import nowhere_at_all")
    with pytest.raises(error, match=re.escape(said)):
        imported(text, "optimizer")


def test_options_are_numbers_words_and_tuples():
    text = "builtins:dict,a=1e-3,b=(0.9,0.95),c=False,d=true,e=none,f=/a/b,g='x,y',h=-2"
    expected = {"a": 1e-3, "b": (0.9, 0.95), "c": False, "d": True, "e": None, "f": "/a/b", "g": "x,y", "h": -2}
    assert imported(text, "object")() == expected


def test_options_of_gradient_descent_are_refused_beside_another_optimiser(tmp_path):
    with pytest.raises(InputError, match="which does not read it"):
        TrainingPlan(optimizer="torch.optim:AdamW", lr=0.2)
    # said on the command line with the value of the default, which the other one would not have
    given = ["--optimizer", "torch.optim:AdamW", "--lr", "0.1", "--out", str(tmp_path / "out")]
    outcome = CliRunner().invoke(command, given)
    assert isinstance(outcome.exception, InputError)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("data", "shape", "counts", "classes"),
    [
        ("arrays", (2, 4, 4), (48, 12), ("0", "1", "2")),
        ("grey", (1, 4, 4), (48, 12), ("0", "1", "2")),
        ("tensors", (2, 4, 4), (48, 12), ("0", "1", "2")),
        ("loader", (2, 4, 4), (48, 12), ("0", "1", "2")),
        ("parts", (2, 4, 4), (40, 60), ("0", "1", "2")),
        ("pictures", (3, 4, 5), (8, 2), ("0", "1")),
        ("made,count=30", (2, 4, 4), (24, 6), ("0", "1", "2")),
        ("Named,value=2.0", (1, 4, 4), (8, 2), ("cat", "dog", "=CMD")),
    ],
)
def test_images_of_many_kinds(data, shape, counts, classes):
    found, again = image_set(f"owns:{data}"), image_set(f"owns:{data}")
    assert (found.train.shape, len(found.train), len(found.test), found.classes) == (shape, *counts, classes)
    for one, other in ((found.train, again.train), (found.test, again.test)):
        every = np.arange(len(one))
        np.testing.assert_array_equal(one.read(every), other.read(every))
        np.testing.assert_array_equal(one.labels, other.labels)
    assert all(np.isfinite(each).all() and (each.shape == shape[:1]) for each in moments(found.train))


def test_each_image_keeps_its_label_and_is_in_one_part():
    found = image_set("owns:loader")
    import owns  # which is found in the working directory from then on

    rows = [
        (image.tobytes(), int(label))
        for part in (found.train, found.test)
        for image, label in zip(part.read(np.arange(len(part))), part.labels, strict=True)
    ]
    pairs = zip(owns.pixels, owns.labels, strict=True)
    assert sorted(rows) == sorted((image.tobytes(), int(label)) for image, label in pairs)


def test_moments_of_real_numbers():
    images = image_set("owns:arrays").train
    pixels = images.read(np.arange(len(images))).astype(np.float64)
    mean, deviation = moments(images)
    np.testing.assert_allclose(mean, pixels.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(deviation, pixels.std((0, 2, 3)), rtol=1e-12)
    constant = replace(images, read=lambda indices: np.full((len(indices), 2, 4, 4), 0.1))
    assert moments(constant)[1].tolist() == [1.0, 1.0]
    far = replace(images, read=lambda indices: 1e9 + images.read(indices).astype(np.float64))
    np.testing.assert_allclose(moments(far)[1], deviation, rtol=1e-5)
    large = image_set("owns:large").train
    assert (moments(large)[1] > 1e8).all()


@pytest.mark.parametrize(
    ("data", "error", "said"),
    [
        ("last", InputError, "transpose"),
        ("halves", InputError, "whole numbers"),
        ("negative", InputError, "down to -1"),
        ("endless", InputError, "list_iterator|tuple_iterator"),
        ("nan", NonFiniteError, "NaN"),
        ("huge", InputError, "up to 1e\\+30"),
        ("mixed", InputError, "item 1 .*as item 0 has"),
        ("hot", InputError, "the label of item 0"),
        ("number", InputError, "is a int"),
        ("Random", InputError, "another when it is read again"),
        ("weighted", InputError, "sampler of its own"),
        ("collated", InputError, "collate_fn of its own"),
        ("holes", InputError, "mapping with 'train'"),
        ("made,cont=3", InputError, "cannot be made"),
        ("arays", UnknownNameError, "take arrays"),
    ],
)
def test_what_is_no_set_of_images_is_refused(data, error, said):
    with pytest.raises(error, match=said) as caught:
        image_set(f"owns:{data}")
    assert isinstance(caught.value, OdenetError)
    with pytest.raises(InputError, match="as options"):
        image_set(f"owns:{data}", None, 8)


def test_the_command_takes_both(tmp_path):
    given = (
        "--data owns:loader --optimizer torch.optim:AdamW,lr=0.01 --epochs 1 --batch 8 --net mlp --depth 2 --width 4"
    )
    outcome = CliRunner().invoke(command, [*given.split(), "--out", str(tmp_path / "out")], catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    assert read(tmp_path / "out").plan.optimizer == "torch.optim:AdamW,lr=0.01"
    changed = [*given.replace("0.01", "0.02").split(), "--out", str(tmp_path / "out"), "--resume"]
    assert "import paths with a colon" in CliRunner().invoke(command, ["--optimizer", "adamw"]).output
    assert "optimizer was" in str(CliRunner().invoke(command, changed).exception)
