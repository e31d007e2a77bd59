"""All options of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from odenet._backend import registry as _registry
from odenet._backend.imported import Imported, imported, is_path
from odenet._check import instance, several, whole, within, yes_or_no
from odenet._errors import InputError
from odenet._gradients.names import gradient
from odenet._jobs.cells.grid import ALONG_BY_SOLVER, along_for
from odenet._jobs.cells.plan import DTYPES
from odenet._jobs.cells.resume import changes, reading
from odenet._jobs.data.images import ImageSet
from odenet._jobs.data.sets import NAMES
from odenet._jobs.descent import SCHEDULES
from odenet._names import choice
from odenet._nets.spec import Block, NetSpec, Norm, Start
from odenet._solvers.names import solver

OPTIMIZERS = ("sgd",)
OF_SGD = ("lr", "momentum", "weight_decay")  # an optimiser of the framework's has options of its own


@dataclass(frozen=True)
class TrainingPlan:
    """What is trained, on what and how. Names are kept as labels, so that a plan is plain data.

    Args:
        data, data_dir, size: an image set, see `odenet._jobs.data.image_set`.
        net, depth, width, norm, activation: of the network, see `NetSpec`.
        along: weights along depth; "auto" takes "piecewise" for euler and "linear" for every other solver.
        before, after, activated, grid: of the network around its deep stage, see `NetSpec`.
        scaled: whether steps are 1/N; False takes steps of 1, as a plain ResNet does.
        start: of the weights, see `NetSpec.init`.
        backend, solver, gradient, device, dtype: how it is solved and differentiated, by name.
        epochs, batch, lr, momentum, weight_decay, schedule: of gradient descent, see `Trainer` and `schedule.rate`.
        optimizer: "sgd", or the import path of one of the framework's with its options, among them its rate. Then lr,
            momentum and weight_decay stay as they are by default, and the schedule multiplies its rate.
        seed: of weights, split, order and augmentation.
        augment: whether training images are moved and, where that changes nothing, mirrored at random.
        validation: part of the training images that chooses the best epoch.
        limit_train: use this many training images, validation included.

    Raises:
        InputError, UnknownNameError: an option that cannot be used.
    """

    data: str = "digits"
    data_dir: str | None = None
    size: int | None = None
    net: Block = "conv"
    depth: int = 8
    width: int = 16
    norm: Norm = "group"
    activation: Literal["relu", "tanh"] = "relu"
    along: str = "auto"
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    activated: bool = False
    grid: int = 1
    scaled: bool = True
    start: Start = "smooth"
    backend: str = "torch"
    solver: str = "euler"
    gradient: str = "backprop"
    device: str = "cpu"
    dtype: Literal["float32", "float64"] = "float32"
    epochs: int = 30
    batch: int = 32
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "step"
    optimizer: str = "sgd"
    seed: int = 0
    augment: bool = True
    validation: float = 0.1
    limit_train: int | None = None

    def __post_init__(self) -> None:
        plain: dict[str, Any] = {
            "data": _path_or("image set", self.data, NAMES),
            "optimizer": _path_or("optimizer", self.optimizer, OPTIMIZERS),
            "backend": _registry.entry(self.backend).name,
            "solver": solver(self.solver).label,
            "gradient": gradient(self.gradient).label,
            "schedule": choice("schedule", self.schedule, SCHEDULES),
            "dtype": choice("number type", self.dtype, DTYPES),
            "along": choice("kind of weights along depth", self.along, ALONG_BY_SOLVER),
        }
        for name in ("before", "after"):  # lists, where read from JSON
            plain[name] = tuple(several(name, getattr(self, name)))
        for name, value in plain.items():
            object.__setattr__(self, name, value)
        for name, least in (("epochs", 1), ("batch", 1), ("seed", 0), ("limit_train", 2), ("size", 1)):
            if getattr(self, name) is not None or name in ("epochs", "batch", "seed"):
                whole(name, getattr(self, name), least, of="a run")
        real: dict[str, Any] = {"lr": {}, "momentum": {"most": 1.0, "least": True}}
        real |= {"weight_decay": {"least": True}, "validation": {"most": 1.0}}
        for name, bounds in real.items():
            number = within(name, getattr(self, name), 0.0, **bounds, below=True, of="a run")
            object.__setattr__(self, name, number)
        for name in ("scaled", "augment", "activated"):
            yes_or_no(name, getattr(self, name))
        instance("device", self.device, str, "the name of one, as `odenet list backends` has it")
        if self.optimizer not in OPTIMIZERS:
            for name in OF_SGD:
                if getattr(self, name) != getattr(TrainingPlan, name):
                    raise not_read(name, self.optimizer)

    @property
    def rate(self) -> float:
        """What the schedule multiplies: lr, or 1 where the optimiser has a rate of its own."""
        return self.lr if self.optimizer in OPTIMIZERS else 1.0

    def imported_optimizer(self) -> Imported | None:
        """The optimiser of the framework's; None for gradient descent with momentum.

        Raises:
            InputError: it cannot be imported.
        """
        return None if self.optimizer in OPTIMIZERS else imported(self.optimizer, "optimiser")

    def spec(self, images: ImageSet) -> NetSpec:
        """The network for these images."""
        return NetSpec(
            block=self.net,
            depth=self.depth,
            width=self.width,
            hidden=self.width,
            inputs=images.train.shape,
            classes=len(images.classes),
            norm=self.norm,
            activation=self.activation,
            along=along_for(self.along, self.solver),
            horizon=1.0 if self.scaled else float(self.depth),
            before=self.before,
            after=self.after,
            activated=self.activated,
            grid=self.grid,
        )

    def to_json(self) -> dict[str, Any]:
        """The plan as a dictionary of plain data, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> TrainingPlan:
        """The plan that `to_json` wrote.

        Raises:
            FileError: data that is no plan of this version of odenet.
        """
        with reading("the plan of this run", "a plan that odenet wrote"):
            return cls(**plain)

    def require_same(self, earlier: TrainingPlan) -> None:
        """Raises InputError unless a run of that plan can go on with this one; its files may have moved."""
        changed = changes(vars(earlier), vars(self) | {"data_dir": earlier.data_dir})
        if changed:
            raise InputError(
                f"the run to resume has other settings: {'; '.join(changed)}",
                "the same settings (the number of epochs, too, since the rate depends on it)",
                "give the earlier settings, or choose another --out",
            )


def not_read(option: str, optimizer: str) -> InputError:
    """The error of an option of gradient descent beside another optimiser, which does not read it."""
    return InputError(
        f"{option} of a run beside the optimizer {optimizer}, which does not read it",
        f"{', '.join(OF_SGD)} with the optimizer sgd",
        "give it as an option of the optimizer, as in torch.optim:AdamW,lr=1e-3,weight_decay=0.01",
    )


def _path_or(kind: str, value: str, names: tuple[str, ...]) -> str:
    """An import path as it is, or one of some names."""
    return value.strip() if is_path(value) else choice(kind, value, names)
