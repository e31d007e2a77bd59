"""Fields that differentiate inside: by `torch.func` (exact traces, Hamiltonian nets), or by `torch.autograd.grad`."""

from __future__ import annotations

import contextlib
import functools
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint

from odenet import GradientError, UnsupportedError
from odenet.kit import tree_leaves, tree_map
from odenet_torch.field import random_state
from odenet_torch.field.raised import stopped
from odenet_torch.field.written_on import version

Hooks = Callable[[], AbstractContextManager[Any]]
"""Makes hooks on saved tensors, which are active inside of it."""
_HOOKS = "saved tensor hooks"  # torch.func.grad, vjp, jacrev and hessian refuse to run where these are active
_NO_GRADIENT = (
    "does not require grad",
    "cannot register a hook on a tensor that doesn't require gradient",
    "can't retain_grad on Tensor that has requires_grad=False",
)
_OUT = "out=... arguments don't support automatic differentiation"
_UNREADABLE = ("Cannot access data pointer", ".item()", "data-dependent control flow", "not have vmap support")


def refuses_hooks(error: RuntimeError) -> bool:
    """Whether torch.func was called where hooks on saved tensors are active.

    Those of `torch.utils.checkpoint` itself are off afterwards: torch 2.6 leaves them on for as long as the frame of
    its call is alive, which the traceback keeps.
    """
    refused = _HOOKS in str(error) and "torch.func" in str(error)
    if refused:
        traceback.clear_frames(error.__traceback__)
    return refused


def checkpointed(function: Any, *arguments: Any, **named: Any) -> Any:
    """`torch.utils.checkpoint.checkpoint`, whose hooks on saved tensors are off after an error, too.

    Torch 2.6 leaves them on for as long as the frame of its call is alive, which the traceback keeps: whatever is
    recorded until then would be computed again by the call that failed.
    """
    try:
        return checkpoint.checkpoint(function, *arguments, **named)
    except BaseException as error:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if frame.f_code.co_filename == checkpoint.__file__:
                with contextlib.suppress(RuntimeError):  # of one that still runs, within another checkpoint
                    frame.clear()
        stop = stopped(error)
        if stop is None:
            raise
    raise stop


def hooked() -> bool:
    """Whether hooks on saved tensors are active, those of `torch.utils.checkpoint` among them."""
    try:
        with torch.autograd.graph.disable_saved_tensors_hooks("asked by odenet"):
            return False
    except RuntimeError:
        return True


def unseen() -> AbstractContextManager[Any]:
    """Hides what is saved from hooks that are active: they would count it.

    Hooks of our own are what hides it, and torch.func refuses to run under any: they are made where they are needed.
    """
    if not hooked():
        return contextlib.nullcontext()
    # an output that its own node held would be freed by the garbage collector only
    return torch.autograd.graph.saved_tensors_hooks(torch.Tensor.detach, lambda saved: saved)


def record(error: RuntimeError, f: Callable[..., Any], t: Any, y: Any, *rest: Any) -> Any:
    """`f(t, y)` for a field that differentiates by y, or hooks what it computes, at a y that needs no gradient.

    A pass that is not recorded, as the forward pass of an adjoint is not, hands over such states; the field is called
    once more with a y of its own that needs one.

    Args:
        error: what was raised by the field.
        f: the field.
        t, y, rest: its arguments.

    Raises:
        error: it is another one, or y needed a gradient and had it.
        GradientError: the field draws random numbers, which it has now drawn twice; or cannot be recorded.
    """
    kept = torch.is_grad_enabled()
    states = [leaf for leaf in tree_leaves(y) if isinstance(leaf, Tensor)]
    if _OUT in str(error):
        raise GradientError(
            "the field writes its slope into a tensor of its own by out=, which autograd cannot record",
            "fields that return new tensors; any field where nothing is differentiated",
            "leave out= out, or solve under torch.no_grad()",
        ) from error
    if not any(text in str(error) for text in _NO_GRADIENT) or (kept and all(leaf.requires_grad for leaf in states)):
        raise error

    def fresh(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or (kept and leaf.requires_grad):
            return leaf
        return leaf.detach().requires_grad_()

    values: list[Any] = []

    def run() -> None:
        with torch.enable_grad():
            values[:] = [f(t, tree_map(fresh, y), *rest)]

    if random_state.draws(run, functools.partial(random_state.read, states[0].device)):
        raise GradientError(
            "the field differentiates by its state where no gradient is recorded, and draws random numbers",
            "fields that enable what they need",
            "within the field: with torch.enable_grad(): y = y if y.requires_grad else y.detach().requires_grad_()",
        ) from error
    value = values.pop()
    return value if kept else tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, value)


