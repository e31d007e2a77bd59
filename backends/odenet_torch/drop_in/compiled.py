"""The drop-in's steps as compiled graphs: those of fixed methods, and those of the adjoint with their VJPs.

The trial step of an adaptive method forth is `odenet_torch.steps.compiled`'s. What changes from step to step enters as
tensors, as there: the size of a step and the times of its stages, in one.

Over 250 lines: steps and their VJPs, fixed and adaptive, share how they become graphs.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from odenet.kit import Compile, Tableau, Trial, add, compiling, slopes, weigh
from odenet.kit import trial as attempted
from odenet_torch.drop_in.flow import OdeintProblem, parts
from odenet_torch.field.half_precision import HALF
from odenet_torch.field.state import Leaves
from odenet_torch.steps.graph import (
    Choices,
    Effects,
    Graph,
    anchor,
    checked,
    entered,
    require_no_transform,
    require_repeatable,
)

_KEPT: weakref.WeakKeyDictionary[Any, dict[Hashable, Graph]] = weakref.WeakKeyDictionary()


def choices(compile: Compile) -> Choices | None:
    """Those of a call; None where nothing is to be compiled.

    Raises:
        InputError: see `compiling` and `checked`.
    """
    chosen = compiling(compile)
    return None if chosen is None else checked(chosen)


def traced(flow: OdeintProblem) -> functools.partial[Tensor]:
    """`OdeintProblem.f` for a graph."""
    return functools.partial(_slope, flow.original or flow.func, flow.shapes, flow.wide)


def _slope(func: Any, shapes: tuple[torch.Size, ...] | None, wide: bool, t: Tensor, y: Tensor) -> Tensor:
    """What `OdeintProblem.f` does of each evaluation. The function may write on what it is handed."""
    y = y.clone()
    value = func(t.to(torch.float64 if wide else y.real.dtype), y if shapes is None else parts(y, shapes))
    value = value if shapes is None else torch.cat([part.reshape(-1) for part in value])
    return value.to(y.dtype) if y.is_complex() or not value.is_complex() else value  # that widens the state


class _Compiled:
    """A function of steps of one tableau, and its graph.

    Args:
        flow: the problem.
        chosen: see `choices`.
        tableau: the method.
        function: from the field's number types and the tableau to the function that is compiled.
    """

    def __init__(self, flow: OdeintProblem, chosen: Choices, tableau: Tableau, function: Callable[..., Any]) -> None:
        require_no_transform()
        self.flow, self.tableau, self.layout = flow, tableau, flow.layout()[0]
        self.traced = traced(flow)
        owner, more = anchor(self.traced)
        state = (self.layout.dtypes, self.layout.carried, self.layout.time, self.layout.device, flow.y0.shape)
        key = (function, tableau, state, str(chosen), *more)
        kept = _KEPT.setdefault(owner, {})
        if key not in kept:
            ((dtype,), (carried,)) = self.layout.dtypes, self.layout.carried
            kept[key] = Graph(function(dtype, carried, tableau), chosen, examined=True)
        self.graph, self.before = kept[key], kept[key].count

    def numbers(self, h: float, times: Sequence[float]) -> Tensor:
        """The size of a step and the times of its stages, as graphs take them."""
        return torch.tensor([h, *times], dtype=self.layout.time, device=self.layout.device)


class EqualSteps(_Compiled):
    """The steps of a fixed method."""

    def __init__(self, flow: OdeintProblem, chosen: Choices, tableau: Tableau) -> None:
        super().__init__(flow, chosen, tableau, _equal_step)
        self.recorded = torch.is_grad_enabled()
        self.last: Any = None

    def step(self, y: Leaves, numbers: Tensor) -> tuple[Leaves, Sequence[Leaves]]:
        """The state at the end of a step, and the slopes of its stages.

        Args:
            y: the state at its start.
            numbers: its size, and the times of its stages.
        """
        if y is not self.last:
            y = entered(y, self.recorded)
        numbers = entered((numbers,), self.recorded and numbers.requires_grad)[0]
        reads = self.flow.reads if self.recorded else None

        def run(_: Any) -> Any:
            return self.graph.run(self.before, self.traced, y, numbers)

        self.last, ks = run(None) if reads is None else reads.evaluate(run, (), self.flow.func)
        return self.last, ks

    def returned(self, y: Tensor) -> Tensor:
        """An output. States enter with a gradient, whether or not something has one: without, it is left out again."""
        effects = self.graph.last.effects
        own = self.flow.y0.requires_grad or self.flow.t.requires_grad
        # the state is one of those that are read with a gradient
        return y if own or effects is None or len(effects.captured) > 1 else y.detach()


def _stage(f: Any, dtype: torch.dtype, carried: torch.dtype, t: Tensor, y: Tensor) -> Tensor:
    """The field at a state as carried; it may hand out memory of its own."""
    value = f(t, y.to(dtype)).clone()
    if value.shape != y.shape:
        raise ValueError(f"the field returned shape {tuple(value.shape)} for a state of shape {tuple(y.shape)}")
    return value.to(carried)


def _equal_step(dtype: torch.dtype, carried: torch.dtype, tableau: Tableau) -> Any:
    def equal_step(f: Any, y: Leaves, of: Tensor) -> Any:
        h: Any = of[0]
        ks = slopes(tableau, lambda i, at: (_stage(f, dtype, carried, of[1 + i], at[0]),), y, h)
        (y1,) = add(y, weigh(None, h, tableau.b, ks))
        return (y1.contiguous(),), tuple([(k.contiguous(),) for (k,) in ks])

    return equal_step


class AugmentedSlope(tuple[Tensor, ...]):
    """A slope of the state and of its adjoint, and those of the quadratures: by time, then by each parameter."""

    parts: tuple[Tensor | None, ...] = ()


class AugmentedSteps(_Compiled):
    """Steps of the adjoint's backward pass: state, adjoint, and what a step adds to the quadratures.

    Args:
        flow, chosen, tableau: as above.
        params: that have a gradient.
        names: of each, as a parameter of the field.
        timed: whether times have a gradient.
        ratio: of errors of state and adjoint, to what is allowed; None where steps are not tried.
    """

    def __init__(
        self,
        flow: OdeintProblem,
        chosen: Choices,
        tableau: Tableau,
        params: Sequence[Tensor],
        names: Sequence[str],
        timed: bool,
        ratio: Callable[[Leaves, Leaves, Leaves], Tensor] | None = None,
    ) -> None:
        super().__init__(flow, chosen, tableau, _fixed_step_back if ratio is None else _trial_step_back)
        self.values = {name: p.detach() for name, p in zip(names, params, strict=True)}
        self.timed, self.ratio = timed, ratio
        self.added: list[Tensor | None] = []
        """What the last step adds to each quadrature."""
        self.errors: list[Tensor | None] = []
        self.attempt: Trial | None = None
        """The last step that was tried."""

    def enter(self, leaves: Leaves) -> Leaves:
        """See `entered`."""
        return entered(leaves, False)

    def step(self, both: Leaves, numbers: Tensor, first: Leaves | None = None) -> Trial:
        """A step; `added` and `errors` are of it.

        Args:
            both: state and adjoint at its start.
            numbers: its size, and the times of its stages.
            first: the slope there; None where the step evaluates it.
        """
        known: Any = None
        if first is not None:
            assert isinstance(first, AugmentedSlope)
            sources = (numbers[0], *self.values.values())
            filled = [
                torch.zeros_like(x) if part is None else part for x, part in zip(sources, first.parts, strict=True)
            ]
            known = self.enter(first), self.enter(tuple(filled[not self.timed :]))
        self.graph.last.require = _require
        with torch.no_grad():
            y1, error, ks, *sums = self.graph.run(
                self.before, self.traced.args, self.values, self.enter(both), known, numbers, self.timed
            )
        last, self.added, self.errors = [[*[None] * (not self.timed), *parts] for parts in sums]
        end = AugmentedSlope(ks[-1])
        end.parts = tuple(last)
        return Trial(y1, error, (*([] if first is None else [first]), *ks[:-1], end))

    def trial(self, t: float, t1: float, times: Sequence[float], y: Leaves, first: Leaves) -> tuple[Trial, float]:
        """See `odenet_torch.steps.size_control.CompiledTrials`."""
        assert self.ratio is not None
        self.attempt = attempt = self.step(y, self.numbers(t1 - t, times), first)
        return attempt, float(self.ratio(attempt.error, y, attempt.y1))


def _require(effects: Effects) -> None:
    require_repeatable(effects, "odeint_adjoint", "odeint")


def _augmented(dtype: torch.dtype, carried: torch.dtype, call: Any, values: Any, timed: bool, of: Tensor) -> Any:
    """The stages of a step, and what they leave: the slopes of the quadratures, one tuple a stage."""
    func, shapes, wide = call
    parts_of: list[Any] = []

    def stage(i: int, both: Leaves) -> Leaves:
        def f(y: Tensor, t: Tensor, values: Any) -> Tensor:
            def called(t: Tensor, y: Any) -> Any:
                return torch.func.functional_call(func, values, (t, y)) if values else func(t, y)

            return _stage(functools.partial(_slope, called, shapes, wide), dtype, carried, t, y)

        pulled: Any = torch.func.vjp(f, both[0], of[1 + i], values)
        value, vjp = pulled
        part, by_time, by_values = vjp(both[1])
        parts_of.append((*((by_time,) if timed else ()), *[by_values[name] for name in values]))
        return value, -part

    return stage, parts_of


def _fixed_step_back(dtype: torch.dtype, carried: torch.dtype, tableau: Tableau) -> Any:
    def fixed_step_back(call: Any, values: Any, both: Leaves, known: Any, of: Tensor, timed: bool) -> Any:
        stage, parts_of = _augmented(dtype, carried, call, values, timed, of)
        h: Any = of[0]
        ks = slopes(tableau, stage, both, h)
        y1 = add(both, weigh(None, h, tableau.b, ks))
        return _laid(y1), (), (_laid(ks[-1]),), _laid(parts_of[-1]), _totals(tableau.b, parts_of, of), ()

    return fixed_step_back


def _trial_step_back(dtype: torch.dtype, carried: torch.dtype, tableau: Tableau) -> Any:
    def trial_step_back(call: Any, values: Any, both: Leaves, known: Any, of: Tensor, timed: bool) -> Any:
        stage, parts_of = _augmented(dtype, carried, call, values, timed, of)
        first, parts = known
        parts_of.append(parts)
        attempt = attempted(tableau, stage, both, of[0], first)
        ks = tuple([_laid(k) for k in attempt.slopes[1:]])
        added, errors = _totals(tableau.b, parts_of, of), _totals(tableau.error_weights, parts_of, of)
        return _laid(attempt.y1), _laid(attempt.error), ks, _laid(parts_of[-1]), added, errors

    return trial_step_back


def _totals(weights: Any, parts_of: Sequence[Leaves], of: Tensor) -> Leaves:
    """What weighed stages add to the quadratures, which grow backward in time."""
    wide = [tuple([part.float() if part.dtype in HALF else part for part in parts]) for parts in parts_of]
    return _laid(weigh(None, -of[0], weights, wide)) if wide[0] else ()


def _laid(leaves: Leaves) -> Leaves:
    return tuple([leaf.contiguous() for leaf in leaves])
