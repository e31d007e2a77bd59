"""A function as one compiled graph, what such a graph does beside computing, and the refusals of what none can hold.

Over 250 lines: the graph, what it is kept by, and its refusals belong together.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
import threading
import types
import warnings
import weakref
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch._functorch.config as functorch
from torch import Tensor
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode

from odenet import InputError, UnsupportedError
from odenet_torch.field.called_modules import uncached
from odenet_torch.field.differentiating import transformed
from odenet_torch.field.state import Leaves
from odenet_torch.steps.seeded import seeded

_CHOICES = ("backend", "options")
_MOST = 4
"""Graphs that one solve may compile: with and without gradients, and as often again for what a step ends with."""
_NUMBERS = itertools.count()

_OF_THE_COMPILER = (
    ("ignore", re.compile("The .grad attribute of a Tensor that is not a leaf"), Warning, None, 0),
    ("ignore", None, DeprecationWarning, None, 0),
)
"""Torch warns of itself as it compiles, which may be in any call: that it asks states for their .grad, of its imports.
They stand in `warnings.filters` for the time of a call, without `warnings.catch_warnings`: that would make Python
forget which warnings it has shown, and show those of the user's own code in each pass."""

Choices = Mapping[str, Any]


@dataclass(frozen=True)
class Effects:
    """What a graph does and reads beside computing values from what it is handed.

    Args:
        random: whether it draws random numbers.
        written: how many of the tensors that it reads it writes on.
        captured: the shapes of tensors that need a gradient among those that it reads.
        unread: which of its inputs are read by nothing in it.
    """

    random: bool
    written: int
    captured: tuple[tuple[int, ...], ...]
    unread: tuple[bool, ...]


class LastRun(threading.local):
    """What ran last of a graph, in this thread."""

    effects: Effects | None = None
    """Those of the graph, where they are looked at."""
    inputs: tuple[Any, ...] = ()
    """What it was handed."""
    outputs: tuple[Any, ...] = ()
    """What it returned."""
    code: Callable[..., Any] | None = None
    """What was called with these."""
    require: Callable[[Effects], None] | None = None
    """Raises an error for effects that a graph must not have; called before it runs."""


class Graph:
    """A function, compiled when it is first called.

    Args:
        function: it is compiled under a code object of its own, since torch counts what it compiles by these.
        choices: of the user.
        most: graphs that one solve may compile.
        examined: whether its effects are looked at.
        constants: what stands in its code in the place of a string. Torch takes it as it is, and compares all else that
            a function reads with what it was before each call.
    """

    def __init__(
        self,
        function: types.FunctionType,
        choices: Choices,
        most: int = _MOST,
        *,
        examined: bool = False,
        constants: Mapping[str, Any] = types.MappingProxyType({}),
    ) -> None:
        self.constants = constants
        self.function, self.choices, self.most, self.examined = function, choices, most, examined
        self.count = 0
        self.last = LastRun()
        self.random: set[Hashable] = set()
        """The modes of what it calls, in training or not, in which it is handed seeds (`odenet_torch.steps.seeded`)."""
        self.renew()

    def renew(self) -> None:
        """Forgets what is compiled."""
        function = self.function
        constants = tuple([self.constants.get(x, x) if type(x) is str else x for x in function.__code__.co_consts])
        code = function.__code__.replace(co_name=f"{function.__name__}_{next(_NUMBERS)}", co_consts=constants)
        alone = types.FunctionType(
            code, function.__globals__, code.co_name, function.__defaults__, function.__closure__
        )
        self.compiled = torch.compile(alone, fullgraph=True, dynamic=False, backend=self._compile)

    def run(self, before: int, *arguments: Any) -> Any:
        """The function's value.

        Args:
            before: its `count` when the solve began.
            arguments: of the function.

        Raises:
            UnsupportedError: what no graph can hold, a compiler that does not work or is switched off, or a mode that
                is to see each operation.
        """
        if torch._C._len_torch_dispatch_stack():
            raise UnsupportedError(
                "compile within a TorchDispatchMode, which sees each operation, as what counts them does",
                "compile=False there",
                "leave out the mode, or compile",
            )
        while True:
            filters: list[Any] = warnings.filters  # pyright: ignore[reportAssignmentType]
            filters[:0] = _OF_THE_COMPILER
            try:
                with uncached() if parametrize._cache_enabled else contextlib.nullcontext():
                    value = self.compiled(*arguments)
                break
            except Exception as error:
                if not _of_compiler(error):
                    raise
                if not _too_often(error) or self.count - before >= self.most:
                    raise _refused(error) from error
                self.renew()  # other modules under the same code, as in a function that makes fields
            finally:
                for known in _OF_THE_COMPILER:
                    with contextlib.suppress(ValueError):  # what ran may have emptied the list
                        filters.remove(known)
        if not self.count:
            raise UnsupportedError(
                "compile, and torch.compile is switched off (by TORCHDYNAMO_DISABLE, or a setting of torch._dynamo)",
                "compile=False",
                "leave out compile, or switch it on",
            )
        return value

    def _compile(self, graph: Any, inputs: Any) -> Any:
        """What torch.compile calls with each graph."""
        self.count += 1
        if not self.examined:
            return self._by_backend(graph, inputs)
        effects, own = _effects(graph)
        if own is None:
            compiled = self._by_backend(graph, inputs)
        else:
            # what autocast casts in it is cast in it already
            with torch._C._DisableAutocast():
                inner = self._by_backend(own, inputs)

            def compiled(*arguments: Any) -> Any:
                with torch._C._DisableAutocast():
                    return inner(*arguments)

        def examined(*arguments: Any) -> Any:
            if self.last.require is not None:
                self.last.require(effects)
            last = self.last
            last.effects, last.inputs, last.code = effects, arguments, examined
            last.outputs = outputs = compiled(*arguments)
            return outputs

        return examined

    def _by_backend(self, graph: Any, inputs: Any) -> Any:
        backend, options = self.choices.get("backend", "inductor"), dict(self.choices.get("options") or {})
        # a graph that overwrites what it has saved could not be gone back twice (retain_graph=True)
        with functorch.patch(donated_buffer=False):
            if backend == "inductor":
                from torch._inductor.compile_fx import compile_fx

                # random numbers are those that the eager field draws
                return compile_fx(graph, inputs, config_patches={"fallback_random": True, **options})
            function = backend if callable(backend) else torch._dynamo.lookup_backend(backend)
            return function(graph, inputs, **({"options": options} if options else {}))


