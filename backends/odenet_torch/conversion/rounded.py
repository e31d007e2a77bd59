"""A layer whose state is kept in few bits: its gradient is that of its own code at the rounded state.

The layer runs by its own code; its first argument, where that is a tensor of real numbers, is kept as whole numbers
times a scale a row, and all else as it is. One node of autograd's stands for all that it returns. What it leaves
elsewhere (a loss in an attribute, what a hook keeps) holds its own part of the graph, and the exact gradient.

The states themselves are rounded, not their increments as in a solve with small steps: layers need not be residual, nor
follow each other, and none of them is off by more than one rounding.

Over 250 lines: a state, the call of a layer that keeps it, and the node that stands for that call are of one form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from odenet import Checkpoint, Stats
from odenet.kit import alarm, tree_flatten, tree_leaves, tree_map
from odenet.kit import solver as solver_named
from odenet_torch.conversion.call_modes import CallModes
from odenet_torch.conversion.layer import arguments_of, copied, state_name
from odenet_torch.conversion.layer_end import LayerEnd
from odenet_torch.conversion.layer_run import LayerRun
from odenet_torch.conversion.measured import LayerErrors, apart, cotangent, due, square, watched
from odenet_torch.conversion.rerun import Rerun, spent
from odenet_torch.field.differentiating import unseen
from odenet_torch.field.field import now, unique
from odenet_torch.field.half_precision import HALF
from odenet_torch.field.raised import as_raised
from odenet_torch.field.witness import turns
from odenet_torch.gradients.adjoint import _retained, refuse_batches, refuse_second_derivatives, unhooked
from odenet_torch.gradients.rounded_states import Chain, relative, rows


class RoundedState:
    """A state in few bits, with a scale a row.

    Args:
        method: one with bits.
        x: the state, any shape, of a floating or complex number type.
    """

    def __init__(self, method: Checkpoint, x: Tensor) -> None:
        x = x.detach()
        self.dtype = x.dtype
        self.axes = rows(method, x)
        self.stored: tuple[Tensor, ...]
        if method.bits == 16 and x.dtype in HALF:
            self.stored = (x.clone(),)  # as it is: somebody may write on it later
        else:
            # the layer may look at strides, as in channels_last
            self.strides = torch.empty_like(x, device="meta").stride()
            chain = Chain(method, torch.zeros_like(x, dtype=torch.float32 if x.dtype in HALF else x.dtype), 1)
            chain.take(0, x.to(torch.float32) if x.dtype in HALF else x)
            self.stored = chain.codes[0], chain.scales[0]
        real = torch.view_as_real if x.is_complex() else torch.Tensor.detach
        wide = torch.promote_types(x.dtype, torch.complex64 if x.is_complex() else torch.float32)
        self.error = relative(real(self.state().to(wide) - x.to(wide)), real(x.to(wide)), self.axes)

    def state(self) -> Tensor:
        """The state as it was rounded."""
        codes = self.stored[0]
        if len(self.stored) == 1:
            return codes
        values = codes * self.stored[1].abs().to(torch.promote_types(self.stored[1].dtype, torch.float32))
        values = torch.view_as_complex(values) if self.dtype.is_complex else values
        return torch.empty_strided(values.shape, self.strides, dtype=self.dtype, device=codes.device).copy_(values)


def rounded(
    layer: Any, plain: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], method: Checkpoint
) -> Any:
    """What the layer returns, all tensors of it that need a gradient as outputs of one node.

    Args:
        layer: a converted one.
        plain: its own forward pass.
        args, kwargs: of its call.
        method: one with bits.

    Raises:
        GradientError: the state is off by more than the method's tolerance.
        ConversionError: the layer reads a tensor that was computed outside of it and is no argument of it.
    """
    x, arguments = arguments_of(layer, args, kwargs)
    arguments = copied(arguments)
    rerun = Rerun(layer, plain, x, arguments, state_name(layer, args))
    state = RoundedState(method, x) if isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex()) else None
    if state is not None and method.tolerance is not None and not (error := float(state.error)) <= method.tolerance:
        raise method.off(error)
    first = copied(x)  # a list of states: the layer may add to its own
    since = now()
    out = rerun.first(x, lambda: plain(*args, **kwargs))
    rerun.require_unhooked()
    leaves, unflatten = tree_flatten(out)
    indices = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad]
    if not indices:
        return out
    handed = tree_leaves((arguments, ()) if state is not None else (arguments, first))
    extras = unique(leaf for leaf in handed if isinstance(leaf, Tensor) and leaf.requires_grad)
    own = (x,) if state is not None else ()
    weights = rerun.weights([leaves[i] for i in indices], (*own, *extras), since)
    link = RoundedLink(rerun, layer.odenet_run, method, x, first, state, arguments, extras, weights, indices)
    end = LayerEnd.of(out) if link.begins or turns() == 0 else None
    if state is not None:
        link.measure(x, state.state(), [leaves[i] for i in indices])
    link.end = end  # since now: until here it is what it was
    for i, leaf in zip(
        indices, _RoundedNode.apply(link, [leaves[i] for i in indices], *own, *extras, *weights), strict=True
    ):
        leaves[i] = leaf
    return unflatten(leaves)


class RoundedLink:
    """One call of a layer, in a chain of those whose states the others are called with.

    Args:
        rerun: the call.
        run: whose layer it is.
        method: one with bits.
        x: what the layer is called with first.
        first: the same, in containers of its own.
        state: x, rounded; None where it is no tensor of real numbers.
        arguments: the others.
        extras: the tensors among all these, beside a rounded x, that need a gradient.
        weights: the other tensors that do.
        indices: the places among the leaves of what the layer returns that need one.
    """

    def __init__(
        self,
        rerun: Rerun,
        run: LayerRun,
        method: Checkpoint,
        x: Any,
        first: Any,
        state: RoundedState | None,
        arguments: Any,
        extras: tuple[Tensor, ...],
        weights: tuple[Tensor, ...],
        indices: list[int],
    ) -> None:
        self.rerun, self.run, self.method = rerun, run, method
        self.state, self.weights, self.indices = state, weights, indices
        self.end: LayerEnd | None = None
        self.rounds = state is not None
        self.errors: tuple[Tensor, Tensor] | None = None
        self.strayed = 0.0
        """By which part of what the layer adds it does something else at the rounded state, where it jumps."""
        # without a graph: what computed an argument is the business of the argument's own node
        apart = {id(tensor): tensor.detach().requires_grad_() for tensor in extras}
        self.extras = tuple(apart.values())
        self.first = None if state is not None else tree_map(lambda leaf: apart.get(id(leaf), leaf), first)
        self.arguments = tree_map(lambda leaf: apart.get(id(leaf), leaf), arguments)
        before = getattr(x.grad_fn, "link", None) if isinstance(x, Tensor) else None
        self.index: int = before.index + 1 if isinstance(before, RoundedLink) and before.run is run else 0
        self.begins, self.spent = self.index == 0, False
        self.alarm = alarm(run) if self.begins else None
        if self.begins:
            run.forget()

    def measure(self, x: Tensor, rounded: Tensor, outputs: list[Tensor]) -> None:
        """The error of the layer's VJP, if it is time to look at it again."""
        layer: Any = self.rerun.layer
        ways: CallModes = layer._odenet_ways
        ways.calls += 1
        if due(ways.calls - 1) and not watched(layer):
            cotangents = [cotangent(y) for y in outputs]
            before = 1 + len(self.extras)
            # hooks that log a gradient log this one, too
            with self.rerun.traceless(), unseen():
                exact, approximate = (self.gradients(state, cotangents) for state in (x, rounded))
            self.errors = apart(approximate[:before], exact[:before]), apart(approximate[before:], exact[before:])

    def gradients(self, x: Any, cotangents: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Those by x where that is a state, by the given tensors and by the weights, at this x."""
        with self.rerun.again(), unhooked(self.weights), torch.enable_grad():
            if self.rounds:
                x = x.detach().requires_grad_()
            out = self._again(x)
            leaves = tree_leaves(out)
            if self.end is not None:
                self._held(self.end, x, out)
            outputs = [leaves[i] for i in self.indices]
            pairs = [(y, g) for y, g in zip(outputs, cotangents, strict=True) if g is not None and y.requires_grad]
            sources: list[Any] = [*((x,) if self.rounds else ()), *self.extras, *self.weights]
            if not pairs:  # as torch.autograd.gradcheck asks for
                return [None] * len(sources)
            ys, gs = zip(*pairs, strict=True)
            return [*torch.autograd.grad(ys, sources, gs, allow_unused=True)]

    def _held(self, end: LayerEnd, x: Any, out: Any) -> None:
        """Hold what the layer returns at this x against what it did at the one that was rounded.

        Raises:
            GradientError: it is another layer.
        """
        name = type(self.rerun.layer).__name__
        if self.state is None:
            end.require(name, x, out)
        else:
            self.strayed = end.strayed(name, x.detach(), out, self._again, float(self.state.error))

    def _again(self, x: Tensor) -> Any:
        arguments = copied(self.arguments)
        return self.rerun.repeat(lambda: self.rerun.call(copied(x), arguments))

    def pull(self, cotangents: tuple[Tensor | None, ...]) -> list[Tensor | None]:
        """The gradients by x where that is rounded, by the given tensors and by the weights."""
        if self.spent:
            raise spent()
        gradients = self.gradients(self.first if self.state is None else self.state.state(), cotangents)
        self._note(gradients)
        if not _retained():
            self.spent, self.state = True, None
        return gradients

    def _note(self, gradients: list[Tensor | None]) -> None:
        if self.method != self.run.gradient:
            return
        layer = self.rerun.layer
        if self.state is not None:
            stats = Stats("torch", solver_named("euler").label, self.method.label, 1, 1, residual=self.state.error)
            self.run.note(self.index, layer, stats)
            errors, measured = None, self.errors
            if self.strayed:
                squared = torch.tensor(min(self.strayed, 1.0) ** 2, dtype=torch.float64)
                by_state, by_weights = (torch.maximum(x, squared.to(x)) for x in measured or (squared, squared))
                measured = by_state, by_weights
            if measured is not None:
                sizes = square(gradients[1 + len(self.extras) :]), square(gradients[:1] if self.begins else ())
                errors = LayerErrors(type(layer).__name__, *measured, *sizes)
            self.run.measured.note(self.method.label, errors)
        if self.begins:
            self.run.certify(self.alarm)


class _RoundedNode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, link: RoundedLink, outputs: list[Tensor], *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.link = link
        ctx.set_materialize_grads(False)
        return tuple(leaf.detach() for leaf in outputs)

    @staticmethod
    @as_raised
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        link: RoundedLink = ctx.link
        refuse_second_derivatives(link.method.label)
        if link.state is not None:  # whose error is measured
            refuse_batches(cotangents, f"gradient={link.method.label!r}", "gradient='checkpoint'")
        return None, None, *link.pull(cotangents)
