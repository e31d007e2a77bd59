"""`odenet train`."""

from __future__ import annotations

from typing import Any

import click
from click.core import ParameterSource

from odenet._backend.imported import is_path
from odenet._errors import shown
from odenet._jobs import flags as _flags
from odenet._jobs.cells.grid import ALONG_BY_SOLVER
from odenet._jobs.cells.plan import DTYPES
from odenet._jobs.cells.programs import keep_programs
from odenet._jobs.cells.run import JobOptions
from odenet._jobs.data.sets import NAMES
from odenet._jobs.descent import SCHEDULES
from odenet._jobs.groups import WITH_SHORT_HELP
from odenet._jobs.output import FilePath
from odenet._jobs.train.plan import OF_SGD, OPTIMIZERS, TrainingPlan, not_read
from odenet._nets.spec import ACTIVATIONS, BLOCKS, NORMS, STARTS


class _One(click.ParamType):
    """One name of a kind that other commands take several of, with their completion."""

    def __init__(self, names: _flags.Names) -> None:
        self.names = names
        self.name = names.name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name, or the label of a record."""
        if self.name == "gradient" and isinstance(value, str) and value.strip().lower().startswith("auto"):
            value = value.replace(",", ":")  # its options are written in one go; there is but one method here
        records = self.names.convert(value, param, ctx)
        if len(records) != 1:
            self.fail(f"{shown(value)} names {len(records)}; a run has one {self.name}", param, ctx)
        return getattr(records[0], "label", records[0])

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        """The names that begin with what was typed, for completion."""
        return self.names.shell_complete(ctx, param, incomplete)


class _NameOrPath(click.Choice):
    """One of some names, or an import path `module:name,key=value,...`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The name, or the path as it is."""
        if is_path(value):
            return value
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            own = "Your own are import paths with a colon, as in torch.optim:AdamW,lr=1e-3."
            raise click.BadParameter(f"{error.message} {own}", ctx, param) from error

    def get_metavar(self, *arguments: Any, **options: Any) -> str:
        return f"[{'|'.join(map(str, self.choices))}|MODULE:NAME]"


class _Counts(click.ParamType):
    """Whole numbers between commas."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """The option's value as all of its numbers."""
        try:
            return value if isinstance(value, tuple) else tuple(int(count) for count in value.split(",") if count)
        except ValueError:
            self.fail(f"{shown(value)} cannot be used. Allowed: whole numbers between commas, as in 3,4.", param, ctx)


def _flag(flag: str, kind: Any, text: str) -> Any:
    """A flag whose default is the plan's."""
    default = getattr(TrainingPlan, flag.removeprefix("--").replace("-", "_"))
    shown = default not in (None, ())
    return click.option(flag, type=kind, default=default, show_default=shown, help=text)


