"""A layer that runs once more as it ran: with the random state, buffers and parameters of its first run."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from odenet import ConversionError, GradientError
from odenet.kit import tree_leaves
from odenet_torch.conversion.call_modes import described
from odenet_torch.conversion.calls import Call, in_mode, leaving_no_trace
from odenet_torch.conversion.layer import Arguments, copied
from odenet_torch.conversion.sums import in_place
from odenet_torch.field import late_writes, random_state
from odenet_torch.field.called_modules import ModuleSnapshot, require_same
from odenet_torch.field.differentiating import refuses_hooks
from odenet_torch.field.field import ends, unique
from odenet_torch.field.replay import Key, Place, Replay
from odenet_torch.field.surroundings import held_now, reach
from odenet_torch.field.written_on import version

FIRST = (0, False, 0.0)
"""The key of a layer's run in its replay."""


def require_repeatable(layer: nn.Module, call: Call) -> None:
    """Looks whether a layer gives the same when it runs again on the same, in training.

    Raises:
        GradientError: it does not, or it draws from a generator that is not torch's.
    """
    results = []

    def run() -> None:
        with leaving_no_trace([layer]):
            results.append(_leaves(_watched(layer, call)))

    with in_mode(layer, True), random_state.others():
        drawn = random_state.draws(run, random_state.outside)
        if len(results) == 1:
            run()
        if drawn:
            raise GradientError(
                f"{type(layer).__name__} draws random numbers from Python or NumPy, which are not drawn again as they "
                "were",
                "random numbers of torch's own generator",
                "take torch.rand in its place, or gradient='backprop'",
            )
    require_same(type(layer).__name__, *results[:2])


def _watched(layer: nn.Module, call: Call) -> Any:
    """What a layer returns; whether its kernels write on what they have saved is known from then on."""

    def run() -> Any:
        (args, kwargs), x = copied(call.arguments), copied(call.x)
        if isinstance(x, Tensor) and x.is_floating_point():  # what is saved for a state that needs a gradient
            with torch.enable_grad():
                x = x.detach().requires_grad_().clone()  # the example is the caller's
        return layer(x, *args, **kwargs)

    try:
        out, late = late_writes.watched(type(layer).__name__, run, functools.partial(held_now, [reach(layer)]))
    except RuntimeError as error:
        if not refuses_hooks(error):  # it takes derivatives with torch.func, and is run without torch's checkpoint
            raise
        out, late = run(), False
    late_writes.remember(layer, late)
    return out


def _leaves(out: Any) -> tuple[Tensor, ...]:
    return tuple(leaf.detach().clone() for leaf in tree_leaves(out) if isinstance(leaf, Tensor))


class Recall(Replay):
    """The replay of one layer, which was looked at when the model was converted: it is not run twice here."""

    def _check(self, *looked: Any, **named: Any) -> None:
        return

    def _look_for_late(self, key: Key, place: Place, out: Any, evaluate: Callable[[], Any]) -> None:
        (_, layer), *_ = self.roots(*place)
        known = late_writes.known(layer)
        if known or (known is None and key in self.random):  # in the other mode it was not looked at
            self.late.add(key[0])


class Rerun:
    """One call of a layer, and what is needed to repeat it.

    Args:
        layer: it.
        plain: its own forward pass.
        x: its state, or what comes first among its arguments.
        arguments: the others.
        name: of the first, where it is given by name.
        steps: how many branches it has.
    """

    def __init__(
        self,
        layer: nn.Module,
        plain: Callable[..., Any],
        x: Any,
        arguments: Arguments,
        name: str | None,
        steps: int = 1,
    ) -> None:
        self.layer, self.plain, self.name = layer, plain, name
        kept = arguments if isinstance(x, Tensor) else (arguments, x)
        handed = [leaf for leaf in tree_leaves(kept) if isinstance(leaf, Tensor)]
        first = next((leaf for leaf in (x, *handed) if isinstance(leaf, Tensor)), None)
        self.device = torch.device("cpu") if first is None else first.device
        named = [(type(layer).__name__, layer)]
        # a state is not among them: it would be kept
        self.replay = Recall(self.device, steps, lambda *_: named, lambda *_: handed, lambda *_: named)

    def first(self, x: Any, run: Callable[[], Any]) -> Any:
        """The first run, whose results are those of the layer."""
        before = version(x) if isinstance(x, Tensor) else 0
        with self.replay.forth():
            out = self.replay.first(FIRST, (0, 0.0, 1), run)
        self.replay.finish([leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)])
        if isinstance(x, Tensor) and version(x) != before:
            raise in_place(type(self.layer).__name__)
        return out

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        """Inside, it may run once more."""
        with self.replay.back():
            entries = [(owner._parameters, key, p) for (owner, key), p, *_ in self._called().parameters]
            others = [(owned, key, owned.get(key), p) for owned, key, p in entries if owned.get(key) is not p]
            try:
                for owned, key, _, p in others:
                    owned[key] = p  # pyright: ignore[reportArgumentType]
                yield
            finally:
                for owned, key, now, _ in others:
                    owned[key] = now

    def parameters(self) -> Iterator[Tensor]:
        """Those that the layer held in its first run, and that need a gradient."""
        return (p for _, p, _, requires_grad, _ in self._called().parameters if requires_grad)

    def weights(self, outputs: Sequence[Tensor], known: Sequence[Tensor], since: int) -> tuple[Tensor, ...]:
        """The tensors that the gradient of outputs goes to, beside known ones.

        Args:
            outputs: of the first run.
            known: what the layer was called with.
            since: a mark from before the first run, see `now`.

        Raises:
            ConversionError: the layer reads a tensor that was computed elsewhere, and is no argument of it.
        """
        own = [*self.parameters()]
        leaves, older = ends(outputs, since)
        nodes = {tensor.grad_fn for tensor in (*known, *own)}
        if unknown := [node for node in older if node not in nodes]:
            raise ConversionError(
                f"{described(self.layer)} reads a tensor that was computed outside of it (by {unknown[0].name()}), "
                "needs a gradient and is no argument of it",
                "such tensors as arguments of a layer, or as parameters",
                "take gradient='checkpoint', which gives it its gradient",
            )
        ids = {id(tensor) for tensor in known}
        return unique((*own, *(leaf for leaf in leaves if id(leaf) not in ids)))

    def _called(self) -> ModuleSnapshot:
        found = self.replay.snapshots.get(id(self.layer))
        # a layer that differentiates goes back through its first run before that is over
        return found or ModuleSnapshot.now(type(self.layer).__name__, self.layer)

    def call(self, x: Any, arguments: Arguments) -> Any:
        """The layer by its own code."""
        args, kwargs = arguments
        return self.plain(x, *args, **kwargs) if self.name is None else self.plain(*args, **{self.name: x}, **kwargs)

    def repeat(self, run: Callable[[], Any]) -> Any:
        """One more run, inside `again`."""
        return self.replay.again(FIRST, (0, 0.0, 1), 1, run)


def spent() -> GradientError:
    """The error of a second backward pass through layers whose states have been freed."""
    return GradientError(
        "a second backward pass through converted layers, whose states have been freed",
        "one backward pass, or retain_graph=True in all but the last",
    )
