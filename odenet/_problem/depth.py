"""Weights along depth: what turns one field f(t, y, w) into a network of layers.

Over 250 lines: one class, and the checks of the leaves, indices and factors that it is given.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from odenet import _tree
from odenet._check import within, yes_or_no
from odenet._errors import DepthError, shown
from odenet._names import lookup

Kind = Literal["shared", "piecewise", "linear"]
_KINDS: dict[str, Kind] = {"shared": "shared", "piecewise": "piecewise", "linear": "linear"}


def kind_of_blocks(along: str | None, stages: int) -> Kind:
    """How a list of residual blocks lies along depth: "piecewise" or "linear".

    Args:
        along: the kind; None takes "piecewise" for a solver of one stage (ResNet) and "linear" for others (HeunNet).
        stages: of the solver.
    """
    if along is None:
        return "piecewise" if stages == 1 else "linear"
    return lookup("kind of blocks along depth", along, {name: _KINDS[name] for name in ("piecewise", "linear")})


@dataclass(frozen=True)
class Depth:
    """A tree of weights as a function of depth.

    - `Depth(tree)`: the same weights at all depths (a tied network).
    - `Depth(tree, "piecewise")`: leaves have a leading axis of L layers; layer n holds from step n to n+1. A ResNet
      of N blocks is Euler's method with N of them.
    - `Depth(tree, "linear")`: leaves have a leading axis of L nodes with straight lines between them: L-1 intervals.
      HeunNet reads w[n] and w[n+1] in step n, so N blocks are N-1 steps.
    - `Depth.each(layers, kind)`: a list of trees, one a layer, instead of stacked leaves. The same tree may stand at
      several places (tied layers).

    Leaves without a shape (functions, numbers) are the same at all depths. Integers, booleans and random keys have no
    straight line between them, and no mean: those of a node hold up to the next one, and of layers that `coarsen`
    makes one, those of the first.

    Args:
        tree: the weights.
        kind: "shared", "piecewise" or "linear".
        stacked: whether leaves have a leading axis; False where `tree` is a tuple with one tree a layer.

    Raises:
        DepthError: leaves that do not agree on the number of layers, or too few of them.
    """

    tree: Any
    kind: Kind = "shared"
    stacked: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", lookup("kind of depth", self.kind, _KINDS))
        yes_or_no("stacked", self.stacked)
        _tree.require_finite_tree("weights", self.tree)
        if not self.stacked and not isinstance(self.tree, tuple):
            raise DepthError(f"layers as a {type(self.tree).__name__}", "a tuple with one tree a layer", "Depth.each")
        if self.kind == "shared":
            return
        if self.stacked:
            sizes = {_length(path, leaf) for path, leaf in _tree.paths(self.tree) if _is_array(leaf)}
        else:
            sizes = {len(self.tree)}
            first, others = self.tree[0], self.tree[1:]
            if others and _tree.leaf(first):  # a block: many of few classes, each of which is a leaf or is not
                others = {type(layer): layer for layer in others}.values()
            if any(not _tree.same_shape(first, layer) for layer in others):
                raise DepthError("the layers are trees of different containers or keys", "one tree of weights a layer")
        if len(sizes) != 1:
            shapes = ", ".join(f"{p}: {tuple(x.shape)}" for p, x in _tree.paths(self.tree) if _is_array(x))
            raise DepthError(
                f"the leaves do not agree on the number of layers ({shapes or 'there are none'})",
                "leaves with the same leading axis, one entry a layer",
            )
        least = 2 if self.kind == "linear" else 1
        if self.layers < least:
            raise DepthError(f"{self.kind} weights with {self.layers} layers", f"at least {least}")

    @classmethod
    def each(cls, layers: Sequence[Any], kind: Kind = "piecewise") -> Depth:
        """Weights given as a list with one tree a layer."""
        if isinstance(layers, (str, bytes, dict)) or not isinstance(layers, Iterable) or _is_scalar(layers):
            raise DepthError(f"layers as a {type(layers).__name__}", "a list with one tree of weights a layer")
        layers = tuple(layers)
        if not layers:
            raise DepthError("an empty list of layers", "at least one layer")
        return cls(layers, kind, stacked=False)

    @functools.cached_property  # asked for in every step
    def layers(self) -> int:
        """Number of layers (piecewise) or nodes (linear); 1 for shared weights."""
        if self.kind == "shared":
            return 1
        if not self.stacked:
            return len(self.tree)
        return next(int(leaf.shape[0]) for leaf in _tree.leaves(self.tree) if _is_array(leaf))

    @functools.cached_property
    def intervals(self) -> int | None:
        """The natural number of steps; None for shared weights, which fit any."""
        return {"shared": None, "piecewise": self.layers, "linear": self.layers - 1}[self.kind]

    def at(self, n: int) -> Any:
        """The tree of weights of layer (or node) n, counted from 0."""
        n = _index_of(n)
        if self.kind == "shared":
            return self.tree
        if not 0 <= n < self.layers:
            raise DepthError(f"layer {shown(n)} of {self.layers}", f"0 to {self.layers - 1}")
        if not self.stacked:
            return self.tree[n]
        return self._arrays(lambda leaf: leaf[n])

    def between(self, n: int, position: float) -> Any:
        """The tree of weights at `position` in [0, 1] within step n."""
        place = within("position", position, 0.0, 1.0, least=True, of="a step")
        if self.kind != "linear" or place == 0:
            return self.at(n)
        return blend(self.at(n), self.at(_index_of(n) + 1), place)

    def refine(self, factor: int) -> Depth:
        """Each layer or interval cut into `factor`: the same function of depth, for a network `factor` times as deep.

        Piecewise layers are repeated, linear ones interpolated. This starts a deep network from a shallow one.
        """
        k = _factor(factor)
        if self.kind == "shared" or k == 1:
            return self
        if k * (self.intervals or 1) > _MOST:
            raise DepthError(
                f"{self.layers} layers refined by {shown(k)}", f"at most {_MOST} layers", "leave deep weights coarse"
            )
        if not self.stacked:
            return Depth(tuple(self._refined_layers(k)), self.kind, stacked=False)
        if self.kind == "piecewise":
            places = [n for n in range(self.layers) for _ in range(k)]
            return self._with(lambda leaf: leaf[_index(places)])
        # node m k + j is the mean of k picks, of which the first is of node m: k - j of node m and j of node m + 1
        count = (self.layers - 1) * k + 1
        picks = [[i // k + (r >= k - i % k) for i in range(count)] for r in range(k)]
        return self._with(lambda leaf: _mean([leaf[_index(places)] for places in picks[: k if mixes(leaf) else 1]]))

    def coarsen(self, factor: int) -> Depth:
        """The inverse of `refine`: the mean of each `factor` piecewise layers, or every `factor`-th linear node.

        Of integers, booleans and random keys of piecewise layers the first of each `factor`: they have no mean.
        """
        k = _factor(factor)
        if self.kind == "shared" or k == 1:
            return self
        if (self.intervals or 0) % k:
            raise DepthError(f"{self.intervals} intervals cannot be coarsened by {k}", f"divisors of {self.intervals}")
        if not self.stacked:
            groups = [self.tree[n : n + k] for n in range(0, self.layers, k)]
            means = [_tree.map(lambda *leaves: _mean(leaves), *group) for group in groups if len(group) == k]
            return Depth(self.tree[::k] if self.kind == "linear" else tuple(means), self.kind, stacked=False)
        if self.kind == "linear":
            return self._with(lambda leaf: leaf[::k])
        return self._with(lambda leaf: _mean([leaf[r::k] for r in range(k if mixes(leaf) else 1)]))

    def factor(self, steps: int) -> int:
        """How many of `steps` equal steps each layer or interval spans; 1 for shared weights.

        Raises:
            DepthError: `steps` is no multiple of the layers or intervals.
        """
        _factor(steps, "steps=")
        if self.intervals is None:
            return 1
        if steps % self.intervals:
            parts = "layers" if self.kind == "piecewise" else f"intervals ({self.layers} nodes)"
            raise DepthError(
                f"steps={shown(steps)} with {self.kind} weights of {self.intervals} {parts}",
                f"steps that are a multiple of {self.intervals}",
                f"leave steps out to take {self.intervals}, or refine/coarsen the weights",
            )
        return steps // self.intervals

    def place(self, n: int, steps: int) -> tuple[int, float, float]:
        """Step n of `steps`: its layer or interval, where in it the step starts, and how much of it the step spans."""
        k, n = self.factor(steps), _index_of(n)
        if not 0 <= n < steps:
            raise DepthError(f"step {shown(n)} of {shown(steps)}", f"0 to {shown(steps - 1)}")
        return (0, 0.0, 1.0) if self.kind == "shared" else (n // k, (n % k) / k, 1 / k)

    def fit(self, steps: int) -> Depth:
        """Refined to `steps` steps (see `factor`)."""
        return self.refine(self.factor(steps))

    def _refined_layers(self, k: int) -> list[Any]:
        if self.kind == "piecewise":
            return [layer for layer in self.tree for _ in range(k)]
        inner = [self.between(n, j / k) for n in range(self.layers - 1) for j in range(k)]
        return [*inner, self.tree[-1]]

    def _arrays(self, function: Callable[[Any], Any]) -> Any:
        return _tree.map(lambda leaf: function(leaf) if _is_array(leaf) else leaf, self.tree)

    def _with(self, function: Callable[[Any], Any]) -> Depth:
        return Depth(self._arrays(function), self.kind)


def blend(one: Any, other: Any, position: Any) -> Any:
    """`(1 - position) one + position other`, leaf by leaf; exactly an end where position is 0 or 1.

    Of leaves that have no line between them (see `mixes`) one's, up to position 1.
    """
    if position == 0:
        return one
    if position == 1:
        return other
    return _tree.map(lambda a, b: (1 - position) * a + position * b if mixes(a) else a, one, other)


def mixes(leaf: Any) -> bool:
    """Whether there is a straight line between two leaves of its kind: between floating point and complex numbers, and
    not between integers, booleans or random keys."""
    return _is_array(leaf) and _has_lines(getattr(leaf, "dtype", "float"))


@functools.lru_cache(maxsize=64)
def _has_lines(dtype: Any) -> bool:
    name = str(dtype)  # as each framework calls it: torch.bfloat16, float32, complex64, key<fry>
    return "float" in name or "complex" in name


def check_alike(layers: Sequence[Any]) -> None:
    """Layers can be mixed or stacked: arrays have the same shape in all, and what has no shape is the same in all.

    Raises:
        DepthError: naming the first weight that differs.
    """
    for n, layer in enumerate(layers):
        for (path, one), other in zip(_tree.paths(layers[0]), _tree.leaves(layer), strict=True):
            kinds = [f"an array of shape {tuple(x.shape)}" if _is_array(x) else repr(x) for x in (one, other)]
            if kinds[0] != kinds[1] if _is_array(one) or _is_array(other) else not (one is other or one == other):
                raise DepthError(
                    f"the weight {path} is {kinds[0]} in layer 0 and {kinds[1]} in layer {n}",
                    "arrays of the same shape in all layers; what is no array, the same in all",
                    "make numbers that change with depth arrays; piecewise layers in torch may differ",
                )


def _is_array(leaf: Any) -> bool:
    try:
        return hasattr(leaf, "shape")
    except RuntimeError as error:  # as of torch's nested tensors
        raise DepthError(f"a weight is a {type(leaf).__name__} that has no shape ({error})", "arrays") from error


def _is_scalar(value: Any) -> bool:
    return getattr(value, "shape", None) == ()


def _length(path: str, leaf: Any) -> int:
    if len(leaf.shape) == 0:
        raise DepthError(f"the weight {path} is a scalar without an axis of layers", "leaves with a leading layer axis")
    return int(leaf.shape[0])


_MOST = 10**8  # layers: what is more is a slip, and would be a list of gigabytes


def _factor(factor: Any, name: str = "a factor of ") -> int:
    try:
        whole = operator.index(factor)
    except (TypeError, ValueError, RuntimeError):
        whole = 0
    if isinstance(factor, bool) or whole < 1:
        raise DepthError(f"{name}{shown(factor)}", "a whole number, at least 1")
    return whole


def _index_of(n: Any) -> int:
    try:
        return operator.index(n)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DepthError(f"layer {shown(n)}, a {type(n).__name__}", "a whole number, counted from 0") from error


def _index(places: list[int]) -> Any:
    import numpy as np  # an integer array is what every framework indexes with

    return np.asarray(places)


def _mean(leaves: Sequence[Any]) -> Any:
    if len(leaves) == 1 or not mixes(leaves[0]):
        return leaves[0]
    return functools.reduce(operator.add, leaves) * (1 / len(leaves))
