"""What the evaluations of `odeint_adjoint`'s forward pass drew, and the way to evaluate the field again as it was.

Dropout draws the same mask in the step of the backward pass that goes over a step of the forward pass, and BatchNorm
does not count a batch again. Only a field that draws in its first evaluation is watched: others cost nothing more.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from odenet import GradientError
from odenet.kit import Tableau
from odenet_torch.field import random_state
from odenet_torch.field.called_modules import indifferent
from odenet_torch.field.surroundings import no_trace

Value = TypeVar("Value")
OnStage = Callable[[int, int, float, float], None]
_CLOSE = 1e-4  # of a step: how far apart its ends may lie on the two ways


class Recording:
    """Of one solve.

    Args:
        func: the user's function, whose modules are looked at.
        device: of the state.
    """

    def __init__(self, func: Callable[..., Any], device: torch.device) -> None:
        self.func = func
        self.device = device
        self.count = 0
        self.draws = False
        """Whether the field drew random numbers in its first evaluation."""
        self.tableau: Tableau | None = None
        """The tableau of the forward pass; None for an adaptive method."""
        self.accepted: tuple[Tableau, list[float]] | None = None
        """That of an adaptive method, and the ends of its steps."""
        self.perturb = False
        self.ends: list[tuple[float, float]] = []
        self.states: dict[tuple[int, int], list[Tensor]] = {}
        self.place: tuple[int, int] | None = None
        """Step and stage that are evaluated next, where that is known."""
        self.backward = False

    def first(self, call: Callable[[], Value]) -> Value:
        """The first evaluation, made before the solve, whose result the first stage of the first step then has."""
        before = random_state.state(self.device)
        value = call()
        self.count = 1
        self.draws = self._drew(before, call)
        if self.draws:
            self.states[0, 0] = before
        return value

    def _drew(self, before: list[Tensor], call: Callable[[], Any]) -> bool:
        """After a call: whether it has drawn random numbers, and not another thread."""
        after = random_state.state(self.device)
        if random_state.same(before, after):
            return False
        with no_trace([self.func]), torch.no_grad():
            drew = random_state.draws(call, functools.partial(random_state.read, self.device))
        random_state.restore(self.device, after)
        return drew

    def evaluate(self, call: Callable[[], Any]) -> Any:
        """The field, on the forward pass or back."""
        self.count += 1
        first = self.count == 1
        if not (first or self.draws):
            return call()
        place, self.place = self.place, None
        if self.backward:
            if place is not None and place in self.states:
                random_state.restore(self.device, self.states[place])
            return call()
        before = random_state.state(self.device)
        value = call()
        if first:
            self.draws = self._drew(before, call)
        if self.draws and place is not None:
            self.states.setdefault(place, before)
        return value

    def forth(self, tableau: Tableau, perturb: bool) -> OnStage:
        """For a method: what is told of the step and stage that come next, and the ends of the step."""
        self.tableau, self.perturb = tableau, perturb

        def on_stage(n: int, stage: int, start: float, end: float) -> None:
            if n == len(self.ends):
                self.ends.append((start, end))
            self.place = n, stage

        return on_stage

    def back(self, tableau: Tableau) -> OnStage | None:
        """The same in the backward pass: None where nothing was drawn.

        Raises:
            GradientError: of the step, if it is not one of the forward pass.
        """
        if not self.draws:
            return None
        assert self.tableau is not None
        stages = _stages_forth(self.tableau, tableau)

        def on_stage(n: int, stage: int, start: float, end: float) -> None:
            self.place = self._step(end, start), stages[stage]

        return on_stage

    def anew(self) -> OnStage | None:
        """The same for steps that are taken as in the forward pass, again: None where nothing was drawn."""

        def on_stage(n: int, stage: int, start: float, end: float) -> None:
            self.place = self._step(start, end), stage

        return on_stage if self.draws else None

    @contextlib.contextmanager
    def again(self, adaptive: bool) -> Iterator[None]:
        """The backward pass: random state and the statistics of normalisation are as before when it is over.

        Raises:
            GradientError: the field draws, and the steps follow the error: what it drew belongs to no step back.
        """
        if self.draws and (adaptive or self.tableau is None):
            raise _not_replayed("whose steps follow its error")
        self.backward = True
        state = random_state.state(self.device)
        try:
            with lent_buffers(module for module in modules_of(self.func) if indifferent(module)):
                yield
        finally:
            if self.draws:
                random_state.restore(self.device, state)

    def _step(self, start: float, end: float) -> int:
        for n, (a, b) in enumerate(self.ends):
            if max(abs(a - start), abs(b - end)) <= _CLOSE * abs(b - a):
                return n
        raise _not_replayed(f"which takes a backward step from t={end:.8g} to {start:.8g} without a forward step there")


def _stages_forth(forth: Tableau, back: Tableau) -> list[int]:
    """For each stage of a step back, the stage of the step forth whose draw it takes.

    One of the same weight, so that the whole step weighs each draw as it did; of several the nearest in time.
    """
    count = range(forth.step_stages)
    stages = []
    for node, weight in zip(back.c[: back.step_stages], back.b, strict=False):
        alike = [i for i in count if forth.b[i] == weight] or list(count)
        stages.append(min(alike, key=lambda i: abs(forth.c[i] - (1 - node))))
    return stages


def _not_replayed(reason: str) -> GradientError:
    return GradientError(
        f"a field that draws random numbers (dropout in training?) with odeint_adjoint, {reason}",
        "methods of fixed steps whose steps are the same on both ways, which draw the same numbers again; or odeint",
        "call func.eval(), take odeint, or a method such as rk4 without step_size or with one that divides the times",
    )


@contextlib.contextmanager
def lent_buffers(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, modules have copies of their buffers, so that what they write on these is forgotten."""
    swapped: list[tuple[nn.Module, str, Tensor]] = []
    for module in modules:
        swapped += [(module, name, b) for name, b in module._buffers.items() if b is not None and not b.requires_grad]
    for module, name, buffer in swapped:
        module._buffers[name] = buffer.detach().clone()
    try:
        yield
    finally:
        for module, name, buffer in reversed(swapped):
            module._buffers[name] = buffer


