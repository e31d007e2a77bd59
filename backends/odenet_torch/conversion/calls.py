"""A model called on an example: what its layers are called with and return, and whether two models give the same."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from odenet import ConversionError, InputError
from odenet.kit import tree_leaves
from odenet_torch.conversion.layer import Arguments, arguments_of, coarse, copied, difference
from odenet_torch.conversion.sums import version
from odenet_torch.field.surroundings import no_trace

_REMEDY = (
    "convert a part of the model with where=, call it with arguments as in the example, or allow more with tolerance= "
    "where this is rounding"
)


@dataclass
class Call:
    """One call of a layer.

    Args:
        x: its state, the first argument.
        arguments: the others.
        written: how often x had been written on when the layer was called.
        output: what it returned.
        left: how often x, and the new state, had been written on when it returned.
    """

    x: Any
    arguments: Arguments
    written: int
    output: Any = None
    left: tuple[int, int] = (0, 0)

    @property
    def state(self) -> Any:
        """The new state: what was returned, or the first of a tuple."""
        return self.output[0] if isinstance(self.output, tuple) and self.output else self.output

    @property
    def tail(self) -> tuple[Any, ...] | None:
        """What was returned after it; None where it was returned alone."""
        return self.output[1:] if isinstance(self.output, tuple) else None


def calls(model: nn.Module, modules: Sequence[nn.Module], example: Any) -> dict[int, list[Call]]:
    """The calls of some modules while the model runs on an example, by `id` of the module, in order.

    Raises:
        ConversionError: one is of TorchScript.
    """
    if scripted := [module for module in modules if isinstance(module, torch.jit.ScriptModule)]:
        raise ConversionError(
            f"a {scripted[0].original_name} is compiled by torch.jit, and its calls cannot be seen",
            "layers of Python",
            "leave out torch.jit.script and torch.jit.trace for the layers that are to be converted",
        )
    by_module: dict[int, list[Call]] = {id(module): [] for module in modules}

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x, arguments = arguments_of(module, args, kwargs)
        by_module[id(module)].append(Call(copied(x), copied(arguments), _version(x)))

    def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        call = by_module[id(module)][-1]
        call.output = output
        call.left = (_version(call.x), _version(call.state))

    with contextlib.ExitStack() as stack:
        for module in {id(module): module for module in modules}.values():
            stack.enter_context(_removed(module.register_forward_pre_hook(before, with_kwargs=True)))
            stack.enter_context(_removed(module.register_forward_hook(after, with_kwargs=True)))
        outputs(model, example, training=False)
    return by_module


@contextlib.contextmanager
def _removed(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


def _version(value: Any) -> int:
    return version(value) if isinstance(value, Tensor) else 0


def outputs(
    model: nn.Module, example: Any, training: bool, recorded: bool = False, complete: bool = False
) -> list[Tensor]:
    """The tensors that a model returns for an example.

    Random state (so that the next call draws the same numbers) and buffers are put back; modules stay in the mode.

    Args:
        model: any module.
        example: a tensor, a tuple of positional arguments, or a mapping of keyword arguments.
        training: the mode.
        recorded: whether as in training, with a graph.
        complete: whether the model is to have its parameters before it runs.

    Raises:
        ConversionError: it makes some as it runs.
        InputError: an example that is none of these, or no tensor in the output.
    """
    if not isinstance(example, (Tensor, tuple, Mapping)):
        raise InputError(
            f"an example that is a {type(example).__name__}",
            "what to call the model with: a tensor, a tuple of positional arguments, a mapping of keyword arguments",
        )
    try:
        inspect.signature(model.forward).bind(
            *(() if isinstance(example, Mapping) else example if isinstance(example, tuple) else (example,)),
            **(example if isinstance(example, Mapping) else {}),
        )
    except TypeError as error:
        raise InputError(
            f"an example that a {type(model).__name__} cannot be called with ({error})",
            "a tensor, all positional arguments in a tuple, or keyword arguments in a mapping",
        ) from None
    model.train(training)
    before = set(map(id, model.parameters()))
    with leaving_no_trace([model], recorded):
        out = called(model, example)
        added = [name for name, parameter in model.named_parameters() if id(parameter) not in before]
    if complete and added:
        raise ConversionError(
            f"a model that makes parameters as it runs ({', '.join(added[:3])})",
            "with this gradient method, models that have theirs",
            "call the model once on a batch, and then convert it; or take gradient='checkpoint'",
        )
    tensors = [leaf.detach().clone() for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
    if not tensors:
        raise InputError(
            f"a model that returns a {type(out).__name__} without tensors",
            "models that return a tensor, or a tuple, list or dict of tensors",
            "wrap it in a module that does",
        )
    return tensors


def called(model: nn.Module, example: Any) -> Any:
    """What a model returns on an example (see `outputs`)."""
    if isinstance(example, Mapping):
        return model(**example)
    return model(*example) if isinstance(example, tuple) else model(example)


@contextlib.contextmanager
def leaving_no_trace(modules: Sequence[nn.Module], recorded: bool = False) -> Iterator[None]:
    """Records nothing if it is not asked for; afterwards random state, buffers and attributes are as before."""
    inner = {id(module): module for outer in modules for module in outer.modules()}.values()
    buffers = [
        (module, key, buffer) for module in inner for key, buffer in module._buffers.items() if buffer is not None
    ]
    values = [buffer.clone() for _, _, buffer in buffers]
    # hooks that a model registers when it is called first, and a flag that they are there, go together
    hooks = [
        (hooks_of, dict(hooks_of))
        for module in inner
        for key, hooks_of in vars(module).items()
        if _of_hooks(key, hooks_of)
    ]
    devices = {p.device for module in modules for p in module.parameters() if p.device.type == "cuda"}
    with torch.set_grad_enabled(recorded), torch.random.fork_rng(devices=list(devices)), no_trace(modules):
        try:
            yield
        finally:
            for hooks_of, before in hooks:
                if hooks_of.keys() != before.keys():
                    hooks_of.clear()
                    hooks_of.update(before)
            for (module, key, buffer), value in zip(buffers, values, strict=True):
                with torch.no_grad():
                    if buffer.shape != value.shape:  # an observer of quantization makes room for its first batch
                        buffer.resize_(value.shape)
                    module._buffers[key] = buffer.copy_(value)


def _of_hooks(key: str, value: Any) -> bool:
    return key.startswith("_") and "_hooks" in key and isinstance(value, dict)


@contextlib.contextmanager
def in_mode(module: nn.Module, training: bool) -> Iterator[None]:
    """Inside, a module is in training, or in evaluation."""
    flags = [(inner, inner.training) for inner in module.modules()]
    module.train(training)
    try:
        yield
    finally:
        for inner, flag in flags:
            inner.training = flag


def check_unchanged(expected: Sequence[Tensor], converted: Sequence[Tensor], subject: str, tolerance: float) -> float:
    """The largest relative difference of outputs.

    Args:
        expected: of the model as it was.
        converted: as it is converted.
        subject: whose outputs, for the message.
        tolerance: see `convert`.

    Raises:
        InputError: another number of outputs, other shapes, or a larger difference.
    """
    if len(expected) != len(converted):
        raise InputError(
            f"converted, {subject} gives {len(converted)} tensors instead of {len(expected)}", "the same", _REMEDY
        )
    largest = 0.0
    for before, after in zip(expected, converted, strict=True):
        largest = max(largest, off := difference(before, after))
        if off > (allowed := coarse(tolerance, before)):
            raise InputError(
                f"converted, {subject} gives an output that is off by {off:.1e}",
                f"at most {allowed:.1e} of its largest entry",
                _REMEDY,
            )
    return largest
