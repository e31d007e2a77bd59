"""What dynamo, which traces programs for torch.compile, is to leave alone: a solve runs between its graphs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch

from odenet import UnsupportedError
from odenet.kit import ENTRY_CHECKS

Arguments = ParamSpec("Arguments")
Value = TypeVar("Value")


class WholeGraphError(UnsupportedError, AssertionError):
    """What dynamo is to raise as it is, and not as an error of its own, which it does with those that assert."""


def untraced(entry: Callable[Arguments, Value]) -> Callable[Arguments, Value]:
    """A function into which dynamo does not look.

    It would trace the loop, the looks at the field and the backward pass, which takes it minutes, and it fails at some.
    """
    alone: Any = torch.compiler.disable(entry)

    @functools.wraps(entry)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Value:
        if torch.compiler.is_dynamo_compiling():
            require_breaks()
            return alone(*args, **kwargs)
        return entry(*args, **kwargs)

    return call


@torch.compiler.assume_constant_result  # so that dynamo calls it as it traces, and what it raises ends the tracing
def require_breaks() -> None:
    """Of what dynamo does not look into, to be called where dynamo traces.

    Raises:
        UnsupportedError: it may not break its graph there: it traces for torch.export, or all is to be one graph. Torch
            before 2.9 wraps it in an error of dynamo's, with the same text.
    """
    from torch._dynamo.symbolic_convert import InstructionTranslator  # which alone knows it, of one graph

    tracer = InstructionTranslator.current_tx()
    if torch.compiler.is_exporting() if torch.__version__ >= "2.8" else tracer.export:
        raise UnsupportedError(
            "torch.export(..., strict=True) of a solve, into which dynamo does not look",
            "strict=False, the default since torch 2.8, which runs the solve and records its operations",
            "give strict=False to torch.export.export",
        )
    if getattr(tracer, "one_graph", False) or getattr(tracer, "error_on_graph_break", False):
        raise WholeGraphError(
            "torch.compile(..., fullgraph=True) around a solve, which runs between two graphs",
            "fullgraph=False; what a solve can compile are its blocks, by compile() of a ResidualStack, or steps, by "
            "compile=True",
            "leave fullgraph out, or compile what stands before and after the solve, each on its own",
        )


def _entered() -> None:
    """Before dynamo traces how the core reads arguments, which it may fail at: torch 2.6 does in a WeakSet."""
    if torch.compiler.is_dynamo_compiling():
        require_breaks()


ENTRY_CHECKS.append(_entered)
