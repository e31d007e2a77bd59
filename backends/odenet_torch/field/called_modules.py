"""A module that the field called in the forward pass, and whether it still is what it was.

Over 250 lines: all that a module is known by stands beside how it is compared.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils import parametrize

from odenet import GradientError
from odenet_torch.field.differentiating import reading_values
from odenet_torch.field.state import Leaves
from odenet_torch.field.written_on import changed as changed
from odenet_torch.field.written_on import sampled, version

Owned = tuple[nn.Module, str]


@contextlib.contextmanager
def uncached() -> Iterator[None]:
    """Inside, a parametrized weight is computed where it is read, and not found in `parametrize.cached()`, where it may
    have been put without a graph, or by a graph of torch.compile."""
    before = parametrize._cache_enabled
    parametrize._cache_enabled = 0
    try:
        yield
    finally:
        parametrize._cache_enabled = before


class ClassOfModule(NamedTuple):
    """A module, and the code that it ran by."""

    module: nn.Module
    kind: type
    forward: Any
    leaf: bool
    """Whether it had no modules in it."""

    @classmethod
    def of(cls, module: nn.Module) -> ClassOfModule:
        """As it is now; a converted layer is what it was before."""
        own = type(module)
        kind = vars(own).get("_odenet_base", own)
        return cls(module, kind, getattr(kind, "forward", None), not module._modules)

    def require_same(self, name: str) -> None:
        """Raises GradientError where the class was changed, as parametrizations do, or its code."""
        _, kind, forward, leaf = self.of(self.module)
        if kind is not self.kind:
            raise changed(f"the class of a {self.kind.__name__} in {name} was changed to {kind.__name__}")
        if forward != self.forward and _made_of(forward) is not _made_of(self.forward):
            raise changed(f"the method forward of {kind.__name__} in {name} was replaced")
        if self.leaf and not leaf:
            raise changed(f"a {kind.__name__} in {name} was given modules of its own")


def _made_of(method: Any) -> Any:
    """A `functools.partialmethod`, which makes another function each time that a class is asked for it; else itself."""
    return getattr(method, "__partialmethod__", getattr(method, "_partialmethod", method))


def code_of(classes: Iterable[ClassOfModule]) -> list[tuple[Any, str, Any]]:
    """Where the method `forward` of each class stands, and what stands there."""
    owners = {base for kind in {inner.kind for inner in classes} for base in kind.__mro__ if "forward" in vars(base)}
    return [(vars(base), "forward", vars(base)["forward"]) for base in owners]


@dataclass(frozen=True)
class ModuleSnapshot:
    """What a module held when it was called.

    Args:
        name: for messages.
        module: itself.
        classes: those of the module and of those in it.
        training: their flags.
        parameters: with their versions, whether they want a gradient, and a sample of their values.
        buffers: those that matter to what the module returns, with their versions and samples of their values.
    """

    name: str
    module: nn.Module
    classes: tuple[ClassOfModule, ...]
    training: tuple[bool, ...]
    parameters: tuple[tuple[Owned, Tensor, int, bool, Any], ...]
    buffers: tuple[tuple[Owned, Tensor, int, Any], ...]

    @classmethod
    def now(cls, name: str, module: nn.Module) -> ModuleSnapshot:
        """A snapshot of the module as it is now."""
        parameters, buffers = [], []
        inside = within(module)
        for inner in inside:
            for key, tensor in inner._parameters.items():
                if tensor is not None:
                    parameters.append(((inner, key), tensor, *state(tensor)))
            for key, tensor in inner._buffers.items():
                if tensor is not None and not indifferent(inner):
                    buffers.append(((inner, key), tensor, version(tensor), sampled(tensor)))
        training = tuple([inner.training for inner in inside])
        return cls(name, module, tuple(map(ClassOfModule.of, inside)), training, tuple(parameters), tuple(buffers))

    def require_unchanged(self, copied: Collection[tuple[int, str]], moves: bool) -> None:
        """Looks whether it would return now what it returned then.

        Args:
            copied: buffers of which there are copies, by `id` of the owner and name.
            moves: whether it may hold other parameters now, because it will be called with those of then.

        Raises:
            GradientError: it would not.
        """
        for inner in self.classes:
            inner.require_same(self.name)
        # modules that were put in the places of these are not called when it runs again
        if tuple([inner.module.training for inner in self.classes]) != self.training:
            raise changed(f"{self.name} was switched between train() and eval()", "the same mode")
        for (owner, key), tensor, before, requires_grad, values in self.parameters:
            if version(tensor) != before or sampled(tensor) != values:
                raise changed(f"the parameter {key} of {self.name} was modified by an inplace operation")
            if tensor.requires_grad != requires_grad:
                raise changed(f"requires_grad of the parameter {key} of {self.name} was changed")
            if not moves and owner._parameters.get(key) is not tensor:
                raise changed(f"{self.name}, which the field calls, was given another parameter {key}")
        for (owner, key), tensor, before, values in self.buffers:
            same = buffer_of(owner, key) is tensor and version(tensor) == before and sampled(tensor) == values
            if not same and (id(owner), key) not in copied:
                raise changed(f"the buffer {key} of {self.name} was changed")


def held(module: nn.Module) -> dict[int, tuple[type, Tensor]]:
    """The parameters of a module, and of what class each is, by `id`."""
    inside = (p for inner in within(module) for p in inner._parameters.values() if p is not None)
    return {id(p): (type(p), p) for p in inside}


def require_held(name: str, module: nn.Module, before: dict[int, tuple[type, Tensor]]) -> None:
    """Looks whether a module that has run for the first time had the parameters that it has now.

    Raises:
        GradientError: it has made one, as lazy modules do, and would make another when it runs again.
    """
    for inner in within(module):
        for key, parameter in inner._parameters.items():
            if parameter is not None and before.get(id(parameter), (None,))[0] is not type(parameter):
                raise GradientError(
                    f"{name} makes the parameter {key} of {type(inner).__name__} in its first evaluation, and is to "
                    "run again",
                    "modules that have their parameters before the solve",
                    "call the field once before, under torch.no_grad(); or take gradient='backprop'",
                )


def require_whole(name: str, module: nn.Module, *, itself: bool = True) -> None:
    """Looks whether a module that is to run again is sharded by itself, or has a part that is (`fully_shard`).

    It gathers its weights for each call, and hooks of its own average their gradients over processes when autograd has
    them: not where they are handed over by a backward pass of ours, and each process would go on with its own.

    Args:
        name: for messages.
        module: itself.
        itself: whether it is called, with its hooks, and not its parts alone.

    Raises:
        GradientError: it is.
    """
    sharding: Any = sys.modules.get("torch.distributed.fsdp")
    kind = getattr(sharding, "FSDPModule", None)  # since torch 2.6
    if kind is not None and any(isinstance(inner, kind) for inner in within(module)[not itself :]):
        raise GradientError(
            f"{name} is sharded by itself, or in parts, by fully_shard, and is to run again: the gradients of its "
            "weights would not be averaged over processes",
            "fully_shard of the network as a whole, or of converted layers",
            "shard what stands around the solve, or take gradient='backprop'",
        )


def state(parameter: Tensor) -> tuple[int, bool, Any]:
    """What tells whether a parameter was written on, frozen or thawed: version, `requires_grad`, and a sample."""
    return version(parameter), parameter.requires_grad, sampled(parameter)


def require_same(
    name: str,
    out: Leaves,
    again: Leaves,
    amplified: Callable[[], Sequence[float]] | None = None,
    *,
    halves: bool = False,
) -> None:
    """Looks whether a module gave the same when it ran again.

    Args:
        name: of it.
        out, again: what it gave.
        amplified: by how much that may be off by rounding (see `field.witness`); asked for where it is not the same.
        halves: whether it computes in 16 bits, of whatever type its output is.

    Raises:
        GradientError: it did not.
    """
    for i, (one, other) in enumerate(zip(map(_value, out), map(_value, again), strict=True)):
        if not (one.is_floating_point() or one.is_complex()):
            one, other = one.double(), other.double()
        apart = torch.linalg.vector_norm((one - other).flatten())
        size = torch.linalg.vector_norm(one.flatten())
        with reading_values(f"the first pass of {name}, whose values are looked at,", "fields that have run before"):
            eps = torch.finfo(torch.bfloat16 if halves else one.dtype).eps
            off = bool(apart > eps**0.5 * size)
        if off and not (amplified is not None and float(apart) <= amplified()[i]):
            raise GradientError(
                f"{name} is not a function of its inputs: run again on the same ones, with the same random state "
                f"and buffers, it is off by {float(apart / size):.1e} of its output",
                "blocks that give the same for the same",
                "look for a counter, a generator of its own, or something it reads from outside; "
                "or take gradient='backprop', which runs each block once",
            )


def _value(leaf: Tensor) -> Tensor:
    return leaf.detach()


def buffer_of(module: nn.Module, name: str) -> Tensor | None:
    """The buffer of that name now; TorchScript has no dict of them."""
    buffers = module._buffers
    return buffers[name] if name in buffers else None


def indifferent(module: nn.Module) -> bool:
    """Whether the buffers that this module changes do not matter to what it returns."""
    return isinstance(module, (_BatchNorm, _InstanceNorm)) and module.training


def within(module: nn.Module) -> list[nn.Module]:
    """A module and those in it, once each, as `module.modules()` has them, which is asked several times in every pass
    of every layer, and takes ten times as long to name them."""
    inside: dict[nn.Module, None] = {}
    rest: list[nn.Module | None] = [module]
    while rest:
        inner = rest.pop()
        if inner is not None and inner not in inside:
            inside[inner] = None
            rest += reversed(inner._modules.values())
    return [*inside]
