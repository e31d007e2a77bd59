"""Half-precision weights that many steps read: what the steps add to their gradients adds up in float32.

Autograd adds in the number type of the weight. In bfloat16, with 8 bits, a sum stops to grow at 256 times what is
added, and a thousand steps leave nothing right in it.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from odenet_torch.field.differentiating import transformed
from odenet_torch.field.outer_data import LIBRARIES
from odenet_torch.field.places import ClosureCell
from odenet_torch.field.surroundings import reach

HALF = frozenset((torch.bfloat16, torch.float16))
Slot = tuple[Any, Any, Tensor]
"""A table of weights, a key there, and what stands there."""
_EMPTY = types.CellType()
_CASTS = 32  # evaluations that read the same cast of a weight under autocast


class Reads:
    """The reads of half-precision weights in a forward pass that autograd records.

    Each evaluation reads aliases of its own. Their gradients are added to a total of float32 that goes back from
    evaluation to evaluation, in the shape of gradients of empty float32 tensors, and is rounded once at the start.

    Args:
        weights: of half precision, that many evaluations read.
        cast: whether autocast is active, which casts a weight of float32 once for all evaluations: autograd would add
            up the gradients of all in the number type of that cast. It is cast anew every 32 evaluations.
    """

    def __init__(self, weights: Iterable[Tensor], cast: bool) -> None:
        self.weights = {id(weight): weight for weight in weights}
        self.cast = cast
        self.evaluations = 0
        self.totals: dict[int, Tensor] = {}
        self.slots: dict[int, list[Slot]] = {}

    @classmethod
    def of(cls, device: torch.device, weights: Iterable[Tensor]) -> Reads | None:
        """Those of weights that are read many times; None where nothing is to be done."""
        if not torch.is_grad_enabled() or transformed():
            return None
        cast = device.type in ("cpu", "cuda") and torch.is_autocast_enabled(device.type)
        halves = [weight for weight in weights if _is_half(weight)]
        return cls(halves, cast) if halves or cast else None

    def evaluate(self, f: Callable[[Mapping[int, Tensor]], Any], weights: Iterable[Tensor], module: Any = None) -> Any:
        """What f returns, given what stands for the weights, by `id` of the weight.

        Args:
            f: an evaluation of the field.
            weights: handed to it.
            module: the module that it calls, if it is one: its parameters are exchanged meanwhile.
        """
        self.evaluations += 1
        if self.cast and self.evaluations % _CASTS == 0:
            torch.clear_autocast_cache()
        slots = [] if module is None else self._slots(module)
        slots = [(table, key, weight) for table, key, weight in slots if table.get(key) is weight]
        read = {id(w): w for w in (*weights, *(weight for _, _, weight in slots)) if id(w) in self.weights}
        if not (read and torch.is_grad_enabled()):
            return f({})
        new = [weight for key, weight in read.items() if key not in self.totals]
        if new:
            self.totals |= zip(map(id, new), _Rounded.apply(*new), strict=True)
        outputs = _Read.apply(*(self.totals[key] for key in read), *(weight.detach() for weight in read.values()))
        stand = dict(zip(read, outputs[: len(read)], strict=True))
        self.totals |= zip(read, outputs[len(read) :], strict=True)
        for table, key, weight in slots:
            table[key] = stand[id(weight)]
        try:
            return f(stand)
        finally:
            for table, key, weight in slots:
                table[key] = weight

    def _slots(self, function: Any) -> list[Slot]:
        known = self.slots.get(id(function))
        if known is None:
            known = [slot for slot in slots(function) if id(slot[2]) in self.weights]
            self.slots[id(function)] = known
        return known


def slots(function: Any) -> list[Slot]:
    """The weights of half precision that a module consists of, or that another function is seen to hold, and where."""
    if isinstance(function, nn.Module):
        outer = [function]
        tables: list[tuple[Any, Iterable[Any]]] = []
    elif any(map(_half_first, _held(function))):
        reached = reach(function)
        outer = reached.modules
        pairs = zip(reached.places, reached.contents, strict=True)
        tables = [(_Cell(p.cell) if isinstance(p, ClosureCell) else p.entries, contents) for p, contents in pairs]
    else:
        return []
    for module in outer:
        inner = [*module.modules()]
        if all(getattr(member, "_compiled_call_impl", None) is None for member in inner):  # for its own parameters
            tables += [
                (_Scripted(member) if isinstance(member, torch.jit.ScriptModule) else member._parameters, names)
                for member in inner
                if (names := [name for name, _ in member.named_parameters(recurse=False, remove_duplicate=False)])
            ]
    entries = [(table, key, table.get(key)) for table, keys in tables if table is not None for key in keys]
    return [(table, key, value) for table, key, value in entries if isinstance(value, Tensor) and _is_half(value)]


class _Cell:
    """The cell of a closure as a dict of one value."""

    def __init__(self, cell: Any) -> None:
        self.cell = cell

    def get(self, _: Any) -> Any:
        return self.cell.cell_contents

    def __setitem__(self, _: Any, value: Any) -> None:
        self.cell.cell_contents = value


class _Scripted:
    """The parameters of a module of TorchScript, which it holds outside of Python, as a dict."""

    def __init__(self, module: torch.jit.ScriptModule) -> None:
        self.module: Any = module._c

    def get(self, key: str) -> Any:
        return self.module.getattr(key)

    def __setitem__(self, key: str, value: Any) -> None:
        self.module.setattr(key, value)


def _held(function: Any) -> Iterator[Any]:
    """What a function closes over, or an object or partial holds: a quick look, and not what these hold in turn."""
    values = [getattr(function, "__self__", None), *(getattr(function, "__defaults__", None) or ())]
    values += [cell.cell_contents for cell in getattr(function, "__closure__", None) or () if cell != _EMPTY]
    code, names = getattr(function, "__code__", None), getattr(function, "__globals__", {})
    values += [names.get(name) for name in (() if code is None else code.co_names)]
    if isinstance(function, functools.partial):
        values += (function.func, *function.args, *function.keywords.values())
    for value in (function, *values):
        if type(value) is types.ModuleType and value.__name__.partition(".")[0] in LIBRARIES:
            continue  # torch has 1500 names, and keeps no weights under one of them
        own = getattr(value, "__dict__", None)
        within = own if type(own) is dict and not isinstance(value, nn.Module) else value
        yield value
        if isinstance(within, (list, tuple, dict)):
            yield from within.values() if isinstance(within, dict) else within


def _half_first(value: Any) -> bool:
    """Whether a tensor, or the first parameter of a module, is of half precision."""
    first = next(value.parameters(), None) if isinstance(value, nn.Module) else value
    return isinstance(first, Tensor) and first.dtype in HALF


def _is_half(weight: Tensor) -> bool:
    return weight.dtype in HALF and weight.requires_grad and type(weight) in (Tensor, nn.Parameter)


class _Rounded(torch.autograd.Function):
    """Empty float32 tensors, whose gradients are rounded to those of the weights."""

    @staticmethod
    def forward(ctx: Any, *weights: Tensor) -> Any:
        ctx.kinds = [weight.dtype for weight in weights]
        return tuple(weight.new_zeros((), dtype=torch.float32).expand(weight.shape) for weight in weights)

    @staticmethod
    def backward(ctx: Any, *totals: Tensor) -> Any:
        return tuple(total.to(kind) for total, kind in zip(totals, ctx.kinds, strict=True))


class _Read(torch.autograd.Function):
    """Aliases of weights, and the totals for the evaluations that follow."""

    @staticmethod
    def forward(ctx: Any, *both: Tensor) -> Any:
        ctx.set_materialize_grads(False)
        count = len(both) // 2
        return (*(w.view_as(w) for w in both[count:]), *(total.view_as(total) for total in both[:count]))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        count = len(gradients) // 2
        pairs = zip(gradients[:count], gradients[count:], strict=True)
        return (*(_sum(part, total) for part, total in pairs), *(None,) * count)


def _sum(part: Tensor | None, total: Tensor | None) -> Tensor | None:
    if part is None:
        return total
    return part.float() if total is None else total + part
