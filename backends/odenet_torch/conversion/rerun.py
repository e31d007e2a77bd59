"""A layer that runs once more as it ran: with the random state, buffers and parameters of its first run.

Over 250 lines: a layer that is settled, and one that is not, are run again by one class, so that all methods call one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from odenet import ConversionError, GradientError
from odenet.kit import tree_leaves
from odenet_torch.conversion.call_modes import described
from odenet_torch.conversion.layer import Arguments
from odenet_torch.conversion.settled_layers import passing_contents, settle_passing
from odenet_torch.conversion.sums import in_place
from odenet_torch.field import late_writes, random_state
from odenet_torch.field.called_modules import ModuleSnapshot, changed
from odenet_torch.field.field import ends, unique
from odenet_torch.field.passing_values import FoundValues
from odenet_torch.field.replay import Key, Place, Replay, autocasts, hooks_its_state
from odenet_torch.field.settled import SettledBlocks, contents, forget, settle_blocks
from odenet_torch.field.shared_hooks import present
from odenet_torch.field.surroundings import no_trace
from odenet_torch.field.written_on import sampled, version, writes
from odenet_torch.steps.direct import NotAsBeforeError

FIRST = (0, False, 0.0)
"""The key of a layer's run in its replay."""
_AS_IT_IS = contextlib.nullcontext()


class Recall(Replay):
    """The replay of one layer, which was looked at when the model was converted: it is not run twice here."""

    calls = False

    def _check(self, *looked: Any, **named: Any) -> None:
        return

    def _look_for_late(self, key: Key, place: Place, *looked: Any, **named: Any) -> None:
        (_, layer), *_ = self.roots(*place)
        if late_writes.known(layer, self.reached(layer)) is not False:  # in another mode it was not looked at
            self.late.add(key[0])


