"""Networks that every backend can build from one spec and one set of named NumPy weights."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from odenet._errors import InputError, NonFiniteError
from odenet._names import lookup

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

_BLOCKS = {name: name for name in ("conv", "mlp", "linear")}
_NORMS = {name: name for name in ("group", "none")}
_ACTIVATIONS = {name: name for name in ("relu", "tanh")}
_ALONG = {name: name for name in ("piecewise", "linear", "shared")}
_STARTS = {name: name for name in ("smooth", "independent", "zero")}

GROUPS = 4  # of GroupNorm
NORM_EPSILON = 1e-5  # added to the variance, as torch and equinox do


@dataclass(frozen=True)
class NetSpec:
    """A residual network `y' = f(t, y, w(t))` between a stem and a head.

    Blocks:
        - "conv": `f = norm2(conv2(activation(norm1(conv1 y))))`, 3x3 convolutions that keep the size: the small
          residual network of Sander, Ablin and Peyre 2022. Stem: 5x5 with stride 3 (32x32 to 10x10), or 3x3 with
          stride 1 for images of less than 16 pixels. Head: mean over the image, then linear.
        - "mlp": `f = w2 activation(w1 y + b1) + b2`. Stem and head are linear.
        - "linear": `f = w y` (the paper's theory, section 3). Stem and head are linear.

    Args:
        block: which of these.
        depth: number of steps N; each is scaled by `horizon / depth`.
        width: channels (conv) or features.
        hidden: features inside an mlp block.
        inputs: shape of one input: (channels, height, width) for conv; anything else is flattened.
        classes: size of the output; None for no stem and no head (the state itself goes in and comes out).
        norm: "group" (4 groups) or "none" (convolutions then have a bias); for conv.
        activation: "relu" or "tanh".
        along: weights along depth, "piecewise" (N layers: ResNet), "linear" (N+1 nodes: HeunNet) or "shared".
        horizon: t1; 1 scales each step by 1/N, `depth` gives the plain ResNet with steps of 1.

    Raises:
        InputError: a size or a name that cannot be built.
    """

    block: Literal["conv", "mlp", "linear"] = "conv"
    depth: int = 8
    width: int = 16
    hidden: int = 16
    inputs: tuple[int, ...] = (1, 8, 8)
    classes: int | None = 10
    norm: Literal["group", "none"] = "group"
    activation: Literal["relu", "tanh"] = "relu"
    along: Literal["piecewise", "linear", "shared"] = "piecewise"
    horizon: float = 1.0

    def __post_init__(self) -> None:
        for kind, name, table in (
            ("block", self.block, _BLOCKS),
            ("norm", self.norm, _NORMS),
            ("activation", self.activation, _ACTIVATIONS),
            ("kind of weights along depth", self.along, _ALONG),
        ):
            lookup(kind, name, table)
        if not isinstance(self.inputs, Iterable):
            raise InputError(f"inputs={self.inputs!r} of a network", "the shape of one input, as in (1, 8, 8)")
        object.__setattr__(self, "inputs", tuple(self.inputs))
        sizes = {"depth": self.depth, "width": self.width, "hidden": self.hidden}
        sizes |= {f"inputs[{i}]": size for i, size in enumerate(self.inputs)}
        if self.classes is not None:
            sizes["classes"] = self.classes
        for name, size in sizes.items():
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise InputError(f"{name}={size!r} of a network", "a whole number, at least 1")
        if not isinstance(self.horizon, (int, float)) or not math.isfinite(self.horizon):
            raise InputError(f"horizon={self.horizon!r} of a network", "a finite number")
        if self.block == "conv" and len(self.inputs) != 3:
            raise InputError(f"inputs={self.inputs} for a conv network", "(channels, height, width)")
        if self.block == "conv" and self.norm == "group" and self.width % GROUPS:
            raise InputError(f"width={self.width} with group normalisation", f"multiples of {GROUPS}", "or norm='none'")
        if self.classes is None and self.state_shape != self._flat_inputs:
            raise InputError(
                f"inputs={self.inputs} for a network without stem (classes=None)", f"inputs of shape {self.state_shape}"
            )

    @property
    def layers(self) -> int:
        """Length of the leading axis of the blocks' weights."""
        return {"piecewise": self.depth, "linear": self.depth + 1, "shared": 1}[self.along]

    @property
    def _flat_inputs(self) -> tuple[int, ...]:
        return self.inputs if self.block == "conv" else (math.prod(self.inputs),)

    @property
    def stem(self) -> tuple[int, int, int]:
        """Kernel, stride and padding of a conv network's stem."""
        return (5, 3, 0) if min(self.inputs[1:]) >= 16 else (3, 1, 1)

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Shape of the state of one input."""
        if self.block != "conv":
            return (self.width,)
        if self.classes is None:
            return (self.width, *self.inputs[1:])
        kernel, stride, padding = self.stem
        return (self.width, *((size + 2 * padding - kernel) // stride + 1 for size in self.inputs[1:]))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every weight by name. Those of the blocks (`block.*`) have a leading axis of `layers`."""
        block = {name: (self.layers, *shape) for name, shape in self._block_shapes().items()}
        if self.classes is None:
            return block
        if self.block == "conv":
            stem = (self.width, self.inputs[0], self.stem[0], self.stem[0])
        else:
            stem = (self.width, *self._flat_inputs)
        ends = {"stem.weight": stem, "stem.bias": (self.width,)}
        return ends | block | {"head.weight": (self.classes, self.width), "head.bias": (self.classes,)}

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
        shapes: dict[str, tuple[int, ...]] = {}
        for i in (1, 2):
            shapes[f"block.conv{i}.weight"] = (self.width, self.width, 3, 3)
            if self.norm == "group":
                shapes |= {f"block.norm{i}.weight": (self.width,), f"block.norm{i}.bias": (self.width,)}
            else:
                shapes[f"block.conv{i}.bias"] = (self.width,)
        return shapes

    def init(self, seed: int = 0, start: Literal["smooth", "independent", "zero"] = "smooth") -> dict[str, np.ndarray]:
        """Random weights in float64.

        Args:
            seed: of NumPy's generator.
            start: "smooth": the blocks' weights are one smooth random function of depth, read at the layers, so that
                the network has a limit as it gets deeper; "independent": each layer drawn on its own;
                "zero": independent, with the last normalisation (or layer) at zero, so that blocks start at 0.
        """
        import numpy as np

        lookup("start", start, _STARTS)
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise InputError(f"seed={seed!r}", "a whole number, at least 0")
        generator = np.random.default_rng(seed)
        steps = np.arange(self.layers) / self.depth  # depth of each layer, in [0, 1]
        weights: dict[str, np.ndarray] = {}
        for name, shape in self.shapes().items():
            in_block = name.startswith("block.")
            single = shape[1:] if in_block else shape
            mean, scale = _law(name, single, self.activation)
            if in_block and start == "smooth":
                first, second = (scale * generator.standard_normal(single) for _ in range(2))
                angle = (np.pi / 2 * steps).reshape(-1, *[1] * len(single))
                weights[name] = mean + np.cos(angle) * first + np.sin(angle) * second
            else:
                weights[name] = mean + scale * generator.standard_normal(shape)
            if start == "zero" and name in self._last():
                weights[name] = np.zeros(shape)
        return weights

    def _last(self) -> tuple[str, ...]:
        if self.block == "linear":
            return ("block.weight",)
        if self.block == "mlp":
            return ("block.linear2.weight", "block.linear2.bias")
        last = "norm2" if self.norm == "group" else "conv2"
        return (f"block.{last}.weight", f"block.{last}.bias")

    def check(self, weights: Mapping[str, np.ndarray]) -> None:
        """Raises InputError or NonFiniteError unless `weights` are those of this spec."""
        import numpy as np

        shapes = self.shapes()
        if missing := sorted(shapes.keys() - weights.keys()):
            raise InputError(f"weights without {', '.join(missing)}", ", ".join(shapes))
        if extra := sorted(weights.keys() - shapes.keys()):
            raise InputError(f"weights with {', '.join(extra)}", ", ".join(shapes))
        for name, shape in shapes.items():
            if np.shape(weights[name]) != shape:
                raise InputError(f"weight {name} of shape {np.shape(weights[name])}", f"{shape} for this network")
            if not np.isfinite(weights[name]).all():
                raise NonFiniteError(f"weight {name} holds NaN or infinity", "finite numbers")

    def check_batch(self, inputs: np.ndarray, targets: np.ndarray) -> None:
        """Raises InputError or NonFiniteError unless a batch fits; its targets are class numbers, or states."""
        import numpy as np

        found, targeted = np.shape(inputs), np.shape(targets)
        one = () if self.classes is not None else self.state_shape
        if found[1:] != self.inputs or targeted != (*found[:1], *one) or found[0] == 0:
            expected = [", ".join(map(str, ("batch", *shape))) for shape in (self.inputs, one)]
            raise InputError(
                f"a batch of inputs {found} and targets {targeted}",
                f"inputs ({expected[0]}) and as many targets ({expected[1]}), at least one",
            )
        if self.classes is not None and not np.isin(targets, np.arange(self.classes)).all():
            raise InputError(
                f"targets from {np.min(targets)} to {np.max(targets)}", f"whole numbers from 0 to {self.classes - 1}"
            )
        for name, array in (("inputs", inputs), ("targets", targets)):
            if not np.isfinite(array).all():
                raise NonFiniteError(f"the {name} of a batch hold NaN or infinity", "finite numbers")


def _law(name: str, shape: tuple[int, ...], activation: str) -> tuple[float, float]:
    """Mean and standard deviation of a weight's start (He 2015 for ReLU, LeCun 1998 for tanh and linear layers)."""
    if ".norm" in name:
        return (1.0 if name.endswith("weight") else 0.0), 0.0
    if name.endswith("bias"):
        return 0.0, 0.1 if name.startswith("block.") else 0.0
    gain = 2.0 if activation == "relu" and "conv1" in name else 1.0
    return 0.0, math.sqrt(gain / math.prod(shape[1:]))
