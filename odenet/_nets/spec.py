"""Networks that every backend can build from one spec and one set of named NumPy weights.

Over 250 lines: one record, whose checks, shapes and start of the weights read the same fields.
"""

from __future__ import annotations

import collections.abc
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from odenet._check import within
from odenet._errors import InputError, NonFiniteError, shown
from odenet._names import choice
from odenet._nets.stages import EXPANSION, block_shapes, last, stem_width, units

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

Block = Literal["conv", "bottleneck", "mlp", "linear"]
Start = Literal["smooth", "independent", "zero"]
BLOCKS: tuple[Block, ...] = ("conv", "bottleneck", "mlp", "linear")
UNREAD: dict[Block, tuple[str, ...]] = {
    "conv": (),
    "bottleneck": (),
    "mlp": ("norm",),
    "linear": ("norm", "activation"),
}
"""The options of a network that a kind of block has no use for: one that somebody sets is refused."""
_IMAGES = ("conv", "bottleneck")  # blocks whose state is an image
Norm = Literal["group", "batch", "batch-eval-backward", "batch-counting-backward", "none"]
NORMS: tuple[Norm, ...] = ("group", "batch", "none")
"""Without the faults that only a reproduction wants."""
BACKWARD_FAULTS: tuple[Norm, ...] = ("batch-eval-backward", "batch-counting-backward")
ACTIVATIONS = ("relu", "tanh")
ALONG = ("piecewise", "linear", "shared")
"""How weights go along depth."""
STARTS: tuple[Start, ...] = ("smooth", "independent", "zero")
"""Kinds of initial weights, see `NetSpec.init`."""

_MOST = 2**31 - 1  # of any size: frameworks count in 32 bits
_STAGES = 16  # each has twice the channels of the one before

GROUPS = 4  # of GroupNorm
NORM_EPSILON = 1e-5  # added to the variance, as torch and equinox do
NORM_MOMENTUM = 0.1  # part of a batch's statistics in the running ones, as in torch


def not_read(option: str, value: object, block: str) -> InputError:
    """The error of an option that a kind of block does not read."""
    blocks = " or ".join(kind for kind, unread in UNREAD.items() if option not in unread)
    return InputError(f"{option}={value} of a {block} network, which has none", f"{option} with {blocks} blocks")