class Rerun:
    """One call of a layer, and what is needed to repeat it.

    A layer that is settled (see `field.settled`) is compared with what is known of it; any other is looked at in full.

    Args:
        layer: it.
        plain: its own forward pass.
        x: its state, or what comes first among its arguments.
        arguments: the others.
        name: of the first, where it is given by name.
        steps: how many branches it has.
        looked: whether it is to be looked at in full, settled or not.
        passing: whether a settled layer may have passing values (see `field.passing_values`).
    """

    def __init__(
        self,
        layer: nn.Module,
        plain: Callable[..., Any],
        x: Any,
        arguments: Arguments,
        name: str | None,
        steps: int = 1,
        *,
        looked: bool = False,
        passing: bool = False,
    ) -> None:
        self.layer, self.plain, self.name, self.steps = layer, plain, name, steps
        self.draws = self.late = self.hooks_its_state = False
        kept = arguments if isinstance(x, Tensor) else (arguments, x)
        # a state is not among them: it would be kept
        self.handed = [leaf for leaf in tree_leaves(kept) if isinstance(leaf, Tensor)] if any(kept) else []
        first = x if isinstance(x, Tensor) else self.handed[0] if self.handed else None
        self.device = torch.device("cpu") if first is None else first.device
        self.settled: SettledBlocks | None = None
        self.replay: Recall | None = None
        self.read: list[tuple[Tensor, int, Any]] = []
        self.passing = passing
        values, known = None, None if looked or _autocast(self.device) else contents((layer,))
        if known is None and passing and not _autocast(self.device):
            values, known = passing_contents(layer)
        if known is None:
            self.replay = _recall(layer, self.device, steps, self.handed)
            self.random = self.replay.last
        else:
            self.settled = SettledBlocks(known, self.device)
            self.settled.passing = values
            self.read = [(leaf, version(leaf), sampled(leaf)) for leaf in self.handed]
            self.random = self.settled.random

    def watch(self, x: Tensor) -> None:
        """A state that is kept for further runs, and must not be written on before."""
        if self.replay is not None:
            self.replay.watch([x])
        else:
            self.read.append((x, version(x), None))

    def unwritten(self) -> bool:
        """Whether nothing that a settled layer was called with was written on since."""
        return not any([version(x) != v or (then is not None and sampled(x) != then) for x, v, then in self.read])

    def first(self, x: Any, run: Callable[[], Any]) -> Any:
        """The first run, whose results are those of the layer.

        Raises:
            NotAsBeforeError: a settled layer has left something, which it did not before. It is put back.
        """
        before, hooks = (version(x), len(x._backward_hooks or ())) if isinstance(x, Tensor) else (0, 0)
        values = None if self.settled is None else self.settled.passing
        if self.replay is None:
            try:
                out = run()
            except NotAsBeforeError:  # it has begun to go back through itself
                if values is not None:
                    self._undo(values)
                raise
        else:
            parameters = [writes(p) for p in self.layer.parameters()] if self.passing else []
            with self.replay.forth():
                out = self.replay.first(FIRST, (0, 0.0, 1), run)
            self.replay.finish([leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)])
            self.draws, self.late = bool(self.replay.random), bool(self.replay.late)
            # as it was before it ran: what it holds now has the graph of its state
            if not late_writes.known(self.layer, self.replay.reached(self.layer)):
                settle_blocks((self.layer,), self.replay)
            if self.passing and parameters == [writes(p) for p in self.layer.parameters()]:
                settle_passing(self.layer, self.replay, self.late)
        if isinstance(x, Tensor) and version(x) != before:
            raise in_place(type(self.layer).__name__)
        self.hooks_its_state = isinstance(x, Tensor) and len(x._backward_hooks or ()) != hooks
        if self.settled is not None:
            self.draws = self.settled.drew()
            reached = self.settled.stack.blocks[0][1].reach  # a new look would hold what has just been kept
            self.late = self.draws and late_writes.known(self.layer, reached) is not False
            if self.settled.left():
                self._undo(values)
                forget(self.layer)
                raise NotAsBeforeError
            if values is not None:
                self.late = self.late or values.passing.late
                values.let_go()
        return out

    def _undo(self, values: FoundValues | None) -> None:
        """The first run of a settled layer, which is to run in another way."""
        random_state.restore(self.device, self.random)
        if values is not None:
            values.restore()

    def traceless(self) -> contextlib.AbstractContextManager[Any]:
        """Inside, the layer may run for another reason than its own: what it leaves is put back."""
        if self.replay is None:
            return no_trace([self.layer])
        return self.replay.sides.around[id(self.layer)].copied(())

    def once_more(self) -> contextlib.AbstractContextManager[Any]:
        """Inside, it may run once more: the quickest way."""
        return self._as_it_is() if self.untouched() else self.again()

    def _as_it_is(self) -> contextlib.AbstractContextManager[Any]:
        values = None if self.settled is None else self.settled.passing
        return _AS_IT_IS if values is None else values

    def untouched(self) -> bool:
        """Whether a further run finds what the first one found, with nothing to be done for it but passing values."""
        return (
            self.settled is not None
            and not self.draws
            and self.settled.stand()
            and self.settled.settings.stand()
            and self.unwritten()
            and not _autocast(self.device)
            and not present()
        )

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        """Inside, it may run once more."""
        if self.untouched():
            with self._as_it_is():
                yield
            return
        with contextlib.ExitStack() as stack:
            if self.replay is not None:
                stack.enter_context(self.replay.back())
                entries = [(owner._parameters, key, p) for (owner, key), p, *_ in self._called().parameters]
            else:
                entries = stack.enter_context(self._settled_again())
            others = [(owned, key, owned.get(key), p) for owned, key, p in entries if owned.get(key) is not p]
            try:
                for owned, key, _, p in others:
                    owned[key] = p  # pyright: ignore[reportArgumentType]
                yield
            finally:
                for owned, key, now, _ in others:
                    owned[key] = now

    @contextlib.contextmanager
    def _settled_again(self) -> Iterator[Sequence[tuple[dict[str, Any], str, Tensor]]]:
        """The same for a settled layer; yields where its parameters stood."""
        assert self.settled is not None
        if not self.unwritten():
            raise changed("a tensor that the field reads was modified by an inplace operation")
        state = random_state.state(self.device)
        with contextlib.ExitStack() as stack:
            for kind, *_ in autocasts(self.device):
                stack.enter_context(torch.autocast(kind, enabled=False))
            stack.enter_context(self.settled.back())
            if self.settled.passing is not None:
                stack.enter_context(self.settled.passing)
            try:
                yield self.settled.stack.blocks[0][1].parameters
            finally:
                random_state.restore(self.device, state)

    def parameters(self) -> Iterator[Tensor]:
        """Those that the layer held in its first run, and that need a gradient."""
        if self.settled is not None:
            return iter(self.settled.reads[id(self.layer)])
        return (p for _, p, _, requires_grad, _ in self._called().parameters if requires_grad)

    def require_unhooked(self) -> None:
        """Raises GradientError where the layer has registered a hook on its state, and is to run on another one."""
        if self.hooks_its_state:
            raise hooks_its_state(described(self.layer))

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
        if self.settled is not None:
            return tuple(own)
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
        assert self.replay is not None
        snapshot = self.replay.snapshots.get(id(self.layer))
        # a layer that differentiates goes back through its first run before that is over
        return snapshot or ModuleSnapshot.now(type(self.layer).__name__, self.layer)

    def call(self, x: Any, arguments: Arguments) -> Any:
        """The layer by its own code."""
        args, kwargs = arguments
        return self.plain(x, *args, **kwargs) if self.name is None else self.plain(*args, **{self.name: x}, **kwargs)

    def stopped(self) -> None:
        """A further run of a settled layer was left in its midst: what it would have put back itself is put back."""
        if self.settled is not None:
            self.settled.left()

    def repeat(self, run: Callable[[], Any]) -> Any:
        """One more run, inside `again`."""
        if self.replay is not None:
            return self.replay.again(FIRST, (0, 0.0, 1), 1, run)
        if self.draws:
            random_state.restore(self.device, self.random)
        return run()


def _recall(layer: nn.Module, device: torch.device, steps: int, handed: list[Tensor]) -> Recall:
    named = [(type(layer).__name__, layer)]
    return Recall(device, steps, lambda *_: named, lambda *_: handed, lambda *_: named)


def _autocast(device: torch.device) -> bool:
    return torch.is_autocast_enabled("cpu") or (device.type == "cuda" and torch.is_autocast_enabled("cuda"))


def spent() -> GradientError:
    """The error of a second backward pass through layers whose states have been freed."""
    return GradientError(
        "a second backward pass through converted layers, whose states have been freed",
        "one backward pass, or retain_graph=True in all but the last",
    )
