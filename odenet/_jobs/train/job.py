"""The job `odenet train`.

Over 250 lines: the epochs, what is written after each, and how it is taken up again belong to one another.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from odenet._backend import registry as _registry
from odenet._backend.imported import Imported
from odenet._backend.trainer import Trainer
from odenet._errors import FileError, GradientError, GradientWarning, InputError
from odenet._files import require_writable
from odenet._gradients.names import Auto, gradient
from odenet._jobs.cells.resume import nothing_there
from odenet._jobs.data.images import ImageSet, moments
from odenet._jobs.data.sets import image_set
from odenet._jobs.descent import Batches, Split, evaluate, rate, split, training_pass
from odenet._jobs.train import events
from odenet._jobs.train.checkpoint import RUN, Epoch, Outcome, TrainingRun, alone, read
from odenet._jobs.train.plan import TrainingPlan
from odenet._jobs.train.progress import EpochProgress, percent, watch
from odenet._nets.weights import save_weights
from odenet._report.machine import machine
from odenet._solvers.names import solver
from odenet.doctor.auditor import MOVED
from odenet.doctor.candidates import reference

WEIGHTS = "weights.npz"


class InterruptedRun(KeyboardInterrupt):
    """Ctrl-C during the epochs; what is kept, and how to go on, has been printed."""


def train(plan: TrainingPlan, out: Path, resume: bool, messages: Console) -> int:
    """`run` for a command: the exit status is 0, or 130 if the run was interrupted."""
    try:
        run(plan, out, resume, messages)
    except InterruptedRun:
        return 130
    return 0


def run(
    plan: TrainingPlan,
    out: Path,
    resume: bool,
    messages: Console,
    images: ImageSet | None = None,
    optimizer: Imported | None = None,
) -> TrainingRun:
    """Train a network, or go on with it.

    Args:
        plan: what and how.
        out: folder of the run.
        resume: whether to go on with the run that is there.
        messages: for progress and what came of it.
        images, optimizer: objects in the place of those that the plan names.

    Returns:
        the finished run.

    Raises:
        InterruptedRun: by Ctrl-C.
        FileError: images or a checkpoint cannot be read, `out` cannot be written to, is in use by another process,
            holds a run that was not to be resumed, or none that was.
        InputError: the run there has other settings or images.
        UnsupportedError: the backend does not train, or does not offer the solver with the gradient method.
        GradientError: the loss is no finite number any more.
    """
    if resume and not (out / RUN).exists():
        raise nothing_there(out, RUN, "no run")
    optimizer = optimizer or plan.imported_optimizer()  # a misspelt one is said before anything is read
    images = images or image_set(plan.data, plan.data_dir, plan.size)
    parts = split(images.train, plan.validation, plan.limit_train, plan.seed)
    mean, deviation = moments(parts.train)
    known = _identity(images, parts, mean.tolist(), deviation.tolist())
    common: dict[str, Any] = {"mean": mean, "deviation": deviation, "dtype": plan.dtype, "seed": plan.seed}
    learnt = Batches(parts.train, plan.batch, **common, augment=plan.augment, mirrored=images.mirrored)
    if not learnt.steps:
        raise InputError(f"a batch of {plan.batch} from {len(parts.train)} training images", "no larger than these")
    chosen_by = Batches(parts.validation, plan.batch, **common)
    earlier = read(out) if resume else None
    whole = earlier is not None and earlier.test is not None  # whose end is told again, and nothing is built for that
    # all that can be refused is, before there is a folder
    with contextlib.nullcontext() if whole else _trainer(plan, images, optimizer) as trainer:
        require_writable(out)
        with alone(out) as require_same:
            run = _earlier(plan, out, resume, messages)
            if run is None:
                run = TrainingRun(plan, known, machine([plan.backend]))
            elif dict(run.images) != known:
                raise InputError(f"the run in {out} was of other images than {images.name} now has", "the same images")
            messages.print(f"images: {images.origin}", markup=False)
            if run.test is None:
                assert trainer is not None  # without one a whole run is told again
                with _interruptible(out, messages):
                    run = _finish(run, trainer, images, learnt, chosen_by, out, messages, require_same)
            from odenet._jobs.train.curve import write_curve  # matplotlib takes a second

            require_same()
            curve = write_curve(run, out)[0]
            messages.print(_summary(run, len(chosen_by.images)), markup=False)
            messages.print(f"wrote {out / WEIGHTS}, {out / 'log.csv'}, {out / 'run.json'}, {curve}", markup=False)
            return run


@contextlib.contextmanager
def _interruptible(out: Path, messages: Console) -> Iterator[None]:
    """What is kept, and how to go on, is said of Ctrl-C within.

    Raises:
        InterruptedRun: in its place.
    """
    try:
        yield
    except KeyboardInterrupt:
        reached = read(out)
        whole = f"epoch {reached.epoch} is whole and" if reached and reached.epoch else "no epoch is whole, nothing"
        messages.print(f"interrupted: {whole} kept in {out}", markup=False)
        messages.print("go on with: the same command and --resume (in Python resume=True)", markup=False)
        raise InterruptedRun from None


def _earlier(plan: TrainingPlan, out: Path, resume: bool, messages: Console) -> TrainingRun | None:
    run = read(out)
    if run is None:
        return None
    if not resume and not run.epoch:
        return None  # begun, and nothing of it is kept
    if not resume:
        raise FileError(
            f"{out} holds a run already, of {run.epoch} epochs",
            "a folder without one",
            "give --resume (in Python resume=True) to go on with it, or choose another --out",
        )
    plan.require_same(run.plan)
    run.sweep(out)
    messages.print(f"going on after epoch {run.epoch} of {plan.epochs}", markup=False)
    return run


def _identity(images: ImageSet, parts: Split, mean: list[float], deviation: list[float]) -> dict[str, Any]:
    """What would differ, as good as surely, if a run went on with other images."""
    return {
        "name": images.name,
        "classes": list(images.classes),
        "train": len(parts.train),
        "validation": len(parts.validation),
        "test": len(images.test),
        "labels": zlib.crc32(parts.train.labels.tobytes() + images.test.labels.tobytes()),
        "mean": mean,
        "deviation": deviation,
    }


@contextlib.contextmanager
def _trainer(plan: TrainingPlan, images: ImageSet, optimizer: Imported | None) -> Iterator[Trainer]:
    """The network at its start, ready to be trained inside."""
    entry = _registry.entry(plan.backend)
    method, by = gradient(plan.gradient), solver(plan.solver)
    if isinstance(method, Auto):
        method = reference(entry, (by,))  # what is chosen from is what the backend offers
    _registry.require(entry, by, method)
    backend = _registry.backend(plan.backend)
    with backend.prepare(plan.dtype, plan.device):
        spec = plan.spec(images)
        model = backend.build(
            spec,
            spec.init(plan.seed, plan.start),
            solver=solver(plan.solver),
            gradient=gradient(plan.gradient),
            dtype=plan.dtype,
            device=plan.device,
        )
        chosen: dict[str, Any] = {"optimizer": optimizer} if optimizer else {}
        yield backend.trainer(model, momentum=plan.momentum, weight_decay=plan.weight_decay, **chosen)


def _finish(
    run: TrainingRun,
    trainer: Trainer,
    images: ImageSet,
    learnt: Batches,
    chosen_by: Batches,
    out: Path,
    messages: Console,
    require_same: Callable[[], None],
) -> TrainingRun:
    """All epochs that are left, then the test. `require_same` is called before each write."""
    plan = run.plan
    if run.epoch:
        trainer.load(run.state(out, run.epoch))
    require_same()
    if not run.epoch:
        run.write(out)  # from now on there is something to resume
    events.begin(out, run.rows)
    with _telling(messages), watch(messages, plan.epochs, learnt.steps) as progress:
        for epoch in range(run.epoch + 1, plan.epochs + 1):
            row = _epoch(trainer, plan, epoch, learnt, chosen_by, progress)
            if run.rows and plan.device == "cpu":  # of the first step of a run, and not of the one that went on with it
                row = replace(row, peak_bytes=run.rows[0].peak_bytes)
            require_same()
            run = run.saved(out, row, trainer.state())
            events.add(out, row)
            progress.finished(row, run.best == epoch)
    trainer.load(run.state(out, run.best))
    loss, accuracy = evaluate(trainer, replace(chosen_by, images=images.test))
    require_same()
    save_weights(out / WEIGHTS, trainer.read())
    run = replace(run, test=Outcome(run.best, loss, accuracy, len(images.test)))
    run.write(out)
    return run


class _Tell(logging.Handler):
    def __init__(self, messages: Console) -> None:
        super().__init__(logging.INFO)
        self.messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        """Print a message of the log."""
        self.messages.print(record.getMessage(), markup=False, soft_wrap=True)


@contextlib.contextmanager
def _telling(messages: Console) -> Iterator[None]:
    """Inside, what the library logs is seen: what gradient=auto chose, and why it moved."""
    log, handler = logging.getLogger("odenet"), _Tell(messages)
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", f".*{MOVED}", GradientWarning)  # which says the same
            yield
    finally:
        log.setLevel(level)
        log.removeHandler(handler)


def _epoch(
    trainer: Trainer, plan: TrainingPlan, epoch: int, learnt: Batches, chosen_by: Batches, progress: EpochProgress
) -> Epoch:
    began = time.perf_counter()
    lr = rate(plan.schedule, plan.rate, epoch, plan.epochs)
    done = training_pass(trainer, learnt, epoch, lr, functools.partial(progress.step, epoch))
    if not done.finished:
        raise _diverged(f"the loss is {done.loss} in step {done.steps} of epoch {epoch}")
    validation_loss, validation_accuracy = evaluate(trainer, chosen_by)
    if not math.isfinite(validation_loss):  # the last step of an epoch may be the one that is too large
        raise _diverged(f"the loss of the validation images is {validation_loss} after epoch {epoch}")
    return Epoch(
        epoch=epoch,
        lr=lr,
        train_loss=done.loss,
        train_accuracy=done.accuracy,
        validation_loss=validation_loss,
        validation_accuracy=validation_accuracy,
        certificate=done.certificate,
        peak_bytes=trainer.peak_bytes(),
        seconds=time.perf_counter() - began,
        finished=time.time(),
    )


def _diverged(what: str) -> GradientError:
    return GradientError(
        what,
        "a finite loss",
        "take a smaller --lr (or optimizer's rate), or backprop if a certificate was large; then another --out",
    )


def _summary(run: TrainingRun, validation: int) -> str:
    test = run.test
    assert test is not None
    return (
        f"test accuracy {percent(test.accuracy)} ({round(test.accuracy * test.images)} of {test.images} images), "
        f"loss {test.loss:.4f}, with the weights of epoch {test.epoch}, which {validation} validation images chose"
    )
