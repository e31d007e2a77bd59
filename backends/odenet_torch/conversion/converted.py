"""What stands in a model converted for another solver: the first layer of a run computes all of it.

The others hand its result on. Over 250 lines: both stand in for a layer in the same way.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from odenet import Backprop, Checkpoint, ConversionError
from odenet.kit import tree_leaves
from odenet_torch.conversion.between_layers import StateBetweenLayers
from odenet_torch.conversion.calls import check_unchanged, leaving_no_trace
from odenet_torch.conversion.layer import Arguments, Layer, arguments_of, marks, same, written_to
from odenet_torch.gradients.adjoint import refuse_transforms
from odenet_torch.nets.modules import ResidualStack

_REGISTRIES = ("_modules", "_parameters", "_buffers")


class BranchBlock(nn.Module):
    """A branch of a layer as a block `x -> f(x)` of a `ResidualStack`. It holds what the branch reads of the layer."""

    def __init__(self, layer: Layer, index: int, arguments: Arguments) -> None:
        super().__init__()
        self.layer, self.index = layer, index
        self.count = len(layer.branches(*arguments))
        self.bind(arguments)

    def bind(self, arguments: Arguments) -> None:
        """Take what the layer holds now: a child, parameter or buffer may have been replaced.

        Raises:
            ConversionError: called like this, the layer has more or fewer branches than when it was converted.
        """
        branches, module = self.layer.branches(*arguments), self.layer.module
        if len(branches) != self.count:
            raise ConversionError(
                f"{type(module).__name__} has {len(branches)} residual branches when it is called like this, and had "
                f"{self.count} when it was converted",
                f"calls with {self.count}",
                "convert the model with an example that has these arguments",
            )
        names = branches[self.index].names
        for registry in _REGISTRIES:
            vars(self)[registry].update({n: value for n, value in vars(module)[registry].items() if n in names})
        if module._buffers and names.issuperset(module._buffers):
            self._buffers = module._buffers  # where the layer's own code runs, a copy put in the place of one is read
        plain = names.difference(*(vars(module)[registry] for registry in _REGISTRIES))
        vars(self).update({n: getattr(module, n) for n in plain})  # a tensor that is not registered
        self.training = module.training

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The branch's value at x."""
        return self.layer.branches(args, kwargs)[self.index].function(self, x, tree_leaves((args, kwargs)))


# of an entry itself: what stands in the layer's place when somebody replaces its call
_KEPT = frozenset({"forward", "training"})


def _annotated(kind: type) -> set[str]:
    """The attributes that the classes here have."""
    return {
        name for base in kind.__mro__ if base.__module__ == __name__ for name in vars(base).get("__annotations__", ())
    }


