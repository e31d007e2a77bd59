"""Which backends are known, which are available, and loading one by name.

Known: announced in the entry-point group `odenet.backends`, by this distribution or anybody else's.
Available: known, and its framework is installed.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

from odenet import _tree
from odenet._backend.seam import Backend, BackendEntry
from odenet._errors import BackendUnavailableError, InputError, OdenetError
from odenet._names import lookup

GROUP = "odenet.backends"


def entry_points(group: str) -> Iterable[Any]:
    """What installed packages announce in a group."""
    from importlib import metadata  # a quarter of the time that `import odenet` would take

    return metadata.entry_points(group=group)


@cache
def _scan() -> tuple[dict[str, BackendEntry], dict[str, OdenetError]]:
    """The entries that could be read, and what is wrong with the others: one broken package must not stop the rest."""
    found: dict[str, BackendEntry] = {}
    broken: dict[str, OdenetError] = {}
    for point in sorted(entry_points(group=GROUP), key=_ours_first):
        try:
            found[point.name] = _entry(point)
        except OdenetError as error:
            broken[point.name] = error
    # those that a user gets without asking come first
    return dict(sorted(found.items(), key=lambda item: not item[1].array_modules)), broken


def known() -> dict[str, BackendEntry]:
    """Every announced backend by name. Looking costs no framework import."""
    return _scan()[0]


def broken() -> dict[str, OdenetError]:
    """What is wrong with the announcements that could not be read, by name; asking for one of them raises it."""
    return _scan()[1]


def available() -> dict[str, BackendEntry]:
    """The known backends whose framework is installed."""
    return {name: found for name, found in known().items() if found.available}


def entry(name: str) -> BackendEntry:
    """The entry of a known backend.

    Raises:
        UnknownNameError: nobody announced that name.
        OdenetError: it was announced by a package that cannot be imported.
    """
    if name in broken():
        raise broken()[name]
    return lookup("backend", name, known())


@cache
def _loaded(name: str) -> Backend:
    return known()[name].load()


def backend(name: str) -> Backend:
    """The backend of that name, loaded.

    Raises:
        UnknownNameError: nobody announced that name.
        BackendUnavailableError: its framework is not installed; the message says what to install.
    """
    return _loaded(entry(name).name)


def entry_for(trees: Iterable[Any]) -> BackendEntry:
    """The backend that owns the arrays in these trees.

    Raises:
        InputError: arrays of no backend, or of two.
    """
    leaves = [leaf for tree in trees for leaf in _tree.leaves(tree)]
    owners = [found for found in known().values() if any(found.owns(leaf) for leaf in leaves)]
    if len(owners) == 1:
        return owners[0]
    names = ", ".join(found.name for found in owners) or "none"
    kinds = ", ".join(sorted({type(leaf).__module__ + "." + type(leaf).__qualname__ for leaf in leaves}))
    raise InputError(
        f"the arrays ({kinds}) belong to {names} of the known backends",
        f"arrays of one of {', '.join(known())}",
        "convert them to one framework, or name it: backend='torch'",
    )


def owner(leaf: Any, besides: BackendEntry) -> BackendEntry | None:
    """Another backend whose array this is. NumPy's arrays are everybody's."""
    if besides.owns(leaf) or type(leaf).__module__ == "numpy":
        return None
    return next((found for found in known().values() if found.owns(leaf) and found.name != besides.base), None)


def _ours_first(point: Any) -> tuple[bool, str]:
    return not point.value.startswith("odenet_"), point.name


def _entry(point: Any) -> BackendEntry:
    try:
        found = point.load()
    except Exception as error:  # somebody else's module may fail in any way
        raise BackendUnavailableError(
            f"the entry point {point.name} = {point.value} could not be imported ({error})",
            "a module whose import needs no framework",
            f"repair or uninstall the package that announces {point.name}",
        ) from error
    if not isinstance(found, BackendEntry):
        raise InputError(
            f"the entry point {point.name} = {point.value} is a {type(found).__name__}", "an odenet.BackendEntry"
        )
    return found
