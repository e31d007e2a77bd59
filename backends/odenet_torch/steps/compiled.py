"""The trial step of an adaptive solve as one compiled graph: stages, error and norm, which eager torch does op by op.

What changes from step to step enters as a tensor (times and size of the step in one, the tolerances, the weights of a
layer), so that one graph serves all steps of all solves of a field with states of one shape. The controller is a few
operations on Python floats beside the one number that is read of a step, and stays outside.

Graphs are kept by what the field is made of: a module or another object, and of functions their code, so that a lambda
that is made anew at each call finds its graph.

Over 250 lines: the graph, what it is kept by, and the refusals of what no graph can hold belong together.
"""

from __future__ import annotations

import functools
import itertools
import types
import warnings
import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
import torch._functorch.config as functorch
from torch import Tensor

from odenet import Backprop, InputError, Problem, Span, UnsupportedError
from odenet.kit import Tableau, Trial, tree_flatten, tree_map
from odenet.kit import trial as trial_step
from odenet_torch.field.differentiating import transformed
from odenet_torch.field.field import FunctionField, Stand
from odenet_torch.field.state import Layout, Leaves
from odenet_torch.steps.accepted import Accepted
from odenet_torch.steps.size_control import AdaptiveLoop
from odenet_torch.steps.tolerance import within

_CHOICES = ("backend", "options")
_MOST = 4
"""Graphs that one solve may compile: with and without gradients, and as often again for what a step ends with."""
_KEPT: weakref.WeakKeyDictionary[Any, dict[Hashable, _Graph]] = weakref.WeakKeyDictionary()
_NUMBERS = itertools.count()

Choices = Mapping[str, Any]


class _Graph:
    """A trial step, compiled when it is first called.

    Args:
        step: a function; it is compiled under a code object of its own, since torch counts what it compiles by these.
        choices: of the user.
    """

    def __init__(self, step: types.FunctionType, choices: Choices) -> None:
        self.step, self.choices = step, choices
        self.count = 0
        self.modes: set[tuple[bool, bool]] = set()
        """In which it has run: whether steps have a gradient, and whether autograd is on."""
        self.renew()

    def renew(self) -> None:
        """Forgets what is compiled."""
        self.modes.clear()
        step = self.step
        code = step.__code__.replace(co_name=f"trial_step_{next(_NUMBERS)}")
        alone = types.FunctionType(code, step.__globals__, code.co_name, step.__defaults__, step.__closure__)
        self.run = torch.compile(alone, fullgraph=True, dynamic=False, backend=self._compile)

    def _compile(self, graph: Any, inputs: Any) -> Any:
        """What torch.compile calls with each graph."""
        self.count += 1
        backend, options = self.choices.get("backend", "inductor"), dict(self.choices.get("options") or {})
        # a graph that overwrites what it has saved could not be gone back twice (retain_graph=True)
        with functorch.patch(donated_buffer=False):
            if backend == "inductor":
                from torch._inductor.compile_fx import compile_fx

                # random numbers are those that the eager field draws
                return compile_fx(graph, inputs, config_patches={"fallback_random": True, **options})
            function = backend if callable(backend) else torch._dynamo.lookup_backend(backend)
            return function(graph, inputs, **({"options": options} if options else {}))


