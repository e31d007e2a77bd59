"""The modules that a field calls, as they are wired: what they hold, and whether they still do.

A compiled graph is not Python that looks again at what it calls. What it is handed was looked up before; all of it is
compared in one go, since this is asked in every pass of a network of many small blocks.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import Tensor, nn

from odenet import UnsupportedError
from odenet_torch.field.called_modules import ClassOfModule, changed, code_of, indifferent
from odenet_torch.field.knowledge import name_of
from odenet_torch.field.shared_hooks import present
from odenet_torch.field.stored_values import StoredValues, TensorStates
from odenet_torch.field.surroundings import Surroundings, put_back, reach
from odenet_torch.field.written_on import version

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
        self.classes = tuple(map(ClassOfModule.of, modules))
        self.code = StoredValues((), (), code_of(self.classes))
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
        self.contents: WiringContents | None = None
        """What can be reached from the functions, as it was last."""
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
            and self.code.stand()
            and [*map(len, self.sized)] == self.sizes
            and [parameter.requires_grad for parameter in self.parameters] == self.wanted
        )

    def require_unhooked(self) -> None:
        """Raises UnsupportedError for hooks on a module, which a graph would not, or not always, run."""
        if any(self.hooks) or present():
            raise UnsupportedError(
                "compile with equal steps of modules that have hooks, which a graph does not run as they are",
                "modules without forward and backward hooks",
                "remove the hooks, or leave out compile",
            )


class WiringContents:
    """What can be reached from some functions, and the tensors that it is to be seen of whether they are written on:
    for questions that are asked of all of them in every pass.

    Args:
        wiring: of the functions.
    """

    def __init__(self, wiring: Wiring) -> None:
        self.reaches = [reach(f) for f in wiring.functions]
        self._stored = StoredValues.joined([known.stored for known in self.reaches])
        self._others = [pair for known in self.reaches for pair in known.others]
        watched = [held for known in self.reaches for _, held in known.watched]
        self.tensors = TensorStates(
            [*wiring.parameters, *wiring.buffers, *(x for x in watched if isinstance(x, Tensor))]
        )
        self._arrays = [x for x in watched if isinstance(x, np.ndarray)]
        self._own = wiring.own
        self.compared: tuple[Any, dict[Any, Any]] | None = None
        """Of strides that a compiler has compared with what they were compiled for (`steps.shortcuts`): what all of
        them had, and what is known of each."""

    def stands(self) -> bool:
        """Whether all of it stands where it stood."""
        return self._stored.stand() and all([place.same(contents) for place, contents in self._others])

    def modes(self) -> list[bool]:
        """Of the modules, whether each is in training."""
        return [*map(_TRAINING, self._own)]

    def states(self) -> tuple[list[Any], Any, list[bytes]]:
        """What is equal as long as modules stay in their mode and nothing is written on."""
        return self.modes(), self.tensors.now(), [array.tobytes() for array in self._arrays]


_TRAINING = operator.itemgetter("training")


class ForwardReads:
    """What a field found in a forward pass whose steps are to run again.

    Args:
        wiring: of its functions.
        handed: further tensors that steps read.
    """

    def __init__(self, wiring: Wiring, handed: Iterable[Tensor]) -> None:
        self.wiring = wiring
        if wiring.contents is None or not wiring.contents.stands():
            wiring.contents = WiringContents(wiring)
        self.contents = wiring.contents
        self.handed = [(tensor, version(tensor)) for tensor in {id(tensor): tensor for tensor in handed}.values()]
        self.before = self.contents.states()

    @functools.cached_property
    def around(self) -> list[Surroundings]:
        """What each function can reach, as it was."""
        wiring, (_, tensors, arrays) = self.wiring, self.before
        states = iter(self.contents.tensors.apart(tensors)[len(wiring.parameters) + len(wiring.buffers) :])
        rest = iter(arrays)
        return [
            Surroundings(
                name_of(f),
                f,
                known,
                [next(states)[::2] if isinstance(x, Tensor) else next(rest) for _, x in known.watched],
            )
            for f, known in zip(wiring.functions, self.contents.reaches, strict=True)
        ]

    def require_no_trace(self) -> None:
        """After the forward pass: raises UnsupportedError if the field left something by the side, and takes it away.

        A graph that runs steps again would leave it again, and not with the graph of autograd that it has in a loop.
        """
        if self.contents.stands():
            return
        left = [difference for around in self.around for difference in around.differences()]
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
        now, wiring = self.contents.states(), self.wiring
        if not wiring.code.stand() or not self.contents.stands():
            for inner in wiring.classes:
                inner.require_same("a field")
        if now[0] != self.before[0]:
            raise changed("a module of the field was switched between train() and eval()", "the same mode")
        if now[1:] != self.before[1:]:
            apart = self.contents.tensors.apart
            states = zip(self.contents.tensors.tensors, apart(self.before[1]), apart(now[1]), strict=True)
            for n, (tensor, then, later) in enumerate(states):
                if n == len(wiring.parameters) + len(wiring.buffers):
                    break
                # of a buffer it does not matter whether it needs a gradient
                if then != later and (n < len(wiring.parameters) or then[::2] != later[::2]):
                    kind = "parameter" if n < len(wiring.parameters) else "buffer"
                    if then[::2] == later[::2]:
                        raise changed(f"requires_grad of the parameter {wiring.names[id(tensor)]} was changed")
                    raise changed(f"the {kind} {wiring.names[id(tensor)]} was modified by an inplace operation")
            for around in self.around:
                around.require_unwritten()
        if any([version(tensor) != then for tensor, then in self.handed]):
            raise changed("a tensor that the field is handed was modified by an inplace operation")
        if self.contents.stands():
            return
        for around in self.around:
            if not around.untouched():
                place, key, _, _ = next(iter(around.differences()), (None, None, None, None))
                name = "" if place is None else f" ({place.called(key)})"
                raise changed(f"something that the field reads{name} was changed")