@contextlib.contextmanager
def readable(subject: str) -> Iterator[None]:
    """Steps that depend on values, which can't be read within `torch.func.vmap`.

    Raises:
        UnsupportedError: they were to be read there.
    """
    try:
        yield
    except RuntimeError as error:
        if not torch._C._are_functorch_transforms_active() or not any(text in str(error) for text in _UNREADABLE):
            raise
        raise UnsupportedError(
            f"{subject} inside torch.func.vmap, where the size of a step would be another one for each sample",
            "steps=N there; a leading batch axis, with steps for all or PIDController(per_sample=True)",
            "solve for the whole batch at once, or take steps=N",
        ) from error


def listed(values: Tensor) -> Any:
    """`values.tolist()`; within a transform of torch.func, torch 2.6 reads one number at a time."""
    if not transformed():
        return values.tolist()
    return values.item() if values.ndim == 0 else [listed(row) for row in values.unbind(0)]


def transformed() -> bool:
    """Whether a transform of torch.func, or forward differentiation, is active: its tensors have no memory to name."""
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


def forward_mode_again() -> None:
    """Called first in the forward of a `torch.autograd.Function` that evaluates fields: torch turns differentiating
    forwards off there, so that a field that does (`torch.autograd.forward_ad`) would be handed None for its tangents,
    and puts it back at the end of that forward, whatever was done to it."""
    torch._C._set_fwd_grad_enabled(True)


class Gradients:
    """The `.grad` of parameters now, to which a field that calls `backward()` adds whenever it runs."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self.parameters = list({id(x): x for x in parameters}.values())
        self.before = self._now()

    def _now(self) -> list[tuple[int, int] | None]:
        return [None if (g := x.grad) is None else (id(g), version(g)) for x in self.parameters]

    def changed(self) -> bool:
        """Whether one of them is another one now: another thread may have added to it, too."""
        return self._now() != self.before

    def added_to(self, evaluate: Callable[[], Any]) -> bool:
        """Whether the field adds to them, where it is evaluated once more."""
        with _CallsOfBackward() as calls:
            evaluate()
        return calls.whole or threading.active_count() == 1


class _CallsOfBackward(TorchFunctionMode):
    """Notes calls of `tensor.backward()` in this thread that add to the `.grad` of whatever there is."""

    whole = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        self.whole |= func is Tensor.backward and named.get("inputs") is None
        return func(*args, **named)


def several_at_once(gradients: Iterable[Tensor | None]) -> bool:
    """Whether these are batches of gradients (is_grads_batched=True, vectorize=True), whose values none can read."""
    return any(g is not None and torch._C._dispatch_keys(g).has(_BATCHED) for g in gradients)


_BATCHED = torch._C._dispatch_key_parse("Batched")  # torch.autograd has vmap of its own, which torch.func denies


def valueless() -> bool:
    """Whether operations are recorded or counted with tensors that have no values (FakeTensorMode, make_fx, export)."""
    return fake() or _in_mode("PROXY") or torch.compiler.is_compiling()


def fake() -> bool:
    """Whether no tensor that is made has a value (FakeTensorMode)."""
    return _in_mode("FAKE")


def _in_mode(key: str) -> bool:
    keys: Any = getattr(torch._C, "_TorchDispatchModeKey")  # noqa: B009
    return torch._C._get_dispatch_mode(getattr(keys, key)) is not None


@contextlib.contextmanager
def reading_values(subject: str, instead: str) -> Iterator[None]:
    """Inside, values of tensors are read.

    Raises:
        UnsupportedError: they have none.
    """
    try:
        yield
    except RuntimeError as error:
        if not valueless():
            raise
        raise no_values(subject, instead) from error


def no_values(subject: str, instead: str) -> UnsupportedError:
    """The error for tensors that have no values, where some are to be read."""
    return UnsupportedError(
        f"{subject} in torch.export, make_fx or FakeTensorMode, where tensors have no values to be read",
        f"{instead} there",
        f"take {instead}",
    )