class CompiledSteps:
    """The trial steps of one solve.

    Args:
        field: a function's, with weights that are the same at all places, or divided into layers.
        loop: with the method, and the tolerance of its error.
        layout: of the state.
        grid: with the times of the layers.
        choices: see `checked`.
        y, first: leaves of the state, and of the slope there.

    Raises:
        UnsupportedError: within a transform that sees no compiled graph.
    """

    def __init__(
        self,
        field: FunctionField,
        loop: AdaptiveLoop,
        layout: Layout,
        grid: Accepted,
        choices: Choices,
        y: Leaves,
        first: Leaves,
    ) -> None:
        if transformed():
            raise UnsupportedError(
                "compile within a transform of torch.func or forward-mode differentiation, which see no compiled graph",
                "compile=False there",
            )
        self.field, self.grid, self.layout = field, grid, layout
        self.recorded = torch.is_grad_enabled() and any(leaf.requires_grad for leaf in (*y, *first))
        self.linear = field.depth is not None and field.depth.kind == "linear"
        tolerance = loop.tolerance
        self.norm = tolerance.norm if tolerance.named is None else None
        self.rtol, self.atol = (
            tuple(
                torch.as_tensor(number, dtype=leaf.real.dtype, device=leaf.device)
                for number, leaf in zip(numbers, y, strict=True)
            )
            for numbers in (tolerance.rtol, tolerance.atol)
        )
        memory, (anchor, more) = layout.memory, _anchor(field.traced)
        kinds = (layout.dtypes, layout.time, layout.device, tuple(leaf.shape for leaf in y))
        tree = str(tree_map(lambda _: 0, layout.unflatten(y)))
        key = (loop.tableau, tolerance.named, self.linear, memory.lends, memory.takes, kinds, tree, str(choices), *more)
        kept = _KEPT.setdefault(anchor, {})
        if key not in kept:
            kept[key] = _Graph(_step(loop.tableau, layout, self.linear, None if self.norm else tolerance.norm), choices)
        self.graph, self.before = kept[key], kept[key].count
        self.last: Leaves | None = None

    def enter(self, leaves: Leaves) -> Leaves:
        """A state or a slope as graphs take it: laid out and differentiable alike, whatever it comes from."""
        if not self.recorded:
            return tuple(leaf.contiguous() for leaf in leaves)
        # an alias: for a graph, a parameter is something else than a tensor
        return tuple(
            leaf.view_as(leaf).contiguous() if leaf.requires_grad else leaf.detach().contiguous().requires_grad_()
            for leaf in leaves
        )

    def trial(self, t: float, t1: float, times: Sequence[float], y: Leaves, first: Leaves) -> tuple[Trial, float]:
        """A step (see `odenet.kit.trial`) without its error, and the error's ratio to what is allowed.

        Args:
            t, t1: its ends.
            times: of its stages.
            y: the state at its start, from `enter` or the step before.
            first: the slope there.
        """
        numbers, layer = [t1 - t, *times], self.grid.place((t + t1) / 2)[0]
        if self.linear:
            start, end = self.grid.layers[layer : layer + 2]
            numbers += [min(1.0, max(0.0, (time - start) / (end - start))) for time in times]
        operands = torch.tensor(numbers, dtype=self.layout.time, device=self.layout.device)
        first = first if first is self.last else self.enter(first)
        field, count = self.field, self.grid.count

        def run(stand: Stand | None) -> Any:
            arguments = (field.traced, self.norm, y, first, operands, self.rtol, self.atol)
            return self._run(*arguments, field.around(layer, count, stand))

        reads = (field.inner or field.reads) if self.recorded else None
        y1, slopes, ratio = (
            run(None) if reads is None else reads.evaluate(run, field.explicit(layer, count), field.module)
        )
        # a field that reads nothing at the end of a step has a slope without a gradient there
        self.last = slopes[-1] if not self.recorded or all(k.requires_grad for k in slopes[-1]) else None
        return Trial(y1, (), (first, *slopes)), ratio.item()  # the step's one host read

    def _run(self, *arguments: Any) -> Any:
        graph, mode = self.graph, (self.recorded, torch.is_grad_enabled())
        try:
            if mode in graph.modes:
                outputs = graph.run(*arguments)
            else:
                with warnings.catch_warnings():
                    # torch warns of itself as it compiles: that it asks states for their .grad, and of what it imports
                    warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
                    warnings.simplefilter("ignore", DeprecationWarning)
                    outputs = graph.run(*arguments)
                graph.modes.add(mode)
        except Exception as error:
            if not _of_compiler(error):
                raise
            if not _too_often(error) or graph.count - self.before >= _MOST:
                raise _refused(error) from error
            graph.renew()  # other modules under the same code, as in a function that makes fields
            return self._run(*arguments)
        if not graph.count:
            raise UnsupportedError(
                "compile, and torch.compile is switched off (by TORCHDYNAMO_DISABLE, or a setting of torch._dynamo)",
                "compile=False",
                "leave out compile, or switch it on",
            )
        return outputs


def _step(tableau: Tableau, layout: Layout, linear: bool, norm: Callable[[Leaves], Tensor] | None) -> Any:
    """The function that is compiled. It holds nothing of the solve that it was made in but plain data."""
    single, dtypes, carried, unflatten = layout.single, layout.dtypes, layout.carried, layout.unflatten
    cast, stages = dtypes != carried, tableau.stages
    lends, takes = layout.memory.lends, layout.memory.takes

    def step(
        f: Any, norm_of: Any, y: Leaves, first: Leaves, of: Tensor, rtol: Leaves, atol: Leaves, weights: Any
    ) -> Any:
        h = of[0]

        def stage(i: int, at: Leaves) -> Leaves:
            leaves = tuple(leaf.clone() for leaf in at) if lends else at
            if cast:
                leaves = tuple(leaf.to(kind) for leaf, kind in zip(leaves, dtypes, strict=True))
            read = weights
            if linear:
                place, (start, end) = of[stages + 1 + i], weights
                read = (_mixed(start, end, place),)
            value = f(of[1 + i], leaves[0] if single else unflatten(leaves), *read)
            slope = [value] if single else tree_flatten(value)[0]
            slope = [k.clone() for k in slope] if takes else slope
            return tuple([_slope(k, leaf, kind) for k, leaf, kind in zip(slope, at, carried, strict=True)])

        attempt = trial_step(tableau, stage, y, h, first)
        ratio = within(norm or norm_of, attempt.error, y, attempt.y1, rtol, atol)
        y1 = tuple([leaf.contiguous() for leaf in attempt.y1])
        return y1, tuple([tuple([leaf.contiguous() for leaf in k]) for k in attempt.slopes[1:]]), ratio

    return step


