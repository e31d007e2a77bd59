"""What a user names by import path with options, `module:name,key=value,...`: an optimiser or data of their own."""

from __future__ import annotations

import ast
import difflib
import importlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from odenet._errors import InputError, UnknownNameError

_FORM = "module:name, with options as in torch.optim:AdamW,lr=1e-3,weight_decay=0.01"
_WORDS = {"true": True, "false": False, "none": None}  # as people write them: the text "false" would count as true


@dataclass(frozen=True)
class Imported:
    """An object that was imported, and how it is called.

    Args:
        text: as the user wrote it.
        object: what the path leads to.
        options: keyword arguments of the call.
        what: the kind of thing that was asked for, for messages.
    """

    text: str
    object: Any
    options: Mapping[str, Any] = field(default_factory=dict)
    what: str = "object"

    def __call__(self, *arguments: Any, **more: Any) -> Any:
        """What the object returns for these arguments and the options.

        Raises:
            InputError: it fails, with its own reason.
        """
        try:
            return self.object(*arguments, **more, **self.options)
        except Exception as error:  # code of somebody else's, which may fail in any way
            raise InputError(
                f"the {self.what} {self.text} cannot be made ({type(error).__name__}: {error})",
                "options that it takes, each with a value that it takes",
            ) from error

    @property
    def origins(self) -> set[str]:
        """The packages that the object and its classes are from: that of `torch.optim:Adam` are torch and builtins."""
        classes = self.object.__mro__ if isinstance(self.object, type) else (self.object, *type(self.object).__mro__)
        return {str(getattr(kind, "__module__", "")).partition(".")[0] for kind in classes}


def is_path(text: object) -> bool:
    """Whether a text is an import path with a colon, and no plain name."""
    return isinstance(text, str) and ":" in text


def imported(text: str, kind: str) -> Imported:
    """Import what a text names. Modules of the working directory are found behind those that are installed.

    Args:
        text: `module:name` or `module:name.name`, then options, each after a comma.
        kind: the kind of thing, for messages.

    Raises:
        InputError: a text of another form, a module that is not installed or cannot be imported.
        UnknownNameError: the module has nothing of that name.
    """
    path, *options = _parts(text)
    module, _, names = path.partition(":")
    if not module or not names or not all(part.isidentifier() for part in (*module.split("."), *names.split("."))):
        raise InputError(f"the {kind} {text!r}", _FORM)
    values: dict[str, Any] = {}
    for option in options:
        key, equals, value = (part.strip() for part in option.partition("="))
        if not equals or not key.isidentifier() or key in values:
            raise InputError(f"the option {option!r} of the {kind} {text!r}", f"key=value, each key once: {_FORM}")
        values[key] = _value(value)
    target = _module(module, kind)
    for name in names.split("."):
        if not hasattr(target, name):
            near = difflib.get_close_matches(name, dir(target), n=3, cutoff=0.5)
            remedy = f"take {' or '.join(near)}, if that is what you meant" if near else ""
            raise UnknownNameError(f"there is no {name} in {module}", f"a name in {module}", remedy)
        target = getattr(target, name)
    return Imported(text, target, values, kind)


def _module(name: str, kind: str) -> Any:
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)  # and it stays: the module may import its neighbours later
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if not f"{name}.".startswith(f"{missing}."):  # found, but something that it imports is not
            reason, remedy = f"it imports {missing}, which is not installed", f"pip install {missing.partition('.')[0]}"
        else:
            root = missing.partition(".")[0]
            reason = f"there is no module {missing}"
            remedy = f"pip install {root}, or run in the folder that {root}.py is in"
        raise InputError(f"{name}, the module of the {kind}, cannot be imported ({reason})", _FORM, remedy) from error
    except Exception as error:  # a module of somebody else's, which may fail in any way
        raise InputError(
            f"{name}, the module of the {kind}, cannot be imported ({type(error).__name__}: {error})", _FORM
        ) from error


def _parts(text: str) -> list[str]:
    """The text between commas that stand in no brackets and no quotes."""
    parts, depth, quote = [""], 0, ""
    for sign in text:
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "'\"":
            quote = sign
        depth += 0 if quote else (sign in "([{") - (sign in ")]}")
        if sign == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += sign
    return [part.strip() for part in parts]


def _value(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text  # a word or a path
