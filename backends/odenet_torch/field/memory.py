"""Memory that the field and the steps might share: states that f writes on, slopes that it returns in the same tensor.

The first state of a pass, the caller's y0, is handed over as a copy, and of the first slope a copy is taken. What f
does with these tells what is to be done in the rest of the pass: nothing where nothing is shared. From then on torch's
version counters are compared, which costs no operation.

Over 250 lines: one watch over the evaluations of a pass: each notice, and what follows from it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from odenet import StateError
from odenet.kit import tree_leaves
from odenet_torch.field import random_state, saved_tensors
from odenet_torch.field.differentiating import hooked, valueless
from odenet_torch.field.knowledge import name_of
from odenet_torch.field.not_dense import require_dense
from odenet_torch.field.saved_tensors import now
from odenet_torch.field.written_on import version

Leaves = tuple[Tensor, ...]


class StateLayout(Protocol):
    """What is asked of a `Layout`: how f is called with leaves, and its slope read."""

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """Number types of y0's leaves."""
        ...

    @property
    def carried(self) -> tuple[torch.dtype, ...]:
        """Number types between evaluations."""
        ...

    @property
    def device(self) -> torch.device:
        """The device of the state."""
        ...

    def call(self, leaves: Leaves) -> Any:
        """The tree that f is called with."""
        ...

    def slope(self, value: Any, like: Leaves) -> Leaves:
        """The slope that f returned, as leaves."""
        ...


# by training flag: modules that write on their input, and those that did not although something in them is in place
_WRITES: dict[bool, weakref.WeakSet[nn.Module]] = {flag: weakref.WeakSet() for flag in (False, True)}
_CLEAN: dict[bool, weakref.WeakSet[nn.Module]] = {flag: weakref.WeakSet() for flag in (False, True)}

_LEAF = "a leaf Variable that requires grad is being used in an in-place operation"


class Memory:
    """Who may write where in one solve.

    Args:
        leaves: how many the state has.

    Attributes:
        counted: whether a state is one tensor whose writes torch counts.
        count: the writes on a state or a slope so far.
        careful: whether something is to be copied, or to be found out yet.
        lends: whether f is handed copies of states, because it writes on them.
        takes: whether copies of slopes are taken, because f returns them in memory that it uses again.
        switches: whether f switches the recording of gradients on, and leaves it so.
        slopes: those of the running step, with their versions when they were returned; one list all along.
    """

    def __init__(self, leaves: int) -> None:
        self.counted = leaves == 1 and not torch.is_inference_mode_enabled()
        self.count = _one if self.counted else versions
        self.careful, self.lends, self.takes, self.switches = True, False, False, False
        self.name = "the field"
        self.suspects: Sequence[nn.Module] = ()
        self.first: Leaves | None = None
        self.evaluated = 0
        self.slopes: list[tuple[Leaves, int]] = []

    def suspect(self, modules: Iterable[Any]) -> None:
        """Modules that work in place somewhere, as blocks do whose activation does: each is looked at once."""
        modules = [*modules]
        kinds = {name_of(m) for m in modules}
        self.name = f"the field ({', '.join(sorted(kinds))})"
        known = [m for m in modules if isinstance(m, nn.Module) and m not in _CLEAN[m.training]]
        self.lends = any(module in _WRITES[module.training] for module in known)
        in_place = [any(getattr(m, "inplace", False) is True for m in module.modules()) for module in known]
        self.suspects = [module for module, some in zip(known, in_place, strict=True) if some]

    def passed(self) -> None:
        """A forward pass is over: what was looked at did not write."""
        for module in self.suspects:
            (_WRITES if self.lends else _CLEAN)[module.training].add(module)
        self.suspects = ()
        self._settle()

    def evaluate(self, layout: StateLayout, f: Callable[[Any], Any], y: Leaves, start: bool) -> Leaves:
        """The slope at y, of which f may change what it is given and keep what it returns.

        Args:
            layout: of the state.
            f: the field, of the tree.
            y: where.
            start: whether y may be the caller's y0, or stands for it.
        """
        lent, spare, drawn = y, None, []
        if (start or not self.evaluated or self.lends or self.suspects) and layout.dtypes == layout.carried:
            # torch itself lets nobody write on a leaf whose gradient is recorded
            leaf = torch.is_grad_enabled() and all(leaf.is_leaf and leaf.requires_grad for leaf in y)
            lent = tuple(map(_copy, y))
            if leaf and not self.lends and not self.suspects:
                lent, spare = y, tuple(leaf.detach() for leaf in lent)
                drawn = random_state.state(layout.device)
        # once a pass, and where torch alone sees it, whose checkpoint would run the step again to tell
        since = now() if not self.evaluated and torch.is_grad_enabled() and not hooked() else None
        before, recorded = self.count(lent), torch.is_grad_enabled()
        handed = layout.call(lent)
        try:
            value = f(handed)
            if not self.evaluated:
                require_dense(value, "a slope that the field returned")
            slope = layout.slope(value, y)
        except RuntimeError as error:
            if spare is None or _LEAF not in str(error):
                raise
            random_state.restore(layout.device, drawn)
            self.lends, lent = True, tuple(map(_copy, y))
            before, handed = self.count(lent), layout.call(lent)
            slope = layout.slope(f(handed), y)
        if torch.is_grad_enabled() != recorded:
            require_recorded(recorded)
            torch.set_grad_enabled(False)  # what f switched on is not for the steps that are to keep no graph
            self.switches = True
        if not self.evaluated and any(k.device != leaf.device for k, leaf in zip(slope, y, strict=True)):
            raise StateError(
                f"the field returned a slope on {slope[0].device} for a state on {y[0].device}",
                "the device of the state",
            )
        if since is not None and (operation := saved_tensors.written(saved_tensors.nodes(slope, since))) is not None:
            raise saved_tensors.refusal(self.name, operation)
        wrote = self.count(lent) != before
        for at, leaf in zip(tree_leaves(handed), y, strict=True):
            # a copy, or of another number type: who looks for hooks on the state is to see this one
            if at is not leaf and at._backward_hooks and leaf.requires_grad:
                leaf.register_hook(_unchanged)
        if lent is y:
            if wrote:
                raise written()
            if spare is not None and not self.evaluated and wrote_unseen(y, spare):
                self.lends, slope = True, tuple(k.clone() for k in slope)
                for leaf, value in zip(y, spare, strict=True):
                    leaf.data.copy_(value)
        elif not self.lends:
            wrote = wrote or any(a.shape != b.shape for a, b in zip(lent, y, strict=True))
            self.lends = wrote or (not self.evaluated and wrote_unseen(lent, y))
        if self.first is not None:
            self.takes = self.takes or not _addresses(slope).isdisjoint(_addresses(self.first))
            self.first = None
        elif not self.evaluated:
            self.first = tuple(k.detach() for k in slope)  # held, so that no other tensor comes to lie there
        if self.takes or self.first is not None:
            slope = tuple(k.clone() for k in slope)
        self.evaluated += 1
        self._settle()
        return slope

    def hold(self, slope: Leaves) -> None:
        """A step holds this slope."""
        self.slopes.append((slope, self.count(slope)))

    def require_kept(self) -> None:
        """Looks whether the slopes that the step holds are still what f returned.

        Raises:
            StateError: f wrote on one of them.
        """
        count = self.count
        if count is _one:  # of many steps the most: without a call for each
            if any([slope[0]._version != before for slope, before in self.slopes]):
                raise overwritten()
            return
        for slope, before in self.slopes:
            if count(slope) != before:
                raise overwritten()

    def _settle(self) -> None:
        self.careful = self.lends or self.takes or self.switches or self.evaluated < 2 or bool(self.suspects)