class _LayerStandIn(nn.Module):
    """In the place of a layer: with the layer's children, parameters, buffers and attributes under their names."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.layer = layer
        for registry in (*_REGISTRIES, "_non_persistent_buffers_set"):
            vars(self)[registry] = vars(layer.module)[registry]  # the same dictionaries: what changes one changes both
        self.training = layer.module.training

    def train(self, mode: bool = True) -> Self:
        """Switch the layer between training and evaluation, as `nn.Module.train` does."""
        self.layer.module.training = mode
        return super().train(mode)

    def __setattr__(self, name: str, value: Any) -> None:
        layer = vars(self).get("layer")
        mine = name in vars(self) or name in _KEPT or name in _annotated(type(self))
        if layer is None or mine or isinstance(value, (nn.Module, nn.Parameter)) or self._registered(name):
            super().__setattr__(name, value)
        else:
            setattr(layer.module, name, value)  # the layer's own code reads it there

    def __delattr__(self, name: str) -> None:
        if "layer" in vars(self) and name not in vars(self) and not self._registered(name):
            delattr(self.layer.module, name)
        else:
            super().__delattr__(name)

    def _registered(self, name: str) -> bool:
        return any(name in vars(self)[registry] for registry in _REGISTRIES)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__") or "layer" not in vars(self):  # while it is copied or unpickled
                raise
            return getattr(self.layer.module, name)


class FirstOfRun(_LayerStandIn):
    """The first layer of a converted run, which computes all of it.

    `stack` is the `ResidualStack` of the run's branches, with h = 1; its `stats` and `certificate` tell about the last
    pass. It is no submodule, so that every parameter keeps its one name.

    Args:
        layers: of the run.
        arguments: of a call of any of them, beside the state.
        tolerance: see `convert`; layers that are called in a new way are compared with their branches before.
        choices: `solver`, `gradient` and `along` of the stack.

    Shapes: as the layer's.

    Raises:
        ConversionError: an object that a branch may write to, such as a cache of keys and values, where branches are
            evaluated more than once; layers that, called in this way, are not the sum of their branches.
    """

    stack: ResidualStack
    run: tuple[Layer, ...]
    tolerance: float
    handed: tuple[weakref.ref[Tensor], list[Any]] | None
    following: int
    steps: list[BranchBlock]

    def __init__(self, layers: Sequence[Layer], arguments: Arguments, tolerance: float, **choices: Any) -> None:
        super().__init__(layers[0])
        self.run = tuple(layers)
        self.tolerance = tolerance
        self.handed = None  # a state and arguments, to layer `following`
        self.following = 1
        self.steps = [
            BranchBlock(layer, index, arguments) for layer in layers for index in range(len(layer.branches(*arguments)))
        ]
        stack = ResidualStack(self.steps, **choices)
        stack.t1 = float(len(self.steps) - (stack.along == "linear"))
        vars(self)["stack"] = stack  # not registered

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the last layer of the run would return."""
        x, arguments = arguments_of(self.layer.module, args, kwargs)
        written = written_to(arguments)
        once = isinstance(self.stack.gradient, Backprop) or not torch.is_grad_enabled()
        if written and not (once and self.stack.solver.label == "euler"):
            raise ConversionError(
                f"layers called with a {written}, which they may write to, while solver={self.stack.solver.label!r} "
                f"and gradient={self.stack.gradient.label!r} evaluate a layer more than once",
                "tensors, numbers, strings, None, and containers of these",
                "train without a cache (in transformers: use_cache=False); under torch.no_grad() a cache works",
            )
        self._refuse_hooks(once)
        for step in self.steps:
            step.bind(arguments)
        if not written and any(layer.fresh for layer in self.run):
            if torch._C._are_functorch_transforms_active() and not isinstance(self.stack.gradient, Backprop):
                refuse_transforms(f"gradient={self.stack.gradient.label!r}")  # what is compared has no values there
            self._check(x, arguments)
        self.stack.training = self.training
        state = self.stack(x, *arguments[0], **arguments[1])
        of = f"a run of {len(self.run)} {type(self.layer.module).__name__}"
        handed = StateBetweenLayers.of(state, of)
        self.handed, self.following = (weakref.ref(handed), marks(arguments)), 1
        return self.layer.returned(handed)

    def _refuse_hooks(self, once: bool) -> None:
        """What a hook takes from a pass that keeps no graph would have no gradient."""
        gradient = self.stack.gradient
        if once or (isinstance(gradient, Checkpoint) and gradient.states is None and gradient.memory is None):
            return
        for layer in self.run:
            for name, inner in layer.module.named_modules():
                if inner._forward_hooks or inner._forward_pre_hooks:
                    raise ConversionError(
                        f"forward hooks on {name or type(inner).__name__} of a converted "
                        f"{type(layer.module).__name__}, while gradient={gradient.label!r} with solver="
                        f"{self.stack.solver.label!r} keeps no graph for what they are given",
                        "hooks with gradient='checkpoint', or with solver='euler' and gradient='backprop'",
                        "remove the hooks, or take gradient='checkpoint'",
                    )

    def _check(self, x: Tensor, arguments: Arguments) -> None:
        """The layers and the sums of their branches give the same for a call like this."""
        modules = [layer.module for layer in self.run]
        expected, state = x, x
        with leaving_no_trace(modules):
            for layer in self.run:
                expected = layer.state(layer.module(expected, *arguments[0], **arguments[1]))
        with leaving_no_trace(modules):
            for step in self.steps:
                state = state + step(state, *arguments[0], **arguments[1])
        check_unchanged([expected], [state], f"{len(modules)} {type(modules[0]).__name__}", self.tolerance)
        for layer in self.run:
            layer.fresh = False

    def extra_repr(self) -> str:
        """How the layer is computed, which `print` shows."""
        return f"computes {len(self.run)} layers in {len(self.steps)} blocks, {self.stack.extra_repr()}"

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "handed": None}


class RestOfRun(_LayerStandIn):
    """A later layer of a converted run: hands on the state that the first one has computed.

    Args:
        layer: in whose place it stands.
        first: of the run.
        index: which layer of the run it is; the first is 0.

    Shapes: as the layer's.

    Raises:
        ConversionError: called with another state or other arguments than the run before it, or out of turn.
    """

    first: FirstOfRun
    index: int

    def __init__(self, layer: Layer, first: FirstOfRun, index: int) -> None:
        super().__init__(layer)
        self.index = index
        vars(self)["first"] = first  # not registered: it has its own place

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The state and arguments that the layer was called with."""
        x, arguments = arguments_of(self.layer.module, args, kwargs)
        first = self.first
        handed = first.handed if first.following == self.index else None
        if handed is None or handed[0]() is not x or not same(handed[1], marks(arguments)):
            raise ConversionError(
                f"layer {self.index} of a converted run of {len(first.run)} {type(self.layer.module).__name__} was "
                "called out of turn, or with another state or other arguments than the layer before it",
                "all layers of the run, one after the other",
                "leave a model that skips layers, or that does something between them, as it is",
            )
        first.following += 1
        if first.following == len(first.run):
            first.handed = None
            x = x.state
        return self.layer.returned(x)

    def extra_repr(self) -> str:
        """How the layer is computed, which `print` shows."""
        return f"computed by the first of {len(self.first.run)} layers"
