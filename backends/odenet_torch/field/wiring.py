"""The modules that a field calls, as they are wired: what they hold, and whether they still do.

A compiled graph is not Python that looks again at what it calls. What it is handed was looked up before; all of it is
compared in one go, since this is asked in every pass of a network of many small blocks.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from odenet import UnsupportedError
from odenet_torch.field.called_modules import changed, indifferent, state
from odenet_torch.field.surroundings import Surroundings, put_back, reach
from odenet_torch.field.written_on import sampled, version

_TABLES = ("_modules", "_parameters", "_buffers")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Wiring:
    """The modules in and behind some functions.

    Args:
        functions: modules among them, or what closes over modules.
    """

    def __init__(self, functions: Iterable[Any]) -> None:
        self.functions = tuple(functions)
        own = [f for f in self.functions if isinstance(f, nn.Module)]
        roots = [*own, *(module for f in self.functions for module in reach(f).modules)]
        modules = {id(module): module for root in roots for module in root.modules()}.values()
        self.own = [vars(module) for module in modules]
        self.hooks = [own[key] for own in self.own for key in _HOOKS if key in own]
        slots: list[tuple[dict[str, Any], str, Any]] = []
        self.sized = []
        self.names: dict[int, str] = {}
        self.parameters: list[Tensor] = []
        self.buffers: list[Tensor] = []
        for module, own in zip(modules, self.own, strict=True):
            for key in _TABLES:
                slots.append((own, key, own[key]))
                slots += [(own[key], name, value) for name, value in own[key].items()]
                self.sized.append(own[key])
            self._hold(self.parameters, module, own["_parameters"])
            if not indifferent(module):
                self._hold(self.buffers, module, own["_buffers"])
        self.sizes = [*map(len, self.sized)]
        self.owners, self.keys, self.values = [*zip(*slots, strict=True)] or [(), (), ()]
        self.wanted = [parameter.requires_grad for parameter in self.parameters]
        self.named = [dict(f.named_parameters()) if isinstance(f, nn.Module) else {} for f in self.functions]
        """The parameters of each function by name."""

    def _hold(self, held: list[Tensor], module: nn.Module, table: dict[str, Any]) -> None:
        for name, tensor in table.items():
            if tensor is not None and id(tensor) not in self.names:
                self.names[id(tensor)] = f"{name} of a {type(module).__name__}"
                held.append(tensor)

    def current(self) -> bool:
        """Whether all modules, parameters and buffers stand where they stood."""
        return (
            all(map(operator.is_, map(dict.get, self.owners, self.keys), self.values))
            and [*map(len, self.sized)] == self.sizes
            and [parameter.requires_grad for parameter in self.parameters] == self.wanted
        )

    def require_unhooked(self) -> None:
        """Raises UnsupportedError for hooks on a module, which a graph would not, or not always, run."""
        every = nn.modules.module
        shared = (
            every._global_forward_hooks,
            every._global_forward_pre_hooks,
            every._global_backward_hooks,
            every._global_backward_pre_hooks,
        )
        if any(self.hooks) or any(shared):
            raise UnsupportedError(
                "compile with equal steps of modules that have hooks, which a graph does not run as they are",
                "modules without forward and backward hooks",
                "remove the hooks, or leave out compile",
            )


class Looked:
    """What a field found in a forward pass whose steps are to run again.

    Args:
        wiring: of its functions.
        handed: further tensors that steps read.
    """

    def __init__(self, wiring: Wiring, handed: Iterable[Tensor]) -> None:
        self.wiring = wiring
        self.around = [Surroundings(getattr(f, "__name__", type(f).__name__), f) for f in wiring.functions]
        self.handed = [(tensor, version(tensor)) for tensor in {id(tensor): tensor for tensor in handed}.values()]
        self.before = self._now()

    def _now(self) -> tuple[list[Any], list[Any], list[Any]]:
        wiring = self.wiring
        held = [(version(tensor), sampled(tensor)) for tensor in wiring.buffers]
        return [own["training"] for own in wiring.own], [*map(state, wiring.parameters)], held

    def require_no_trace(self) -> None:
        """After the forward pass: raises UnsupportedError if the field left something by the side, and takes it away.

        A graph that runs steps again would leave it again, and not with the graph of autograd that it has in a loop.
        """
        left = [difference for around in self.around if not around.untouched() for difference in around.differences()]
        if left:
            put_back(left)
            where = ", ".join(dict.fromkeys(place.called(key) or "an attribute" for place, key, _, _ in left))
            raise UnsupportedError(
                f"compile of equal steps whose field leaves something by the side ({where}), with a gradient method "
                "that runs steps again",
                "fields that return their slope and leave nothing, or gradient='backprop'",
                "return it, or leave out compile",
            )

    def require_same(self) -> None:
        """Before the backward pass: raises GradientError if the field would not find what it found."""
        training, parameters, buffers = self._now()
        if training != self.before[0]:
            raise changed("a module of the field was switched between train() and eval()", "the same mode")
        for kind, tensors, then, now in (
            ("parameter", self.wiring.parameters, self.before[1], parameters),
            ("buffer", self.wiring.buffers, self.before[2], buffers),
        ):
            if then != now:
                tensor = next(tensor for tensor, a, b in zip(tensors, then, now, strict=True) if a != b)
                raise changed(f"the {kind} {self.wiring.names[id(tensor)]} was modified by an inplace operation")
        if any(version(tensor) != then for tensor, then in self.handed):
            raise changed("a tensor that the field is handed was modified by an inplace operation")
        for around in self.around:
            around.require_unwritten()
            if not around.untouched():
                place, key, _, _ = next(iter(around.differences()), (None, None, None, None))
                name = "" if place is None else f" ({place.called(key)})"
                raise changed(f"something that the field reads{name} was changed")