def versions(leaves: Leaves) -> int:
    """How often the leaves were written on, all together."""
    return sum(map(version, leaves))


def _one(leaves: Leaves) -> int:
    """How often a state of one leaf was written on, in fewer operations than `versions`."""
    return leaves[0]._version


def written() -> StateError:
    """The error for a state that is lost."""
    return StateError(
        "the field wrote on the state that it was given, and did not do so when it was called first",
        "fields that leave their arguments as they are",
        "work on y.clone(), without inplace=True and without methods that end in _",
    )


def require_recorded(before: bool) -> None:
    """Raises StateError if f switched the recording of gradients off for what comes after it: they would be missing."""
    if before and not torch.is_grad_enabled():
        torch.set_grad_enabled(True)
        raise StateError(
            "the field left torch.set_grad_enabled(False) behind, so that nothing after it has a gradient",
            "fields that switch it back",
            "write `with torch.no_grad():` around the part that is to have no gradient",
        )


def overwritten() -> StateError:
    """The error for a slope that is lost."""
    return StateError(
        "the field wrote on a slope that it had returned before",
        "slopes in new memory, or always in the same tensor",
        "return slope.clone()",
    )


def _unchanged(gradient: Tensor) -> None:
    """The hook of a state where f has put one on what it was handed for it."""


def _copy(leaf: Tensor) -> Tensor:
    """A copy whose writes are counted, within torch.inference_mode() too."""
    if not torch.is_inference_mode_enabled():
        return leaf.clone()
    with torch.inference_mode(False), torch.no_grad():
        return leaf.clone()


def _addresses(leaves: Leaves) -> set[int]:
    """Where they lie; nothing of those that lie nowhere, as tensors of torch.func do not."""
    if valueless():
        return set()
    try:
        return {leaf.data_ptr() for leaf in leaves if leaf.numel()}
    except RuntimeError:
        return set()


def _same_with_nan(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(torch.isclose(one, other, rtol=0, atol=0, equal_nan=True).all())


def wrote_unseen(lent: Leaves, y: Leaves) -> bool:
    """Whether f changed the state where torch does not count it, as by NumPy or `.data`; looked at on the CPU alone."""
    if lent[0].device.type != "cpu" or valueless():  # where a graph is recorded the comparison would be in it
        return False
    try:
        return not all(torch.equal(a, b) or _same_with_nan(a, b) for a, b in zip(lent, y, strict=True))
    except (RuntimeError, TypeError):  # tensors of torch.func have no values to compare, some classes no comparison
        return False
