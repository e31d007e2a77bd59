"""The function of a solve whose way back calls it again: as it was, and with all that it reads."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from odenet import GradientError
from odenet.kit import tree_map
from odenet_torch.drop_in.flow import Flow
from odenet_torch.field.called_modules import Called
from odenet_torch.field.differentiating import record
from odenet_torch.field.field import ends, moved, now, unique
from odenet_torch.field.memory import versions
from odenet_torch.field.side_results import SideResults
from odenet_torch.field.written_on import version


class Recalled:
    """`func(t, y)`, whose attributes it has, too.

    Args:
        func: the function.
    """

    def __init__(self, func: Callable[[Tensor, Any], Any]) -> None:
        self.func = func
        self.name = getattr(func, "__name__", type(func).__name__)
        self.sides = SideResults(cut=True)
        self.around = self.sides.begin(0, [(self.name, func)])[0]
        self.held: dict[str, Tensor] = {}
        if isinstance(func, nn.Module):
            self.held = dict(func.named_parameters())
            self.held |= {name: buffer for name, buffer in func.named_buffers() if buffer.requires_grad}
        self.buffers = {id(b): version(b) for module in self.around.reach.modules for b in module.buffers()}
        self.elsewhere = False
        self.ready: tuple[tuple[Tensor, ...], Any] | None = None
        self.called: list[Called] = []
        self.lends = False
        """Whether func is handed copies of states, because it writes on them."""

    def __call__(self, t: Tensor, y: Any) -> Any:
        if self.ready is not None:
            (arguments, value), self.ready = self.ready, None
            if all(map(torch.equal, arguments, _flat(t, y))):
                return value
        if self.elsewhere:
            return torch.func.functional_call(self.func, self.held, (t, y))  # pyright: ignore[reportArgumentType]
        return self.func(t, tree_map(torch.clone, y) if self.lends else y)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.func, name)

    def first(self, flow: Flow, params: Sequence[Tensor], named: bool) -> tuple[Tensor, ...]:
        """The first evaluation, with a graph: the tensors that get a gradient, those of the caller first.

        What func reads and that was computed elsewhere, such as the code of an encoder, is among them. Leaves are,
        unless the caller named those that are to be.

        Args:
            flow: with this function.
            params: the caller's.
            named: whether the caller named them.

        Raises:
            GradientError: func reads a tensor that was computed elsewhere, and it cannot be seen which.
        """
        y, since = flow.y0.detach().requires_grad_(), now()
        t = torch.tensor(flow.times[0], dtype=torch.float64, device=y.device).to(y.real.dtype).requires_grad_()
        with torch.enable_grad():
            at = flow.given(y.clone())  # a copy, of which func may change what it likes
            before = versions(_flat(at))
            try:
                value = self.func(t, at)
            except RuntimeError as error:
                value = record(error, self.func, t, at)
        # NumPy's writes are not counted: on the host the values are compared
        kept = y.device.type != "cpu" or all(map(torch.equal, _flat(at), _flat(flow.given(y))))
        self.lends = versions(_flat(at)) != before or not kept
        flow.require_slope(value, flow.y0)
        self.sides.look([self.around], (), lambda: None)
        leaves, older = ends(_flat(value), since)
        known = {id(tensor) for tensor in (t, y, *params)}
        wanted = [tensor for _, tensor in self.around.reach.watched if isinstance(tensor, Tensor)]
        wanted += self.held.values()
        found = [tensor for tensor in wanted if tensor.grad_fn is not None and tensor.grad_fn in older]
        nodes = {tensor.grad_fn for tensor in (*found, *params)}
        if any(node not in nodes for node in older):
            raise GradientError(
                f"{self.name} reads a tensor that was computed outside of it and needs a gradient, and that is neither "
                "an attribute nor a variable of a closure",
                "parameters, attributes, and variables of closures",
                "name it in adjoint_params, or take odeint",
            )
        if not named:
            found += leaves
        self.ready = tuple(x.detach() for x in _flat(t, flow.given(y))), _detached(value)
        return unique((*params, *(tensor for tensor in found if id(tensor) not in known)))

    def finish(self) -> None:
        """The forward pass has ended."""
        self.ready = None
        self.sides.finish()
        for module in self.around.reach.modules:
            called = Called.now(type(module).__name__, module)
            # what func changes itself, it will change again
            buffers = tuple(each for each in called.buffers if self.buffers.get(id(each[1])) == each[2])
            self.called.append(dataclasses.replace(called, buffers=buffers))

    @contextlib.contextmanager
    def back(self) -> Iterator[None]:
        """While it is called on the way back.

        Raises:
            GradientError: it is no longer what it was.
        """
        self.elsewhere = isinstance(self.func, nn.Module) and moved(self.func, self.held)
        held = set(map(id, self.held.values()))
        for called in self.called:
            kept = {(id(owner), key) for (owner, key), buffer, *_ in called.buffers if id(buffer) in held}
            called.require_unchanged(kept, moves=called.module is self.func)
        with self.sides.back([0]):
            try:
                yield
            finally:
                self.elsewhere = False


def recalled(flow: Flow) -> tuple[Flow, Recalled]:
    """A flow with a function that can be called again."""
    func = Recalled(flow.func)
    return dataclasses.replace(flow, func=func), func


def _flat(*values: Any) -> tuple[Tensor, ...]:
    leaves: list[Tensor] = []
    for value in values:
        leaves += value if isinstance(value, (tuple, list)) else (value,)
    return tuple(leaves)


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else type(value)(part.detach() for part in value)