@click.command("train", short_help="Train a network on images.", context_settings=WITH_SHORT_HELP)
@_flag(
    "--data", _NameOrPath(NAMES), "Images: digits (embedded), cifar10 (on disk), folder (one per class), or your own."
)
@_flag(
    "--data-dir",
    FilePath(str, file_okay=False),
    "Folder that contains cifar-10-batches-py, or train and val.",
)
@_flag("--size", _flags.Whole(1), "Height and width of the images of a folder, by default 32.")
@_flag("--net", click.Choice(BLOCKS), "Kind of block.")
@_flag("--backend", _One(_flags.BACKENDS), "Backend, see `odenet list backends`.")
@_flag("--solver", _One(_flags.SOLVERS), "Solver, see `odenet list solvers`.")
@_flag("--gradient", _One(_flags.GRADIENT_NAMES), "Gradient method of `odenet list gradients`, or auto.")
@_flag("--depth", _flags.Whole(1), "Number of steps N.")
@_flag("--width", _flags.Whole(1), "Channels (conv, bottleneck) or features.")
@_flag("--norm", click.Choice(NORMS), "Normalisation of conv and bottleneck blocks.")
@_flag("--activation", click.Choice(ACTIVATIONS), "Activation.")
@_flag("--along", click.Choice(ALONG_BY_SOLVER), "Weights along depth; auto: by solver.")
@_flag("--before", _Counts(), "Ordinary stages before the deep one: blocks of each, as in 3,4.")
@_flag("--after", _Counts(), "Ordinary stages after it.")
@click.option(
    "--activated/--plain-stem",
    default=TrainingPlan.activated,
    show_default=True,
    help="Normalisation and activation after the stem.",
)
@_flag("--grid", _flags.Whole(1), "The head takes the means of GRID x GRID parts of the image.")
@click.option("--scaled/--unscaled", default=TrainingPlan.scaled, show_default=True, help="Steps of 1/N, or of 1.")
@_flag("--start", click.Choice(STARTS), "Initial weights along depth.")
@_flag("--device", str, "Device, as `odenet list backends` names it.")
@_flag("--dtype", click.Choice(DTYPES), "Number type.")
@_flag("--epochs", _flags.Whole(1), "Passes over the training images.")
@_flag("--batch", _flags.Whole(1), "Images in a batch.")
@_flag(
    "--optimizer", _NameOrPath(OPTIMIZERS), "Optimiser: torch.optim:AdamW,lr=1e-3 or optax:adamw,learning_rate=1e-3."
)
@_flag("--lr", _flags.Real(), "Initial learning rate.")
@_flag("--momentum", _flags.Real(), "Momentum of gradient descent.")
@_flag("--weight-decay", _flags.Real(), "Weight decay, of all weights.")
@_flag("--schedule", click.Choice(SCHEDULES), "Learning rate: step (a tenth after each third), cosine, or constant.")
@_flag("--seed", _flags.Whole(0), "Seed of weights, split, order and augmentation.")
@click.option("--seeds", type=_flags.Whole(1), help="Train with this many seeds, from --seed on, in --out/seed-N.")
@click.option(
    "--augment/--no-augment",
    default=TrainingPlan.augment,
    show_default=True,
    help="Random crops and mirror images of training images.",
)
@_flag("--validation", _flags.Real(), "Fraction of the training images that chooses the best epoch.")
@_flag("--limit-train", _flags.Whole(2), "Use this many training images.")
@_flags.job(
    "results/train",
    "Folder of the run.",
    "Continue after the last complete epoch of the run in --out; the results are bitwise the same.",
)
@click.pass_context
def command(context: click.Context, job: JobOptions, seeds: int | None, **options: Any) -> None:
    """Train a network on images, with any solver and gradient method.

    The run is saved after each epoch; if it is killed, it loses only the epoch in progress. Validation images that are
    set aside choose the best epoch; the test images are evaluated once, at the end. --shard and --executor divide the
    runs of --seeds. Exit status: 0, 1 if the loss is no longer finite, 130 after Ctrl-C.

    \b
    Examples:
      odenet train
      odenet train --backend jax --solver heun --gradient discrete-adjoint --depth 32 --out results/heun
      odenet train --depth 64 --gradient auto:tolerance=1e-2,memory=64M
      odenet train --data cifar10 --data-dir DIR --width 32 --epochs 90 --batch 256 --device cuda
      odenet train --data folder --data-dir ROOT --size 224 --net bottleneck --width 1024 --depth 22 --before 3,4 \\
          --after 3 --unscaled --device cuda
      odenet train --optimizer torch.optim:AdamW,lr=1e-3,weight_decay=0.01 --schedule cosine
      odenet train --data mymodule:MyDataset,root=DIR --batch 64
      odenet train --resume
      odenet train --seeds 5 --executor processes --out results/seeds
    """
    from odenet._jobs.train.job import train
    from odenet._jobs.train.seeds import train_seeds

    _flags.require_read(context, options["net"])
    keep_programs()
    if options["optimizer"] not in OPTIMIZERS:
        for name in OF_SGD:  # also where the value is the default, which the plan cannot see
            if context.get_parameter_source(name) is not ParameterSource.DEFAULT:
                raise not_read(name, options["optimizer"])
    plan = TrainingPlan(**options)
    if seeds is None and (job.shard or job.executor):
        raise click.UsageError("--shard and --executor divide --seeds")
    if seeds is None:
        context.exit(train(plan, job.out, job.resume, job.messages))
    context.exit(train_seeds(plan, range(plan.seed, plan.seed + seeds), job))