class _Draws(TorchDispatchMode):
    """Whether random numbers are drawn."""

    any = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.any = self.any or torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))


def _effects(graph: Any) -> tuple[Effects, torch.fx.GraphModule | None]:
    """Those of a graph, which is run on tensors without numbers; and what to run in its place (see `seeded`)."""
    places = [node for node in graph.graph.nodes if node.op == "placeholder"]
    examples = [node.meta.get("example_value") for node in places]
    tensors = [example for example in examples if isinstance(example, Tensor)]
    # the mode that they were made in: the compiler goes on in another one
    without_numbers = next((mode for tensor in tensors if (mode := getattr(tensor, "fake_mode", None))), None)

    def copies() -> list[Any]:
        # a number of a tensor that torch 2.6 has read, as of a float that changes, is known of that tensor alone
        return [
            example.detach().clone()
            if isinstance(example, Tensor) and getattr(example, "item_memo", None) is None
            else example
            for example in examples
        ]

    with without_numbers or contextlib.nullcontext():
        own = seeded(graph, copies())
        with _Draws() as draws:
            handed = copies()
            (graph if own is None else own)(*handed)
        written = [copy for copy in handed if isinstance(copy, Tensor) and copy._version]
    captured = tuple(tuple(tensor.shape) for tensor in tensors if tensor.requires_grad)
    return Effects(draws.any, len(written), captured, tuple(not node.users for node in places)), own


def require_no_transform() -> None:
    """Raises UnsupportedError within a transform, which sees no compiled graph."""
    if transformed():
        raise UnsupportedError(
            "compile within a transform of torch.func or forward-mode differentiation, which see no compiled graph",
            "compile=False there",
        )


def require_repeatable(effects: Effects, what: str, instead: str) -> None:
    """Raises UnsupportedError for a graph that cannot run again as it ran.

    Args:
        effects: those of the graph.
        what: the call that runs it again.
        instead: another call, which does not.
    """
    for so, does, remedy in (
        (effects.random, "draws random numbers, as dropout does", "put the model in eval mode"),
        (effects.written, "writes on a buffer, as running statistics do", "put the model in eval mode"),
        (
            effects.captured,
            "reads tensors that need a gradient and are neither its parameters nor its weights "
            f"(of shape {', '.join(map(str, effects.captured))})",
            "pass them as weights, or make the field an nn.Module",
        ),
    ):
        if so:
            raise UnsupportedError(
                f"compile of {what}, of a field that {does}",
                "fields that give the same for the same",
                f"{remedy}, take {instead}, or leave out compile",
            )


def checked(choices: Choices) -> Choices:
    """The user's choices of how to compile.

    Raises:
        InputError: others than those of torch.compile that make sense for a step.
    """
    if not choices:
        return choices
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


def entered(leaves: Leaves, recorded: bool) -> Leaves:
    """A state or a slope as graphs take it: laid out and differentiable alike, whatever it comes from."""
    if not recorded:
        return tuple([leaf.detach().contiguous() for leaf in leaves])
    # an alias: for a graph, a parameter is something else than a tensor
    return tuple(
        [
            leaf.view_as(leaf).contiguous() if leaf.requires_grad else leaf.detach().contiguous().requires_grad_()
            for leaf in leaves
        ]
    )


def anchor(function: Any) -> tuple[Any, tuple[Hashable, ...]]:
    """What graphs are kept by, and what more tells them apart."""
    if isinstance(function, functools.partial):
        owner, more = anchor(function.func)
        bound = [anchor(argument)[0] for argument in function.args if callable(argument)]
        return (bound[0], (*more, owner)) if bound else (owner, more)
    if isinstance(function, types.MethodType):
        owner, more = anchor(function.__self__)
        return owner, (*more, function.__func__.__qualname__)
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
