"""The job `odenet train`, with a trainer that learns nothing and remembers everything."""

from __future__ import annotations

import csv
import io
import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from odenet import FileError, GradientError, InputError, UnsupportedError, load_weights
from odenet._backend.trainer import Trainer, TrainingStep, checked_state
from odenet._jobs.data.images import ImageSet, in_memory
from odenet._jobs.descent import Batches, augmented, cropped, cross_entropy, evaluate, flipped, rate, split
from odenet._jobs.train import events, job
from odenet._jobs.train.checkpoint import Epoch, Outcome, TrainingRun, alone, best, read
from odenet._jobs.train.command import command
from odenet._jobs.train.curve import curve, write_curve
from odenet._jobs.train.plan import TrainingPlan

SCRIPT = (0.25, 0.75, 0.5, 0.75)  # validation accuracy after each epoch
PER_EPOCH = 3  # steps


class Scripted(Trainer):
    """Counts its steps in a weight and classifies as many images right as the script has for that epoch."""

    def __init__(self, model, seen):
        self.spec, self.seen = model.spec, seen
        self.arrays = {f"weight.{name}": array.copy() for name, array in model.weights.items()}
        self.arrays |= {f"momentum.{name}": np.zeros_like(array) for name, array in model.weights.items()}
        self.fails = {}

    @property
    def steps(self):
        return int(self.arrays["momentum.head.bias"][0])

    def step(self, inputs, targets, lr):
        self.spec.check_batch(inputs, targets)
        if self.steps in self.fails:
            outcome = self.fails.pop(self.steps)
            if isinstance(outcome, BaseException):
                raise outcome
            return TrainingStep(outcome, 0, None)
        self.arrays["momentum.head.bias"][0] += 1
        # depends on every bit of the batch, on their order and on the rate
        self.arrays["weight.head.bias"][1] += lr * float(inputs.sum()) * self.steps + targets[0]
        self.seen.append(inputs.tobytes())
        return TrainingStep(1.0 / self.steps, 2, 0.001 * self.steps)

    def predict(self, inputs):
        right = SCRIPT[self.steps // PER_EPOCH - 1]
        outputs = np.zeros((len(inputs), 2), inputs.dtype)
        shows = inputs[:, 0, 0, 0] > inputs[:, 0, 0, 1]  # the class, as `striped` paints it
        wrong = np.arange(len(inputs)) % 4 >= round(4 * right)
        outputs[np.arange(len(inputs)), (shows ^ wrong).astype(int)] = 3.0
        return outputs

    def state(self):
        return {name: array.copy() for name, array in self.arrays.items()}

    def load(self, state):
        checked_state(self.spec, state)
        self.arrays = {name: np.array(array) for name, array in state.items()}

    def peak_bytes(self):
        return 1000


def striped(count, seed):
    """Images of two classes, told apart by two pixels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    pixels = rng.integers(0, 256, (count, 1, 4, 4), np.uint8)
    pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] = 255 * labels, 255 * (1 - labels)
    return in_memory(pixels, labels)


class Bench:
    """A place to run the job, and what it did."""

    def __init__(self):
        self.seen, self.test_reads, self.trainers = [], [], []
        self.images = ImageSet("digits", "painted", ("a", "b"), striped(32, 0), striped(8, 1), mirrored=False)
        self.fails = {}

    def image_set(self, *_):
        test = self.images.test

        def counted(indices):
            self.test_reads.append(len(indices))
            return test.read(indices)

        return replace(self.images, test=replace(test, read=counted))

    def trainer(self, model, *, momentum, weight_decay):
        made = Scripted(model, self.seen)
        made.fails = self.fails
        self.trainers.append(made)
        return made


@pytest.fixture
def bench(fake, monkeypatch):
    made = Bench()
    monkeypatch.setattr(job, "image_set", made.image_set)
    # a figure takes a second; it has a test of its own
    monkeypatch.setattr("odenet._jobs.train.curve.write_curve", lambda run, folder: [folder / "curve.png"])
    monkeypatch.setattr(type(fake), "trainer", lambda self, model, **options: made.trainer(model, **options))
    return made


PLAN = {"backend": "fake", "net": "mlp", "depth": 2, "width": 4, "epochs": 4, "batch": 8, "validation": 0.25}


def train(out, resume=False, console=None, **options):
    return job.train(TrainingPlan(**PLAN | options), Path(out), resume, console or Console(quiet=True))


def test_the_best_epoch_is_that_of_the_validation_images_and_the_test_comes_once_at_the_end(bench, tmp_path):
    assert train(tmp_path) == 0
    run = read(tmp_path)
    assert [row.validation_accuracy for row in run.rows] == list(SCRIPT)
    assert run.best == run.test.epoch == 2  # the first of two equal ones
    assert run.test.accuracy == 0.75
    assert sum(bench.test_reads) == 8
    assert len(run.rows) == 4
    weights = load_weights(tmp_path / "weights.npz")
    assert (weights["head.bias"] == run.state(tmp_path, 2)["weight.head.bias"]).all()
    assert (weights["head.bias"] != run.state(tmp_path, 4)["weight.head.bias"]).any()


def test_what_is_on_disk(bench, tmp_path):
    train(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    states = {"state-0002.npz", "state-0004.npz"}  # of the best epoch and of the last
    others = {"run.json", "log.csv", "weights.npz", "events.out.tfevents.odenet"}
    assert names == states | others
    with open(tmp_path / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert float(rows[0]["train_loss"]) == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    assert float(rows[1]["train_accuracy"]) == 2 / 8
    assert float(rows[3]["certificate"]) == pytest.approx(0.012)  # the largest of the epoch
    assert [float(row["lr"]) for row in rows] == pytest.approx([0.1, 0.1, 0.01, 0.001])


def comparable(folder):
    """All that must be equal in two runs; times are not."""
    run = read(folder)
    rows = [replace(row, seconds=0.0, finished=0.0) for row in run.rows]
    return rows, run.test, {e: run.state(folder, e) for e in (run.best, run.epoch)}


def assert_equal(one, other):
    assert one[:2] == other[:2]
    assert one[2].keys() == other[2].keys()
    for epoch, state in one[2].items():
        assert state.keys() == other[2][epoch].keys()
        for name, array in state.items():
            assert array.dtype == other[2][epoch][name].dtype
            assert array.tobytes() == other[2][epoch][name].tobytes(), (epoch, name)


@pytest.mark.parametrize("step", [0, 1, 3, 7, 11])
def test_a_run_that_was_interrupted_goes_on_bit_for_bit(bench, tmp_path, step):
    train(tmp_path / "whole")
    whole = comparable(tmp_path / "whole")
    seen = list(bench.seen)
    bench.fails[step] = KeyboardInterrupt()
    said = Console(record=True, width=200, file=io.StringIO())
    assert train(tmp_path / "cut", console=said) == 130
    text = said.export_text()
    assert "--resume" in text
    assert f"epoch {step // PER_EPOCH} is whole" in text or step < PER_EPOCH
    bench.seen.clear()
    assert train(tmp_path / "cut", resume=True) == 0
    assert_equal(comparable(tmp_path / "cut"), whole)
    assert bench.seen == seen[step // PER_EPOCH * PER_EPOCH :]  # the same batches, from the last whole epoch on


def test_interrupted_in_the_test_nothing_is_trained_again(bench, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(job, "save_weights", stop)
        assert train(tmp_path) == 130
    assert read(tmp_path).epoch == 4
    bench.seen.clear()
    assert train(tmp_path, resume=True) == 0
    assert bench.seen == []
    assert read(tmp_path).test is not None


def test_a_finished_run_is_told_again_without_training_or_test(bench, tmp_path):
    train(tmp_path)
    before = (tmp_path / "run.json").read_bytes()
    reads = sum(bench.test_reads)
    said = Console(record=True, width=200, file=io.StringIO())
    assert train(tmp_path, resume=True, console=said) == 0
    assert (tmp_path / "run.json").read_bytes() == before
    assert sum(bench.test_reads) == reads
    assert "test accuracy 75.0 % (6 of 8 images)" in said.export_text()
    assert len(bench.trainers) == 1


def test_a_run_is_not_written_over_and_not_resumed_as_another(bench, tmp_path):
    train(tmp_path)
    with pytest.raises(FileError, match=r"holds a run already, of 4 epochs.*--resume"):
        train(tmp_path)
    with pytest.raises(InputError, match=r"epochs was 4 and is 5; seed was 0 and is 1"):
        train(tmp_path, resume=True, epochs=5, seed=1)
    bench.images = replace(bench.images, train=striped(32, 5))
    with pytest.raises(InputError, match="of other images"):
        train(tmp_path, resume=True)


def test_two_runs_do_not_write_into_one_folder(bench, tmp_path):
    with alone(tmp_path), pytest.raises(FileError, match="another process is training in"):
        train(tmp_path)
    assert train(tmp_path) == 0  # the folder was let go of, here and in every other test that goes on


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": "odenet train 0"}', '{"format": "odenet train 1"}', '{"format": 1, "rows": 3}']
)
def test_a_run_that_cannot_be_read_is_said_to_be_one(bench, tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(FileError, match=r"run\.json cannot be read"):
        train(tmp_path, resume=True)


def test_a_damaged_state_is_found(bench, tmp_path):
    bench.fails[7] = KeyboardInterrupt()
    train(tmp_path)
    path = tmp_path / "state-0002.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(FileError, match=r"state-0002\.npz is no \.npz file"):
        train(tmp_path, resume=True)
    path.unlink()
    with pytest.raises(FileError, match="there is no file"):
        train(tmp_path, resume=True)


def test_what_a_killed_process_left_half_written_is_swept(bench, tmp_path):
    bench.fails[7] = KeyboardInterrupt()
    train(tmp_path)
    left = [tmp_path / name for name in ("..writable.abc", ".run.json.abc", "state-0003.npz")]
    for path in left[:2]:
        path.write_bytes(b"half")
    left[2].write_bytes(b"whole, but no run names it")
    train(tmp_path, resume=True)
    assert not any(path.exists() for path in left)


def test_a_loss_that_is_not_finite_ends_the_run_with_the_epochs_before_it(bench, tmp_path):
    bench.fails[4] = float("nan")
    with pytest.raises(GradientError, match=r"the loss is nan in step 2 of epoch 2.*smaller --lr"):
        train(tmp_path)
    assert read(tmp_path).epoch == 1


def test_what_cannot_be_trained_is_said_before_anything_is_written(bench, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"a batch of 25 from 24 training images"):
        train(tmp_path, batch=25)
    with pytest.raises(InputError, match=r"0\.001 of 32 images for validation"):
        train(tmp_path, validation=0.001)
    with pytest.raises(UnsupportedError, match="poor does not offer"):
        train(tmp_path, backend="poor", gradient="discrete-adjoint")
    monkeypatch.undo()
    from odenet._backend.interface import Backend

    with pytest.raises(UnsupportedError, match=r"does not train networks.*--backend torch"):
        Backend.trainer(object(), None, momentum=0.9, weight_decay=0.0)
    assert not list(tmp_path.glob("state*"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"epochs": 0}, "epochs=0"),
        ({"batch": 1.5}, "batch=1.5"),
        ({"lr": 0.0}, "lr=0.0"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"momentum": 1.0}, "momentum=1.0"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0"),
        ({"validation": 0.0}, "validation=0.0"),
        ({"schedule": "linear"}, "no schedule called 'linear'"),
        ({"backend": "torhc"}, "no backend called 'torhc'"),
        ({"solver": "eular"}, "no solver called 'eular'"),
        ({"dtype": "float16"}, "no number type called 'float16'"),
    ],
)
def test_options_are_checked(options, said):
    with pytest.raises(InputError, match=said):
        TrainingPlan(**options)


def test_a_plan_survives_the_disk_and_names_are_made_one(tmp_path):
    plan = TrainingPlan(solver="ResNet", gradient="discrete-adjoint:correct=no", data="CIFAR10", data_dir="x")
    assert (plan.solver, plan.data) == ("euler", "cifar10")
    assert TrainingPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    plan.require_same(replace(plan, data_dir="y"))  # files may move
    with pytest.raises(FileError, match="plan of this run cannot be read"):
        TrainingPlan.from_json({"nothing": 1})


def test_weights_along_depth_follow_the_solver(bench):
    for solver, along in (("euler", "piecewise"), ("heun", "linear"), ("rk4", "linear")):
        assert TrainingPlan(solver=solver, backend="fake").spec(bench.images).along == along
    spec = TrainingPlan(along="shared", backend="fake").spec(bench.images)
    assert (spec.along, spec.inputs, spec.classes) == ("shared", (1, 4, 4), 2)


def test_schedules():
    assert [rate("step", 1.0, epoch, 6) for epoch in range(1, 7)] == [1, 1, 0.1, 0.1, 0.01, 0.01]
    assert [rate("step", 0.1, epoch, 90) for epoch in (1, 30, 31, 60, 61, 90)] == pytest.approx(
        [0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    )
    assert rate("step", 1.0, 1, 1) == 1.0
    assert [rate("cosine", 2.0, epoch, 4) for epoch in (1, 3)] == pytest.approx([2.0, 1.0])
    assert rate("cosine", 1.0, 100, 100) < 0.001
    assert rate("constant", 0.3, 7, 9) == 0.3
    with pytest.raises(InputError, match="schedule"):
        rate("step decay", 1.0, 1, 1)


def test_a_crop_is_the_image_moved_over_black_by_as_much_as_allowed_every_way():
    pixels = np.arange(1, 257, dtype=np.uint16).clip(1, 255).astype(np.uint8).reshape(1, 1, 16, 16)
    many = np.repeat(pixels, 400, 0)
    found = cropped(many, np.random.default_rng(0))
    around = np.pad(pixels[0, 0], 2)
    allowed = {around[i : i + 16, j : j + 16].tobytes(): (i, j) for i in range(5) for j in range(5)}
    places = [allowed[image.tobytes()] for image in found]  # KeyError: no such crop
    assert set(places) == {(i, j) for i in range(5) for j in range(5)}


def test_about_half_of_the_images_are_mirrored_left_to_right_and_digits_never():
    pixels = np.random.default_rng(0).integers(0, 256, (400, 3, 2, 5), np.uint8)
    found = flipped(pixels, np.random.default_rng(1))
    same, mirrored = ((found == each).all((1, 2, 3)) for each in (pixels, pixels[..., ::-1]))
    assert (same ^ mirrored).all()
    assert 150 < same.sum() < 250
    assert (augmented(pixels, np.random.default_rng(1), False) == pixels).all()  # too small to be cropped


def batches(**options):
    images = striped(30, 0)
    mean, deviation = np.array([100.0]), np.array([50.0])
    return Batches(images, 8, mean, deviation, **{"dtype": "float64", "seed": 3, "augment": True} | options)


def test_batches_are_a_function_of_seed_and_epoch_alone():
    def seen(made, epoch):
        return [(x.tobytes(), y.tobytes()) for x, y in made.shuffled(epoch)]

    assert seen(batches(), 2) == seen(batches(), 2)
    list(batches().shuffled(1))
    assert seen(batches(), 2) != seen(batches(), 1) != seen(batches(seed=4), 1)


def test_an_epoch_has_no_image_twice_and_pixels_are_normalised():
    made = batches(augment=False)
    epoch = list(made.shuffled(1))
    assert [x.shape for x, _ in epoch] == [(8, 1, 4, 4)] * 3
    assert len({image.tobytes() for x, _ in epoch for image in x}) == 24
    raw = made.images.read(np.arange(30)).astype(float)
    back = {np.rint(image * 50 + 100).tobytes() for x, _ in epoch for image in x}
    assert back <= {image.tobytes() for image in raw}
    for x, y in epoch:
        assert ((x[:, 0, 0, 0] > x[:, 0, 0, 1]) == y).all()  # labels stay with their images
    assert next(batches(dtype="float32").shuffled(1))[0].dtype == np.float32


def test_a_split_has_no_image_in_common_and_follows_the_seed():
    images = striped(40, 0)
    one, again, other = (split(images, 0.25, None, seed) for seed in (0, 0, 1))
    sets = [{image.tobytes() for image in part.read(np.arange(len(part)))} for part in (one.train, one.validation)]
    assert (len(sets[0]), len(sets[1])) == (30, 10)
    assert not sets[0] & sets[1]
    pixels = [each.train.read(np.arange(30)).tobytes() for each in (one, again, other)]
    assert pixels[0] == pixels[1] != pixels[2]
    limited = split(images, 0.25, 8, 0)
    assert (len(limited.train), len(limited.validation)) == (6, 2)
    for limit in (1, 41):
        with pytest.raises(InputError, match=f"a limit of {limit} training images"):
            split(images, 0.25, limit, 0)


def test_images_that_fill_up_the_last_batch_do_not_count():
    class Constant:
        def predict(self, inputs):
            assert len(inputs) == 8
            return np.stack([np.zeros(len(inputs)), inputs[:, 0, 0, 0]], 1)

    loss, accuracy = evaluate(Constant(), batches())
    outputs = np.array([[0.0, (255 * label - 100) / 50] for label in np.arange(30) % 2])
    shares = np.exp(outputs) / np.exp(outputs).sum(1, keepdims=True)
    assert loss == pytest.approx(-np.log(shares[np.arange(30), np.arange(30) % 2]).mean(), rel=1e-12)
    assert accuracy == 1.0
    assert np.isfinite(cross_entropy(np.array([[1e4, -1e4]]), np.array([1]))).all()


def test_of_equal_accuracies_the_smaller_loss_is_better_and_of_equals_the_first():
    def row(epoch, accuracy, loss):
        return Epoch(epoch=epoch, validation_accuracy=accuracy, validation_loss=loss)

    assert best((row(1, 0.5, 0.1), row(2, 0.6, 0.9), row(3, 0.6, 0.8), row(4, 0.6, 0.8))) == 3


def events_of(content):
    """The scalars of an event file by a reader of its own: (step, tag) to value. Checks every checksum."""
    found, place = {}, 0
    while place < len(content):
        (length,) = struct.unpack_from("<Q", content, place)
        data = content[place + 12 : place + 12 + length]
        for part, at in ((content[place : place + 8], place + 8), (data, place + 12 + length)):
            crc = events.crc32c(part)
            expected = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
            assert struct.unpack_from("<I", content, at) == (expected,)
        fields = dict(fields_of(data))
        for key, value in fields_of(fields.get(5, b"")):
            assert key == 1
            scalar = dict(fields_of(value))
            found[fields[2], scalar[1].decode()] = scalar[2]
        place += length + 16
    return found


def fields_of(data):
    place = 0

    def varint():
        nonlocal place
        value = shift = 0
        while True:
            byte = data[place]
            place += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while place < len(data):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
            continue
        size = {1: 8, 5: 4}.get(key & 7) or varint()
        raw, place = data[place : place + size], place + size
        yield key >> 3, raw if key & 7 == 2 else struct.unpack({8: "<d", 4: "<f"}[size], raw)[0]


def test_event_files_hold_the_log(bench, tmp_path):
    assert events.crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32C
    train(tmp_path)
    found = events_of((tmp_path / events.NAME).read_bytes())
    for row in read(tmp_path).rows:
        assert found[row.epoch, "loss/train"] == pytest.approx(row.train_loss, rel=1e-6)
        assert found[row.epoch, "accuracy/validation"] == pytest.approx(row.validation_accuracy)
        assert found[row.epoch, "certificate"] == pytest.approx(row.certificate)
    assert len(found) == 4 * 8


def test_a_record_that_was_cut_short_is_gone_after_the_run_went_on(bench, tmp_path):
    bench.fails[7] = KeyboardInterrupt()
    train(tmp_path)
    with open(tmp_path / events.NAME, "ab") as file:
        file.write(b"\x20\x00\x00")
    train(tmp_path, resume=True)
    assert {step for step, _ in events_of((tmp_path / events.NAME).read_bytes())} == {1, 2, 3, 4}


@pytest.mark.parametrize("certificate", [pytest.param(None, marks=pytest.mark.slow), 0.1])
def test_the_curve_shows_all_epochs_and_the_test_at_the_best(tmp_path, certificate):
    losses = (2.0, 1.0, 0.5)
    rows = tuple(
        Epoch(n, 0.1, loss, 0.5, loss, 1 - loss / 4, certificate, None, 1.0, 0.0) for n, loss in enumerate(losses, 1)
    )
    run = TrainingRun(TrainingPlan(), {}, {}, rows, Outcome(3, 0.6, 0.8, 100))
    figure = curve(run)
    panels = figure.axes
    assert len(panels) == (2 if certificate is None else 3)
    assert tuple(panels[0].lines[0].get_ydata()) == losses
    assert [tuple(line.get_xydata()[0]) for line in panels[1].lines if line.get_label().startswith("test")] == [
        (3, 0.8)
    ]
    png, svg = write_curve(run, tmp_path)
    assert png.read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in svg.read_bytes()


def test_the_command_has_the_plan_s_defaults_and_one_of_each_name(bench, tmp_path, monkeypatch):
    from click.testing import CliRunner

    taken = []
    monkeypatch.setattr(job, "train", lambda plan, out, resume, messages: taken.append((plan, out, resume)) or 0)
    runner = CliRunner()
    assert runner.invoke(command, ["--backend", "fake"]).exit_code == 0
    assert taken[-1] == (TrainingPlan(backend="fake"), Path("results/train"), False)
    flags = "--backend fake --solver heunnet --gradient discrete-adjoint:correct=no --no-augment --schedule cosine"
    flags += f" --weight-decay 0 --limit-train 9 --out {tmp_path} --resume"
    assert runner.invoke(command, flags.split()).exit_code == 0
    options = {"solver": "heun", "gradient": "discrete-adjoint:correct=no", "augment": False, "schedule": "cosine"}
    assert taken[-1] == (TrainingPlan(backend="fake", weight_decay=0.0, limit_train=9, **options), tmp_path, True)
    result = runner.invoke(command, ["--backend", "fake,other"])
    assert result.exit_code == 2
    assert "names 2" in result.output