def _slope(k: Any, like: Tensor, kind: torch.dtype) -> Tensor:
    if k.shape != like.shape:
        raise ValueError(f"the field returned shape {tuple(k.shape)} for a state of shape {tuple(like.shape)}")
    return k.to(kind)


def _mixed(one: Any, other: Any, place: Tensor) -> Any:
    """Weights between two layers; what is no tensor is the same in both."""

    def mix(a: Any, b: Any) -> Any:
        return (1 - place.to(a.dtype)) * a + place.to(a.dtype) * b if isinstance(a, Tensor) else a

    return tree_map(mix, one, other)


def compilable(problem: Problem) -> Choices:
    """The choices of a problem whose steps are to be compiled.

    Raises:
        UnsupportedError: equal steps, rows with steps of their own, or a way back that runs the field step by step.
        InputError: see `checked`.
    """
    assert problem.compile is not None
    if not isinstance(problem.grid, Span):
        raise UnsupportedError(
            "compile with equal steps",
            "compile with tolerances",
            "compile() of a ResidualStack or a NeuralODE compiles its blocks or its field",
        )
    if problem.grid.control.per_sample:
        raise UnsupportedError("compile with per_sample=True", "steps for all rows", "leave out one of them")
    if not isinstance(problem.gradient, Backprop):
        raise UnsupportedError(
            f"compile with gradient {problem.gradient.label!r}, whose way back runs the field by itself",
            "backprop",
            "leave out compile, or take gradient='backprop'",
        )
    return checked(problem.compile)


def checked(choices: Choices) -> Choices:
    """The user's choices of how to compile.

    Raises:
        InputError: others than those of torch.compile that make sense for a step.
    """
    if strange := sorted(set(choices) - set(_CHOICES)):
        raise InputError(
            f"compile with {', '.join(strange)}",
            f"{', '.join(_CHOICES)} of torch.compile",
            "a step is always compiled as one graph, for the shapes that it has",
        )
    backend, options = choices.get("backend", "inductor"), choices.get("options") or {}
    if not callable(backend) and backend not in torch._dynamo.list_backends(exclude_tags=()):
        raise InputError(f"compile with backend={backend!r}", ", ".join(torch._dynamo.list_backends()))
    if options.get("triton.cudagraphs"):
        raise InputError(
            "compile with triton.cudagraphs: a graph's outputs lie where its next run writes, and a solve keeps them",
            "other options of inductor",
        )
    return choices


def _anchor(function: Any) -> tuple[Any, tuple[Hashable, ...]]:
    """What graphs are kept by, and what more tells them apart."""
    if isinstance(function, functools.partial):
        anchor, more = _anchor(function.func)
        bound = [_anchor(argument)[0] for argument in function.args if callable(argument)]
        return (bound[0], (*more, anchor)) if bound else (anchor, more)
    if isinstance(function, types.MethodType):
        anchor, more = _anchor(function.__self__)
        return anchor, (*more, function.__func__.__qualname__)
    if isinstance(function, types.FunctionType):
        return function.__code__, ()
    try:
        hash(function)
        weakref.ref(function)
    except TypeError:
        return type(function), ()
    return function, ()


def _of_compiler(error: Exception) -> bool:
    """Whether torch.compile, and not what it runs, failed."""
    return any(kind.__module__.startswith(("torch._dynamo", "torch._inductor")) for kind in type(error).__mro__)


def _too_often(error: Exception) -> bool:
    return "Limit" in type(error).__name__


def _refused(error: Exception) -> UnsupportedError:
    text = " ".join(str(error).split("\n\nfrom user code")[0].split())
    if _too_often(error):
        return UnsupportedError(
            f"compile of a field that is another program at each step, as one that counts its calls is ({text[:600]})",
            "fields whose Python numbers and attributes stay as they are",
            "keep what changes in a tensor, or leave out compile",
        )
    if "compiler" in text.lower() and ("not found" in text.lower() or "InvalidCxxCompiler" in type(error).__name__):
        return UnsupportedError(
            f"compile without a working C++ compiler, which inductor needs ({text[:300]})",
            "compile={'backend': 'aot_eager'} needs none, and fuses nothing",
            "install g++ (or set CXX), or leave out compile",
        )
    return UnsupportedError(
        f"compile of a step whose field torch.compile cannot take as one graph ({type(error).__name__}: {text[:900]})",
        "fields without what ends a graph: branches on the values of tensors, .item(), NumPy, prints, autograd.grad",
        "write that part with torch operations (torch.where, torch.func), or leave out compile",
    )
