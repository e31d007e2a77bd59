"""What modules can be called with: they pass all on to their `forward`, which alone knows it."""

from __future__ import annotations

import inspect
import types
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.nn.modules import module as _modules

from odenet import InputError


def require_arguments(
    module: nn.Module, arguments: Sequence[Any], named: Mapping[str, Any], what: str, allowed: str
) -> None:
    """Raises InputError, which calls the module `what`, where its `forward` cannot be called with these arguments.

    Modules of which that cannot be said go through: where hooks may change the arguments, and where a decorator wrote
    `forward`, whose signature is then that of what it decorates.
    """
    forward = getattr(type(module), "forward", None)
    if not isinstance(forward, types.FunctionType) or forward.__dict__ or "forward" in vars(module):
        return
    if type(module).__call__ is not nn.Module.__call__:
        return
    code = forward.__code__
    if not named and not code.co_flags & inspect.CO_VARARGS and not code.co_kwonlyargcount:
        most = code.co_argcount - 1
        if most - len(forward.__defaults__ or ()) <= len(arguments) <= most:
            return  # as nearly always, without a signature made of it: that takes as long as a step
    if module._forward_pre_hooks or _modules._global_forward_pre_hooks:
        return
    signature = inspect.signature(module.forward)
    try:
        signature.bind(*arguments, **named)
    except TypeError as error:
        raise InputError(f"{what} is a {type(module).__name__}, which takes {signature} ({error})", allowed) from None
