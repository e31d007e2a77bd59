"""Which backends are known, which are available, and loading one by name.

Known: announced in the entry-point group `odenet.backends`, by this distribution or anybody else's.
Available: known, and its framework is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from odenet import _tree
from odenet._backend.entry import BackendEntry
from odenet._backend.interface import Backend
from odenet._errors import InputError, OdenetError, UnsupportedError
from odenet._gradients.record import Gradient
from odenet._names import entry_points, load_entry_point, lookup
from odenet._solvers.family import AnySolver

GROUP = "odenet.backends"
ENTRY_CHECKS: list[Callable[[], None]] = []
"""Of backends that are loaded, called as `solve` and `value_and_grad` begin: one raises where no solve can be, as in a
program that is traced as a whole."""


_scanned: list[tuple[dict[str, BackendEntry], dict[str, OdenetError]]] = []
_loaded: dict[str, Backend] = {}
# not by functools.cache, which programs that trace Python look through, and so meet what reads the entry points


def forget() -> None:
    """Read the announcements, and load backends, anew when they are asked for next."""
    _scanned.clear()
    _loaded.clear()


def _scan() -> tuple[dict[str, BackendEntry], dict[str, OdenetError]]:
    """The entries that could be read, and what is wrong with the others: one broken package must not stop the rest."""
    entries: dict[str, BackendEntry] = {}
    broken: dict[str, OdenetError] = {}
    for point in sorted(entry_points(group=GROUP), key=_ours_first):
        try:
            entries[point.name] = load_entry_point(point, BackendEntry)
        except OdenetError as error:
            broken[point.name] = error
    # those that a user gets without asking come first
    _scanned[:] = [(dict(sorted(entries.items(), key=lambda item: not item[1].array_modules)), broken)]
    return _scanned[0]


def known() -> dict[str, BackendEntry]:
    """Every announced backend by name. Looking costs no framework import."""
    return (_scanned[0] if _scanned else _scan())[0]


def broken() -> dict[str, OdenetError]:
    """What is wrong with the announcements that could not be read, by name; asking for one of them raises it."""
    return (_scanned[0] if _scanned else _scan())[1]


def available() -> dict[str, BackendEntry]:
    """The known backends whose framework is installed."""
    return {name: record for name, record in known().items() if record.available}


def entry(name: str) -> BackendEntry:
    """The entry of a known backend.

    Raises:
        UnknownNameError: nobody announced that name.
        OdenetError: it was announced by a package that cannot be imported.
    """
    if isinstance(name, str) and name in broken():
        raise broken()[name]
    return lookup("backend", name, known())


when_loaded: list[Callable[[Backend], object]] = []
"""What is done with each announced backend as it is loaded: a job of the command line adds to it."""


def _load(name: str) -> Backend:
    loaded = known()[name].load()
    for act in when_loaded:
        act(loaded)
    _loaded[name] = loaded
    return loaded


def backend(name: str | BackendEntry) -> Backend:
    """The backend of that name, or of an entry, loaded.

    Raises:
        UnknownNameError: nobody announced that name.
        BackendUnavailableError: its framework is not installed; the message says what to install.
    """
    if not isinstance(name, BackendEntry):
        name = entry(name)
    if known().get(name.name) is name:
        return _loaded[name.name] if name.name in _loaded else _load(name.name)
    if id(name) not in _UNANNOUNCED:
        _UNANNOUNCED[id(name)] = name, name.load()
    return _UNANNOUNCED[id(name)][1]


_UNANNOUNCED: dict[int, tuple[BackendEntry, Backend]] = {}
"""Backends of entries that were given as they are; the entries live as long, so that no other has their id."""


def entry_for(trees: Iterable[Any]) -> BackendEntry:
    """The backend that owns the arrays in these trees.

    Raises:
        InputError: arrays of no backend, or of two.
    """
    trees = list(trees)
    _tree.require_finite_tree("what is to be computed with", trees)
    leaves = [leaf for tree in trees for leaf in _tree.leaves(tree)]
    owners = [record for record in known().values() if any(record.owns(leaf) for leaf in leaves)]
    if len(owners) == 1:
        return owners[0]
    names = ", ".join(record.name for record in owners) or "none"
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
    return next((record for record in known().values() if record.owns(leaf) and record is not besides.base), None)


def _ours_first(point: Any) -> tuple[bool, str]:
    return not point.value.startswith("odenet_"), point.name


def offering(solver: AnySolver) -> tuple[str, ...]:
    """The known backends that run a solver, with equal steps or with tolerances."""
    return tuple(
        name for name, record in known().items() if solver.name in (*record.runs(), *record.runs(adaptive=True))
    )


def require(entry: BackendEntry, solver: AnySolver, gradient: Gradient, *, adaptive: bool = False) -> None:
    """`BackendEntry.require`, which also says who else has the solver.

    Raises:
        UnsupportedError: the backend does not offer the pair.
    """
    try:
        entry.require(solver, gradient, adaptive=adaptive)
    except UnsupportedError as error:
        others = [name for name in offering(solver) if name != entry.name]
        if solver.name in entry.runs(adaptive=adaptive) or not others:
            raise
        raise UnsupportedError(
            error.given, error.allowed, f"take backend={' or '.join(others)}, which has that solver"
        ) from None
