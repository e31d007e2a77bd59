"""Layers in a row that are one solve: their last one computes the run as a `ResidualStack`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

import equinox as eqx
from jax import Array

from odenet import ConversionError, Gradient, InputError, UnsupportedError
from odenet.kit import AnySolver
from odenet_jax.conversion.arguments import Signature, parted, state_among, state_first
from odenet_jax.conversion.attached import Named, detach, name_of, plain_call
from odenet_jax.conversion.flax_layers import FlaxLayer, flax_layers, recomputed, write_back
from odenet_jax.conversion.increment import increment
from odenet_jax.conversion.pending import Addend, Call, Pending
from odenet_jax.field.block_state import gathered, marked_as, put_back
from odenet_jax.field.flax_modules import is_flax
from odenet_jax.nets.modules import ResidualStack, Unseen

_PROBE: ContextVar[Array | None] = ContextVar("probe", default=None)


@contextlib.contextmanager
def probing(probe: Array) -> Iterator[None]:
    """Converted runs that are called within have this probe (see `odenet_jax.solve`)."""
    token = _PROBE.set(probe)
    try:
        yield
    finally:
        _PROBE.reset(token)


@dataclass(frozen=True)
class Run:
    """What the layers of a run share.

    Args:
        count: how many layers.
        adds: whether the model adds what a layer returns to the state; else the layer does.
        solver, gradient, along: of the solve.
        unseen: what its alarm is known by.
    """

    count: int
    adds: bool
    solver: AnySolver
    gradient: Gradient
    along: Literal["piecewise", "linear"]
    unseen: Unseen = field(default_factory=Unseen)

    def solve(self, x: Array, calls: Sequence[Call], state: eqx.nn.State | None) -> tuple[Array, Any]:
        """The state after the last layer, and that of equinox's layers.

        Raises:
            ConversionError: layers that are not alike any more, or that are called in different ways.
        """
        signature, shared, own = parted([(call.arguments, call.named) for call in calls])
        layers = [call.layer for call in calls]
        plain: list[Any] = []
        if of_flax := is_flax(layers[0]):
            function, weights, rows = flax_layers(layers, x, (calls[0].arguments, calls[0].named))
            pairs = zip(weights, own, strict=True)
            steps: list[Any] = [FlaxStep(values, arrays, signature, self.adds, function) for values, arrays in pairs]
        else:
            plain = [detach(layer) for layer in layers]
            rows = None if state is None else gathered(plain, state)
            pairs = zip(plain, own, strict=True)
            steps = [Step(marked_as(layer, plain[0]), arrays, signature, self.adds) for layer, arrays in pairs]
        end = float(self.count - (self.along == "linear"))
        try:
            stack = ResidualStack(steps, solver=self.solver, gradient=self.gradient, along=self.along, t1=end)
        except InputError as error:
            raise ConversionError(
                f"{self.count} {name_of(layers[0])} of a run are not alike any more: {error.given}",
                "layers that differ in the values of their arrays alone",
                "convert the model again after a change of its layers, or take gradient='checkpoint'",
            ) from error
        object.__setattr__(stack, "unseen", self.unseen)  # a frozen module of our own
        probe = _PROBE.get()
        if probe is not None and probe.shape != ():
            raise UnsupportedError(
                f"certified_value_and_grad(..., rows={probe.shape[0]}) of a converted model",
                "one probe for all rows",
                "leave rows= out: the certificate is then the sum of the rows'",
            )
        result = stack(x, shared, state=rows, probe=probe)
        if rows is None:
            return result, state
        y, rows = result
        if of_flax:
            write_back(layers, steps[0].function.written, rows)
            return y, state
        assert state is not None
        return y, put_back(plain, state, rows)


@dataclass(frozen=True)
class Member:
    """Where a layer of a run stands (`odenet_jax.conversion.attached.Place`)."""

    run: Run
    index: int

    def call(self, layer: Any, arguments: tuple[Any, ...], named: Named) -> Any:
        """The state after the layer, which is pending until the last one is called.

        Raises:
            ConversionError: called out of turn.
        """
        run, name = self.run, f"layer {self.index} of a converted run of {self.run.count} {name_of(layer)}"
        x, others = state_first(layer, arguments, named)
        state = state_among(others)
        before = Pending(run, x, (), state) if self.index == 0 and not isinstance(x, Pending) else x
        if not isinstance(before, Pending) or before.run != run or len(before.calls) != self.index:
            raise ConversionError(
                f"{name} was called out of turn, or with another state than the layer before it returned",
                "all layers of the run, one after the other",
                "take gradient='checkpoint', with which each layer computes its own output",
            )
        if before.state is not state:
            raise ConversionError(
                f"{name} was called with another eqx.nn.State than the layer before it returned",
                "the state handed on from layer to layer",
                "take gradient='checkpoint'",
            )
        calls = (*before.calls, Call(layer, *others))
        value: Any = Pending(run, before.like, calls, state)
        if len(calls) == run.count:
            value, state = run.solve(before.like, calls, state)
        if run.adds:
            value = Addend(x, value, name)
        return value if before.state is None else (value, state)


class Step(eqx.Module):
    """A layer of equinox as a block of a stack.

    Args:
        layer: without the place that it stands in.
        own: arrays that it alone is called with.
        signature: of its arguments.
        adds: see `Run`.
    """

    layer: Any
    own: list[Array]
    signature: Signature = eqx.field(static=True)
    adds: bool = eqx.field(static=True)

    def __call__(self, x: Array, shared: list[Any], state: Any = None) -> Any:
        """What it adds to x, with a state also the state after it."""
        arguments, named = self.signature.filled(shared, self.own, state)

        def value(x: Array) -> tuple[Any, Any]:
            result = self.layer(x, *arguments, **named)
            return (result, None) if state is None else result

        slope, after = value(x) if self.adds else increment(value, x, type(self.layer).__name__)
        return slope if state is None else (slope, after)


class FlaxStep(eqx.Module):
    """The same for a layer of flax.nnx.

    Args:
        weights: the values of the variables that it does not write to.
        own, signature, adds: see `Step`.
        function: what a call of it computes.
    """

    weights: list[Any]
    own: list[Array]
    signature: Signature = eqx.field(static=True)
    adds: bool = eqx.field(static=True)
    function: FlaxLayer = eqx.field(static=True)

    def __call__(self, x: Array, shared: list[Any], state: Any = None) -> Any:
        """What it adds to x; if it writes to variables, also their values after it."""
        arguments, named = self.signature.filled(shared, self.own, None)

        def value(x: Array) -> tuple[Any, Any]:
            return self.function(self.weights, state or [], (x, *arguments), named)

        slope, after = value(x) if self.adds else increment(value, x, self.function.name)
        return slope if state is None else (slope, after)


@dataclass(frozen=True)
class Alone:
    """Where a layer stands that computes its own output, and again in the backward pass if its gradient is
    `checkpoint`."""

    again: bool

    def call(self, layer: Any, arguments: tuple[Any, ...], named: Named) -> Any:
        """What the layer's own code returns."""
        if not self.again:
            return plain_call(layer, *arguments, **named)
        if not is_flax(layer):
            return eqx.filter_checkpoint(plain_call)(layer, *arguments, **named)
        return recomputed(layer, arguments, named)
