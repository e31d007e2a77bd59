"""The function of a solve whose backward pass calls it again: as it was, and with all that it reads.

Over 250 lines: what is noted of the function, found again and compared is of one object.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from odenet import GradientError, UnsupportedError
from odenet.kit import tree_map
from odenet_torch.drop_in.flow import OdeintProblem
from odenet_torch.drop_in.recording import lent_buffers, modules_of
from odenet_torch.field.called_modules import ModuleSnapshot
from odenet_torch.field.differentiating import record
from odenet_torch.field.field import ends, moved, now, unique
from odenet_torch.field.half_precision import HALF
from odenet_torch.field.knowledge import name_of
from odenet_torch.field.memory import require_recorded, versions
from odenet_torch.field.replay import Replay, hooks_its_state
from odenet_torch.field.shared_hooks import untracked
from odenet_torch.field.surroundings import no_trace, reach
from odenet_torch.field.witness import OFF, OFF_HALF, looks, require_reached, sample
from odenet_torch.field.written_on import version

_PLACE = (0, 0.0, 1)  # all evaluations are of the same func


class Recalled:
    """`func(t, y)`, whose attributes it has, too.

    Args:
        func: the function.
        device: of the state.
    """

    def __init__(self, func: Callable[[Tensor, Any], Any], device: torch.device) -> None:
        self.func = func
        self.name = name_of(func)
        roots = [(self.name, func)]
        modules = [(type(func).__name__, func)] if isinstance(func, nn.Module) else []
        self.replay = Replay(device, 1, lambda *_: modules, lambda *_: (), lambda *_: roots, cut=True)
        self.looks = False
        """Whether the evaluation that comes next is looked at (see `Replay.first`)."""
        self.evaluations = 0
        self.parameters: dict[str, Tensor] = {}
        if isinstance(func, nn.Module):
            self.parameters = dict(func.named_parameters())
            self.parameters |= {name: buffer for name, buffer in func.named_buffers() if buffer.requires_grad}
        # held, so that none that func puts in its place takes its id
        self.buffers = {id(b): (b, version(b)) for module in reach(func).modules for b in module.buffers()}
        self.elsewhere = False
        self.ready: tuple[tuple[Tensor, ...], Any] | None = None
        self.known: tuple[Tensor, tuple[Tensor, ...]] | None = None
        """The first time, and a sample of the slope at y0 there."""
        self.snapshots: list[ModuleSnapshot] = []
        self.lends = False
        """Whether func is handed copies of states, because it writes on them."""

    def __call__(self, t: Tensor, y: Any) -> Any:
        if self.ready is not None:
            (arguments, value), self.ready = self.ready, None
            if all(map(torch.equal, arguments, _flat(t, y))):
                return value
        if self.elsewhere:
            return torch.func.functional_call(self.func, self.parameters, (t, y))  # pyright: ignore[reportArgumentType]
        if self.looks:
            return self._looked(lambda: self._called(t, y))
        return self._called(t, y)

    def _called(self, t: Tensor, y: Any) -> Any:
        return self.func(t, tree_map(torch.clone, y) if self.lends else y)

    def _looked(self, call: Callable[[], Any], y: tuple[Tensor, ...] = ()) -> Any:
        """What a call returns, which is looked at as the evaluations of other methods are.

        Raises:
            GradientError: it is not a function of its arguments.
        """
        values: list[Any] = []

        def evaluate() -> tuple[Tensor, ...]:
            value = call()
            if not values:
                values.append(value)
            return tuple(x for x in _flat(value) if isinstance(x, Tensor))

        key = self.evaluations, False, 0.0
        out = self.replay.first(key, _PLACE, evaluate, y)
        if self.evaluations and key in self.replay.buffers:
            self.replay.require_steady(key, (0, False, 0.0), _PLACE, self.name, out, evaluate)
        self.evaluations += 1
        self.looks = self.evaluations == 1 or bool(self.replay.leaving)
        return values.pop()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.func, name)

    def first(self, flow: OdeintProblem, params: Sequence[Tensor], named: bool) -> tuple[Tensor, ...]:
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
        t = torch.tensor(flow.times[0], dtype=torch.float64, device=y.device).to(flow.time_kind(y)).requires_grad_()

        def call() -> Any:
            recorded = not self.replay.unrecorded
            with torch.set_grad_enabled(recorded):
                at = flow.unpacked(y.clone())  # a copy, of which func may change what it likes
                before = versions(_flat(at))
                with flow.explained(), untracked():
                    try:
                        value = self.func(t.clone(), at)
                    except RuntimeError as error:
                        value = record(error, self.func, t, at)
                require_recorded(recorded)
            # NumPy's writes are not counted: on the host the values are compared
            unwritten = y.device.type != "cpu" or all(map(torch.equal, _flat(at), _flat(flow.unpacked(y))))
            self.lends = versions(_flat(at)) != before or not unwritten
            flow.require_slope(value, flow.y0)
            if any(leaf._backward_hooks for leaf in _flat(at)):
                raise hooks_its_state(self.name)
            return value

        with self.replay.notice():
            value = self._looked(call, (y,))
        leaves, older = ends(_flat(value), since)
        known = {id(tensor) for tensor in (t, y, *params)}
        around = self.replay.sides.around[id(self.func)]
        candidates = [tensor for _, tensor in around.reach.watched if isinstance(tensor, Tensor)]
        candidates += self.parameters.values()
        sources = [tensor for tensor in candidates if tensor.grad_fn is not None and tensor.grad_fn in older]
        nodes = {tensor.grad_fn for tensor in (*sources, *params)}
        if any(node not in nodes for node in older):
            raise GradientError(
                f"{self.name} reads a tensor that was computed outside of it and needs a gradient, and that is neither "
                "an attribute nor a variable of a closure",
                "parameters, attributes, and variables of closures",
                "name it in adjoint_params, or take odeint",
            )
        if not named:
            sources += leaves
        if self.ready is None:  # not that of a later call, which is to tell whether it draws: it drew others
            self.ready = tuple(x.detach() for x in _flat(t, flow.unpacked(y))), _detached(value)
            slopes = tuple([x.detach() for x in _flat(value) if isinstance(x, Tensor)])
            self.known = (t.detach(), sample(slopes, own=True)) if looks(slopes) else None
        return unique((*params, *(tensor for tensor in sources if id(tensor) not in known)))

    def names(self, params: Sequence[Tensor], draws: bool) -> tuple[str, ...]:
        """The names by which a compiled step is handed parameters.

        Args:
            params: that get a gradient.
            draws: whether func drew random numbers when it was evaluated.

        Raises:
            UnsupportedError: func cannot be run again by a graph.
        """
        known = {id(tensor): name for name, tensor in self.parameters.items()}
        written = any(self._version(b) != version(b) for module in reach(self.func).modules for b in module.buffers())
        for so, does in (
            (draws, "draws random numbers, as dropout does"),
            (written, "writes on a buffer, as running statistics do"),
            (
                any(id(param) not in known for param in params),
                "reads tensors that get a gradient and are no parameters of its own",
            ),
        ):
            if so:
                raise UnsupportedError(
                    f"compile with odeint_adjoint, and {self.name}, which {does}",
                    "an nn.Module that gives the same for the same, and all of whose tensors are parameters",
                    "call func.eval(), make them parameters of func, take odeint, or leave out compile",
                )
        return tuple([known[id(param)] for param in params])

    def _version(self, buffer: Tensor) -> int | None:
        """How often a buffer was written on before the solve; None where it was not there."""
        return self.buffers.get(id(buffer), (None, None))[1]

    def finish(self) -> None:
        """The forward pass has ended.

        Raises:
            GradientError: func reads what its earlier evaluations left.
        """
        self.ready, self.looks = None, False
        self.replay.sides.evaluations[id(self.func)] += 1  # it is evaluated many times
        self.replay.finish()
        for module in self.replay.sides.around[id(self.func)].reach.modules:
            snapshot = ModuleSnapshot.now(type(module).__name__, module)
            # what func changes itself, it will change again
            buffers = tuple(buffer for buffer in snapshot.buffers if self._version(buffer[1]) == buffer[2])
            self.snapshots.append(dataclasses.replace(snapshot, buffers=buffers))

    @contextlib.contextmanager
    def back(self) -> Iterator[None]:
        """While it is called in the backward pass.

        Raises:
            GradientError: it is no longer what it was.
        """
        self.elsewhere = isinstance(self.func, nn.Module) and moved(self.func, self.parameters)
        own = set(map(id, self.parameters.values()))
        for snapshot in self.snapshots:
            copied = {(id(owner), key) for (owner, key), buffer, *_ in snapshot.buffers if id(buffer) in own}
            snapshot.require_unchanged(copied, moves=snapshot.module is self.func)
        with self.replay.sides.back([0]):
            try:
                yield
            finally:
                self.elsewhere = False

    def require_known(self, flow: OdeintProblem, y0: Tensor) -> None:
        """Looks, in `back`, whether the slope at y0 is what it was; no evaluation that a counter would see.

        Raises:
            GradientError: it is another one.
        """
        if self.known is None:
            return
        (t, known), func = self.known, self.func

        def call(y: Any) -> Any:
            if self.elsewhere and isinstance(func, nn.Module):
                return torch.func.functional_call(func, self.parameters, (t, y))
            return func(t, tree_map(torch.clone, y))  # which it may write on

        y = y0.detach().clone().requires_grad_()
        with torch.enable_grad(), no_trace([self.func]), lent_buffers(modules_of(self.func)), flow.explained():
            value = self.replay.again((0, False, 0.0), _PLACE, 1, lambda: call(flow.unpacked(y)))
        slopes = tuple([x.detach() for x in _flat(value) if isinstance(x, Tensor)])
        off = OFF_HALF if y0.dtype in HALF or torch.is_autocast_enabled("cpu") else OFF
        require_reached(slopes, known, tuple(map(torch.zeros_like, slopes)), self.name, off)


def recalled(flow: OdeintProblem) -> tuple[OdeintProblem, Recalled]:
    """A flow with a function that can be called again."""
    func = Recalled(flow.func, flow.y0.device)
    return dataclasses.replace(flow, func=func, original=flow.func), func


def _flat(*values: Any) -> tuple[Tensor, ...]:
    leaves: list[Tensor] = []
    for value in values:
        leaves += value if isinstance(value, (tuple, list)) else (value,)
    return tuple(leaves)


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else type(value)(part.detach() for part in value)