@dataclass(frozen=True)
class NetSpec:
    """A residual network `y' = f(t, y, w(t))` between a stem and a head.

    Blocks:
        - "conv": `f = norm2(conv2(activation(norm1(conv1 y))))`, 3x3 convolutions that keep the size: the small
          residual network of Sander, Ablin and Peyre 2022. Stem: 5x5 with stride 3 (32x32 to 10x10), or 3x3 with
          stride 1 for images of less than 16 pixels. Head: mean over the image, then linear.
        - "bottleneck": `f = norm3(conv3(activation(norm2(conv2(activation(norm1(conv1 y)))))))`, convolutions of size
          1, 3 and 1 with a quarter of the channels inside (He 2016). Stem and head as of "conv".
        - "mlp": `f = w2 activation(w1 y + b1) + b2`. Stem and head are linear.
        - "linear": `f = w y` (the paper's theory, section 3). Stem and head are linear.

    Args:
        block: which of these.
        before, after: ordinary residual stages around this deep one, which then is a stage of a larger network: how
            many blocks each has. A stage has twice the channels and half the height and width of the one before it;
            its first block sees to that, also in the deep stage, which has one more block then. ResNet-101 is
            `NetSpec("bottleneck", 22, 1024, before=(3, 4), after=(3,), norm="batch", horizon=22.0)`, but for the ReLU
            behind each sum. These blocks are not scaled, and always backpropagated. For conv and bottleneck.
        grid: the head takes means over grid x grid equal parts of the image, and a linear map of all; 1 is one mean.
            The authors' network for CIFAR-10 has 2. For conv and bottleneck.
        activated: whether normalisation and activation follow the stem, as in the authors' networks; always with
            stages before. For conv and bottleneck.
        depth: number of steps N; each is scaled by `horizon / depth`.
        width: channels (conv, bottleneck) or features.
        hidden: features inside an mlp block.
        inputs: shape of one input: (channels, height, width) for conv and bottleneck; anything else is flattened.
        classes: size of the output; None for no stem and no head (the state itself goes in and comes out).
        norm: for conv and bottleneck.
            "group": over each of 4 groups of channels of one image.
            "batch" (Ioffe and Szegedy 2015): in training, over all images of a batch, whose means and variances are
            averaged in `statistics`; else by those. A training pass moves the statistics of each layer once, by 0.1 of
            the way to the mean over the evaluations that read this layer (between two layers: the one before),
            whichever gradient method runs blocks again. As in torch, running variances are unbiased.
            "batch-eval-backward": a fault, kept to reproduce figure 3b. As "batch", until a gradient method runs a
            block again in its backward pass: that switches the blocks to evaluation, where they stay until `train()` is
            called at the start of the next epoch. The authors' code for ImageNet does so on one device, by calling
            `.eval()` there. Only in torch; with backprop, which runs nothing again, it is "batch".
            "batch-counting-backward": another fault for figure 3b. As "batch", but each evaluation of a block in the
            backward pass moves the running statistics as well, towards those of the state that it is evaluated at: what
            `nn.BatchNorm2d` does in a backward pass that runs blocks again in training mode, and takes no care. Only in
            torch; with backprop, it is "batch".
            "none": convolutions then have a bias.
        activation: "relu" or "tanh".
        along: weights along depth, "piecewise" (N layers: ResNet), "linear" (N+1 nodes: HeunNet) or "shared".
        horizon: t1; 1 scales each step by 1/N, `depth` gives the plain ResNet with steps of 1.

    Raises:
        InputError: a size or a name that cannot be built.
    """

    block: Block = "conv"
    depth: int = 8
    width: int = 16
    hidden: int = 16
    inputs: tuple[int, ...] = (1, 8, 8)
    classes: int | None = 10
    norm: Norm = "group"
    activation: Literal["relu", "tanh"] = "relu"
    along: Literal["piecewise", "linear", "shared"] = "piecewise"
    horizon: float = 1.0
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    activated: bool = False
    grid: int = 1

    def __post_init__(self) -> None:
        choice("block", self.block, BLOCKS)
        choice("norm", self.norm, (*NORMS, *BACKWARD_FAULTS))
        choice("activation", self.activation, ACTIVATIONS)
        choice("kind of weights along depth", self.along, ALONG)
        if not _is_list(self.inputs):
            raise InputError(f"inputs={shown(self.inputs)} of a network", "the shape of one input, as in (1, 8, 8)")
        object.__setattr__(self, "inputs", tuple(self.inputs))
        for name in ("before", "after"):
            value = getattr(self, name)
            if not _is_list(value):
                raise InputError(f"{name}={shown(value)} of a network", "how many blocks each stage has, as in (3, 4)")
            object.__setattr__(self, name, tuple(value))
        sizes = {"depth": self.depth, "width": self.width, "hidden": self.hidden, "grid": self.grid}
        sizes |= {f"before[{i}]": count for i, count in enumerate(self.before)}
        sizes |= {f"after[{i}]": count for i, count in enumerate(self.after)}
        sizes |= {f"inputs[{i}]": size for i, size in enumerate(self.inputs)}
        if self.classes is not None:
            sizes["classes"] = self.classes
        for name, size in sizes.items():
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise InputError(f"{name}={shown(size)} of a network", "a whole number, at least 1")
            if size > _MOST:
                raise InputError(f"{name}={shown(size)} of a network", f"a whole number, at most {_MOST}")
        for name, stages in (("before", self.before), ("after", self.after)):
            if len(stages) > _STAGES:
                raise InputError(f"{len(stages)} stages {name} the deep one of a network", f"at most {_STAGES}")
        object.__setattr__(self, "horizon", within("horizon", self.horizon, of="a network"))
        if self.batch_normalised and not self.of_images:
            raise InputError(
                f"norm={self.norm!r} of a {self.block} network", f"a network of {' or '.join(_IMAGES)} blocks"
            )
        if "activation" in UNREAD[self.block] and self.activation != NetSpec.activation:
            raise not_read("activation", self.activation, self.block)
        if self.of_images and len(self.inputs) != 3:
            raise InputError(f"inputs={self.inputs} for a {self.block} network", "(channels, height, width)")
        self._check_surroundings()
        narrowest = 2 ** len(self.before) * (EXPANSION if self.block == "bottleneck" else 1)
        if self.of_images and self.norm == "group":
            narrowest *= GROUPS
        if self.width % narrowest:
            raise InputError(
                f"width={self.width} with norm={self.norm!r} and before={self.before} of a {self.block} network",
                f"multiples of {narrowest}",
                "take such a width, or norm='batch' or 'none', which divide no channels into groups"
                if self.norm == "group"
                else "take such a width",
            )
        if self.classes is None and self.state_shape != self._flat_inputs:
            raise InputError(
                f"inputs={self.inputs} for a network without stem (classes=None)", f"inputs of shape {self.state_shape}"
            )

    def _check_surroundings(self) -> None:
        if not isinstance(self.activated, bool):
            raise InputError(f"activated={shown(self.activated)} of a network", "True or False")
        plain: dict[str, object] = {"before": (), "after": (), "activated": False, "grid": 1}
        for name, default in plain.items():
            value = getattr(self, name)
            if value != default and (not self.of_images or self.classes is None):
                raise InputError(
                    f"{name}={shown(value)} of a {self.block} network with classes={self.classes}",
                    f"a network of {' or '.join(_IMAGES)} blocks with classes",
                )

        if self.grid > 1 and any(size % self.grid for size in self._final_size):
            raise InputError(
                f"a head with a grid of {self.grid} for final states of {self._final_size[0]} x {self._final_size[1]}",
                "a divisor of both",
                "or grid=1",
            )

    def check_training(self, batch: int) -> None:
        """Raises InputError where so many inputs would give batch normalisation one value, which has no variance."""
        height, width = self._final_size if self.of_images else (1, 1)
        if self.batch_normalised and batch * height * width < 2:
            raise InputError(
                f"a batch of {batch} for norm={self.norm!r} over images of {height} x {width}",
                "at least 2 values in each channel, in training",
            )

    @property
    def _final_size(self) -> tuple[int, ...]:
        """Height and width of what the head sees."""
        return tuple(-(-size // 2 ** len(self.after)) for size in self.state_shape[1:])

    @property
    def of_images(self) -> bool:
        """Whether states are images, (channels, height, width)."""
        return self.block in _IMAGES

    @property
    def batch_normalised(self) -> bool:
        """Whether it has running statistics."""
        return self.norm.startswith("batch")

    @property
    def layers(self) -> int:
        """Length of the leading axis of the blocks' weights."""
        return {"piecewise": self.depth, "linear": self.depth + 1, "shared": 1}[self.along]

    @property
    def _flat_inputs(self) -> tuple[int, ...]:
        return self.inputs if self.of_images else (math.prod(self.inputs),)

    @property
    def stem(self) -> tuple[int, int, int]:
        """Kernel, stride and padding of the stem of a network of images. Where it is 7 (as in ResNet-101), the largest
        of each 3x3 values follows, with stride 2."""
        if self.before:
            return (7, 2, 3) if min(self.inputs[1:]) >= 64 else (3, 1, 1)
        return (5, 3, 0) if min(self.inputs[1:]) >= 16 else (3, 1, 1)

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Shape of the state of one input."""
        if not self.of_images:
            return (self.width,)
        if self.classes is None:
            return (self.width, *self.inputs[1:])
        kernel, stride, padding = self.stem
        sizes = [(size + 2 * padding - kernel) // stride + 1 for size in self.inputs[1:]]
        halvings = sum(unit.stride == 2 for unit in units(self)[0]) + (kernel == 7)
        for _ in range(halvings):
            sizes = [(size + 1) // 2 for size in sizes]
        return (self.width, *sizes)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every weight that is trained, by name. Those of the blocks (`block.*`) have a leading axis of
        `layers`."""
        block = {name: (self.layers, *shape) for name, shape in self._block_shapes().items()}
        if self.classes is None:
            return block
        first, final = stem_width(self), self.width * 2 ** len(self.after)
        if self.of_images:
            stem = (first, self.inputs[0], self.stem[0], self.stem[0])
        else:
            stem = (first, *self._flat_inputs)
        ends = {"stem.weight": stem, "stem.bias": (first,)}
        if self.ends_stem and self.norm != "none":
            ends |= {"stem.norm.weight": (first,), "stem.norm.bias": (first,)}
        before, after = (
            {name: shape for unit in some for name, shape in unit.shapes(self).items()} for some in units(self)
        )
        head = {"head.weight": (self.classes, final * self.grid**2), "head.bias": (self.classes,)}
        return ends | before | block | after | head

    def statistics(self) -> dict[str, tuple[int, ...]]:
        """Shape of every running statistic by name, beside `shapes`; there are some with batch normalisation."""
        if not self.batch_normalised:
            return {}
        return {
            name.removesuffix("weight") + kind: shape
            for name, shape in self.shapes().items()
            if ".norm" in name and name.endswith("weight")
            for kind in ("running_mean", "running_var")
        }

    @property
    def ends_stem(self) -> bool:
        """Whether normalisation and activation follow the stem."""
        return self.activated or bool(self.before)

    def _block_shapes(self) -> dict[str, tuple[int, ...]]:
        if self.block == "linear":
            return {"block.weight": (self.width, self.width)}
        if self.block == "mlp":
            return {
                "block.linear1.weight": (self.hidden, self.width),
                "block.linear1.bias": (self.hidden,),
                "block.linear2.weight": (self.width, self.hidden),
                "block.linear2.bias": (self.width,),
            }
        return {f"block.{name}": shape for name, shape in block_shapes(self, self.width, self.width).items()}

    def init(self, seed: int = 0, start: Start = "smooth") -> dict[str, np.ndarray]:
        """Random weights in float64, and running statistics of mean 0 and variance 1.

        Args:
            seed: of NumPy's generator.
            start: "smooth": the blocks' weights are one smooth random function of depth, read at the layers, so that
                the network has a limit as it gets deeper; "independent": each layer drawn on its own;
                "zero": independent, with the last normalisation (or layer) at zero, so that blocks start at 0.
        """
        import numpy as np

        choice("start", start, STARTS)
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise InputError(f"seed={shown(seed)}", "a whole number, at least 0")
        generator = np.random.default_rng(seed)
        steps = np.arange(self.layers) / self.depth  # depth of each layer, in [0, 1]
        weights: dict[str, np.ndarray] = {}
        for name, shape in self.shapes().items():
            in_block = name.startswith("block.")
            single = shape[1:] if in_block else shape
            mean, scale = _law(name, single, self.activation, self.block == "bottleneck")
            if in_block and start == "smooth":
                first, second = (scale * generator.standard_normal(single) for _ in range(2))
                angle = (np.pi / 2 * steps).reshape(-1, *[1] * len(single))
                weights[name] = mean + np.cos(angle) * first + np.sin(angle) * second
            else:
                weights[name] = mean + scale * generator.standard_normal(shape)
            if start == "zero" and name in self._last():
                weights[name] = np.zeros(shape)
        for name, shape in self.statistics().items():
            weights[name] = np.full(shape, float(name.endswith("var")))
        return weights

    def _last(self) -> tuple[str, ...]:
        if self.block == "linear":
            return ("block.weight",)
        if self.block == "mlp":
            return ("block.linear2.weight", "block.linear2.bias")
        blocks = ("block.", *(unit.name for some in units(self) for unit in some))
        return tuple(block + name for block in blocks for name in last(self))

    def untied(self, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Weights of this network from those of the same network with `along="shared"`: its block for each layer."""
        import numpy as np

        if not isinstance(weights, collections.abc.Mapping):
            raise InputError(f"weights as a {type(weights).__name__}", "a dict of arrays by name")
        return {
            name: np.repeat(w, self.layers, axis=0) if name.startswith("block.") else w for name, w in weights.items()
        }

    def check(self, weights: Mapping[str, np.ndarray]) -> None:
        """Raises InputError or NonFiniteError unless `weights` are those of this spec, with its statistics."""
        self.check_named(weights, self.shapes() | self.statistics())

    def check_named(self, weights: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raises InputError or NonFiniteError unless these are finite arrays of these names and shapes."""
        import numpy as np

        if not isinstance(weights, collections.abc.Mapping):
            raise InputError(f"weights as a {type(weights).__name__}", "a dict of arrays by name")
        if missing := sorted(shapes.keys() - weights.keys()):
            raise InputError(f"weights without {', '.join(missing)}", ", ".join(shapes))
        if extra := sorted(weights.keys() - shapes.keys()):
            raise InputError(f"weights with {', '.join(extra)}", ", ".join(shapes))
        for name, shape in shapes.items():
            if np.shape(weights[name]) != shape:
                raise InputError(f"weight {name} of shape {np.shape(weights[name])}", f"{shape} for this network")
            if not np.isfinite(weights[name]).all():
                raise NonFiniteError(f"weight {name} holds NaN or infinity", "finite numbers")
            if name.endswith("running_var") and np.min(weights[name]) < 0:
                raise InputError(f"a smallest value of {np.min(weights[name]):g} in {name}", "variances, 0 or more")

    def check_batch(self, inputs: np.ndarray, targets: np.ndarray) -> None:
        """Raises InputError or NonFiniteError unless a batch fits; its targets are class numbers, or states."""
        import numpy as np

        input_shape, targeted = np.shape(inputs), np.shape(targets)
        one = () if self.classes is not None else self.state_shape
        if input_shape[1:] != self.inputs or targeted != (*input_shape[:1], *one) or input_shape[0] == 0:
            expected = [", ".join(map(str, ("batch", *shape))) for shape in (self.inputs, one)]
            raise InputError(
                f"a batch of inputs {input_shape} and targets {targeted}",
                f"inputs ({expected[0]}) and as many targets ({expected[1]}), at least one",
            )
        if self.classes is not None and not np.isin(targets, np.arange(self.classes)).all():
            raise InputError(
                f"targets from {np.min(targets)} to {np.max(targets)}", f"whole numbers from 0 to {self.classes - 1}"
            )
        for name, array in (("inputs", inputs), ("targets", targets)):
            if not np.isfinite(array).all():
                raise NonFiniteError(f"the {name} of a batch hold NaN or infinity", "finite numbers")


def _is_list(value: object) -> bool:
    scalar = getattr(value, "shape", None) == ()  # an array of no axis calls itself iterable
    return isinstance(value, Iterable) and not isinstance(value, (str, bytes, dict)) and not scalar


def _law(name: str, shape: tuple[int, ...], activation: str, bottleneck: bool) -> tuple[float, float]:
    """Mean and standard deviation of a weight's start (He 2015 for ReLU, LeCun 1998 for tanh and linear layers)."""
    if ".norm" in name:
        return (1.0 if name.endswith("weight") else 0.0), 0.0
    if name.endswith("bias"):
        return 0.0, 0.1 if name.startswith("block.") else 0.0
    before_activation = ("conv1", "conv2") if bottleneck else ("conv1",)
    gain = 2.0 if activation == "relu" and any(part in name for part in before_activation) else 1.0
    return 0.0, math.sqrt(gain / math.prod(shape[1:]))
