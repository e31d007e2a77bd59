"""Convolutional residual blocks, and the ordinary ones in the stages around the deep stage of a `NetSpec`."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Protocol

Shapes = dict[str, tuple[int, ...]]
EXPANSION = 4  # channels of a bottleneck block over those inside it (He 2016)


class Staged(Protocol):
    """What of a `NetSpec` says how its stages look."""

    @property
    def block(self) -> str:
        """The kind of block that the stage is made of."""
        ...

    @property
    def norm(self) -> str:
        """Normalisation of its convolutions."""
        ...

    @property
    def width(self) -> int:
        """Channels of the deep stage."""
        ...

    @property
    def before(self) -> tuple[int, ...]:
        """Blocks in each stage before the deep one."""
        ...

    @property
    def after(self) -> tuple[int, ...]:
        """Blocks in each stage after it."""
        ...


@dataclass(frozen=True)
class Unit:
    """An ordinary residual block, `p(y) + f(y)`: backpropagated, and with steps of 1.

    Args:
        name: how the names of its weights begin.
        channels, width: coming in and going out; where they differ, or the stride is not 1, `p` is a convolution of
            size 1 with that stride and a normalisation. Else it is the identity.
        stride: 2 halves the image.
    """

    name: str
    channels: int
    width: int
    stride: int

    @property
    def projects(self) -> bool:
        """Whether `p` is a convolution."""
        return self.channels != self.width or self.stride != 1

    def shapes(self, spec: Staged) -> Shapes:
        """The shapes of its weights by name."""
        shapes = block_shapes(spec, self.channels, self.width)
        if self.projects:
            shapes |= {"project.weight": (self.width, self.channels, 1, 1)} | _norm(spec, "project.", self.width)
        return {self.name + name: shape for name, shape in shapes.items()}


def units(spec: Staged) -> tuple[tuple[Unit, ...], tuple[Unit, ...]]:
    """The ordinary blocks before and after the deep stage; those before end with its first block, which gives it its
    size. A stage has twice the channels and half the height and width of the one before it."""
    first = len(spec.before)
    stages: list[list[Unit]] = []
    channels = stem_width(spec)
    for place, count in enumerate((*spec.before, 1, *spec.after)):
        name = {True: f"before{place}", False: f"after{place - first - 1}"}[place < first]
        width = spec.width * 2**place // 2**first
        members: list[Unit] = []
        for number in range(count):
            unit = "transition." if place == first else f"{name}.{number}."
            members.append(Unit(unit, channels, width, 2 if place and not number else 1))
            channels = width
        stages.append(members)
    before = stages[: first + 1] if first else []
    return tuple(chain.from_iterable(before)), tuple(chain.from_iterable(stages[first + 1 :]))


def stem_width(spec: Staged) -> int:
    """Channels behind the stem."""
    if not spec.before:
        return spec.width
    narrowest = spec.width // 2 ** len(spec.before)
    return narrowest // EXPANSION if spec.block == "bottleneck" else narrowest


def block_shapes(spec: Staged, channels: int, width: int) -> Shapes:
    """The shapes of the weights of one convolutional residual function f, by name."""
    if spec.block == "bottleneck":
        inner = width // EXPANSION
        kernels = [(inner, channels, 1, 1), (inner, inner, 3, 3), (width, inner, 1, 1)]
    else:
        kernels = [(width, channels, 3, 3), (width, width, 3, 3)]
    shapes: Shapes = {}
    for i, kernel in enumerate(kernels, 1):
        shapes[f"conv{i}.weight"] = kernel
        shapes |= _norm(spec, f"norm{i}.", kernel[0]) if spec.norm != "none" else {f"conv{i}.bias": kernel[:1]}
    return shapes


def last(spec: Staged) -> tuple[str, ...]:
    """Names of the weights of a convolutional f that make it 0 where they are 0."""
    number = 3 if spec.block == "bottleneck" else 2
    kind = "norm" if spec.norm != "none" else "conv"
    return f"{kind}{number}.weight", f"{kind}{number}.bias"


def _norm(spec: Staged, name: str, width: int) -> Shapes:
    """A normalisation, or the bias in its place."""
    if spec.norm == "none":
        return {f"{name}bias": (width,)}
    name = name if name.startswith("norm") else f"{name}norm."
    return {f"{name}weight": (width,), f"{name}bias": (width,)}