def modules_of(func: Callable[..., Any]) -> list[nn.Module]:
    """The modules that a function is, or is seen to hold: itself, its object, what it closes over or names."""
    roots: list[Any] = [func]
    modules: dict[int, nn.Module] = {}
    visited: set[int] = set()
    while roots:
        value = roots.pop()
        if id(value) in visited:
            continue
        visited.add(id(value))
        if isinstance(value, nn.Module):
            modules |= {id(module): module for module in value.modules()}
        elif isinstance(value, functools.partial):
            roots += [value.func, *value.args, *value.keywords.values()]
        elif inspect.ismethod(value):
            roots += [value.__self__, value.__func__]
        elif inspect.isfunction(value):
            cells = list(inspect.getclosurevars(value).nonlocals.values())
            names = [value.__globals__.get(name) for name in value.__code__.co_names]
            defaults = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
            roots += [member for member in (*cells, *names, *defaults) if _may_hold(member)]
        elif isinstance(value, (list, tuple)):
            roots += [member for member in value if _may_hold(member)]
        elif isinstance(value, dict):
            roots += [member for member in value.values() if _may_hold(member)]
        elif value is func or callable(value):
            roots += [member for member in getattr(value, "__dict__", {}).values() if _may_hold(member)]
    return list(modules.values())


def _may_hold(value: Any) -> bool:
    if isinstance(value, (list, tuple, dict)):
        return len(value) < 1000
    plain = inspect.ismodule(value) or inspect.isclass(value) or inspect.isbuiltin(value)
    return not plain and (callable(value) or isinstance(value, nn.Module))
